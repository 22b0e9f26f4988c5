"""The scan over columns: against a walk one column at a time, and its transition law against softmax, without chance."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from contrastive_zoo.samplers import metropolis_hastings


def one_by_one(
    log_scores: Tensor, log_current: Tensor, uniforms: Tensor, state: Tensor | None
) -> tuple[list[list[int]], list[float]]:
    """Accept column j if u < exp(x_j - c); the paper's rule, a chain and a column at a time."""
    states, scores = [], []
    for row in range(len(log_scores)):
        at, score, walked = -1 if state is None else int(state[row]), float(log_current[row]), []
        for column, (x, u) in enumerate(zip(log_scores[row].tolist(), uniforms[row].tolist(), strict=True)):
            if x > -math.inf and (score == -math.inf or u == 0 or math.log(u) < x - score):
                at, score = column, x
            walked.append(at)
        states.append(walked)
        scores.append(score)
    return states, scores


@st.composite
def scans(draw: st.DrawFn) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    chains, columns, seed = draw(st.integers(1, 5)), draw(st.integers(1, 70)), draw(st.integers(0, 2**16))
    random = torch.Generator().manual_seed(seed)
    log_scores = draw(st.sampled_from([0.0, 1.0, 30.0])) * torch.randn(chains, columns, generator=random, dtype=torch.float64)
    log_scores[torch.rand(chains, columns, generator=random) < draw(st.sampled_from([0.0, 0.3, 1.0]))] = -torch.inf
    uniforms = torch.rand(chains, columns, generator=random, dtype=torch.float64)
    uniforms[torch.rand(chains, columns, generator=random) < 0.1] = 0
    log_current = torch.randn(chains, generator=random, dtype=torch.float64)
    log_current[torch.rand(chains, generator=random) < 0.5] = -torch.inf
    state = torch.randint(0, 9, (chains,), generator=random) if draw(st.booleans()) else None
    return log_scores, log_current, uniforms, state


@given(scan=scans())
def test_equals_a_walk_one_column_at_a_time(scan: tuple[Tensor, Tensor, Tensor, Tensor | None]) -> None:
    states, log_score = metropolis_hastings(*scan)
    expected_states, expected_scores = one_by_one(*scan)
    assert states.dtype == torch.int64
    assert states.tolist() == expected_states
    assert log_score.tolist() == expected_scores


@given(scan=scans(), share=st.floats(0, 1))
def test_a_scan_in_two_parts_is_the_whole_scan(scan: tuple[Tensor, Tensor, Tensor, Tensor | None], share: float) -> None:
    log_scores, log_current, uniforms, state = scan
    cut = round(share * log_scores.shape[1])
    whole, expected = metropolis_hastings(*scan)
    first, score = metropolis_hastings(log_scores[:, :cut], log_current, uniforms[:, :cut], state)
    carried = first[:, -1] if cut else state
    # Columns of the second part count on from the first, so its states from before the cut are told apart.
    told = None if carried is None else carried + 1000
    second, score = metropolis_hastings(log_scores[:, cut:], score, uniforms[:, cut:], told)
    joined = torch.where(second >= 999, second - 1000, torch.where(second >= 0, second + cut, second))
    assert torch.equal(torch.cat([first, joined], 1), whole)
    assert torch.equal(score, expected)


@pytest.mark.parametrize("shape", [(1, 5), (5, 1), (3, 4), (3, 200)], ids=str)
@pytest.mark.parametrize("transposed", [False, True])
def test_arguments_are_left_alone(shape: tuple[int, int], transposed: bool) -> None:
    log_scores, uniforms = torch.randn(shape), torch.rand(shape)
    log_scores[0, 0] = -torch.inf
    if transposed:
        log_scores, uniforms = log_scores.T.contiguous().T, uniforms.T.contiguous().T
    arguments = log_scores, torch.full(shape[:1], -torch.inf), uniforms, torch.zeros(shape[:1], dtype=torch.int64)
    before = [argument.clone() for argument in arguments]
    metropolis_hastings(*arguments)
    assert all(torch.equal(argument, copy) for argument, copy in zip(arguments, before, strict=True))


def test_columns_that_are_no_candidates_are_never_accepted() -> None:
    log_scores = torch.full((2, 9), -torch.inf)
    states, score = metropolis_hastings(log_scores, torch.tensor([-torch.inf, 0.5]), torch.zeros(2, 9))
    assert torch.equal(states, torch.full((2, 9), -1))
    assert score.tolist() == [-math.inf, 0.5]


def test_a_chain_without_state_takes_the_first_candidate() -> None:
    log_scores = torch.tensor([[-torch.inf, -50.0, -60.0]])
    states, _ = metropolis_hastings(log_scores, torch.tensor([-torch.inf]), torch.full((1, 3), 0.999))
    assert states.tolist() == [[-1, 1, 1]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_dtype_is_kept(dtype: torch.dtype) -> None:
    _, score = metropolis_hastings(torch.randn(2, 5, dtype=dtype), torch.zeros(2, dtype=dtype), torch.rand(2, 5, dtype=dtype))
    assert score.dtype == dtype


def transition_matrix(log_scores: Tensor, resolution: int) -> Tensor:
    """Probability to go from state to state when a column is proposed at random, by running through all draws."""
    size = len(log_scores)
    state, column, draw = torch.meshgrid(*(torch.arange(n) for n in (size, size, resolution)), indexing="ij")
    state, column = state.flatten(), column.flatten()
    uniforms = ((draw.flatten() + 0.5) / resolution).double()
    moved, score = metropolis_hastings(log_scores[column][:, None], log_scores[state], uniforms[:, None])
    ends = torch.where(moved[:, 0] == 0, column, state)
    assert torch.equal(score, log_scores[ends])
    counts = torch.zeros(size * size, dtype=torch.float64).index_add_(0, state * size + ends, torch.ones(len(ends)).double())
    return counts.view(size, size) / (size * resolution)


def test_softmax_is_invariant_under_the_transition() -> None:
    log_scores, resolution = torch.tensor([0.3, -1.2, 2.0, 0.9, -0.4], dtype=torch.float64), 20000
    target, matrix = log_scores.softmax(0), transition_matrix(log_scores, resolution)
    torch.testing.assert_close(matrix.sum(1), torch.ones(5, dtype=torch.float64))
    torch.testing.assert_close(target @ matrix, target, rtol=0, atol=1 / resolution)
    flow = target[:, None] * matrix
    torch.testing.assert_close(flow, flow.T, rtol=0, atol=1 / resolution)
    # From any start the law tends to the target, and to nothing else.
    torch.testing.assert_close(torch.linalg.matrix_power(matrix, 200)[1], target, rtol=0, atol=100 / resolution)


@pytest.mark.parametrize(
    ("shapes", "state"),
    [
        (((2, 5), (2,), (2, 4)), None),
        (((2, 5), (3,), (2, 5)), None),
        (((5,), (5,), (5,)), None),
        (((2, 5), (2,), (2, 5)), (3,)),
    ],
)
def test_shapes_that_do_not_fit(shapes: tuple[tuple[int, ...], ...], state: tuple[int, ...] | None) -> None:
    given_state = None if state is None else torch.zeros(state, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"must (be|have shape)"):
        metropolis_hastings(*(torch.zeros(shape) for shape in shapes), given_state)
