"""Launches the kernels of a sweep. Nothing here reads a value on an accelerator, so the host never waits.

Shapes: G sets of N rows, M keys, K scales, D features.
"""

from collections.abc import Iterator
from itertools import product
from typing import Any, NamedTuple

import torch
from torch import Tensor

from contrastive_zoo.pairwise import fused
from contrastive_zoo.pairwise.fused.arguments import Function, Side, flat, sides_of
from contrastive_zoo.pairwise.fused.shapes import MIXED, capability_of, chunk_of, is_wide, kind_of, shape_of
from contrastive_zoo.pairwise.sweep import Sweep, strips
from contrastive_zoo.pairwise.terms import Sums, Term

# From this many pairs of rows on, each pair is visited once, with sums of both sides, if the order of additions may vary.
MANY_PAIRS = 2**26
# Tiles that a program of `pair_sums` visits.
RUN = 16
# Entries that `weigh` reads at once.
BLOCK = 4096
# Largest number of rows, and of rows of the other side, whose slopes are stored at once; and the bytes that they may take where
# the gradient, twice, takes less.
SLAB, SLAB_BYTES = 4096, 2**22
# Rows of the largest tile.
LARGEST_TILE = 128

Pointers = tuple[Tensor | None, ...]


class Weighted(NamedTuple):
    """What the gradients through the sums of one side need; all None for a side without sums.

    Attributes:
        level: Log-sum-exps, biases or squared lengths.
        errors: Rounding errors of log-sum-exps.
        weights: Upstream gradients times scales, over the largest.
    """

    level: Tensor | None = None
    errors: Tensor | None = None
    weights: Tensor | None = None


