"""Value and every gradient of the log-sum-exps against the double loop, for all backends, at awkward sizes."""

from collections.abc import Sequence
from functools import cache

import oracle
import pytest
import torch
from cases import DTYPES, SIZES, rows, weights
from tolerances import assert_close
from torch import Tensor

from contrastive_zoo import pairwise

KEYS = {1: 3, 2: 1, 3: 2, 63: 17, 111: 29}
SCALES = [-3.0, 0.0, 0.1, 10.0, 200.0]
IDS = {
    "different": lambda size: torch.arange(size),
    "views": lambda size: torch.arange(size) // 2,
    "few": lambda size: torch.arange(size) * 7 % 5 - 2,
    "equal": lambda size: torch.full((size,), 3),
    "int32": lambda size: torch.arange(size, dtype=torch.int32).flip(0) // 3,
}
SHAPES_AND_IDS = [(shape, ids) for shape in SIZES[:-1] for ids in IDS] + [(SIZES[-1], "views")]
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)
self_and_keys = pytest.mark.parametrize("with_keys", [False, True], ids=["self", "keys"])


def inputs(shape: tuple[int, int], with_keys: bool, dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
    """Rows, and keys if wanted."""
    x = rows(*shape, dtype=dtype)
    return (x, rows(KEYS[shape[0]], shape[1], seed=1, dtype=dtype)) if with_keys else (x,)


def id_arguments(kind: str, tensors: Sequence[Tensor]) -> dict[str, Tensor]:
    return dict(zip(("ids", "key_ids"), (IDS[kind](len(t)) for t in tensors), strict=False))


@cache
def expected(
    shape: tuple[int, int], with_keys: bool, ids: str, scale: float, per_row: bool = False, seed: int = 7
) -> tuple[Tensor, ...]:
    """Value; gradients of rows, keys if there are any, and scale."""
    tensors, s = inputs(shape, with_keys), scale_like(scale, per_row, shape[0])
    x, keys = tensors[0], tensors[-1]
    value = oracle.logsumexp(x, keys, s, IDS[ids](len(x)).tolist(), IDS[ids](len(keys)).tolist())
    upstream = weights(*value.shape, seed=seed)
    return (value.detach(), *torch.autograd.grad(value, (*tensors, s), upstream, materialize_grads=True))


def scale_like(scale: float, per_row: bool, size: int) -> Tensor:
    s = torch.tensor(scale, dtype=torch.float64)
    return (s * torch.linspace(0.5, 1, size, dtype=torch.float64) if per_row else s).requires_grad_()


def check_gradients(found: Sequence[Tensor], wanted: Sequence[Tensor], dtype: torch.dtype, logit: float) -> None:
    """Gradients of rows, keys, scale; terms of rows and keys are as large as the scale, those of the scale as similarities."""
    for number, (gradient, reference) in enumerate(zip(found, wanted, strict=True)):
        is_scale = number == len(found) - 1
        name = "scale" if is_scale else ("rows", "keys")[number]
        magnitude = 1.0 if is_scale else logit / 10
        assert_close(gradient, reference, f"gradient of {name}", dtype=dtype, logit=logit, magnitude=magnitude)


@dtypes
@self_and_keys
@pytest.mark.parametrize(("shape", "ids"), SHAPES_AND_IDS, ids=str)
def test_shapes_and_ids(shape: tuple[int, int], ids: str, with_keys: bool, engine: str, dtype: torch.dtype) -> None:
    tensors, scale = inputs(shape, with_keys, dtype), scale_like(10.0, False, 1)
    value = pairwise.logsumexp(*tensors, scale=scale, **id_arguments(ids, tensors), backend=engine)
    reference = expected(shape, with_keys, ids, 10.0)
    assert_close(value, reference[0], "value")
    found = torch.autograd.grad(value, (*tensors, scale), weights(*value.shape, dtype=dtype))
    check_gradients(found, reference[1:], dtype, 10.0)


@dtypes
@self_and_keys
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("per_row", [False, True], ids=["one scale", "scale per row"])
def test_scales(per_row: bool, scale: float, with_keys: bool, engine: str, dtype: torch.dtype) -> None:
    shape = (63, 7)
    tensors, s = inputs(shape, with_keys, dtype), scale_like(scale, per_row, 63)
    value = pairwise.logsumexp(*tensors, scale=s, **id_arguments("views", tensors), backend=engine)
    reference = expected(shape, with_keys, "views", scale, per_row)
    assert_close(value, reference[0], "value", logit=abs(scale))
    found = torch.autograd.grad(value, (*tensors, s), weights(63, dtype=dtype))
    check_gradients(found, reference[1:], dtype, max(abs(scale), 1.0))


@dtypes
@self_and_keys
@pytest.mark.parametrize("scales", [(10.0, 0.1), (200.0, 10.0)], ids=str)
def test_several_scales_in_one_sweep(scales: tuple[float, float], with_keys: bool, engine: str, dtype: torch.dtype) -> None:
    shape = (63, 7)
    tensors, given = inputs(shape, with_keys, dtype), tuple(scale_like(scale, False, 1) for scale in scales)
    value = pairwise.logsumexp(*tensors, scale=given, **id_arguments("few", tensors), backend=engine)
    parts = [expected(shape, with_keys, "few", scale, seed=seed) for seed, scale in enumerate(scales)]
    assert_close(value, torch.stack([part[0] for part in parts]), "value", logit=max(scales))
    upstream = torch.stack([weights(63, seed=seed, dtype=dtype) for seed in range(2)])
    *of_rows, first, second = torch.autograd.grad(value, (*tensors, *given), upstream)
    summed = [a + b for a, b in zip(parts[0][1:-1], parts[1][1:-1], strict=True)]
    check_gradients([*of_rows, first], [*summed, parts[0][-1]], dtype, max(scales))
    check_gradients([*of_rows, second], [*summed, parts[1][-1]], dtype, max(scales))


@cache
def expected_both(shape: tuple[int, int], ids: str, scale: float) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Values of rows and columns; gradients of rows, keys and scale."""
    (x, keys), s = inputs(shape, True), scale_like(scale, False, 1)
    row_ids, key_ids = IDS[ids](len(x)).tolist(), IDS[ids](len(keys)).tolist()
    values = oracle.logsumexp(x, keys, s, row_ids, key_ids), oracle.logsumexp(keys, x, s, key_ids, row_ids)
    upstream = weights(len(x)), weights(len(keys), seed=8)
    return values, torch.autograd.grad(values, (x, keys, s), upstream)


@dtypes
@pytest.mark.parametrize(
    ("shape", "ids", "scale"), [*((shape, "few", 10.0) for shape in SIZES), *(((63, 7), "views", s) for s in SCALES)], ids=str
)
def test_both_directions(shape: tuple[int, int], ids: str, scale: float, engine: str, dtype: torch.dtype) -> None:
    tensors, s = inputs(shape, True, dtype), scale_like(scale, False, 1)
    values = pairwise.logsumexp_both(*tensors, scale=s, **id_arguments(ids, tensors), backend=engine)
    reference, wanted = expected_both(shape, ids, scale)
    for name, value, number in zip(("rows", "columns"), values, reference, strict=True):
        assert_close(value, number, name, logit=abs(scale))
    upstream = weights(len(tensors[0]), dtype=dtype), weights(len(tensors[1]), seed=8, dtype=dtype)
    check_gradients(torch.autograd.grad(values, (*tensors, s), upstream), wanted, dtype, max(abs(scale), 1.0))


@dtypes
def test_rows_of_any_length(engine: str, dtype: torch.dtype) -> None:
    x, scale = rows(63, 7, dtype=dtype, unit=False), scale_like(2.0, False, 1)
    exact = rows(63, 7, unit=False)
    reference = oracle.logsumexp(exact, exact, scale, range(63), range(63))
    logit = 2 * float(x.detach().norm(dim=1).max()) ** 2
    value = pairwise.logsumexp(x, scale=scale, backend=engine)
    assert_close(value, reference, "value", logit=logit)
    found = torch.autograd.grad(value, (x, scale), weights(63, dtype=dtype))
    wanted = torch.autograd.grad(reference, (exact, scale), weights(63))
    assert_close(found[0], wanted[0], "gradient of rows", logit=logit)
    assert_close(found[1], wanted[1], "gradient of scale", dtype=dtype, logit=logit)


def test_a_given_bound_on_the_length_changes_nothing(engine: str) -> None:
    x = rows(63, 7)
    looked, told = (pairwise.logsumexp(x, scale=10.0, norm_bound=bound, backend=engine) for bound in (torch.inf, 1.0))
    assert_close(told, looked, "value")


def test_only_gradients_that_are_asked_for(engine: str) -> None:
    x, keys = inputs((63, 7), True)
    scale = scale_like(10.0, False, 1)
    reference = expected((63, 7), True, "views", 10.0)
    arguments = {"scale": scale.detach(), **id_arguments("views", (x, keys)), "backend": engine}
    of_rows = torch.autograd.grad(pairwise.logsumexp(x, keys.detach(), **arguments), x, weights(63))
    of_keys = torch.autograd.grad(pairwise.logsumexp(x.detach(), keys, **arguments), keys, weights(63))
    alone = pairwise.logsumexp(x.detach(), keys.detach(), **{**arguments, "scale": scale})
    of_scale = torch.autograd.grad(alone, scale, weights(63))
    check_gradients([*of_rows, *of_keys, *of_scale], reference[1:], torch.float64, 10.0)
    assert not pairwise.logsumexp(x.detach(), keys.detach(), **arguments).requires_grad


def test_a_number_is_as_good_as_a_tensor(engine: str) -> None:
    x = rows(63, 7)
    value = pairwise.logsumexp(x, scale=10.0, ids=IDS["views"](63), backend=engine)
    assert_close(value, expected((63, 7), False, "views", 10.0)[0], "value")


def test_without_ids_rows_leave_out_themselves_and_keys_nothing(engine: str) -> None:
    x, keys = inputs((63, 7), True)
    assert_close(pairwise.logsumexp(x, scale=10.0, backend=engine), expected((63, 7), False, "different", 10.0)[0], "self")
    assert_close(pairwise.logsumexp(x, keys, scale=10.0, backend=engine), oracle.logsumexp(x, keys, 10.0), "keys")


def test_ids_of_nobody_leave_nothing_out(engine: str) -> None:
    x, keys = inputs((63, 7), True)
    nobody = torch.full((len(keys),), -1)
    value = pairwise.logsumexp(x, keys, scale=10.0, ids=torch.arange(63), key_ids=nobody, backend=engine)
    assert_close(value, oracle.logsumexp(x, keys, 10.0), "value")


@pytest.mark.parametrize("scale", [-3.0, 0.1, 10.0, 200.0])
def test_rows_without_keys(scale: float, engine: str) -> None:
    """They are -inf and get a zero gradient, and so does whoever shares the sweep only with them."""
    x, s = rows(5, 3), scale_like(scale, False, 1)
    ids = torch.tensor([0, 0, 0, 0, 0])
    value = pairwise.logsumexp(x, scale=s, ids=ids, backend=engine)
    assert torch.equal(value, torch.full_like(value, -torch.inf))
    for gradient in torch.autograd.grad(value, (x, s), weights(5)):
        assert torch.equal(gradient, torch.zeros_like(gradient))
    key_ids = torch.tensor([0, 0])
    keys = rows(2, 3, seed=1)
    value = pairwise.logsumexp(x, keys, scale=s, ids=torch.tensor([0, 0, 1, 0, 0]), key_ids=key_ids, backend=engine)
    assert value.isinf().tolist() == [True, True, False, True, True]
    gradient = torch.autograd.grad(value, x, weights(5))[0]
    assert gradient.any(1).tolist() == [False, False, True, False, False]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_is_computed_in_float32(engine: str, dtype: torch.dtype) -> None:
    x = rows(63, 7, dtype=dtype)
    same = x.detach().float().requires_grad_()
    value, reference = (pairwise.logsumexp(r, scale=10.0, backend=engine) for r in (x, same))
    assert torch.equal(value, reference)
    gradient, wanted = (torch.autograd.grad(v, r, weights(63, dtype=v.dtype))[0] for v, r in ((value, x), (reference, same)))
    assert torch.equal(gradient, wanted.to(dtype))


@pytest.mark.parametrize("scale", [1.0, 200.0, 1e4])
def test_extreme_logits(scale: float, engine: str) -> None:
    """Opposite, orthogonal and equal rows: the exact logarithm where exponentials overflow or vanish."""
    x = torch.tensor([[1.0, 0.0], [1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]], requires_grad=True)
    value = pairwise.logsumexp(x, scale=scale, backend=engine)
    assert_close(value, oracle.logsumexp(x.double(), x.double(), scale, range(4), range(4)), "value", logit=scale)
    (gradient,) = torch.autograd.grad(value.sum(), x)
    assert gradient.isfinite().all()


@pytest.mark.parametrize("scale", [10.0, 200.0, (10.0, 3.0)], ids=["bounded", "shifted", "two"])
def test_sets_of_rows_are_by_themselves(engine: str, scale: float | tuple[float, float]) -> None:
    """Views that lie next to each other in memory, as those of a batch do, against a call for each."""
    together = rows(62, 7).view(31, 2, 7).transpose(0, 1)
    ids = torch.arange(31) // 3
    s = torch.tensor(scale, dtype=torch.float64, requires_grad=True)
    scales = s.unbind() if s.dim() else s
    value = pairwise.logsumexp(together, scale=scales, ids=ids, backend=engine)
    each = [pairwise.logsumexp(x, scale=scales, ids=ids, backend=engine) for x in together.unbind()]
    expected = torch.stack(each, -2)
    upstream = weights(*value.shape)
    assert_close(value, expected, "value")
    found = torch.autograd.grad(value, (together, s), upstream)
    wanted = torch.autograd.grad(expected, (together, s), upstream)
    assert_close(found[0], wanted[0], "gradient of rows", logit=200.0)
    assert_close(found[1], wanted[1], "gradient of scale", logit=200.0)
