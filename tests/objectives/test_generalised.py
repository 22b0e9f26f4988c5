"""UCL, HUCL, SCL and HSCL: the authors' numbers in expectation and draw by draw, draws, empty sets."""

import json
import math
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
from contrastive_zoo.samplers import batch_draws
from contrastive_zoo.samplers.batch_draws import drawn_log_mean
from contrastive_zoo.samplers.randomness import step_seed

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
    """They draw for each pair: our mean over their draws for the p-th positives, for every p; and their probabilities."""
    golden = Golden(case)
    loss_fn, beta, k = zoo.get_loss(golden.name, normalize=golden.normalize), golden.params["beta"], golden.params["K"]
    x, labels = golden.batch(loss_fn).x, golden.labels
    same = labels[:, None] == labels[None, :]
    total = x.new_zeros(())
    for number in range(int(same.sum(1).max())):
        some = same.sum(1) > number
        positive = torch.stack([row.nonzero()[min(number, int(row.sum()) - 1), 0] for row in same])
        draws = torch.stack([golden.draws(row)[number if some[row] else 0] for row in range(len(x))])

        def recorded(weights: Tensor, uniform: Tensor, draws: Tensor = draws) -> Tensor:
            assert_recorded(weights / weights.sum(1, keepdim=True), golden.arrays["neg_probs"].double())
            return draws

        monkeypatch.setattr(batch_draws, "draw", recorded)
        excluded = labels if "scl" in golden.name else None
        log_mean = drawn_log_mean(x, slice(0, len(x)), excluded, beta=beta, num_negatives=k, seed=seed())
        total = total + torch.nn.functional.softplus(log_mean - (x * x[positive]).sum(1))[some].sum()
    golden.check(total / same.sum())


@every_case
def test_mean_of_many_draws_is_near_the_authors(case: str) -> None:
    """With few draws the loss is less on average than in the expectation, by as much as theirs."""
    golden = Golden(case)
    loss_fn = zoo.get_loss(golden.name, normalize=golden.normalize, num_negatives=golden.params["K"], **golden.given)
    batch = golden.batch(loss_fn)
    drawn = torch.stack([loss_fn.objective(batch).mean().detach() for _ in range(400)])
    expected, spread = (float(golden.arrays[f"official_sameK_losses_{key}"]) for key in ("mean", "std"))
    # Positives of an anchor share draws here, so the loss of one step varies more.
    positives = float((golden.labels[:, None] == golden.labels[None, :]).sum(1).double().mean())
    assert 0.5 * spread < float(drawn.std()) < 1.5 * spread * positives**0.5
    assert float(drawn.mean()) == pytest.approx(expected, abs=5 * float(drawn.std()) / 400**0.5 + 5 * spread / 10)


@every_name
@pytest.mark.parametrize("self_positive", [True, False])
def test_many_draws_are_the_expectation(name: str, self_positive: bool) -> None:
    batch = views()
    drawn, expected = (zoo.get_loss(name, self_positive=self_positive, num_negatives=k) for k in (20000, None))
    found, wanted = (gradients(batch.call(loss_fn), batch) for loss_fn in (drawn, expected))
    assert float(batch.call(drawn).detach()) == pytest.approx(float(batch.call(expected).detach()), rel=2e-3)
    for gradient, reference in zip(found, wanted, strict=True):
        assert float((gradient - reference).norm() / reference.norm()) < 0.05


IDS = torch.tensor([3, 1, 1, 3, 2, 3, 1, 1, 2])


def seed(step: int = 0) -> Tensor:
    return step_seed(0, torch.tensor(step))


def log_means(
    x: Tensor, *, beta: float = 2.0, k: int = 4, step: int = 0, everyone: bool = False, anchors: slice | None = None
) -> Tensor:
    excluded, anchors = None if everyone else IDS, anchors or slice(0, len(x))
    return drawn_log_mean(x, anchors, excluded, beta=beta, num_negatives=k, seed=seed(step))


def law(x: Tensor, beta: float, everyone: bool) -> Tensor:
    """(N, N) probability of each row as a negative of each anchor."""
    own = (IDS[:, None] == IDS[None, :]) & (not everyone)
    return (beta * x @ x.T).masked_fill(own, -torch.inf).softmax(1)


