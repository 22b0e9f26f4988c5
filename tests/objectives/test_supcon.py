"""SupCon's classes: any number of views, classes of one sample, no positive at all, one class; never a pair of positives."""

import math
from collections.abc import Sequence

import oracle
import pytest
import torch
from cases import BACKENDS, gradients, rows, views
from tolerances import assert_close
from torch import Tensor

import contrastive_zoo as zoo
from contrastive_zoo.batch.batch import Batch
from contrastive_zoo.batch.pairs import Pairs
from contrastive_zoo.objectives import supcon

LABELS = {
    "several": [3, 1, 3, 3, 1, 0, -7],
    "pairs": [0, 0, 1, 1, 2, 2, 5],
    "each its own": [6, 5, 4, 3, 2, 1, 0],
    "one class": [2] * 7,
}


def batch_of(views: Sequence[Tensor], labels: list[int], backend: str) -> Batch:
    """What the objective gets to see of any number of views."""
    samples = torch.arange(len(labels))
    x = torch.nn.functional.normalize(torch.stack(list(views), 1).flatten(0, 1), dim=1)
    return Batch(
        x=x,
        ids=samples.repeat_interleave(len(views)),
        sample_ids=samples,
        views=len(views),
        pair_similarity=x.new_empty(len(labels), 0),
        pairs=Pairs.unshared(backend, unit_rows=True, norm_bound=1.01),
        labels=torch.tensor(labels),
    )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("labels", LABELS.values(), ids=LABELS)
@pytest.mark.parametrize("number", [1, 2, 3, 5])
def test_any_number_of_views(number: int, labels: list[int], backend: str) -> None:
    """Without a second view, an anchor that is alone in its class has no positive and is marked."""
    leaves = [rows(7, 4, seed=seed) for seed in range(number)]
    found = supcon(batch_of(leaves, labels, backend), temperature=0.2)
    expected = oracle.supcon(*leaves, temperature=0.2, labels=labels)
    assert_close(found, expected, "loss of each anchor")
    kept = expected.detach().isfinite()
    assert kept.all(1).tolist() == [number > 1 or labels.count(label) > 1 for label in labels]
    if kept.any():
        wanted = torch.autograd.grad(expected[kept].sum(), leaves)
        for gradient, other in zip(torch.autograd.grad(found[kept].sum(), leaves), wanted, strict=True):
            assert_close(gradient, other, "gradient", magnitude=10.0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_anchor_without_a_positive_gets_no_gradient_from_its_own_loss(backend: str) -> None:
    z = rows(4, 3)
    found = supcon(batch_of([z], [0, 0, 1, 2], backend), temperature=0.2)
    (gradient,) = torch.autograd.grad(found, z, torch.tensor([0.0, 0.0, 1.0, 1.0], dtype=torch.float64)[:, None])
    assert torch.equal(gradient, torch.zeros_like(gradient))


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_label_that_appears_once_is_ntxent(backend: str) -> None:
    batch, labels = views(9, 5), torch.tensor([0, 0, 1, 0, 2, 0, 3, 0, 4])
    params = {"temperature": 0.2, "reduction": "none", "backend": backend}
    found = zoo.get_loss("supcon", **params)(*batch[:2], labels=labels)
    expected = zoo.get_loss("ntxent", **params)(*batch[:2])
    alone = labels > 0
    assert_close(found[alone], expected[alone], "alone in their class")
    assert not torch.isclose(found, expected)[~alone].any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_without_labels_of_others_it_is_ntxent(backend: str) -> None:
    batch = views(9, 5)
    found = zoo.get_loss("supcon", temperature=0.2, backend=backend)(*batch[:2], labels=torch.arange(9))
    expected = zoo.get_loss("ntxent", temperature=0.2, backend=backend)(*batch[:2])
    assert_close(found, expected, "loss")
    for gradient, wanted in zip(gradients(found, batch), gradients(expected, batch), strict=True):
        assert_close(gradient, wanted, "gradient")


@pytest.mark.parametrize("backend", BACKENDS)
def test_all_labels_equal(backend: str) -> None:
    """The loss is at least log n, where all similarities are equal, whatever they are; no warning, nothing drops out."""
    loss_fn, batch = zoo.get_loss("supcon", temperature=0.2, backend=backend), views(6, 5)
    labels = torch.full((6,), 4)
    assert batch._replace(labels=labels).call(loss_fn) > math.log(11)
    assert loss_fn.diagnostics["dropped_anchors"] == 0
    simplex = torch.eye(12, dtype=torch.float64) - 1 / 12
    for z in (simplex, torch.ones(12, 3, dtype=torch.float64)):
        assert float(loss_fn(z[::2], z[1::2], labels=labels)) == pytest.approx(math.log(11), abs=1e-12)


def test_labels_are_names_only() -> None:
    batch, loss_fn = views(), zoo.get_loss("supcon")
    expected = batch.call(loss_fn)
    for rename in (lambda c: -c, lambda c: c * 10**12, lambda c: 200 + c.to(torch.uint8), lambda c: c.repeat(2, 1).T[:, 0]):
        assert_close(batch._replace(labels=rename(batch.labels)).call(loss_fn), expected, "loss")


def test_rows_of_one_sample_have_one_label() -> None:
    batch, loss_fn = views(), zoo.get_loss("supcon")
    index, told = torch.where(torch.arange(12) == 7, batch.index[2], batch.index), batch.labels.clone()
    told[7] = told[2]
    found, expected = batch._replace(index=index).call(loss_fn), batch._replace(labels=told).call(loss_fn)
    assert_close(found, expected, "loss")
