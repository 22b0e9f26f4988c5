"""MoCo: a momentum encoder makes the keys, a queue keeps them."""

import copy

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import contrastive_zoo as zoo

torch.manual_seed(0)
dataset = zoo.IndexedDataset(TensorDataset(torch.randn(512, 32)))  # your images
loader = DataLoader(dataset, batch_size=64, shuffle=True, drop_last=True)
encoder = nn.Sequential(nn.Linear(32, 128), nn.ReLU(), nn.Linear(128, 32))  # your backbone and head
momentum_encoder = copy.deepcopy(encoder).requires_grad_(False)
queue = zoo.samplers.FeatureQueue(256, embedding_dim=32)
loss_fn = zoo.get_loss("infonce", temperature=0.2, symmetric=False, in_batch=False)
optimizer = torch.optim.AdamW(encoder.parameters(), lr=1e-3)

for epoch in range(10):
    for images, index in loader:
        queries = encoder(images + 0.3 * torch.randn_like(images))  # your augmentation
        with torch.no_grad():
            for old, new in zip(momentum_encoder.parameters(), encoder.parameters(), strict=True):
                old.lerp_(new, 1 - 0.99)
            keys = momentum_encoder(images + 0.3 * torch.randn_like(images))
        if len(queue):  # an anchor's own sample is never a negative
            known = {"negatives": queue.negatives, "negatives_index": queue.negatives_index}
            loss = loss_fn(queries, keys, index=index, **known)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        queue.push(keys, index)
    print(f"epoch {epoch + 1}: loss {loss.item():.3f}, {len(queue)} keys in the queue")
