"""The example on digits runs, measures and draws."""

import runpy
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[2] / "examples" / "reproduce" / "minibatch_digits.py"


def test_quick_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    example: dict[str, Any] = runpy.run_path(str(SCRIPT))
    runs = example["main"](["--quick", "--backbone", "test_vit", "--output", str(tmp_path)])
    assert set(runs) == set(example["SELECTIONS"])
    starts = [run[0] for seeds in runs.values() for run in seeds]
    assert all(start == starts[0] for start in starts)  # one model, one measure
    for (run,) in runs.values():
        assert [point["step"] for point in run] == [0, 3, 6]
        assert run[0]["seconds"] == 0 < run[1]["seconds"] < run[2]["seconds"]
        assert all(0 <= point[key] <= 100 for point in run for key in ("clean", "corrupted"))
    # Each is trained on batches of its own; the first epoch of shuffle is what fixed repeats.
    assert len({runs[name][0][-1]["loss"] for name in set(runs) - {"fixed"}}) == len(runs) - 1
    assert {path.suffix for path in tmp_path.iterdir()} == {".svg", ".json"}
    assert "| `bisection` |" in capsys.readouterr().out
