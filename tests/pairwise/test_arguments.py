"""Arguments that do not fit are refused with a message that says what to do."""

from typing import Any

import numpy as np
import pytest
import torch
from cases import rows

from contrastive_zoo import pairwise
from contrastive_zoo.batch.pairs import Pairs

X, KEYS = torch.eye(4), torch.eye(4)[:3]
IDS, KEY_IDS = torch.arange(4), torch.arange(3)


@pytest.mark.parametrize(
    ("error", "message", "arguments"),
    [
        (TypeError, "x must be a tensor", {"x": [[1.0]]}),
        (TypeError, r"x must hold floating-point features, got torch.int64.*\.float\(\)", {"x": X.long()}),
        (ValueError, r"x must be \(rows, features\) or three-dimensional, got shape \(4,\)", {"x": X[0]}),
        (ValueError, r"x must be \(rows, features\), got shape \(1, 4, 4\)", {"x": X[None], "keys": KEYS}),
        (ValueError, "x is empty", {"x": X[:0]}),
        (ValueError, "keys is empty", {"keys": KEYS[:0]}),
        (ValueError, r"same width and dtype, got \(4, 4\) torch.float32 and \(3, 2\)", {"keys": KEYS[:, :2]}),
        (ValueError, "same width and dtype", {"keys": KEYS.double()}),
        (ValueError, "x is on cpu and keys on meta", {"keys": KEYS.to("meta")}),
        (ValueError, "ids and key_ids go together", {"keys": KEYS, "ids": IDS}),
        (ValueError, "ids and key_ids go together", {"keys": KEYS, "key_ids": KEY_IDS}),
        (ValueError, r"key_ids must have shape \(3,\).*got \(4,\)", {"keys": KEYS, "ids": IDS, "key_ids": IDS}),
        (ValueError, r"ids must have shape \(4,\).*got \(3,\)", {"ids": KEY_IDS}),
        (TypeError, "ids must hold integers", {"ids": IDS.float()}),
        (ValueError, r"scale must be a number or hold one per row, \(4,\), got shape \(3,\)", {"scale": torch.ones(3)}),
        (ValueError, "scale must hold at least one number, got an empty tuple", {"scale": ()}),
        (TypeError, r"part must be \(number, parts\).*got 3", {"part": 3}),
        (TypeError, r"part must be \(number, parts\).*got None", {"part": None}),
        (TypeError, r"part must be \(number, parts\).*got \(0, 1, 2\)", {"part": (0, 1, 2)}),
        (TypeError, r"part must be \(number, parts\).*got 'ab'", {"part": "ab"}),
        (TypeError, r"part = \(0.5, 2\) must be a whole number, got 0.5", {"part": (0.5, 2)}),
        (TypeError, r"part = \(0, 'x'\) must be a whole number", {"part": (0, "x")}),
        (TypeError, r"part = \(True, 2\) must be a whole number", {"part": (True, 2)}),
        (ValueError, r"part must be \(number, parts\).*got \(2, 2\)", {"part": (2, 2)}),
        (ValueError, r"part must be \(number, parts\).*got \(-1, 2\)", {"part": (-1, 2)}),
        (ValueError, r"part must be \(number, parts\).*got \(0, 0\)", {"part": (0, 0)}),
        (ValueError, "backend must be one of 'auto'.*'dense'.*'fused'.*'tiled'.*, got 'fast'", {"backend": "fast"}),
    ],
)
def test_logsumexp(error: type[Exception], message: str, arguments: dict[str, Any]) -> None:
    with pytest.raises(error, match=message):
        pairwise.logsumexp(**{"x": X, "scale": 1.0, **arguments})


def test_a_scale_per_row_does_not_serve_both_directions() -> None:
    with pytest.raises(ValueError, match=r"scale must be one number for both directions, got shape \(4,\)"):
        pairwise.logsumexp_both(X, KEYS, scale=torch.ones(4))


def test_several_scales_do_not_serve_both_directions() -> None:
    with pytest.raises(ValueError, match="scale must be one number for both directions"):
        pairwise.logsumexp_both(X, KEYS, scale=(1.0, 2.0))  # type: ignore[arg-type]


@pytest.mark.parametrize("scale", [(1.0, 2.0), (1.0,), torch.ones(4)], ids=str)
def test_nor_do_they_for_objectives(scale: Any) -> None:
    with pytest.raises(ValueError, match="scale must be one number for both directions, got"):
        Pairs.unshared("auto", unit_rows=False, norm_bound=torch.inf).logsumexp_both(X, X, scale=scale)


def test_key_ids_without_keys_are_refused() -> None:
    with pytest.raises(ValueError, match="key_ids"):
        pairwise.logsumexp(X, scale=1.0, ids=IDS, key_ids=IDS)


@pytest.mark.parametrize(
    ("error", "message", "arguments"),
    [
        (ValueError, "kernel must be one of 'gaussian', 'log', 'imq', 'riesz', got 'cosine'", {"kernel": "cosine"}),
        (ValueError, "gaussian kernel wants t > 0, got .*-1.0", {"parameter": -1.0}),
        (ValueError, "riesz kernel wants t != 0", {"kernel": "riesz", "parameter": 0.0}),
        (TypeError, "parameter must be a number, got '2'", {"parameter": "2"}),
        (ValueError, "parameter must be a finite number", {"parameter": torch.inf}),
        (ValueError, "ids must have shape", {"ids": KEY_IDS}),
        (ValueError, "backend must be one of", {"backend": "fast"}),
    ],
)
def test_kernel_sum(error: type[Exception], message: str, arguments: dict[str, Any]) -> None:
    with pytest.raises(error, match=message):
        pairwise.kernel_sum(X, **{"kernel": "gaussian", "parameter": 2.0, **arguments})


