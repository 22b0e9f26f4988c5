"""The queue: first in, first out, with the sample of each entry; by itself beside any loss, and as a sampler."""

import pytest
import torch
from cases import Views, same_state, views
from tolerances import assert_close

import contrastive_zoo as zoo
from contrastive_zoo.samplers import FeatureQueue

NUM_SAMPLES = 12


def entries(queue: FeatureQueue) -> list[tuple[int, float]]:
    return sorted(zip(queue.negatives_index.tolist(), queue.negatives[:, 0].tolist(), strict=True))


def test_first_in_first_out() -> None:
    queue, pushed = FeatureQueue(5), []
    assert len(queue) == 0
    for start, size in ((0, 2), (2, 2), (4, 3), (7, 1), (8, 9)):  # the last does not fit in
        index = torch.arange(start, start + size)
        queue.push(index[:, None] * 10.0, index)
        pushed += [(number, number * 10.0) for number in index.tolist()]
        assert entries(queue) == sorted(pushed[-5:])
        assert len(queue) == min(5, len(pushed))


def test_what_is_not_finite_or_nobodys_stays_out() -> None:
    queue = FeatureQueue(3)
    queue.push(torch.tensor([[1.0], [torch.nan], [3.0]]), torch.tensor([1, 2, -1]))
    assert entries(queue) == [(1, 1.0)]


def test_pushed_features_keep_no_graph_and_their_own_memory() -> None:
    queue, z = FeatureQueue(4), torch.ones(2, 3, requires_grad=True)
    queue.push(z * 2, torch.arange(2))
    with torch.no_grad():
        z += 1
    assert not queue.negatives.requires_grad
    assert (queue.negatives == 2).all()


def test_mistakes() -> None:
    queue = FeatureQueue(4)
    queue.push(torch.ones(2, 3), torch.arange(2))
    with pytest.raises(ValueError, match="features per row but the table of embeddings has 3"):
        queue.push(torch.ones(2, 4), torch.arange(2))
    with pytest.raises(ValueError, match=r"index must have shape \(2,\)"):
        queue.push(torch.ones(2, 3), torch.arange(3))
    with pytest.raises(ValueError, match="length must be at least 1"):
        FeatureQueue(0)


def test_it_is_saved_and_loaded() -> None:
    first, second = FeatureQueue(4), FeatureQueue(4)
    first.push(torch.randn(3, 2), torch.arange(3))
    second.load_state_dict(first.state_dict())
    for queue in (first, second):
        queue.push(torch.ones(2, 2), torch.arange(3, 5))
    assert same_state(first.state_dict(), second.state_dict())


def test_no_sample_is_its_own_negative_in_another_loss() -> None:
    queue, batch, loss_fn = FeatureQueue(6), views(4, 3), zoo.get_loss("ntxent", reduction="none")
    queue.push(batch.z2, batch.index)
    arguments = {"negatives": queue.negatives, "negatives_index": queue.negatives_index}
    found = loss_fn(*batch[:2], index=batch.index, **arguments)
    for sample in range(4):
        others = torch.arange(4) != sample
        alone = loss_fn(*batch[:2], index=batch.index, negatives=queue.negatives[others])
        assert_close(found[sample], alone[sample], "loss of a sample")


def sampled(length: int) -> zoo.Loss:
    return zoo.get_loss("sampled", num_samples=NUM_SAMPLES, sampler="queue", num_negatives=length, temperature=0.5).double()


def test_equals_the_mean_over_batch_and_queue() -> None:
    """Value and gradient, written as one dense logarithm of a mean; the sampler's queue holds both views of past batches."""
    loss_fn, past = sampled(14), []
    for number in range(4):
        batch = views(4, 3, seed=number, num_samples=NUM_SAMPLES)
        x, y = (torch.nn.functional.normalize(z, dim=1) for z in batch[:2])
        live, held = torch.stack([x, y], 1).flatten(0, 1), past[-14:]
        keys = torch.cat([live, *[key[None] for _, key in held]])
        own = batch.index.repeat_interleave(2)
        owners = torch.cat([own, torch.tensor([sample for sample, _ in held], dtype=torch.int64)])
        excluded = own[:, None] == owners[None, :]
        logits = (2 * live @ keys.T).masked_fill(excluded, -torch.inf)
        positive = 2 * (x * y).sum(1).repeat_interleave(2)
        expected = (logits.logsumexp(1) - (~excluded).sum(1).double().log() - positive).mean()
        loss = batch.call(loss_fn)
        assert_close(loss, expected, f"loss of step {number}")
        wanted = torch.autograd.grad(expected, batch[:2])
        for gradient, reference in zip(torch.autograd.grad(loss, batch[:2]), wanted, strict=True):
            assert_close(gradient, reference, f"gradient of step {number}")
        past += [(int(sample), row.detach()) for sample, row in zip(own, live, strict=True)]


def test_table_can_be_read_and_given_back() -> None:
    first, second = sampled(10), sampled(10)
    for number in range(2):
        views(4, 3, seed=number, num_samples=NUM_SAMPLES).call(first)
    table = first.table()
    own = views(4, 3, seed=1, num_samples=NUM_SAMPLES).index
    assert table["index"].tolist()[-8:] == own.repeat_interleave(2).tolist()
    assert table["view"].tolist()[-8:] == [0, 1] * 4
    second.load_table(**table)
    batch = views(4, 3, seed=2, num_samples=NUM_SAMPLES)
    detached = Views(*(leaf.detach() for leaf in batch))
    assert_close(detached.call(second), detached.call(first), "loss")
    for name, tensor in second.table().items():
        assert torch.equal(tensor, first.table()[name])


def test_a_table_that_does_not_fit() -> None:
    loss_fn = sampled(10)
    views(4, 3, num_samples=NUM_SAMPLES).call(loss_fn)
    table = loss_fn.table()
    with pytest.raises(ValueError, match="must have length 10"):
        loss_fn.load_table(**{**table, "index": table["index"][1:]})
    with pytest.raises(ValueError, match="must be finite"):
        loss_fn.load_table(**{**table, "embeddings": table["embeddings"] * torch.nan})
