import json
import runpy
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.image import imread
from nested import assert_same

import contrastive_zoo as zoo

EXAMPLES = Path(__file__).parents[2] / "examples"
TINY = "test_vit"


@pytest.fixture
def without_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    """For runs whose plots are not looked at: drawing takes longer than a quick run."""
    import pretrain

    for name in ("plot_training", "plot_embedding"):
        monkeypatch.setattr(pretrain, name, lambda *args: None)


def run(*options: str, output: Path) -> dict[str, Any]:
    import pretrain

    return pretrain.main(["--quick", "--backbone", TINY, "--output", str(output), *options])


def history(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def losses_of(folder: Path) -> list[float]:
    return [line["loss"] for line in history(folder) if "loss" in line]


def refusal(capsys: pytest.CaptureFixture[str], *options: str) -> str:
    """What a run that must end with exit code 2 says."""
    import pretrain

    with pytest.raises(SystemExit) as caught:
        pretrain.main(options)
    assert caught.value.code == 2
    said = capsys.readouterr().err
    assert "Traceback" not in said
    return said


def assert_shows_something(plot: Path) -> None:
    drawn = np.ptp(imread(plot)[:, :, :3], axis=2) > 0.1  # text and axes are grey, data are in colour
    assert 0.001 < drawn.mean() < 0.5


def test_default_backbone_learns_and_everything_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = run("--backbone", "resnet10t", "--epochs", "3", output=tmp_path)
    assert results == json.loads((tmp_path / "results.json").read_text())
    written = {path.name for path in tmp_path.iterdir()}
    assert written >= {"settings.toml", "log.jsonl", "checkpoint-00000012.pt", "training.png", "embedding.png"}
    assert list(tmp_path.glob("events.out.tfevents.*"))
    for plot in tmp_path.glob("*.png"):
        assert_shows_something(plot)
    assert (results["training_images"], results["held_out_images"]) == (128, 64)
    losses = np.reshape(losses_of(tmp_path), (3, 4)).mean(1)
    assert losses[0] > losses[1] > losses[2]
    evaluations = [line for line in history(tmp_path) if "knn" in line]
    assert [line["epoch"] for line in evaluations] == [0, 1, 2, 3]
    for when, epoch in (("before", 0), ("after", 3)):
        assert results[when].keys() == {"knn", "linear_probe", "class_mean", "alignment", "uniformity", "effective_rank"}
        assert evaluations[epoch] == {"step": 4 * epoch, "epoch": epoch, **results[when]}
        assert results[when]["linear_probe"] > 0.5
    assert results["after"]["uniformity"] < results["before"]["uniformity"] < 0
    printed = capsys.readouterr().out
    assert f"{results['before']['knn']:.2%}" in printed
    assert f"{results['after']['knn']:.2%}" in printed


def test_comparison_of_states_notices_a_difference() -> None:
    state = {"a": [torch.zeros(2), 1]}
    for other in ({"a": [torch.tensor([0, 1e-30]), 1]}, {"a": [torch.zeros(2), 2]}, {"b": [torch.zeros(2), 1]}):
        with pytest.raises(AssertionError):
            assert_same(state, other)


def test_weight_of_the_newest_value_falls_unless_it_is_given(tmp_path: Path) -> None:
    from common import build_loss

    assert build_loss("sogclr", [], num_samples=8, steps=10, seed=0).objective.gamma == zoo.CosineSchedule(1.0, 0.2, steps=10)
    assert build_loss("sogclr", ["gamma=0.5"], num_samples=8, steps=10, seed=0).objective.gamma == 0.5
    # The gamma of a kernel's energy is no moving average's.
    assert build_loss("kcl", [], num_samples=8, steps=10, seed=0).objective.parameters_given["gamma"] == 16.0


def test_tensorboard_is_optional(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import watching

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    assert watching.tensorboard(str(tmp_path)) is None


def test_parameters_are_python_literals_or_text() -> None:
    from settings import parse_params

    given = ["temperature=0.2", "symmetric=False", "kernel=log", "burn_in=1e-1", "x=a=b"]
    wanted = {"temperature": 0.2, "symmetric": False, "kernel": "log", "burn_in": 0.1, "x": "a=b"}
    assert parse_params(given) == wanted


@pytest.mark.parametrize("name", zoo.list_batch_samplers())
def test_any_batch_sampler(name: str) -> None:
    from argparse import Namespace

    from training import build_sampler

    sampler = build_sampler(Namespace(batch_sampler=name, batch_size=None, batch_sampler_option=[], seed=0), 300)
    assert {len(batch) for batch in sampler} == {300 if name == "full" else 256}


def test_folder_of_images_with_workers_and_a_transformer(folder_of_images: Path, tmp_path: Path) -> None:
    options = ("--data", str(folder_of_images), "--image-size", "32", "--batch-size", "8", "--workers", "1")
    results = run(*options, "--loss", "dhel", output=tmp_path)
    assert (results["training_images"], results["held_out_images"]) == (32, 8)
    assert results["after"]["linear_probe"] == 1.0  # red or blue
    assert_shows_something(tmp_path / "embedding.png")


@pytest.mark.parametrize(
    ("options", "answers"),
    [
        (("--loss", "ntxnet"), ("Did you mean 'ntxent'",)),
        (("--set", "temprature=0.2"), ("no parameter 'temprature'", "temperature")),
        (("--set", "temperature=-1"), ("temperature must be", "-1")),
        (("--set", "temperature"), ("name=value",)),
        (("--loss", "kcl", "--set", "kernel=gausian"), ("kernel must be one of 'gaussian'", "'gausian'")),
        (("--backbone", "resnet10x"), ("resnet10t",)),
        (("--batch-sampler", "shufle"), ("Did you mean 'shuffle'",)),
        (("--optimizer", "adamx"), ("no optimizer 'adamx'",)),
        (("--optimizer-option", "trust=1"), ("--optimizer adamw", "trust")),
        (("--schedule", "cosin"), ("--schedule cosin",)),
        (("--batch-sampler-option", "j=1"), ("'j'",)),
        (("--norm", "sync", "--device", "cpu"), ("--norm sync", "--norm group")),
        (("--norm", "group", "--backbone", "test_byobnet"), ("--norm group",)),
        (("--small-stem", "--backbone", "test_vit"), ("no conv1 and maxpool",)),
        (("--accumulate", "0"), ("--accumulate must be at least 1, got 0",)),
        (("--config", "no/such.toml", "--resume", "no/such/run"), ("leave out --config",)),
        (("--config", "no/such.toml"), ("no/such.toml",)),
        (("--views", "moco"), ("digits are grey",)),
        (("--batch-size", "2000"), ("batch_size must be at most num_samples = 1437, got 2000",)),
        (("--data", "no/such/folder"), ("no/such/folder", "digits, cifar10")),
        (("--data", "cifar10", "--root", "no/such/folder"), ("no/such/folder", "--download")),
        (("--device", "gpu"), ("--device gpu",)),
        (("--resume", "no/such/run"), ("no/such/run/checkpoint-",)),
    ],
    ids=lambda value: " ".join(value) if value[0].startswith("--") else "",
)
def test_a_setting_that_cannot_be_met_is_answered(
    options: tuple[str, ...],
    answers: tuple[str, ...],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    said = refusal(capsys, *options)
    assert all(answer in said for answer in answers), said
    assert not list(tmp_path.iterdir())


def compared(folder: Path, *options: str) -> list[dict[str, Any]]:
    import compare

    return compare.main(["--quick", "--data", "digits", "--epochs", "1", "--backbone", TINY, "--output", str(folder), *options])


@pytest.mark.usefixtures("without_plots")
def test_every_objective_gets_a_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = compared(tmp_path, "--seeds", "1")
    assert [row["loss"] for row in rows] == ["before training", *zoo.list_losses()]
    assert all(row["milliseconds"] > 0 for row in rows[1:])
    assert json.loads((tmp_path / "comparison.json").read_text())["rows"] == rows
    assert_shows_something(tmp_path / "comparison.png")
    markdown = (tmp_path / "comparison.md").read_text().splitlines()
    assert len(markdown) == len(rows) + 2
    assert len({line.count("|") for line in markdown}) == 1
    printed = capsys.readouterr().out
    assert all(f"{row['mean']['knn']:.2%}" in printed for row in rows)
    # All start from one encoder: what comes before training is the same for each.
    before = {
        json.dumps(json.loads((tmp_path / f"{name}-0" / "results.json").read_text())["before"]) for name in zoo.list_losses()
    }
    assert len(before) == 1


@pytest.mark.usefixtures("without_plots")
def test_comparison_goes_on_where_it_was_and_tells_the_spread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import pretrain

    few = ("--losses", "dcl", "ntxent", "--seeds", "2", "--save-every", "1")
    whole = compared(tmp_path / "whole", *few)
    evaluated = [json.loads((tmp_path / "whole" / f"dcl-{seed}" / "results.json").read_text())["after"] for seed in (0, 1)]
    for key, value in whole[1]["mean"].items():
        one, other = (figures[key] for figures in evaluated)
        assert value == pytest.approx((one + other) / 2)
        assert whole[1]["spread"][key] == pytest.approx(abs(one - other) / 2**0.5)
    assert "±" in (tmp_path / "whole" / "comparison.md").read_text()

    step, calls = pretrain.train_step, []

    def step_and_stop(*given: Any) -> bool:
        calls.append(given)
        if len(calls) == 11:  # in the third of four runs
            raise KeyboardInterrupt
        return step(*given)

    monkeypatch.setattr(pretrain, "train_step", step_and_stop)
    with pytest.raises(KeyboardInterrupt):
        compared(tmp_path / "parts", *few)
    parts = compared(tmp_path / "parts", *few)
    assert len(calls) == 11 + 16 - 10  # nothing is trained twice
    for one, other in zip(whole, parts, strict=True):
        assert_same(*({key: row[key] for key in ("loss", "mean", "spread")} for row in (one, other)))
    with pytest.raises(SystemExit):
        compared(tmp_path / "parts", *few, "--lr", "0.1")
    assert "the comparison there has lr = 0.002, not 0.1" in capsys.readouterr().err


def test_a_name_is_checked_before_anything_is_trained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import compare

    with pytest.raises(SystemExit) as caught:
        compare.main(["--losses", "ntxent", "dlc", "--output", str(tmp_path / "runs")])
    assert caught.value.code == 2
    assert "Did you mean 'dcl'" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


@pytest.mark.usefixtures("_clean_registries", "without_plots")
def test_objective_is_registered_and_trained_with(tmp_path: Path) -> None:
    example = runpy.run_path(str(EXAMPLES / "your_objective.py"))
    z1, z2 = torch.randn(2, 8, 4)
    without_margin = zoo.get_loss("additive_margin", margin=0.0)(z1, z2)
    assert torch.allclose(without_margin, zoo.get_loss("ntxent")(z1, z2))
    options = ["--quick", "--epochs", "1", "--backbone", TINY, "--set", "margin=0.2", "--output", str(tmp_path)]
    results = example["main"](options)
    assert results["loss"] == "additive_margin"
    assert results["settings"]["set"] == ["margin=0.2"]
