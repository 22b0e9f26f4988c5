"""Launches the kernels of a sweep. Nothing here reads a value on an accelerator, so the host never waits.

Shapes: G sets of N rows, M keys, K scales, D features.
"""

from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from contrastive_zoo.devices import beside, written_beside
from contrastive_zoo.pairwise.fused import BOUNDED_RANGE
from contrastive_zoo.pairwise.fused.shapes import capability_of, kind_of, padded, shape_of
from contrastive_zoo.pairwise.sweep import Sweep, strips
from contrastive_zoo.pairwise.terms import Gradients, LogSumExp, Needs, Sums, Term

# From this many pairs of rows on, each pair is visited once, with sums of both sides, if the order of additions may vary.
MANY_PAIRS = 2**26
# Tiles that a program of `pair_sums` visits.
RUN = 16
# Entries that `weigh` reads at once.
BLOCK = 4096


class _Side(NamedTuple):
    """Rows or keys as kernels take them.

    Attributes:
        x: (N, D) rows, or (G, N, D) sets of rows, in the precision of operands.
        ids: (N,) ids, if kernels load ids.
        part: Flag PART of the kernels, for results of this side.
    """

    x: Tensor
    ids: Tensor | None
    part: int

    @property
    def rows(self) -> int:
        return self.x.shape[-2]

    @property
    def strides(self) -> tuple[int, int]:
        return self.x.stride(0) if self.x.dim() == 3 else 0, self.x.stride(-2)


