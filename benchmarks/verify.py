"""Right numbers before fast ones: value and gradient of every contestant against a dense float64 reference."""

import math

import harness
import torch
from harness import Loss
from peers import Objective, Peer
from torch import Tensor

TOLERANCE = 1e-5  # value relative to itself, gradient relative to its largest entry; float32 against float64

# The zoo takes other ways at other sizes: whole matrices, tiles that are kept, tiles that are computed again.
SIZES = {"zoo": (48, 600, 1500)}
PEER_SIZES = (48,)


def value_and_gradient(loss: Loss, batch_size: int, seed: int, dtype: torch.dtype) -> tuple[float, Tensor]:
    """At the features of the seed, but always the same index, so that tables meet their samples again."""
    z1, z2, _ = harness.features(batch_size, seed=seed)
    index = harness.features(batch_size)[2]
    z1, z2 = (z.detach().to(dtype).requires_grad_() for z in (z1, z2))
    value = loss(z1, z2, index)
    value.backward()
    return value.item(), torch.stack([z1.grad, z2.grad]).double()


def worst_error(objective: Objective, peer: Peer, batch_size: int) -> float:
    """Largest relative difference of value and gradient to the reference, over two steps in a row."""
    loss, reference = peer.make(), objective.peers[0].make()
    errors = []
    for seed in (1, 2):
        value, gradient = value_and_gradient(loss, batch_size, seed, torch.float32)
        true_value, true_gradient = value_and_gradient(reference, batch_size, seed, torch.float64)
        difference = (gradient / peer.gradient_factor - true_gradient).abs().max() / true_gradient.abs().max()
        errors.append(difference.item())
        if peer.has_value:
            errors.append(abs(value / true_value - 1))
    return max(math.inf if math.isnan(error) else error for error in errors)


def verify(objective: Objective, peer: Peer) -> None:
    """Stops the benchmark if a contestant's numbers are wrong."""
    for batch_size in SIZES.get(peer.kind, PEER_SIZES):
        error = worst_error(objective, peer, batch_size)
        if error > TOLERANCE:
            what = f"{objective.title}, {peer.name}, {batch_size} pairs: off by {error:.1e}"
            raise SystemExit(f"{what}, more than {TOLERANCE:.0e}. Wrong numbers are not timed.")
