"""The experiment on kernel losses measures what it says."""

import importlib
from types import ModuleType

import numpy as np
import pytest
import torch


@pytest.fixture
def kernel_losses() -> ModuleType:
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
