"""torch.compile: encoder, loss and their backward pass as one compiled step.

python examples/integrations/train_compile.py ntxent    # or sogclr, emc2
"""

import sys

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import contrastive_zoo as zoo


def main(objective: str = "ntxent") -> list[float]:
    """Losses of 40 steps."""
    torch.manual_seed(0)
    samples = torch.rand(256, 16)
    views = samples + 0.1 * torch.randn(2, 256, 16)
    dataset = zoo.IndexedDataset(TensorDataset(*views))
    loader = DataLoader(dataset, batch_size=32, shuffle=True, drop_last=True)
    encoder = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 32))
    # The width of the embeddings lets tables exist before the step is compiled.
    loss_fn = zoo.get_loss(objective, num_samples=len(dataset), embedding_dim=32)
    optimizer = torch.optim.AdamW([{"params": encoder.parameters()}, *zoo.parameter_groups(loss_fn)], lr=0.01)

    @torch.compile
    def loss_of(x1: torch.Tensor, x2: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        return loss_fn(encoder(x1), encoder(x2), index=index)

    losses = []
    for _ in range(5):
        for x1, x2, index in loader:
            loss = loss_of(x1, x2, index)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return losses


if __name__ == "__main__":
    losses = main(*sys.argv[1:])
    print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f}")
