"""Objectives with state and gradient caching in Accelerate, with the code of its page, on one process and on two."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import accelerate
import pytest
import torch
from integrations.blocks import run_block
from integrations.spawning import in_processes
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import contrastive_zoo as zoo

# Accelerate advises on devices.
pytestmark = pytest.mark.filterwarnings("ignore")

SIZE, WIDTH, BATCH, EPOCHS = 48, 6, 16, 2
TRAINING = {"plain": "train_epoch", "cached": "train_epoch_with_caching"}
OBJECTIVES = ["sogclr", "emc2", "clip"]
FOUND = dict[str, dict[str, Any]]


def recipe(objective: str) -> dict[str, Any]:
    """The documented loop for one of the objectives; batches are the same however many processes share them."""
    draws = torch.Generator().manual_seed(1)
    x1 = torch.randn(SIZE, WIDTH, generator=draws, dtype=torch.float64)
    x2 = x1 + 0.3 * torch.randn(SIZE, WIDTH, generator=draws, dtype=torch.float64)
    torch.manual_seed(0)
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=False)
    world = accelerate.PartialState(cpu=True).num_processes
    names = {
        "torch": torch,
        "accelerate": SimpleNamespace(Accelerator=lambda **options: accelerate.Accelerator(cpu=True, **options)),
        "zoo": SimpleNamespace(**{**vars(zoo), "get_loss": lambda _, **params: zoo.get_loss(objective, **params).double()}),
        "DataLoader": lambda dataset, batch_size, shuffle, drop_last: DataLoader(dataset, batch_size=BATCH // world),
        "dataset": TensorDataset(x1, x2),
        "encoder": nn.Sequential(nn.Linear(WIDTH, 8), nn.Tanh(), nn.Linear(8, 4)).double(),
    }
    for first in TRAINING.values():
        run_block("integrations/accelerate.md", f"def {first}()", names)
    names["losses"] = []
    names["loss_fn"].register_forward_hook(lambda module, given, loss: names["losses"].append(loss.detach()))
    return names


def results(names: dict[str, Any]) -> dict[str, Any]:
    encoder = names["accelerator"].unwrap_model(names["encoder"])
    state = {f"{part}.{name}": tensor for part in (encoder, names["loss_fn"]) for name, tensor in part.state_dict().items()}
    return {"losses": names["losses"], "state": state}


def train(folder: Path, training: str, objective: str) -> FOUND:
    """A run, and what another one makes of its first checkpoint."""
    names = recipe(objective)
    for epoch in range(EPOCHS):
        names[TRAINING[training]]()
        if epoch == 0:
            names["accelerator"].save_state(folder)
            names["losses"].clear()
    again = recipe(objective)
    again["accelerator"].load_state(folder)
    again[TRAINING[training]]()
    return {"run": results(names), "resumed": results(again)}


def work(folder: Path) -> dict[str, FOUND]:
    return {
        f"{training}, {objective}": train(folder / f"{training}-{objective}", training, objective)
        for training in TRAINING
        for objective in OBJECTIVES
    }


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, FOUND]]:
    return in_processes(work, tmp_path_factory.mktemp("accelerate"))


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("training", TRAINING)
def test_two_processes_train_as_one(training: str, objective: str, found: list[dict[str, FOUND]], tmp_path: Path) -> None:
    alone = train(tmp_path, "plain", objective)
    for of_rank in found:
        torch.testing.assert_close(of_rank[f"{training}, {objective}"]["run"], alone["run"], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("training", TRAINING)
def test_a_resumed_run_goes_on_bit_for_bit(
    training: str, objective: str, found: list[dict[str, FOUND]], tmp_path: Path
) -> None:
    runs = [train(tmp_path, training, objective), *(of_rank[f"{training}, {objective}"] for of_rank in found)]
    for run in runs:
        assert len(run["resumed"]["losses"]) == SIZE // BATCH
        torch.testing.assert_close(run["resumed"], run["run"], rtol=0, atol=0)
    torch.testing.assert_close(runs[1], runs[2], rtol=0, atol=0)
