"""Right numbers before fast ones: value and gradient of every contestant against a dense float64 reference."""

import math

import harness
import torch
from harness import Loss
from peers import Objective, Peer, zoo_loss
from torch import Tensor

DRAWS, STANDARD_ERRORS = 1000, 1.5
TOLERANCE = 1e-5  # value relative to itself or 1, gradient relative to its largest entry; float32 against float64

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
    """Largest relative difference of value and gradient from the reference, over two steps in a row."""
    loss, reference = peer.make(), objective.peers[0].make()
    errors = []
    for seed in (1, 2):
        value, gradient = value_and_gradient(loss, batch_size, seed, torch.float32)
        true_value, true_gradient = value_and_gradient(reference, batch_size, seed, torch.float64)
        difference = (gradient / peer.gradient_factor - true_gradient).abs().max() / true_gradient.abs().max()
        errors.append(difference.item())
        if peer.has_value:
            errors.append(_relative(value, true_value))
    return max(math.inf if math.isnan(error) else error for error in errors)


def _relative(value: float, true_value: float) -> float:
    return abs(value - true_value) / max(1.0, abs(true_value))


def sampling_error(objective: Objective) -> tuple[float, float]:
    """Relative error of the zoo's value, and distance of the mean of its drawn gradients to their expectations.

    A seed decides in which order rows are met; the expectation is over what else it decides. The distance is in standard
    errors, the root mean square over the entries: about 1 if all is well.
    """
    from contrastive_zoo.samplers.mcmc import column_order
    from contrastive_zoo.samplers.randomness import step_seed

    def drawn(seed: int) -> Loss:
        loss = zoo_loss(objective.name, {**objective.params, "seed": seed}, num_samples=8)
        return lambda z1, z2, _: loss(z1, z2, torch.arange(8))

    def expected(seed: int) -> Loss:
        return lambda z1, z2, _: objective.expectation(z1, z2, column_order(16, step_seed(seed, torch.tensor(0))))

    draws = [value_and_gradient(drawn(seed), 8, 1, torch.float32) for seed in range(DRAWS)]
    truth = [value_and_gradient(expected(seed), 8, 1, torch.float64) for seed in range(DRAWS)]
    errors = torch.stack([gradient - true for (_, gradient), (_, true) in zip(draws, truth, strict=True)])
    distance = errors.mean(0).square().sum() / (errors.var(0).sum() / DRAWS)
    return max(_relative(value, true) for (value, _), (true, _) in zip(draws, truth, strict=True)), distance.sqrt().item()


def verify(objective: Objective, peer: Peer) -> None:
    """Stops the benchmark if a contestant's numbers are wrong. The scan of EMC2's authors is compared in `sampling.py`."""
    if objective.expectation and peer.kind == "zoo":
        error, distance = sampling_error(objective)
        _expect(distance < STANDARD_ERRORS, f"{objective.title}: mean gradient {distance:.2f} standard errors off")
        _expect(error < TOLERANCE, f"{objective.title}: value off by {error:.1e}")
    elif not objective.expectation:
        for batch_size in SIZES.get(peer.kind, PEER_SIZES):
            error = worst_error(objective, peer, batch_size)
            _expect(error < TOLERANCE, f"{objective.title}, {peer.name}, {batch_size} pairs: off by {error:.1e}")


def _expect(right: bool, wrong: str) -> None:
    if not right:
        raise SystemExit(f"{wrong}. Wrong numbers are not timed.")
