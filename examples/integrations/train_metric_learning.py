"""pytorch-metric-learning: losses of the zoo in its trainer, with its samplers, by labels or by pairs of views.

python examples/integrations/train_metric_learning.py ntxent    # or sogclr, emc2, supcon
"""

import sys

import torch
from pytorch_metric_learning.samplers import MPerClassSampler
from pytorch_metric_learning.trainers import MetricLossOnly
from torch import nn
from torch.utils.data import TensorDataset

import contrastive_zoo as zoo
from contrastive_zoo.integrations.pytorch_metric_learning import MetricLoss


def collate(samples: list[tuple[torch.Tensor, torch.Tensor]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Two views of each sample, one after the other, with the position of the sample twice."""
    x, index = map(torch.stack, zip(*samples, strict=True))
    return torch.cat([x + 0.1 * torch.randn_like(x), x + 0.1 * torch.randn_like(x)]), index.repeat(2)


def main(objective: str = "ntxent") -> list[float]:
    """Losses of 40 steps."""
    torch.manual_seed(0)
    classes = torch.arange(256) % 8
    samples = torch.rand(8, 16)[classes] + 0.3 * torch.rand(256, 16)
    encoder = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 32))
    loss_fn = MetricLoss(zoo.get_loss(objective, num_samples=len(samples)))
    by_class = objective == "supcon"

    losses: list[float] = []
    loss_fn.register_forward_hook(lambda module, given, loss: losses.append(loss.item()))
    trainer = MetricLossOnly(
        models={"trunk": encoder},
        optimizers={"trunk_optimizer": torch.optim.AdamW(encoder.parameters(), lr=0.01)},
        loss_funcs={"metric_loss": loss_fn},
        dataset=TensorDataset(samples, classes if by_class else torch.arange(len(samples))),
        sampler=MPerClassSampler(classes, m=4, batch_size=32, length_before_new_iter=256) if by_class else None,
        collate_fn=None if by_class else collate,
        batch_size=32,
        dataloader_num_workers=0,
    )
    trainer.train(num_epochs=5)
    return losses


if __name__ == "__main__":
    losses = main(*sys.argv[1:])
    print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f}")
