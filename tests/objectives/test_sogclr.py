"""SogCLR against a dictionary of moving averages: value, gradient and tables over several steps."""

from collections.abc import Callable

import oracle_stateful
import pytest
import torch
from cases import BACKENDS, Views, gradients, same_state, snapshot, views
from tolerances import assert_close

import contrastive_zoo as zoo

TEMPERATURE, NUM_SAMPLES = 0.2, 15
COSINE = zoo.CosineSchedule(1.0, 0.3, steps=3)
GAMMAS: dict[str, float | Callable[[int], float]] = {
    "0.9": 0.9,
    "0.3": 0.3,
    "1": 1.0,
    "cosine": lambda step: float(COSINE(torch.tensor(step))),
    "own schedule": lambda step: 1 / (1 + step),
}
OURS = {**GAMMAS, "cosine": COSINE, "own schedule": lambda step: 1 / (1 + int(step))}


def step_batch(step: int) -> Views:
    """Seven of fifteen samples, so that some come again in later steps; every other step one of them three times."""
    batch = views(7, 4, seed=step, num_samples=NUM_SAMPLES)
    if step % 2:
        batch.index[4] = batch.index[6] = batch.index[1]
    return batch


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("intra_view", [True, False], ids=["views", "modalities"])
@pytest.mark.parametrize("gamma", GAMMAS)
def test_equals_a_dictionary_of_averages(gamma: str, intra_view: bool, backend: str) -> None:
    reference = oracle_stateful.SogCLR(temperature=TEMPERATURE, gamma=GAMMAS[gamma], intra_view=intra_view)
    params = {"gamma": OURS[gamma], "intra_view": intra_view, "temperature": TEMPERATURE, "backend": backend}
    loss_fn = zoo.get_loss("sogclr", num_samples=NUM_SAMPLES, **params).double()
    for step in range(5):
        batch = step_batch(step)
        values, surrogate = reference(*batch[:2], batch.index.tolist())
        loss = batch.call(loss_fn)
        assert_close(loss, values.mean(), f"loss of step {step}")
        for found, wanted in zip(gradients(loss, batch), torch.autograd.grad(surrogate, batch[:2]), strict=True):
            assert_close(found, wanted, f"gradient of step {step}")
        table = loss_fn.table()
        assert set(table["visited"].nonzero().flatten().tolist()) == set(reference.u)
        for side, name in enumerate(["u"] if intra_view else ["u1", "u2"]):
            expected = [reference.u[i][side] if i in reference.u else 0.0 for i in range(NUM_SAMPLES)]
            assert_close(table[name], torch.tensor(expected, dtype=torch.float64), f"{name} after step {step}")


@pytest.mark.parametrize("backend", BACKENDS)
def test_value_per_sample(backend: str) -> None:
    reference = oracle_stateful.SogCLR(temperature=TEMPERATURE, gamma=0.5)
    params = {"gamma": 0.5, "temperature": TEMPERATURE, "reduction": "none", "backend": backend}
    loss_fn = zoo.get_loss("sogclr", num_samples=NUM_SAMPLES, **params).double()
    for step in range(2):
        batch = step_batch(step)
        values, _ = reference(*batch[:2], batch.index.tolist())
        assert_close(batch.call(loss_fn), values.mean(1), f"loss of step {step}")


@pytest.mark.parametrize("backend", BACKENDS)
def test_without_memory_the_gradient_is_that_of_the_decoupled_loss(backend: str) -> None:
    """At gamma = 1, or where all samples are new, u is the batch's own mean."""
    batch = views(9, 5)
    expected = batch.call(zoo.get_loss("dcl", temperature=0.3, backend=backend))
    of_dcl = gradients(expected, batch)
    for gamma in (1.0, 0.1):
        loss = batch.call(zoo.get_loss("sogclr", num_samples=40, temperature=0.3, gamma=gamma, backend=backend).double())
        assert_close(loss, expected - torch.tensor(16.0, dtype=torch.float64).log(), "loss")
        for found, wanted in zip(gradients(loss, batch), of_dcl, strict=True):
            assert_close(found, wanted, "gradient")