def rows_of_length_one() -> Tensor:
    return torch.nn.functional.normalize(views(9, 4).z1.detach(), dim=1).requires_grad_()


every_law = pytest.mark.parametrize(("beta", "everyone"), [(0.0, False), (0.0, True), (3.0, False), (3.0, True)])


@every_law
def test_finite_differences_at_fixed_draws(beta: float, everyone: bool) -> None:
    assert gradcheck(lambda x: log_means(x, beta=beta, everyone=everyone), rows_of_length_one())


@every_law
def test_negatives_are_drawn_from_softmax_of_beta_times_the_similarity(
    beta: float, everyone: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, seen, draw, k = rows_of_length_one().detach(), [], batch_draws.draw, 5000
    monkeypatch.setattr(batch_draws, "draw", lambda *arguments: seen.append(draw(*arguments)) or seen[-1])
    log_means(x, beta=beta, everyone=everyone, k=k)
    expected = k * law(x, beta, everyone)
    counts = torch.stack([torch.bincount(row, minlength=9) for row in seen[0]])
    assert not counts[expected == 0].any()
    chi_square = ((counts - expected).square() / expected)[expected > 0].sum()
    freedom = int((expected > 0).sum()) - 9
    assert abs(float(chi_square) - freedom) < 4.5 * (2 * freedom) ** 0.5


@every_law
def test_mean_of_exponentials_is_unbiased(beta: float, everyone: bool) -> None:
    x = rows_of_length_one().detach()
    drawn = torch.stack([log_means(x, beta=beta, everyone=everyone, k=3, step=step).exp() for step in range(2000)])
    expected = (law(x, beta, everyone) * (x @ x.T).exp()).sum(1)
    assert ((drawn.mean(0) - expected).abs() < 4.5 * drawn.std(0) / 2000**0.5).all()


def test_blocks_of_anchors_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    """One anchor, a few, and all at once; and the anchors of several processes."""
    x, found = rows_of_length_one(), []
    for numel in (1, 27, 2**20):
        monkeypatch.setattr(batch_draws, "BLOCK_NUMEL", numel)
        found.append(log_means(x))
    found.append(torch.cat([log_means(x, anchors=slice(*ends)) for ends in ((0, 2), (2, 2), (2, 9))]))
    for value in found[1:]:
        assert_close(value, found[0], "value")
        gradient, wanted = (
            torch.autograd.grad(v @ torch.arange(9.0).double(), x, retain_graph=True)[0] for v in (value, found[0])
        )
        assert_close(gradient, wanted, "gradient")


def test_memory_of_draws_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_draws, "BLOCK_NUMEL", 600)
    blocks = list(batch_draws._blocks(3, 37, 50))
    assert [row for rows, _ in blocks for row in range(rows.start, rows.stop)] == list(range(3, 40))
    assert max(rows.stop - rows.start for rows, _ in blocks) * 50 <= 600


@every_name
@pytest.mark.parametrize("self_positive", [True, False])
def test_loss_of_the_draws_that_were_made(name: str, self_positive: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Written out pair by pair, with the draws of an anchor for all its positives."""
    batch, seen, draw, k = views(), [], batch_draws.draw, 3
    monkeypatch.setattr(batch_draws, "draw", lambda *arguments: seen.append(draw(*arguments)) or seen[-1])
    loss = batch.call(zoo.get_loss(name, num_negatives=k, self_positive=self_positive))
    by_label = "scl" in name
    x = torch.nn.functional.normalize(torch.stack([batch.z1, batch.z2], 1).flatten(0, 1), dim=1)
    ids = (batch.labels if by_label else torch.arange(len(batch.z1))).repeat_interleave(2)
    order = ids.argsort(stable=True)  # rows of a class stand side by side
    x, ids = x[order], ids[order]
    log_mean = (x @ x.T).gather(1, seen[0]).logsumexp(1) - math.log(k)
    positive = ids[:, None] == ids[None, :]
    if not self_positive:
        positive = positive.fill_diagonal_(False)
    expected = torch.nn.functional.softplus(log_mean[:, None] - x @ x.T)[positive].mean()
    assert_close(loss, expected, "loss")
    for found, wanted in zip(gradients(loss, batch), gradients(expected, batch), strict=True):
        assert_close(found, wanted, "gradient", magnitude=1.0)


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
