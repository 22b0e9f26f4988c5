"""Transformers: train with Trainer, stop in the middle of an epoch, and resume from the checkpoint.

python examples/integrations/train_huggingface.py ntxent    # or sogclr, emc2
torchrun --nproc_per_node 2 examples/integrations/train_huggingface.py sogclr
"""

import sys
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from torch.utils.data import DataLoader

import contrastive_zoo as zoo
from contrastive_zoo.integrations.huggingface import BatchSamplerCallback, LossCallback, parameter_groups


class ContrastiveTrainer(transformers.Trainer):
    """Holds the loss and the batch sampler, which the callbacks save in every checkpoint."""

    loss_fn: zoo.Loss
    sampler: zoo.batch_samplers.BatchSampler
    losses: list[float]

    def get_train_dataloader(self) -> DataLoader:
        return DataLoader(self.train_dataset, batch_sampler=self.sampler, collate_fn=self.data_collator)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ):
        z1, z2 = model(torch.cat([inputs["x1"], inputs["x2"]])).chunk(2)
        loss = self.loss_fn(z1, z2, index=inputs["index"])
        self.losses.append(loss.item())
        return (loss, {}) if return_outputs else loss


def fit(objective: str, folder: Path, steps: int, checkpoint: str | None = None) -> list[float]:
    """Train up to a number of steps, from the start or from a checkpoint."""
    transformers.set_seed(0)
    samples = torch.rand(256, 16)
    views = samples + 0.1 * torch.randn(2, 256, 16)
    dataset = zoo.IndexedDataset([{"x1": x1, "x2": x2} for x1, x2 in zip(*views, strict=True)])
    sampler = zoo.get_batch_sampler("shuffle", num_samples=len(dataset), batch_size=32)  # over all processes
    encoder = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 32))
    loss_fn = zoo.get_loss(objective, num_samples=len(dataset))
    optimizer = torch.optim.AdamW(parameter_groups(encoder, weight_decay=0.05, loss_fn=loss_fn), lr=0.01)
    arguments = transformers.TrainingArguments(
        str(folder),
        max_steps=steps,
        save_steps=10,
        remove_unused_columns=False,  # or the index is dropped
        lr_scheduler_type="constant",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
    )
    trainer = ContrastiveTrainer(
        model=encoder,
        args=arguments,
        train_dataset=dataset,
        optimizers=(optimizer, None),
        callbacks=[LossCallback(loss_fn), BatchSamplerCallback(sampler)],
    )
    trainer.loss_fn, trainer.sampler, trainer.losses = loss_fn.to(arguments.device), sampler, []
    trainer.train(resume_from_checkpoint=checkpoint)
    return trainer.losses


def main(objective: str = "ntxent", folder: str = "runs/huggingface") -> list[float]:
    """Losses of a run of 40 steps that stops after 10, two steps into an epoch, and resumes."""
    losses = fit(objective, Path(folder), steps=10)
    return losses + fit(objective, Path(folder), steps=40, checkpoint=f"{folder}/checkpoint-10")


if __name__ == "__main__":
    losses = main(*sys.argv[1:])
    print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f}")
