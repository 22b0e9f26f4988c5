"""Launches the kernels of walks over a batch (`walk_triton.py`). Nothing here reads a value on a GPU, so the host never waits.

Shapes: N rows, A anchors among them, D features.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from contrastive_zoo.devices import TRITON, beside, refuses_kernels, written_beside
from contrastive_zoo.pairwise.fused.refusals import INTERPRETED
from contrastive_zoo.pairwise.fused.shapes import FLOAT32, HALF, TF32, Kind, padded
from contrastive_zoo.samplers.chains import Chains, Columns, KeptStates

# Bytes of the moves of anchors, a bit per pair, and of what `rows` leaves for `columns`; more anchors walk one part after
# another. A bit per pair of 16,384 pairs of views takes as much.
SLAB_BYTES = 2**27
# Parts start at multiples of so many anchors, so that tensors of parts are aligned as whole ones are.
ALIGNED = 128


class Shape(NamedTuple):
    """Shape of a tile.

    Attributes:
        anchors: Anchors of a tile.
        runs: Runs of 8 columns.
        warps: Warps of a program.
    """

    anchors: int
    runs: int
    warps: int


STAGES = 2
# Largest width of each column of the table.
WIDTHS = (64, 128, 256)
# By kernel and kind of product. Not measured. Rule: of the shapes up to (64, 16) the largest found whose machine code
# (`make kernels`; Triton 3.8) spills no register on compute capabilities 80, 86, 89 and 90, and takes at most 99 KiB of shared
# memory on the first three; 90 has 227 KiB.
TABLE = {
    ("walk", "half"): (Shape(64, 16, 8), Shape(64, 16, 8), Shape(64, 8, 8)),
    ("walk", "tf32"): (Shape(64, 16, 8), Shape(64, 8, 8), Shape(32, 4, 8)),
    ("walk", "float32"): (Shape(32, 8, 8), Shape(32, 8, 8), Shape(16, 4, 4)),
    ("rows", "half"): (Shape(64, 8, 8), Shape(64, 8, 8), Shape(32, 8, 8)),
    ("rows", "tf32"): (Shape(64, 8, 8), Shape(64, 8, 8), Shape(32, 4, 8)),
    ("rows", "float32"): (Shape(32, 8, 8), Shape(32, 4, 8), Shape(16, 4, 8)),
}


def kind_of(dtype: torch.dtype) -> Kind:
    """How to multiply operands of a dtype: float32 as `torch.set_float32_matmul_precision` says."""
    if dtype != torch.float32:
        return HALF
    return FLOAT32 if torch.get_float32_matmul_precision() == "highest" else TF32


def shape_of(kernel: str, kind: Kind, width: int) -> Shape:
    """The tiles of a kernel; "columns" has those of "rows", and reads what "rows" leaves per block of columns."""
    return TABLE[kernel, kind.name][next(number for number, largest in enumerate(WIDTHS) if width <= largest)]


def refuses(x: Tensor, backend: str) -> str:
    """The reason why the kernels do not walk over the rows x; empty if they do.

    "auto" takes the kernels on GPUs only: Triton's interpreter is right, but slow.
    """
    if backend not in ("auto", "fused"):
        return f"the backend is {backend!r}"
    if backend == "auto" and not x.is_cuda:
        return "the rows are not on a GPU"
    if x.dtype != torch.float32:
        return f"its kernels compute in float32, and the rows are in {x.dtype}"
    if x.shape[1] > WIDTHS[-1]:
        return f"its kernels take at most {WIDTHS[-1]} features, and the rows have {x.shape[1]}"
    return "" if INTERPRETED and TRITON else refuses_kernels(x.device)


def walks(x: Tensor, backend: str) -> bool:
    """Whether the kernels walk over the rows x.

    Raises:
        ValueError: The backend is "fused", and the kernels cannot.
    """
    reason = refuses(x, backend)
    if reason and backend == "fused":
        raise ValueError(f"backend='fused' cannot do this: {reason}. Use backend='auto'.")
    return not reason


class _Walk:
    """What the launches of one walk share.

    Args:
        chains: The chains.
    """

    def __init__(self, chains: Chains) -> None:
        self.chains, self.columns = chains, Columns.of(chains.ids, chains.burn_in)
        self.x = chains.x.detach().to(chains.operand or torch.float32).contiguous()
        self.scale, self.seed = written_beside(chains.scale, chains.x), beside(chains.seed, chains.x)
        self.kind, (number, width) = kind_of(self.x.dtype), self.x.shape
        self.bytes, self.shapes = -(-number // 8), {name: shape_of(name, self.kind, width) for name in ("walk", "rows")}
        self.blocks = -(-number // (8 * self.shapes["rows"].runs))

    def parts(self) -> Iterator[slice]:
        """Parts of the anchors whose moves are held at once."""
        count, held = len(self.chains.carried), self.bytes + 4 * self.blocks
        size = max(ALIGNED, SLAB_BYTES // max(held, 1) // ALIGNED * ALIGNED)
        for start in range(0, count, size):
            yield slice(start, min(start + size, count))

    def launch(self, name: str, part: slice, pointers: tuple[Tensor | None, ...]) -> None:
        """Launch a kernel for a part of the anchors."""
        shape, (number, width) = self.shapes["walk" if name == "walk" else "rows"], self.x.shape
        count, flags = part.stop - part.start, {"FAST": not INTERPRETED} if name == "walk" else {}
        programs = self.blocks if name == "columns" else -(-count // shape.anchors)
        with torch.cuda.device_of(self.x):  # Triton launches on the current device
            getattr(_kernels(), name)[(programs,)](
                self.x,
                self.chains.ids,
                *pointers,
                self.chains.first + part.start,
                count,
                number,
                self.bytes,
                D=width,
                WIDTH=padded(width),
                BM=shape.anchors,
                G=shape.runs,
                PRECISION=self.kind.precision,
                **flags,
                num_warps=shape.warps,
                num_stages=STAGES,
            )

    def moves(self, part: slice, log_score: Tensor, log_mean: Tensor) -> Tensor:
        """The moves of a part, (part, bytes): the columns 8 b, ..., 8 b + 7 are the bits of byte b, from the lowest on."""
        bits = torch.empty(part.stop - part.start, self.bytes, dtype=torch.uint8, device=self.x.device)
        pointers = (self.chains.carried[part], self.scale, self.seed, self.columns.valid, bits, log_score, log_mean)
        self.launch("walk", part, pointers)
        return bits

    def count(
        self, part: slice, bits: Tensor, results: tuple[Tensor | None, ...], gradient: Tensor | None, upstream: Tensor | None
    ) -> None:
        """Results of a part, and the gradient of both members of its pairs."""
        first_kept, kept, valid = self.columns
        wait = torch.empty(self.blocks, part.stop - part.start, dtype=torch.int32, device=self.x.device)
        self.launch("rows", part, (first_kept, kept, valid, upstream, bits, wait, *results, gradient))
        if gradient is not None:
            self.launch("columns", part, (first_kept, kept, upstream, bits, wait, gradient))


def forward(chains: Chains) -> tuple[KeptStates, Tensor]:
    """The results, and the gradient of the sum of similarities if ``uniform``."""
    walk, carried = _Walk(chains), chains.carried
    floats = [torch.empty_like(carried) for _ in range(5)]
    state = torch.empty_like(carried, dtype=torch.int64)
    similarity, share, log_score, log_mean, acceptance = floats
    gradient = torch.zeros_like(chains.x, memory_format=torch.contiguous_format) if chains.uniform else None
    for part in walk.parts():
        bits = walk.moves(part, log_score[part], log_mean[part])
        walk.count(part, bits, tuple(each[part] for each in (similarity, share, state, acceptance)), gradient, None)
    found = KeptStates(similarity, share, state, log_score, log_mean, acceptance)
    return found, chains.x.new_empty(0) if gradient is None else gradient


def backward(chains: Chains, grad: Tensor) -> Tensor:
    """Gradient of x for any upstream gradient of the similarities, by repeating the walk."""
    walk, unused = _Walk(chains), torch.empty_like(chains.carried)
    gradient = torch.zeros_like(chains.x, memory_format=torch.contiguous_format)
    # In half precision weights are at most 1, so that loss scaling cannot make them overflow.
    largest = grad.abs().amax().clamp_min(torch.finfo(grad.dtype).tiny) if len(grad) else grad.new_ones(())
    upstream = (grad / largest).contiguous()
    for part in walk.parts():
        bits = walk.moves(part, unused[part], unused[part])
        walk.count(part, bits, (None,) * 4, gradient, upstream[part])
    return gradient.mul_(largest)


def moves(chains: Chains) -> Tensor:
    """(N, A) whether a chain moved to a row."""
    walk, unused = _Walk(chains), torch.empty_like(chains.carried)
    bits = torch.cat([walk.moves(part, unused[part], unused[part]) for part in walk.parts()])
    places = torch.arange(8, dtype=torch.uint8, device=bits.device)
    return ((bits[:, :, None] >> places) & 1).flatten(1)[:, : len(chains.x)].T.bool()


def _kernels() -> Any:
    # Imported here, because Triton may be missing and takes long to import.
    from contrastive_zoo.samplers import walk_triton

    return walk_triton
