"""Shapes of tiles, from a table: nothing is tuned at run time."""

from functools import cache
from typing import NamedTuple

import torch


class Kind(NamedTuple):
    """How products are computed.

    Attributes:
        name: "half", "tf32" or "float32".
        precision: The word of Triton for it.
    """

    name: str
    precision: str


class Shape(NamedTuple):
    """Shape of a tile, and how a program works on it.

    Attributes:
        rows: Rows of the side that a program computes for.
        columns: Rows of the other side.
        warps: Warps of a program.
        stages: Stages of the pipeline of loads.
    """

    rows: int
    columns: int
    warps: int
    stages: int


HALF, TF32, FLOAT32 = Kind("half", "ieee"), Kind("tf32", "tf32"), Kind("float32", "tf32x3")


def kind_of(dtype: torch.dtype) -> Kind:
    """How to multiply operands of a dtype: float32 as `torch.set_float32_matmul_precision` says."""
    if dtype != torch.float32:
        return HALF
    return FLOAT32 if torch.get_float32_matmul_precision() == "highest" else TF32


def padded(width: int) -> int:
    """The next power of two, at least 16."""
    return max(16, 1 << (width - 1).bit_length())


@cache
def capability_of(device: torch.device) -> int:
    """Compute capability of a GPU, 90 for 9.0; of a CPU 80."""
    major, minor = torch.cuda.get_device_capability(device) if device.type == "cuda" else (8, 0)
    return 10 * major + minor


def shape_of(kernel: str, kind: Kind, width: int, capability: int) -> Shape:
    return Shape(32, 32, 4, 2)
