"""The two passes over one block of a larger matrix of pairs, for callers that put sums and gradients of blocks together.

In contrast to `contrastive_zoo.pairwise.operator_.compute`, autograd records nothing: the caller keeps what the backward pass
needs. This is never a tile, only numbers per row.
"""

from dataclasses import replace

import torch
from torch import Tensor

from contrastive_zoo.pairwise.backends import Backend, choose
from contrastive_zoo.pairwise.sweep import Sweep
from contrastive_zoo.pairwise.terms import Gradients, Needs, Sums, Term


def kept_sizes(sweep: Sweep, term: Term, name: str, needs: Needs) -> tuple[int, int, int, int]:
    """Number of entries that `forward` returns: sums of rows, sums of keys, means, and what the backend keeps."""
    backend, rows, number = choose(sweep, term, name, opaque=True), sweep.x.shape[-2], term.packed().sums
    keys = sweep.keys.shape[0] if sweep.keys is not None and sweep.both else 0
    residual = 0 if backend.residual is None else backend.residual(sweep, term, _kept_for(backend, needs))
    return number * rows, number * keys, number * rows * term.packed().means, residual


def forward(sweep: Sweep, term: Term, name: str, needs: Needs) -> tuple[Sums, Tensor]:
    """The sums of a sweep of one set of rows, and what the named backend keeps for `backward`."""
    backend = choose(sweep, term, name, opaque=True)
    if backend.plain is not None:
        with torch.no_grad():
            return backend.plain(sweep, term).with_axis(term.packed().sums), sweep.x.new_empty(0)
    assert backend.forward is not None
    return backend.forward(backend.prepare(sweep), term, _kept_for(backend, needs))


def backward(
    sweep: Sweep, term: Term, name: str, sums: Sums, upstream: tuple[Tensor, Tensor], kept: Tensor, needs: Needs
) -> Gradients:
    """Gradients of rows, keys, scale and offset, given those of the sums of rows and of keys; see `Backend.backward`."""
    backend = choose(sweep, term, name, opaque=True)
    if backend.plain is not None:
        return _through(backend, sweep, term, upstream, needs)
    assert backend.backward is not None
    return backend.backward(backend.prepare(sweep), term, sums, upstream, kept, needs)


def _kept_for(backend: Backend, needs: Needs) -> Needs:
    """What the forward pass keeps entries for: nothing, if the backward pass can compute tiles again."""
    return (False, False, False, False) if backend.recomputes else needs


def _through(backend: Backend, sweep: Sweep, term: Term, upstream: tuple[Tensor, Tensor], needs: Needs) -> Gradients:
    """Gradients by plain autograd through the sums, which are computed again."""
    assert backend.plain is not None
    packed = term.packed()
    given = (sweep.x, sweep.keys, packed.scale, packed.offset)
    leaves = [each if each is None else each.detach().requires_grad_(need) for each, need in zip(given, needs, strict=True)]
    x, keys, scale, offset = leaves
    with torch.enable_grad():
        assert x is not None
        again = type(term).unpacked(packed._replace(scale=scale, offset=offset))
        rows, columns, _ = backend.plain(replace(sweep, x=x, keys=keys), again).with_axis(packed.sums)
        total = (rows * upstream[0]).sum() + (columns * upstream[1]).sum()
    wanted = [leaf for leaf, need in zip(leaves, needs, strict=True) if leaf is not None and need]
    found = iter(torch.autograd.grad(total, wanted) if total.requires_grad else ())
    return Gradients(*(next(found, sweep.x.new_empty(0)) if need else sweep.x.new_empty(0) for need in needs))
