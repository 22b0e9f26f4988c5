"""The sums over pairs that an objective asks for: a backend chosen, rows known to be bounded, work shared among processes."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from torch import Tensor

from contrastive_zoo import pairwise
from contrastive_zoo.batch import Pairs, Scales
from contrastive_zoo.sharding import ALONE, Share


@dataclass(frozen=True)
class Engine:
    """`contrastive_zoo.pairwise` with a backend chosen, a bound on the length of rows, and work shared among processes.

    ``rounding`` is that of the entries of half-precision rows, relative to them; 0 for others.
    """

    backend: str
    unit_rows: bool
    norm_bound: float
    share: Share = ALONE
    rounding: float = 0.0

    def logsumexp(
        self,
        x: Tensor,
        keys: Tensor | None = None,
        *,
        scale: float | Tensor | tuple[float | Tensor, ...],
        ids: Tensor | None = None,
        key_ids: Tensor | None = None,
    ) -> Tensor:
        """See `contrastive_zoo.pairwise.logsumexp`."""
        x, keys, scale = self.share.enter(x, keys, scale)
        rows = pairwise.logsumexp(
            x,
            keys,
            scale=scale,
            ids=ids,
            key_ids=key_ids,
            norm_bound=self.norm_bound,
            backend=self.backend,
            part=self.share.part,
        )
        return self.share.leave(rows, log=True)[0]

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
        x, keys, scale = self.share.enter(x, keys, scale)
        rows, columns = pairwise.logsumexp_both(
            x,
            keys,
            scale=scale,
            ids=ids,
            key_ids=key_ids,
            norm_bound=self.norm_bound,
            backend=self.backend,
            part=self.share.part,
        )
        rows, columns = self.share.leave(rows, columns, log=True)
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
        return pairwise.logsumexp_with_mean(
            x, keys, scale=scale, ids=ids, key_ids=key_ids, norm_bound=self.norm_bound, backend=self.backend
        )

    def kernel_sum(self, x: Tensor, *, kernel: str, parameter: float, ids: Tensor | None = None) -> Tensor:
        """See `contrastive_zoo.pairwise.kernel_sum`."""
        x, _, _ = self.share.enter(x, None, None)
        sums = pairwise.kernel_sum(
            x,
            kernel=kernel,
            parameter=parameter,
            ids=ids,
            unit_rows=self.unit_rows,
            rounding=self.rounding,
            backend=self.backend,
            part=self.share.part,
        )
        return self.share.leave(sums, log=False)[0]

    def on_own_samples(
        self, function: Callable[[Pairs, Tensor, Tensor, Scales], Tensor], x: Tensor, ids: Tensor, scale: Scales
    ) -> Tensor:
        """See `contrastive_zoo.batch.Pairs`."""
        return self.share.on_own_samples(partial(function, replace(self, share=ALONE)), x, ids, scale)

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
        return pairwise.softplus_sum(
            x,
            keys,
            scale=scale,
            bias=bias,
            ids=ids,
            key_ids=key_ids,
            uniform=uniform,
            norm_bound=self.norm_bound,
            backend=self.backend,
        )

    def softplus_sum_within(self, x: Tensor, *, ids: Tensor, scale: float | Tensor, bias: float | Tensor = 0.0) -> Tensor:
        """See `contrastive_zoo.pairwise.softplus_sum_within`."""
        return pairwise.softplus_sum_within(
            x, ids=ids, scale=scale, bias=bias, norm_bound=self.norm_bound, backend=self.backend
        )

    def square_sum(self, x: Tensor, keys: Tensor, *, ids: Tensor | None = None) -> Tensor:
        """See `contrastive_zoo.pairwise.square_sum`."""
        return pairwise.square_sum(x, keys, ids=ids, backend=self.backend)
