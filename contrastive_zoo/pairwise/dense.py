"""The readable reference: builds the whole matrix, plain autograd, any number of derivatives.

Shapes: N rows of `x`, M rows of `keys`, D features, K scales.
"""

import torch
from torch import Tensor

from contrastive_zoo.logspace import log1p_exp, masked_logsumexp
from contrastive_zoo.pairwise.kernels import distance_floor, get_kernel


def _excluded(x: Tensor, keys: Tensor | None, ids: Tensor | None, key_ids: Tensor | None) -> Tensor:
    """(N, M) mask of the pairs that do not count."""
    if ids is None or (keys is not None and key_ids is None):
        if keys is None:
            return torch.eye(len(x), dtype=torch.bool, device=x.device)
        return torch.zeros(len(x), len(keys), dtype=torch.bool, device=x.device)
    others = ids if keys is None else key_ids
    assert others is not None
    return ids.to(x.device)[:, None] == others.to(x.device)[None, :]


def logsumexp(
    x: Tensor,
    keys: Tensor | None,
    scale: Tensor,
    ids: Tensor | None,
    key_ids: Tensor | None,
    both: bool,
) -> tuple[Tensor, Tensor]:
    """Rows (K, N) and, if ``both``, columns (K, M) of the pairwise log-sum-exp."""
    similarity = x @ (x if keys is None else keys).T  # (N, M)
    excluded = _excluded(x, keys, ids, key_ids)
    scale = scale.to(x)
    rows = masked_logsumexp(scale[:, :, None] * similarity, excluded)  # (K, N)
    if not both:
        return rows, rows.new_empty(0)
    return rows, masked_logsumexp(scale[:, :, None] * similarity.T, excluded.T)  # (K, M)


def kernel_sum(
    x: Tensor, squared_norms: Tensor | None, ids: Tensor | None, kernel: str, parameter: float, rounding: float
) -> Tensor:
    """(N,) sums of a kernel of the squared distances to all rows with another id."""
    similarity = x @ x.T
    if squared_norms is None:
        distances, floor = 2 - 2 * similarity, distance_floor(kernel, x, rounding)
    else:
        norms = squared_norms[:, None] + squared_norms[None, :]
        distances, floor = norms - 2 * similarity, distance_floor(kernel, x, rounding, norms.detach() / 2)
    value = get_kernel(kernel).floored(distances, floor, parameter)
    return value.masked_fill(_excluded(x, None, ids, None), 0).sum(1)


def softplus_sum(
    x: Tensor, keys: Tensor | None, scale: Tensor, bias: Tensor, ids: Tensor | None, key_ids: Tensor | None
) -> Tensor:
    """(N,) sums of the softplus over the keys with another id."""
    logits = scale.to(x) * (x @ (x if keys is None else keys).T) + bias[:, None]  # (N, M)
    return log1p_exp(logits).masked_fill(_excluded(x, keys, ids, key_ids), 0).sum(1)


def softplus_sum_within(x: Tensor, scale: Tensor, bias: Tensor, ids: Tensor) -> Tensor:
    """(N,) sums of the softplus over the other rows with the same id."""
    logits = scale.to(x) * (x @ x.T) + bias[:, None]  # (N, N)
    equal = _excluded(x, None, ids, None).fill_diagonal_(False)
    return log1p_exp(logits).masked_fill(~equal, 0).sum(1)


def logsumexp_with_mean(
    x: Tensor, keys: Tensor | None, scale: Tensor, ids: Tensor | None, key_ids: Tensor | None
) -> tuple[Tensor, Tensor]:
    """(N,) log-sum-exps with a scale for each row, and (N,) mean similarities under their softmax, without gradient."""
    similarity = x @ (x if keys is None else keys).T
    excluded = _excluded(x, keys, ids, key_ids)
    logits = scale[:, None] * similarity
    sums = masked_logsumexp(logits, excluded)
    weights = (logits - sums[:, None]).exp().masked_fill(excluded, 0)
    return sums, (weights * similarity).sum(1).detach()


def square_sum(x: Tensor, keys: Tensor, ids: Tensor) -> Tensor:
    """(N,) sums of the squared similarities to all keys with another id."""
    return (x @ keys.T).masked_fill(_excluded(x, keys, ids, ids), 0).square().sum(1)
