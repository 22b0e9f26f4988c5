"""The bare sweep: what no tiled computation of pairwise exponentials can do without, and nothing else."""

import torch
import torch.nn.functional as F
from harness import Step
from peers import Objective
from torch import Tensor


def bare_sweep(x: Tensor, keys: Tensor | None, scale: float, tile: int) -> Step:
    """Products and exponentials of the tiles forward, then both again with the products of the gradient.

    Without keys each pair of tiles is visited once: half a product, half to compute it again, one for the gradient.
    """
    symmetric, keys = keys is None, x if keys is None else keys
    anchors, grad_x = x * scale, torch.zeros_like(x)
    grad_keys = grad_x if symmetric else torch.zeros_like(keys)
    buffer = x.new_empty(tile * tile)

    def step() -> None:
        for backward in (False, True):
            for i in range(0, len(x), tile):
                for j in range(i if symmetric else 0, len(keys), tile):
                    a, b = anchors[i : i + tile], keys[j : j + tile]
                    e = torch.mm(a, b.T, out=buffer[: len(a) * len(b)].view(len(a), len(b))).exp2_()
                    if backward:
                        grad_x[i : i + tile].addmm_(e, b)
                    if backward and not (symmetric and i == j):
                        grad_keys[j : j + tile].addmm_(e.T, a)

    return step


def bare_sweep_of(objective: Objective, z1: Tensor, z2: Tensor) -> Step | None:
    """With the tile size of the zoo."""
    from contrastive_zoo.pairwise.sweep import Sweep
    from contrastive_zoo.pairwise.tiled.tiles import Tiles

    a, b = (F.normalize(z.detach(), dim=1) for z in (z1, z2))
    blocks = {"stacked": [(torch.cat([a, b]), None)], "views": [(a, None), (b, None)], "cross": [(a, b)], None: []}
    steps = [bare_sweep(x, keys, 2.0, Tiles(Sweep.of(x, keys), x).size) for x, keys in blocks[objective.sweep]]
    return (lambda: [step() for step in steps]) if steps else None