@pytest.mark.parametrize(
    ("error", "message", "arguments"),
    [
        (ValueError, "ids and key_ids go together", {"keys": KEYS, "ids": IDS}),
        (ValueError, "same width and dtype", {"keys": KEYS.double()}),
        (ValueError, r"scale must be a number or a 0-dim tensor, got shape \(4,\)", {"scale": torch.ones(4)}),
        (ValueError, r"bias must be a number or hold one per row, \(4,\), got shape \(3,\)", {"bias": torch.ones(3)}),
        (ValueError, "backend must be one of", {"backend": "fast"}),
    ],
)
def test_softplus_sum(error: type[Exception], message: str, arguments: dict[str, Any]) -> None:
    with pytest.raises(error, match=message):
        pairwise.softplus_sum(**{"x": X, "scale": 1.0, **arguments})


@pytest.mark.parametrize(
    ("error", "message", "arguments"),
    [
        (ValueError, r"ids must have shape \(4,\).*got \(3,\)", {"ids": KEY_IDS}),
        (TypeError, "ids must hold integers", {"ids": IDS.float()}),
        (ValueError, r"scale must be a number or a 0-dim tensor, got shape \(4,\)", {"scale": torch.ones(4)}),
        (ValueError, "bias must be a number", {"bias": torch.ones(2, 2)}),
    ],
)
def test_softplus_sum_within(error: type[Exception], message: str, arguments: dict[str, Any]) -> None:
    with pytest.raises(error, match=message):
        pairwise.softplus_sum_within(**{"x": X, "ids": IDS, "scale": 1.0, **arguments})


def test_an_explicit_backend_is_kept_and_auto_is_dense_for_small_matrices_only() -> None:
    small, large = X.double().requires_grad_(), rows(300, 3)
    for x, backend, differentiable_twice in (
        (small, "dense", True),
        (small, "tiled", False),
        (small, "auto", True),
        (large, "dense", True),
        (large, "auto", False),
    ):
        (first,) = torch.autograd.grad(pairwise.logsumexp(x, scale=1.0, backend=backend).sum(), x, create_graph=True)
        if differentiable_twice:
            assert torch.autograd.grad(first.square().sum(), x)[0].isfinite().all()
        else:
            with pytest.raises(RuntimeError, match="Use backend='dense'"):
                torch.autograd.grad(first.square().sum(), x)


@pytest.mark.parametrize(
    ("error", "message", "scale"),
    [
        (ValueError, r"a scale of a tuple must be a number or a 0-dim tensor, got shape \(4,\)", (torch.ones(4), 1.0)),
        (ValueError, "scale must be a finite number .* got nan", float("nan")),
        (TypeError, "scale must be a number, got None", None),
    ],
)
def test_scales(error: type[Exception], message: str, scale: Any) -> None:
    with pytest.raises(error, match=message):
        pairwise.logsumexp(X, scale=scale)


@pytest.mark.parametrize("scale", [2.0, torch.tensor(2.0), torch.ones(3), torch.ones(4, 1)], ids=str)
def test_a_scale_that_is_not_one_per_row_has_no_mean(scale: Any) -> None:
    with pytest.raises(ValueError, match=r"scale must be a tensor with one scale per row, \(4,\), got"):
        pairwise.logsumexp_with_mean(torch.ones(4, 2), scale=scale)
    with pytest.raises(ValueError, match="ids and key_ids go together"):
        pairwise.logsumexp_with_mean(torch.ones(4, 2), torch.ones(3, 2), scale=torch.ones(4), ids=torch.arange(4))


@pytest.mark.parametrize(
    ("error", "message", "change"),
    [
        (ValueError, r"x and keys must have the same shape, got \(6, 3\) and \(5, 3\)", {"keys": torch.ones(5, 3)}),
        (ValueError, r"x must be \(rows, features\)", {"x": torch.ones(6)}),
        (ValueError, r"ids must have shape \(6,\).*got \(3,\)", {"ids": torch.arange(3)}),
        (TypeError, "ids must hold integers", {"ids": torch.ones(6)}),
        (ValueError, "x is on cpu and keys on meta", {"keys": torch.ones(6, 3, device="meta")}),
        (ValueError, "backend must be one of", {"backend": "fast"}),
    ],
)
def test_square_sum(error: type[Exception], message: str, change: dict[str, object]) -> None:
    with pytest.raises(error, match=message):
        pairwise.square_sum(**{"x": torch.ones(6, 3), "keys": torch.ones(6, 3), **change})


@pytest.mark.parametrize("backend", ["auto", "tiled", "dense"])
@pytest.mark.parametrize("ids", [None, 3, [0, 1, 0, 1]], ids=str)
def test_sums_within_need_ids(ids: Any, backend: str) -> None:
    with pytest.raises(TypeError, match=r"ids must be an integer tensor of shape \(4,\), got"):
        pairwise.softplus_sum_within(X, ids=ids, scale=1.0, backend=backend)


def test_parts_may_be_numbers_of_numpy() -> None:
    whole = pairwise.logsumexp(X, scale=1.0)
    parts = [pairwise.logsumexp(X, scale=1.0, part=(np.int64(number), np.int64(2))) for number in range(2)]
    torch.testing.assert_close(torch.logsumexp(torch.stack(parts), 0), whole)
