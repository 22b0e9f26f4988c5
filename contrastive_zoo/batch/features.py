"""Turns encoder features into the rows that objectives compare: checks, normalisation, stacking."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from contrastive_zoo.devices import batched, refuses_kernels
from contrastive_zoo.operators import operator

NORMALIZE = ("sphere", "ball", "none")
HALF = (torch.float16, torch.bfloat16)
# Up to this many entries, launching the operations of a gradient takes longer than its arithmetic.
SMALL_NUMEL = 2**16
# Up to so many numbers, a list takes less time than a reduction.
FEW = 64
# Rows up to this width have Triton kernels on GPUs of compute capability 8.0 and later.
KERNEL_WIDTH = 4096


class Stacked(NamedTuple):
    """Rows of features, and what is cheapest to compute beside them.

    Attributes:
        rows: (B * V, D) rows, the views of a sample next to each other, in float32 at least.
        similarity: (B, 1) inner product of the two views of each sample; (B, 0) unless V = 2.
        rounded: A copy of the rows in the half precision that they were rounded to, without gradient; None if they were not.
    """

    rows: Tensor
    similarity: Tensor
    rounded: Tensor | None


def stack_views(
    z1: Tensor, z2: Tensor | None, normalize: str, operand: torch.dtype, *, name: str, validate: bool, second_order: bool
) -> Stacked:
    """Stack features of V views into rows.

    Args:
        z1: (B, D) features of view 1, or (V, B, D) features of all views.
        z2: (B, D) features of view 2, if z1 holds view 1 only.
        normalize: "sphere" scales every row to length 1, "ball" only rows longer than 1, "none" scales no row.
        operand: Precision that the rows are rounded to; the rows are returned in float32 at least.
        name: Argument to name in errors.
        validate: Whether to check values on accelerators too.
        second_order: Whether a second derivative must be possible.

    Raises:
        ValueError: A value is NaN or infinite (checked on CPUs; elsewhere only with ``validate``; never inside of
            `torch.func.vmap`, which hides values).
    """
    check = (validate or z1.is_cpu) and not (batched(z1) or (z2 is not None and batched(z2)))
    if second_order:
        return Stacked(*_composite(z1, z2, normalize, operand, name, check), None)
    rows, positive, *rounded = normalized_rows(z1, z2, normalize, operand, name, check)
    return Stacked(rows, positive, rounded[0] if operand in HALF else None)


def _stacked(z1: Tensor, z2: Tensor | None) -> Tensor:
    """(B, V, D), in float32 at least."""
    views = (z1, z2) if z2 is not None else z1.unbind() if z1.dim() == 3 else (z1,)
    rows = torch.cat(views if z1.dtype not in HALF and z1.dtype == views[-1].dtype else [_computed(z) for z in views], 1)
    return rows.view(-1, len(views), z1.shape[-1])


def _computed(z: Tensor) -> Tensor:
    return z.float() if z.dtype in HALF else z


def _check_finite(largest: Tensor, name: str) -> None:
    bad = ~torch.isfinite(largest)
    if bool(bad.any()):
        row, view = bad.nonzero()[0].tolist()
        names = name.split(" or ")
        which = names[view] if len(names) == largest.shape[1] else name
        raise ValueError(
            f"{which} holds NaN or infinite values, first in row {row}. The encoder has diverged or its input is broken: "
            "look at the learning rate, the loss scale and the data. No table was changed."
        )


def _rounded(rows: Tensor, operand: torch.dtype) -> Tensor:
    return rows.to(operand).to(torch.float32) if operand in HALF else rows


def _lengths(z: Tensor, name: str, check: bool) -> Tensor:
    """Row norms (B, V, 1) that neither overflow nor underflow."""
    largest = z.abs().amax(-1, keepdim=True)
    if check:
        _check_finite(largest[..., 0], name)
    safe = torch.where(largest > 0, largest, 1)
    return torch.where(largest > 0, torch.linalg.vector_norm(z / safe, dim=-1, keepdim=True) * largest, 0)


def _divisor(lengths: Tensor, normalize: str) -> Tensor:
    """The divisor of each row: its length, 1 for a row that is kept unchanged, infinity for a zero row on the sphere."""
    if normalize == "ball":
        return lengths.clamp_min(1)
    return torch.where(lengths > 0, lengths.clamp_min(torch.finfo(lengths.dtype).tiny), torch.inf)


def _composite(
    z1: Tensor, z2: Tensor | None, normalize: str, operand: torch.dtype, name: str, check: bool
) -> tuple[Tensor, Tensor]:
    """`normalized_rows` in plain autograd, for second derivatives."""
    z = _stacked(z1, z2)
    if normalize == "none":
        _lengths(z, name, check)
    else:
        largest = z.detach().abs().amax(-1, keepdim=True)
        if check:
            _check_finite(largest[..., 0], name)
        safe = torch.where(largest > 0, largest, 1)
        scaled = z / safe
        # A zero row has no direction: use the norm of a constant vector instead, which has no gradient.
        norm = torch.linalg.vector_norm(torch.where(largest > 0, scaled, 1), dim=-1, keepdim=True)
        longer = (norm * safe > 1) & (largest > 0)
        z = torch.where(longer, scaled / norm, z) if normalize == "ball" else scaled / norm
        if normalize == "sphere":
            z = torch.where(largest > 0, z, z.detach())
    rows = z.flatten(0, 1)
    # Only values are rounded: a gradient that passed through float16 would overflow under loss scaling.
    rows = rows + (_rounded(rows, operand) - rows).detach()
    return rows, inner_products_of_pairs(rows.view(z.shape))


def inner_products_of_pairs(rows: Tensor) -> Tensor:
    """(B, 1) inner products of (B, 2, D) pairs of rows; (B, 0) for any other number of views."""
    if rows.shape[1] != 2:
        return rows[:, 0, :0]
    first, second = rows.unbind(1)
    return (first * second).sum(1, keepdim=True)


@operator(
    "contrastive_zoo::normalized_rows",
    "(Tensor z1, Tensor? z2, str normalize, ScalarType operand, str name, bool check) -> (Tensor, Tensor, Tensor, Tensor)",
)
def normalized_rows(
    z1: Tensor, z2: Tensor | None, normalize: str, operand: torch.dtype, name: str, check: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Rows (B * V, D), inner products of pairs (B, 1) or (B, 0), rounded rows, and the divisor of each row, (B, V, 1).

    Rounded rows are empty unless the operand is a half precision.
    """
    if not check and has_kernels(z1) and (z2 is None or has_kernels(z2)):
        from contrastive_zoo.batch import features_triton

        return features_triton.normalized_rows(z1, z2, normalize, operand)
    rows = _stacked(z1, z2)
    lengths = torch.linalg.vector_norm(rows, dim=-1, keepdim=True)
    # Squaring very large or small entries over- or underflows. On CPUs we check; on accelerators we always take the safe path.
    ordinary = _all_ordinary(lengths)
    if not ordinary:
        lengths = _lengths(rows, name, check)
    if normalize == "none":
        divisor = torch.ones_like(lengths)
    else:
        divisor = lengths if ordinary and normalize == "sphere" else _divisor(lengths, normalize)
        rows.div_(divisor)
    width = rows.shape[2]
    half = rows.to(operand).view(-1, width) if operand in HALF else rows.new_empty(0)
    if operand in HALF:
        rows = half.to(torch.float32).view(rows.shape)
    similarity = inner_products_of_pairs(rows)
    # An operator must not return a view of another output.
    return rows.view(-1, width), similarity if similarity.shape[1] else similarity.clone(), half, divisor


