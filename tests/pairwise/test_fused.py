"""The kernels of the fused backend, in Triton's interpreter or on a GPU: right for every option of a log-sum-exp."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from cases import HALF, rows, weights
from exactness import assert_as_exact_as_dense, errors, exact, single
from hypothesis import given
from hypothesis import strategies as st
from launches import Recorder, Work
from operations import IDS, OPERATIONS, OUTCOME, Leaves, Operation
from tolerances import assert_close
from torch import Tensor

from contrastive_zoo import pairwise
from contrastive_zoo.pairwise import backends, sweep
from contrastive_zoo.pairwise.fused import arguments, launch
from contrastive_zoo.pairwise.fused.shapes import Shape
from contrastive_zoo.pairwise.operator_ import compute
from contrastive_zoo.pairwise.sweep import Bound, Ids, Sweep
from contrastive_zoo.pairwise.terms import LogSumExp, on_host

pytestmark = pytest.mark.usefixtures("kernels")

SERVED = {name: operation for name, operation in OPERATIONS.items() if "logsumexp" in name or "gaussian(2.0), unit" in name}
GAUSSIAN = SERVED["kernel_sum, gaussian(2.0), unit rows"]
every_operation = pytest.mark.parametrize("operation", SERVED.values(), ids=SERVED)
SIZES = [((1, 4), "none"), ((2, 1), "none"), ((2, 3), "equal"), ((17, 33), "views"), ((70, 5), "few")]
SIZES += [((70, 64), "one large class"), ((21, 200), "int32")]

# How the forward pass visits pairs, and the tiles of all kernels.
VISITS = {
    "large tiles": (2**60, Shape(64, 128, 4, 2)),
    "small tiles": (2**60, Shape(16, 32, 4, 2)),
    "each pair once": (0, Shape(32, 16, 4, 2)),
}


@pytest.fixture(params=VISITS)
def visits(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    many, shape = VISITS[request.param]
    monkeypatch.setattr(launch, "MANY_PAIRS", many)
    monkeypatch.setattr(launch, "RUN", 2)
    monkeypatch.setattr(launch, "shape_of", lambda *_: shape)
    torch.use_deterministic_algorithms(many > 0)
    yield request.param
    torch.use_deterministic_algorithms(True)


def bounded(operation: Operation) -> Operation:
    """With a bound on the length of rows, as losses give it."""

    def called(t: Leaves, *ids: Any, **options: Any) -> Tensor:
        return operation.call(t, *ids, **options, norm_bound=1.01)

    return operation._replace(call=called)


@every_operation
@pytest.mark.parametrize(("shape", "kind"), SIZES, ids=str)
def test_value_and_gradients(operation: Operation, shape: tuple[int, int], kind: str, visits: str) -> None:
    if visits != "large tiles" and shape[0] < 17:
        pytest.skip("fits into one tile")
    assert_as_exact_as_dense(operation, single(*shape), kind)
    if operation is not GAUSSIAN:  # whose rows have a known length anyway
        assert_as_exact_as_dense(bounded(operation), single(*shape), kind)


def test_probabilities_at_a_low_temperature_do_not_lack_what_log_sum_exps_round_off(visits: str) -> None:
    """A log-sum-exp of 200 is off by 1e-5, and probabilities computed from it would be too."""
    upstream = weights(70)

    def gradient(dtype: torch.dtype, backend: str) -> Tensor:
        x, keys = rows(70, 5, dtype=torch.float32), rows(70, 5, seed=3, dtype=torch.float32)
        x = x.detach().to(dtype).requires_grad_()
        value = pairwise.logsumexp(x, keys.detach().to(dtype), scale=200.0, backend=backend)
        return torch.autograd.grad(value, x, upstream.to(dtype))[0]

    exact = gradient(torch.float64, "dense")
    fused, dense = (float((gradient(torch.float32, backend) - exact).norm()) for backend in ("fused", "dense"))
    assert fused <= 2 * dense + 2.0**-22 * float(exact.norm())


@every_operation
def test_rows_without_keys(operation: Operation, visits: str) -> None:
    found = operation.outcome(single(5, 7), "equal", backend="fused")
    wanted = operation.outcome(single(5, 7), "equal", backend="dense")
    for value, expected in zip(found, wanted, strict=True):
        assert torch.equal(value, expected)


@every_operation
@pytest.mark.parametrize("parts", [2, 5])
def test_parts_make_the_whole(operation: Operation, parts: int, visits: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also if parts begin inside a tile, or are empty."""
    if operation.whole is None:
        pytest.skip("means are merged with weights")
    monkeypatch.setattr(sweep, "GRAIN", 8)

    def whole(*given: Any) -> Tensor:
        assert operation.whole is not None
        return operation.whole(torch.stack([operation.call(*given, part=(p, parts), backend="fused") for p in range(parts)]))

    found, wanted = operation._replace(call=whole).outcome(single(63, 7), "few"), operation.outcome(exact(single(63, 7)), "few")
    for what, a, b in zip(OUTCOME, found, wanted, strict=True):
        assert_close(a, b, what, dtype=torch.float32, logit=10 * operation.logit, magnitude=operation.logit)


