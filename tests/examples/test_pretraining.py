"""Processes, resuming, settings and what is seen of a run of pretrain.py."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from nested import assert_same

import contrastive_zoo as zoo

ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "examples" / "recipes").glob("*.toml"))
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
TINY = ("--quick", "--backbone", "test_vit", "--norm", "group")


@pytest.fixture(autouse=True)
def _without_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    import pretrain

    for name in ("plot_training", "plot_embedding"):
        monkeypatch.setattr(pretrain, name, lambda *args: None)


def run(folder: Path, *options: str) -> list[float]:
    """Losses of a run."""
    import pretrain

    pretrain.main([*TINY, "--output", str(folder), *options])
    return losses(folder)


def losses(folder: Path) -> list[float]:
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


def last(folder: Path) -> dict[str, Any]:
    state = torch.load(max(folder.glob("checkpoint-*.pt")), weights_only=True)
    state.pop("settings")
    return state


def refusal(capsys: pytest.CaptureFixture[str], *options: str) -> str:
    import pretrain

    with pytest.raises(SystemExit) as caught:
        pretrain.main(options)
    assert caught.value.code == 2
    return capsys.readouterr().err


def stop_at(monkeypatch: pytest.MonkeyPatch, step: int, number: int) -> None:
    """Send this process a signal in the middle of a step."""
    from watching import Log

    record = Log.record

    def record_and_signal(log: Any, at: int, *figures: Any) -> bool:
        if at == step:
            os.kill(os.getpid(), number)
        return record(log, at, *figures)

    monkeypatch.setattr(Log, "record", record_and_signal)


@pytest.mark.parametrize(
    ("options", "saved"),
    [
        (("--loss", "sogclr", "--batch-sampler", "spectral", "--workers", "1"), 6),
        (("--loss", "emc2", "--accumulate", "4", "--optimizer", "momentum", "--ema", "0.9"), 8),
        (("--loss", "clip", "--amp", "bf16", "--chunk", "8", "--set", "init_scale=5.0"), 6),
    ],
    ids=lambda value: value[1] if isinstance(value, tuple) else "",
)
def test_signal_saves_in_the_middle_of_an_epoch_and_the_resumed_run_is_the_same(
    options: tuple[str, ...], saved: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import pretrain

    options = (*options, "--epochs", "3", "--batch-size", "32", "--log-every", "4")
    whole = run(tmp_path / "whole", *options)
    assert len(whole) == 12
    with monkeypatch.context() as patch:
        stop_at(patch, 5, signal.SIGTERM)
        with pytest.raises(SystemExit) as caught:
            run(tmp_path / "parts", *options)
    assert caught.value.code == 128 + signal.SIGTERM
    assert f"Stopped after {saved} of 12 steps" in capsys.readouterr().out
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert last(tmp_path / "parts")["step"] == saved
    assert not (tmp_path / "parts" / "results.json").exists()
    pretrain.main(["--resume", str(tmp_path / "parts")])
    assert losses(tmp_path / "parts") == whole
    assert_same(last(tmp_path / "whole"), last(tmp_path / "parts"))
    one, other = (json.loads((tmp_path / name / "results.json").read_text()) for name in ("whole", "parts"))
    for key in ("before", "after", "diagnostics", "steps"):
        assert one[key] == other[key]


def test_killed_runs_end_as_if_nobody_had_killed_them(tmp_path: Path) -> None:
    command = [
        sys.executable,
        str(ROOT / "tests/examples/killed.py"),
        "3",
        str(tmp_path),
        *TINY,
        "--epochs",
        "3",
        "--loss",
        "emc2",
    ]
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, timeout=400)
    assert done.stdout == "3 of 3 equal to the bit\n", done.stderr


def test_two_processes_give_the_curve_of_one(tmp_path: Path) -> None:
    """Tables, a batch sampler that looks at features, gradients that are accumulated, group normalisation."""
    options = ["--quick", "--backbone", "resnet10t", "--norm", "group", "--loss", "sogclr", "--batch-sampler", "spectral"]
    options += ["--accumulate", "2", "--lr", "2e-4", "--device", "cpu"]
    run(tmp_path / "one", *options)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command = [*launch, str(ROOT / "examples/pretrain.py"), *options, "--output", str(tmp_path / "two")]
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, timeout=400)
    assert done.returncode == 0, done.stderr[-3000:]
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-4, abs=5e-5)
    assert json.loads((tmp_path / "two" / "results.json").read_text())["processes"] == 2
    one, two = last(tmp_path / "one"), last(tmp_path / "two")
    assert_same(one["sampler"], two["sampler"])
    tables = [key for key, value in one["loss"].items() if value.dim()]
    assert tables
    for key in tables:
        torch.testing.assert_close(two["loss"][key], one["loss"][key], rtol=1e-3, atol=1e-3)
    for key, value in one["model"].items():
        torch.testing.assert_close(two["model"][key], value, rtol=1e-2, atol=2e-3)


def test_last_two_checkpoints_are_kept_and_nothing_unfinished(tmp_path: Path) -> None:
    (tmp_path / "checkpoint-00000001.unfinished").write_bytes(b"of a run that was killed")
    run(tmp_path, "--save-every", "3")
    names = sorted(path.name for path in tmp_path.glob("checkpoint-*"))
    assert names == ["checkpoint-00000006.pt", "checkpoint-00000008.pt"]


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "foreign", "not ours"])
def test_damaged_checkpoint_is_named_with_the_previous_one(
    damage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import checkpoints

    state = {key: {"weights": torch.arange(1000.0)} for key in checkpoints.PARTS}
    previous, path = (checkpoints.write(tmp_path, {**state, "step": step}) for step in (4, 8))
    content = bytearray(path.read_bytes())
    if damage == "not ours":
        torch.save({"epoch": 3}, path)
    else:
        content[len(content) // 2] ^= 1
        path.write_bytes({"cut": content[:-100], "flipped": content, "empty": b"", "foreign": b"PK weights"}[damage])
    said = refusal(capsys, "--resume", str(tmp_path))
    assert str(path) in said
    assert f"--resume {previous}" in said
    assert checkpoints.read(previous)["step"] == 4
    previous.unlink()
    assert "start anew" in refusal(capsys, "--resume", str(tmp_path))


def test_a_write_that_fails_leaves_the_checkpoint_before_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import checkpoints

    state = {key: {} for key in checkpoints.PARTS}
    checkpoints.write(tmp_path, {**state, "step": 1})

    def full(state: Any, file: Any) -> None:
        file.write(b"half")
        raise OSError("disk is full")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="full"):
        checkpoints.write(tmp_path, {**state, "step": 2})
    monkeypatch.undo()
    assert checkpoints.newest(str(tmp_path)).name == "checkpoint-00000001.pt"
    assert checkpoints.read(checkpoints.newest(str(tmp_path)))["step"] == 1


def test_resumed_run_may_change_how_it_runs_but_not_what_it_computes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import pretrain

    first = run(tmp_path, "--epochs", "1")
    assert "seed = 0, which cannot become 5" in refusal(capsys, "--resume", str(tmp_path), "--seed", "5")
    pretrain.main(["--resume", str(tmp_path), "--epochs", "2", "--save-every", "3"])
    assert losses(tmp_path)[:4] == first
    assert len(losses(tmp_path)) == 8


def test_time_limit_stops_and_is_no_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import pretrain

    with pytest.raises(SystemExit) as caught:
        run(tmp_path, "--stop-after", "0")
    assert caught.value.code == 0
    assert "Stopped after 1 of 8" in capsys.readouterr().out
    pretrain.main(["--resume", str(tmp_path)])
    assert len(losses(tmp_path)) == 8


def test_log_of_steps_that_are_done_again_is_dropped(tmp_path: Path) -> None:
    from watching import read_log

    lines = [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0}]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 3, "lo')
    assert read_log(tmp_path) == lines
    (tmp_path / "log.jsonl").write_text('{"step": \n{"step": 2}\n')
    with pytest.raises(json.JSONDecodeError):
        read_log(tmp_path)


def test_chunks_give_the_curve_of_whole_batches(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole")
    assert run(tmp_path / "chunks", "--chunk", "8") == pytest.approx(whole, rel=1e-4)


def test_compiled_model_gives_the_curve_of_the_plain_one(tmp_path: Path) -> None:
    plain = run(tmp_path / "plain", "--no-channels-last")
    assert run(tmp_path / "compiled", "--compile", "eager", "--no-channels-last") == pytest.approx(plain, rel=1e-4)


def test_float16_scales_the_loss_and_leaves_out_steps_that_overflow(tmp_path: Path) -> None:
    plain = run(tmp_path / "plain", "--lr", "1e-4")
    half = run(tmp_path / "half", "--lr", "1e-4", "--amp", "fp16")
    assert half[0] == pytest.approx(plain[0], rel=0.01)
    assert half == pytest.approx(plain, rel=0.1)
    scaler = last(tmp_path / "half")["scaler"]
    assert scaler["_growth_tracker"] > 0  # steps in a row without overflow
    assert last(tmp_path / "plain")["scaler"] == {}


def test_moving_average_follows_the_weights_and_is_evaluated(tmp_path: Path) -> None:
    run(tmp_path / "still", "--ema", "1.0")
    still = json.loads((tmp_path / "still" / "results.json").read_text())
    assert still["before"] == still["after"]  # the average never moves
    run(tmp_path / "same", "--ema", "0.0")
    state = last(tmp_path / "same")
    assert_same(state["average"], state["model"])


def test_learning_rate_rises_falls_and_scales_with_the_batch(tmp_path: Path) -> None:
    from argparse import Namespace

    from training import peak_rate

    run(tmp_path, "--epochs", "5", "--warmup", "1", "--lr", "0.01", "--lr-scale", "linear", "--accumulate", "2")
    rates = [json.loads(line)["lr"] for line in (tmp_path / "log.jsonl").read_text().splitlines() if '"loss"' in line]
    peak = 0.01 * 32 * 2 / 256
    assert 0.85 * peak < max(rates) <= peak
    assert rates[0] == rates[1] == pytest.approx(peak / 2)
    assert 0 < rates[-1] < 0.1 * peak
    assert rates[4:] == sorted(rates[4:], reverse=True)
    args = {"lr": 1.0, "accumulate": 1}
    assert [peak_rate(Namespace(**args, lr_scale=scale), 1024) for scale in ("none", "linear", "sqrt")] == [1, 4, 2]


def test_clipping_bounds_the_step(tmp_path: Path) -> None:
    free = run(tmp_path / "free", "--optimizer", "momentum", "--momentum", "0", "--lr", "1", "--weight-decay", "0")
    clipped = ("--optimizer", "momentum", "--momentum", "0", "--lr", "1", "--weight-decay", "0", "--clip", "1e-4")
    bound = run(tmp_path / "clipped", *clipped)
    assert bound[0] == free[0]
    moved = [
        float((last(tmp_path / name)["model"]["head.3.weight"] - last(tmp_path / name)["model"]["head.3.weight"].mean()).norm())
        for name in ("free", "clipped")
    ]
    assert moved[0] != pytest.approx(moved[1], rel=1e-3)


def test_loss_that_is_no_number_stops_and_says_where_it_came_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from watching import Log

    record = Log.record

    def broken(log: Any, step: int, loss: torch.Tensor, *rest: Any) -> bool:
        if step == 2:
            with torch.no_grad():
                log.run.model.encoder.norm.weight[0] = torch.nan
        return record(log, step, loss, *rest)

    monkeypatch.setattr(Log, "record", broken)
    with pytest.raises(SystemExit) as caught:
        run(tmp_path, "--save-every", "2")
    said = str(caught.value.code)
    assert "Projections are not finite at step 4. The last step with finite numbers was 3" in said
    assert "parameter encoder.norm.weight is not finite" in said
    assert f"--resume {tmp_path}" in said
    state = last(tmp_path)
    assert state["step"] == 2
    assert all(value.isfinite().all() for value in state["model"].values())


def test_objective_whose_value_is_no_number_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pretrain

    forward_backward = pretrain.forward_backward

    def broken(run: Any, step: int, *rest: Any) -> torch.Tensor:
        return forward_backward(run, step, *rest) * (torch.inf if step == 2 else 1)

    monkeypatch.setattr(pretrain, "forward_backward", broken)
    with pytest.raises(SystemExit) as caught:
        run(tmp_path)
    assert "The loss is inf at step 3" in str(caught.value.code)
    assert "it comes from the objective" in str(caught.value.code)


def test_origin_of_what_is_not_finite() -> None:
    from watching import origin

    images = torch.randn(4, 3)
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2))
    loss_fn = zoo.get_loss("clip")
    assert origin(model, images, loss_fn) is None
    assert "images of the batch" in origin(model, images * torch.inf, loss_fn)
    with torch.no_grad():
        model[0].weight.fill_(1e38)
    assert "first layer whose output is not is 0 (Linear)" in origin(model, images.abs() + 10, loss_fn)
    with torch.no_grad():
        model[2].bias[0] = torch.nan
    assert "parameter 2.bias" in origin(model, images, loss_fn)
    with torch.no_grad():
        loss_fn.objective.logit_scale.fill_(torch.inf)
        model[2].bias[0] = 0
        model[0].weight.fill_(1)
    assert "parameter loss.objective.logit_scale" in origin(model, images, loss_fn)


def test_collapse_warns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pretrain
    from common import collapsed

    assert collapsed({"effective_rank": 1.1, "uniformity": -3}) is not None
    assert collapsed({"effective_rank": 40, "uniformity": -0.001}) is not None
    assert collapsed({"effective_rank": 40, "uniformity": -3}) is None
    monkeypatch.setattr(pretrain, "SETTLED", 1)
    monkeypatch.setattr(pretrain, "collapsed", lambda figures: "the projections lie in one place")
    with pytest.warns(UserWarning, match="Collapse after 4 steps: the projections lie in one place"):
        run(tmp_path, "--epochs", "1")


def test_command_line_goes_over_file_and_file_over_defaults(tmp_path: Path) -> None:
    from settings import build_parser, read_settings

    file = tmp_path / "recipe.toml"
    file.write_text('epochs = 7\nbatch-size = 64\nsmall_stem = true\n[set]\ntemperature = 0.3\n[paper]\nreports = "90 %"\n')
    args = read_settings(build_parser(None), ["--config", str(file), "--batch-size", "16", "--set", "temperature=0.5"])
    assert (args.epochs, args.batch_size, args.small_stem, args.lr) == (7, 16, True, 2e-3)
    assert args.set == ["temperature=0.3", "temperature=0.5"]  # the later one counts
    assert args.paper == {"reports": "90 %"}
    assert not read_settings(build_parser(None), ["--config", str(file), "--no-small-stem"]).small_stem


def test_settings_are_saved_as_a_file_that_gives_the_same_run(tmp_path: Path) -> None:
    first = run(tmp_path / "first", "--loss", "dcl", "--set", "temperature=0.3", "--seed", "4", "--no-channels-last")
    import pretrain

    pretrain.main(["--config", str(tmp_path / "first" / "settings.toml"), "--output", str(tmp_path / "second")])
    assert losses(tmp_path / "second") == first


@pytest.mark.parametrize(
    ("text", "answer"),
    [("epoch = 3", "no setting 'epoch'. Closest: epochs"), ("epochs = ", "--config"), ('epochs = "many"', "invalid int value")],
)
def test_file_that_cannot_be_met_is_answered(
    text: str, answer: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "recipe.toml").write_text(text)
    assert answer in refusal(capsys, "--config", str(tmp_path / "recipe.toml"))


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_recipe_parses_and_dry_runs(
    recipe: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pretrain

    monkeypatch.chdir(tmp_path)
    options = ["--image-size", "64"] if "imagenet" in recipe.stem else []  # a ResNet-50 at 224 takes its time
    assert pretrain.main(["--config", str(recipe), "--dry-run", *options]) == {}
    said = capsys.readouterr().out
    for line in ("data", "model", "objective", "steps", "optimizer", "memory", "paper", "code", "reports", "confirmed"):
        assert f"\n{line} " in "\n" + said
    assert "sizes as published" in said
    assert not list(tmp_path.iterdir())


def test_there_are_recipes_of_each_paper() -> None:
    names = {path.stem for path in RECIPES}
    assert names >= {"emc2_stl10", "emc2_imagenet100", "sogclr_imagenet", "simclr_cifar10", "hard_negatives_cifar100"}
    assert names >= {"minibatch_cifar100", "minibatch_tiny_imagenet", "dhel_cifar10", "kcl_stl10"}


def test_dry_run_counts_what_the_run_does(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import pretrain

    pretrain.main(["--dry-run", "--epochs", "3", "--batch-size", "128", "--accumulate", "2"])
    said = capsys.readouterr().out
    assert "3 epochs of 11 batches of 128 images: 17 updates" in said
    assert "1,437 images to learn from, 360 held out" in said
    pretrain.main(["--dry-run", "--chunk", "16", "--batch-size", "128"])
    assert "activations of 16 images" in capsys.readouterr().out
