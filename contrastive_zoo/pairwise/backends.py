"""Records of the backends that compute sweeps, and the choice of a backend for a call."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from contrastive_zoo.checks import check_choice
from contrastive_zoo.pairwise import dense
from contrastive_zoo.pairwise.fused import passes, refusals
from contrastive_zoo.pairwise.sweep import Sweep, unrounded
from contrastive_zoo.pairwise.terms import Gradients, Needs, Sums, Term
from contrastive_zoo.pairwise.tiled import gram, loop

Forward = Callable[[Sweep, Term, Needs], tuple[Sums, Tensor]]
Backward = Callable[[Sweep, Term, Sums, tuple[Tensor, Tensor], Tensor, Needs], Gradients]


@dataclass(frozen=True)
class Backend:
    """A way to compute sweeps.

    Attributes:
        name: Name of the backend.
        refuses: Returns the reason, for users, why the backend cannot compute a term over a sweep; empty if it can.
        orders: Whether rows with equal ids should be next to each other, for sums over pairs with equal ids.
        prepare: Maps a sweep to the sweep that the passes get, with ids where they need them.
        parts: Whether the backend can compute a part of a sweep; only then do processes share the work.
        recomputes: Whether the backward pass can do without the entries that the forward pass keeps.
        plain: Computes sums by plain autograd, differentiable any number of times, without the axis of scales if there is one
            scale. If None, the fields below are set.
        residual: Number of entries that the forward pass keeps for the backward pass, given which inputs need a gradient.
        forward: Maps the sweep, the term and the inputs that need a gradient to the sums and the kept entries.
        backward: Maps the sweep, the term, the sums, their upstream gradients, the kept entries and the inputs that need a
            gradient to gradients.
    """

    name: str
    refuses: Callable[[Sweep, Term], str] = lambda sweep, term: ""
    orders: Callable[[Sweep], bool] = lambda sweep: False
    prepare: Callable[[Sweep], Sweep] = lambda sweep: sweep
    parts: bool = True
    recomputes: bool = True
    plain: Callable[[Sweep, Term], Sums] | None = None
    residual: Callable[[Sweep, Term, Needs], int] | None = None
    forward: Forward | None = None
    backward: Backward | None = None


TILED = Backend(
    "tiled",
    prepare=unrounded,
    orders=lambda sweep: True,
    residual=loop.residual,
    forward=loop.forward,
    backward=loop.backward,
)
DENSE = Backend("dense", parts=False, plain=dense.forward)
FUSED = Backend(
    "fused",
    refuses=refusals.refuses,
    orders=passes.orders,
    prepare=passes.prepare,
    recomputes=False,
    residual=passes.residual,
    forward=passes.forward,
    backward=passes.backward,
)
BACKENDS = {backend.name: backend for backend in (FUSED, TILED, DENSE)}


def _refuses_unasked(sweep: Sweep, term: Term) -> str:
    """The reason why "auto" does not take kernels.

    While compiling, ids on the host are not read: they are inputs of the compiled code.
    """
    less_work = (
        "the Gram matrix gives sums of squares of more rows than features with fewer products than any visit to all pairs"
    )
    known = sweep.group == 1 or not torch.compiler.is_compiling()
    return refusals.refuses_unasked(sweep, term) or (less_work if known and gram.serves(sweep, term) else "")


# "auto" uses the first of these that does not refuse.
AUTO = (replace(FUSED, refuses=_refuses_unasked), replace(DENSE, refuses=dense.refuses_unasked), TILED)


def check_backend(name: object) -> None:
    """Raise unless the name is "auto" or the name of a backend."""
    check_choice("backend", name, ("auto", *sorted(BACKENDS)))


def choose(sweep: Sweep, term: Term, name: str, *, opaque: bool = False) -> Backend:
    """The backend for a sweep. An explicitly named backend is never replaced.

    Args:
        sweep: The sweep.
        term: What is summed.
        name: Name of the backend, or "auto".
        opaque: Whether the sums are computed inside of an operator, where "auto" takes no backend in plain autograd.

    Raises:
        ValueError: The backend is unknown, or cannot compute the sweep.
    """
    for backend in named(name):
        if opaque and backend.plain is not None and name == "auto":
            continue
        reason = backend.refuses(sweep, term)
        if not reason and sweep.part[1] > 1 and not backend.parts:
            reason = "it computes whole sums, no parts of them"
        if not reason:
            return backend
    raise ValueError(f"backend={name!r} cannot do this: {reason}. Use backend='auto'.")


def any_derivative(name: str) -> bool:
    """Whether sums by a backend of this name are plain autograd, differentiable any number of times, whatever the sweep."""
    return all(backend.plain is not None for backend in named(name))


def named(name: str) -> tuple[Backend, ...]:
    """The backends that a name stands for, the first choice first.

    Raises:
        ValueError: There is none.
    """
    if name == "auto":
        return AUTO
    check_backend(name)
    return (BACKENDS[name],)
