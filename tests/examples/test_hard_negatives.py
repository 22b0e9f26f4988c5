"""The experiment on hard negatives sees features as the loss does."""

import importlib
from types import ModuleType

import pytest
import torch

import contrastive_zoo as zoo


@pytest.fixture
def hard_negatives() -> ModuleType:
    return importlib.import_module("hard_negatives")


def test_what_is_measured_is_what_the_loss_sees(hard_negatives: ModuleType) -> None:
    rows, labels = torch.randn(12, 3, dtype=torch.float64), torch.arange(12) % 4
    for name in hard_negatives.NORMALISATIONS:
        seen = zoo.get_loss("hscl", beta=2, normalize=False)(hard_negatives.project(rows, name), labels=labels)
        torch.testing.assert_close(hard_negatives.hscl(2, name)(rows, labels=labels), seen)


def test_a_simplex_has_the_least_loss_and_uses_all_dimensions(hard_negatives: ModuleType) -> None:
    corners = torch.eye(10, dtype=torch.float64) - 0.1
    rows, labels = corners.repeat(3, 1), torch.arange(10).repeat(3)
    for beta in hard_negatives.BETAS:
        loss = hard_negatives.hscl(beta, "sphere")(rows, labels=labels)
        assert float(loss) == pytest.approx(hard_negatives.least_loss())
    means = hard_negatives.class_means(rows, labels)
    assert zoo.metrics.effective_rank(means - means.mean(0)) == pytest.approx(9, abs=1e-3)


def test_runs_of_a_seed_begin_alike_and_losses_rise_with_beta(hard_negatives: ModuleType) -> None:
    run = {"normalisation": "ball", "epochs": 1, "samples": 256, "seed": 1}
    found = [hard_negatives.train({**run, "beta": beta}) for beta in (0, 5)]
    assert found[0]["curve"][0] == found[1]["curve"][0]
    assert found[0]["curve"][-1] != found[1]["curve"][-1]
    assert all(result["losses"] == sorted(result["losses"]) for result in found)