@pytest.mark.parametrize("part", [(0, 3), (1, 3), (2, 3)])
@pytest.mark.parametrize("keyed", [False, True])
def test_parts_are_those_of_other_backends(part: tuple[int, int], keyed: bool, visits: str) -> None:
    x, keys = rows(150, 7, dtype=torch.float32), rows(97, 7, seed=1, dtype=torch.float32)
    found, wanted = (
        torch.cat(pairwise.logsumexp_both(x, keys, scale=3.0, part=part, backend=backend))
        if keyed
        else pairwise.logsumexp(x, scale=3.0, part=part, backend=backend)
        for backend in ("fused", "tiled")
    )
    assert_close(found, wanted, "value")


@pytest.mark.parametrize("scales", [(3.0,), (3.0, 1.0)], ids=["one scale", "two scales"])
@pytest.mark.parametrize("size", [20, 150])
def test_gradients_of_both_sides_of_unequal_numbers(scales: tuple[float, ...], size: int, visits: str) -> None:
    """Each sum weighs its gradient by its own scale, also where there are more keys than rows."""
    found = []
    for backend in ("fused", "tiled"):
        x, keys = rows(size, 7, dtype=torch.float32), rows(170 - size, 7, seed=1, dtype=torch.float32)
        learned = torch.tensor(scales, requires_grad=True)
        sums = compute(Sweep(x, keys, both=True), LogSumExp(learned[:, None]), backend)
        upstream = [weights(*each.shape, seed=2, dtype=each.dtype) for each in (sums.rows, sums.columns)]
        found.append(torch.autograd.grad((sums.rows, sums.columns), (x, keys, learned), upstream))
    for what, a, b in zip(("rows", "keys", "scales"), *found, strict=True):
        assert_close(a, b, f"gradient of {what}", magnitude=10.0)


def test_means_of_parts_weigh_their_sums(visits: str) -> None:
    x, scale = rows(150, 7, dtype=torch.float32), torch.linspace(1, 30, 150)
    whole, mean = pairwise.logsumexp_with_mean(x, scale=scale, backend="fused")
    parts = [pairwise.logsumexp_with_mean(x, scale=scale, part=(number, 2), backend="fused") for number in range(2)]
    assert_close(sum((sums - whole).exp() * means for sums, means in parts), mean, "mean", magnitude=1.0, logit=30.0)


