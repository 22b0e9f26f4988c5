"""The experiment on mini-batches gives every selection the same start, steps and measure, and runs."""

import importlib
from itertools import chain
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

FOLDER = Path(__file__).parents[2] / "examples" / "reproduce"


@pytest.fixture
def minibatches(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(FOLDER)
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


def test_quick_run(minibatches: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = minibatches.main(["--quick", "--output", str(tmp_path)])
    shown = capsys.readouterr().out
    assert shown.index("minutes on") < shown.index("| `bisection` |")
    assert {path.name for path in tmp_path.iterdir()} == {"runs", *(f"minibatches.{end}" for end in ("svg", "json", "md"))}
    runs = {result["selection"]: result for result in results if result["part"] == "digits" and result["seed"] == 0}
    assert set(runs) == set(minibatches.SELECTIONS)
    starts = [{**run["curve"][0], "cpu": 0} for run in runs.values()]
    assert all(start == starts[0] for start in starts)  # one model, one measure
    for run in runs.values():
        assert [point["epoch"] for point in run["curve"]] == [0, 2]
        assert 0 <= run["curve"][0]["cpu"] < run["curve"][1]["cpu"]
    # Each is trained on batches of its own; the first epoch of shuffle is what fixed repeats.
    assert len({run["loss"] for name, run in runs.items() if name != "fixed"}) == len(runs) - 1
