"""Lightning: train, stop in the middle of an epoch, and resume, on one process or on several.

python examples/integrations/train_lightning.py ntxent    # or sogclr, emc2
torchrun --nproc_per_node 2 examples/integrations/train_lightning.py sogclr
"""

import os
import sys
from pathlib import Path

import lightning
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import contrastive_zoo as zoo
from contrastive_zoo.integrations.lightning import BatchSamplerCallback

WORLD = int(os.environ.get("WORLD_SIZE", "1"))


class Pretraining(lightning.LightningModule):
    """The loss is a submodule: it moves to the device, and every checkpoint has its tables."""

    def __init__(self, encoder: nn.Module, loss_fn: zoo.Loss) -> None:
        super().__init__()
        self.encoder, self.loss_fn = encoder, loss_fn
        self.losses: list[float] = []

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        x1, x2, index = batch
        # Memory holds the activations of 8 samples at a time.
        loss = zoo.cached_loss(self.loss_fn, self.encoder, (x1, x2), chunk_size=8, index=index)
        self.losses.append(loss.item())
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        groups = [{"params": self.encoder.parameters()}, *zoo.parameter_groups(self.loss_fn)]
        return torch.optim.AdamW(groups, lr=0.01, weight_decay=0.05)


def fit(objective: str, folder: Path, steps: int, ckpt_path: Path | None = None) -> Pretraining:
    """Train up to a number of steps, from the start or from a checkpoint."""
    lightning.seed_everything(0, verbose=False)
    samples = torch.rand(256, 16)
    views = samples + 0.1 * torch.randn(2, 256, 16)
    dataset = zoo.IndexedDataset(TensorDataset(*views))
    sampler = zoo.get_batch_sampler("shuffle", num_samples=len(dataset), batch_size=32)  # over all processes
    encoder = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 32))
    model = Pretraining(encoder, zoo.get_loss(objective, num_samples=len(dataset)))
    saving = ModelCheckpoint(
        folder,
        "{step}",
        every_n_train_steps=10,
        save_top_k=-1,
        enable_version_counter=False,
    )
    trainer = lightning.Trainer(
        accelerator="cpu",
        devices=WORLD,
        strategy="ddp" if WORLD > 1 else "auto",
        use_distributed_sampler=False,  # the batch sampler gives each process its share
        max_steps=steps,
        callbacks=[BatchSamplerCallback(sampler), saving],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, DataLoader(dataset, batch_sampler=sampler), ckpt_path=ckpt_path)
    return model


def main(objective: str = "ntxent", folder: str = "runs/lightning") -> list[float]:
    """Losses of a run of 40 steps that stops after 10, two steps into an epoch, and resumes."""
    first = fit(objective, Path(folder), steps=10)
    resumed = fit(objective, Path(folder), steps=40, ckpt_path=Path(folder) / "step=10.ckpt")
    return first.losses + resumed.losses


if __name__ == "__main__":
    losses = main(*sys.argv[1:])
    print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f}")