@given(
    operation=st.sampled_from([operation for operation in SERVED.values() if operation is not GAUSSIAN]),
    size=st.integers(1, 50),
    width=st.integers(1, 40),
    scale=st.sampled_from([-3.0, 0.0, 0.1, 1.0, 20.0]),
    kind=st.sampled_from(list(IDS)),
    known=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_fused_equals_dense(
    operation: Operation, size: int, width: int, scale: float, kind: str, known: bool, seed: int
) -> None:
    given = single(size, width, scale=scale, seed=seed)
    found = (bounded(operation) if known else operation).outcome(given, kind, backend="fused")
    wanted = operation.outcome(exact(given), kind, backend="dense")
    logit = 30 * max(abs(scale), 1.0) * operation.logit
    for what, a, b in zip(OUTCOME, found, wanted, strict=True):
        assert_close(a, b, what, dtype=torch.float32, logit=logit, magnitude=size**0.5 * max(1.0, logit / 30))


def of_batch(x: Tensor, other: Tensor, backend: str, ids: Any, **options: Any) -> tuple[Tensor, ...]:
    """Value and gradients of a sum over rows and one over keys."""
    value = torch.cat([pairwise.logsumexp(x, scale=5.0, ids=ids, backend=backend, **options), *pairwise.logsumexp_both(
        x, other, scale=5.0, ids=ids, key_ids=ids, backend=backend, **options
    )])  # fmt: skip
    upstream = weights(*value.shape, dtype=value.dtype)
    return value.detach(), *torch.autograd.grad(value, (x, other), upstream)


def test_ids_that_are_known_are_those_that_are_read(visits: str) -> None:
    x, other = (rows(70, 7, seed=seed, dtype=torch.float32) for seed in (0, 1))
    values = torch.arange(70) // 2
    known, read = (of_batch(x, other, "fused", ids) for ids in (Ids(values, 2), values))
    if visits == "each pair once":  # the order of additions may vary
        assert all(torch.allclose(a, b, rtol=1e-5, atol=1e-5) for a, b in zip(known, read, strict=True))
    else:
        assert all(torch.equal(a, b) for a, b in zip(known, read, strict=True))


def test_pairs_with_equal_ids(visits: str) -> None:
    """Which no public function asks of a log-sum-exp."""
    x, ids = rows(37, 5, dtype=torch.float32).detach(), torch.arange(37) % 4
    counts = Sweep.of(x, ids=ids, counts="equal")
    term = LogSumExp.of(4.0, len(x))
    assert backends.FUSED.forward is not None
    assert backends.DENSE.plain is not None
    found = backends.FUSED.forward(counts, term, (False,) * 4)[0].without_axis()
    wanted = backends.DENSE.plain(counts, term)
    for what in ("rows", "columns"):
        assert_close(getattr(found, what), getattr(wanted, what), what)
    assert found.rows.isfinite().all()


def in_half(x: Tensor, keys: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Log-sum-exps and the gradient of their weighted sum as dense code computes them whose products are in half precision."""
    x, keys = x.detach().to(dtype), keys.detach().to(dtype)
    logits = 10 * (x @ keys.T).float()
    weighted = logits.softmax(1) * 10 * weights(len(x), dtype=torch.float32)[:, None]
    return logits.logsumexp(1), (weighted.to(dtype) @ keys).float()


@pytest.mark.parametrize("size", [1, 17, 70])
@pytest.mark.parametrize("bound", [torch.inf, 1.01])
def test_half_precision_is_as_exact_as_dense_code_in_half_precision(size: int, bound: float, visits: str) -> None:
    """float16; Triton's interpreter cannot multiply in bfloat16."""
    x, keys = rows(size, 33, dtype=torch.float16), rows(43, 33, seed=1, dtype=torch.float16)
    value = pairwise.logsumexp(x, keys, scale=10.0, norm_bound=bound, backend="fused")
    (gradient,) = torch.autograd.grad(value, x, weights(size, dtype=torch.float32))
    wide = x.detach().double().requires_grad_()
    exact = pairwise.logsumexp(wide, keys.detach().double(), scale=10.0, backend="dense")
    wanted = exact.detach(), *torch.autograd.grad(exact, wide, weights(size))
    found, dense = errors((value.detach(), gradient), wanted), errors(in_half(x, keys, torch.float16), wanted)
    for mine, theirs, result in zip(found, dense, wanted, strict=True):
        assert mine <= 2 * theirs + 2.0**-23 * float(result.norm())
    assert gradient.dtype == torch.float16


@pytest.mark.parametrize("factor", [2.0**16, 2.0**-20])
def test_gradients_of_any_size_do_not_leave_the_range_of_half_precision(factor: float, visits: str) -> None:
    """Rows as losses pass them: in float32, with values that float16 holds."""
    x = rows(70, 33, dtype=torch.float16).detach().float().requires_grad_()
    known = Bound(1.01, torch.float16)
    value = pairwise.logsumexp(x, scale=100.0, norm_bound=known, backend="fused")
    assert_close(value, pairwise.logsumexp(x, scale=100.0, backend="tiled"), "value", logit=100.0)
    upstream = weights(70, dtype=torch.float32)
    plain, scaled = (torch.autograd.grad(value, x, times * upstream, retain_graph=True)[0] for times in (1.0, factor))
    assert scaled.isfinite().all()
    assert_close(scaled / factor, plain, "gradient")
    assert torch.autograd.grad(value, x, upstream * torch.inf)[0].isnan().any(), "loss scaling looks for what is not finite"


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_operands_are_in_half_precision_where_it_holds_them(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(launch, "_kernels", lambda: Recorder(seen))
    x = rows(5, 3, dtype=dtype).detach()
    pairwise.logsumexp(x, scale=1.0, backend="fused")
    pairwise.logsumexp(x.float(), scale=1.0, norm_bound=Bound(1.0, dtype), backend="fused")
    pairwise.logsumexp(x.float(), scale=1.0, backend="fused")
    assert [arguments[0].dtype for _, arguments in seen] == [dtype, dtype, torch.float32]
    assert seen[0][1][0].data_ptr() == x.data_ptr(), "rows in half precision are operands as they are"


LAUNCHES: dict[str, tuple[Callable[..., Tensor | tuple[Tensor, ...]], int, list[str], list[str]]] = {
    "ntxent": (lambda x, keys, **known: pairwise.logsumexp(x, **known), 1, ["log_sums"], ["weigh", "gradients"]),
    "infonce": (lambda x, keys, **known: pairwise.logsumexp(x, keys, **known), 2, ["log_sums"], ["weigh", *["gradients"] * 2]),
    "clip": (pairwise.logsumexp_both, 2, ["log_sums"] * 2, ["weigh", *["gradients"] * 2]),
}


@pytest.mark.parametrize("name", LAUNCHES)
@pytest.mark.parametrize("operand", [None, torch.bfloat16], ids=str)
def test_number_of_launches(name: str, operand: torch.dtype | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """All are kernels of this package."""
    call, sides, *passes = LAUNCHES[name]
    x, keys = rows(6, 3, dtype=torch.float32), rows(5, 3, seed=1, dtype=torch.float32)
    seen: list[tuple[str, tuple[Any, ...]]] = []
    monkeypatch.setattr(launch, "_kernels", lambda: Recorder(seen))
    on_host((2.0,))  # made once for all calls
    rounded = [] if operand is None else [x.to(operand), keys.to(operand)]
    with Work() as forward:
        value = call(x, keys, scale=2.0, norm_bound=Bound(1.01, operand, *rounded), backend="fused")
    values = value if isinstance(value, tuple) else (value,)
    with Work() as backward:
        torch.autograd.grad(values, [x, keys][:sides], [torch.ones(()).expand_as(each) for each in values])
    assert [name for name, _ in seen] == [*passes[0], *passes[1]]
    assert not forward.seen
    assert [name for name in backward.seen if name != "ones"] == []


def test_large_sweeps_visit_each_pair_once_unless_told_to_be_deterministic(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, tuple[Any, ...]]] = []
    monkeypatch.setattr(launch, "_kernels", lambda: Recorder(seen))
    monkeypatch.setattr(launch, "MANY_PAIRS", 20)
    x = rows(6, 3, dtype=torch.float32).detach()

    def launched(**options: Any) -> list[str]:
        seen.clear()
        pairwise.logsumexp(x, backend="fused", **{"scale": 2.0, "norm_bound": 1.0, **options})
        return [name for name, _ in seen]

    assert launched() == ["log_sums"]
    torch.use_deterministic_algorithms(False)
    try:
        assert launched() == ["pair_sums", "log_sums"]
        assert launched(norm_bound=torch.inf) == launched(scale=40.0) == ["log_sums"]
        assert launched(scale=torch.full((6,), 2.0)) == ["log_sums"]
        monkeypatch.setattr(launch, "MANY_PAIRS", 40)
        assert launched() == ["log_sums"]
    finally:
        torch.use_deterministic_algorithms(True)


def test_a_side_that_needs_no_gradient_costs_no_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, tuple[Any, ...]]] = []
    monkeypatch.setattr(launch, "_kernels", lambda: Recorder(seen))
    x, keys, scale = rows(6, 3, dtype=torch.float32), rows(5, 3, seed=1, dtype=torch.float32), torch.tensor(2.0)
    for wanted, count in (((x,), 1), ((keys,), 1), ((x, keys), 2), ((scale,), 0)):
        for tensor in (x, keys, scale):
            tensor.requires_grad_(any(tensor is each for each in wanted))
        value = pairwise.logsumexp(x, keys, scale=scale, backend="fused")
        seen.clear()
        torch.autograd.grad(value.sum(), wanted)
        assert [name for name, _ in seen] == (["weigh", *["gradients"] * count] if count else [])
        if count == 1:  # for the side that wants it
            assert seen[-1][1][0].shape == wanted[0].shape


def test_a_scale_on_a_device_is_read_by_kernels(visits: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU one number is handed over as such."""
    x, scale = rows(70, 7, dtype=torch.float32), torch.tensor(10.0, dtype=torch.float64, requires_grad=True)
    outcomes = []
    for read in (False, True):
        if read:
            monkeypatch.setattr(arguments, "_scale", lambda scale, x: (scale, 1))
        value = pairwise.logsumexp(x, scale=scale, norm_bound=1.01, backend="fused")
        outcomes.append((value.detach(), *torch.autograd.grad(value, (x, scale), weights(70, dtype=torch.float32))))
    for a, b in zip(*outcomes, strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-5)


def test_autocast_strides_and_repetition_do_not_matter() -> None:
    x, keys = rows(63, 7, dtype=torch.float32), rows(43, 7, seed=1, dtype=torch.float32)

    def outcome(x: Tensor, keys: Tensor) -> tuple[Tensor, ...]:
        value = torch.cat(pairwise.logsumexp_both(x, keys, scale=10.0, backend="fused"))
        return value.detach(), *torch.autograd.grad(value, (x, keys), weights(106, dtype=torch.float32))

    expected = outcome(x, keys)
    apart = [torch.stack([t.detach(), -t.detach()], -1)[..., 0].requires_grad_() for t in (x, keys)]
    assert not apart[0].is_contiguous()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        again = outcome(x, keys)
    for found in (outcome(*apart), again):
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_a_second_derivative_is_refused() -> None:
    x = rows(5, 3, dtype=torch.float32)
    value = pairwise.logsumexp(x, scale=1.0, backend="fused")
    (first,) = torch.autograd.grad(value.sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="Use backend='dense'"):
        torch.autograd.grad(first.square().sum(), x)


@pytest.mark.usefixtures("_compiler")
def test_compiled_equals_eager() -> None:
    operation = SERVED["logsumexp, keys"]
    eager = operation.outcome(single(17, 5), "few", backend="fused")
    compiled = torch.compile(lambda *given: operation.call(*given, backend="fused"), backend="aot_eager", fullgraph=True)
    found = operation._replace(call=compiled).outcome(single(17, 5), "few")
    for what, a, b in zip(OUTCOME, found, eager, strict=True):
        assert_close(a, b, what)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
def test_operators_keep_their_promises_with_this_backend() -> None:
    x, keys = rows(6, 3, dtype=torch.float32), rows(5, 3, seed=1, dtype=torch.float32)
    scale = torch.full((1, 1), 3.0, requires_grad=True)
    tensors, layout, needs = (x, keys, scale, None, None, None, None, None), [0, 1, 0, 1, 0, 0, 0], [True, True, True, False]
    packed = *tensors, "LogSumExp", [0.0], 1.0, layout, "fused", needs
    torch.library.opcheck(torch.ops.contrastive_zoo.sweep.default, packed)
