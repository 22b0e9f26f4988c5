"""torchrun and DistributedDataParallel: train, save, and resume; the script also runs on one process.

python examples/integrations/train_ddp.py ntxent    # or sogclr, emc2
torchrun --nproc_per_node 2 examples/integrations/train_ddp.py sogclr
"""

import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, TensorDataset

import contrastive_zoo as zoo


def fit(objective: str, folder: Path, epochs: int, resume: bool = False) -> list[float]:
    """Train some epochs, from the start or from the checkpoint in the folder, and save a checkpoint."""
    torch.manual_seed(0)
    samples = torch.rand(256, 16)
    views = samples + 0.1 * torch.randn(2, 256, 16)
    dataset = zoo.IndexedDataset(TensorDataset(*views))
    sampler = zoo.get_batch_sampler("shuffle", num_samples=len(dataset), batch_size=32)  # over all processes
    loader = DataLoader(dataset, batch_sampler=sampler)
    encoder = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 32))
    loss_fn = zoo.get_loss(objective, num_samples=len(dataset))
    groups = [{"params": encoder.parameters()}, *zoo.parameter_groups(loss_fn)]
    optimizer = torch.optim.AdamW(groups, lr=0.01, weight_decay=0.05)
    parts = {"encoder": encoder, "loss": loss_fn, "optimizer": optimizer, "sampler": sampler}
    if resume:
        saved = torch.load(folder / "checkpoint.pt", weights_only=True)
        for name, part in parts.items():
            part.load_state_dict(saved[name])
    model = DistributedDataParallel(encoder) if dist.is_initialized() else encoder

    losses = []
    for _ in range(epochs):
        for x1, x2, index in loader:
            z1, z2 = model(torch.cat([x1, x2])).chunk(2)  # one forward pass, as DistributedDataParallel expects
            loss = loss_fn(z1, z2, index=index)  # the value for the samples of all processes
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    if not dist.is_initialized() or dist.get_rank() == 0:  # all processes have equal tables
        folder.mkdir(parents=True, exist_ok=True)
        torch.save({name: part.state_dict() for name, part in parts.items()}, folder / "checkpoint.pt")
    if dist.is_initialized():
        dist.barrier()
    return losses


def main(objective: str = "ntxent", folder: str = "runs/ddp") -> list[float]:
    """Losses of a run of five epochs that stops after one and resumes."""
    return fit(objective, Path(folder), epochs=1) + fit(objective, Path(folder), epochs=4, resume=True)


if __name__ == "__main__":
    if "RANK" in os.environ:
        dist.init_process_group("gloo")  # "nccl" on GPUs
    losses = main(*sys.argv[1:])
    print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f}")
    if dist.is_initialized():
        dist.destroy_process_group()
