"""Sums of kernels, squares and softplus over pairs: public functions."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from contrastive_zoo.checks import check_choice, check_features, check_integers, check_number, check_same
from contrastive_zoo.devices import beside
from contrastive_zoo.pairwise.backends import choose
from contrastive_zoo.pairwise.kernels import KERNEL_NAMES, check_parameter
from contrastive_zoo.pairwise.operator_ import compute
from contrastive_zoo.pairwise.sweep import HALF, WHOLE, Bound, Ids, Sweep, unrounded
from contrastive_zoo.pairwise.terms import KernelSum, LogSumExp, Softplus, Squares, Sums, Term
from contrastive_zoo.pairwise.tiled import gram

# Sums up a term over a sweep.
Total = Callable[[Sweep, Term], Sums]
# The half precision of rows by their relative rounding error.
_ROUNDED_TO = {torch.finfo(half).eps: half for half in HALF}


def kernel_sum(
    x: Tensor,
    *,
    kernel: str,
    parameter: float,
    ids: Tensor | Ids | None = None,
    unit_rows: bool = False,
    rounding: float | Bound = 0.0,
    backend: str = "auto",
    part: tuple[int, int] = WHOLE,
) -> Tensor:
    r"""Sum of a kernel of the squared distance over the rows with a different id, for every row.

    $$\text{out}_i = \sum_{j : \text{id}_j \ne \text{id}_i} k_t(\lVert x_i - x_j \rVert^2)$$

    with $k_t(d^2)$ = $e^{-t d^2}$ (gaussian), $-\log(1 + t d^2)$ (log), $t / \sqrt{t^2 + d^2}$ (imq), $d^{-t}$ for $t > 0$ and
    $-d^{-t}$ for $t < 0$ (riesz). The riesz kernel is infinite or infinitely steep at 0, so its squared distances are floored
    above their rounding error, without gradient below the floor: the floor is $(D + 32)\,\varepsilon$ times the mean of the two
    squared norms, with $\varepsilon$ the resolution of the dtype (2^-23 in float32). For the other kernels the floor is 0.

    Args:
        x: (N, D) rows, float32 or float64; half precision is computed in float32. Or (G, N, D): G independent sets of rows with
            the same ids.
        kernel: "gaussian", "log", "imq" or "riesz".
        parameter: The t of the kernel.
        ids: As for `logsumexp`.
        unit_rows: Whether all rows are known to have length 1, which is faster.
        rounding: ``torch.finfo(dtype).eps`` of rows that were rounded to half precision, whose length is not exactly 1; its
            square is added to the floor. Set automatically for rows in half precision. A `Bound` says it by its operand.
        backend: As for `logsumexp`.
        part: As for `logsumexp`; the sum of the results of all parts is the total.

    Returns:
        (N,), or (G, N) for G sets; 0 for a row without other rows.

    Raises:
        ValueError: Shapes do not fit, the kernel or backend is unknown, the backend does not support parts, or the parameter is
            outside the kernel's range.
        TypeError: A dtype is wrong.

    Examples:
        >>> import torch
        >>> from contrastive_zoo import pairwise
        >>> pairwise.kernel_sum(torch.eye(3), kernel="riesz", parameter=-2.0)
        tensor([-4., -4., -4.])
    """
    known = rounding if isinstance(rounding, Bound) else Bound(operand=_ROUNDED_TO.get(rounding))
    sweep = Sweep.of(x, ids=ids, norm_bound=known._replace(norm=1.01 if unit_rows else torch.inf), part=part)
    error = sweep.bound.rounding if isinstance(rounding, Bound) else sweep.bound.rounding or float(rounding)
    return sum_kernels(sweep, kernel, parameter, unit_rows, error, partial(compute, name=backend))


def sum_kernels(sweep: Sweep, kernel: str, parameter: float, unit_rows: bool, rounding: float, total: Total) -> Tensor:
    """`kernel_sum` of a sweep, given how a term is summed up."""
    check_choice("kernel", kernel, KERNEL_NAMES)
    parameter = check_number("parameter", parameter)
    check_parameter(kernel, parameter, kernel)
    if kernel == "gaussian" and unit_rows:
        # For unit rows exp(-t d2) = exp(2 t s) / exp(2 t), and a log-sum-exp can keep its tiles for the backward pass.
        return (total(sweep, LogSumExp.of(2.0 * parameter, sweep.x.shape[-2])).rows - 2 * parameter).exp()
    # Without squared norms, two equal rows of length 1.001 would have squared distance -0.004.
    squared_norms = None if unit_rows and not rounding else sweep.x.square().sum(-1)
    return total(sweep, KernelSum(kernel, parameter, squared_norms, rounding)).rows


def square_sum(
    x: Tensor,
    keys: Tensor,
    *,
    ids: Tensor | Ids | None = None,
    backend: str = "auto",
    part: tuple[int, int] = WHOLE,
) -> Tensor:
    r"""Sum of the squared similarity to the keys with a different id, for every row; row i and key i belong to one sample.

    $$\text{out}_i = \sum_{j : \text{id}_j \ne \text{id}_i} \langle x_i, k_j \rangle^2$$

    Costs O(N D min(N, D)) if the host knows that all ids differ, else O(N^2 D).

    Args:
        x: (N, D) rows of one view, float32 or float64; half precision is computed in float32.
        keys: (N, D) rows of the other view.
        ids: (N,) integers, for the rows of both views; one id per row by default.
        backend: "auto", "dense" (builds the matrix; any number of derivatives), "tiled" (uses the smaller Gram matrix), or
            "fused" (visits all pairs, on NVIDIA GPUs; "auto" takes it there unless the Gram matrix can be used and is smaller).
        part: As for `logsumexp`; the sum of the results of all parts is the total. A part is computed pair by pair.

    Returns:
        (N,); 0, up to rounding, for a row without keys.

    Raises:
        ValueError: Shapes or devices do not fit, or the backend is unknown or does not support parts.
        TypeError: A dtype is wrong.

    Examples:
        >>> import torch
        >>> from contrastive_zoo import pairwise
        >>> pairwise.square_sum(torch.ones(3, 2), torch.ones(3, 2))
        tensor([8., 8., 8.])
    """
    return compute(_of_views(x, keys, ids, part), Squares(), backend).rows


def uses_gram_matrix(sweep: Sweep, backend: str) -> bool:
    """Whether a backend computes the Gram matrix of the keys for sums of squares, as far as the host knows."""
    if torch.compiler.is_compiling() and sweep.group != 1:
        return False
    return gram.serves(sweep, Squares()) and choose(sweep, Squares(), backend).name == "tiled"


def own_ids(rows: int) -> Ids:
    """One id per row."""
    return Ids(torch.arange(rows, device="cpu"), 1)


def _of_views(x: Tensor, keys: Tensor, ids: Tensor | Ids | None, part: tuple[int, int]) -> Sweep:
    check_features("x", x, (2,))
    check_features("keys", keys, (2,))
    check_same("x", x, "keys", keys)
    own = own_ids(len(x)) if ids is None else ids
    dtype = torch.promote_types(x.dtype, keys.dtype)
    return Sweep.of(x.to(dtype), keys.to(dtype), own, own, part=part)


def softplus_sum(
    x: Tensor,
    keys: Tensor | None = None,
    *,
    scale: float | Tensor,
    bias: float | Tensor = 0.0,
    ids: Tensor | Ids | None = None,
    key_ids: Tensor | Ids | None = None,
    uniform: bool = False,
    norm_bound: float | Bound = torch.inf,
    backend: str = "auto",
    part: tuple[int, int] = WHOLE,
) -> Tensor:
    r"""Sum of a softplus over the keys with a different id, for every row.

    $$\text{out}_i = \sum_{j : \text{id}_j \ne \text{id}_i}
      \log\big(1 + \exp(\text{scale} \langle x_i, k_j \rangle + \text{bias}_i)\big)$$

    Args:
        x: (N, D) rows, float32 or float64; half precision is computed in float32.
        keys: (M, D) keys; if None, the rows are the keys.
        scale: A number or 0-dim tensor. Tensors get a gradient.
        bias: A number, a 0-dim tensor or one bias per row, (N,). Tensors get a gradient.
        ids: As for `logsumexp`.
        key_ids: As for `logsumexp`.
        uniform: A promise that the upstream gradient will be the same for all rows, as for a mean over rows. Value and gradient
            of a large matrix then need only one pass over the pairs; "dense" and "fused" make no use of the promise.
        norm_bound: As for `logsumexp`.
        backend: As for `logsumexp`.
        part: As for `logsumexp`; the sum of the results of all parts is the total.

    Returns:
        (N,); 0, without gradient, for a row without keys.

    Raises:
        ValueError: Shapes or devices do not fit, or the backend is unknown.
        TypeError: A dtype is wrong.
        RuntimeError: In the backward pass, if ``uniform`` was not true and was made use of (checked on CPUs; elsewhere the
            gradient is NaN).

    Examples:
        >>> import torch
        >>> from contrastive_zoo import pairwise
        >>> pairwise.softplus_sum(torch.eye(3), scale=1.0)
        tensor([1.3863, 1.3863, 1.3863])
    """
    check_features("x", x, (2,))
    sweep = Sweep.of(x, keys, ids, key_ids, norm_bound=norm_bound, part=part)
    return compute(sweep, Softplus.of(scale, bias, len(x), sweep.x, uniform), backend).rows


def softplus_sum_within(
    x: Tensor,
    *,
    ids: Tensor,
    scale: float | Tensor,
    bias: float | Tensor = 0.0,
    norm_bound: float | Bound = torch.inf,
    backend: str = "auto",
    part: tuple[int, int] = WHOLE,
) -> Tensor:
    r"""Sum of a softplus over the other rows with the same id, for every row; arguments as for `softplus_sum`.

    $$\text{out}_i = \sum_{j \ne i : \text{id}_j = \text{id}_i}
      \log\big(1 + \exp(\text{scale} \langle x_i, x_j \rangle + \text{bias}_i)\big)$$

    With ids on the host only tiles that contain such pairs are visited, so the work grows with the sum of the squared group
    sizes (rows per id). On NVIDIA GPUs this holds from 8,192 rows on, wherever the ids are, for rows of up to 256 features in
    half precision and 128 in float32, and if processes do not share the work.

    Returns:
        (N,); 0, without gradient, for a row whose id is unique.

    Raises:
        ValueError: As `softplus_sum`.
        TypeError: A dtype is wrong.

    Examples:
        >>> import torch
        >>> from contrastive_zoo import pairwise
        >>> pairwise.softplus_sum_within(torch.eye(4), ids=torch.tensor([7, 5, 7, 7]), scale=1.0)
        tensor([1.3863, 0.0000, 1.3863, 1.3863])
    """
    check_features("x", x, (2,))
    check_integers("ids", ids, len(x))
    sweep = Sweep.of(x, ids=ids, counts="equal", norm_bound=norm_bound, part=part)
    return sum_within(sweep, Softplus.of(scale, bias, len(x), sweep.x), backend, partial(compute, name=backend))


def sum_within(sweep: Sweep, term: Softplus, backend: str, total: Total) -> Tensor:
    """`softplus_sum_within` of a sweep, given how a term is summed up."""
    assert sweep.ids is not None
    if sweep.ordered or not choose(sweep, term, backend).orders(sweep):
        return total(sweep, term).rows
    # Sorted by id, so the rows of an id are visited in blocks.
    order = sweep.ids.argsort(stable=True)
    there = beside(order, sweep.x)
    # A copy in half precision is of the rows as they were.
    ordered = replace(unrounded(sweep), x=sweep.x.index_select(0, there), ids=sweep.ids[order], ordered=True)
    # Indexing would sort the indices in the backward pass.
    rows = total(ordered, Softplus(term.scale, term.bias.index_select(0, there))).rows
    return rows.index_select(0, there.argsort())
