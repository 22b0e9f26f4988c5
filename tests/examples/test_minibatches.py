"""The experiment on mini-batches gives every selection the same start, steps and measure."""

import importlib
from itertools import chain
from types import ModuleType
from typing import Any

import pytest
import torch


@pytest.fixture
def minibatches() -> ModuleType:
    return importlib.import_module("minibatches")


def settings(selection: str) -> dict[str, Any]:
    return {"part": "digits", "selection": selection, "epochs": 2, "samples": 96, "batch_size": 8, "seed": 1}


def test_every_selection_gives_as_many_batches(minibatches: ModuleType) -> None:
    data = minibatches.digits.load(96, 48)
    model = minibatches.digits.Model()
    epochs = {}
    for name in minibatches.SELECTIONS:
        batches = minibatches.chosen(settings(name), data)
        epochs[name] = [[sorted(batch.tolist()) for batch in batches(epoch, model)] for epoch in range(2)]
        assert all(len(epoch) == 12 and {len(batch) for batch in epoch} == {8} for epoch in epochs[name])
    assert sorted(epochs["fixed"][0]) == sorted(epochs["fixed"][1])
    assert sorted(epochs["shuffle"][0]) != sorted(epochs["shuffle"][1])
    for name in ("shuffle", "spectral", "bisection"):  # partitions
        assert sorted(chain(*epochs[name][1])) == list(range(96))
    # Half of the batches of each of two passes: each pass keeps half of the samples.
    assert len(set(chain(*epochs["ordered"][0][:6]))) == 48


def test_measuring_leaves_no_trace(minibatches: ModuleType) -> None:
    data = minibatches.digits.load(96, 48)
    torch.manual_seed(0)
    model = minibatches.digits.Model()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    state = torch.get_rng_state()
    first, second = (minibatches.measure(model, data) for _ in range(2))
    assert first == second
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_vectors_come_to_the_least_loss_unless_batches_are_fixed(minibatches: ModuleType) -> None:
    run = {"part": "vectors", "dim": 16, "epochs": 301, "seed": 0}
    excess = {name: minibatches.do({**run, "selection": name})["excess"] for name in ("ordered", "fixed")}
    assert 0 < excess["ordered"] < 0.01
    assert excess["fixed"] > 0.1


def test_selections_begin_alike_and_go_their_own_ways(minibatches: ModuleType) -> None:
    runs = {name: minibatches.do(settings(name)) for name in minibatches.SELECTIONS}
    starts = [{**run["curve"][0], "cpu": 0} for run in runs.values()]
    assert all(start == starts[0] for start in starts)  # one model, one measure
    for run in runs.values():
        assert [point["epoch"] for point in run["curve"]] == [0, 2]
        assert 0 <= run["curve"][0]["cpu"] < run["curve"][1]["cpu"]
    assert len({run["loss"] for run in runs.values()}) == len(runs)
