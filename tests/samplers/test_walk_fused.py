"""The kernels of walks in Triton's interpreter, or on a GPU, against a loop in float64 that has a Philox of its own."""

import math
from functools import partial
from typing import Any

import oracle_stateful
import pytest
import torch
from cases import drawn, views
from launches import Work
from tolerances import assert_close
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

import contrastive_zoo as zoo
from contrastive_zoo.samplers import walk_fused
from contrastive_zoo.samplers.chains import Chains, KeptStates
from contrastive_zoo.samplers.randomness import step_seed
from contrastive_zoo.samplers.walk import kept_shares, walk_batch

pytestmark = pytest.mark.usefixtures("kernels")

WORD = 2**32 - 1
STREAM = 2
EXACT = ("state", "acceptance", "carried_share")


def philox(key: int, counter: list[int]) -> list[int]:
    """Philox4x32-10 of Salmon et al. in Python's integers."""
    a, b, c, d = counter
    k, q = key & WORD, key >> 32
    for _ in range(10):
        p, s = 0xD2511F53 * a, 0xCD9E8D57 * c
        a, b, c, d = s >> 32 ^ b ^ k, s & WORD, p >> 32 ^ d ^ q, p & WORD
        k, q = (k + 0x9E3779B9) & WORD, (q + 0xBB67AE85) & WORD
    return [a, b, c, d]


