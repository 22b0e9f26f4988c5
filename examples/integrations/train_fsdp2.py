"""FSDP2: shard encoder and loss together, save a distributed checkpoint, and resume.

torchrun --nproc_per_node 2 examples/integrations/train_fsdp2.py ntxent    # or sogclr, emc2
"""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.utils.data import DataLoader, TensorDataset

import contrastive_zoo as zoo


class Pretraining(nn.Module):
    """Encoder and loss: one state dict holds both."""

    def __init__(self, encoder: nn.Module, loss_fn: zoo.Loss) -> None:
        super().__init__()
        self.encoder, self.loss_fn = encoder, loss_fn

    def forward(self, x1: torch.Tensor, x2: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        z1, z2 = self.encoder(torch.cat([x1, x2])).chunk(2)
        return self.loss_fn(z1, z2, index=index)


def fit(objective: str, folder: Path, epochs: int, resume: bool = False) -> list[float]:
    """Train some epochs, from the start or from the checkpoint in the folder, and save a checkpoint."""
    torch.manual_seed(0)
    samples = torch.rand(256, 16)
    views = samples + 0.1 * torch.randn(2, 256, 16)
    dataset = zoo.IndexedDataset(TensorDataset(*views))
    sampler = zoo.get_batch_sampler("shuffle", num_samples=len(dataset), batch_size=32)  # over all processes
    loader = DataLoader(dataset, batch_sampler=sampler)
    encoder = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 32))
    # A distributed checkpoint is read into tensors that exist, so tables of embeddings need their width.
    model = Pretraining(encoder, zoo.get_loss(objective, num_samples=len(dataset), embedding_dim=32))
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))  # "cuda" on GPUs
    # A learned scale has no dimension to shard, and each process computes its whole gradient.
    fully_shard(model, mesh=mesh, ignored_params=set(model.loss_fn.parameters()))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    if resume:
        model_state, optimizer_state = get_state_dict(model, optimizer)
        dcp.load({"model": model_state, "optimizer": optimizer_state, "sampler": sampler}, checkpoint_id=folder)
        set_state_dict(model, optimizer, model_state_dict=model_state, optim_state_dict=optimizer_state)

    losses = []
    for _ in range(epochs):
        for x1, x2, index in loader:
            loss = model(x1, x2, index)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    model_state, optimizer_state = get_state_dict(model, optimizer)
    dcp.save({"model": model_state, "optimizer": optimizer_state, "sampler": sampler}, checkpoint_id=folder)
    return losses


def main(objective: str = "ntxent", folder: str = "runs/fsdp2") -> list[float]:
    """Losses of a run of five epochs that stops after one and resumes."""
    return fit(objective, Path(folder), epochs=1) + fit(objective, Path(folder), epochs=4, resume=True)


if __name__ == "__main__":
    dist.init_process_group("gloo")  # "nccl" on GPUs
    losses = main(*sys.argv[1:])
    print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f}")
    dist.destroy_process_group()
