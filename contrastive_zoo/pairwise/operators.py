"""The tiled sweeps as torch operators: opaque to `torch.compile`, differentiable once, deaf to autocast."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from contrastive_zoo import scratch
from contrastive_zoo.operators import operator, without_autocast
from contrastive_zoo.pairwise import tiled, tiled_kernels
from contrastive_zoo.pairwise.tiles import KEEP_BYTES, tile_size, tiles_numel


def _numel(x: Tensor, keys: Tensor | None, part: Sequence[int]) -> int:
    """Entries of all the tiles of a sweep over one set of rows, of its other parts too."""
    rows = x.shape[-2]
    columns = rows if keys is None else keys.shape[0]
    return tiles_numel(rows, columns, tile_size(rows, columns, x.device, keys is None, part[1]), keys is None)


def keeps_tiles(x: Tensor, keys: Tensor | None, part: Sequence[int]) -> bool:
    """Whether a sweep is small enough to keep its tiles for the backward pass."""
    return len(sets(x)) * _numel(x, keys, part) * x.element_size() <= KEEP_BYTES


def sets(x: Tensor) -> tuple[Tensor, ...]:
    """The sets of rows that are swept each by itself: of (G, N, D) rows there are G."""
    return x.unbind() if x.dim() == 3 else (x,)


@operator(
    "contrastive_zoo::logsumexp",
    "(Tensor x, Tensor? keys, Tensor scale, Tensor? ids, Tensor? key_ids, bool both, float norm_bound, bool keep,"
    " int[] part)"
    " -> (Tensor, Tensor, Tensor)",
)
def logsumexp(
    x: Tensor,
    keys: Tensor | None,
    scale: Tensor,
    ids: Tensor | None,
    key_ids: Tensor | None,
    both: bool,
    norm_bound: float,
    keep: bool,
    part: Sequence[int],
) -> tuple[Tensor, Tensor, Tensor]:
    """Rows (K, N) or (K, G, N), columns (empty unless ``both``), and the kept tiles of each set (empty unless ``keep``)."""
    each = sets(x)
    kept = scratch.empty(x, len(each), _numel(x, keys, part) if keep else 0)
    with without_autocast(x):
        sums = [
            tiled.logsumexp_forward(
                rows, keys, scale, ids, key_ids, both, norm_bound, room if keep else None, (part[0], part[1])
            )
            for rows, room in zip(each, kept.unbind(), strict=True)
        ]
    rows, columns = sums[0]
    return rows if x.dim() == 2 else torch.stack([rows for rows, _ in sums], 1), columns, kept


@logsumexp.register_fake
def _(
    x: Tensor,
    keys: Tensor | None,
    scale: Tensor,
    ids: Tensor | None,
    key_ids: Tensor | None,
    both: bool,
    norm_bound: float,
    keep: bool,
    part: Sequence[int],
) -> tuple[Tensor, Tensor, Tensor]:
    kept = x.new_empty(len(sets(x)), _numel(x, keys, part) if keep else 0)
    columns = x.new_empty(0) if keys is None else x.new_empty(scale.shape[0], keys.shape[0] if both else 0)
    return x.new_empty(scale.shape[0], *x.shape[:-1]), columns, kept


@operator(
    "contrastive_zoo::logsumexp_backward",
    "(Tensor grad_rows, Tensor grad_columns, Tensor rows, Tensor columns, Tensor x, Tensor? keys, Tensor scale,"
    " Tensor? ids, Tensor? key_ids, bool both, float norm_bound, Tensor kept, bool needs_keys, bool needs_scale, int[] part)"
    " -> (Tensor, Tensor, Tensor)",
)
def logsumexp_backward(
    grad_rows: Tensor,
    grad_columns: Tensor,
    rows: Tensor,
    columns: Tensor,
    x: Tensor,
    keys: Tensor | None,
    scale: Tensor,
    ids: Tensor | None,
    key_ids: Tensor | None,
    both: bool,
    norm_bound: float,
    kept: Tensor,
    needs_keys: bool,
    needs_scale: bool,
    part: Sequence[int],
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, keys (empty unless needed) and scale (zero unless needed)."""
    grad_x, grad_scale = torch.zeros_like(x), torch.zeros_like(scale)
    several = x.dim() == 3
    with without_autocast(x):
        for number, (of_set, grad_set) in enumerate(zip(sets(x), sets(grad_x), strict=True)):
            grad_keys, grad = tiled.logsumexp_backward(
                grad_rows[:, number] if several else grad_rows,
                grad_columns,
                rows[:, number] if several else rows,
                columns,
                of_set,
                keys,
                scale,
                ids,
                key_ids,
                both,
                norm_bound,
                kept[number] if kept.numel() else None,
                needs_keys,
                needs_scale,
                (part[0], part[1]),
                grad_set,
            )
            if needs_scale:
                grad_scale += grad
    return grad_x, grad_keys, grad_scale


