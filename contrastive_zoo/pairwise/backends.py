"""Which backend computes a sweep: a record for each, and the choice at the call."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from contrastive_zoo.checks import check_choice
from contrastive_zoo.pairwise import dense
from contrastive_zoo.pairwise.sweep import Sweep
from contrastive_zoo.pairwise.terms import Gradients, Needs, Sums, Term
from contrastive_zoo.pairwise.tiled import loop

Forward = Callable[[Sweep, Term, Needs], tuple[Sums, Tensor]]
Backward = Callable[[Sweep, Term, Sums, tuple[Tensor, Tensor], Tensor, Needs], Gradients]


@dataclass(frozen=True)
class Backend:
    """A way to compute sweeps.

    Attributes:
        name: Its name.
        refuses: Why it cannot compute a term over a sweep, a sentence for users; empty if it can.
        parts: Whether it can compute a part of a sweep; processes share the work only if it can.
        plain: Sums by plain autograd, differentiable any number of times; or None, and then the rest is there.
        residual: Entries that the forward pass keeps for the backward pass, given what will need a gradient.
        forward: From the sweep, the term and what will need a gradient to the sums and the entries kept.
        backward: From those, the sums and their upstream gradients, and what needs a gradient, to gradients.
    """

    name: str
    refuses: Callable[[Sweep, Term], str] = lambda sweep, term: ""
    parts: bool = True
    plain: Callable[[Sweep, Term], Sums] | None = None
    residual: Callable[[Sweep, Term, Needs], int] | None = None
    forward: Forward | None = None
    backward: Backward | None = None


TILED = Backend("tiled", residual=loop.residual, forward=loop.forward, backward=loop.backward)
DENSE = Backend("dense", parts=False, plain=dense.forward)
BACKENDS = {backend.name: backend for backend in (TILED, DENSE)}
# The first that does not refuse.
AUTO = (TILED,)


def check_backend(name: object) -> None:
    """Raise unless a backend, or "auto", has that name."""
    check_choice("backend", name, ("auto", *sorted(BACKENDS)))


def choose(sweep: Sweep, term: Term, name: str) -> Backend:
    """The backend for a sweep. One that was asked for by name is never replaced.

    Raises:
        ValueError: There is none of that name, or it refuses.
    """
    for backend in named(name):
        reason = backend.refuses(sweep, term)
        if sweep.part[1] > 1 and not backend.parts:
            reason = "it computes whole sums, no parts of them"
        if not reason:
            return backend
    raise ValueError(f"backend={name!r} cannot do this: {reason}. Use backend='auto'.")


def named(name: str) -> tuple[Backend, ...]:
    """The backends that a name stands for, the first choice first.

    Raises:
        ValueError: There is none.
    """
    if name == "auto":
        return AUTO
    check_backend(name)
    return (BACKENDS[name],)
