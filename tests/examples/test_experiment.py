"""What the experiments on the papers' claims share: runs that can be interrupted, differences, verdicts, small digits."""

import argparse
import importlib
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import ttest_rel

import contrastive_zoo as zoo


@pytest.fixture
def experiment() -> ModuleType:
    return importlib.import_module("experiment")


def settings(folder: Path) -> argparse.Namespace:
    return argparse.Namespace(output=folder, quick=True, workers=1, seeds=3)


def runs(level: int) -> list[dict[str, Any]]:
    return [{"loss": "dcl", "level": level, "seed": seed} for seed in range(3)]


def test_an_interrupted_experiment_goes_on_where_it_was(experiment: ModuleType, tmp_path: Path) -> None:
    done = []

    def work(run: dict[str, Any]) -> dict[str, float]:
        if run["seed"] == 2 and len(done) == 2:
            done.append("interrupted")
            raise KeyboardInterrupt
        done.append(run["seed"])
        return {"figure": 10.0 * run["seed"]}

    with pytest.raises(KeyboardInterrupt):
        experiment.carry_out(runs(1), work, lambda run: 1.0, settings(tmp_path))
    found = experiment.carry_out(runs(1), work, lambda run: 1.0, settings(tmp_path))
    assert done == [0, 1, "interrupted", 2]
    assert experiment.values(found, "figure", loss="dcl").tolist() == [0, 10, 20]
    # Other settings are other runs.
    experiment.carry_out(runs(2), work, lambda run: 1.0, settings(tmp_path))
    assert done[4:] == [0, 1, 2]


def test_the_budget_stands_before_the_runs(experiment: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    printed = []

    def work(run: dict[str, Any]) -> dict[str, float]:
        printed.append(capsys.readouterr().out)
        return {}

    experiment.carry_out(runs(1), work, lambda run: 90.0, settings(tmp_path))
    assert printed[0].startswith("3 runs, 0 of them done before: about 4.5 minutes")


def test_a_difference_holds_where_a_paired_test_says_so(experiment: ModuleType) -> None:
    generator = np.random.default_rng(0)
    verdicts = set()
    for shift in (-3.0, 0.0, 0.2, 3.0):
        first, second = generator.normal(shift, 1, 5), generator.normal(0, 1, 5)
        found, wanted = experiment.difference(first, second), ttest_rel(first, second)
        interval = wanted.confidence_interval(0.95)
        assert found.mean - found.half == pytest.approx(interval.low)
        assert found.mean + found.half == pytest.approx(interval.high)
        significant = wanted.pvalue < 0.05
        expected = ("holds" if found.mean > 0 else "the opposite shows") if significant else "does not show"
        assert found.verdict() == expected
        verdicts.add(expected)
    assert len(verdicts) == 3


def test_below_a_margin(experiment: ModuleType) -> None:
    assert experiment.Difference(0.2, 0.1).below(0.5) == "holds"
    assert experiment.Difference(-2.0, 0.4).below(0.5) == "holds"
    assert experiment.Difference(0.2, 0.4).below(0.5) == "does not show"
    assert experiment.Difference(2.0, 0.4).below(0.5) == "the opposite shows"


def test_one_seed_shows_nothing(experiment: ModuleType) -> None:
    assert experiment.difference([3.0], [1.0]).verdict() == "does not show"


def test_what_is_written(experiment: ModuleType, tmp_path: Path) -> None:
    results = [{**run, "seconds": 60.0} for run in runs(1)]
    claims = [experiment.Claim("Small is beautiful.", "holds", "+1 ± 0.5")]
    text = experiment.write("small", settings(tmp_path), results, experiment.table(["a"], [["1"]]), claims)
    assert (tmp_path / "small.md").read_text() == text
    assert "| Small is beautiful. | holds | +1 ± 0.5 |" in text
    assert "examples/reproduce/small.py" in text
    assert "seeds 0, 1, 2. The runs took 3.0 minutes in all, 1 at a time" in text
    assert experiment.machine() in text
    assert json.loads((tmp_path / "small.json").read_text())["runs"] == results


def test_small_digits_are_learned_from(experiment: ModuleType) -> None:
    digits = importlib.import_module("digits")
    data = digits.load(64, 32)
    assert data.images.shape == (64, 2, 3, 16, 16)
    losses = []

    def watch(epoch: int, model: torch.nn.Module) -> None:
        losses.append(zoo.metrics.global_contrastive_loss(*digits.projections(model, data), temperature=0.5))

    loss_fn = zoo.get_loss("dcl", temperature=0.5)
    model = digits.train(loss_fn, data, batch_size=16, epochs=10, seed=0, watch=watch)
    assert len(losses) == 11
    assert losses[-1] < losses[0] - 0.1
    assert set(digits.accuracies(model, data)) == {"knn", "linear_probe"}
    again = digits.train(loss_fn, data, batch_size=16, epochs=10, seed=0)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), again.parameters(), strict=True))


def test_views_keep_their_image(experiment: ModuleType) -> None:
    """A moved image is a part of the image, up to gain and level of each colour."""
    digits = importlib.import_module("digits")
    images = torch.randint(0, 256, (5, 3, 16, 16), dtype=torch.uint8)
    views = digits.shifted(images, torch.Generator().manual_seed(0))
    assert views.shape == images.shape
    for image, view in zip(images.float(), views, strict=True):
        fits = []
        for down in (-1, 0, 1):
            for right in (-1, 0, 1):
                moved = image[:, 1 + down : 15 + down, 1 + right : 15 + right]
                inner = view[:, 1:15, 1:15]
                fits.append(
                    min(
                        float(torch.corrcoef(torch.stack([m.flatten(), v.flatten()]))[0, 1])
                        for m, v in zip(moved, inner, strict=True)
                    )
                )
        assert max(fits) == pytest.approx(1, abs=1e-4)
