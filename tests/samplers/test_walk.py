"""Walks over one batch: shares of kept states read off exactly, burn-in, carried states, statistics, laws."""

import math
from typing import Any

import oracle_stateful
import pytest
import torch
from tolerances import assert_close
from torch import Tensor

from contrastive_zoo.samplers.chains import Chains, KeptStates
from contrastive_zoo.samplers.randomness import step_seed
from contrastive_zoo.samplers.walk import walk_batch

SCALE = torch.tensor(4.0, dtype=torch.float64)


def orthonormal(size: int) -> Tensor:
    """Rows that are all alike to each other, so that every column is accepted."""
    return torch.eye(size, dtype=torch.float64, requires_grad=True)


def sample(x: Tensor, ids: Tensor, *, seed: int = 0, step: int = 0, carried: Tensor | None = None, **more: Any) -> KeptStates:
    fresh = torch.full_like(x[:, 0], -torch.inf) if carried is None else carried
    chains = Chains(x, SCALE, ids, fresh, step_seed(seed, torch.tensor(step)), uniform=False)
    return walk_batch(chains._replace(**more))


def shares(x: Tensor, sampled: KeptStates) -> Tensor:
    """(N, N) weight of each row among the kept states of each anchor: the gradient of its similarity, in terms of the rows."""
    weights = []
    for anchor in range(len(x)):
        (gradient,) = torch.autograd.grad(sampled.similarity[anchor], x, retain_graph=True)
        weights.append(torch.linalg.solve(x.detach().T, gradient[anchor]))
    return torch.stack(weights)


@pytest.mark.parametrize("burn_in", [0.0, 0.1, 0.5, 0.75, 0.99])
@pytest.mark.parametrize("ids", [[0, 0, 1, 1, 2, 2, 3, 3], [0, 1, 2, 3, 4], [5, 2, 2, 5, 5, 1], [0, 1, 1, 1, 0, 2, 0]], ids=str)
def test_the_last_states_are_kept_each_with_the_same_weight(ids: list[int], burn_in: float) -> None:
    """Every column is accepted, so the state after column j is j: nb - k of the nb valid columns count."""
    x = orthonormal(len(ids))
    found = shares(x, sample(x, torch.tensor(ids), burn_in=burn_in))
    for anchor, own in enumerate(ids):
        valid = [j for j, other in enumerate(ids) if other != own]
        kept = valid[int(burn_in * len(valid)) :]
        expected = torch.zeros(len(ids), dtype=torch.float64)
        expected[kept] = 1 / len(kept)
        assert_close(found[anchor], expected, f"shares of anchor {anchor}")


def test_both_members_of_a_pair_get_gradient() -> None:
    x = orthonormal(4)
    sampled = sample(x, torch.arange(4), burn_in=0.0)
    (gradient,) = torch.autograd.grad(sampled.similarity[0], x)
    third = torch.full((3,), 1 / 3, dtype=torch.float64)
    assert_close(gradient[0], torch.cat([torch.zeros(1, dtype=torch.float64), third]), "anchor")
    assert_close(gradient[1:, 0], third, "states")


def test_statistics_of_a_walk() -> None:
    x = torch.nn.functional.normalize(torch.randn(9, 4, dtype=torch.float64), dim=1).requires_grad_()
    ids = torch.tensor([0, 0, 1, 2, 2, 2, 3, 4, 4])
    sampled = sample(x, ids, burn_in=0.3)
    similarity = (x @ x.T).detach()
    own = ids[:, None] == ids[None, :]
    logits = (SCALE * similarity).masked_fill(own, -torch.inf)
    assert_close(sampled.log_mean, logits.logsumexp(1) - (~own).sum(1).double().log(), "log_mean")
    assert not own[torch.arange(9), sampled.state].any()
    assert_close(sampled.log_score, logits[torch.arange(9), sampled.state], "log_score")
    assert ((sampled.acceptance > 0) & (sampled.acceptance <= 1)).all()
    assert not sampled.carried_share.any()
    for name, tensor in sampled._asdict().items():
        assert tensor.requires_grad == (name == "similarity"), name


def test_a_carried_state_that_is_never_left() -> None:
    x = orthonormal(5)
    carried = torch.tensor([1e3, -1e3, 1e3, -torch.inf, 1e3], dtype=torch.float64)
    sampled = sample(x, torch.arange(5), carried=carried)
    assert sampled.carried_share.tolist() == [1, 0, 1, 0, 1]
    assert sampled.state.tolist() == [-1, 4, -1, 4, -1]
    assert_close(sampled.log_score[sampled.state < 0], carried[sampled.state < 0], "log_score")
    assert sampled.acceptance.tolist() == [0, 1, 0, 1, 0]
    assert torch.equal(shares(x, sampled)[0], torch.zeros(5, dtype=torch.float64))