def has_kernels(z: Tensor) -> bool:
    """Whether the Triton kernels can take a tensor of features."""
    return z.is_cuda and z.dtype != torch.float64 and z.shape[-1] <= KERNEL_WIDTH and not refuses_kernels(z.device)


def _all_ordinary(lengths: Tensor) -> bool:
    """Whether all lengths are known to be far from overflow and underflow."""
    if not lengths.is_cpu:
        return False
    if lengths.numel() <= FEW:
        few = lengths.flatten().tolist()
        return min(few) > 1e-15 and sum(few) < 1e15  # a sum that holds NaN is NaN
    low, high = lengths.aminmax()
    return float(low) > 1e-15 and float(high) < 1e15


@normalized_rows.register_fake
def _(
    z1: Tensor, z2: Tensor | None, normalize: str, operand: torch.dtype, name: str, check: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dtype = torch.promote_types(z1.dtype, z1.dtype if z2 is None else z2.dtype)
    size, width = z1.shape[-2:]
    views = 2 if z2 is not None else z1.shape[0] if z1.dim() == 3 else 1
    dtype = torch.float32 if dtype in HALF else dtype
    rows, divisor = z1.new_empty(views * size, width, dtype=dtype), z1.new_empty(size, views, 1, dtype=dtype)
    half = torch.empty_like(rows, dtype=operand) if operand in HALF else rows.new_empty(0)
    return rows, rows.new_empty(size, 1 if views == 2 else 0), half, divisor


@operator(
    "contrastive_zoo::normalized_rows_backward",
    "(Tensor grad, Tensor grad_positive, Tensor rows, Tensor divisor, str normalize, int[] views, ScalarType dtype) -> Tensor",
)
def normalized_rows_backward(
    grad: Tensor, grad_positive: Tensor, rows: Tensor, divisor: Tensor, normalize: str, views: list[int], dtype: torch.dtype
) -> Tensor:
    """Gradients of the features of some views, (views, B, D), in a dtype.

    A gradient is the component orthogonal to the row, divided by its length.
    """
    if has_kernels(rows):
        from contrastive_zoo.batch import features_triton

        return features_triton.normalized_rows_backward(grad, grad_positive, rows, divisor, normalize, views, dtype)
    size, number, _ = divisor.shape
    out = grad.new_empty(len(views), size, grad.shape[-1])
    if len(views) == 2 == number and normalize == "sphere" and grad.numel() <= SMALL_NUMEL:
        both, by_sample = rows.view(size, 2, -1), out.transpose(0, 1)
        torch.addcmul(grad.view(size, 2, -1), both.flip(1), grad_positive.unsqueeze(1), out=by_sample)
        along = torch.linalg.vecdot(by_sample, both).unsqueeze(2)
        by_sample.addcmul_(both, along, value=-1).div_(divisor)
        return out if out.dtype == dtype else out.to(dtype)
    own, upstream = rows.view(size, number, -1).unbind(1), grad.view(size, number, -1).unbind(1)
    # One view at a time, so temporaries stay in the CPU cache.
    for total, view in zip(out.unbind(), views, strict=True):
        length = divisor[:, view]
        if number == 2:
            torch.addcmul(upstream[view], own[1 - view], grad_positive, out=total)
        else:
            total.copy_(upstream[view])
        if normalize != "none":
            along = (total * own[view]).sum(1, keepdim=True)
            if normalize == "ball":
                along = torch.where(length > 1, along, 0)
            total.addcmul_(own[view], along, value=-1).div_(length)
    return out.to(dtype)


@normalized_rows_backward.register_fake
def _(
    grad: Tensor, grad_positive: Tensor, rows: Tensor, divisor: Tensor, normalize: str, views: list[int], dtype: torch.dtype
) -> Tensor:
    return grad.new_empty(len(views), divisor.shape[0], grad.shape[-1], dtype=dtype)


def _setup(ctx: Any, inputs: Any, output: Any) -> None:
    z1, z2, ctx.normalize, *_ = inputs
    rows, _, half, divisor = output
    ctx.dtypes = (z1.dtype, None if z2 is None else z2.dtype)
    ctx.stacked = z1.dim() == 3
    ctx.save_for_backward(rows, divisor)
    ctx.mark_non_differentiable(half, divisor)
    ctx.set_materialize_grads(False)


def _gradient(ctx: Any, compute: Any, grad: Tensor | None, grad_positive: Tensor | None, *_: Any) -> Any:
    rows, divisor = ctx.saved_tensors
    grad = torch.zeros_like(rows) if grad is None else grad
    if grad_positive is None:
        grad_positive = rows.new_zeros(divisor.shape[0], 1 if divisor.shape[1] == 2 else 0)
    if ctx.stacked:
        views = list(range(divisor.shape[1]))
        gradient = compute(grad, grad_positive, rows, divisor, ctx.normalize, views, ctx.dtypes[0])
        return gradient, None, None, None, None, None
    # A view that needs no gradient, such as the output of a momentum encoder, costs nothing.
    needs, dtypes = ctx.needs_input_grad, ctx.dtypes
    views = [view for view in range(divisor.shape[1]) if needs[view]]
    dtype = dtypes[views[0]] if len({dtypes[view] for view in views}) == 1 else rows.dtype
    found = compute(grad, grad_positive, rows, divisor, ctx.normalize, views, dtype).unbind()
    gradients: list[Tensor | None] = [None, None]
    for view, gradient in zip(views, found, strict=True):
        gradients[view] = gradient if gradient.dtype == dtypes[view] else gradient.to(dtypes[view])
    return *gradients, None, None, None, None


def _visible(output: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The rows, inner products of pairs, and rounded rows if there are any."""
    return output[: 3 if output[2].numel() else 2]


normalized_rows.differentiate(normalized_rows_backward, _setup, _gradient, returned=_visible)