@logsumexp_backward.register_fake
def _(
    grad_rows: Tensor,
    grad_columns: Tensor,
    rows: Tensor,
    columns: Tensor,
    x: Tensor,
    keys: Tensor | None,
    scale: Tensor,
    ids: Tensor | None,
    key_ids: Tensor | None,
    both: bool,
    norm_bound: float,
    kept: Tensor,
    needs_keys: bool,
    needs_scale: bool,
    part: Sequence[int],
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        torch.empty_like(x),
        x.new_empty(0) if keys is None or not needs_keys else torch.empty_like(keys),
        torch.empty_like(scale),
    )


def _logsumexp_setup(ctx: Any, inputs: Any, output: Any) -> None:
    x, keys, scale, ids, key_ids, both, norm_bound, _, part = inputs
    ctx.save_for_backward(*output, x, keys, scale, ids, key_ids)
    ctx.both, ctx.norm_bound, ctx.part = both, norm_bound, part
    ctx.mark_non_differentiable(output[2])
    ctx.set_materialize_grads(False)


def _logsumexp_gradient(ctx: Any, compute: Any, grad_rows: Tensor | None, grad_columns: Tensor | None, _: Any) -> Any:
    rows, columns, kept, x, keys, scale, ids, key_ids = ctx.saved_tensors
    needs_keys, needs_scale = ctx.needs_input_grad[1], ctx.needs_input_grad[2]
    grad_x, grad_keys, grad_scale = compute(
        torch.zeros_like(rows) if grad_rows is None else grad_rows,
        torch.zeros_like(columns) if grad_columns is None else grad_columns,
        rows,
        columns,
        x,
        keys,
        scale,
        ids,
        key_ids,
        ctx.both,
        ctx.norm_bound,
        kept,
        needs_keys,
        needs_scale,
        ctx.part,
    )
    grads = (grad_x, grad_keys if needs_keys else None, grad_scale if needs_scale else None)
    return *grads, None, None, None, None, None, None


logsumexp.differentiate(logsumexp_backward, _logsumexp_setup, _logsumexp_gradient)


@operator(
    "contrastive_zoo::kernel_sum",
    "(Tensor x, Tensor? squared_norms, Tensor? ids, str kernel, float parameter, float rounding, int[] part) -> Tensor",
)
def kernel_sum(
    x: Tensor,
    squared_norms: Tensor | None,
    ids: Tensor | None,
    kernel: str,
    parameter: float,
    rounding: float,
    part: Sequence[int],
) -> Tensor:
    """(N,) sums of a kernel over the rows with another id."""
    with without_autocast(x):
        return tiled_kernels.kernel_sum_forward(x, squared_norms, ids, kernel, parameter, rounding, (part[0], part[1]))


@kernel_sum.register_fake
def _(
    x: Tensor,
    squared_norms: Tensor | None,
    ids: Tensor | None,
    kernel: str,
    parameter: float,
    rounding: float,
    part: Sequence[int],
) -> Tensor:
    return x.new_empty(x.shape[0])


@operator(
    "contrastive_zoo::kernel_sum_backward",
    "(Tensor grad, Tensor x, Tensor? squared_norms, Tensor? ids, str kernel, float parameter, float rounding, int[] part)"
    " -> (Tensor, Tensor)",
)
def kernel_sum_backward(
    grad: Tensor,
    x: Tensor,
    squared_norms: Tensor | None,
    ids: Tensor | None,
    kernel: str,
    parameter: float,
    rounding: float,
    part: Sequence[int],
) -> tuple[Tensor, Tensor]:
    """Gradients of x and, if given, the squared norms."""
    with without_autocast(x):
        return tiled_kernels.kernel_sum_backward(grad, x, squared_norms, ids, kernel, parameter, rounding, (part[0], part[1]))


@kernel_sum_backward.register_fake
def _(
    grad: Tensor,
    x: Tensor,
    squared_norms: Tensor | None,
    ids: Tensor | None,
    kernel: str,
    parameter: float,
    rounding: float,
    part: Sequence[int],
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), x.new_empty(0 if squared_norms is None else x.shape[0])


def _kernel_sum_setup(ctx: Any, inputs: Any, output: Any) -> None:
    x, squared_norms, ids, ctx.kernel, ctx.parameter, ctx.rounding, ctx.part = inputs
    ctx.save_for_backward(x, squared_norms, ids)


def _kernel_sum_gradient(ctx: Any, compute: Any, grad: Tensor) -> Any:
    x, squared_norms, ids = ctx.saved_tensors
    grad_x, grad_norms = compute(grad, x, squared_norms, ids, ctx.kernel, ctx.parameter, ctx.rounding, ctx.part)
    return grad_x, None if squared_norms is None else grad_norms, None, None, None, None, None


kernel_sum.differentiate(kernel_sum_backward, _kernel_sum_setup, _kernel_sum_gradient)
