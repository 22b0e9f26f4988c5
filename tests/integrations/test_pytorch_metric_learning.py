"""SupCon on one view against pytorch-metric-learning: value and gradient, on labels of any kind."""

import pytest
import torch
from pytorch_metric_learning.losses import SupConLoss
from torch import Tensor

import contrastive_zoo as zoo

LABELS = {
    "balanced": torch.arange(24) % 6,
    "random": torch.randint(5, (24,), generator=torch.Generator().manual_seed(0)),
    "unbalanced": torch.tensor([0] * 15 + [1] * 5 + [2] * 2 + [3, 4]),
    "one class and others alone": torch.tensor([0] * 6 + list(range(1, 19))),
}


def features(seed: int, width: int = 7) -> Tensor:
    draws = torch.Generator().manual_seed(seed)
    return torch.randn(24, width, generator=draws, dtype=torch.float64).requires_grad_()


@pytest.mark.parametrize("backend", ["dense", "tiled"])
@pytest.mark.parametrize("temperature", [0.05, 0.1, 1.0])
@pytest.mark.parametrize("labels", LABELS.values(), ids=LABELS)
def test_one_view(labels: Tensor, temperature: float, backend: str) -> None:
    """Both leave anchors without a positive out of the mean."""
    for seed in range(3):
        z = features(seed)
        expected = SupConLoss(temperature=temperature)(z, labels)
        found = zoo.get_loss("supcon", temperature=temperature, backend=backend)(z, labels=labels)
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=0)
        wanted, gradient = torch.autograd.grad(expected, z)[0], torch.autograd.grad(found, z)[0]
        torch.testing.assert_close(gradient, wanted, rtol=0, atol=1e-10 * float(wanted.abs().max()))


def test_the_value_of_each_sample() -> None:
    labels, z = LABELS["unbalanced"], features(0)
    theirs = SupConLoss(temperature=0.1)
    theirs.reducer = type(theirs.reducer)(collect_stats=False)
    each = theirs.compute_loss(z, labels, None, z, labels)["loss"]["losses"]
    found = zoo.get_loss("supcon", temperature=0.1, reduction="none")(z, labels=labels)
    kept = each != 0
    torch.testing.assert_close(found * kept.sum() / len(z), each, rtol=1e-10, atol=1e-12)


def test_one_class_is_a_loss_here() -> None:
    """All similarities are evened out, as the formula has it. There, a batch without another class is a 0."""
    labels, z = torch.zeros(24, dtype=torch.int64), features(0)
    assert SupConLoss()(z, labels) == 0
    assert zoo.get_loss("supcon")(z, labels=labels) >= torch.tensor(23.0).log()


def test_an_anchor_whose_loss_is_zero_counts_here() -> None:
    """Two samples of one class: each has the other as its only key, so its loss is 0."""
    labels, z = torch.zeros(2, dtype=torch.int64), features(0)[:2]
    assert SupConLoss()(z, labels) == 0
    per_sample = zoo.get_loss("supcon", reduction="none")
    assert float(per_sample(z, labels=labels).detach().abs().max()) < 1e-14
    assert per_sample.diagnostics["dropped_anchors"] == 0
