"""iSogCLR against dictionaries of averages, temperatures and their gradients; and where its temperatures settle."""

import math
from typing import Any

import oracle_stateful
import pytest
import torch
from cases import BACKENDS, Views, gradients, same_state, snapshot, views
from tolerances import assert_close

import contrastive_zoo as zoo
from contrastive_zoo import Loss
from contrastive_zoo.batch.batch import Batch
from contrastive_zoo.batch.pairs import Pairs

NUM_SAMPLES = 15
PARAMS: dict[str, dict[str, Any]] = {
    "defaults": {"temperature": 0.1, "gamma": 0.9},
    "slow averages": {"temperature": 0.2, "gamma": 0.3, "momentum": 0.8},
    "fast temperatures": {"temperature": 0.3, "gamma": 0.5, "eta": 0.2, "rho": 1.0, "momentum": 0.0},
    "narrow": {"temperature": 0.5, "gamma": 1.0, "eta": 0.5, "temperature_min": 0.45, "temperature_max": 0.55},
}
backends = pytest.mark.parametrize("backend", BACKENDS)
forms = pytest.mark.parametrize("intra_view", [True, False], ids=["views", "modalities"])


def isogclr(num_samples: int = NUM_SAMPLES, **params: Any) -> Loss:
    return zoo.get_loss("isogclr", num_samples=num_samples, **params).double()


def step_batch(step: int) -> Views:
    """Seven of fifteen samples, so that some come again in later steps; every other step one of them three times."""
    batch = views(7, 4, seed=step, num_samples=NUM_SAMPLES)
    if step % 2:
        batch.index[4] = batch.index[6] = batch.index[1]
    return batch


@backends
@forms
@pytest.mark.parametrize("params", PARAMS.values(), ids=PARAMS)
def test_equals_dictionaries(params: dict[str, Any], intra_view: bool, backend: str) -> None:
    reference = oracle_stateful.ISogCLR(**params, intra_view=intra_view)
    loss_fn = isogclr(**params, intra_view=intra_view, backend=backend)
    for step in range(5):
        batch = step_batch(step)
        values, surrogate = reference(*batch[:2], batch.index.tolist())
        loss = batch.call(loss_fn)
        assert_close(loss, values.mean(), f"loss of step {step}", magnitude=1.0)
        for found, wanted in zip(gradients(loss, batch), torch.autograd.grad(surrogate, batch[:2]), strict=True):
            assert_close(found, wanted, f"gradient of step {step}")
        table = loss_fn.table()
        assert set(table["visited"].nonzero().flatten().tolist()) == set(reference.u)
        tables = {"u": (reference.u, 0.0), "temperature": (reference.temperature, params["temperature"])}
        for name, (entries, unvisited) in {**tables, "temperature_gradient": (reference.gradient, 0.0)}.items():
            for side, suffix in enumerate([""] if intra_view else ["1", "2"]):
                numbers = [entries[i][side] if i in entries else unvisited for i in range(NUM_SAMPLES)]
                expected = torch.tensor(numbers, dtype=torch.float64)
                what = f"{name} after step {step}"
                # Logits reach 20, and a temperature hands its own rounding errors on to the logits of the next step.
                assert_close(table[name + suffix], expected, what, logit=40.0, magnitude=1.0)


@backends
def test_value_per_sample(backend: str) -> None:
    reference = oracle_stateful.ISogCLR(temperature=0.2, gamma=0.5)
    loss_fn = isogclr(temperature=0.2, gamma=0.5, reduction="none", backend=backend)
    for step in range(2):
        batch = step_batch(step)
        values, _ = reference(*batch[:2], batch.index.tolist())
        assert_close(batch.call(loss_fn), values.mean(1), f"loss of step {step}", magnitude=1.0)


@backends
@forms
def test_with_fixed_temperatures_it_is_sogclr(intra_view: bool, backend: str) -> None:
    common = {"temperature": 0.2, "gamma": 0.5, "intra_view": intra_view, "backend": backend}
    sogclr = zoo.get_loss("sogclr", num_samples=NUM_SAMPLES, **common).double()
    fixed = isogclr(**common, eta=0.0, rho=0.7)
    for step in range(4):
        batch = step_batch(step)
        loss, expected = batch.call(fixed), batch.call(sogclr)
        assert_close(loss, expected + 0.7, f"loss of step {step}", magnitude=1.0)
        for found, wanted in zip(gradients(loss, batch), gradients(expected, batch), strict=True):
            assert_close(found, wanted, f"gradient of step {step}")


@forms
def test_eval_is_sogclr_too_whatever_was_learned(intra_view: bool) -> None:
    loss_fn = isogclr(temperature=0.2, intra_view=intra_view, eta=0.5)
    step_batch(0).call(loss_fn)
    batch = step_batch(2)
    expected = batch.call(zoo.get_loss("sogclr", num_samples=NUM_SAMPLES, temperature=0.2, intra_view=intra_view).eval())
    assert_close(batch.call(loss_fn.eval()), expected + 0.3, "loss", magnitude=1.0)


