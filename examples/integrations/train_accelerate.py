"""Accelerate: train, save after an epoch, and resume, on one process or on several.

python examples/integrations/train_accelerate.py ntxent    # or sogclr, emc2
torchrun --nproc_per_node 2 examples/integrations/train_accelerate.py sogclr
"""

import sys
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import contrastive_zoo as zoo


def fit(objective: str, folder: Path, epochs: int, resume: bool = False) -> list[float]:
    """Train some epochs, from the start or from the state in the folder, and save the state."""
    set_seed(0)
    accelerator = Accelerator(cpu=True)
    samples = torch.rand(256, 16)
    views = samples + 0.1 * torch.randn(2, 256, 16)
    dataset = zoo.IndexedDataset(TensorDataset(*views))
    sampler = zoo.get_batch_sampler("shuffle", num_samples=len(dataset), batch_size=32)  # over all processes
    loader = DataLoader(dataset, batch_sampler=sampler)  # not prepared: the sampler shares it out

    encoder = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 32))
    loss_fn = zoo.get_loss(objective, num_samples=len(dataset)).to(accelerator.device)
    groups = [{"params": encoder.parameters()}, *zoo.parameter_groups(loss_fn)]
    optimizer = torch.optim.AdamW(groups, lr=0.01, weight_decay=0.05)
    encoder, optimizer = accelerator.prepare(encoder, optimizer)
    accelerator.register_for_checkpointing(loss_fn, sampler)
    if resume:
        accelerator.load_state(folder)

    losses = []
    for _ in range(epochs):
        for batch in loader:
            x1, x2, index = (tensor.to(accelerator.device) for tensor in batch)
            z1, z2 = encoder(torch.cat([x1, x2])).chunk(2)  # DistributedDataParallel wants one forward pass
            loss = loss_fn(z1, z2, index=index)
            accelerator.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
    accelerator.save_state(folder)
    accelerator.wait_for_everyone()
    return losses


def main(objective: str = "ntxent", folder: str = "runs/accelerate") -> list[float]:
    """Losses of a run of five epochs that stops after one and resumes."""
    return fit(objective, Path(folder), epochs=1) + fit(objective, Path(folder), epochs=4, resume=True)


if __name__ == "__main__":
    losses = main(*sys.argv[1:])
    print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f}")
