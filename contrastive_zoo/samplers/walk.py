r"""Metropolis-Hastings chains over the rows of one batch, for the sampler "mcmc", in O(B D) memory.

Each row is an anchor with a chain over the rows of other samples, whose target is softmax(scale * s). Every row is proposed to
the chain once, in order; the first k of its nb valid columns are burn-in, and the state after each later column is kept with
weight 1 / (nb - k).

Yau et al., "EMC2: Efficient MCMC Negative Sampling for Contrastive Learning with Global Convergence", ICML 2024,
algorithm 1. arXiv:2404.10575

Shapes: N rows, D features, A anchors among the rows.
"""

from typing import Any

import torch
from torch import Tensor

from contrastive_zoo.operators import operator
from contrastive_zoo.samplers import walk_fused, walk_plain
from contrastive_zoo.samplers.chains import Chains, KeptStates
from contrastive_zoo.samplers.randomness import ONCE

__all__ = ["Chains", "KeptStates", "kept_shares", "walk_batch"]

TAKEN = (
    "Tensor x, Tensor scale, Tensor ids, Tensor carried, Tensor seed, float burn_in, bool uniform, SymInt first, bool fused,"
    " ScalarType? operand"
)
_TENSORS = 5


def walk_batch(chains: Chains) -> KeptStates:
    """Walk a chain for each anchor over the rows of other samples, in their order, with target softmax(scale * s).

    The gradient is that of the rows: the score of a carried state and the scale decide about moves only.

    Examples:
        >>> import torch
        >>> from contrastive_zoo.samplers.randomness import step_seed
        >>> x = torch.nn.functional.normalize(torch.randn(8, 4), dim=1)
        >>> seed, fresh = step_seed(0, torch.tensor(0)), torch.full((8,), -torch.inf)
        >>> chains = Chains(x, torch.tensor(10.0), torch.arange(8), fresh, seed)
        >>> walk_batch(chains).similarity.shape
        torch.Size([8])
    """
    chains = chains._replace(scale=chains.scale.detach(), carried=chains.carried.detach())
    return KeptStates(*walk_chains(*chains)[:6])


@torch.no_grad()
def kept_shares(chains: Chains) -> tuple[Tensor, Tensor]:
    """Fractions of the kept states in a walk: (N, N) per anchor and row, and (N,) for the carried state.

    Repeats the walk of all rows with the same draws, and stores the (N, N) matrix.
    """
    return walk_plain.shares(chains, walk_fused.moves(chains) if chains.fused else None)


@operator("contrastive_zoo::walk_chains", f"({TAKEN}) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)")
def walk_chains(*taken: Any) -> tuple[Tensor, ...]:
    """The fields of `KeptStates` for A anchors, and the gradient of the sum of their similarities if ``uniform``."""
    chains = Chains(*taken)
    found, gradient = (walk_fused if chains.fused else walk_plain).forward(chains)
    return *found, gradient


@walk_chains.register_fake
def _(*taken: Any) -> tuple[Tensor, ...]:
    chains = Chains(*taken)
    floats = [torch.empty_like(chains.carried) for _ in range(5)]
    gradient = torch.empty_like(chains.x) if chains.uniform else chains.x.new_empty(0)
    return *floats[:2], torch.empty_like(chains.carried, dtype=torch.int64), *floats[2:], gradient


@operator("contrastive_zoo::walk_chains_backward", f"(Tensor grad, {TAKEN}) -> Tensor")
def walk_chains_backward(grad: Tensor, *taken: Any) -> Tensor:
    """Gradient of x for any upstream gradient of the anchors, by repeating the walk."""
    chains = Chains(*taken)
    return (walk_fused if chains.fused else walk_plain).backward(chains, grad)


@walk_chains_backward.register_fake
def _(grad: Tensor, *taken: Any) -> Tensor:
    return torch.empty_like(Chains(*taken).x)


def _setup(ctx: Any, inputs: Any, output: Any) -> None:
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)
    ctx.words, ctx.uniform = inputs[_TENSORS:], Chains(*inputs).uniform
    if ctx.uniform:
        ctx.save_for_backward(output[6], inputs[0])  # the gradient depends on x, so a second derivative is refused
    else:
        ctx.save_for_backward(*inputs[:_TENSORS])


def _gradient(ctx: Any, compute: Any, grad: Tensor, *_: Any) -> Any:
    if not ctx.uniform:
        grad_x = compute(grad, *ctx.saved_tensors, *ctx.words)
    else:
        # Anchors without a kept state contribute no gradient, so their upstream gradient may differ: use the largest.
        gradient, _ = ctx.saved_tensors
        grad_x = gradient * grad.gather(0, grad.abs().argmax()[None]) if grad.shape[0] else gradient
    return grad_x, *(None,) * (len(Chains._fields) - 1)


walk_chains.differentiate(walk_chains_backward, _setup, _gradient, advice=ONCE)
