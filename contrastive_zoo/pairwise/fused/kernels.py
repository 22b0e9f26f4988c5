"""All kernels; launched by `launch.py`, derived in `../README.md`.

A program computes for a block of rows `i` of one side, and reads blocks of rows `j` of the other side. Rows and keys exchange
roles by exchanging arguments. Everything between the products is float32.

Shapes: G sets, K scales, N rows, M rows of the other side, D features. Results of rows are (K, G, N).

Flags that the compiler knows:

* TERM: what is summed, a number of the package `fused`.
* IDS: 0 no ids, 1 the id of a row is its position // group, 2 ids are loaded.
* EQUAL: 0 pairs with different ids count, 1 pairs of different rows with equal ids, 2 the same, and loaded ids ascend.
* SCALES: 0 one number, 1 a tensor with one scale per `k`, 2 a tensor with one scale per row.
* PART: which pairs count, given two strips of rows, from s0 to e0 and from s1 to e1: 0 all, 1 those whose smaller row is in a
  strip, 2 those whose row i is, 3 those whose row j is.
* PRECISION: how float32 operands are multiplied.
* D, WIDTH: features, and features of a chunk. Up to 256 features are one chunk, of the next power of two from 16 on.
* BM, BN: rows of the two sides in a tile.
"""

from contrastive_zoo.pairwise.fused.backward import gradients as gradients
from contrastive_zoo.pairwise.fused.backward import weigh as weigh
from contrastive_zoo.pairwise.fused.forward import log_sums as log_sums
from contrastive_zoo.pairwise.fused.forward import pair_sums as pair_sums
from contrastive_zoo.pairwise.fused.forward import sums as sums
from contrastive_zoo.pairwise.fused.wide import products as products
from contrastive_zoo.pairwise.fused.wide import slopes as slopes
