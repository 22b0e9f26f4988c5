"""The experiments on the papers' claims run, say what they cost first, and judge each claim by their tables."""

import importlib
import json
from pathlib import Path

import pytest
import torch

import contrastive_zoo as zoo

# What the picture of each experiment names.
NAMED = {
    "small_batches": ("ntxent", "sogclr", "emc2"),
    "training_gradients": ("ntxent", "sogclr", "emc2"),
    "kernel_losses": ("ntxent", "dhel", "kcl, gamma 16"),
    "hard_negatives": ("sphere", "ball", "none", "beta 5"),
    "minibatches": ("shuffle", "spectral", "bisection"),
}


@pytest.mark.parametrize("name", NAMED)
def test_a_quick_run(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = importlib.import_module(name).main(["--quick", "--output", str(tmp_path)])
    printed = capsys.readouterr().out
    assert printed.startswith(f"{len(results)} runs, 0 of them done before: about ")
    record = json.loads((tmp_path / f"{name}.json").read_text())
    assert record["runs"] == results
    assert len(record["seeds"]) == 2
    text = (tmp_path / f"{name}.md").read_text()
    assert text in printed
    for claim in record["claims"]:
        assert f"| {claim['text']} | {claim['verdict']} | {claim['evidence']} |" in text
    picture = (tmp_path / f"{name}.svg").read_text()
    assert all(word in picture for word in NAMED[name])
    # What is done is not done again.
    importlib.import_module(name).main(["--quick", "--output", str(tmp_path)])
    assert capsys.readouterr().out.startswith(f"{len(results)} runs, {len(results)} of them done before: about 0.0 minutes")


def test_the_verdict_follows_from_the_figures() -> None:
    small_batches = importlib.import_module("small_batches")
    accuracies = {("ntxent", 16): 60.0, ("ntxent", 256): 70.0, ("sogclr", 16): 69.0, ("sogclr", 256): 69.5}
    results = [
        {
            "loss": loss,
            "gamma": gamma,
            "batch_size": size,
            "seed": seed,
            "linear_probe": accuracies.get((loss, size), 50.0) + 0.1 * seed * (size == 16),
            "global_loss": -1.0,
        }
        for seed in range(3)
        for size in (16, 256)
        for loss, gamma in [(name, None) for name in small_batches.LOSSES if name != "sogclr"]
        + [("sogclr", gamma) for gamma in small_batches.GAMMAS]
    ]
    verdicts = {claim.text: claim.verdict for claim in small_batches.claims(results, (16, 256))}
    assert verdicts["Batches of 16 harm `ntxent`, against 256."] == "holds"
    assert verdicts["They do not harm `sogclr` by more than 2 points."] == "holds"
    assert verdicts["In batches of 16 `sogclr` is better than `ntxent`: accuracy."] == "holds"
    assert verdicts["In batches of 16 `kcl` is better than `ntxent`: accuracy."] == "the opposite shows"
    assert verdicts["In batches of 16 `sogclr` is better than `ntxent`: global loss."] == "does not show"


def test_the_error_of_the_exact_gradient_is_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the whole set is a batch, dcl has the global gradient and sogclr too, if its averages are of this moment."""
    gradients = importlib.import_module("training_gradients")
    monkeypatch.setattr(gradients, "BATCH_SIZE", 8)
    views = torch.randn(8, 2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    encoder = gradients.Encoder(views.flatten(0, 1))
    labels = ("ntxent", "dcl", "sogclr, gamma 0.9")
    watchers = {label: gradients.Watcher(label, encoder, views, beta=5.0, seed=0) for label in labels}
    found = gradients.measure(encoder, views, watchers, 5.0, 2, torch.Generator().manual_seed(0))
    assert found["bias of dcl"] == pytest.approx(0, abs=1e-4)
    assert found["step of sogclr, gamma 0.9"] == pytest.approx(0, abs=1e-4)
    assert found["bias of ntxent"] > 0.01
    z1, z2 = encoder(views).detach()
    assert found["global loss"] == pytest.approx(zoo.metrics.global_contrastive_loss(z1, z2, temperature=1 / 5.0))


def test_measuring_leaves_the_tables_as_they_are() -> None:
    gradients = importlib.import_module("training_gradients")
    views = torch.randn(12, 2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    encoder = gradients.Encoder(views.flatten(0, 1))
    watcher = gradients.Watcher(gradients.EMC2, encoder, views, beta=5.0, seed=0)
    watcher.loss_fn(*encoder(views[:4]), index=torch.arange(4))
    before = {key: value.clone() for key, value in watcher.loss_fn.state_dict().items()}
    orders = [torch.randperm(12, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]
    assert sum(gradient.abs().sum() for gradient in watcher.gradients(encoder(views), orders)) > 0
    after = watcher.loss_fn.state_dict()
    assert all(torch.equal(value, after[key]) for key, value in before.items())
