"""Log-sum-exps over pairs: public functions."""

import torch
from torch import Tensor

from contrastive_zoo.checks import check_features
from contrastive_zoo.pairwise.operator_ import compute
from contrastive_zoo.pairwise.sweep import WHOLE, Bound, Ids, Sweep
from contrastive_zoo.pairwise.terms import LogSumExp, Scales


def logsumexp(
    x: Tensor,
    keys: Tensor | None = None,
    *,
    scale: Scales,
    ids: Tensor | Ids | None = None,
    key_ids: Tensor | Ids | None = None,
    norm_bound: float | Bound = torch.inf,
    backend: str = "auto",
    part: tuple[int, int] = WHOLE,
) -> Tensor:
    r"""Log-sum-exp over the keys with another id, for every row.

    $$\text{out}_i = \log \sum_{j : \text{id}_j \ne \text{id}_i} \exp(\text{scale}_i \langle x_i, k_j \rangle)$$

    Args:
        x: (N, D) rows, float32 or float64; half precision is computed in float32. Or (G, N, D), without keys: G independent
            sets of rows, with the same ids and scale.
        keys: (M, D) keys; if None, the rows are the keys, and each pair of rows is visited once.
        scale: One number, a 0-dim tensor or a (N,) tensor with a scale per row; or a tuple of K numbers or 0-dim tensors,
            all computed in one pass over the pairs. Tensors get a gradient.
        ids: (N,) integers; the default without ``keys`` is one id per row, the default with ``keys`` excludes no pair.
        key_ids: (M,) integers; required if both ``keys`` and ``ids`` are given.
        norm_bound: A known upper bound on the length of all rows and keys, 1 for unit rows. If given, norms are not computed.
        backend: "auto", "dense" (builds the matrix; any number of derivatives), "tiled" or "fused" (on NVIDIA GPUs; float32 and
            half precision, up to 4,096 features).
        part: (p, P) sums over part p of P of the pairs, counted from 0, in about 1/P of the time; the log-sum-exp over the
            results of all parts is the total. "dense" does not support parts.

    Returns:
        (N,), or (K, N) for K scales; (G, N) or (K, G, N) for G sets. A row without keys gives -inf and gets no gradient.

    Raises:
        ValueError: Shapes or devices do not fit, or the backend is unknown or does not support parts.
        TypeError: A dtype is wrong.

    Examples:
        >>> import torch
        >>> from contrastive_zoo import pairwise
        >>> pairwise.logsumexp(torch.eye(3), scale=1.0)
        tensor([0.6931, 0.6931, 0.6931])
    """
    sweep = Sweep.of(x, keys, ids, key_ids, norm_bound=norm_bound, part=part)
    rows = compute(sweep, LogSumExp.of(scale, x.shape[-2]), backend).rows
    return rows.unsqueeze(0) if isinstance(scale, tuple) and len(scale) == 1 else rows


def logsumexp_both(
    x: Tensor,
    keys: Tensor,
    *,
    scale: float | Tensor,
    ids: Tensor | Ids | None = None,
    key_ids: Tensor | Ids | None = None,
    norm_bound: float | Bound = torch.inf,
    backend: str = "auto",
    part: tuple[int, int] = WHOLE,
) -> tuple[Tensor, Tensor]:
    """Log-sum-exps of rows over keys and of keys over rows, in one pass over the pairs; arguments as for `logsumexp`.

    Returns:
        (N,) log-sum-exp over the keys for every row, and (M,) log-sum-exp over the rows for every key.

    Raises:
        ValueError: As `logsumexp`, or for a scale per row.

    Examples:
        >>> import torch
        >>> from contrastive_zoo import pairwise
        >>> rows, columns = pairwise.logsumexp_both(torch.zeros(2, 4), torch.zeros(3, 4), scale=1.0)
        >>> rows.exp(), columns.exp()
        (tensor([3., 3.]), tensor([2., 2., 2.]))
    """
    sweep = Sweep.of(x, keys, ids, key_ids, both=True, norm_bound=norm_bound, part=part)
    sums = compute(sweep, LogSumExp.of_both(scale, x.shape[-2]), backend)
    return sums.rows, sums.columns


def logsumexp_with_mean(
    x: Tensor,
    keys: Tensor | None = None,
    *,
    scale: Tensor,
    ids: Tensor | Ids | None = None,
    key_ids: Tensor | Ids | None = None,
    norm_bound: float | Bound = torch.inf,
    backend: str = "auto",
    part: tuple[int, int] = WHOLE,
) -> tuple[Tensor, Tensor]:
    r"""Log-sum-exp with a scale for each row, and the mean similarity of the row under the softmax of its logits.

    $$\text{mean}_i = \frac{\sum_{j : \text{id}_j \ne \text{id}_i} \exp(\text{scale}_i \langle x_i, k_j \rangle)
      \langle x_i, k_j \rangle}{\sum_{j : \text{id}_j \ne \text{id}_i} \exp(\text{scale}_i \langle x_i, k_j \rangle)}$$

    Arguments are as for `logsumexp`, except that ``scale`` is a tensor (N,). With ``part``, means are over the part's pairs.

    Returns:
        (N,) log-sum-exps as from `logsumexp`, and (N,) means without gradient, 0 for a row without keys.

    Raises:
        ValueError: As `logsumexp`, or for a scale that is not one per row.
        TypeError: A dtype is wrong.

    Examples:
        >>> import torch
        >>> from contrastive_zoo import pairwise
        >>> keys = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
        >>> pairwise.logsumexp_with_mean(torch.eye(2), keys, scale=torch.tensor([100.0, 1.0]))
        (tensor([100.0000,   0.6931]), tensor([1., 0.]))
    """
    check_features("x", x, (2,))
    sweep = Sweep.of(x, keys, ids, key_ids, norm_bound=norm_bound, part=part)
    sums = compute(sweep, LogSumExp.with_mean(scale, len(x), sweep.x), backend)
    return sums.rows, sums.means
