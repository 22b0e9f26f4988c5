"""The tiled sweeps as torch operators: opaque to `torch.compile`, differentiable once, deaf to autocast."""

from typing import Any

import torch
from torch import Tensor

from contrastive_zoo.pairwise import tiled, tiled_kernels
from contrastive_zoo.pairwise.tiles import KEEP_BYTES, kept_numel, tile_size

SECOND_DERIVATIVE = (
    "the tiled backend has no second derivative (create_graph=True, gradient penalties, Hessians). "
    "Use backend='dense', which is plain autograd."
)


def _no_second_derivative(ctx: Any, *grads: Any) -> Any:
    raise RuntimeError(SECOND_DERIVATIVE)


def _plain(x: Tensor) -> Any:
    """Autocast off: the sweep decides its own precision."""
    return torch.autocast(x.device.type, enabled=False)


def keeps_tiles(rows: int, columns: int, symmetric: bool, x: Tensor) -> bool:
    """Whether a sweep is small enough to keep its tiles for the backward pass."""
    return kept_numel(rows, columns, tile_size(x.device), symmetric) * x.element_size() <= KEEP_BYTES


@torch.library.custom_op(
    "contrastive_zoo::logsumexp",
    mutates_args=(),
    schema="(Tensor x, Tensor? keys, Tensor scale, Tensor? ids, Tensor? key_ids, bool both, float norm_bound, bool keep)"
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
) -> tuple[Tensor, Tensor, Tensor]:
    """Rows, columns (empty unless ``both``), and the kept tiles (empty unless ``keep``)."""
    columns = len(x) if keys is None else len(keys)
    kept = x.new_empty(kept_numel(len(x), columns, tile_size(x.device), keys is None) if keep else 0)
    with _plain(x):
        sums = tiled.logsumexp_forward(x, keys, scale, ids, key_ids, both, norm_bound, kept if keep else None)
    return *sums, kept


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
) -> tuple[Tensor, Tensor, Tensor]:
    rows, columns = x.shape[0], x.shape[0] if keys is None else keys.shape[0]
    kept = x.new_empty(kept_numel(rows, columns, tile_size(x.device), keys is None) if keep else 0)
    sums = x.new_empty(0) if keys is None else x.new_empty(scale.shape[0], columns if both else 0)
    return x.new_empty(scale.shape[0], rows), sums, kept


@torch.library.custom_op(
    "contrastive_zoo::logsumexp_backward",
    mutates_args=(),
    schema="(Tensor grad_rows, Tensor grad_columns, Tensor rows, Tensor columns, Tensor x, Tensor? keys, Tensor scale,"
    " Tensor? ids, Tensor? key_ids, bool both, float norm_bound, Tensor kept, bool needs_keys, bool needs_scale)"
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
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, keys (empty unless needed) and scale (zero unless needed)."""
    with _plain(x):
        grad_x, grad_keys, grad_scale = tiled.logsumexp_backward(
            grad_rows,
            grad_columns,
            rows,
            columns,
            x,
            keys,
            scale,
            ids,
            key_ids,
            both,
            norm_bound,
            kept if kept.numel() else None,
            needs_keys,
            needs_scale,
        )
    return grad_x, grad_keys, grad_scale.to(scale)


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
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        torch.empty_like(x),
        x.new_empty(0) if keys is None or not needs_keys else torch.empty_like(keys),
        torch.empty_like(scale),
    )


def _logsumexp_setup(ctx: Any, inputs: Any, output: Any) -> None:
    x, keys, scale, ids, key_ids, both, norm_bound, _ = inputs
    ctx.save_for_backward(*output, x, keys, scale, ids, key_ids)
    ctx.both, ctx.norm_bound = both, norm_bound
    ctx.mark_non_differentiable(output[2])


def _logsumexp_gradient(ctx: Any, grad_rows: Tensor, grad_columns: Tensor, _: Any) -> Any:
    rows, columns, kept, x, keys, scale, ids, key_ids = ctx.saved_tensors
    needs_keys, needs_scale = ctx.needs_input_grad[1], ctx.needs_input_grad[2]
    grad_x, grad_keys, grad_scale = logsumexp_backward(
        grad_rows,
        grad_columns,
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
    )
    return (
        grad_x,
        grad_keys if needs_keys else None,
        grad_scale if needs_scale else None,
        None,
        None,
        None,
        None,
        None,
    )


logsumexp.register_autograd(_logsumexp_gradient, setup_context=_logsumexp_setup)
logsumexp_backward.register_autograd(_no_second_derivative)


@torch.library.custom_op(
    "contrastive_zoo::kernel_sum",
    mutates_args=(),
    schema="(Tensor x, Tensor? squared_norms, Tensor? ids, str kernel, float parameter) -> Tensor",
)
def kernel_sum(x: Tensor, squared_norms: Tensor | None, ids: Tensor | None, kernel: str, parameter: float) -> Tensor:
    """(N,) sums of a kernel over the rows with another id."""
    with _plain(x):
        return tiled_kernels.kernel_sum_forward(x, squared_norms, ids, kernel, parameter)


@kernel_sum.register_fake
def _(x: Tensor, squared_norms: Tensor | None, ids: Tensor | None, kernel: str, parameter: float) -> Tensor:
    return x.new_empty(x.shape[0])


@torch.library.custom_op(
    "contrastive_zoo::kernel_sum_backward",
    mutates_args=(),
    schema="(Tensor grad, Tensor x, Tensor? squared_norms, Tensor? ids, str kernel, float parameter) -> (Tensor, Tensor)",
)
def kernel_sum_backward(
    grad: Tensor, x: Tensor, squared_norms: Tensor | None, ids: Tensor | None, kernel: str, parameter: float
) -> tuple[Tensor, Tensor]:
    """Gradients of x and, if given, the squared norms."""
    with _plain(x):
        return tiled_kernels.kernel_sum_backward(grad, x, squared_norms, ids, kernel, parameter)


@kernel_sum_backward.register_fake
def _(
    grad: Tensor, x: Tensor, squared_norms: Tensor | None, ids: Tensor | None, kernel: str, parameter: float
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), x.new_empty(0 if squared_norms is None else x.shape[0])


def _kernel_sum_setup(ctx: Any, inputs: Any, output: Any) -> None:
    x, squared_norms, ids, ctx.kernel, ctx.parameter = inputs
    ctx.save_for_backward(x, squared_norms, ids)


def _kernel_sum_gradient(ctx: Any, grad: Tensor) -> Any:
    x, squared_norms, ids = ctx.saved_tensors
    grad_x, grad_norms = kernel_sum_backward(grad, x, squared_norms, ids, ctx.kernel, ctx.parameter)
    return grad_x, None if squared_norms is None else grad_norms, None, None, None


kernel_sum.register_autograd(_kernel_sum_gradient, setup_context=_kernel_sum_setup)
kernel_sum_backward.register_autograd(_no_second_derivative)
