"""Shapes of tiles, from a table: nothing is tuned at run time."""

from functools import cache
from typing import NamedTuple

import torch

from contrastive_zoo.pairwise import fused


class Kind(NamedTuple):
    """How products are computed.

    Attributes:
        name: "half", "tf32", "float32", or "mixed": similarities in float16, and slopes in TF32.
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


# "tf32x3" is as exact as float32 and keeps its products on tensor cores, at a third of the rate of TF32.
HALF, TF32, FLOAT32, MIXED = Kind("half", "ieee"), Kind("tf32", "tf32"), Kind("float32", "tf32x3"), Kind("mixed", "ieee")

# Largest width of each column of the table.
WIDTHS = (64, 128, 256)
# Largest width of rows that a tile holds whole. At 256 features only half precision leaves room for more than 32 x 32 rows, so
# each row is loaded for few products. Wider rows are read in chunks, which leave room for large tiles.
WHOLE = {"half": 256, "mixed": 128, "tf32": 128, "float32": 128}
LARGEST_WIDTH = 4096
# Not measured. Rule: of the shapes up to 128 x 128 the largest whose machine code (`make kernels`; Triton 3.3, 3.6, 3.8) takes
# at most 99 KiB of shared memory on compute capabilities 80, 86, 89 and 120, and spills no register there in half precision and
# TF32, and at most 100 in float32. Capabilities 90 and 100 have 227 KiB; the shapes need up to 129 KiB there, and on 100
# `pair_sums` spills up to 28 registers.
TABLE = {
    ("log_sums", "half"): (Shape(64, 128, 4, 3), Shape(64, 128, 4, 2), Shape(64, 64, 4, 2)),
    ("log_sums", "tf32"): (Shape(64, 128, 4, 2), Shape(64, 64, 4, 2)),
    ("log_sums", "float32"): (Shape(32, 64, 4, 2), Shape(32, 64, 4, 2)),
    ("pair_sums", "half"): (Shape(128, 128, 8, 2), Shape(128, 128, 8, 2), Shape(64, 64, 8, 2)),
    ("pair_sums", "tf32"): (Shape(64, 64, 4, 2), Shape(64, 64, 4, 2)),
    ("pair_sums", "float32"): (Shape(32, 64, 4, 2), Shape(32, 64, 4, 2)),
    ("sums", "half"): (Shape(64, 64, 4, 3), Shape(64, 64, 4, 3), Shape(64, 64, 4, 2)),
    ("sums", "mixed"): (Shape(64, 64, 4, 3), Shape(64, 64, 4, 3)),
    ("sums", "tf32"): (Shape(64, 64, 4, 2), Shape(64, 64, 4, 2)),
    ("sums", "float32"): (Shape(32, 64, 4, 2), Shape(32, 64, 4, 2)),
    ("gradients", "half"): (Shape(64, 64, 4, 3), Shape(64, 64, 8, 2), Shape(64, 32, 8, 2)),
    ("gradients", "mixed"): (Shape(64, 32, 8, 2), Shape(64, 32, 8, 2)),
    ("gradients", "tf32"): (Shape(64, 64, 4, 2), Shape(64, 64, 8, 2)),
    ("gradients", "float32"): (Shape(32, 64, 8, 2), Shape(32, 64, 8, 2)),
}
# The same for wider rows.
WIDE = {
    ("log_sums", "half"): Shape(64, 128, 4, 3),
    ("log_sums", "tf32"): Shape(64, 128, 4, 3),
    ("log_sums", "float32"): Shape(64, 64, 4, 2),
    ("pair_sums", "half"): Shape(128, 128, 8, 3),
    ("pair_sums", "tf32"): Shape(64, 128, 8, 3),
    ("pair_sums", "float32"): Shape(64, 64, 4, 2),
    ("sums", "half"): Shape(64, 128, 8, 3),
    ("sums", "mixed"): Shape(64, 128, 8, 3),
    ("sums", "tf32"): Shape(64, 128, 8, 3),
    ("sums", "float32"): Shape(64, 64, 4, 2),
    ("slopes", "half"): Shape(128, 64, 8, 3),
    ("slopes", "mixed"): Shape(128, 64, 8, 3),
    ("slopes", "tf32"): Shape(128, 64, 8, 3),
    ("slopes", "float32"): Shape(64, 64, 8, 2),
    ("products", "half"): Shape(128, 64, 8, 3),
    ("products", "mixed"): Shape(64, 64, 8, 2),
    ("products", "tf32"): Shape(128, 32, 8, 3),
    ("products", "float32"): Shape(64, 32, 8, 2),
}
# Features of a chunk of wide rows: of the sums of products, and of the gradient.
CHUNKS = {"half": (64, 128), "mixed": (64, 128), "tf32": (32, 128), "float32": (32, 64)}
# By kernel, kind, largest width and compute capability. Among the fastest on an H100, measured not with these kernels but with
# shorter ones that had the same products and exponentials: rows against all keys, one scale, ids in tensors. To measure more:
# `python benchmarks/tune.py`.
MEASURED: dict[tuple[str, str, int, int], Shape] = {
    ("log_sums", "half", 128, 90): Shape(64, 128, 4, 3),
}


def kind_of(dtype: torch.dtype, term: int) -> Kind:
    """How to multiply operands of a dtype: float32 as `torch.set_float32_matmul_precision` says.

    A squared distance is a difference of products: TF32 would round off more than the floor of near rows, so kernels of
    distances take products as exact as float32. Slopes of squares and of kernels may exceed the range of float16.
    """
    if dtype != torch.float32:
        return MIXED if dtype == torch.float16 and term >= fused.SQUARES else HALF
    exact = term > fused.SQUARES or torch.get_float32_matmul_precision() == "highest"
    return FLOAT32 if exact else TF32


def padded(width: int) -> int:
    """The next power of two, at least 16."""
    return max(16, 1 << (width - 1).bit_length())


def is_wide(kind: Kind, width: int) -> bool:
    """Whether rows are read in chunks."""
    return width > WHOLE[kind.name]


def chunk_of(kernel: str, kind: Kind, width: int) -> int:
    """Features that a kernel reads or computes at once."""
    return CHUNKS[kind.name][kernel == "products"] if is_wide(kind, width) else padded(width)


@cache
def capability_of(device: torch.device) -> int:
    """Compute capability of a GPU, 90 for 9.0; of a CPU 80."""
    major, minor = torch.cuda.get_device_capability(device) if device.type == "cuda" else (8, 0)
    return 10 * major + minor


def column_of(kind: Kind, width: int) -> int:
    """Largest width of the column of the table that rows of a width belong to."""
    return LARGEST_WIDTH if is_wide(kind, width) else next(largest for largest in WIDTHS if width <= largest)


def shape_of(kernel: str, kind: Kind, width: int, capability: int) -> Shape:
    """The shape of the tiles of a kernel on a GPU."""
    column = column_of(kind, width)
    if measured := MEASURED.get((kernel, kind.name, column, capability)):
        return measured
    return WIDE[kernel, kind.name] if is_wide(kind, width) else TABLE[kernel, kind.name][WIDTHS.index(column)]
