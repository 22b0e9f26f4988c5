"""Objectives with state and gradient caching in Trainer, with the code of docs/recipes.md, on one process and on two."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from integrations.blocks import run_block
from integrations.spawning import in_processes
from torch import Tensor, nn

import contrastive_zoo as zoo

# Trainer advises on devices and names.
pytestmark = pytest.mark.filterwarnings("ignore")

SIZE, WIDTH, BATCH, STEPS = 40, 6, 20, 4  # the second half meets the samples of the first
NAMES: dict[str, Any] = {"torch": torch, "zoo": zoo, "nn": nn, "os": os, "transformers": transformers}
for first in ("class PretrainingModel(", "class CachedPretrainingModel(", "class LossCheckpoint("):
    run_block("recipes.md", first, NAMES)
KINDS = ["PretrainingModel", "CachedPretrainingModel", "ContrastiveTrainer"]
OBJECTIVES = ["sogclr", "emc2"]
FOUND = dict[str, dict[str, Any]]


class InOrder(transformers.Trainer):
    """Sees the samples in the order of the dataset, so that any number of processes shares the same batches."""

    def _get_train_sampler(self, *_: Any) -> torch.utils.data.Sampler[int]:
        return torch.utils.data.SequentialSampler(self.train_dataset)


class ContrastiveInOrder(InOrder, NAMES["ContrastiveTrainer"]):
    """The documented trainer, in order."""


def encoder() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(WIDTH, 8), nn.Tanh(), nn.Linear(8, 4)).double()


def dataset() -> zoo.IndexedDataset:
    draws = torch.Generator().manual_seed(1)
    x1 = torch.randn(SIZE, WIDTH, generator=draws, dtype=torch.float64)
    x2 = x1 + 0.3 * torch.randn(SIZE, WIDTH, generator=draws, dtype=torch.float64)
    return zoo.IndexedDataset([{"x1": one, "x2": other} for one, other in zip(x1, x2, strict=True)])


def fit(folder: Path, kind: str, objective: str, steps: int = STEPS, resume: bool = False) -> dict[str, Any]:
    """Losses and everything that is learned or kept."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    args = transformers.TrainingArguments(
        output_dir=str(folder / f"{kind}-{objective}"),
        per_device_train_batch_size=BATCH // world,
        max_steps=steps,
        save_steps=STEPS // 2,
        lr_scheduler_type="constant",
        remove_unused_columns=False,
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
    )
    if kind == "ContrastiveTrainer":
        model, loss_fn = encoder(), zoo.get_loss(objective, num_samples=SIZE).double()
        trainer = ContrastiveInOrder(model=model, args=args, train_dataset=dataset(), loss_fn=loss_fn)
    else:
        model = NAMES[kind](encoder(), SIZE, objective).double()
        loss_fn = model.loss_fn
        trainer = InOrder(model=model, args=args, train_dataset=dataset())
    losses: list[Tensor] = []
    loss_fn.register_forward_hook(lambda module, given, loss: losses.append(loss.detach()))
    trainer.train(resume_from_checkpoint=resume)
    parts = getattr(model, "encoder", model), loss_fn
    return {
        "losses": losses,
        "state": {f"{k}.{name}": t for k, part in enumerate(parts) for name, t in part.state_dict().items()},
    }


def run(folder: Path, kind: str, objective: str) -> FOUND:
    """A run in one go, and one that is stopped halfway."""
    whole = fit(folder / "whole", kind, objective)
    whole["losses"] = whole["losses"][-STEPS // 2 :]
    fit(folder / "parts", kind, objective, steps=STEPS // 2)
    return {"run": whole, "resumed": fit(folder / "parts", kind, objective, resume=True)}


def work(folder: Path) -> dict[str, FOUND]:
    return {f"{kind}, {objective}": run(folder, kind, objective) for kind in KINDS for objective in OBJECTIVES}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, FOUND]]:
    return in_processes(work, tmp_path_factory.mktemp("transformers"))


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("kind", KINDS)
def test_runs_resume_bit_for_bit_and_processes_train_as_one(
    kind: str, objective: str, found: list[dict[str, FOUND]], tmp_path: Path
) -> None:
    alone, several = run(tmp_path, kind, objective), [of_rank[f"{kind}, {objective}"] for of_rank in found]
    for each in (alone, *several):
        assert len(each["resumed"]["losses"]) == STEPS // 2
        torch.testing.assert_close(each["resumed"], each["run"], rtol=0, atol=0)
        torch.testing.assert_close(each["run"], several[0]["run"], rtol=0 if each is not alone else 1e-10, atol=1e-10)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_without_the_callback_a_resumed_run_differs(objective: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(NAMES["LossCheckpoint"], "on_train_begin", lambda *_, **__: None)
    runs = run(tmp_path, "ContrastiveTrainer", objective)
    assert not torch.equal(torch.stack(runs["resumed"]["losses"]), torch.stack(runs["run"]["losses"]))
