"""The tiled sums of softplus as torch operators: opaque to `torch.compile`, differentiable once, deaf to autocast."""

from typing import Any

import torch
from torch import Tensor

from contrastive_zoo.operators import operator, without_autocast
from contrastive_zoo.pairwise.tiled_softplus import ClassTiles, Gradient, softplus_sweep
from contrastive_zoo.pairwise.tiles import Tiles

Gradients = tuple[Tensor, Tensor, Tensor, Tensor]


def _empty_gradients(x: Tensor, keys: Tensor | None, needs_keys: bool) -> Gradients:
    """Gradients of x, keys, scale and bias, not filled in."""
    of_keys = torch.empty_like(keys) if keys is not None and needs_keys else x.new_empty(0)
    return torch.empty_like(x), of_keys, x.new_empty(()), x.new_empty(x.shape[0])


@operator(
    "contrastive_zoo::softplus_sum",
    "(Tensor x, Tensor? keys, Tensor scale, Tensor bias, Tensor? ids, Tensor? key_ids, float norm_bound, bool prepare)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
)
def softplus_sum(
    x: Tensor,
    keys: Tensor | None,
    scale: Tensor,
    bias: Tensor,
    ids: Tensor | None,
    key_ids: Tensor | None,
    norm_bound: float,
    prepare: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(N,) sums over the keys with another id; gradients of x, keys, scale and bias of their sum, empty unless ``prepare``."""
    sums, scale = x.new_zeros(x.shape[0]), scale.to(x)
    with without_autocast(x):
        tiles = Tiles(x, keys, ids, key_ids)
        gradient = Gradient(tiles, torch.ones_like(sums), keys is not None) if prepare else None
        softplus_sweep(tiles, scale, bias, norm_bound, sums=sums, gradient=gradient)
        prepared = [x.new_empty(0) for _ in range(4)] if gradient is None else gradient.finished(tiles, scale)
    return sums, *prepared


@softplus_sum.register_fake
def _(
    x: Tensor,
    keys: Tensor | None,
    scale: Tensor,
    bias: Tensor,
    ids: Tensor | None,
    key_ids: Tensor | None,
    norm_bound: float,
    prepare: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    prepared = _empty_gradients(x, keys, True) if prepare else [x.new_empty(0) for _ in range(4)]
    return x.new_empty(x.shape[0]), *prepared


@operator(
    "contrastive_zoo::softplus_sum_backward",
    "(Tensor grad, Tensor x, Tensor? keys, Tensor scale, Tensor bias, Tensor? ids, Tensor? key_ids, float norm_bound,"
    " bool needs_keys, Tensor[] prepared) -> (Tensor, Tensor, Tensor, Tensor)",
)
def softplus_sum_backward(
    grad: Tensor,
    x: Tensor,
    keys: Tensor | None,
    scale: Tensor,
    bias: Tensor,
    ids: Tensor | None,
    key_ids: Tensor | None,
    norm_bound: float,
    needs_keys: bool,
    prepared: list[Tensor],
) -> Gradients:
    """Gradients of x, keys (empty unless needed), scale and bias; from a sweep unless they were prepared."""
    if prepared:
        factor = _uniform(grad)
        of_x, of_keys, of_scale, of_bias = (gradient * factor for gradient in prepared)
        return of_x, of_keys if needs_keys else x.new_empty(0), of_scale, of_bias
    with without_autocast(x):
        tiles = Tiles(x, keys, ids, key_ids)
        gradient = Gradient(tiles, grad, needs_keys)
        softplus_sweep(tiles, scale.to(x), bias, norm_bound, sums=None, gradient=gradient)
        return gradient.finished(tiles, scale.to(x))


@softplus_sum_backward.register_fake
def _(
    grad: Tensor,
    x: Tensor,
    keys: Tensor | None,
    scale: Tensor,
    bias: Tensor,
    ids: Tensor | None,
    key_ids: Tensor | None,
    norm_bound: float,
    needs_keys: bool,
    prepared: list[Tensor],
) -> Gradients:
    return _empty_gradients(x, keys, needs_keys)


def _uniform(grad: Tensor) -> Tensor:
    """The one value of an upstream gradient that was promised to be the same for all rows; otherwise NaN on accelerators."""
    same = ((grad == grad[0]) | grad.isnan()).all()
    if grad.is_cpu and not same:
        raise RuntimeError(
            "the upstream gradient differs between rows although softplus_sum was called with uniform=True. Call it without."
        )
    return torch.where(same, grad[0], torch.nan)


def _setup(ctx: Any, inputs: Any, output: Any) -> None:
    x, keys, scale, bias, ids, key_ids, ctx.norm_bound, ctx.prepare = inputs
    ctx.save_for_backward(x, keys, scale, bias, ids, key_ids, *output[1:])
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)


def _gradient(ctx: Any, compute: Any, grad: Tensor | None, *_: Any) -> Any:
    if grad is None:
        return (None,) * 8
    x, keys, scale, bias, ids, key_ids, *prepared = ctx.saved_tensors
    _, needs_keys, needs_scale, needs_bias = ctx.needs_input_grad[:4]
    of_x, of_keys, of_scale, of_bias = compute(
        grad, x, keys, scale, bias, ids, key_ids, ctx.norm_bound, needs_keys, prepared if ctx.prepare else []
    )
    of_scale = of_scale.to(scale) if needs_scale else None
    return of_x, of_keys if needs_keys else None, of_scale, of_bias if needs_bias else None, None, None, None, None


softplus_sum.differentiate(softplus_sum_backward, _setup, _gradient)


@operator(
    "contrastive_zoo::softplus_sum_within",
    "(Tensor x, Tensor scale, Tensor bias, Tensor ids, float norm_bound) -> Tensor",
)
def softplus_sum_within(x: Tensor, scale: Tensor, bias: Tensor, ids: Tensor, norm_bound: float) -> Tensor:
    """(N,) sums over the other rows with the same id."""
    ids, order = ids.sort(stable=True)
    order = order.to(x.device)
    sums = x.new_zeros(x.shape[0])
    with without_autocast(x):
        softplus_sweep(ClassTiles(x[order], ids), scale.to(x), bias[order], norm_bound, sums=sums, gradient=None)
    return torch.empty_like(sums).index_copy_(0, order, sums)


@softplus_sum_within.register_fake
def _(x: Tensor, scale: Tensor, bias: Tensor, ids: Tensor, norm_bound: float) -> Tensor:
    return x.new_empty(x.shape[0])


@operator(
    "contrastive_zoo::softplus_sum_within_backward",
    "(Tensor grad, Tensor x, Tensor scale, Tensor bias, Tensor ids, float norm_bound) -> (Tensor, Tensor, Tensor)",
)
def softplus_sum_within_backward(
    grad: Tensor, x: Tensor, scale: Tensor, bias: Tensor, ids: Tensor, norm_bound: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, scale and bias."""
    ids, order = ids.sort(stable=True)
    order = order.to(x.device)
    with without_autocast(x):
        tiles = ClassTiles(x[order], ids)
        gradient = Gradient(tiles, grad[order], needs_keys=False)
        softplus_sweep(tiles, scale.to(x), bias[order], norm_bound, sums=None, gradient=gradient)
        of_x, _, of_scale, of_bias = gradient.finished(tiles, scale.to(x))
    of_x, of_bias = (torch.empty_like(g).index_copy_(0, order, g) for g in (of_x, of_bias))
    return of_x, of_scale, of_bias


@softplus_sum_within_backward.register_fake
def _(grad: Tensor, x: Tensor, scale: Tensor, bias: Tensor, ids: Tensor, norm_bound: float) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(x), x.new_empty(()), x.new_empty(x.shape[0])


def _within_setup(ctx: Any, inputs: Any, output: Any) -> None:
    x, scale, bias, ids, ctx.norm_bound = inputs
    ctx.save_for_backward(x, scale, bias, ids)


def _within_gradient(ctx: Any, compute: Any, grad: Tensor) -> Any:
    x, scale, bias, ids = ctx.saved_tensors
    of_x, of_scale, of_bias = compute(grad, x, scale, bias, ids, ctx.norm_bound)
    _, needs_scale, needs_bias = ctx.needs_input_grad[:3]
    return of_x, of_scale.to(scale) if needs_scale else None, of_bias if needs_bias else None, None, None


softplus_sum_within.differentiate(softplus_sum_within_backward, _within_setup, _within_gradient)
