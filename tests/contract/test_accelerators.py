"""Steps on an accelerator: the host waits for nothing, copies an index once, and a recorded step can be replayed.

The accelerator is the stand-in of `accelerator.py`, which needs no hardware. It has no kernels of its own and tells no times.
"""

from collections.abc import Iterator

import pytest
import torch
from accelerator import DEVICE, Accelerator, accelerator, on_host
from cases import CONFIGURATIONS, Configuration, Views, snapshot, views
from launches import Work
from tolerances import assert_close
from torch import Tensor

import contrastive_zoo as zoo
from contrastive_zoo import Loss

# Draws there are others than those of the host.
STEPS = [c for c in CONFIGURATIONS if not c.draws]
DRAWING = [c for c in CONFIGURATIONS if c.draws]
# Their sweeps visit blocks of classes that only the host can find, and each sweep copies what it found.
BY_CLASS = {"scl", "hscl", "ucl", "hucl"}


@pytest.fixture
def device() -> Iterator[Accelerator]:
    with accelerator() as device:
        yield device


def batch_of(step: int, repeated: bool = False) -> Views:
    batch = views(seed=step)
    if repeated:
        batch.index[3] = batch.index[0]
    return batch


def moved(batch: Views, index_there: bool = True) -> Views:
    z1, z2 = (z.detach().to(DEVICE).requires_grad_() for z in batch[:2])
    return Views(z1, z2, *(t.to(DEVICE) if index_there else t for t in batch[2:]))


def step(loss_fn: Loss, batch: Views) -> tuple[Tensor, ...]:
    loss = batch.call(loss_fn)
    return loss, *torch.autograd.grad(loss, (batch.z1, batch.z2))


def assert_outcome(found: tuple[Tensor, ...], wanted: tuple[Tensor, ...]) -> None:
    for what, a, b in zip(("loss", "gradient of z1", "gradient of z2"), found, wanted, strict=True):
        # A copy of the temperature there divides; on the host a number multiplies. Losses are differences.
        assert_close(on_host(a), b, what, magnitude=10.0 if what == "loss" else 0.0)


@pytest.mark.parametrize("configuration", CONFIGURATIONS, ids=str)
@pytest.mark.parametrize("repeated", [False, True], ids=["distinct", "repeated"])
@pytest.mark.parametrize("index_there", [False, True], ids=["index on the host", "index there"])
def test_a_step_waits_for_nothing(configuration: Configuration, repeated: bool, index_there: bool, device: Accelerator) -> None:
    """It also gives what a step on the host gives, if it does not draw."""
    ours, theirs = configuration.make().double().to(DEVICE), configuration.make().double()
    for number in range(3):
        batch = batch_of(number, repeated)
        there = moved(batch, index_there)
        device.forget()
        found = step(ours, there)
        if number:  # the first step may move what later steps find there
            assert device.waits == []
            assert all(device.copies)
            if index_there:
                assert device.copies == []
            elif configuration.name not in BY_CLASS:
                assert len(device.copies) <= len(configuration.card.needs | {"index"})
        if configuration in STEPS:
            assert_outcome(found, step(theirs, batch))
        else:
            assert all(on_host(tensor).isfinite().all() for tensor in found)


@pytest.mark.parametrize("name", ["ntxent", "infonce", "dcl", "hcl"])
def test_no_anchor_without_a_loss_is_looked_for_where_all_have_one(name: str, device: Accelerator) -> None:
    batch, loss_fn = moved(batch_of(0)), zoo.get_loss(name)
    with Work() as known:
        loss = loss_fn(batch.z1, batch.z2)
    with Work() as unknown:
        loss_fn(batch.z1, batch.z2, index=batch.index)  # two of the samples could be equal
    assert "ne" not in known.seen
    assert "ne" in unknown.seen
    assert loss.isfinite()


