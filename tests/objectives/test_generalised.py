"""UCL, HUCL, SCL and HSCL: the authors' numbers in expectation and draw by draw, draws, empty sets."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cases import BACKENDS, Views, gradients, views
from tolerances import assert_close
from torch import Tensor
from torch.autograd import gradcheck

import contrastive_zoo as zoo
from contrastive_zoo.batch.batch import Batch
from contrastive_zoo.samplers import independent
from contrastive_zoo.samplers.independent import Rules, independent_negatives

GOLDEN = Path(__file__).parents[1] / "golden" / "hscl"
CASES = sorted(path.stem for path in GOLDEN.glob("?cl_*.npz") if path.stem[0] in "us")
NAMES = ["ucl", "hucl", "scl", "hscl"]
every_case = pytest.mark.parametrize("case", CASES)
every_name = pytest.mark.parametrize("name", NAMES)
every_backend = pytest.mark.parametrize("backend", BACKENDS)


def one_view(x: Tensor, labels: Tensor, loss_fn: zoo.Loss) -> Batch:
    """Rows by themselves, those of one label as if of one sample."""
    none = x.new_empty(len(x), 0)
    samples = torch.arange(len(x))
    return Batch(x=x, ids=labels, sample_ids=samples, views=1, pair_similarity=none, pairs=loss_fn._maker.pairs, labels=labels)


class Golden:
    """A recorded case as one matrix of rows with one label each."""

    def __init__(self, case: str) -> None:
        with np.load(GOLDEN / f"{case}.npz") as file:
            self.arrays = {key: torch.as_tensor(file[key]) for key in file.files if key != "meta"}
            self.params: dict[str, Any] = json.loads(str(file["meta"]))["params"]
        self.z = [self.arrays[key].clone().requires_grad_() for key in ("z1", "z2")]
        self.labels = self.arrays["labels"].long()
        self.name = ("h" if self.params["beta"] else "") + self.params["kind"].lower()
        self.given = {"beta": self.params["beta"]} if self.params["beta"] else {}
        self.normalize = {"unit": "sphere", "ball": "ball"}[self.params["projection"]]

    def batch(self, loss_fn: zoo.Loss) -> Batch:
        """The rows as the authors have them, which a call with two views cannot give: UCL's positives share a label."""
        z = torch.cat(self.z) if self.params["two_views"] else self.z[0]
        length = z.norm(dim=1, keepdim=True)
        x = z / (length.clamp_min(1) if self.normalize == "ball" else length)
        return one_view(x, self.labels, loss_fn)

    def draws(self, row: int) -> Tensor:
        """(positives, K) drawn rows of an anchor."""
        start, stop = self.arrays["draws_offsets"][row : row + 2].tolist()
        return self.arrays["draws"][start:stop].view(-1, self.params["K"]).long()

    def check(self, loss: Tensor, prefix: str = "") -> None:
        found = torch.autograd.grad(loss, self.z, materialize_grads=True)
        assert_recorded(loss, self.arrays[f"{prefix}loss"])
        for gradient, key in zip(found, ("grad_z1", "grad_z2"), strict=True):
            assert_recorded(gradient, self.arrays[f"{prefix}{key}"])


def assert_recorded(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found.detach(), expected, rtol=0, atol=1e-9 + 1e-7 * float(expected.abs().max()))


@every_case
@every_backend
def test_expectation_of_the_authors_loss(case: str, backend: str) -> None:
    golden = Golden(case)
    loss_fn = zoo.get_loss(golden.name, backend=backend, normalize=golden.normalize, **golden.given)
    golden.check(loss_fn.objective(golden.batch(loss_fn)).mean(), "expect_")


@pytest.mark.parametrize("case", [case for case in CASES if "views" in case])
@every_backend
def test_expectation_by_an_ordinary_call(case: str, backend: str) -> None:
    golden = Golden(case)
    loss_fn = zoo.get_loss(golden.name, backend=backend, normalize=golden.normalize, **golden.given)
    golden.check(loss_fn(*golden.z, labels=golden.labels[: len(golden.z[0])]), "expect_")


