"""What the pages of the guide claim beyond blocks that run: scripts to copy, references, and what the loops reach."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

import contrastive_zoo as zoo

DOCS = Path(__file__).parent.parent / "docs"
ARXIV = re.compile(r"\d{4}\.\d{5}")


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages write pictures where they run."""
    monkeypatch.chdir(tmp_path)


def run(page: str) -> dict[str, Any]:
    """Names after the blocks of a page."""
    names: dict[str, Any] = {}
    for block in re.findall(r"^```python\n(.*?)^```$", (DOCS / page).read_text(), re.DOTALL | re.MULTILINE):
        exec(compile(block, page, "exec"), names)
    return names


def test_every_paper_has_its_reference() -> None:
    text = (DOCS / "limits.md").read_text()
    for name in zoo.list_losses():
        assert set(ARXIV.findall(zoo.describe_loss(name).paper)) <= set(ARXIV.findall(text)), name
        assert re.search(rf"^% (.*, )?{name}(,|$)", text, re.MULTILINE), name


def test_version_of_the_citation() -> None:
    assert f"version = {{{zoo.__version__}}}" in (DOCS / "limits.md").read_text()
    assert f"\nversion: {zoo.__version__}\n" in (DOCS.parent / "CITATION.cff").read_text()


def test_every_sampler_is_in_the_table() -> None:
    text = (DOCS / "negative_samplers.md").read_text()
    own = [name for name in zoo.list_samplers() if zoo.describe_sampler(name).build.__module__.startswith("contrastive_zoo.")]
    assert len(own) >= 5
    assert all(f"\n| `{name}` |" in text for name in own)


def test_loop_with_metrics_learns() -> None:
    first, *_, last = run("metrics.md")["history"]
    assert last["uniformity"] < first["uniformity"] - 1
    assert last["effective_rank"] > first["effective_rank"]
    assert last["global_loss"] < first["global_loss"]


def test_two_towers_find_each_other() -> None:
    names = run("two_towers.md")
    assert max(names["before"]) < 0.05
    assert min(names["after"]) > 0.9
    assert names["loss_fn"].logit_scale.grad is not None


def test_troubleshooting_shows_what_it_says() -> None:
    names = run("troubleshooting.md")
    assert abs(float(names["gap"])) < 1e-5
    rates, clamped = [], []
    for temperature in (0.5, 0.1, 0.02):
        loss_fn = zoo.get_loss("emc2", num_samples=64, temperature=temperature)
        loss_fn(names["z1"], names["z2"], index=names["index"])
        rates.append(float(loss_fn.diagnostics["acceptance_rate"]))
    for tau_plus in (0.1, 0.3):
        loss_fn = zoo.get_loss("debiased", temperature=0.5, tau_plus=tau_plus)
        loss_fn(names["z1"], names["z2"])
        clamped.append(float(loss_fn.diagnostics["clamped_anchors"]))
    assert rates[0] > 0.7 > 0.3 > rates[1] > 0.1 > rates[2]
    assert clamped == [0, 1]
    assert names["temperature"].grad is not None


def test_complex_features_are_refused() -> None:
    z = torch.randn(4, 3, dtype=torch.complex64)
    with pytest.raises(TypeError):
        zoo.get_loss("ntxent")(z, z)
