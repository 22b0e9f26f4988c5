"""Samplers called with features, in a loop of one's own."""

from typing import Any

import pytest
import torch
from cases import NUM_SAMPLES, gradients, same_state, views
from tolerances import assert_close
from torch import Tensor

import contrastive_zoo as zoo
from contrastive_zoo.samplers import NegativeSampler, WeightedNegatives

every_sampler = pytest.mark.parametrize("name", zoo.list_samplers())


def make(name: str, **params: Any) -> NegativeSampler:
    sampler: NegativeSampler = zoo.get_sampler(name, num_samples=NUM_SAMPLES, **params)
    return sampler.double()


def remembered(sampler: NegativeSampler) -> Tensor:
    """(2 num_samples, D) features that a sampler holds of each row of the dataset, after its step."""
    if hasattr(sampler, "queue"):
        queue = sampler.queue
        rows = torch.zeros(2 * NUM_SAMPLES, queue.embeddings.rows.shape[1], dtype=torch.float64)
        rows[2 * queue.owner[queue.owner >= 0] + queue.view[queue.owner >= 0]] = queue.embeddings.rows[queue.owner >= 0]
        return rows
    return sampler.embeddings.rows.flatten(0, 1).clone()


@every_sampler
def test_weights_belong_to_rows_of_other_samples(name: str) -> None:
    sampler = make(name)
    for seed in range(3):
        batch = views(seed=seed)
        found = sampler(batch.z1, batch.z2, index=batch.index, temperature=0.3)
        assert isinstance(found, WeightedNegatives)
        assert found.rows.shape == found.weights.shape == found.in_batch.shape
        assert len(found.rows) == 2 * len(batch.index)
        assert_close(found.weights.sum(1), torch.ones(24, dtype=torch.float64), "weights")
        own = batch.index.repeat_interleave(2)[:, None]
        counted = found.weights > 0
        assert not ((found.rows // 2 == own) & counted).any()
        inside = torch.isin(found.rows // 2, batch.index)
        assert torch.equal(inside[counted & found.in_batch], torch.ones_like(inside[counted & found.in_batch]))
        assert not found.weights.requires_grad


@every_sampler
def test_a_loop_of_one_s_own_has_the_gradient_of_the_loss(name: str) -> None:
    """Weighted sum of similarities to the negatives, less that of the positive, over the temperature."""
    sampler, temperature = make(name), 0.3
    loss_fn = zoo.get_loss("sampled", num_samples=NUM_SAMPLES, sampler=make(name), temperature=temperature).double()
    for seed in range(3):
        batch = views(seed=seed)
        if name == "queue":  # which may hold a row twice, from two visits
            batch = batch._replace(index=torch.arange(12) + 12 * seed)
        wanted = gradients(batch.call(loss_fn), batch)
        held = remembered(sampler) if seed else torch.zeros(2 * NUM_SAMPLES, 6, dtype=torch.float64)
        negatives = sampler(batch.z1, batch.z2, index=batch.index, temperature=temperature)
        x = torch.nn.functional.normalize(torch.stack([batch.z1, batch.z2], 1), dim=2).flatten(0, 1)  # (2B, D)
        place = torch.full((2 * NUM_SAMPLES,), 0)
        rows_of_batch = (2 * batch.index[:, None] + torch.arange(2)).flatten()
        place[rows_of_batch] = torch.arange(24)
        rows = negatives.rows.clamp_min(0)
        features = torch.where(negatives.in_batch[..., None], x[place[rows]], held[rows])  # (2B, K, D)
        pull = (negatives.weights * torch.einsum("ad,akd->ak", x, features)).sum(1)
        positive = (x[::2] * x[1::2]).sum(1).repeat_interleave(2)
        for gradient, expected in zip(gradients(((pull - positive) / temperature).mean(), batch), wanted, strict=True):
            assert_close(gradient, expected, "gradient", magnitude=1.0)


@every_sampler
def test_a_call_moves_the_state_as_a_step_of_the_loss_does(name: str) -> None:
    called, batch = make(name), views()
    inside = make(name)
    batch.call(zoo.get_loss("sampled", num_samples=NUM_SAMPLES, sampler=inside, temperature=0.1).double())
    called(batch.z1, batch.z2, index=batch.index)
    assert same_state(called.state_dict(), inside.state_dict())


@every_sampler
def test_mistakes(name: str) -> None:
    sampler, (z1, z2, index, _) = make(name), views()
    before = {key: tensor.clone() for key, tensor in sampler.state_dict().items()}
    for error, message, change in (
        (ValueError, "z1 and z2 must have the same shape", {"z2": z2[1:]}),
        (TypeError, "index must hold integers", {"index": index.float()}),
        (ValueError, "index must have shape", {"index": index[1:]}),
        (ValueError, "temperature must be a finite number", {"temperature": 0.0}),
        (ValueError, "z2 holds NaN or infinite values", {"z2": torch.full_like(z2, torch.nan)}),
    ):
        with pytest.raises(error, match=message):
            sampler(**{"z1": z1, "z2": z2, "index": index, **change})
    if name != "queue":
        with pytest.raises(IndexError, match=f"index holds {NUM_SAMPLES}"):
            sampler(z1, z2, index=torch.full_like(index, NUM_SAMPLES))
    assert same_state(sampler.state_dict(), before)


@every_sampler
def test_under_autocast_only_the_rows_are_rounded(name: str) -> None:
    """As in a loss: features in half precision, and the same numbers in float32 under autocast, find the same."""
    batch = views()
    z1, z2 = batch.z1.detach().bfloat16(), batch.z2.detach().bfloat16()
    first, second = (zoo.get_sampler(name, num_samples=NUM_SAMPLES) for _ in range(2))
    expected = first(z1, z2, index=batch.index)
    with torch.autocast("cpu", torch.bfloat16):
        found = second(z1.float(), z2.float(), index=batch.index)
    assert torch.equal(found.rows, expected.rows)
    assert torch.equal(found.weights, expected.weights)
    assert found.weights.dtype == torch.float32
