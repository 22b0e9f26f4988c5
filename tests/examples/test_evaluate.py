"""evaluate.py measures what a run, a checkpoint or a model of timm is worth."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.image import imread

import contrastive_zoo as zoo


@pytest.fixture
def finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    import pretrain

    for name in ("plot_training", "plot_embedding"):
        monkeypatch.setattr(pretrain, name, lambda *args: None)
    pretrain.main(["--quick", "--backbone", "test_vit", "--ema", "0.5", "--output", str(tmp_path / "run")])
    return tmp_path / "run"


def test_run_is_judged_by_its_average_on_its_own_data(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import evaluate

    figures = evaluate.main([str(finished), "--sgd-epochs", "20", "--images", "200"])
    written = json.loads((finished / "evaluation" / "evaluation.json").read_text())
    assert {key: written[key] for key in figures} == figures
    accuracy = figures["accuracy"]
    wanted = ["linear_probe", "knn", "nearest_class_mean", "labels_1%", "labels_10%", "sgd_probe"]
    assert list(accuracy) == wanted
    assert all(0 <= value <= 1 for value in accuracy.values())
    assert accuracy["linear_probe"] > accuracy["labels_10%"] > 0.2
    assert accuracy["sgd_probe"] > 0.2
    assert set(figures["geometry"]) == {"features", "projections"}
    assert figures["geometry"]["projections"]["dimensions"] == 128
    retrieval = figures["retrieval"]
    assert set(retrieval) == {f"{space}_{name}" for space in ("features", "projections") for name in ("clean", "corrupted")}
    assert retrieval["features_clean"]["top_5"] >= retrieval["features_clean"]["top_1"]
    assert retrieval["features_clean"]["top_5"] >= retrieval["features_corrupted"]["top_5"]
    picture = imread(finished / "evaluation" / "evaluation.png")[:, :, :3]
    assert 0.001 < (np.ptp(picture, axis=2) > 0.1).mean() < 0.6
    assert f"{accuracy['knn']:.2%}" in capsys.readouterr().out
    # The features are those of the averaged weights.
    import checkpoints
    from common import embed
    from images import Source, load_images
    from model import create

    state = checkpoints.read(checkpoints.newest(str(finished)))
    encoder = create("test_vit", 1, 32)
    own = {key.removeprefix("encoder."): value for key, value in state["average"].items() if key.startswith("encoder.")}
    encoder.load_state_dict(own)
    images = load_images(Source()).first(10_000, 200)
    args = evaluate.build_parser().parse_args([str(finished), "--images", "200"])
    judged = evaluate.load(args)
    cpu = torch.device("cpu")
    assert torch.equal(embed(judged.encoder, images.held_out, cpu, 0)[0], embed(encoder, images.held_out, cpu, 0)[0])


def test_run_is_judged_on_data_with_its_own_dials(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import checkpoints
    import evaluate

    path = checkpoints.newest(str(finished))
    state = checkpoints.read(path)
    state["settings"] |= {"data": "cluttered-digits", "clutter": 0.25, "root": "/there", "views": "moco"}
    torch.save(state, path)
    sources: list[Any] = []

    def remember(source: Any) -> Any:
        sources.append(source)
        raise InterruptedError

    monkeypatch.setattr(evaluate, "load_images", remember)
    for options in ([], ["--data", "cifar10", "--root", "/here"]):
        with pytest.raises(InterruptedError):
            evaluate.load(evaluate.build_parser().parse_args([str(finished), *options]))
    assert (sources[0].name, sources[0].clutter, sources[0].root, sources[0].views) == (
        "cluttered-digits",
        0.25,
        "/there",
        "moco",
    )
    assert (sources[1].name, sources[1].root, sources[1].views) == ("cifar10", "/here", None)


def test_model_of_timm_without_weights(tmp_path: Path) -> None:
    import evaluate

    options = ["--random", "--sgd-epochs", "0", "--images", "150", "--output", str(tmp_path)]
    figures = evaluate.main(["timm:test_vit", *options])
    assert set(figures["geometry"]) == {"features"}
    assert "sgd_probe" not in figures["accuracy"]
    assert (tmp_path / "evaluation.png").exists()


@pytest.mark.parametrize(
    ("options", "answer"),
    [
        (("no/such/run",), "there is no no/such/run/checkpoint-"),
        (("timm:resnet10x",), "no pretrained model 'resnet10x'"),
        (("timm:resnet10x", "--random"), "Closest: resnet10t"),
        (("timm:test_vit", "--random", "--data", "nowhere"), "--data nowhere"),
    ],
)
def test_what_cannot_be_judged_is_answered(options: tuple[str, ...], answer: str, capsys: pytest.CaptureFixture[str]) -> None:
    import evaluate

    with pytest.raises(SystemExit) as caught:
        evaluate.main(options)
    assert caught.value.code == 2
    assert answer in capsys.readouterr().err


def test_checkpoint_of_other_images_is_answered(
    finished: Path, folder_of_images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import evaluate

    with pytest.raises(SystemExit):
        evaluate.main([str(finished), "--data", str(folder_of_images)])
    assert f"does not fit images of {folder_of_images}" in capsys.readouterr().err


def test_few_labels_hold_every_class(monkeypatch: pytest.MonkeyPatch) -> None:
    import evaluate

    labels = torch.arange(400) % 10
    features = torch.nn.functional.one_hot(labels, 10).float()
    seen: list[Any] = []

    def probe(train: torch.Tensor, train_labels: torch.Tensor, *held_out: Any) -> float:
        seen.append(train_labels)
        return 0.5

    monkeypatch.setattr(zoo.metrics, "linear_probe", probe)
    for share in (0.01, 0.1, 1.0):
        evaluate.few_labels((features, labels), (features, labels), share)
    assert [len(one) for one in seen] == [10, 40, 400]
    assert all(set(one.tolist()) == set(range(10)) for one in seen)
    rare = labels.clone()
    rare[0] = 11  # one image only
    evaluate.few_labels((features, rare), (features, rare), 0.1)
    assert set(seen[-1].tolist()) == {*range(10), 11}
