"""Sums over pairs of rows that never store the matrix of pairs. This package does not depend on losses.

Contract, the same for all backends:

* Integer ids exclude pairs: a pair with equal ids is left out. No (N, M) mask is stored.
* float32 and float64 inputs are computed in their own precision, half precision in float32. Large scales, 200 and more, do not
  overflow.
* A row without keys gives -inf (sums: 0) and gets a zero gradient.
* "dense" stores the (N, M) matrix and uses plain autograd. "tiled" stores a few tiles (1 MiB each on CPUs), O(N + M) sums, and,
  if all tiles together take at most 16 MiB, the tiles themselves for the backward pass. "fused" runs kernels on NVIDIA
  GPUs for float32 and half-precision rows of up to 4,096 features, with O(N + M) numbers in memory; of wide rows its backward
  pass stores slopes of a part of the pairs, of at most twice the size of the gradient or 4 MiB. Both are differentiable once.
  "auto" takes "fused" where it can; on a host it takes "dense" for at most 65,536 pairs of a set of rows; else "tiled".
* Rows, keys and scales get gradients if they require them.

Objectives rely on this contract only; `README.md` has the derivation.
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
