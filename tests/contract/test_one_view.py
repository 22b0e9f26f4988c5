"""One embedding per sample: positives come from labels, everything else is as with two views."""

from typing import NamedTuple

import pytest
import torch
from cases import (
    BACKENDS,
    CONFIGURATIONS,
    DEFAULTS,
    HALF,
    Configuration,
    same_state,
    snapshot,
    views,
    weights,
)
from tolerances import assert_close
from torch import Tensor
from torch.autograd import gradcheck

import contrastive_zoo as zoo
from contrastive_zoo import Loss

ONE_VIEW = [c for c in CONFIGURATIONS if "one_view" in c.card.uses]
every_configuration = pytest.mark.parametrize("configuration", ONE_VIEW, ids=str)
without_draws = pytest.mark.parametrize("configuration", [c for c in ONE_VIEW if not c.draws], ids=str)
every_backend = pytest.mark.parametrize("backend", BACKENDS)


class OneView(NamedTuple):
    """What a call of a loss takes."""

    z: Tensor
    index: Tensor
    labels: Tensor

    def call(self, loss_fn: Loss) -> Tensor:
        return loss_fn(self.z, index=self.index, labels=self.labels)

    def outcome(self, loss_fn: Loss) -> tuple[Tensor, Tensor]:
        """Value and gradient."""
        loss = self.call(loss_fn)
        return loss, torch.autograd.grad(loss.sum(), self.z)[0]


def one_view(labels: list[int] | None = None, *, seed: int = 0, dtype: torch.dtype = torch.float64) -> OneView:
    """Features of 12 samples, two of which are alone in their classes."""
    labels = [3, 1, 3, 3, 1, 0, -7, 1, 1, 3, 2, 2] if labels is None else labels
    batch = views(len(labels), seed=seed, dtype=dtype)
    return OneView(batch.z1, batch.index, torch.tensor(labels))


def assert_same(found: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor]) -> None:
    assert_close(found[0], expected[0], "loss")
    assert_close(found[1], expected[1], "gradient", magnitude=1.0)


def by_hand(configuration: Configuration, batch: OneView) -> Tensor:
    """The loss in loops, of rows that are samples of their own."""
    x = batch.z / batch.z.norm(dim=1, keepdim=True)
    s, labels, everyone = x @ x.T, batch.labels.tolist(), range(len(x))
    params = {**configuration.card.parameters, **configuration.params}
    losses = []
    for i in everyone:
        others = [j for j in everyone if j != i]
        same = [j for j in others if labels[j] == labels[i]]
        if configuration.name == "supcon":
            t = params["temperature"]
            if same:
                losses.append((s[i, others] / t).logsumexp(0) - s[i, same].mean() / t)
            continue
        negatives = s[i, [j for j in others if labels[j] != labels[i]]]
        weight = (params.get("beta", 0.0) * negatives.detach()).softmax(0)
        for j in same + [i] * params["self_positive"]:
            losses.append(((weight * negatives.exp()).sum() * (-s[i, j]).exp()).log1p())
    return torch.stack(losses).mean()


def test_the_names_that_take_one_view() -> None:
    assert {c.name for c in ONE_VIEW} == {"supcon", "scl", "hscl"}
    for configuration in ONE_VIEW:
        assert "one_view" in str(configuration.card)
        assert "one view" in (getattr(zoo.functional, configuration.name).__doc__ or "")


@without_draws
@every_backend
def test_by_hand(configuration: Configuration, backend: str) -> None:
    batch = one_view()
    expected = by_hand(configuration, batch)
    assert_same(batch.outcome(configuration.make(backend=backend)), (expected, torch.autograd.grad(expected, batch.z)[0]))


@without_draws
@every_backend
def test_rows_in_one_view_are_rows_in_two(configuration: Configuration, backend: str) -> None:
    """Positives go by label, so which rows are views of one sample makes no difference."""
    z = torch.cat(views()[:2]).detach().requires_grad_()
    labels = torch.arange(12) % 4
    loss_fn = configuration.make(backend=backend)
    loss, expected = loss_fn(z, labels=labels.repeat(2)), loss_fn(z[:12], z[12:], labels=labels)
    assert_same((loss, torch.autograd.grad(loss, z)[0]), (expected, torch.autograd.grad(expected, z)[0]))


@every_configuration
def test_backends(configuration: Configuration) -> None:
    batch = one_view()
    found, expected = (batch.outcome(configuration.make(backend=backend)) for backend in ("tiled", "dense"))
    assert_same(found, expected)


