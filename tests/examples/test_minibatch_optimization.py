"""The example on free vectors gives the authors' curves, and the optima of the theory."""

import runpy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import contrastive_zoo as zoo
from contrastive_zoo.batch_samplers import ordered_selection

FOLDER = Path(__file__).parents[2] / "examples" / "reproduce"
both = pytest.mark.parametrize("dim", [16, 4])
EPOCHS = 101


@pytest.fixture(scope="module")
def example() -> dict[str, Any]:
    return runpy.run_path(str(FOLDER / "minibatch_optimization.py"))


def recorded(example: dict[str, Any], dim: int) -> Any:
    return np.load(example["RECORDED"] / f"synthetic_N8_B2_d{dim}.npz")


def start(data: Any) -> tuple[Tensor, Tensor]:
    return torch.tensor(data["full_init_u"]), torch.tensor(data["full_init_v"])


@both
@pytest.mark.parametrize("name", ["full", "all pairs"])
def test_full_batch_and_all_pairs_follow_the_authors(example: dict[str, Any], dim: int, name: str) -> None:
    data = recorded(example, dim)
    curve, _ = example["train"](*start(data), example["selection"](name, 0), EPOCHS)
    np.testing.assert_allclose(curve[:, 1], data[f"{example['SELECTIONS'][name][0]}_true_loss"][:6], rtol=1e-12)


@both
@pytest.mark.parametrize("name", ["fixed", "shuffle", "spectral"])
def test_the_authors_batches_give_their_curves(example: dict[str, Any], dim: int, name: str) -> None:
    data = recorded(example, dim)
    theirs = example["SELECTIONS"][name][0]
    batches = torch.tensor(data[f"{theirs}_batches"]).long()
    epochs = iter(batches.expand(EPOCHS, -1, -1) if batches.dim() == 2 else batches)

    def replay(u: Tensor, v: Tensor) -> Iterator[Tensor]:
        return iter(next(epochs)[:, None])

    curve, _ = example["train"](*start(data), replay, EPOCHS)
    np.testing.assert_allclose(curve[:, 1], data[f"{theirs}_true_loss"][:6], rtol=1e-9)


@both
def test_ordered_selection_follows_the_authors_choices(example: dict[str, Any], dim: int) -> None:
    data = recorded(example, dim)
    curve, _ = example["train"](*start(data), example["selection"]("ordered", 0), EPOCHS)
    np.testing.assert_allclose(curve[:, 0], data["osgd_NcB_true_loss"][:6], rtol=1e-9)


def test_losses_and_choices_are_the_packages(example: dict[str, Any]) -> None:
    u, v = torch.randn(2, 8, 5, dtype=torch.float64)
    infonce = zoo.get_loss("infonce", temperature=1.0)
    losses = example["losses_of"](example["PAIRS"], u, v)
    torch.testing.assert_close(losses, torch.stack([2 * infonce(u[pair], v[pair]) for pair in example["PAIRS"]]))
    (chosen,) = next(example["selection"]("ordered", 0)(u, v))
    ours = ordered_selection(example["PAIRS"].numpy(), u, v, infonce, k=len(example["PAIRS"]), q=1)
    assert [chosen.tolist()] == ours.tolist()


@both
def test_theory_is_the_least_loss_that_full_batch_training_finds(example: dict[str, Any], dim: int) -> None:
    data = recorded(example, dim)
    least, gram = example["theory"](dim)
    assert least == pytest.approx(float(data["full_batch_loss_at_theory_optimum"]))
    eigenvalues, vectors = torch.linalg.eigh(gram.double())
    z = (vectors * eigenvalues.clamp_min(0).sqrt())[:, -dim:]
    torch.testing.assert_close(z @ z.T, gram.double())
    assert example["full_loss"](z, z) == pytest.approx(least)
    # The recorded run ends near it: samples in the same order, the same picture.
    final = example["arranged"](torch.tensor(data["sc_even_final_gram"]), dim)
    assert (final - gram).abs().max() < 0.05


def test_quick_run(example: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = example["main"](["--quick", "--output", str(tmp_path)])
    assert set(found) == {16, 4}
    for results in found.values():
        assert set(results["curves"]) == set(example["SELECTIONS"])
        assert max(results["distance"][name] for name in ("full", "all pairs", "ordered")) < 1e-9
        assert all(curve[0] > curve[-1] > results["theory"] for curve in results["curves"].values())
    assert {path.suffix for path in tmp_path.iterdir()} == {".svg", ".json"}
    assert "cross-polytope" in (tmp_path / "minibatch_optimization.svg").read_text()
    assert "d = 4, least loss 2.413505" in capsys.readouterr().out
