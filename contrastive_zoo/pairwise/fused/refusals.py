"""When the kernels cannot compute a sweep, and why; cheap enough for every call, also while compiling."""

import importlib.util
import os

import torch

from contrastive_zoo.pairwise.sweep import Sweep
from contrastive_zoo.pairwise.terms import LogSumExp, Term

# A row of a tile, and a row of the gradient, must fit into registers.
LARGEST_WIDTH = 256
OLDEST = (8, 0)

TRITON = importlib.util.find_spec("triton") is not None
# Triton reads this variable when it is imported; its interpreter runs kernels on CPUs, for tests.
INTERPRETED = os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "yes", "on", "y")


def refuses(sweep: Sweep, term: Term) -> str:
    """The reason why the kernels cannot compute a term over a sweep; empty if they can."""
    if not isinstance(term, LogSumExp):
        return f"its kernels compute log-sum-exps, but not sums of the term {type(term).__name__}"
    if sweep.x.dtype != torch.float32:
        return f"its kernels compute in float32, and the rows are in {sweep.x.dtype}"
    if sweep.x.shape[-1] > LARGEST_WIDTH:
        return f"its kernels take at most {LARGEST_WIDTH} features, and the rows have {sweep.x.shape[-1]}"
    if not TRITON:
        return "its kernels need Triton, which is not installed"
    return "" if INTERPRETED else _refuses_device(sweep.x.device)


def refuses_unasked(sweep: Sweep, term: Term) -> str:
    """As `refuses`, for callers that did not name the backend: Triton's interpreter is right, but slow."""
    return "the rows are not on a GPU" if not sweep.x.is_cuda else refuses(sweep, term)


def _refuses_device(device: torch.device) -> str:
    if device.type != "cuda" or torch.version.hip is not None:
        return f"its kernels need an NVIDIA GPU, and the rows are on {device}" + (
            " of another make" if torch.version.hip else ""
        )
    properties = torch.cuda.get_device_properties(device)
    if (properties.major, properties.minor) < OLDEST:
        return (
            f"its kernels need a GPU of compute capability {OLDEST[0]}.{OLDEST[1]} or newer, and {device} has "
            f"{properties.major}.{properties.minor}"
        )
    return ""