class _Launches:
    """What the launches of a sweep share.

    Args:
        sweep: The sweep.
        term: The term.
    """

    def __init__(self, sweep: Sweep, term: LogSumExp) -> None:
        self.device, self.divided = sweep.x.device, sweep.part[1] > 1
        own, bound = sweep.keys is None, sweep.bound
        self.x = _Side(
            _operand(sweep.x, bound.operand, bound.rounded), _loaded(sweep, sweep.ids), (1 if own else 2) * self.divided
        )
        self.keys = self.x
        if sweep.keys is not None:
            self.keys = _Side(
                _operand(sweep.keys, bound.operand, bound.rounded_keys), _loaded(sweep, sweep.key_ids), 3 * self.divided
            )
        self.sets = sweep.x.shape[0] if sweep.x.dim() == 3 else 1
        self.kind = kind_of(self.x.x.dtype)
        self.scale, self.scales = _scale(term, sweep.x)
        self.number = term.scale.shape[0]
        # A finite number in float32, whose product with a scale of 0 is 0.
        self.squared_bound = min(sweep.norm_bound**2, 1e30)
        self.group = sweep.group or int(own)
        self._flags = {
            "IDS": 2 if self.x.ids is not None else int(own or sweep.ids is not None),
            "EQUAL": sweep.counts == "equal",
            "SCALES": self.scales,
        }
        bounds = [limit for strip in strips(self.x.rows, sweep.part) for limit in strip]
        self._strips = (*bounds, *[self.x.rows] * (4 - len(bounds)))

    def launch(self, name: str, own: _Side, other: _Side, pointers: tuple[Tensor | None, ...], flags: dict[str, int]) -> None:
        """Launch a kernel for one side, with the flags that are the kernel's own."""
        kernels = _kernels()
        width = own.x.shape[-1]
        shape = shape_of(name, self.kind, width, capability_of(self.device))
        constants: dict[str, Any] = {
            "D": width,
            "WIDTH": padded(width),
            "BM": shape.rows,
            "BN": shape.columns,
            "PRECISION": self.kind.precision,
            **self._flags,
            **flags,
        }
        blocks = -(-own.rows // shape.rows)
        grid: tuple[int, ...] = blocks, self.sets * (1 if "K" in flags else self.number)
        if name == "pair_sums":
            low, high, start, stop = self._strips
            blocks = -(-(high - low) // shape.rows) - (-(stop - start) // shape.rows)
            grid = max(blocks, 1), grid[1], -(-other.rows // (shape.columns * RUN))
            constants["RUN"] = RUN
        with torch.cuda.device_of(own.x):
            getattr(kernels, name)[grid](
                own.x,
                other.x,
                own.ids,
                other.ids,
                self.scale,
                *pointers,
                own.rows,
                other.rows,
                self.sets,
                *own.strides,
                *other.strides,
                self.group,
                self.squared_bound,
                *self._strips,
                **constants,
                # The slopes of several scales are in registers at once.
                num_warps=max(shape.warps, 8) if flags.get("K", 1) > 1 else shape.warps,
                num_stages=shape.stages,
            )

    def weights(self, sums: Sums, upstream: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Weights of rows and of keys, at most 1, and the factor that is taken out of both."""
        rows, columns, top = torch.empty_like(sums.rows), torch.empty_like(sums.columns), sums.rows.new_empty(1)
        (grad, step), (other, other_step) = map(_flat, upstream)
        with torch.cuda.device_of(rows):
            _kernels().weigh[(1,)](
                grad,
                sums.rows,
                rows,
                other,
                sums.columns,
                columns,
                self.scale,
                top,
                rows.numel(),
                step,
                self.x.rows,
                self.sets * self.x.rows,
                columns.numel(),
                other_step,
                SCALES=self.scales,
                BLOCK=BLOCK,
                num_warps=16,
            )
        return rows, columns, top

    @property
    def visits_pairs_once(self) -> bool:
        """Whether to visit each pair once, for the sums of both sides."""
        if self.x.rows * self.keys.rows < MANY_PAIRS or self.scales == 2 or torch.are_deterministic_algorithms_enabled():
            return False
        # On an accelerator the scale is not read: `pair_sums` returns at once if logits are not bounded.
        return isinstance(self.scale, Tensor) or 2 * abs(self.scale) * self.squared_bound < BOUNDED_RANGE


def prepare(sweep: Sweep) -> Sweep:
    """The sweep with ids on the device of the rows, so that both passes share one copy, which nothing waits for."""
    if sweep.ids is None or sweep.group:
        return sweep
    key_ids = None if sweep.key_ids is None else beside(sweep.key_ids, sweep.x)
    return replace(sweep, ids=beside(sweep.ids, sweep.x), key_ids=key_ids)


def residual(sweep: Sweep, term: Term, needs: Needs) -> int:
    """Number of entries kept for the backward pass."""
    return sum(_kept_sizes(sweep, term, needs)) if isinstance(term, LogSumExp) else 0


def _kept_sizes(sweep: Sweep, term: LogSumExp, needs: Needs) -> list[int]:
    """Number of kept entries: rounding errors of log-sum-exps of rows, of keys; mean similarities of rows, of keys.

    The mean similarity is the derivative of a log-sum-exp in its scale.
    """
    keys = sweep.keys.shape[0] if sweep.both and sweep.keys is not None else 0
    sides = [term.scale.shape[0] * sweep.x.shape[:-1].numel(), term.scale.shape[0] * keys]
    wanted = needs[0] or needs[1], needs[2] and not term.mean
    return [side if want else 0 for want in wanted for side in sides]


def _split(kept: Tensor, sweep: Sweep, term: LogSumExp, needs: Needs) -> list[Tensor | None]:
    """The kept entries; None for those that are not kept."""
    return [each if each.numel() else None for each in kept.split(_kept_sizes(sweep, term, needs))]


def forward(sweep: Sweep, term: Term, needs: Needs) -> tuple[Sums, Tensor]:
    """The sums, and the entries kept for the backward pass."""
    assert isinstance(term, LogSumExp)
    launches, empty, shape = _Launches(sweep, term), sweep.x.new_empty, (term.scale.shape[0], *sweep.x.shape[:-1])
    both = sweep.both and sweep.keys is not None
    kept = empty(residual(sweep, term, needs))
    sums = Sums(
        empty(shape), empty(shape[0], launches.keys.rows if both else 0), empty(shape if term.mean else (*shape[:-1], 0))
    )
    errors, column_errors, means, column_means = _split(kept, sweep, term, needs)
    means = sums.means if term.mean else means
    totals: list[list[Tensor | None]] = [[None, None], [None, None]]
    if (both or sweep.keys is None) and launches.visits_pairs_once:
        totals = _pair_sums(launches, sums, means is not None)
    launches.launch("log_sums", launches.x, launches.keys, (*totals[0], sums.rows, errors, means), {"PART": launches.x.part})
    if both:
        pointers = (*totals[1], sums.columns, column_errors, column_means)
        launches.launch("log_sums", launches.keys, launches.x, pointers, {"PART": launches.keys.part})
    return sums, kept


def _pair_sums(launches: _Launches, sums: Sums, weighted: bool) -> list[list[Tensor | None]]:
    """Sums of bounded exponentials, and sums weighted by similarities, of rows and of keys."""
    own = launches.keys is launches.x
    sizes = [sums.rows.numel(), sums.columns.numel()]
    planes = sums.rows.new_zeros(1 + weighted, sum(sizes)).unbind()
    totals: list[list[Tensor | None]] = [[None, None], [None, None]]
    for number, plane in enumerate(planes):
        for side, part in enumerate(plane.split(sizes)):
            totals[side][number] = part
    columns = totals[0] if own else totals[1]
    launches.launch("pair_sums", launches.x, launches.keys, (*totals[0], *columns), {"SELF": own})
    return totals


def backward(sweep: Sweep, term: Term, sums: Sums, upstream: tuple[Tensor, Tensor], kept: Tensor, needs: Needs) -> Gradients:
    """The needed gradients of rows, keys and scale."""
    assert isinstance(term, LogSumExp)
    empty = sweep.x.new_empty(0)
    x, keys, scale = empty, empty, empty
    errors, column_errors, means, column_means = _split(kept, sweep, term, needs)
    if needs[0] or (needs[1] and sweep.keys is not None):
        launches = _Launches(sweep, term)
        weights, column_weights, top = launches.weights(sums, upstream)
        of_rows: tuple[Tensor | None, ...] = sums.rows, errors, weights
        of_columns: tuple[Tensor | None, ...] = (sums.columns, column_errors, column_weights) if sweep.both else (None,) * 3
        number = term.scale.shape[0]
        if needs[0]:
            x = torch.empty_like(sweep.x, memory_format=torch.contiguous_format)
            others = of_rows if sweep.keys is None else of_columns
            launches.launch(
                "gradients", launches.x, launches.keys, (*of_rows, *others, top, x), {"PART": launches.x.part, "K": number}
            )
        if needs[1] and sweep.keys is not None:
            keys = torch.empty_like(sweep.keys, memory_format=torch.contiguous_format)
            pointers = (*of_columns, *of_rows, top, keys)
            launches.launch("gradients", launches.keys, launches.x, pointers, {"PART": launches.keys.part, "K": number})
    if needs[2]:
        scale = _grad_scale(term, sums, upstream, (sums.means if term.mean else means, column_means))
    return Gradients(x, keys, scale, empty)


def _grad_scale(
    term: LogSumExp, sums: Sums, upstream: tuple[Tensor, Tensor], means: tuple[Tensor | None, Tensor | None]
) -> Tensor:
    """Gradient of the scale, whose derivative is the mean similarity."""
    products = [
        (grad.masked_fill(side == -torch.inf, 0) * mean.view(side.shape)).flatten(1)
        for side, grad, mean in zip((sums.rows, sums.columns), upstream, means, strict=True)
        if mean is not None
    ]
    if term.scale.shape[1] > 1:
        return products[0].view(-1, term.scale.shape[1]).sum(0, keepdim=True)
    return torch.cat(products, 1).sum(1, keepdim=True)


def _kernels() -> Any:
    # Imported here, because Triton may be missing and takes long to import.
    from contrastive_zoo.pairwise.fused import kernels

    return kernels


def _loaded(sweep: Sweep, ids: Tensor | None) -> Tensor | None:
    """Ids that kernels load, after `prepare`; None if positions say who is who."""
    return None if ids is None or sweep.group else ids.contiguous()


def _operand(x: Tensor, operand: torch.dtype | None, rounded: Tensor | None) -> Tensor:
    """Rows in the precision of the products; the entries of a row next to each other."""
    if operand is not None:
        x = x.to(operand) if rounded is None else rounded
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()


def _scale(term: LogSumExp, x: Tensor) -> tuple[Tensor | float, int]:
    """The scale as a number, if the host knows it, or as a tensor beside the rows; and the flag SCALES of the kernels."""
    scale = term.scale
    per_row = scale.shape[1] > 1
    if scale.is_cpu and scale.numel() == 1:
        return scale.item(), 0
    scale = beside(scale, x) if per_row else written_beside(scale, x)
    return scale.contiguous(), 2 if per_row else 1


def _flat(grad: Tensor) -> tuple[Tensor, int]:
    """Upstream gradients, and the distance between two of them: 0 if all are the same number, as those of a mean are."""
    return (grad, 0) if grad.numel() and not any(grad.stride()) else (grad.contiguous(), 1)
