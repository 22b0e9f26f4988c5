"""When the kernels cannot compute a sweep, and why; cheap enough for every call, also while compiling."""

import os

import torch

from contrastive_zoo.devices import TRITON, refuses_kernels
from contrastive_zoo.pairwise.fused.shapes import LARGEST_WIDTH
from contrastive_zoo.pairwise.sweep import Sweep
from contrastive_zoo.pairwise.terms import Term

# Triton reads this variable when it is imported; its interpreter runs kernels on CPUs, for tests.
INTERPRETED = os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "yes", "on", "y")


def refuses(sweep: Sweep, term: Term) -> str:
    """The reason why the kernels cannot compute a term over a sweep; empty if they can."""
    if sweep.x.dtype != torch.float32:
        return f"its kernels compute in float32, and the rows are in {sweep.x.dtype}"
    if sweep.x.shape[-1] > LARGEST_WIDTH:
        return f"its kernels take at most {LARGEST_WIDTH} features, and the rows have {sweep.x.shape[-1]}"
    if sweep.counts == "equal" and sweep.keys is not None:
        return "its kernels sum over pairs with equal ids only where rows are their own keys"
    return "" if INTERPRETED and TRITON else refuses_kernels(sweep.x.device)


def refuses_unasked(sweep: Sweep, term: Term) -> str:
    """As `refuses`, for callers that did not name the backend: Triton's interpreter is right, but slow."""
    return "the rows are not on a GPU" if not sweep.x.is_cuda else refuses(sweep, term)
