"""Sums of kernels, squares and softplus over pairs: public functions."""

import torch
from torch import Tensor

from contrastive_zoo.checks import check_choice, check_features, check_number, check_same
from contrastive_zoo.pairwise.kernels import KERNEL_NAMES, get_kernel
from contrastive_zoo.pairwise.operator_ import compute
from contrastive_zoo.pairwise.sweep import Ids, Sweep
from contrastive_zoo.pairwise.terms import KernelSum, LogSumExp, Softplus, Squares


def kernel_sum(
    x: Tensor,
    *,
    kernel: str,
    parameter: float,
    ids: Tensor | Ids | None = None,
    unit_rows: bool = False,
    rounding: float = 0.0,
    backend: str = "auto",
    part: tuple[int, int] = (0, 1),
) -> Tensor:
    r"""Sum of a kernel of the squared distance over the rows with another id, for every row.

    $$\text{out}_i = \sum_{j : \text{id}_j \ne \text{id}_i} k_t(\lVert x_i - x_j \rVert^2)$$

    with $k_t(d^2)$ = $e^{-t d^2}$ (gaussian), $-\log(1 + t d^2)$ (log), $t / \sqrt{t^2 + d^2}$ (imq), $d^{-t}$ for $t > 0$ and
    $-d^{-t}$ for $t < 0$ (riesz). For riesz, which is infinite or infinitely steep at 0, squared distances are floored above
    their rounding, without gradient below: at $(D + 32)\,\varepsilon$ times the mean of the two squared norms, with
    $\varepsilon$ the resolution of the dtype (2^-23 in float32); for the other kernels at 0.

    Args:
        x: (N, D) rows, float32 or float64; half precision is computed in float32. Or (G, N, D): G sets of rows, each by itself,
            with the same ids.
        kernel: "gaussian", "log", "imq" or "riesz".
        parameter: The t of the kernel.
        ids: As for `logsumexp`.
        unit_rows: Whether all rows are known to have length 1, which is faster.
        rounding: ``torch.finfo(dtype).eps`` of rows that were rounded to half precision, whose length is not quite 1 then; its
            square adds to the floor. Known of rows that come in half precision.
        backend: As for `logsumexp`.
        part: As for `logsumexp`; the sum over all parts is the whole.

    Returns:
        (N,), or (G, N) for G sets; 0 for a row without others.

    Raises:
        ValueError: Shapes, an unknown kernel or backend, one that has no parts, or a parameter outside the kernel's range.
        TypeError: Dtypes.

    Examples:
        >>> import torch
        >>> from contrastive_zoo import pairwise
        >>> pairwise.kernel_sum(torch.eye(3), kernel="riesz", parameter=-2.0)
        tensor([-4., -4., -4.])
    """
    sweep = Sweep.of(x, ids=ids, norm_bound=1.01 if unit_rows else torch.inf, part=part)
    check_choice("kernel", kernel, KERNEL_NAMES)
    parameter = check_number("parameter", parameter)
    if not get_kernel(kernel).valid(parameter):
        raise ValueError(f"the {kernel} kernel wants {get_kernel(kernel).wanted}, got t = {parameter!r}.")
    half = x.dtype in (torch.float16, torch.bfloat16)
    rounding = max(float(rounding), torch.finfo(x.dtype).eps if half else 0.0)
    if kernel == "gaussian" and unit_rows:
        # exp(-t d2) of unit rows is exp(2 t s) over exp(2 t), and that sum can keep its tiles.
        logarithms = compute(sweep, LogSumExp.of(2.0 * parameter, x), backend).rows.squeeze(0)
        return (logarithms - 2 * parameter).exp()
    # Equal rows of length 1.001 would be at a squared distance of -0.004 if their length were taken for 1.
    squared_norms = None if unit_rows and not rounding else sweep.x.square().sum(-1)
    return compute(sweep, KernelSum(kernel, parameter, squared_norms, rounding), backend).rows.squeeze(0)


def square_sum(x: Tensor, keys: Tensor, *, ids: Tensor | Ids | None = None, backend: str = "auto") -> Tensor:
    r"""Sum of the squared similarity to the keys with another id, for every row; row i of both is of one sample.

    $$\text{out}_i = \sum_{j : \text{id}_j \ne \text{id}_i} \langle x_i, k_j \rangle^2$$

    Costs O(N D min(N, D)) where each id comes once, as far as the host knows, and else O(N^2 D).

    Args:
        x: (N, D) rows of one view, float32 or float64; half precision is computed in float32.
        keys: (N, D) rows of the other.
        ids: (N,) integers, of the rows of both views; one id per row by default.
        backend: "auto", "dense" (builds the matrix; any number of derivatives) or "tiled" (takes the smaller Gram matrix).

    Returns:
        (N,); 0 for a row without keys, to rounding.

    Raises:
        ValueError: Shapes, devices or an unknown backend.
        TypeError: Dtypes.

    Examples:
        >>> import torch
        >>> from contrastive_zoo import pairwise
        >>> pairwise.square_sum(torch.ones(3, 2), torch.ones(3, 2))
        tensor([8., 8., 8.])
    """
    check_features("x", x, (2,))
    check_features("keys", keys, (2,))
    check_same("x", x, "keys", keys)
    own = Ids(torch.arange(len(x), device="cpu"), 1) if ids is None else ids
    dtype = torch.promote_types(x.dtype, keys.dtype)
    sweep = Sweep.of(x.to(dtype), keys.to(dtype), own, own)
    return compute(sweep, Squares(), backend).rows.squeeze(0)