class Launches:
    """What the launches of a sweep share.

    Args:
        sweep: The sweep.
        term: The term.
    """

    def __init__(self, sweep: Sweep, term: Term) -> None:
        self.device, self.divided = sweep.x.device, sweep.part[1] > 1
        self.x, self.keys = sides_of(sweep)
        self.sets = sweep.x.shape[0] if sweep.x.dim() == 3 else 1
        self.width = sweep.x.shape[-1]
        self.function = Function.of(term, sweep.x)
        self.kind = kind_of(self.x.x.dtype, self.function.term)
        # A finite number in float32, whose product with a scale of 0 is 0.
        self.squared_bound = min(sweep.norm_bound**2, 1e30)
        own = sweep.keys is None
        self.group = sweep.group or int(own)
        self.flags = {
            "IDS": 2 if self.x.ids is not None else int(own or sweep.ids is not None),
            # Ordered ids say which tiles hold pairs.
            "EQUAL": (1 + (sweep.ordered and not self.divided)) * (sweep.counts == "equal"),
            "SCALES": self.function.scales,
        }
        bounds = [limit for strip in strips(self.x.rows, sweep.part) for limit in strip]
        self.strips = (*bounds, *[self.x.rows] * (4 - len(bounds)))

    def launch(self, name: str, own: Side, other: Side, pointers: Pointers, flags: dict[str, int], numbers: Any = ()) -> None:
        """Launch a kernel of whole sides, with the flags and the numbers that are the kernel's own."""
        constants, options = self._constants(name, flags)
        blocks = -(-own.rows // constants["BM"])
        grid: tuple[int, ...] = blocks, self.sets * (1 if "K" in flags else self.function.number)
        if name == "pair_sums":
            low, high, start, stop = self.strips
            blocks = -(-(high - low) // constants["BM"]) - (-(stop - start) // constants["BM"])
            grid = max(blocks, 1), grid[1], -(-other.rows // (constants["BN"] * RUN))
            constants["RUN"] = RUN
        with torch.cuda.device_of(own.x):
            getattr(_kernels(), name)[grid](
                *self._shared(own, other, pointers), *self.strips, *numbers, **constants, **self.flags, **options
            )

    def _shared(self, own: Side, other: Side, pointers: Pointers) -> tuple[Any, ...]:
        """The first arguments of kernels that read both sides."""
        tensors = own.x, other.x, own.ids, other.ids, self.function.scale
        numbers = own.rows, other.rows, self.sets, *own.strides, *other.strides, self.group, self.squared_bound
        return *tensors, *pointers, *numbers

    def _constants(self, name: str, flags: dict[str, int]) -> tuple[dict[str, Any], dict[str, int]]:
        """What the compiler knows, and its options."""
        shape = shape_of(name, self.kind, self.width, capability_of(self.device))
        constants: dict[str, Any] = {
            "D": self.width,
            "WIDTH": chunk_of(name, self.kind, self.width),
            "BM": shape.rows,
            "BN": shape.columns,
            "PRECISION": self.kind.precision,
            **flags,
        }
        # The slopes of several scales are in registers at once.
        warps = max(shape.warps, 8) if flags.get("K", 1) > 1 else shape.warps
        return constants, {"num_warps": warps, "num_stages": shape.stages}

    def weights(self, sums: Sums, upstream: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Weights of rows and of keys, at most 1, and the factor that is taken out of both."""
        rows, columns, top = torch.empty_like(sums.rows), torch.empty_like(sums.columns), sums.rows.new_empty(1)
        (grad, step), (other, other_step) = map(flat, upstream)
        # A row without keys has the log-sum-exp -inf, and no gradient. Other sums of nothing are 0.
        logarithms = self.function.term == fused.LOGSUMEXP
        with torch.cuda.device_of(rows):
            _kernels().weigh[(1,)](
                grad,
                sums.rows if logarithms else None,
                rows,
                other,
                sums.columns if logarithms else None,
                columns,
                self.function.scale,
                top,
                rows.numel(),
                step,
                self.x.rows,
                self.sets * self.x.rows,
                columns.numel(),
                other_step,
                max(columns.numel() // len(columns), 1),
                SCALES=self.function.scales,
                BLOCK=BLOCK,
                num_warps=16,
            )
        return rows, columns, top

    def gradient(
        self, own: Side, other: Side, through: tuple[Weighted, Weighted], top: Tensor, offsets: Tensor | None = None
    ) -> Tensor:
        """Gradient of one side, through sums of that side and of the other; ``offsets`` receives that of squared lengths."""
        pointers = *through[0], *through[1]
        flags = {"K": self.function.number, "TERM": self.function.term}
        wide = is_wide(self.kind, self.width)
        # Wide gradients are sums over slabs.
        out = (torch.zeros if wide else torch.empty)(own.x.shape, device=self.device, dtype=torch.float32)
        if not wide:
            self.launch("gradients", own, other, (*pointers, top, out, offsets), {**flags, "PART": own.part}, self._numbers)
            return out
        if offsets is not None:
            offsets.zero_()
        dtype = torch.float32 if self.kind is MIXED else own.x.dtype
        height = min(max(SLAB // self.sets, 1), own.rows)
        bounded = max(SLAB_BYTES, 2 * out.numel() * out.element_size()) // (self.sets * height * dtype.itemsize)
        length = min(SLAB, other.rows, max(bounded, 1))
        slab = torch.empty(self.sets * height * _padded(length), device=self.device, dtype=dtype)
        for rectangle in self._rectangles(own, other):
            for bounds in _slabs(rectangle, height, length):
                self._slopes(own, other, (*pointers, slab), flags, bounds)
                self._products(other, (slab, other.x, top, out, offsets), own.rows, bounds)
        return out

    @property
    def _numbers(self) -> tuple[float, float, int]:
        return (0.0, 0.0, 1) if self.function.term == fused.LOGSUMEXP else self.function.numbers

    def _slopes(self, own: Side, other: Side, pointers: Pointers, flags: dict[str, int], bounds: tuple[int, ...]) -> None:
        constants, options = self._constants("slopes", flags)
        low, high, start, stop = bounds
        row = _padded(stop - start)
        grid = -(-(high - low) // constants["BM"]), row // constants["BN"], self.sets
        with torch.cuda.device_of(own.x):
            _kernels().slopes[grid](
                *self._shared(own, other, pointers), *bounds, *self._numbers, row, **constants, **self.flags, **options
            )

    def _products(self, other: Side, pointers: Pointers, rows: int, bounds: tuple[int, ...]) -> None:
        constants, options = self._constants("products", {"TERM": self.function.term})
        grid = -(-(bounds[1] - bounds[0]) // constants["BM"]), -(-self.width // constants["WIDTH"]), self.sets
        with torch.cuda.device_of(other.x):
            row = _padded(bounds[3] - bounds[2])
            _kernels().products[grid](*pointers, rows, *other.strides, *bounds, row, **constants, **options)

    def _rectangles(self, own: Side, other: Side) -> Iterator[tuple[int, int, int, int]]:
        """Rectangles that hold the pairs that count: first and last row of a side, first and last row of the other side."""
        if not own.part:
            yield 0, own.rows, 0, other.rows
            return
        low, high, start, stop = self.strips
        for first, end in ((low, high), (start, stop)):
            if first == end:
                continue
            if own.part == 2:
                yield first, end, 0, other.rows
            elif own.part == 3:
                yield 0, own.rows, first, end
            else:  # the smaller row is in the strip
                yield first, end, first, other.rows
                if end < own.rows:
                    yield end, own.rows, first, end

    @property
    def visits_pairs_once(self) -> bool:
        """Whether to visit each pair once, for the sums of both sides."""
        many = self.x.rows * self.keys.rows >= MANY_PAIRS
        if not many or self.function.scales == 2 or torch.are_deterministic_algorithms_enabled():
            return False
        # On an accelerator the scale is not read: `pair_sums` returns at once if logits are not bounded.
        scale = self.function.scale
        return isinstance(scale, Tensor) or 2 * abs(scale) * self.squared_bound < fused.BOUNDED_RANGE


def _slabs(rectangle: tuple[int, int, int, int], height: int, length: int) -> Iterator[tuple[int, int, int, int]]:
    """A rectangle in pieces of at most ``height`` rows and ``length`` columns."""
    low, high, start, stop = rectangle
    for first, column in product(range(low, high, height), range(start, stop, length)):
        yield first, min(first + height, high), column, min(column + length, stop)


def _padded(length: int) -> int:
    """Entries of a row of a slab: a multiple of the rows of any tile."""
    return -(-length // LARGEST_TILE) * LARGEST_TILE


def _kernels() -> Any:
    # Imported here, because Triton may be missing and takes long to import.
    from contrastive_zoo.pairwise.fused import kernels

    return kernels
