"""From the features of an encoder to the rows that objectives compare: normalised, stacked, finite."""

from typing import Any

import torch
from torch import Tensor

from contrastive_zoo.operators import operator

NORMALIZE = ("sphere", "ball", "none")
HALF = (torch.float16, torch.bfloat16)


def stack_views(z: Tensor, normalize: str, operand: torch.dtype, *, name: str, validate: bool, second_order: bool) -> Tensor:
    """(V, B, D) features to (B * V, D) rows, the views of a sample next to each other.

    Args:
        z: Features of each view.
        normalize: "sphere" scales every row to length 1, "ball" only rows longer than 1, "none" none.
        operand: Precision that the rows are rounded to; they are handed on in float32 at least.
        name: Argument to blame in errors.
        validate: Whether to look at values on accelerators too.
        second_order: Whether a second derivative must be possible.

    Raises:
        ValueError: A value is NaN or infinite (seen on CPUs, elsewhere if ``validate``).
    """
    check = validate or z.device.type == "cpu"
    if second_order:
        return _composite(z, normalize, operand, name, check)
    rows, _ = normalized_rows(z, normalize, operand, name, check)
    return rows


def _computed(z: Tensor) -> Tensor:
    return z.float() if z.dtype in HALF else z


def _check_finite(largest: Tensor, name: str) -> None:
    bad = ~torch.isfinite(largest)
    if bool(bad.any()):
        view, row = bad.nonzero()[0].tolist()
        names = name.split(" or ")
        which = names[view] if len(names) == len(bad) else name
        raise ValueError(
            f"{which} holds NaN or infinite values, first in row {row}. The encoder has diverged or its input is broken: "
            "look at the learning rate, the loss scale and the data. No table was changed."
        )


def _rounded(rows: Tensor, operand: torch.dtype) -> Tensor:
    return rows.to(operand).to(torch.float32) if operand in HALF else rows


def _lengths(z: Tensor, name: str, check: bool) -> Tensor:
    """Row norms (V, B, 1) that neither overflow nor underflow."""
    largest = z.abs().amax(-1, keepdim=True)
    if check:
        _check_finite(largest[..., 0], name)
    safe = torch.where(largest > 0, largest, 1)
    return torch.where(largest > 0, torch.linalg.vector_norm(z / safe, dim=-1, keepdim=True) * largest, 0)


def _divisor(lengths: Tensor, normalize: str) -> Tensor:
    """What rows are divided by: their length, 1 where they stay as they are, infinity for a zero row on the sphere."""
    if normalize == "ball":
        return lengths.clamp_min(1)
    return torch.where(lengths > 0, lengths.clamp_min(torch.finfo(lengths.dtype).tiny), torch.inf)


def _composite(z: Tensor, normalize: str, operand: torch.dtype, name: str, check: bool) -> Tensor:
    """The same in plain autograd."""
    z = _computed(z)
    if normalize == "none":
        _lengths(z, name, check)
    else:
        largest = z.detach().abs().amax(-1, keepdim=True)
        if check:
            _check_finite(largest[..., 0], name)
        safe = torch.where(largest > 0, largest, 1)
        scaled = z / safe
        # A zero row has no direction: the norm of a constant vector stands in, whose gradient is nobody's.
        norm = torch.linalg.vector_norm(torch.where(largest > 0, scaled, 1), dim=-1, keepdim=True)
        z = torch.where(norm * safe > 1, scaled / norm, z) if normalize == "ball" else scaled / norm
        if normalize == "sphere":
            z = torch.where(largest > 0, z, z.detach())
    return _rounded(z.transpose(0, 1).flatten(0, 1), operand)


@operator(
    "contrastive_zoo::normalized_rows",
    "(Tensor z, str normalize, ScalarType operand, str name, bool check) -> (Tensor, Tensor)",
)
def normalized_rows(z: Tensor, normalize: str, operand: torch.dtype, name: str, check: bool) -> tuple[Tensor, Tensor]:
    """Rows (B * V, D) and what each was divided by, (V, B, 1)."""
    views, size, width = z.shape
    z = _computed(z)
    lengths = torch.linalg.vector_norm(z, dim=-1, keepdim=True)
    # Squares of entries near the ends of the range overflow or vanish; seen on CPUs at no cost, assumed on accelerators.
    if z.device.type != "cpu" or not bool(((lengths > 1e-15) & (lengths < 1e15)).all()):
        lengths = _lengths(z, name, check)
    rows = z.new_empty(size, views, width)
    if normalize == "none":
        divisor = torch.ones_like(lengths)
        rows.copy_(z.transpose(0, 1))
    else:
        divisor = _divisor(lengths, normalize)
        torch.div(z, divisor, out=rows.transpose(0, 1))
    return _rounded(rows.flatten(0, 1), operand), divisor


@normalized_rows.register_fake
def _(z: Tensor, normalize: str, operand: torch.dtype, name: str, check: bool) -> tuple[Tensor, Tensor]:
    views, size, width = z.shape
    dtype = torch.float32 if z.dtype in HALF else z.dtype
    return z.new_empty(views * size, width, dtype=dtype), z.new_empty(views, size, 1, dtype=dtype)


@operator(
    "contrastive_zoo::normalized_rows_backward",
    "(Tensor grad, Tensor rows, Tensor divisor, str normalize) -> Tensor",
)
def normalized_rows_backward(grad: Tensor, rows: Tensor, divisor: Tensor, normalize: str) -> Tensor:
    """Gradient of the features, (V, B, D): what is left of it across the row, over the row's length."""
    views, size, _ = divisor.shape
    out = grad.new_empty(views, size, grad.shape[-1])
    grad = grad.view(size, views, -1).transpose(0, 1)
    if normalize == "none":
        return out.copy_(grad)
    rows = rows.view(size, views, -1).transpose(0, 1)
    along = torch.linalg.vecdot(grad, rows)[..., None]
    if normalize == "ball":
        along = torch.where(divisor > 1, along, 0)
    torch.addcmul(grad, rows, along, value=-1, out=out)
    return out.div_(divisor)


@normalized_rows_backward.register_fake
def _(grad: Tensor, rows: Tensor, divisor: Tensor, normalize: str) -> Tensor:
    return grad.new_empty(divisor.shape[0], divisor.shape[1], grad.shape[-1])


def _setup(ctx: Any, inputs: Any, output: Any) -> None:
    z, ctx.normalize, *_ = inputs
    ctx.dtype = z.dtype
    ctx.save_for_backward(*output)
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _gradient(ctx: Any, compute: Any, grad: Tensor, _: Any) -> Any:
    rows, divisor = ctx.saved_tensors
    return compute(grad, rows, divisor, ctx.normalize).to(ctx.dtype), None, None, None, None


normalized_rows.differentiate(normalized_rows_backward, _setup, _gradient)
