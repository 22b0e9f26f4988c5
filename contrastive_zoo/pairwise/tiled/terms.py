r"""The terms on one tile: what it adds to the sums, and its slopes.

A tile holds similarities times the ``factor`` that its term asks for. A term adds the tile to the sums of its rows and, where
the tile counts for them too, of its columns; in the backward pass it turns the tile into derivatives of the loss in the
similarities. Pairs that do not count add nothing.

Logits are *bounded* when the host knows that their exponentials neither overflow nor underflow: then no maximum is needed.
Powers of 2 take less time than powers of e, so factors of log2(e) are multiplied in early.

Shapes: N rows, M keys, K scales; i and j are the rows and columns of a tile.
"""

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from contrastive_zoo.pairwise.kernels import LOG2_E, distance_floor, get_kernel
from contrastive_zoo.pairwise.sweep import Sweep
from contrastive_zoo.pairwise.terms import KernelSum, LogSumExp, Softplus, Sums, Term
from contrastive_zoo.pairwise.tiled.tiles import Tiles

# Largest |logit| for which exponentials, sums of 2^18 of them, and their inverses times 1e-10 are normal numbers.
LOGIT_LIMIT = {torch.float32: 60.0, torch.float64: 600.0}
# Largest logit whose exponential does not overflow.
OVERFLOW_LIMIT = {torch.float32: 80.0, torch.float64: 700.0}


class Upstream(NamedTuple):
    """What the backward pass of one set of rows is given.

    Attributes:
        sums: What the forward pass found; for a set that is its own keys, columns are the rows.
        rows: (K, N) gradients of the sums of rows.
        columns: (K, M) gradients of the sums of columns.
        needs_scale: Whether the gradient of the scale is needed.
    """

    sums: Sums
    rows: Tensor
    columns: Tensor
    needs_scale: bool


