"""Losses with the signature of pytorch-metric-learning against SupConLoss and NTXentLoss: values and gradients."""

from pathlib import Path
from typing import Any

import pytest
import torch
from integrations.spawning import WORLD, in_processes
from pytorch_metric_learning.losses import NTXentLoss, SupConLoss
from pytorch_metric_learning.miners import MultiSimilarityMiner
from pytorch_metric_learning.trainers import MetricLossOnly
from torch import Tensor, nn

import contrastive_zoo as zoo
from contrastive_zoo.integrations.pytorch_metric_learning import MetricLoss

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
        found = MetricLoss(zoo.get_loss("supcon", temperature=temperature, backend=backend))(z, labels)
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


@pytest.mark.parametrize("temperature", [0.07, 0.5])
def test_two_views(temperature: float) -> None:
    """Rows of one sample have one label; the views lie one after the other."""
    z, labels = features(0), torch.arange(12).repeat(2)
    expected = NTXentLoss(temperature=temperature)(z, labels)
    found = MetricLoss(zoo.get_loss("ntxent", temperature=temperature))(z, labels)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=0)
    wanted, gradient = torch.autograd.grad(expected, z)[0], torch.autograd.grad(found, z)[0]
    torch.testing.assert_close(gradient, wanted, rtol=0, atol=1e-10 * float(wanted.abs().max()))


@pytest.mark.parametrize("name", ["sogclr", "emc2", "clip"])
def test_labels_are_positions_in_the_dataset(name: str) -> None:
    z, index = features(0), torch.arange(12).flip(0)
    ours, wrapped = (zoo.get_loss(name, num_samples=12).double() for _ in range(2))
    expected = ours(*z.chunk(2), index=index)
    torch.testing.assert_close(MetricLoss(wrapped)(z, index.repeat(2)), expected, rtol=0, atol=0)
    torch.testing.assert_close(wrapped.state_dict(), ours.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("labels", [torch.arange(24) % 5, torch.arange(24) // 2])
def test_labels_that_differ_between_the_halves_are_refused(labels: Tensor) -> None:
    with pytest.raises(ValueError, match="labels must be the same in both halves: 'ntxent' contrasts two views"):
        MetricLoss(zoo.get_loss("ntxent"))(features(0), labels)
    with pytest.raises(ValueError, match="labels must be the same in both halves"):
        MetricLoss(zoo.get_loss("ntxent"))(features(0)[:23], labels[:23])


@pytest.mark.parametrize("name", ["supcon", "ntxent"])
def test_references_that_are_not_the_embeddings_are_refused(name: str) -> None:
    loss_fn, z, labels = MetricLoss(zoo.get_loss(name)), features(0), torch.arange(12).repeat(2)
    assert loss_fn(z, labels, ref_emb=z, ref_labels=labels) == loss_fn(z, labels, None) == loss_fn(z, labels)
    with pytest.raises(ValueError, match="ref_emb must be None or embeddings"):
        loss_fn(z, labels, ref_emb=features(1))
    with pytest.raises(ValueError, match="ref_labels None or labels"):
        loss_fn(z, labels, ref_emb=z, ref_labels=labels + 1)
    with pytest.raises(ValueError, match="indices_tuple must be None"):
        loss_fn(z, labels, MultiSimilarityMiner()(z, labels))
    with pytest.raises(TypeError, match="loss_fn must be a loss of the zoo, got SupConLoss"):
        MetricLoss(SupConLoss())


def train(loss_fn: nn.Module, folder: Path | None = None) -> dict[str, Any]:
    """Two epochs in a trainer of the package; with a folder, the second one in a new trainer from the state of the first."""

    def model() -> nn.Module:
        torch.manual_seed(0)
        return nn.Linear(7, 4).double()

    dataset = [(features(0)[n].detach(), n % 4) for n in range(24)]
    trunk = model()
    for epochs in (1, 1) if folder is not None else (2,):
        if folder is not None and (folder / "saved.pt").exists():
            trunk = model()
            trunk.load_state_dict(torch.load(folder / "saved.pt", weights_only=True))
        optimizer = torch.optim.SGD(trunk.parameters(), lr=0.1)
        MetricLossOnly(
            models={"trunk": trunk},
            optimizers={"trunk_optimizer": optimizer},
            batch_size=24,
            loss_funcs={"metric_loss": loss_fn},
            dataset=dataset,
            sampler=range(24),
            dataloader_num_workers=0,
            dtype=torch.float64,
        ).train(num_epochs=epochs)
        if folder is not None:
            torch.save(trunk.state_dict(), folder / "saved.pt")
    return dict(trunk.state_dict())


@pytest.mark.filterwarnings("ignore")
def test_a_trainer_of_the_package(tmp_path: Path) -> None:
    ours, theirs = train(MetricLoss(zoo.get_loss("supcon", temperature=0.1))), train(SupConLoss(temperature=0.1))
    torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(train(MetricLoss(zoo.get_loss("supcon", temperature=0.1)), tmp_path), ours, rtol=0, atol=0)


def whole(folder: Path | None = None) -> dict[str, Tensor]:
    """Values of the batch, or of the parts that processes have of it, with the gradients of all parts."""
    found = {}
    for name, labels in (("supcon", torch.arange(24) % 5), ("sogclr", torch.arange(12).repeat(2))):
        z = features(0)
        rows = torch.arange(24)
        if folder is not None:
            if not torch.distributed.is_initialized():
                torch.distributed.init_process_group("gloo")
            rank = torch.distributed.get_rank()
            rows = rows.chunk(WORLD)[rank] if name == "supcon" else rows.view(2, 12)[:, 6 * rank : 6 * rank + 6].flatten()
        loss = MetricLoss(zoo.get_loss(name, num_samples=12).double())(z[rows], labels[rows])
        loss.backward()
        gradient = z.grad
        if folder is not None:
            torch.distributed.all_reduce(gradient)
            gradient /= WORLD
        found |= {name: loss.detach(), f"{name} gradient": gradient}
    return found


def test_two_processes_train_as_one(tmp_path: Path) -> None:
    for of_rank in in_processes(whole, tmp_path):
        torch.testing.assert_close(of_rank, whole(), rtol=1e-10, atol=1e-12)
