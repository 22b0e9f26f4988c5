"""Objectives with state and gradient caching in Lightning, with the code of its page, on one process and on two."""

from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from integrations.blocks import run_block
from integrations.spawning import WORLD, in_processes
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import contrastive_zoo as zoo

# Lightning advises on workers, loggers and checkpoints.
pytestmark = pytest.mark.filterwarnings("ignore")

SIZE, BATCH, WIDTH, EPOCHS = 60, 20, 6, 2
NAMES: dict[str, Any] = {"torch": torch, "zoo": zoo, "lightning": lightning}
for name in ("Pretraining", "CachedPretraining", "ManualPretraining"):
    run_block("integrations/lightning.md", f"class {name}(", NAMES)
MODULES = ["Pretraining", "CachedPretraining", "ManualPretraining"]
OBJECTIVES = ["sogclr", "emc2", "clip"]
STRATEGIES: dict[str, dict[str, bool]] = {
    "as it comes": {},
    "unused parameters": {"find_unused_parameters": True},
    "static graph": {"static_graph": True},
    "tables stay": {"broadcast_buffers": False},
}


REFUSED = "ManualPretraining", "static graph"
TOGETHER = [(kind, strategy) for kind in MODULES for strategy in STRATEGIES if (kind, strategy) != REFUSED]


class Noted(lightning.Callback):
    """Losses as they are logged."""

    def __init__(self) -> None:
        self.losses: list[Tensor] = []

    def on_train_batch_end(self, trainer: lightning.Trainer, *_: Any) -> None:
        self.losses.append(trainer.callback_metrics["loss"].clone())


def encoder() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(WIDTH, 8), nn.Tanh(), nn.Linear(8, 4))


def loader(rank: int = 0, world: int = 1) -> DataLoader:
    """A part of each batch for each process."""
    draws = torch.Generator().manual_seed(1)
    x1 = torch.randn(SIZE, WIDTH, generator=draws, dtype=torch.float64)
    x2 = x1 + 0.3 * torch.randn(SIZE, WIDTH, generator=draws, dtype=torch.float64)
    return DataLoader(zoo.IndexedDataset(TensorDataset(x1, x2)), batch_size=BATCH // world, sampler=range(rank, SIZE, world))


def fit(
    folder: Path, kind: str, objective: str, epochs: int = EPOCHS, options: dict[str, bool] | None = None, resume: bool = False
) -> dict[str, Any]:
    """Losses and everything that is learned or kept after some epochs, on as many processes as there are."""
    module, noted, several = NAMES[kind](encoder(), SIZE, objective).double(), Noted(), options is not None
    trainer = lightning.Trainer(
        accelerator="cpu",
        devices=WORLD if several else 1,
        strategy=DDPStrategy(process_group_backend="gloo", **options) if several else "auto",
        use_distributed_sampler=False,
        max_epochs=epochs,
        callbacks=[noted],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )
    checkpoint = folder / f"{kind}-{objective}.ckpt"
    trainer.fit(module, loader(trainer.global_rank, trainer.world_size), ckpt_path=checkpoint if resume else None)
    trainer.save_checkpoint(checkpoint)
    return {"losses": noted.losses, "state": dict(module.state_dict())}


def work(folder: Path) -> dict[str, dict[str, Any]]:
    """All modules and objectives under every strategy, and a run that is stopped and resumed."""
    found = {}
    for kind in MODULES:
        for objective in OBJECTIVES:
            found[f"{kind}, {objective}, as it comes"] = fit(folder, kind, objective, options={})
            fit(folder, kind, objective, epochs=1, options={})
            found[f"{kind}, {objective}, resumed"] = fit(folder, kind, objective, options={}, resume=True)
        for strategy, options in STRATEGIES.items():
            if (kind, strategy) != REFUSED:
                found[f"{kind}, sogclr, {strategy}"] = fit(folder, kind, "sogclr", options=options)
    return found


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, dict[str, Any]]]:
    return in_processes(work, tmp_path_factory.mktemp("lightning"))


def assert_same(found: dict[str, Any], expected: dict[str, Any], tolerance: float) -> None:
    torch.testing.assert_close(found["state"], expected["state"], rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(found["losses"], expected["losses"], rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("kind", MODULES)
def test_a_resumed_run_goes_on_bit_for_bit(kind: str, objective: str, tmp_path: Path) -> None:
    whole = fit(tmp_path, kind, objective)
    fit(tmp_path, kind, objective, epochs=1)
    resumed = fit(tmp_path, kind, objective, resume=True)
    steps = SIZE // BATCH
    assert len(whole["losses"]) == EPOCHS * steps
    assert_same(resumed, {"state": whole["state"], "losses": whole["losses"][-steps:]}, 0.0)


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("kind", MODULES[1:])
def test_caching_changes_nothing(kind: str, objective: str, tmp_path: Path) -> None:
    assert_same(fit(tmp_path, kind, objective), fit(tmp_path, "Pretraining", objective), 1e-12)


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("kind", MODULES)
def test_two_processes_train_alike_and_resume(kind: str, objective: str, found: list[dict[str, dict[str, Any]]]) -> None:
    first, second = (of_rank[f"{kind}, {objective}, as it comes"] for of_rank in found)
    assert_same(first, second, 0.0)
    for of_rank in found:
        resumed = of_rank[f"{kind}, {objective}, resumed"]
        assert_same(resumed, {"state": first["state"], "losses": first["losses"][-len(resumed["losses"]) :]}, 0.0)


@pytest.mark.parametrize(("kind", "strategy"), TOGETHER)
def test_two_processes_train_as_one(kind: str, strategy: str, found: list[dict[str, dict[str, Any]]], tmp_path: Path) -> None:
    for of_rank in found:
        assert_same(of_rank[f"{kind}, sogclr, {strategy}"], fit(tmp_path, "Pretraining", "sogclr"), 1e-10)


def test_a_detached_loss_is_refused_by_automatic_optimization(tmp_path: Path) -> None:
    class Detached(NAMES["Pretraining"]):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            x1, x2, index = batch
            return zoo.cached_backward(self.loss_fn, self.encoder, (x1, x2), chunk_size=4, index=index)

    trainer = lightning.Trainer(accelerator="cpu", max_epochs=1, logger=False, default_root_dir=tmp_path)
    with pytest.raises(RuntimeError, match="does not require grad"):
        trainer.fit(Detached(encoder(), SIZE).double(), loader())
