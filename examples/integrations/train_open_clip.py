"""open_clip: train a small CLIP model from scratch, with open_clip's call of the loss.

python examples/integrations/train_open_clip.py clip    # or siglip, sogclr
torchrun --nproc_per_node 2 examples/integrations/train_open_clip.py sogclr
"""

import math
import os
import sys

import open_clip
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, TensorDataset

import contrastive_zoo as zoo
from contrastive_zoo.integrations.open_clip import OpenClipLoss


def small_model(bias: bool) -> torch.nn.Module:
    """A CLIP with one layer of random weights in each tower."""
    vision = open_clip.CLIPVisionCfg(layers=1, width=32, head_width=16, patch_size=8, image_size=16)
    text = open_clip.CLIPTextCfg(context_length=8, vocab_size=64, width=32, heads=2, layers=1)
    start = {"init_logit_scale": math.log(10), "init_logit_bias": -10.0} if bias else {}
    return open_clip.CLIP(embed_dim=16, vision_cfg=vision, text_cfg=text, output_dict=True, **start)


def main(objective: str = "clip") -> list[float]:
    """Losses of 40 steps."""
    torch.manual_seed(0)
    images, texts = torch.rand(64, 3, 16, 16), torch.randint(1, 64, (64, 8))
    dataset = zoo.IndexedDataset(TensorDataset(images, texts))
    sampler = zoo.get_batch_sampler("shuffle", num_samples=len(dataset), batch_size=16)  # over all processes
    loader = DataLoader(dataset, batch_sampler=sampler)

    params = {"num_samples": len(dataset), "intra_view": False} if objective == "sogclr" else {}
    loss_fn = OpenClipLoss(zoo.get_loss(objective, **params))
    model = small_model(bias=objective == "siglip")
    if dist.is_initialized():
        model = DistributedDataParallel(model)
    decayed = [p for p in model.parameters() if p.dim() >= 2]
    rest = [p for p in model.parameters() if p.dim() < 2]  # the scale of the logits is among these
    groups = [{"params": decayed, "weight_decay": 0.2}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-3)

    losses = []
    for _ in range(10):
        for image, text, index in loader:
            output = model(image, text)  # image_features, text_features, logit_scale, and logit_bias for siglip
            loss = loss_fn(**output, index=index, output_dict=True)["contrastive_loss"]
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            with torch.no_grad():  # as open_clip's training loop does
                getattr(model, "module", model).logit_scale.clamp_(0, math.log(100))
            losses.append(loss.item())
    return losses


if __name__ == "__main__":
    if "RANK" in os.environ:
        dist.init_process_group("gloo")
    losses = main(*sys.argv[1:])
    print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f}")
    if dist.is_initialized():
        dist.destroy_process_group()