def softplus_sum(
    x: Tensor,
    keys: Tensor | None = None,
    *,
    scale: float | Tensor,
    bias: float | Tensor = 0.0,
    ids: Tensor | Ids | None = None,
    key_ids: Tensor | Ids | None = None,
    uniform: bool = False,
    norm_bound: float = torch.inf,
    backend: str = "auto",
    part: tuple[int, int] = (0, 1),
) -> Tensor:
    r"""Sum of a softplus over the keys with another id, for every row.

    $$\text{out}_i = \sum_{j : \text{id}_j \ne \text{id}_i}
      \log\big(1 + \exp(\text{scale} \langle x_i, k_j \rangle + \text{bias}_i)\big)$$

    Args:
        x: (N, D) rows, float32 or float64; half precision is computed in float32.
        keys: (M, D) keys; the rows themselves if None.
        scale: A number or 0-dim tensor. Tensors get a gradient.
        bias: A number, a 0-dim tensor or one per row, (N,). Tensors get a gradient.
        ids: As for `logsumexp`.
        key_ids: As for `logsumexp`.
        uniform: A promise that the upstream gradient will be the same for all rows, as that of a mean is. One sweep then does
            for both passes.
        norm_bound: As for `logsumexp`.
        backend: As for `logsumexp`.
        part: As for `logsumexp`; the sum over all parts is the whole.

    Returns:
        (N,); 0, without gradient, for a row without keys.

    Raises:
        ValueError: Shapes, devices or an unknown backend.
        TypeError: Dtypes.
        RuntimeError: In the backward pass, that ``uniform`` was not true (seen on CPUs; elsewhere the gradient is NaN).

    Examples:
        >>> import torch
        >>> from contrastive_zoo import pairwise
        >>> pairwise.softplus_sum(torch.eye(3), scale=1.0)
        tensor([1.3863, 1.3863, 1.3863])
    """
    check_features("x", x, (2,))
    sweep = Sweep.of(x, keys, ids, key_ids, norm_bound=norm_bound, part=part)
    return compute(sweep, Softplus.of(scale, bias, sweep.x, uniform), backend).rows.squeeze(0)


def softplus_sum_within(
    x: Tensor,
    *,
    ids: Tensor,
    scale: float | Tensor,
    bias: float | Tensor = 0.0,
    norm_bound: float = torch.inf,
    backend: str = "auto",
    part: tuple[int, int] = (0, 1),
) -> Tensor:
    r"""Sum of a softplus over the other rows with the same id, for every row; arguments as for `softplus_sum`.

    $$\text{out}_i = \sum_{j \ne i : \text{id}_j = \text{id}_i}
      \log\big(1 + \exp(\text{scale} \langle x_i, x_j \rangle + \text{bias}_i)\big)$$

    With ids on the host only tiles that hold such pairs are visited, so that the work grows with the sum of the squares of the
    numbers of rows with one id.

    Returns:
        (N,); 0, without gradient, for a row whose id no other has.

    Raises:
        ValueError: As `softplus_sum`.
        TypeError: Dtypes.

    Examples:
        >>> import torch
        >>> from contrastive_zoo import pairwise
        >>> pairwise.softplus_sum_within(torch.eye(4), ids=torch.tensor([7, 5, 7, 7]), scale=1.0)
        tensor([1.3863, 0.0000, 1.3863, 1.3863])
    """
    check_features("x", x, (2,))
    sweep = Sweep.of(x, ids=ids, counts="equal", norm_bound=norm_bound, part=part)
    term = Softplus.of(scale, bias, sweep.x)
    if backend == "dense":
        return compute(sweep, term, backend).rows.squeeze(0)
    # Side by side, the rows of an id are visited in blocks.
    order = ids.argsort(stable=True)
    there = order.to(x.device)
    ordered = Sweep.of(x[there], ids=ids[order], counts="equal", norm_bound=norm_bound, part=part)
    sums = compute(ordered, Softplus(term.scale, term.bias[there]), backend).rows.squeeze(0)
    return sums[there.argsort()]
