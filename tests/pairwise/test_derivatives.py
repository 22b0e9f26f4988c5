"""Finite differences of first derivatives on all backends, of second ones on the dense backend; the tiled one has none."""

from collections.abc import Callable

import pytest
import torch
from cases import rows
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from contrastive_zoo import pairwise

WIDE_IDS = torch.tensor([0, 1, 0])
IDS, KEY_IDS = torch.arange(7) // 2, torch.arange(4)
SWEEPS: dict[str, tuple[Callable[..., Tensor | tuple[Tensor, ...]], tuple[str, ...]]] = {
    "self": (lambda x, s, backend: pairwise.logsumexp(x, scale=s, ids=IDS, backend=backend), ("x", "scale")),
    "keys": (
        lambda x, k, s, backend: pairwise.logsumexp(x, k, scale=s, ids=IDS, key_ids=KEY_IDS, backend=backend),
        ("x", "keys", "scale"),
    ),
    "scale per row": (lambda x, s, backend: pairwise.logsumexp(x, scale=s, ids=IDS, backend=backend), ("x", "scales")),
    "two scales": (lambda x, s, backend: pairwise.logsumexp(x, scale=(s, 2 * s), ids=IDS, backend=backend), ("x", "scale")),
    "tiny temperature": (lambda x, s, backend: pairwise.logsumexp(x, scale=200 * s, ids=IDS, backend=backend), ("x", "scale")),
    "both": (
        lambda x, k, s, backend: pairwise.logsumexp_both(x, k, scale=s, ids=IDS, key_ids=KEY_IDS, backend=backend),
        ("x", "keys", "scale"),
    ),
    "mean": (lambda x, s, backend: pairwise.logsumexp_with_mean(x, scale=s, ids=IDS, backend=backend)[0], ("x", "scales")),
    "mean of keys": (
        lambda x, k, s, backend: pairwise.logsumexp_with_mean(x, k, scale=s, ids=IDS, key_ids=KEY_IDS, backend=backend)[0],
        ("x", "keys", "scales"),
    ),
    "squares": (lambda x, y, backend: pairwise.square_sum(x, y, ids=IDS, backend=backend), ("x", "other view")),
    "squares of few rows": (lambda x, y, backend: pairwise.square_sum(x, y, ids=WIDE_IDS, backend=backend), ("wide", "wide 2")),
    "kernel": (lambda x, backend: pairwise.kernel_sum(x, kernel="log", parameter=2.0, ids=IDS, backend=backend), ("x",)),
    "softplus": (
        lambda x, k, s, b, backend: pairwise.softplus_sum(x, k, scale=s, bias=b, ids=IDS, key_ids=KEY_IDS, backend=backend),
        ("x", "keys", "scale", "scales"),
    ),
    "softplus, self": (
        lambda x, s, b, backend: pairwise.softplus_sum(x, scale=s, bias=b, ids=IDS, backend=backend),
        ("x", "scale", "scales"),
    ),
    "softplus within": (
        lambda x, s, b, backend: pairwise.softplus_sum_within(x, ids=IDS % 2, scale=s, bias=b, backend=backend),
        ("x", "scale", "scales"),
    ),
}
every_sweep = pytest.mark.parametrize(("sweep", "names"), SWEEPS.values(), ids=SWEEPS)


def inputs(names: tuple[str, ...]) -> list[Tensor]:
    made = {
        "x": rows(7, 3, unit=False),
        "keys": rows(4, 3, seed=1, unit=False),
        "other view": rows(7, 3, seed=1, unit=False),
        "wide": rows(3, 5, unit=False),
        "wide 2": rows(3, 5, seed=1, unit=False),
        "scale": torch.tensor(0.7, dtype=torch.float64, requires_grad=True),
        "scales": torch.linspace(0.2, 2, 7, dtype=torch.float64).requires_grad_(),
    }
    return [made[name] for name in names]


@every_sweep
def test_first_derivatives(sweep: Callable[..., Tensor], names: tuple[str, ...], engine: str) -> None:
    assert gradcheck(lambda *tensors: sweep(*tensors, backend=engine), inputs(names), eps=1e-7, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kernel", ["gaussian", "log", "imq", "riesz"])
@pytest.mark.parametrize("unit", [True, False], ids=["unit rows", "any rows"])
def test_first_derivatives_of_kernels(kernel: str, unit: bool, engine: str) -> None:
    def of_normalised(x: Tensor) -> Tensor:
        x = torch.nn.functional.normalize(x, dim=1) if unit else x
        return pairwise.kernel_sum(x, kernel=kernel, parameter=1.5, ids=IDS, unit_rows=unit, backend=engine)

    assert gradcheck(of_normalised, inputs(("x",)))


@every_sweep
def test_dense_has_second_derivatives(sweep: Callable[..., Tensor], names: tuple[str, ...]) -> None:
    tensors = inputs(names)
    if sweep is SWEEPS["tiny temperature"][0]:
        tensors[1] = tensors[1].detach().div(100).requires_grad_()
    assert gradgradcheck(lambda *given: sweep(*given, backend="dense"), tensors)


@every_sweep
def test_tiled_refuses_a_second_derivative(sweep: Callable[..., Tensor], names: tuple[str, ...]) -> None:
    tensors = inputs(names)
    value = sweep(*tensors, backend="tiled")
    value = torch.cat(value) if isinstance(value, tuple) else value
    first = torch.autograd.grad(value.sum(), tensors, create_graph=True)
    with pytest.raises(RuntimeError, match="Use backend='dense'"):
        torch.autograd.grad(sum(gradient.square().sum() for gradient in first), tensors)
