"""The experiment on hard negatives sees features as the loss does, and runs."""

import importlib
from pathlib import Path
from types import ModuleType

import pytest
import torch

import contrastive_zoo as zoo

FOLDER = Path(__file__).parents[2] / "examples" / "reproduce"


@pytest.fixture
def hard_negatives(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(FOLDER)
    return importlib.import_module("hard_negatives")


def test_what_is_measured_is_what_the_loss_sees(hard_negatives: ModuleType) -> None:
    rows, labels = torch.randn(12, 3, dtype=torch.float64), torch.arange(12) % 4
    for name in hard_negatives.NORMALISATIONS:
        seen = zoo.get_loss("hscl", beta=2, normalize=False)(hard_negatives.project(rows, name), labels=labels)
        torch.testing.assert_close(hard_negatives.hscl(2, name)(rows, labels=labels), seen)


def test_a_simplex_has_the_least_loss_and_uses_all_dimensions(hard_negatives: ModuleType) -> None:
    corners = torch.eye(10, dtype=torch.float64) - 0.1
    rows, labels = corners.repeat(3, 1), torch.arange(10).repeat(3)
    for beta in hard_negatives.BETAS:
        loss = hard_negatives.hscl(beta, "sphere")(rows, labels=labels)
        assert float(loss) == pytest.approx(hard_negatives.least_loss())
    means = hard_negatives.class_means(rows, labels)
    assert zoo.metrics.effective_rank(means - means.mean(0)) == pytest.approx(9, abs=1e-3)


def test_quick_run(hard_negatives: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = hard_negatives.main(["--quick", "--output", str(tmp_path)])
    assert len(results) == 2 * len(hard_negatives.BETAS) * len(hard_negatives.NORMALISATIONS)
    shown = capsys.readouterr().out
    assert shown.index("minutes on") < shown.index("| normalisation")
    assert {path.name for path in tmp_path.iterdir()} == {"runs", *(f"hard_negatives.{end}" for end in ("svg", "json", "md"))}
    # The same model and images at the start, whatever the loss.
    starts = [result["curve"][0] for result in results if result["seed"] == 1 and result["normalisation"] == "ball"]
    assert all(start == starts[0] for start in starts)
    first, *_ = hard_negatives.claims(results)
    assert first.verdict == "holds"
    assert all(9 >= result["dimensions"] >= 1 and len(result["spectrum"]) == 9 for result in results)
