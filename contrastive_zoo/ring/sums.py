"""The functions of `contrastive_zoo.pairwise` over the rows of all processes, each of which holds its own."""

from dataclasses import dataclass, replace
from typing import NoReturn

import torch
from torch import Tensor

from contrastive_zoo.devices import beside, readable
from contrastive_zoo.pairwise.sweep import Bound, Ids, Sweep
from contrastive_zoo.pairwise.terms import LogSumExp, Scales, Softplus, Sums, Term
from contrastive_zoo.ring.operator_ import compute

BLOCKWISE = (
    "gather='ring' holds no rows of other processes but a visiting block, and sums up exponentials and softplus only. Use "
    "gather='auto'."
)


@dataclass(frozen=True)
class RingSums:
    """Sums over pairs, with the arguments of the functions of `contrastive_zoo.pairwise` of the same names.

    Rows and keys are those of this process; ids, scales, biases and sums those of all, in the order of ranks. The results are
    the sums over the pairs that this process visits, which are its ``part``: the number of this process, and that of all.

    Attributes:
        sizes: Number of samples of each process.
        group: Name of the group of processes.
    """

    sizes: tuple[int, ...]
    group: str

    def logsumexp(
        self,
        x: Tensor,
        keys: Tensor | None = None,
        *,
        scale: Scales,
        ids: Tensor | Ids | None = None,
        key_ids: Tensor | Ids | None = None,
        norm_bound: Bound,
        backend: str,
        part: tuple[int, int],
    ) -> Tensor:
        """See `contrastive_zoo.pairwise.logsumexp`."""
        sweep = self._sweep(x, keys, ids, key_ids, norm_bound, part)
        rows = self._compute(sweep, LogSumExp.of(scale, self._rows(sweep)), backend).rows
        return rows if isinstance(scale, tuple) else rows.squeeze(0)

    def logsumexp_both(
        self,
        x: Tensor,
        keys: Tensor,
        *,
        scale: float | Tensor,
        ids: Tensor | Ids | None = None,
        key_ids: Tensor | Ids | None = None,
        norm_bound: Bound,
        backend: str,
        part: tuple[int, int],
    ) -> tuple[Tensor, Tensor]:
        """See `contrastive_zoo.pairwise.logsumexp_both`."""
        sweep = replace(self._sweep(x, keys, ids, key_ids, norm_bound, part), both=True)
        sums = self._compute(sweep, LogSumExp.of(scale, self._rows(sweep)), backend)
        return sums.rows.squeeze(0), sums.columns.squeeze(0)

    def logsumexp_with_mean(
        self,
        x: Tensor,
        keys: Tensor | None = None,
        *,
        scale: Tensor,
        ids: Tensor | Ids | None = None,
        key_ids: Tensor | Ids | None = None,
        norm_bound: Bound,
        backend: str,
        part: tuple[int, int],
    ) -> tuple[Tensor, Tensor]:
        """See `contrastive_zoo.pairwise.logsumexp_with_mean`; means are over the pairs of the part."""
        sweep = self._sweep(x, keys, ids, key_ids, norm_bound, part)
        sums = self._compute(sweep, LogSumExp(scale.to(sweep.x).contiguous()[None], mean=True), backend)
        return sums.rows.squeeze(0), sums.means.squeeze(0)

    def softplus_sum(
        self,
        x: Tensor,
        keys: Tensor | None = None,
        *,
        scale: float | Tensor,
        bias: float | Tensor = 0.0,
        ids: Tensor | Ids | None = None,
        key_ids: Tensor | Ids | None = None,
        uniform: bool = False,
        norm_bound: Bound,
        backend: str,
        part: tuple[int, int],
    ) -> Tensor:
        """See `contrastive_zoo.pairwise.softplus_sum`; makes no use of ``uniform``."""
        sweep = self._sweep(x, keys, ids, key_ids, norm_bound, part)
        return self._compute(sweep, Softplus.of(scale, bias, self._rows(sweep)), backend).rows.squeeze(0)

    def softplus_sum_within(
        self,
        x: Tensor,
        *,
        ids: Tensor,
        scale: float | Tensor,
        bias: float | Tensor = 0.0,
        norm_bound: Bound,
        backend: str,
        part: tuple[int, int],
    ) -> Tensor:
        """See `contrastive_zoo.pairwise.softplus_sum_within`.

        Each process sorts its rows by id, so tiles without pairs are left out where the ids are on the host.
        """
        sweep = replace(self._sweep(x, None, ids, None, norm_bound, part), counts="equal", ordered=True)
        term, blocks = Softplus.of(scale, bias, self._rows(sweep)), ids.split(self._rows_of(sweep))
        starts = torch.tensor([0, *self._rows_of(sweep)], device=ids.device).cumsum(0)
        order = torch.cat([block.argsort(stable=True) + start for block, start in zip(blocks, starts[:-1], strict=True)])
        own = beside(blocks[part[0]].argsort(stable=True), sweep.x)
        there = beside(order, sweep.x)
        bound = Bound(sweep.norm_bound, sweep.operand)  # a copy in half precision is of the rows as they were
        sweep = replace(sweep, x=sweep.x[own], ids=ids[order], bound=bound)
        alone = readable(ids) and sum(len(block.unique()) for block in blocks) == len(ids.unique())
        sums = self._compute(sweep, Softplus(term.scale, term.bias[there]), backend, rounds=0 if alone else None)
        return sums.rows.squeeze(0)[there.argsort()]

    def kernel_sum(
        self,
        x: Tensor,
        *,
        kernel: str,
        parameter: float,
        ids: object,
        unit_rows: bool,
        rounding: Bound,
        backend: str,
        part: object,
    ) -> NoReturn:
        """Not possible.

        Raises:
            ValueError: Always.
        """
        raise ValueError(f"this objective sums up kernels of a distance, but {BLOCKWISE}")

    def square_sum(self, x: Tensor, keys: Tensor, *, ids: object, backend: str) -> NoReturn:
        """Not possible.

        Raises:
            ValueError: Always.
        """
        raise ValueError(f"this objective sums up squares, but {BLOCKWISE}")

    def _sweep(
        self,
        x: Tensor,
        keys: Tensor | None,
        ids: Tensor | Ids | None,
        key_ids: Tensor | Ids | None,
        bound: Bound,
        part: tuple[int, int],
    ) -> Sweep:
        """The sweep over the rows of this process, with the ids of all."""
        sweep = Sweep.of(x, keys, norm_bound=bound, part=part)
        ids, group = ids if isinstance(ids, Ids) else (ids, 0)
        key_ids, of_keys = key_ids if isinstance(key_ids, Ids) else (key_ids, 0 if keys is not None else group)
        return replace(sweep, ids=ids, key_ids=key_ids, group=group if of_keys == group else 0)

    def _rows_of(self, sweep: Sweep) -> list[int]:
        """Number of rows of each process."""
        per_sample = sweep.x.shape[-2] // self.sizes[sweep.part[0]]
        return [size * per_sample for size in self.sizes]

    def _rows(self, sweep: Sweep) -> Tensor:
        """The rows of all processes as far as their number and dtype matter."""
        return sweep.x.new_empty(sum(self._rows_of(sweep)), 0)

    def _compute(self, sweep: Sweep, term: Term, backend: str, rounds: int | None = None) -> Sums:
        processes = len(self.sizes)
        if rounds is None:
            rounds = processes // 2 if sweep.keys is None else processes - 1
        return compute(sweep, term, backend, self.group, self._rows_of(sweep), rounds)
