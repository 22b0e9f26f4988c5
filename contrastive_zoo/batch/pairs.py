"""Sums over pairs for objectives: the backend, bounds on the rows, and the division of work among processes."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor

from contrastive_zoo.pairwise.backends import any_derivative
from contrastive_zoo.pairwise.operator_ import compute
from contrastive_zoo.pairwise.sums import own_ids, sum_kernels, sum_within, uses_gram_matrix
from contrastive_zoo.pairwise.sweep import WHOLE, Bound, Ids, Sweep
from contrastive_zoo.pairwise.terms import LogSumExp, Scales, Softplus, Squares, Sums, Term
from contrastive_zoo.pairwise.tiled import gram
from contrastive_zoo.processes.shares import ALONE, Share
from contrastive_zoo.ring import sums as ring
from contrastive_zoo.ring.classes import class_sums

S = TypeVar("S")
F = TypeVar("F")


@dataclass(frozen=True)
class Pairs:
    """The functions of `contrastive_zoo.pairwise`, called with everything that is known about the rows of a batch.

    Attributes:
        backend: As for `contrastive_zoo.pairwise`.
        unit_rows: Whether all rows have length 1, up to rounding.
        norm_bound: An upper bound on the length of all rows.
        share: The part of the work that this process does.
        operand: The half precision that the rows of the batch were rounded to; None for other rows. A backend may multiply in
            this precision, which rounds rows that an objective computes from those of the batch.
        rounded: The rows of the batch, and their copy in this precision; None without such a copy.
        unrounded: What is known about rows in full precision.
        known: Tensors of ids, each with the tensor that takes its place in a sweep (itself, or its copy beside the rows), and
            the number of repetitions of each id if the ids are known to be 0, 0, ..., 1, 1, ..., else 0.
    """

    backend: str
    unit_rows: bool
    norm_bound: float
    share: Share
    operand: torch.dtype | None
    rounded: tuple[Tensor, Tensor] | None
    unrounded: Bound
    known: tuple[tuple[Tensor, Tensor, int], ...]

    @staticmethod
    def unshared(backend: str, *, unit_rows: bool, norm_bound: float) -> "Pairs":
        """For rows in full precision on a single process."""
        return Pairs(backend, unit_rows, norm_bound, ALONE, None, None, Bound(norm_bound), ())

    def of_batch(
        self,
        share: Share,
        operand: torch.dtype | None,
        rounded: tuple[Tensor, Tensor] | None,
        known: tuple[tuple[Tensor, Tensor, int], ...],
    ) -> "Pairs":
        """A copy of this object for the rows of one batch."""
        return Pairs(self.backend, self.unit_rows, self.norm_bound, share, operand, rounded, self.unrounded, known)

    @property
    def plain(self) -> bool:
        """Whether sums are plain autograd, differentiable any number of times."""
        return any_derivative(self.backend)

    @property
    def rounding(self) -> float:
        """Relative rounding error of rows in half precision; 0 for other rows."""
        return Bound(operand=self.operand).rounding

    def _sweep(self, x: Tensor, keys: Tensor | None, ids: Tensor | Ids | None, key_ids: Tensor | Ids | None = None) -> Sweep:
        """The part of this process of a sweep, with everything that is known about it."""
        bound, part = self._bound(x, keys), self.share.part if self.share.divided else WHOLE
        all_ids = self._ids(ids), self._ids(key_ids)
        if not self.share.ring:
            return Sweep.of(x, keys, *all_ids, norm_bound=bound, part=part)
        # The rows and keys are those of this process, and the ids those of all.
        return Sweep.of(x, keys, norm_bound=bound, part=part).with_ids(*all_ids)

    def _entered(self, sweep: Sweep, scale: S, offset: F = None) -> tuple[Sweep, S, F]:  # type: ignore[assignment]
        """The inputs of a sum that processes share."""
        if not self.share.divided:
            return sweep, scale, offset
        x, keys, scale, offset = self.share.enter(sweep.x, sweep.keys, scale, offset)
        return replace(sweep, x=x, keys=keys), scale, offset

    def _of_part(self, sweep: Sweep, term: Term) -> Sums:
        """The sums over the part of this process."""
        share = self.share
        if share.ring:
            return ring.total(sweep, term, self.backend, share.group, share.rows_of_each(sweep.x))
        return compute(sweep, term, self.backend)

    def _sums(self, sweep: Sweep, term: Term) -> Sums:
        """The sums over all pairs, from those of the part of each process."""
        share, sums = self.share, self._of_part(sweep, term)
        if not share.divided:
            return sums
        log = isinstance(term, LogSumExp)
        if sweep.both:
            rows, columns = share.leave(sums.rows, sums.columns, log=log)
            return Sums(rows, columns, sums.means)
        (rows,) = share.leave(sums.rows, log=log)
        means = share.mean(sums.means, sums.rows, rows) if sums.means.numel() else sums.means
        return Sums(rows, sums.columns, means)

    def _bound(self, x: Tensor, keys: Tensor | None) -> Bound:
        if self.operand is None and self.rounded is None:
            return self.unrounded
        return Bound(self.norm_bound, self.operand, self._in_half(x), self._in_half(keys))

    def _in_half(self, x: Tensor | None) -> Tensor | None:
        """The copy in half precision of rows, if these are the rows of the batch or a view of them."""
        if self.rounded is None or x is None:
            return None
        rows, rounded = self.rounded
        if x is rows:
            return rounded
        if torch.compiler.is_compiling() or x._base is not rows:
            return None
        return rounded.as_strided(x.shape, x.stride(), x.storage_offset())

    def _ids(self, ids: Tensor | Ids | None) -> Tensor | Ids | None:
        for given, values, group in self.known:
            if ids is given:
                return Ids(values, group)
        return ids

    def logsumexp(
        self,
        x: Tensor,
        keys: Tensor | None = None,
        *,
        scale: Scales,
        ids: Tensor | None = None,
        key_ids: Tensor | None = None,
    ) -> Tensor:
        """See `contrastive_zoo.pairwise.logsumexp`."""
        sweep, scale, _ = self._entered(self._sweep(x, keys, ids, key_ids), scale)
        rows = self._sums(sweep, LogSumExp.of(scale, self.share.count(x))).rows
        return rows.unsqueeze(0) if isinstance(scale, tuple) and len(scale) == 1 else rows

    def logsumexp_both(
        self,
        x: Tensor,
        keys: Tensor,
        *,
        scale: float | Tensor,
        ids: Tensor | None = None,
        key_ids: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """See `contrastive_zoo.pairwise.logsumexp_both`."""
        sweep, scale, _ = self._entered(replace(self._sweep(x, keys, ids, key_ids), both=True), scale)
        sums = self._sums(sweep, LogSumExp.of_both(scale, self.share.count(x)))
        return sums.rows, sums.columns

    def logsumexp_with_mean(
        self,
        x: Tensor,
        keys: Tensor | None = None,
        *,
        scale: Tensor,
        ids: Tensor | None = None,
        key_ids: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """See `contrastive_zoo.pairwise.logsumexp_with_mean`."""
        sweep, scale, _ = self._entered(self._sweep(x, keys, ids, key_ids), scale)
        sums = self._sums(sweep, LogSumExp.with_mean(scale, self.share.count(x), sweep.x))
        return sums.rows, sums.means

    def kernel_sum(self, x: Tensor, *, kernel: str, parameter: float, ids: Tensor | None = None) -> Tensor:
        """See `contrastive_zoo.pairwise.kernel_sum`."""
        sweep, *_ = self._entered(self._sweep(x, None, ids), None)
        of_part = sum_kernels(sweep, kernel, parameter, self.unit_rows, sweep.bound.rounding, self._of_part)
        return self.share.leave(of_part, log=False)[0]

    def softplus_sum(
        self,
        x: Tensor,
        keys: Tensor | None = None,
        *,
        scale: float | Tensor,
        bias: float | Tensor = 0.0,
        ids: Tensor | None = None,
        key_ids: Tensor | None = None,
        uniform: bool = False,
    ) -> Tensor:
        """See `contrastive_zoo.pairwise.softplus_sum`."""
        sweep, scale, bias = self._entered(self._sweep(x, keys, ids, key_ids), scale, bias)
        return self._sums(sweep, Softplus.of(scale, bias, self.share.count(x), sweep.x, uniform)).rows

    def softplus_sum_within(
        self, x: Tensor, *, ids: Tensor, scale: float | Tensor, bias: float | Tensor = 0.0, ordered: bool = False
    ) -> Tensor:
        """See `contrastive_zoo.pairwise.softplus_sum_within`; with ascending ids, ``ordered``, only a ring sorts the rows."""
        sweep, scale, bias = self._entered(replace(self._sweep(x, None, ids), counts="equal", ordered=ordered), scale, bias)
        term, share = Softplus.of(scale, bias, self.share.count(x), sweep.x), self.share
        if share.ring:
            of_part = ring.sum_within(sweep, term, self.backend, share.group, share.rows_of_each(x))
        else:
            of_part = sum_within(sweep, term, self.backend, self._of_part)
        return share.leave(of_part, log=False)[0]

    def square_sum(self, x: Tensor, keys: Tensor, *, ids: Tensor | None = None) -> Tensor:
        """See `contrastive_zoo.pairwise.square_sum`."""
        own = own_ids(self.share.count(x)) if ids is None else ids
        sweep, *_ = self._entered(self._sweep(x, keys, own, own), None)
        shared = self.share.divided and not self.share.ring
        if shared and uses_gram_matrix(replace(sweep, part=WHOLE), self.backend):
            assert sweep.keys is not None
            return self._squares_by_gram(sweep.x, sweep.keys)
        return self._sums(sweep, Squares()).rows

    def _squares_by_gram(self, x: Tensor, keys: Tensor) -> Tensor:
        """Each process computes its rows' part of the Gram matrix, and then the sums of its rows."""
        own = self.share.rows(len(x))
        of_keys = self.share.leave(keys[own].mT @ keys[own], log=False)
        gram_matrix, *_ = self.share.enter(of_keys[0], None, None)
        return self.share.of_all_parts(gram.squares(x[own], keys[own], gram_matrix), own.start, len(x))

    def class_sums(self, rows: Tensor, classes: Tensor) -> Tensor:
        """The sum of the rows of its class for each row, (B, D); classes, (B,), are numbers below B.

        Of this process's rows if rows stay with their process, with the classes of the rows of all.
        """
        if self.share.ring:
            summed: Tensor = class_sums(rows, classes, self.share.group, list(self.share.sizes))
            return summed
        return rows.new_zeros(len(classes), rows.shape[1]).index_add(0, classes, rows).index_select(0, classes)

    def on_rows(self, function: Callable[..., tuple[Tensor, ...]], x: Tensor, keys: Tensor | None = None) -> tuple[Tensor, ...]:
        """``function(x, rows)``, which returns tensors with an entry for each of ``rows``, applied to all rows of x.

        Each process computes a part of the rows and receives the results for all rows. With ``keys`` the call is
        ``function(x, rows, keys)``; keys that the function takes from elsewhere must be constants.
        """
        return self.share.on_rows(function, x, keys)

    def on_own_samples(
        self, function: "Callable[[Pairs, Tensor, Tensor, Scales], Tensor]", x: Tensor, ids: Tensor, scale: Scales
    ) -> Tensor:
        """``function(pairs, x, ids, scale)``, one row per sample, for keys that are not gathered across processes.

        Each process computes the results for its own samples of the batch, with an unshared `Pairs`, and receives all results.
        """
        alone = self.of_batch(ALONE, self.operand, self.rounded, ())
        return self.share.on_own_samples(partial(function, alone), x, ids, scale)