class OnTiles(Protocol):
    """A term on the tiles of one set of rows.

    Attributes:
        factor: What similarities are multiplied by in their product.
    """

    factor: float

    def start(self) -> None:
        """Prepare for `add`."""

    def add(self, tile: Tensor, i: slice, j: slice) -> None:
        """Add a tile to the sums. What it leaves in the tile is what `slopes` gets if tiles are kept."""

    def sums(self) -> Sums:
        """The sums over all tiles, (K, N), (K, M) and (K, N)."""

    def begin(self, upstream: Upstream) -> None:
        """Prepare for `slopes`."""

    def slopes(self, tile: Tensor, i: slice, j: slice, *, added: bool) -> Tensor:
        """Derivatives in the similarities over `chain`, (i, j), in scratch memory; ``added`` if `add` has seen the tile."""

    def chain(self) -> Tensor | float:
        """What the gradient of the rows, added up from `slopes`, is multiplied by in the end."""

    def gradients(self, grad_x: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Gradients of the scale and of the offset, given that of the rows before the multiplication."""


def on_tiles(term: Term, sweep: Sweep, tiles: Tiles, number: int) -> OnTiles:
    """The term on the tiles of set ``number`` of a sweep."""
    if isinstance(term, KernelSum):
        norms = term.squared_norms
        return Kernels(term, tiles, norms if norms is None or norms.dim() == 1 else norms[number])
    largest = _largest(term.scale, tiles, sweep.norm_bound)
    if isinstance(term, Softplus):
        bias = float(term.bias.max()) if term.bias.is_cpu else torch.inf
        return Softpluses(term, tiles, largest + bias <= OVERFLOW_LIMIT[tiles.x.dtype])
    bounded = largest <= LOGIT_LIMIT[tiles.x.dtype]
    if bounded and term.scale.shape[1] == 1 and not term.mean:
        return Exponentials(term.scale.flatten().tolist(), tiles)
    return ScaledExponentials(term, tiles, bounded)


def _largest(scale: Tensor, tiles: Tiles, norm_bound: float) -> float:
    """A bound on all |logits| without bias; infinite where the host cannot know one without waiting for an accelerator."""
    if not scale.is_cpu or (norm_bound == torch.inf and not tiles.x.is_cpu):
        return torch.inf
    bound = norm_bound * norm_bound
    if norm_bound == torch.inf:
        bound = float(tiles.x.norm(dim=1).max()) * float(tiles.keys.norm(dim=1).max())
    largest = abs(scale.item()) if scale.numel() == 1 else float(scale.abs().max())
    return largest * bound


class Exponentials:
    """Log-sum-exps of bounded logits at K scales: one exponential serves rows and columns."""

    def __init__(self, scales: list[float], tiles: Tiles) -> None:
        self.tiles, self.scales, self.single = tiles, scales, len(scales) == 1
        self.factor = scales[0] * LOG2_E if self.single else 1.0
        self._needs_scale = False

    def start(self) -> None:
        """See `OnTiles`."""
        scales, tiles = len(self.scales), self.tiles
        self._rows = tiles.x.new_zeros(scales, tiles.x.shape[0])
        keys = tiles.keys.shape[0] if tiles.columns else 0
        self._columns = self._rows if tiles.symmetric else tiles.x.new_zeros(scales, keys)

    def add(self, tile: Tensor, i: slice, j: slice) -> None:
        """See `OnTiles`."""
        two_sided = self.tiles.two_sided(i, j)
        for k in range(len(self.scales)):
            e = self._exponential(tile, k, i, j)
            self._rows[k, i] += e.sum(1)
            if two_sided:
                self._columns[k, j] += e.sum(0)

    def _exponential(self, tile: Tensor, k: int, i: slice, j: slice) -> Tensor:
        """Exponentials at scale k, 0 at pairs that do not count; a single scale is in the tile already."""
        if not self.single:
            tile = torch.mul(tile, self.scales[k] * LOG2_E, out=self.tiles.scratch(2, *tile.shape))
        return self.tiles.exclude(tile.exp2_(), i, j, 0)

    def sums(self) -> Sums:
        """See `OnTiles`."""
        columns = self._rows.new_empty(len(self.scales), 0) if self.tiles.symmetric else self._columns.log_()
        return Sums(self._rows.log_(), columns, self._rows.new_empty(len(self.scales), 0))

    def begin(self, upstream: Upstream) -> None:
        """See `OnTiles`."""
        sums, self._needs_scale = upstream.sums, upstream.needs_scale
        self._of_rows = _inverse_sum(upstream.rows, sums.rows)
        self._of_columns = self._of_rows if self.tiles.symmetric else _inverse_sum(upstream.columns, sums.columns)
        if self._needs_scale:
            self._grad_scale = upstream.rows.new_zeros(len(self.scales), 1)

    def slopes(self, tile: Tensor, i: slice, j: slice, *, added: bool) -> Tensor:
        """See `OnTiles`."""
        total = self.tiles.scratch(1, *tile.shape)
        for k, scale in enumerate(self.scales):
            e = tile if self.single and added else self._exponential(tile, k, i, j)
            term = total if self.single else self.tiles.scratch(3, *tile.shape)
            if self.tiles.columns:
                torch.add(self._of_rows[k, i, None], self._of_columns[k, None, j], out=term).mul_(e)
            else:
                torch.mul(e, self._of_rows[k, i, None], out=term)
            if not self.single:
                if self._needs_scale:
                    half = 0.5 if self.tiles.symmetric and not self.tiles.mirrored(i, j) else 1.0
                    self._grad_scale[k] += half * torch.dot(term.flatten(), tile.flatten())
                total = torch.mul(term, scale, out=total) if k == 0 else total.add_(term, alpha=scale)
        return total

    def chain(self) -> float:
        """See `OnTiles`."""
        return self.scales[0] if self.single else 1.0

    def gradients(self, grad_x: Tensor) -> tuple[Tensor | None, None]:
        """See `OnTiles`."""
        if not self._needs_scale:
            return None, None
        return _of_scale(grad_x, self.tiles).reshape(1, 1) if self.single else self._grad_scale, None


def _inverse_sum(grad: Tensor, logsumexp: Tensor) -> Tensor:
    """Upstream gradient over the sum of exponentials; 0 for a row without keys."""
    return logsumexp.neg().exp_().mul_(grad).masked_fill_(logsumexp == -torch.inf, 0)


def _of_scale(grad_x: Tensor, tiles: Tiles) -> Tensor:
    """Gradient of a scale c from that of c x: sums depend on the two through their product only."""
    return (grad_x * tiles.x).sum() / (2 if tiles.symmetric else 1)


class ScaledExponentials:
    """Log-sum-exps of logits of any size or with a scale per row, and mean similarities if they are wanted.

    Each side keeps a running maximum of its logits unless they are bounded. Logits are in base 2.
    """

    factor = 1.0

    def __init__(self, term: LogSumExp, tiles: Tiles, bounded: bool) -> None:
        self.tiles, self.mean = tiles, term.mean
        self.scale = term.scale.to(tiles.x)
        self.bounded = bounded

    def start(self) -> None:
        """See `OnTiles`."""
        tiles, scales = self.tiles, self.scale.shape[0]
        keys = tiles.keys.shape[0] if tiles.columns else 0
        self._rows = self._columns = _RunningSum(tiles.x.new_zeros(scales, tiles.x.shape[0]), self.bounded, self.mean)
        if not tiles.symmetric:
            self._columns = _RunningSum(tiles.x.new_zeros(scales, keys), self.bounded, False)

    def _logits(self, tile: Tensor, k: int, side: slice, by_row: bool) -> Tensor:
        """Logits of some rows, which lie along the rows or the columns of a tile."""
        scale = self.scale[k, side if self.scale.shape[1] > 1 else slice(None)] * LOG2_E
        return torch.mul(tile, scale[:, None] if by_row else scale, out=self.tiles.scratch(2, *tile.shape))

    def add(self, tile: Tensor, i: slice, j: slice) -> None:
        """See `OnTiles`."""
        two_sided = self.tiles.two_sided(i, j)
        for k in range(self.scale.shape[0]):
            logits = self.tiles.exclude(self._logits(tile, k, i, True), i, j, -torch.inf)
            self._rows.add(k, i, logits, tile)
            if two_sided:
                logits = self.tiles.exclude(self._logits(tile, k, j, False), i, j, -torch.inf)
                self._columns.add(k, j, logits.T, tile.T)

    def sums(self) -> Sums:
        """See `OnTiles`."""
        rows, scales = self._rows.result(), self.scale.shape[0]
        columns = self.scale.new_empty(scales, 0) if self.tiles.symmetric else self._columns.result()
        return Sums(rows, columns, self._rows.means() if self.mean else self.scale.new_empty(scales, 0))

    def begin(self, upstream: Upstream) -> None:
        """See `OnTiles`."""
        self._upstream = upstream
        self._grad_scale = upstream.rows.new_zeros(self.scale.shape[0], self.tiles.x.shape[0])
        if upstream.needs_scale and self.mean:
            self._grad_scale = upstream.rows * upstream.sums.means

    def slopes(self, tile: Tensor, i: slice, j: slice, *, added: bool) -> Tensor:
        """See `OnTiles`."""
        up, total = self._upstream, self.tiles.scratch(1, *tile.shape).zero_()
        needs_scale = up.needs_scale and not self.mean
        for k in range(self.scale.shape[0]):
            p = _to_probabilities(self._logits(tile, k, i, True), up.sums.rows[k, i], up.rows[k, i])
            total.addcmul_(self.tiles.exclude(p, i, j, 0), self._at(k, i)[:, None])
            if needs_scale:
                self._grad_scale[k, i] += p.mul_(tile).sum(1)
            if self.tiles.columns:
                p = self._logits(tile, k, j, False)
                _to_probabilities(p.T, up.sums.columns[k, j], up.columns[k, j])
                total.addcmul_(self.tiles.exclude(p, i, j, 0), self._at(k, j))
                if needs_scale and not self.tiles.symmetric:
                    self._grad_scale[k, 0] += p.mul_(tile).sum()
                elif needs_scale and self.tiles.mirrored(i, j):
                    self._grad_scale[k, j] += p.mul_(tile).sum(0)
        return total

    def _at(self, k: int, side: slice) -> Tensor:
        """Scale of some rows, of as many entries as there are, or of one."""
        return self.scale[k, side if self.scale.shape[1] > 1 else slice(None)]

    def chain(self) -> float:
        """See `OnTiles`."""
        return 1.0

    def gradients(self, grad_x: Tensor) -> tuple[Tensor, None]:
        """See `OnTiles`."""
        return self._grad_scale if self.scale.shape[1] > 1 else self._grad_scale.sum(1, keepdim=True), None


class _RunningSum:
    """Sums of powers of 2 of rows that arrive in parts, relative to the largest logit so far, and their weighted means."""

    def __init__(self, zeros: Tensor, bounded: bool, mean: bool) -> None:
        self.total, self.weighted = zeros, torch.zeros_like(zeros) if mean else None
        self.largest = None if bounded else torch.full_like(zeros, -torch.inf)

    def add(self, k: int, rows: slice, logits: Tensor, similarities: Tensor) -> None:
        """Add a part, and use up its logits."""
        if self.largest is not None:
            largest = torch.maximum(self.largest[k, rows], logits.amax(1))
            shift = torch.where(largest == -torch.inf, 0, largest)
            logits.sub_(shift[:, None])
            shrunk = (self.largest[k, rows] - shift).exp2()
            self.total[k, rows] *= shrunk
            if self.weighted is not None:
                self.weighted[k, rows] *= shrunk
            self.largest[k, rows] = largest
        e = logits.exp2_()
        self.total[k, rows] += e.sum(1)
        if self.weighted is not None:
            self.weighted[k, rows] += e.mul_(similarities).sum(1)

    def result(self) -> Tensor:
        """Logarithms of the sums in base e, -inf for a row without keys."""
        logarithm = self.total.log()
        return (
            logarithm
            if self.largest is None
            else torch.where(self.largest == -torch.inf, -torch.inf, logarithm + self.largest / LOG2_E)
        )

    def means(self) -> Tensor:
        """Weighted means, 0 for a row without keys."""
        assert self.weighted is not None
        return torch.where(self.total == 0, 0, self.weighted / torch.where(self.total == 0, 1, self.total))


def _to_probabilities(logits: Tensor, logsumexp: Tensor, grad: Tensor) -> Tensor:
    """Turn logits in base 2 into softmax times upstream gradient, in place; 0 for a row without keys."""
    empty = logsumexp == -torch.inf
    logits.sub_(torch.where(empty, torch.inf, logsumexp * LOG2_E)[:, None]).exp2_()
    return logits.mul_(torch.where(empty, 0, grad)[:, None])


class Softpluses:
    """Sums of softplus.

    A finished tile holds powers of 2 of bounded logits, from which the softplus and its slope are cheap, or else the logits.
    """

    def __init__(self, term: Softplus, tiles: Tiles, bounded: bool) -> None:
        self.tiles, self.bounded, self.scale = tiles, bounded, term.scale.to(tiles.x)
        base = LOG2_E if bounded else 1.0
        # A scale on the host goes into the product at no cost; one on an accelerator would have to be waited for.
        self.factor = term.scale.item() * base if term.scale.is_cpu else 1.0
        self._scale, self._bias = None if term.scale.is_cpu else self.scale * base, term.bias * base

    def start(self) -> None:
        """See `OnTiles`."""
        self._sums = self.tiles.x.new_zeros(self.tiles.x.shape[0])

    def _finish(self, tile: Tensor, i: slice, j: slice) -> Tensor:
        """Finish a tile for its rows, in place, and return another one that is finished for its columns."""
        columns = tile
        if self.tiles.mirrored(i, j):
            columns = self.tiles.scratch(2, *tile.shape)
            self._finish_side(tile, self._bias[None, j], i, j, columns)
        self._finish_side(tile, self._bias[i, None], i, j, tile)
        return columns

    def _finish_side(self, tile: Tensor, bias: Tensor, i: slice, j: slice, out: Tensor) -> None:
        logits = torch.add(tile, bias, out=out) if self._scale is None else torch.addcmul(bias, tile, self._scale, out=out)
        if self.bounded:
            self.tiles.exclude(logits.exp2_(), i, j, 0)
        else:
            self.tiles.exclude(logits, i, j, -torch.inf)

    def _value(self, tile: Tensor, out: Tensor) -> Tensor:
        # From 40 on, softplus(z) is z in float64 too.
        return torch.log1p(tile, out=out) if self.bounded else torch.nn.functional.softplus(tile, threshold=40)

    def _slope(self, tile: Tensor, out: Tensor) -> Tensor:
        return torch.div(tile, torch.add(tile, 1, out=out), out=out) if self.bounded else torch.sigmoid(tile, out=out)

    def add(self, tile: Tensor, i: slice, j: slice) -> None:
        """See `OnTiles`."""
        columns, out = self._finish(tile, i, j), self.tiles.scratch(1, *tile.shape)
        self._sums[i] += self._value(tile, out).sum(1)
        if columns is not tile:
            self._sums[j] += self._value(columns, out).sum(0)

    def sums(self) -> Sums:
        """See `OnTiles`."""
        return Sums(self._sums[None], self._sums.new_empty(1, 0), self._sums.new_empty(1, 0))

    def begin(self, upstream: Upstream) -> None:
        """See `OnTiles`."""
        self._upstream, self._grad_bias = upstream.rows[0], upstream.rows.new_zeros(self.tiles.x.shape[0])

    def slopes(self, tile: Tensor, i: slice, j: slice, *, added: bool) -> Tensor:
        """See `OnTiles`."""
        columns = self.tiles.scratch(2, *tile.shape) if added else self._finish(tile, i, j)
        weight = self._slope(tile, self.tiles.scratch(1, *tile.shape)).mul_(self._upstream[i, None])
        self._grad_bias[i] += weight.sum(1)
        if self.tiles.mirrored(i, j):
            of_columns = self._slope(columns, self.tiles.scratch(3, *tile.shape)).mul_(self._upstream[None, j])
            self._grad_bias[j] += of_columns.sum(0)
            weight.add_(of_columns)
        elif self.tiles.symmetric:  # a row of the tile is a column as well
            weight.add_(self.tiles.scratch(3, *tile.shape).copy_(weight.T))
        return weight

    def chain(self) -> Tensor:
        """See `OnTiles`."""
        return self.scale

    def gradients(self, grad_x: Tensor) -> tuple[Tensor, Tensor]:
        """See `OnTiles`."""
        return _of_scale(grad_x, self.tiles), self._grad_bias


class Kernels:
    """Sums of a kernel of squared distances."""

    factor = -2.0

    def __init__(self, term: KernelSum, tiles: Tiles, norms: Tensor | None) -> None:
        self.tiles, self.kernel, self.parameter, self.norms = tiles, get_kernel(term.kernel), term.parameter, norms
        self._floors: Tensor | float
        if self.norms is None:
            self._floors = distance_floor(term.kernel, tiles.x, term.rounding)
        else:  # halves, of which each pair takes two
            self._floors = distance_floor(term.kernel, tiles.x, term.rounding, self.norms) / 2

    def start(self) -> None:
        """See `OnTiles`."""
        self._sums = self.tiles.x.new_zeros(self.tiles.x.shape[0])

    def _distances(self, tile: Tensor, i: slice, j: slice) -> Tensor:
        """Squared distances, in place, off by what rounding does to inner products."""
        return tile.add_(2) if self.norms is None else tile.add_(self.norms[i, None]).add_(self.norms[None, j])

    def _floor(self, i: slice, j: slice) -> Tensor | float:
        """The floor for the pairs of a tile, in the scratch memory that slopes take later on."""
        if not isinstance(self._floors, Tensor):
            return self._floors
        rows, columns = self._floors[i, None], self._floors[None, j]
        return torch.add(rows, columns, out=self.tiles.scratch(1, len(rows), columns.shape[1]))

    def add(self, tile: Tensor, i: slice, j: slice) -> None:
        """See `OnTiles`."""
        distances = self._distances(tile, i, j).clamp_(min=self._floor(i, j))
        values = self.tiles.exclude(self.kernel.value(distances, self.parameter), i, j, 0)
        self._sums[i] += values.sum(1)
        if self.tiles.mirrored(i, j):
            self._sums[j] += values.sum(0)

    def sums(self) -> Sums:
        """See `OnTiles`."""
        return Sums(self._sums[None], self._sums.new_empty(1, 0), self._sums.new_empty(1, 0))

    def begin(self, upstream: Upstream) -> None:
        """See `OnTiles`."""
        self._upstream, self._grad_norms = upstream.rows[0], upstream.rows.new_zeros(self.tiles.x.shape[0])

    def slopes(self, tile: Tensor, i: slice, j: slice, *, added: bool) -> Tensor:
        """See `OnTiles`."""
        distances, floor = self._distances(tile, i, j), self._floor(i, j)
        below = distances < floor
        slope = self.kernel.derivative(distances.clamp_(min=floor), self.parameter)
        weight = torch.add(self._upstream[i, None], self._upstream[None, j], out=self.tiles.scratch(1, *tile.shape))
        self.tiles.exclude(weight.mul_(slope).masked_fill_(below, 0), i, j, 0)
        if self.norms is not None:
            self._grad_norms[i] += weight.sum(1)
            if self.tiles.mirrored(i, j):
                self._grad_norms[j] += weight.sum(0)
        return weight

    def chain(self) -> float:
        """See `OnTiles`."""
        return -2.0

    def gradients(self, grad_x: Tensor) -> tuple[None, Tensor | None]:
        """See `OnTiles`."""
        return None, None if self.norms is None else self._grad_norms
