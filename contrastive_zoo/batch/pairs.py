"""Sums over pairs for objectives: the backend, bounds on the rows, and the division of work among processes."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from contrastive_zoo import pairwise
from contrastive_zoo.pairwise.backends import named
from contrastive_zoo.pairwise.sums import uses_gram_matrix
from contrastive_zoo.pairwise.sweep import Bound, Ids
from contrastive_zoo.pairwise.terms import Scales
from contrastive_zoo.pairwise.tiled import gram
from contrastive_zoo.processes.shares import ALONE, Share
from contrastive_zoo.ring.classes import class_sums
from contrastive_zoo.ring.sums import RingSums


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
        known: Tensors of ids, each with the tensor that takes its place in a sweep (itself, or its copy beside the rows), and
            the number of repetitions of each id if the ids are known to be 0, 0, ..., 1, 1, ..., else 0.
    """

    backend: str
    unit_rows: bool
    norm_bound: float
    share: Share
    operand: torch.dtype | None
    rounded: tuple[Tensor, Tensor] | None
    known: tuple[tuple[Tensor, Tensor, int], ...]

    @staticmethod
    def unshared(backend: str, *, unit_rows: bool, norm_bound: float) -> "Pairs":
        """For rows in full precision on a single process."""
        return Pairs(backend, unit_rows, norm_bound, ALONE, None, None, ())

    def of_batch(
        self,
        share: Share,
        operand: torch.dtype | None,
        rounded: tuple[Tensor, Tensor] | None,
        known: tuple[tuple[Tensor, Tensor, int], ...],
    ) -> "Pairs":
        """A copy of this object for the rows of one batch."""
        return Pairs(self.backend, self.unit_rows, self.norm_bound, share, operand, rounded, known)

    @property
    def engine(self) -> Any:
        """What has the functions: `contrastive_zoo.pairwise`, or `RingSums` where rows stay with their process."""
        return RingSums(self.share.sizes, self.share.group) if self.share.ring else pairwise

    @property
    def plain(self) -> bool:
        """Whether sums are plain autograd, differentiable any number of times."""
        return all(backend.plain is not None for backend in named(self.backend))

    @property
    def rounding(self) -> float:
        """Relative rounding error of rows in half precision; 0 for other rows."""
        return 0.0 if self.operand is None else torch.finfo(self.operand).eps

    def _known(self, x: Tensor, keys: Tensor | None, ids: Tensor | None, key_ids: Tensor | None = None) -> dict[str, Any]:
        """Arguments of the functions of `contrastive_zoo.pairwise` other than the rows."""
        bound = self._bound(x, keys)
        known = {"ids": self._ids(ids), "norm_bound": bound, "backend": self.backend, "part": self.share.part}
        return known if key_ids is None else {**known, "key_ids": self._ids(key_ids)}

    def _bound(self, x: Tensor, keys: Tensor | None) -> Bound:
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

    def _ids(self, ids: Tensor | None) -> Tensor | Ids | None:
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
        known = self._known(x, keys, ids, key_ids)
        x, keys, scale, _ = self.share.enter(x, keys, scale)
        sums = self.engine.logsumexp(x, keys, scale=scale, **known)
        return self.share.leave(sums, log=True)[0]

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
        known = self._known(x, keys, ids, key_ids)
        x, keys, scale, _ = self.share.enter(x, keys, scale)
        sums = self.engine.logsumexp_both(x, keys, scale=scale, **known)
        rows, columns = self.share.leave(*sums, log=True)
        return rows, columns

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
        known = self._known(x, keys, ids, key_ids)
        x, keys, scale, _ = self.share.enter(x, keys, scale)
        sums, means = self.engine.logsumexp_with_mean(x, keys, scale=scale, **known)
        (whole,) = self.share.leave(sums, log=True)
        return whole, self.share.mean(means, sums, whole)

    def kernel_sum(self, x: Tensor, *, kernel: str, parameter: float, ids: Tensor | None = None) -> Tensor:
        """See `contrastive_zoo.pairwise.kernel_sum`."""
        bound = self._bound(x, None)
        x, *_ = self.share.enter(x, None, None)
        sums = self.engine.kernel_sum(
            x,
            kernel=kernel,
            parameter=parameter,
            ids=self._ids(ids),
            unit_rows=self.unit_rows,
            rounding=bound,
            backend=self.backend,
            part=self.share.part,
        )
        return self.share.leave(sums, log=False)[0]

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
        known = self._known(x, keys, ids, key_ids)
        x, keys, scale, bias = self.share.enter(x, keys, scale, bias)
        sums = self.engine.softplus_sum(x, keys, scale=scale, bias=bias, uniform=uniform, **known)
        return self.share.leave(sums, log=False)[0]

    def softplus_sum_within(self, x: Tensor, *, ids: Tensor, scale: float | Tensor, bias: float | Tensor = 0.0) -> Tensor:
        """See `contrastive_zoo.pairwise.softplus_sum_within`."""
        known = {**self._known(x, None, None), "ids": ids}
        x, _, scale, bias = self.share.enter(x, None, scale, bias)
        sums = self.engine.softplus_sum_within(x, scale=scale, bias=bias, **known)
        return self.share.leave(sums, log=False)[0]

    def square_sum(self, x: Tensor, keys: Tensor, *, ids: Tensor | None = None) -> Tensor:
        """See `contrastive_zoo.pairwise.square_sum`."""
        if self.share.ring:
            return self.engine.square_sum(x, keys, ids=self._ids(ids), backend=self.backend)
        by_gram = self.share.divided and uses_gram_matrix(x, keys, ids=self._ids(ids), backend=self.backend)
        x, keys, *_ = self.share.enter(x, keys, None)
        if by_gram:
            return self._squares_by_gram(x, keys)
        sums = pairwise.square_sum(x, keys, ids=self._ids(ids), backend=self.backend, part=self.share.part)
        return self.share.leave(sums, log=False)[0]

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
        return rows.new_zeros(len(classes), rows.shape[1]).index_add(0, classes, rows)[classes]

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
