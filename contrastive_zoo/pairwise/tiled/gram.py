r"""Sums of squares from the (D, D) Gram matrix of the keys, which costs less than tiles for more rows than features.

$$\sum_{j \ne i} \langle x_i, k_j \rangle^2 = x_i^\top (K^\top K)\, x_i - \langle x_i, k_i \rangle^2$$

Shapes: N rows of `x` and of `keys`, row i of both with a unique id; D features.
"""

import torch
from torch import Tensor
from torch.linalg import vecdot

from contrastive_zoo.pairwise.sweep import Sweep
from contrastive_zoo.pairwise.terms import Gradients, Needs, Squares, Sums, Term


def serves(sweep: Sweep, term: Term) -> bool:
    """Whether the Gram matrix is known, on the host, to give the sums of a sweep at a lower cost."""
    if not isinstance(term, Squares) or sweep.keys is None or sweep.both or sweep.part[1] > 1 or sweep.ids is None:
        return False
    if sweep.x.shape[0] <= sweep.x.shape[1] or sweep.x.shape != sweep.keys.shape:
        return False
    return sweep.group == 1 or _distinct(sweep.ids, sweep.key_ids)


def _distinct(ids: Tensor, key_ids: Tensor | None) -> bool:
    """Whether rows and keys have the same ids, each once."""
    if key_ids is None or not ids.is_cpu or not key_ids.is_cpu:
        return False
    return torch.equal(ids, key_ids) and len(ids.unique()) == len(ids)


def squares(x: Tensor, keys: Tensor, gram: Tensor) -> Tensor:
    """(N,) sums over all keys but the row's own, ``keys``, from the (D, D) Gram matrix of all keys."""
    return vecdot(x @ gram, x) - vecdot(x, keys).square()


def forward(sweep: Sweep) -> tuple[Sums, Tensor]:
    """The sums; nothing is kept for the backward pass."""
    assert sweep.keys is not None
    x, keys, empty = sweep.x, sweep.keys, sweep.x.new_empty
    return Sums(squares(x, keys, keys.mT @ keys)[None], empty(1, 0), empty(1, 0)), empty(0)


def backward(sweep: Sweep, upstream: tuple[Tensor, Tensor], needs: Needs) -> Gradients:
    """Gradients of rows and keys; empty for an input that needs no gradient."""
    assert sweep.keys is not None
    x, keys, grad = sweep.x, sweep.keys, 2 * upstream[0][0][:, None]
    own, scaled = vecdot(x, keys)[:, None], grad * x
    of_rows, of_keys, empty = x.new_empty(0), x.new_empty(0), x.new_empty
    if needs[0]:
        of_rows = (x @ (keys.mT @ keys)).addcmul_(own, keys, value=-1).mul_(grad)
    if needs[1]:
        of_keys = (keys @ (x.mT @ scaled)).addcmul_(own, scaled, value=-1)
    return Gradients(of_rows, of_keys, empty(0), empty(0))
