"""Sums over pairs of rows, never holding the matrix of pairs. Knows nothing of losses.

Contract, the same for all backends:

* What does not count is told by integer ids: a pair with equal ids is left out. No (N, M) mask exists.
* float32 and float64 compute in their own precision, half precision in float32. Any scale is exact, 200 and more included.
* A row without keys gives -inf (sums: 0) and gets a zero gradient.
* "dense" holds the (N, M) matrix and is plain autograd. "tiled" holds a few tiles (1 MiB each on CPUs), O(N + M) sums, and for
  the backward pass the tiles themselves when all of them take no more than 16 MiB; it is differentiable once.
* Gradients reach rows, keys and scales, unless they do not ask for one.

This contract is all that an objective knows about speed and memory; `README.md` has the derivation.
"""

from contrastive_zoo.pairwise.log_sums import logsumexp, logsumexp_both, logsumexp_with_mean
from contrastive_zoo.pairwise.sums import kernel_sum, softplus_sum, softplus_sum_within, square_sum

__all__ = [
    "kernel_sum",
    "logsumexp",
    "logsumexp_both",
    "logsumexp_with_mean",
    "softplus_sum",
    "softplus_sum_within",
    "square_sum",
]
