"""Pretrains a timm backbone on scikit-learn's digits. Needs contrastive-zoo[examples]."""

import argparse

import timm
import torch
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import contrastive_zoo as zoo

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--loss", default="ntxent", help=f"one of {', '.join(zoo.list_losses())}")
parser.add_argument("--epochs", type=int, default=15)
args = parser.parse_args()
torch.manual_seed(0)
device = "cuda" if torch.cuda.is_available() else "cpu"

# 8x8 digits, scaled to 32x32; every fifth is held out. IndexedDataset adds the position of each sample.
images, labels = (torch.tensor(array) for array in load_digits(return_X_y=True))
images = F.interpolate(images.view(-1, 1, 8, 8).float() / 16, size=32, mode="bilinear")
test = torch.arange(len(images)) % 5 == 0
dataset = zoo.IndexedDataset(TensorDataset(images[~test], labels[~test]))
loader = DataLoader(dataset, batch_size=128, shuffle=True, drop_last=True)

# The loss is a module: its tables and learned parameters are saved and optimised with the model.
encoder = timm.create_model("resnet10t", pretrained=False, num_classes=0, in_chans=1).to(device)
width = encoder.num_features
hidden = [nn.Linear(width, width), nn.BatchNorm1d(width), nn.ReLU()]
head = nn.Sequential(*hidden, nn.Linear(width, 64)).to(device)
loss_fn = zoo.get_loss(args.loss, num_samples=len(dataset)).to(device)
groups = [{"params": [*encoder.parameters(), *head.parameters()]}, *zoo.parameter_groups(loss_fn)]
optimizer = torch.optim.AdamW(groups, lr=2e-3, weight_decay=1e-4)
schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, args.epochs * len(loader))


def augment(batch: torch.Tensor) -> torch.Tensor:
    """A random affine map of each image, another brightness, and a square erased."""
    matrix = torch.eye(2, 3) + torch.empty(len(batch), 2, 3).uniform_(-0.3, 0.3)
    grid = F.affine_grid(matrix, list(batch.shape), align_corners=False)
    erased = (grid - torch.empty(len(batch), 1, 1, 2).uniform_(-1.5, 1.5)).abs().amax(3) < 0.3
    warped = F.grid_sample(batch, grid, align_corners=False).masked_fill(erased[:, None], 0)
    return warped * torch.empty(len(batch), 1, 1, 1).uniform_(0.6, 1.4)


@torch.no_grad()
def evaluate() -> tuple[torch.Tensor, float]:
    """Features of all images, and how many of the held-out ones the nearest class mean tells."""
    z = encoder.eval()(images.to(device)).cpu()
    encoder.train()
    return z, zoo.metrics.nearest_class_mean(z[~test], labels[~test], z[test], labels[test])


losses, accuracy = [], [evaluate()[1]]
for epoch in range(args.epochs):
    for batch, target, index in loader:
        views = torch.cat([augment(batch), augment(batch)]).to(device)
        z1, z2 = head(encoder(views)).chunk(2)
        loss = loss_fn(z1, z2, index=index, labels=target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    accuracy.append(evaluate()[1])
    print(f"epoch {epoch + 1}: loss {losses[-1]:.2f}, accuracy {accuracy[0]:.1%} -> {accuracy[-1]:.1%}")

parts = {"encoder": encoder, "head": head, "loss": loss_fn}
torch.save({name: part.state_dict() for name, part in parts.items()}, "encoder.pt")
figure = Figure(figsize=(11, 3.6), layout="constrained")
left, middle, right = figure.subplots(1, 3)
left.plot(losses)
left.set(xlabel="step", ylabel="loss")
middle.plot([100 * value for value in accuracy], marker="o")
middle.set(xlabel="epoch", ylabel="accuracy on held-out digits, %")
points = PCA(2).fit_transform(F.normalize(evaluate()[0][test], dim=1))
right.scatter(*points.T, c=labels[test], cmap="tab10", s=10)
right.set(xticks=[], yticks=[], xlabel="principal components of held-out digits")
figure.savefig("curves.svg")