@pytest.mark.parametrize("name", ["supcon", "scl"])
@every_backend
def test_gradcheck(name: str, backend: str) -> None:
    batch, loss_fn = one_view(), zoo.get_loss(name, backend=backend)
    assert gradcheck(lambda z: loss_fn(z, labels=batch.labels), batch.z)


@every_configuration
def test_a_leading_axis_of_one(configuration: Configuration) -> None:
    batch = one_view()
    stacked = batch._replace(z=batch.z.detach()[None].requires_grad_())
    loss, gradient = stacked.outcome(configuration.make())
    expected, wanted = batch.outcome(configuration.make())
    assert torch.equal(loss, expected)
    assert torch.equal(gradient, wanted[None])


@pytest.mark.parametrize("shape", [(12, 6), (1, 12, 6)], ids=str)
@pytest.mark.parametrize("configuration", DEFAULTS, ids=str)
def test_others_need_two(configuration: Configuration, shape: tuple[int, ...]) -> None:
    batch = one_view()
    call = batch._replace(z=batch.z.view(shape))
    if "one_view" in configuration.card.uses:
        assert call.call(configuration.make()).isfinite()
        return
    told = rf"'{configuration.name}' needs two views, and z1 of shape \({', '.join(map(str, shape))}\) holds one.*supcon"
    with pytest.raises(ValueError, match=told):
        call.call(configuration.make())


@every_configuration
def test_labels_are_needed(configuration: Configuration) -> None:
    with pytest.raises(ValueError, match=rf"{configuration.name}' needs labels: call loss_fn\(z1, labels=labels\)"):
        configuration.make()(one_view().z)


@without_draws
def test_rows_of_one_sample_are_positives_whatever_their_labels(configuration: Configuration) -> None:
    batch = one_view()
    index = batch.index.clone()
    index[6] = index[5]
    told = batch.labels.clone()
    told[6] = told[5]
    found = batch._replace(index=index).outcome(configuration.make())
    assert_same(found, batch._replace(labels=told).outcome(configuration.make()))


@every_configuration
@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("autocast", [False, True], ids=["half features", "autocast"])
def test_half_precision_rounds_the_rows_and_nothing_else(
    configuration: Configuration, dtype: torch.dtype, autocast: bool
) -> None:
    batch = one_view(dtype=torch.float32 if autocast else dtype)
    with torch.autocast("cpu", dtype=dtype, enabled=autocast):
        loss, gradient = batch.outcome(configuration.make())
    unit = torch.nn.functional.normalize(batch.z.float(), dim=1)
    rounded = batch._replace(z=unit + (unit.to(dtype).float() - unit).detach())
    expected = rounded.call(configuration.make(normalize=False))
    assert_close(loss, expected, "loss", dtype=torch.float32)
    assert_close(gradient, torch.autograd.grad(expected, batch.z)[0], "gradient", dtype=dtype)


@every_configuration
def test_a_value_per_sample(configuration: Configuration) -> None:
    """An anchor without a positive counts for nothing, and the mean is over the others."""
    batch = one_view()
    none, total, mean = (batch.call(configuration.make(reduction=r)) for r in ("none", "sum", "mean"))
    assert none.shape == (12,)
    assert_close(none.mean(), mean, "mean")
    assert_close(none.sum(), total, "sum")
    positive_of_itself = configuration.card.parameters.get("self_positive", False)
    alone = not configuration.params.get("self_positive", positive_of_itself)
    assert (none == 0).nonzero().flatten().tolist() == ([5, 6] if alone else [])


@without_draws
def test_the_order_of_samples_does_not_matter(configuration: Configuration) -> None:
    batch, order = one_view(), torch.randperm(12)
    per_sample = configuration.make(reduction="none")
    moved = OneView(*(leaf[order] for leaf in batch))
    assert_close(moved.call(per_sample), batch.call(per_sample)[order], "loss")


EMPTY = {
    "one row": one_view([4]),
    "one sample": one_view([0, 0, 1, 1])._replace(index=torch.full((4,), 3)),
}


@every_configuration
@every_backend
@pytest.mark.parametrize("batch", EMPTY.values(), ids=EMPTY)
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_one_sample_is_zero(configuration: Configuration, batch: OneView, backend: str, training: bool) -> None:
    loss_fn = configuration.make(backend=backend).train(training)
    before = snapshot(loss_fn)
    with pytest.warns(UserWarning, match="one sample") as caught:
        loss, gradient = batch.outcome(loss_fn)
    assert len(caught) == 1
    assert loss == 0
    assert torch.equal(gradient, torch.zeros_like(gradient))
    assert same_state(snapshot(loss_fn), before)