@every_case
def test_the_authors_draws_give_their_loss(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With their draws in place of ours; the probabilities are compared on the way."""
    golden = Golden(case)
    labels, n, k = golden.labels, len(golden.labels), golden.params["K"]
    # SCL sorts rows by class, and anchors with as many positives come together.
    order = labels.argsort(stable=True) if "scl" in golden.name else torch.arange(n)
    place = order.argsort()
    sizes = (labels[order][:, None] == labels[order][None, :]).sum(1)

    def recorded(weights: Tensor, size: int, _: torch.Generator) -> Tensor:
        drawn = torch.zeros(n, size // k, k, dtype=torch.int64)
        for block_row, anchor in enumerate(order[sizes.argsort(stable=True)].tolist()):
            expected = golden.arrays["neg_probs"][anchor][order]
            assert_recorded(weights[block_row] / weights[block_row].sum(), expected.double())
            draws = golden.draws(anchor)
            drawn[block_row, : len(draws)] = place[draws]
        return drawn.flatten(1)

    monkeypatch.setattr(independent, "draw", recorded)
    loss_fn = zoo.get_loss(golden.name, normalize=golden.normalize, num_negatives=k, **golden.given)
    golden.check(loss_fn.objective(golden.batch(loss_fn)).mean())


@every_case
def test_mean_of_many_draws_is_near_the_authors(case: str) -> None:
    """With few draws the loss is less on average than in the expectation, by as much as theirs."""
    golden = Golden(case)
    loss_fn = zoo.get_loss(golden.name, normalize=golden.normalize, num_negatives=golden.params["K"], **golden.given)
    batch = golden.batch(loss_fn)
    drawn = torch.stack([loss_fn.objective(batch).mean().detach() for _ in range(400)])
    expected, spread = (float(golden.arrays[f"official_sameK_losses_{key}"]) for key in ("mean", "std"))
    assert float(drawn.mean()) == pytest.approx(expected, abs=5 * spread / 400**0.5 + 5 * spread / 10)
    assert float(drawn.std()) == pytest.approx(spread, rel=0.5)


@every_name
@pytest.mark.parametrize("self_positive", [True, False])
def test_many_draws_are_the_expectation(name: str, self_positive: bool) -> None:
    batch = views()
    drawn, expected = (zoo.get_loss(name, self_positive=self_positive, num_negatives=k) for k in (20000, None))
    found, wanted = (gradients(batch.call(loss_fn), batch) for loss_fn in (drawn, expected))
    assert float(batch.call(drawn).detach()) == pytest.approx(float(batch.call(expected).detach()), rel=2e-3)
    for gradient, reference in zip(found, wanted, strict=True):
        assert float((gradient - reference).norm() / reference.norm()) < 0.05


def rules(self_positive: bool = True, beta: float = 2.0, num_negatives: int = 4, everyone: bool = False) -> Rules:
    ids = torch.tensor([3, 1, 1, 3, 2, 3, 1, 1, 2])
    return Rules(ids, None if everyone else ids, self_positive, beta, num_negatives)


def drawn_sums(x: Tensor, given: Rules, seed: int = 0, step: int = 0) -> Tensor:
    return independent_negatives(x, given, seed=seed, step=torch.tensor(step))


def rows_of_length_one() -> Tensor:
    return torch.nn.functional.normalize(views(9, 4).z1.detach(), dim=1).requires_grad_()


@pytest.mark.parametrize("beta", [0.0, 3.0])
@pytest.mark.parametrize("self_positive", [True, False])
@pytest.mark.parametrize("everyone", [True, False])
def test_finite_differences_at_fixed_draws(beta: float, self_positive: bool, everyone: bool) -> None:
    given = rules(self_positive, beta, everyone=everyone)
    assert gradcheck(lambda x: drawn_sums(x, given), rows_of_length_one())


def test_negatives_are_drawn_from_softmax_of_beta_times_the_similarity(monkeypatch: pytest.MonkeyPatch) -> None:
    x, given, seen = rows_of_length_one().detach(), rules(num_negatives=5000), []
    draw = independent.draw
    monkeypatch.setattr(independent, "draw", lambda *arguments: seen.append(draw(*arguments)) or seen[-1])
    drawn_sums(x, given)
    own = given.positives[:, None] == given.positives[None, :]
    expected = (2.0 * x @ x.T).masked_fill(own, -torch.inf).softmax(1)
    anchors = own.sum(1).argsort(stable=True)
    for row, anchor in enumerate(anchors.tolist()):
        frequencies = torch.bincount(seen[0][row], minlength=9) / seen[0].shape[1]
        assert float((frequencies - expected[anchor]).abs().sum()) < 0.05
        assert not frequencies[own[anchor]].any()


def test_blocks_of_anchors_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    """One anchor, a few, and all at once, by draws that do not depend on it."""
    x, given = rows_of_length_one(), rules()
    monkeypatch.setattr(independent, "draw", lambda weights, size, _: weights.topk(3, dim=1).indices[:, torch.arange(size) % 3])
    found = []
    for numel in (1, 60, 2**20):
        monkeypatch.setattr(independent, "BLOCK_NUMEL", numel)
        value = drawn_sums(x, given)
        found.append((value, *torch.autograd.grad(value, x, torch.arange(9.0, dtype=torch.float64))))
    for value, gradient in found[1:]:
        assert_close(value, found[0][0], "value")
        assert_close(gradient, found[0][1], "gradient")


def test_memory_of_draws_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(independent, "BLOCK_NUMEL", 600)
    ids = torch.arange(40) % 3
    ordered = (ids[:, None] == ids[None, :]).sum(1).sort().values.tolist()
    bounds = list(independent._bounds(ordered, 4))
    assert [start for start, _ in bounds[1:]] == [stop for _, stop in bounds[:-1]]
    assert (bounds[0][0], bounds[-1][1]) == (0, 40)
    assert max((stop - start) * (40 + 4 * ordered[stop - 1]) for start, stop in bounds) <= 600


def test_draws_go_on_with_the_steps_and_not_in_eval() -> None:
    batch, loss_fn = views(), zoo.get_loss("hscl", num_negatives=2)
    first, second = batch.call(loss_fn), batch.call(loss_fn)
    assert first != second
    assert int(loss_fn.objective.step.value) == 2
    evaluated = batch.call(loss_fn.eval())
    assert int(loss_fn.objective.step.value) == 2
    assert torch.equal(evaluated, batch.call(zoo.get_loss("hscl")))


def test_only_draws_need_a_step() -> None:
    assert not zoo.get_loss("hscl").state_dict()
    assert zoo.get_loss("hscl", num_negatives=2).state_dict()


@pytest.mark.parametrize("name", ["scl", "hscl"])
@pytest.mark.parametrize("params", [{}, {"num_negatives": 3}, {"self_positive": False}], ids=str)
@every_backend
def test_one_class_has_nothing_to_contrast(name: str, params: dict[str, Any], backend: str) -> None:
    batch = views(5, 4)._replace(labels=torch.full((5,), 2))
    with pytest.warns(UserWarning, match="no anchor has both a positive and a negative"):
        loss = batch.call(zoo.get_loss(name, backend=backend, **params))
    assert loss == 0
    assert not any(gradient.any() for gradient in gradients(loss, batch))
    with pytest.raises(ValueError, match="nothing to contrast"):
        batch.call(zoo.get_loss(name, on_empty="error", **params))


def test_a_label_that_comes_once_still_has_its_other_view() -> None:
    batch = views(3, 4)._replace(labels=torch.tensor([4, 4, 9]))
    loss = batch.call(zoo.get_loss("scl", self_positive=False, reduction="none"))
    assert (loss > 0).all()


def test_single_rows_without_positives_drop_out() -> None:
    """One view: the row of sample 9 has no positive but itself."""
    x, ids = rows_of_length_one()[:4], torch.tensor([1, 1, 9, 1])
    loss_fn = zoo.get_loss("ucl", self_positive=False)
    values = loss_fn.objective(one_view(x, ids, loss_fn))
    assert values[2] == -torch.inf
    assert values[[0, 1, 3]].isfinite().all()


def test_a_sample_has_the_label_of_its_first_row() -> None:
    batch, index = views(6, 4), torch.tensor([0, 1, 2, 0, 4, 5])
    conflicting, agreed = torch.tensor([0, 1, 2, 1, 1, 2]), torch.tensor([0, 1, 2, 0, 1, 2])
    found = [batch._replace(index=index, labels=labels).call(zoo.get_loss("hscl")) for labels in (conflicting, agreed)]
    assert torch.equal(*found)


def test_names_differ_by_negatives_and_hardness_only() -> None:
    """SCL with a class per sample is UCL without the anchor itself; without hardness HSCL is SCL, and HUCL is UCL."""
    batch = views()
    alone = batch._replace(labels=torch.arange(12))

    def value(name: str, given: Views = batch, **params: Any) -> Tensor:
        return given.call(zoo.get_loss(name, **params))

    for hard in ("", "h"):
        scl, ucl = value(f"{hard}scl", alone, self_positive=False), value(f"{hard}ucl", self_positive=False)
        assert_close(scl, ucl, f"{hard}scl")
    assert_close(value("hscl", beta=0.0), value("scl"), "hscl")
    assert_close(value("hucl", beta=0.0), value("ucl"), "hucl")


@pytest.mark.parametrize(
    ("error", "message", "name", "params"),
    [
        (ValueError, "num_negatives must be at least 1, got 0", "ucl", {"num_negatives": 0}),
        (TypeError, "num_negatives must be a whole number, got 1.5", "hscl", {"num_negatives": 1.5}),
        (ValueError, r"beta must be a finite number in \[0, inf", "hucl", {"beta": -1}),
        (TypeError, "'scl' has no parameter 'beta'", "scl", {"beta": 1.0}),
        (TypeError, "self_positive of 'scl' must be True or False, got 1", "scl", {"self_positive": 1}),
    ],
)
def test_bad_parameters(error: type[Exception], message: str, name: str, params: dict[str, Any]) -> None:
    with pytest.raises(error, match=message):
        zoo.get_loss(name, **params)