def draw(seed: int, step: int, row: int, column: int) -> float:
    counter = [row, column // 4, step & WORD, (step >> 32 & 0xFFFFFF) | STREAM << 24]
    return (philox(seed, counter)[column % 4] + 0.5) * 2.0**-32


class Loop:
    """A chain for each anchor, a column at a time, in float64.

    Attributes:
        found: The results by name.
        weights: (A, N) share of each row among the kept states of an anchor.
    """

    def __init__(self, chains: Chains) -> None:
        x, ids, (seed, step) = chains.x.detach().double().cpu(), chains.ids.tolist(), chains.seed.tolist()
        names = KeptStates._fields
        self.weights, rows = torch.zeros(len(chains.carried), len(x), dtype=torch.float64), []
        for a, score in enumerate(chains.carried.tolist()):
            i = chains.first + a
            others = [j for j in range(len(x)) if ids[j] != ids[i]]
            burnt, state, moves, stayed = int(chains.burn_in * len(others)), -1, 0, 0
            logits = (float(chains.scale) * x @ x[i]).tolist()
            for seen, j in enumerate(others):
                if math.log(draw(seed, step, i, j)) < logits[j] - score:
                    state, score, moves = j, logits[j], moves + 1
                if seen >= burnt and state >= 0:
                    self.weights[a, state] += 1
                stayed += seen >= burnt and state < 0
            kept = max(len(others) - burnt, 1)
            self.weights[a] /= kept
            log_mean = torch.tensor([logits[j] for j in others]).double().logsumexp(0) - math.log(max(len(others), 1))
            similarity = float(self.weights[a] @ x @ x[i])
            rows.append((similarity, stayed / kept, state, score, float(log_mean), moves / max(len(others), 1)))
        self.found = dict(zip(names, torch.tensor(rows, dtype=torch.float64).T, strict=True))

    def gradient(self, chains: Chains, upstream: Tensor) -> Tensor:
        """Of the similarities, weighted by upstream gradients."""
        x, rows = chains.x.detach().double().cpu(), slice(chains.first, chains.first + len(chains.carried))
        weights = upstream.double().cpu()[:, None] * self.weights
        result = weights.T @ x[rows]
        result[rows] += weights @ x
        return result


def case(
    number: int = 26, width: int = 16, *, scale: float = 10.0, step: int = 2**40 + 3, fresh: float = 0.3, **more: Any
) -> Chains:
    """Rows in random order; a sample of many rows, a pair of equal rows, and chains with and without a carried state."""
    seed = step_seed(2**33 + 11, torch.tensor(step))
    x = torch.nn.functional.normalize(drawn(number, width, seed=number + step % 100), dim=1).float()
    ids = torch.arange(number) % (number // 2)
    if number > 12:
        ids[3:9], x[10] = 5, x[11]
    share = drawn(number, seed=5).sigmoid()
    carried = torch.where(share < fresh, -torch.inf, scale * share.float())
    chains = Chains(x.requires_grad_(), torch.tensor(scale), ids, carried.float(), seed.to(x.device), fused=True)
    return chains._replace(**more)


def outcome(chains: Chains, upstream: Tensor | None = None) -> tuple[KeptStates, Tensor]:
    found = walk_batch(chains)
    upstream = torch.ones_like(found.similarity) if upstream is None else upstream
    return found, torch.autograd.grad(found.similarity, chains.x, upstream)[0]


def tiles(monkeypatch: pytest.MonkeyPatch, anchors: int, runs: int) -> None:
    shape = walk_fused.Shape(anchors, runs, 4)
    monkeypatch.setattr(walk_fused, "shape_of", lambda kernel, kind, width: shape)


def assert_equals_loop(chains: Chains, found: KeptStates, loop: Loop) -> None:
    for name, wanted in loop.found.items():
        value = getattr(found, name).detach().double().cpu()
        if name == "state":
            assert torch.equal(value, wanted)
        else:
            assert_close(value, wanted, name, dtype=torch.float32, logit=max(1.0, float(chains.scale)))


SETTINGS = [
    {"burn_in": 0.0, "fresh": 2.0},
    {"burn_in": 0.5, "scale": 2.0},
    {"burn_in": 0.5, "step": 7},
    {"burn_in": 0.93, "scale": 60.0},
]


SIZES = [((2, 3), SETTINGS), ((26, 16), SETTINGS), ((70, 33), SETTINGS), ((150, 20), SETTINGS[1:2])]


@pytest.mark.parametrize(("size", "settings"), [(size, each) for size, settings in SIZES for each in settings], ids=str)
def test_kernels_equal_a_slow_loop(size: tuple[int, int], settings: dict[str, Any]) -> None:
    chains = case(*size, **settings)
    loop, (found, gradient) = Loop(chains), outcome(chains)
    assert_equals_loop(chains, found, loop)
    error = gradient.double().cpu() - loop.gradient(chains, torch.ones(size[0]))
    assert float(error.abs().max()) < 1e-6


def test_any_upstream_gradient() -> None:
    chains = case(70, 33, uniform=False)
    upstream = drawn(70, seed=9).float()
    _, gradient = outcome(chains, 1e-4 * upstream)
    wanted = Loop(chains).gradient(chains, 1e-4 * upstream)
    assert float((gradient.double().cpu() - wanted).abs().max()) < 1e-9
    assert not outcome(chains, torch.zeros(70))[1].any()


@pytest.mark.parametrize("uniform", [True, False])
def test_tilings_and_parts_change_nothing(uniform: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit for bit in what chains do; parts are those of slabs, and those of processes, one of which has no anchors."""
    chains = case(60, 16, uniform=uniform)
    monkeypatch.setattr(walk_fused, "ALIGNED", 32)
    found, gradients = [], []
    for anchors, runs, slab in ((16, 16, 2**27), (32, 4, 2**27), (16, 2, 1)):
        tiles(monkeypatch, anchors, runs)
        monkeypatch.setattr(walk_fused, "SLAB_BYTES", slab)
        whole, gradient = outcome(chains)
        found.append(whole)
        gradients.append(gradient)
    assert len(list(walk_fused._Walk(chains).parts())) == 2
    for start, stop in ((0, 20), (20, 20), (20, 21), (21, 60)):
        part, gradient = outcome(chains._replace(carried=chains.carried[start:stop], first=start))
        gradients.append(gradient if start == 0 else gradients.pop() + gradient)
        found.append(part if start == 0 else KeptStates(*map(torch.cat, zip(found.pop(), part, strict=True))))
    for other, gradient in zip(found[1:], gradients[1:], strict=True):
        for name in EXACT:
            assert torch.equal(getattr(other, name), getattr(found[0], name)), name
        for name in set(KeptStates._fields) - set(EXACT):
            assert_close(getattr(other, name).detach(), getattr(found[0], name).detach(), name, logit=10.0)
        assert_close(gradient, gradients[0], "gradient")


def test_listed_shares_are_those_of_the_walk() -> None:
    chains = case(70, 16)
    shares, of_carried = kept_shares(chains)
    loop = Loop(chains)
    assert_close(shares.double().cpu(), loop.weights, "shares", dtype=torch.float32)
    assert_close(of_carried.double().cpu(), loop.found["carried_share"], "share of the carried state", dtype=torch.float32)


def test_half_precision() -> None:
    """Rows rounded as a loss under autocast rounds them; products in float16 of such rows are exact."""
    chains = case(70, 16)
    chains = chains._replace(x=chains.x.detach().half().float().requires_grad_(), operand=torch.float16)
    loop, (found, gradient) = Loop(chains), outcome(chains)
    assert_equals_loop(chains, found, loop)
    wanted = loop.gradient(chains, torch.ones(70))
    assert float((gradient.double().cpu() - wanted).abs().max()) < 1e-3 * float(wanted.abs().max())
    scaled = outcome(chains._replace(uniform=False), torch.full((70,), 2.0**16))[1]
    assert_close(scaled / 2.0**16, gradient, "gradient under a loss scale", dtype=torch.float16)


def test_anchors_without_negatives_and_bad_rows() -> None:
    chains = case(26, 16, fresh=2.0)
    alone = chains._replace(ids=torch.zeros(26, dtype=torch.int64))
    found, gradient = outcome(alone)
    assert (found.state == -1).all()
    assert (found.log_mean == -torch.inf).all()
    for zero in (found.similarity, found.acceptance, gradient):
        assert not zero.any()
    with torch.no_grad():
        chains.x[4] = torch.nan
        found = walk_batch(chains)
    assert found.log_mean[torch.arange(26) != 5].isnan().sum() >= 20  # none enters a table
    assert not (found.state == 4).any()


def test_acceptance_follows_the_law() -> None:
    """All rows score 0 and the carried state better: a chain leaves it with probability e^-carried, and then moves always."""
    number, carried, left, proposals = 32, 1.5, 0, 0
    chains = Chains(torch.eye(number), torch.tensor(3.0), torch.arange(number), torch.full((number,), carried), torch.tensor(0))
    for step in range(40):
        moves = walk_fused.moves(chains._replace(seed=step_seed(3, torch.tensor(step)).to(chains.x.device), fused=True))
        for anchor in range(number):
            path = [moved for j, moved in enumerate(moves[:, anchor].tolist()) if j != anchor]
            first = path.index(True) if True in path else len(path)
            proposals, left = proposals + min(first + 1, len(path)), left + (first < len(path))
            assert all(path[first:])
    expected = math.exp(-carried)
    assert abs(left / proposals - expected) < 4.5 * math.sqrt(expected * (1 - expected) / proposals)


def test_expected_shares_are_those_of_the_transition_matrices(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mean over steps against exact propagation of the law of each chain through all columns."""
    tiles(monkeypatch, 16, 2)
    x = torch.nn.functional.normalize(drawn(5, 4, seed=2), dim=1).float()
    ids, steps = torch.tensor([0, 0, 1, 2, 2]), 200
    chains = Chains(x, torch.tensor(4.0), ids, torch.full((5,), -torch.inf), torch.tensor(0), burn_in=0.4, fused=True)
    found = torch.stack(
        [kept_shares(chains._replace(seed=step_seed(1, torch.tensor(s)).to(x.device)))[0] for s in range(steps)]
    )
    for anchor in range(5):
        valid = (ids != ids[anchor]).nonzero().flatten().tolist()
        law = oracle_stateful.chain_law((4 * x[valid] @ x[anchor]).tolist(), burn_in=int(0.4 * len(valid)))
        shares = found[:, anchor, valid].double().cpu()
        error = shares.std(0) / math.sqrt(steps)
        assert ((shares.mean(0) - torch.tensor(law, dtype=torch.float64)).abs() <= 4.5 * error + 1e-6).all()


class Spy:
    """The module of kernels, and the names of those that are launched; `Work` does not see what the interpreter does."""

    def __init__(self, kernels: Any) -> None:
        self.kernels, self.seen = kernels, []

    def __getattr__(self, name: str) -> Any:
        def launch(grid: Any, *arguments: Any, **options: Any) -> None:
            self.seen.append(name)
            with _disable_current_modes():
                getattr(self.kernels, name)[grid](*arguments, **options)

        class Kernel:
            def __getitem__(self, grid: Any) -> Any:
                return partial(launch, grid)

        return Kernel()


# Operations of PyTorch in a step on the host with distinct samples, forward and backward. On a GPU those of the features are
# two kernels instead, and some replace what the host knows.
OF_PYTORCH = {"mean": 140, "none": 165}


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_launches_of_a_step(reduction: str, monkeypatch: pytest.MonkeyPatch) -> None:
    spy = Spy(walk_fused._kernels())
    monkeypatch.setattr(walk_fused, "_kernels", lambda: spy)
    loss_fn = zoo.get_loss("emc2", num_samples=40, backend="fused", reduction=reduction)
    for seed in range(2):
        batch = views(seed=seed, dtype=torch.float32)
        spy.seen.clear()
        with Work() as forward:
            loss = batch.call(loss_fn).sum()
        before = list(spy.seen)
        with Work() as backward:
            loss.backward()
    after = spy.seen[len(before) :]
    assert before == ["walk", "rows", *["columns"] * (reduction == "mean")]
    assert after == ([] if reduction == "mean" else ["walk", "rows", "columns"])
    assert len(forward.seen) + len(backward.seen) <= OF_PYTORCH[reduction], (forward.seen, backward.seen)