WITHOUT = {"supcon": [2, 1, 0, 4, 7], "scl": [2] * 5, "hscl": [2] * 5}


@every_configuration
@every_backend
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_nobody_has_a_positive_and_a_negative(configuration: Configuration, backend: str, reduction: str) -> None:
    batch = one_view(WITHOUT[configuration.name])
    with pytest.warns(UserWarning, match="no anchor has both a positive and a negative") as caught:
        loss, gradient = batch.outcome(configuration.make(backend=backend, reduction=reduction))
    assert len(caught) == 1
    assert torch.equal(loss, torch.zeros(5 if reduction == "none" else ()).to(loss))
    assert torch.equal(gradient, torch.zeros_like(gradient))
    with pytest.raises(ValueError, match=r"no anchor has both a positive and a negative.*Drop such batches"):
        batch.call(configuration.make(backend=backend, on_empty="error"))


@pytest.mark.parametrize("name", ["scl", "hscl"])
def test_alone_in_its_class_and_no_positive_of_itself(name: str) -> None:
    batch = one_view([2, 1, 0, 4, 7])
    with pytest.warns(UserWarning, match="no anchor has both a positive and a negative"):
        assert batch.call(zoo.get_loss(name, self_positive=False)) == 0
    assert batch.call(zoo.get_loss(name)) > 0


@every_configuration
def test_evaluation(configuration: Configuration) -> None:
    """No draws, no state: the expectation, without an index too."""
    batch, loss_fn = one_view(), configuration.make().eval()
    before = snapshot(loss_fn)
    expected = batch.call(configuration.make(**({"num_negatives": None} if configuration.draws else {})))
    assert_close(loss_fn(batch.z, labels=batch.labels), expected, "loss")
    assert same_state(snapshot(loss_fn), before)


@pytest.mark.parametrize("configuration", [c for c in ONE_VIEW if c.draws], ids=str)
def test_draws_resume(configuration: Configuration) -> None:
    batch, first, second = one_view(), configuration.make(seed=3), configuration.make(seed=3)
    once, _ = batch.call(first), second.load_state_dict(first.state_dict())
    again = batch.call(first)
    assert again != once
    assert torch.equal(batch.call(second), again)


@pytest.mark.usefixtures("_compiler")
@every_configuration
def test_compiled_equals_eager(configuration: Configuration) -> None:
    eager, compiled = configuration.make(), torch.compile(configuration.make(), backend="aot_eager", fullgraph=True)
    for seed in range(2):
        batch = one_view(seed=seed)
        assert_same(batch.outcome(compiled), batch.outcome(eager))


@every_configuration
def test_functional_form(configuration: Configuration) -> None:
    batch, function = one_view(), getattr(zoo.functional, configuration.name)
    value = function(batch.z, index=batch.index, labels=batch.labels, **configuration.params)
    assert torch.equal(value, batch.call(configuration.make()))


@pytest.mark.parametrize("count", [1, 2])
@every_configuration
def test_similarities_by_class(configuration: Configuration, count: int) -> None:
    z = torch.stack(views()[:2])[:count].detach()
    labels = one_view().labels
    loss_fn = configuration.make()
    loss_fn(z, labels=labels)
    unit = torch.nn.functional.normalize(z.flatten(0, 1), dim=1)
    similarity, same = unit @ unit.T, labels.repeat(count)[:, None] == labels.repeat(count)
    figures, others = loss_fn.diagnostics, ~torch.eye(len(unit), dtype=torch.bool)
    assert_close(figures["positive_similarity"], similarity[same & others].mean(), "positives", magnitude=1.0)
    assert_close(figures["negative_similarity"], similarity[~same].mean(), "negatives", magnitude=1.0)


def test_dropped_anchors_are_counted() -> None:
    loss_fn = zoo.get_loss("supcon")
    one_view().call(loss_fn)
    assert float(loss_fn.diagnostics["dropped_anchors"]) == pytest.approx(2 / 12)


@every_configuration
def test_weights_of_samples(configuration: Configuration) -> None:
    """A gradient per sample that is not the same for all."""
    batch, upstream = one_view(), weights(12)
    found = [
        torch.autograd.grad(batch.call(configuration.make(reduction="none", backend=backend)), batch.z, upstream)[0]
        for backend in BACKENDS
    ]
    assert_close(found[0], found[1], "gradient", magnitude=1.0)