def test_eval_is_the_logarithm_of_the_mean_over_the_batch() -> None:
    batch = views(9, 5)
    loss = zoo.get_loss("sogclr", num_samples=40, temperature=0.3).eval()(*batch[:2])
    expected = zoo.get_loss("dcl", temperature=0.3)(*batch[:2]) - torch.tensor(16.0, dtype=torch.float64).log()
    assert_close(loss, expected, "loss")
    for found, wanted in zip(gradients(loss, batch), gradients(expected, batch), strict=True):
        assert_close(found, wanted, "gradient")


@pytest.mark.parametrize("temperature", [0.005, 0.01])
def test_tables_hold_what_a_natural_scale_could_not(temperature: float) -> None:
    """exp(1 / 0.005) = 7e86 is beyond float32; the logarithm is not."""
    batch, loss_fn = views(6, 4, dtype=torch.float32), zoo.get_loss("sogclr", num_samples=40, temperature=temperature)
    aligned = batch._replace(z2=batch.z1.detach() * 2, z1=batch.z1[:1].detach().repeat(6, 1).requires_grad_())
    reference = oracle_stateful.SogCLR(temperature=temperature, gamma=0.9)
    for step in range(2):
        values, _ = reference(aligned.z1.double(), aligned.z2.double(), aligned.index.tolist())
        loss = loss_fn(aligned.z1, aligned.z2, index=aligned.index)
        assert_close(loss, values.mean(), f"loss of step {step}", logit=1 / temperature, magnitude=1.0)
    assert all(tensor.isfinite().all() for tensor in loss_fn.state_dict().values())


@pytest.mark.parametrize("gamma", [lambda step: 0.5, lambda step: torch.tensor(0.5), lambda step: torch.tensor(0.5).double()])
def test_a_schedule_may_return_numbers_and_tensors(gamma: object) -> None:
    batches = [step_batch(step) for step in range(2)]
    constant, scheduled = (zoo.get_loss("sogclr", num_samples=NUM_SAMPLES, gamma=g).double() for g in (0.5, gamma))
    for batch in batches:
        assert_close(batch.call(scheduled), batch.call(constant), "loss")


@pytest.mark.parametrize("gamma", [0.0, -0.1, 1.5, float("nan")])
def test_a_schedule_that_leaves_its_interval_is_refused(gamma: float) -> None:
    loss_fn, batch = zoo.get_loss("sogclr", num_samples=NUM_SAMPLES, gamma=lambda step: gamma), step_batch(0)
    before = snapshot(loss_fn)
    with pytest.raises(ValueError, match="gamma must be"):
        batch.call(loss_fn)
    assert same_state(snapshot(loss_fn), before)


def test_cosine_schedule() -> None:
    values = [float(zoo.CosineSchedule(1.0, 0.2, steps=4)(torch.tensor(step))) for step in range(6)]
    assert values == pytest.approx([1.0, 0.6 + 0.4 * 2**-0.5, 0.6, 0.6 - 0.4 * 2**-0.5, 0.2, 0.2])
    with pytest.raises(ValueError, match="steps must be at least 1"):
        zoo.CosineSchedule(1.0, 0.2, steps=0)
    with pytest.raises(TypeError, match="start must be a number"):
        zoo.CosineSchedule("one", 0.2, steps=3)  # type: ignore[arg-type]


def test_tables_of_the_other_form_are_refused() -> None:
    loss_fn, u = zoo.get_loss("sogclr", num_samples=3), torch.ones(3)
    with pytest.raises(TypeError, match="load_table needs u in addition to visited, got u1, u2"):
        loss_fn.load_table(visited=u > 0, u1=u, u2=u)
    with pytest.raises(TypeError, match="load_table needs u1 and u2 in addition to visited, got u"):
        zoo.get_loss("sogclr", num_samples=3, intra_view=False).load_table(visited=u > 0, u=u)