@forms
@pytest.mark.parametrize("rho", [0.1, 0.3])
def test_temperatures_settle_where_the_negatives_are_as_concentrated_as_rho(rho: float, intra_view: bool) -> None:
    """The divergence of the softmax from uniform, averaged over a sample's anchors, is rho: the objective is least there."""
    batch = Views(*(leaf.detach() for leaf in views(10, 5)))
    params = {"rho": rho, "gamma": 1.0, "momentum": 0.0, "eta": 0.2, "temperature_min": 1e-3, "temperature_max": 100.0}
    loss_fn = isogclr(40, temperature=0.3, intra_view=intra_view, **params)
    for _ in range(500):
        value = batch.call(loss_fn)
    table = loss_fn.table()
    z = torch.nn.functional.normalize(torch.stack(batch[:2]), dim=2)  # (2, B, D)
    others = ~torch.eye(10, dtype=torch.bool)
    divergences = torch.zeros(10, 2, dtype=torch.float64)
    for i in range(10):
        for view in range(2):
            keys = z[:, others[i]].flatten(0, 1) if intra_view else z[1 - view, others[i]]
            temperature = table["temperature" if intra_view else f"temperature{view + 1}"][batch.index[i]]
            p = (keys @ z[view, i] / temperature).softmax(0)
            divergences[i, view] = (p * (p * len(p)).log()).sum()
    divergences = divergences.mean(1, keepdim=True) if intra_view else divergences
    torch.testing.assert_close(divergences, torch.full_like(divergences, rho), rtol=0, atol=1e-6)
    nudged = isogclr(40, temperature=0.3, intra_view=intra_view, **{**params, "eta": 0.0})
    for factor in (0.9, 1.1):
        scaled = {name: t * factor if name.startswith("temperature") else t for name, t in table.items()}
        nudged.load_table(**scaled)
        assert batch.call(nudged) > value


def test_temperatures_stay_in_their_interval() -> None:
    loss_fn = isogclr(temperature=0.3, eta=10.0, temperature_min=0.2, temperature_max=0.4)
    for step in range(6):
        step_batch(step).call(loss_fn)
    temperatures = loss_fn.table()["temperature"]
    assert float(temperatures.min()) == 0.2
    assert float(temperatures.max()) == 0.4


@backends
@forms
def test_what_is_not_finite_enters_no_table(intra_view: bool, backend: str) -> None:
    """As on accelerators, where nobody waits to look: a bad row spoils all sums, but not what was learned."""
    loss_fn, batch = isogclr(intra_view=intra_view, backend=backend), step_batch(0)
    batch.call(loss_fn)
    before = snapshot(loss_fn)
    x = torch.nn.functional.normalize(torch.stack(batch[:2], 1).detach().flatten(0, 1), dim=1)
    x[3] = math.nan
    samples = torch.arange(7)
    loss_fn.objective(
        Batch(
            x=x,
            ids=samples.repeat_interleave(2),
            sample_ids=samples,
            views=2,
            pair_similarity=torch.linalg.vecdot(x[::2], x[1::2])[:, None],
            pairs=Pairs.unshared(backend, unit_rows=True, norm_bound=1.01),
            index=batch.index,
        )
    )
    after = snapshot(loss_fn)
    for name in ("averages.log_value", "averages.visited", "temperatures.value", "temperatures.gradient"):
        assert torch.equal(after[f"objective.{name}"], before[f"objective.{name}"]), name


def test_mean_temperature_is_reported() -> None:
    loss_fn, batch = isogclr(temperature=0.3), step_batch(0)
    batch.call(loss_fn)
    assert float(loss_fn.diagnostics["temperature"]) == pytest.approx(0.3)
    learned = loss_fn.table()["temperature"][batch.index].mean()
    batch.call(loss_fn)
    assert float(loss_fn.diagnostics["temperature"]) == pytest.approx(float(learned))


def test_a_new_temperature_is_for_samples_that_are_still_to_come() -> None:
    loss_fn, batch = isogclr(temperature=0.3), step_batch(0)
    batch.call(loss_fn)
    before = loss_fn.table()
    loss_fn.temperature = 0.2
    after = loss_fn.table()["temperature"]
    assert torch.equal(after[before["visited"]], before["temperature"][before["visited"]])
    assert (after[~before["visited"]] == 0.2).all()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"temperature": torch.zeros(3)}, ValueError, "temperature must be positive and finite for every visited sample"),
        ({"temperature_gradient": torch.full((3,), math.nan)}, ValueError, "temperature_gradient must be finite"),
        ({"temperature": torch.ones(2)}, ValueError, r"temperature must have shape \(3,\), got \(2,\)"),
        ({"u": -torch.ones(3)}, ValueError, "u must be positive"),
        ({"u1": torch.ones(3)}, TypeError, "needs u and temperature and temperature_gradient in addition to visited, got .*u1"),
    ],
)
def test_tables_are_taken_over_whole_or_not_at_all(change: dict[str, Any], error: type[Exception], message: str) -> None:
    loss_fn = isogclr(3)
    good = {"u": torch.ones(3), "temperature": torch.full((3,), 0.2), "temperature_gradient": torch.zeros(3)}
    before = snapshot(loss_fn)
    with pytest.raises(error, match=message):
        loss_fn.load_table(**{**good, **change}, visited=torch.ones(3, dtype=torch.bool))
    assert same_state(snapshot(loss_fn), before)
    loss_fn.load_table(**good, visited=torch.tensor([True, False, True]))
    torch.testing.assert_close(loss_fn.table()["temperature"], torch.tensor([0.2, 0.1, 0.2], dtype=torch.float64))


def test_tables_of_two_modalities_are_taken_over_whole_or_not_at_all() -> None:
    for name in ("sogclr", "isogclr"):
        loss_fn = zoo.get_loss(name, num_samples=3, intra_view=False)
        good = {key: torch.ones(3) for key in loss_fn.table() if key != "visited"}
        before = snapshot(loss_fn)
        with pytest.raises(ValueError, match="u2 must be positive"):
            loss_fn.load_table(**{**good, "u2": torch.zeros(3)}, visited=torch.ones(3, dtype=torch.bool))
        assert same_state(snapshot(loss_fn), before)
