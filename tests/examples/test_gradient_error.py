"""The picture of gradient errors is drawn, and says what was measured."""

import json
import runpy
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "examples" / "reproduce" / "gradient_error.py"


def test_a_quick_run_draws_every_method(tmp_path: Path) -> None:
    results = runpy.run_path(str(SCRIPT))["main"](["--quick", "--output", str(tmp_path)])
    assert set(results) == {"batch size", "temperature", "gamma of sogclr", "burn_in of emc2"}
    assert set(results["batch size"]) >= {"ntxent", "dcl", "sogclr", "emc2", "emc2, encode", "negative_cache"}
    for curves in results.values():
        for points in curves.values():
            assert len(points) == 2
            assert all(-1 <= cosine <= 1 and length > 0 for _, cosine, length in points)
    written = json.loads((tmp_path / "gradient_error.json").read_text())
    assert {title: set(curves) for title, curves in written.items()} == {t: set(c) for t, c in results.items()}
    # Batches of the whole set: the in-batch loss without the positive is the global loss.
    (_, small, _), (size, cosine, length) = results["batch size"]["dcl"]
    assert size == 32
    assert cosine == pytest.approx(1, abs=1e-4)
    assert length == pytest.approx(1, abs=1e-3)
    assert small < cosine
    picture = (tmp_path / "gradient_error.svg").read_text()
    assert all(method in picture for method in results["batch size"])


def test_a_feature_set_that_cannot_be_made(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        runpy.run_path(str(SCRIPT))["main"](["--samples", "33"])
    assert caught.value.code == 2
    assert "--samples 33: a multiple of 8" in capsys.readouterr().err
