"""lightly: its transform and projection head, with a loss of the zoo in place of its NTXentLoss.

python examples/integrations/train_lightly.py ntxent    # or sogclr, emc2
"""

import sys

import torch
from lightly.models.modules import SimCLRProjectionHead
from lightly.transforms import SimCLRTransform
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms.functional import to_pil_image

import contrastive_zoo as zoo


class Images(Dataset):
    """Two views of each of 64 random images, by lightly's transform."""

    def __init__(self) -> None:
        squares = torch.rand(64, 3, 4, 4).repeat_interleave(8, 2).repeat_interleave(8, 3)
        self.images = [to_pil_image(image) for image in squares]
        self.transform = SimCLRTransform(input_size=16, gaussian_blur=0.0)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, position: int) -> tuple[torch.Tensor, torch.Tensor]:
        return tuple(self.transform(self.images[position]))


def main(objective: str = "ntxent") -> list[float]:
    """Losses of 60 steps."""
    torch.manual_seed(0)
    dataset = zoo.IndexedDataset(Images())
    loader = DataLoader(dataset, batch_size=32, shuffle=True, drop_last=True)
    head = SimCLRProjectionHead(128, 64, 32)
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 128), nn.ReLU(), head)
    loss_fn = zoo.get_loss(objective, num_samples=len(dataset), temperature=0.5)  # was NTXentLoss()
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=0.003)

    losses = []
    for _ in range(30):
        for x0, x1, index in loader:
            loss = loss_fn(encoder(x0), encoder(x1), index=index)  # was criterion(z0, z1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return losses


if __name__ == "__main__":
    losses = main(*sys.argv[1:])
    print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f}")
