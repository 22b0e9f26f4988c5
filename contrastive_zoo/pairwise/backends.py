"""Records of the backends that compute sweeps, and the choice of a backend for a call."""

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
        name: Name of the backend.
        refuses: Returns the reason, for users, why the backend cannot compute a term over a sweep; empty if it can.
        plain: Computes sums by plain autograd, differentiable any number of times. If None, the remaining fields are set.
        residual: Number of entries that the forward pass keeps for the backward pass, given which inputs need a gradient.
        forward: Maps the sweep, the term and the inputs that need a gradient to the sums and the kept entries.
        backward: Maps the sweep, the term, the sums, their upstream gradients, the kept entries and the inputs that need a
            gradient to gradients.
    """

    name: str
    refuses: Callable[[Sweep, Term], str]
    plain: Callable[[Sweep, Term], Sums] | None = None
    residual: Callable[[Sweep, Term, Needs], int] | None = None
    forward: Forward | None = None
    backward: Backward | None = None


def _refused_by_dense(sweep: Sweep, term: Term) -> str:
    return "it builds the whole matrix, and has no parts" if sweep.part[1] > 1 else ""


TILED = Backend("tiled", lambda sweep, term: "", residual=loop.residual, forward=loop.forward, backward=loop.backward)
DENSE = Backend("dense", _refused_by_dense, plain=dense.forward)
BACKENDS = {backend.name: backend for backend in (TILED, DENSE)}
# "auto" uses the first of these that does not refuse.
AUTO = (TILED,)


def check_backend(name: object) -> None:
    """Raise unless the name is "auto" or the name of a backend."""
    check_choice("backend", name, ("auto", *sorted(BACKENDS)))


def choose(sweep: Sweep, term: Term, name: str) -> Backend:
    """The backend for a sweep. An explicitly named backend is never replaced.

    Raises:
        ValueError: The backend is unknown, or cannot compute the sweep.
    """
    for backend in AUTO if name == "auto" else ():
        if not backend.refuses(sweep, term):
            return backend
    if name not in BACKENDS:
        check_backend(name)
    reason = BACKENDS[name].refuses(sweep, term)
    if reason:
        raise ValueError(f"backend={name!r} cannot do this: {reason}. Use backend='auto'.")
    return BACKENDS[name]