@pytest.mark.parametrize("index_there", [False, True], ids=["index on the host", "index there"])
@pytest.mark.parametrize("configuration", [c for c in STEPS if "negatives" in c.card.uses], ids=str)
@pytest.mark.parametrize("shape", [(5, 6), (12, 5, 6)], ids=str)
def test_extra_negatives_wait_for_nothing(
    configuration: Configuration, shape: tuple[int, ...], index_there: bool, device: Accelerator
) -> None:
    negatives, positions = torch.randn(shape, dtype=torch.float64), torch.randint(0, 40, shape[:-1])
    ours, batch = configuration.make().double().to(DEVICE), batch_of(0)
    wanted = configuration.make().double()(*batch[:2], index=batch.index, negatives=negatives, negatives_index=positions)
    there, keys = moved(batch, index_there), negatives.to(DEVICE)
    positions = positions.to(DEVICE) if index_there else positions
    for _ in range(2):
        device.forget()
        found = ours(*there[:2], index=there.index, negatives=keys, negatives_index=positions)
        found.backward()
    assert device.waits == []
    assert device.copies == [] if index_there else len(device.copies) <= 2
    assert all(device.copies)
    assert_close(on_host(found), wanted.detach(), "loss")


def replayed(
    configuration: Configuration, device: Accelerator, temperatures: list[float]
) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
    """Outcome and state after two steps and a replay at each temperature; each replay takes another batch."""
    loss_fn, there = configuration.make().double().to(DEVICE), moved(batch_of(0))
    for _ in range(2):
        step(loss_fn, there)
    kept = snapshot(loss_fn)
    with device.recording() as replay:
        found = step(loss_fn, there)
    loss_fn.load_state_dict(kept)  # a capture does not run; the stand-in does
    for number, temperature in enumerate(temperatures, 1):
        with torch.no_grad():
            for held, new in zip(there, batch_of(number), strict=True):
                held.copy_(new)
        if "temperature" in configuration.card.parameters:
            loss_fn.temperature = temperature
        replay()
    return found, snapshot(loss_fn)


def test_a_temperature_there_is_overwritten_in_place(device: Accelerator) -> None:
    loss_fn = zoo.get_loss("ntxent", temperature=torch.tensor(0.5, device=DEVICE))
    held = loss_fn.temperature
    for new in (0.25, torch.tensor(0.125, device=DEVICE)):
        device.forget()
        loss_fn.temperature = new
        assert loss_fn.temperature is held
        assert device.waits == device.copies == []
        assert on_host(held) == (on_host(new) if isinstance(new, Tensor) else new)


@pytest.mark.parametrize("configuration", CONFIGURATIONS, ids=str)
def test_replays_are_steps(configuration: Configuration, device: Accelerator) -> None:
    """In value, gradients, tables and counters, with schedules, and a temperature that changes between replays.

    What draws is compared with steps there, everything else with steps on the host.
    """
    temperatures, draws = [0.3, 0.05, 0.8], configuration in DRAWING
    found, state = replayed(configuration, device, temperatures)
    theirs = configuration.make().double().to(DEVICE if draws else "cpu")

    def step_of(number: int) -> tuple[Tensor, ...]:
        batch = batch_of(number)
        return tuple(map(on_host, step(theirs, moved(batch)))) if draws else step(theirs, batch)

    for _ in range(2):
        step_of(0)
    for number, temperature in enumerate(temperatures, 1):
        if "temperature" in configuration.card.parameters:
            theirs.temperature = temperature
        wanted = step_of(number)
    assert_outcome(found, wanted)
    expected = theirs.state_dict()
    assert state.keys() == expected.keys()
    for name, tensor in state.items():
        assert_close(on_host(tensor), on_host(expected[name]), name)


@pytest.mark.parametrize("configuration", DRAWING, ids=str)
def test_replays_draw_anew(configuration: Configuration, device: Accelerator) -> None:
    """Of the same batch."""
    loss_fn, there = configuration.make().double().to(DEVICE), moved(batch_of(0))
    for _ in range(3):
        step(loss_fn, there)
    with device.recording() as replay:
        found = step(loss_fn, there)
    gradients = [on_host(found[1])]
    for _ in range(3):
        replay()
        gradients.append(on_host(found[1]))
    assert len({tuple(gradient.flatten().tolist()) for gradient in gradients}) == len(gradients)
