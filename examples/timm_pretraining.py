"""Pretrains a timm backbone on scikit-learn's digits. Needs contrastive-zoo[examples]."""

import argparse

import timm
import torch
from matplotlib import pyplot as plt
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torchvision.transforms import v2

import contrastive_zoo as zoo

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--loss", default="ntxent", help=f"one of {', '.join(zoo.list_losses())}")
parser.add_argument("--epochs", type=int, default=15)
args = parser.parse_args()
torch.manual_seed(0)
device = "cuda" if torch.cuda.is_available() else "cpu"

# 8x8 digits, scaled to 32x32; every fifth is held out. IndexedDataset adds the position of each sample.
images, labels = (torch.tensor(array) for array in load_digits(return_X_y=True))
images = v2.functional.resize(images.view(-1, 1, 8, 8).float() / 16, [32, 32])
test = torch.arange(len(images)) % 5 == 0
dataset = zoo.IndexedDataset(TensorDataset(images[~test], labels[~test]))
loader = DataLoader(dataset, batch_size=128, shuffle=True, drop_last=True)
augment = v2.Compose([v2.RandomAffine(15, (0.1, 0.1), (0.8, 1.2)), v2.ColorJitter(0.4), v2.RandomErasing()])

# The loss is a module: its tables and learned parameters are saved and optimised with the model.
encoder = timm.create_model("resnet10t", pretrained=False, num_classes=0, in_chans=1).to(device)
head = nn.Sequential(nn.Linear(encoder.num_features, 512), nn.ReLU(), nn.Linear(512, 64)).to(device)
loss_fn = zoo.get_loss(args.loss, num_samples=len(dataset)).to(device)
groups = [{"params": [*encoder.parameters(), *head.parameters()]}, *zoo.parameter_groups(loss_fn)]
optimizer = torch.optim.AdamW(groups, lr=1e-3, weight_decay=1e-4)

losses, accuracy = [], []
for epoch in range(args.epochs):
    for batch, target, index in loader:
        views = torch.stack([augment(image) for image in torch.cat([batch, batch])]).to(device)
        z1, z2 = head(encoder.train()(views)).chunk(2)
        loss = loss_fn(z1, z2, index=index, labels=target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    with torch.no_grad():
        z = encoder.eval()(images.to(device)).cpu()
    accuracy.append(zoo.metrics.nearest_class_mean(z[~test], labels[~test], z[test], labels[test]))
    print(f"epoch {epoch + 1}: loss {losses[-1]:.2f}, accuracy {accuracy[-1]:.1%}")

torch.save({"encoder": encoder.state_dict(), "loss": loss_fn.state_dict()}, "encoder.pt")
figure, axes = plt.subplots(1, 3, figsize=(11, 3.6), layout="constrained")
axes[0].plot(losses)
axes[1].plot(range(1, args.epochs + 1), accuracy, marker="o")
axes[2].scatter(*PCA(2).fit_transform(z[test]).T, c=labels[test], cmap="tab10", s=10)
for panel, title in zip(axes, ("loss by step", "accuracy by epoch", "held-out digits"), strict=True):
    panel.set_title(title)
figure.savefig("curves.svg")
