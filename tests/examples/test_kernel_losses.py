"""The experiment on kernel losses measures what it says, and runs."""

import importlib
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

FOLDER = Path(__file__).parents[2] / "examples" / "reproduce"


@pytest.fixture
def kernel_losses(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(FOLDER)
    return importlib.import_module("kernel_losses")


def test_only_kernels_are_independent_of_the_batch_size(kernel_losses: ModuleType) -> None:
    for loss, gamma in kernel_losses.KINDS:
        found = kernel_losses.bias({"loss": loss, "gamma": gamma, "seed": 0, "few": 5, "drawn": 2})["exact"]
        errors = np.array([[point["value"], point["gradient"]] for point in found])
        if loss == "kcl":
            np.testing.assert_allclose(errors, 0, atol=1e-13)
        else:
            assert (np.abs(errors) > 1e-3).all()
            assert (np.diff(np.abs(errors), axis=0) < 0).all()  # larger batches are nearer to the whole


def test_the_number_of_negatives_is_all_that_equal_rows_tell(kernel_losses: ModuleType) -> None:
    z = torch.ones(8, 4, dtype=torch.float64)
    for loss, gamma in kernel_losses.KINDS:
        loss_fn = kernel_losses.build(loss, gamma, 0.5)
        rest = [float(loss_fn(z[:size], z[:size])) - kernel_losses.log_count(loss, size) for size in (3, 8)]
        assert rest[0] == pytest.approx(rest[1])


def test_the_kernel_has_the_temperature(kernel_losses: ModuleType) -> None:
    """A Gaussian kernel of unit rows is proportional to exp(s / temperature): an energy at two similarities has that ratio."""
    loss_fn = kernel_losses.build("kcl", 1.0, 0.4)
    energies = []
    for angle in (0.3, 1.2):
        z = torch.tensor([[1.0, 0.0], [np.cos(angle), np.sin(angle)]], dtype=torch.float64)
        energies.append(float(loss_fn(z, z)) + 2)  # views are equal: the alignment is -2
    assert energies[0] / energies[1] == pytest.approx(np.exp((np.cos(0.3) - np.cos(1.2)) / 0.4))


def test_quick_run(kernel_losses: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = kernel_losses.main(["--quick", "--output", str(tmp_path)])
    assert len(results) == 2 * len(kernel_losses.KINDS) * (1 + 2 * len(kernel_losses.TEMPERATURES))
    shown = capsys.readouterr().out
    assert shown.index("minutes on") < shown.index("effective rank")
    assert {path.name for path in tmp_path.iterdir()} == {"runs", *(f"kernel_losses.{end}" for end in ("svg", "json", "md"))}
    verdicts = {claim.text: claim.verdict for claim in kernel_losses.claims(results)}
    assert all(verdict == "holds" for text, verdict in verdicts.items() if "is that of the whole" in text)
    assert len(verdicts) == len(kernel_losses.KINDS) + 4 * 2 * 3