def test_shares_add_up_to_one() -> None:
    x = torch.linalg.qr(torch.randn(10, 10, dtype=torch.float64)).Q + 0.3
    x = torch.nn.functional.normalize(x, dim=1).requires_grad_()
    carried = 4 * torch.rand(10, dtype=torch.float64)
    for step in range(5):
        sampled = sample(x, torch.arange(10) // 2, step=step, carried=carried)
        assert_close(shares(x, sampled).sum(1) + sampled.carried_share, torch.ones(10, dtype=torch.float64), "sum", logit=1e3)


def test_expected_shares_are_those_of_the_transition_matrices() -> None:
    """Mean over steps against exact propagation of the law of each chain through all columns."""
    x = torch.linalg.qr(torch.randn(5, 5, dtype=torch.float64)).Q + 0.4 * torch.randn(5, 1, dtype=torch.float64)
    x = torch.nn.functional.normalize(x, dim=1).requires_grad_()
    ids, steps = torch.tensor([0, 0, 1, 2, 2]), 400
    found = torch.stack([shares(x, sample(x, ids, step=step, burn_in=0.4)) for step in range(steps)])
    for anchor in range(5):
        valid = (ids != ids[anchor]).nonzero().flatten()
        log_scores = (SCALE * (x[valid] @ x[anchor])).tolist()
        expected = torch.zeros(5, dtype=torch.float64)
        law = oracle_stateful.chain_law(log_scores, burn_in=int(0.4 * len(valid)))
        expected[valid] = torch.tensor(law, dtype=torch.float64)
        error = found[:, anchor].std(0) / math.sqrt(steps)
        assert ((found[:, anchor].mean(0) - expected).abs() <= 4.5 * error + 1e-12).all()


def test_seed_and_step_decide_the_draws() -> None:
    x = torch.nn.functional.normalize(torch.randn(40, 4, dtype=torch.float64), dim=1)
    ids = torch.arange(40)
    first = sample(x, ids, seed=1, step=2)
    for a, b in zip(first, sample(x, ids, seed=1, step=2), strict=True):
        assert torch.equal(a, b)
    for other in (sample(x, ids, seed=2, step=2), sample(x, ids, seed=1, step=3), sample(x, ids, seed=2, step=1)):
        assert not torch.equal(other.state, first.state)


def test_the_stored_gradient_is_that_of_walking_again() -> None:
    x = torch.nn.functional.normalize(torch.randn(30, 4, dtype=torch.float64), dim=1).requires_grad_()
    ids = torch.arange(30) // 2
    stored, again = (sample(x, ids, uniform=uniform).similarity.mean() for uniform in (True, False))
    assert_close(torch.autograd.grad(stored, x)[0], torch.autograd.grad(again, x)[0], "gradient")


@pytest.mark.parametrize("uniform", [True, False])
def test_parts_of_the_anchors_are_those_of_all(uniform: bool) -> None:
    """Of several processes; one of them has no anchors."""
    size = 150
    x = torch.nn.functional.normalize(torch.randn(size, 4, dtype=torch.float64), dim=1).requires_grad_()
    ids = torch.arange(size) // 2
    whole = sample(x, ids, uniform=uniform)
    fresh = torch.full((size,), -torch.inf, dtype=torch.float64)
    cuts = (0, 70), (70, 70), (70, 71), (71, 150)
    parts = [sample(x, ids, uniform=uniform, carried=fresh[start:stop], first=start) for start, stop in cuts]
    for name, value in whole._asdict().items():
        assert_close(torch.cat([getattr(part, name) for part in parts]).double(), value.double(), name)
    gradients = [torch.autograd.grad(kept.similarity.sum(), x)[0] for kept in (whole, *parts)]
    assert_close(torch.stack(gradients[1:]).sum(0), gradients[0], "gradient")


def test_many_anchors_use_little_memory_and_the_same_law() -> None:
    """More anchors than fit into one block: shares still add up, and valid columns still hold all states."""
    size = 1500
    x = torch.nn.functional.normalize(torch.randn(size, 3), dim=1).requires_grad_()
    ids = torch.arange(size) // 2
    sampled = sample(x, ids, scale=torch.tensor(5.0), uniform=True)
    assert (ids[sampled.state] != ids).all()
    similarity = (x @ x.T).detach()
    own = ids[:, None] == ids[None, :]
    exact = ((5 * similarity).masked_fill(own, -torch.inf).softmax(1) * similarity).sum(1)
    assert float(sampled.similarity.detach().mean()) == pytest.approx(float(exact.mean()), abs=0.02)
    assert torch.autograd.grad(sampled.similarity.sum(), x)[0].isfinite().all()
