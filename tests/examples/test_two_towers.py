"""two_towers.py trains an encoder for each of two modalities."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch


@pytest.mark.parametrize(
    "options",
    [("--loss", "clip"), ("--loss", "siglip"), ("--loss", "sogclr", "--set", "intra_view=False")],
    ids=lambda options: options[1],
)
def test_losses_of_two_modalities(options: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import two_towers

    results = two_towers.main(["--quick", "--backbone", "test_vit", "--output", str(tmp_path), *options])
    written = json.loads((tmp_path / "results.json").read_text())
    assert {key: written[key] for key in results} == results
    assert len(results["losses"]) == 8
    assert np.isfinite(results["losses"]).all()
    names = {f"{way}_top_{k}" for way in ("picture_to_scan", "scan_to_picture") for k in (1, 5)}
    assert results["before"].keys() == results["after"].keys() == names
    assert f"{options[1]}: 8 steps" in capsys.readouterr().out


def test_towers_learn_which_scan_belongs_to_which_picture(tmp_path: Path) -> None:
    import two_towers

    options = ["--quick", "--backbone", "test_vit", "--loss", "clip", "--output", str(tmp_path)]
    results = two_towers.main([*options, "--lr", "0.003"])
    assert np.mean(results["losses"][4:]) < np.mean(results["losses"][:4])


def test_scan_is_the_digit_of_the_picture() -> None:
    from cluttered_digits import cluttered_digits
    from sklearn.datasets import load_digits
    from two_towers import pairs

    part, _ = cluttered_digits(3, train=50, held_out=10)
    made = pairs(part)
    assert made.scans.shape == (50, 64)
    assert torch.equal((made.scans + 1) * 8, torch.from_numpy(load_digits().data[part.digits]).float())
    assert np.array_equal(load_digits().target[part.digits], part.labels)


def test_objectives_that_need_labels_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    import two_towers

    with pytest.raises(SystemExit) as caught:
        two_towers.main(["--quick", "--backbone", "test_vit", "--loss", "supcon"])
    assert caught.value.code == 2
    assert "pairs have none" in capsys.readouterr().err
