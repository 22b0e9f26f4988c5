"""Sums over pairs of rows, never holding the matrix of pairs. Knows nothing of losses.

Seven functions, all of feature rows ``x`` (N, D), and of ``keys`` (M, D) or the rows themselves:

* `logsumexp`: per row, over the keys with another id; one scale, a scale per row, or several scales in one sweep.
* `logsumexp_both`: the same for rows over keys and keys over rows, in one sweep.
* `logsumexp_with_mean`: per row, with a scale for each, and beside it the mean similarity under the softmax.
* `kernel_sum`: per row, a named kernel of the squared distance.
* `softplus_sum`: per row, softplus of similarity plus bias, over the keys with another id.
* `softplus_sum_within`: the same over the other rows with the same id.
* `square_sum`: per row, the squared similarity to the rows of another view.

Contract, the same for all backends:

* What does not count is told by integer ids: a pair with equal ids is left out. No (N, M) mask exists.
* float32 and float64 compute in their own precision, half precision in float32. Any scale is exact, 200 and more included.
* A row without keys gives -inf (sums: 0) and gets a zero gradient.
* "dense" holds the (N, M) matrix and is plain autograd. "tiled" holds a few tiles (1 MiB each on CPUs), O(N + M) sums, and for
  the backward pass the tiles themselves when all of them take no more than 16 MiB; it is differentiable once.
* Gradients reach rows, keys and scales, unless they do not ask for one.

The backends and this contract are all that an objective knows about speed and memory; `README.md` has the derivation.
"""

from contrastive_zoo.pairwise.ops import (
    kernel_sum,
    logsumexp,
    logsumexp_both,
    logsumexp_with_mean,
    softplus_sum,
    softplus_sum_within,
    square_sum,
)

__all__ = [
    "kernel_sum",
    "logsumexp",
    "logsumexp_both",
    "logsumexp_with_mean",
    "softplus_sum",
    "softplus_sum_within",
    "square_sum",
]
