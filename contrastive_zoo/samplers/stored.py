"""Searches and draws over the stored embeddings of all samples, of which each process may hold a share.

Shapes: N anchors, A of them on this process, M embeddings on this process, D features, K negatives of an anchor, P processes.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from contrastive_zoo.processes.shares import merged, swapped
from contrastive_zoo.samplers.memory import memory_largest, memory_uniform, scores_at
from contrastive_zoo.samplers.randomness import DrawTable
from contrastive_zoo.state.layout import Layout, pack, unpack
from contrastive_zoo.state.saved import NOBODY


class Found(NamedTuple):
    """Embeddings found for A anchors.

    Attributes:
        rows: (A, K) int64 numbers of embeddings, 2 * sample + view; -1 if an anchor has fewer than K.
        log_scores: (A, K) their log scores; -inf for -1.
        log_sum: (A,) log-sum-exp of the scores of all embeddings of other samples.
        others: (A,) number of these embeddings.
    """

    rows: Tensor
    log_scores: Tensor
    log_sum: Tensor
    others: Tensor


@dataclass(frozen=True)
class Stored:
    """The last embeddings of all samples, two of each.

    Attributes:
        keys: (M, D) embeddings on this process.
        visited: (M / 2,) whether each sample on this process has embeddings.
        layout: Which samples these are.
    """

    keys: Tensor
    visited: Tensor
    layout: Layout

    @property
    def samples(self) -> Tensor:
        """(M,) sample of each embedding; `NOBODY` where there is none."""
        samples = torch.arange(len(self.visited), device=self.visited.device) + self.layout.first
        return torch.where(self.visited, samples, NOBODY).repeat_interleave(2)

    def largest(self, x: Tensor, scale: Tensor, samples: Tensor, k: int, seed: Tensor | None, anchors: slice) -> Found:
        """The embeddings of the largest scores, or of the largest scores plus Gumbel noise, largest first.

        Args:
            x: (N, D) anchors of all processes.
            scale: 0-dim, 1 / temperature.
            samples: (N,) sample of each anchor.
            k: Number of embeddings for each anchor, K.
            seed: Result of `step_seed`, to add noise.
            anchors: The A anchors of this process.
        """
        if not self.layout.divided:
            x, samples, first = x[anchors], samples[anchors], anchors.start
            rows, scored, log_sum, _ = memory_largest(x, scale, samples, self.keys, self.samples, k, seed, first, 0)
            return Found(rows, scored, log_sum, self._count(samples))
        start = 2 * self.layout.first
        rows, scored, log_sum, ranking = memory_largest(x, scale, samples, self.keys, self.samples, k, seed, 0, start)
        return self._merged(Found(rows, scored, log_sum, self._count(samples)), ranking)

    def _merged(self, found: Found, ranking: Tensor) -> Found:
        """The k best of all processes for each of this process's anchors, from the k best here for all anchors."""
        of_all = swapped(pack(*found, ranking), self.layout.group)  # (P, A, W)
        rows, scored, log_sum, others, ranking = unpack(of_all, *found, ranking)
        chosen = ranking.movedim(0, 1).flatten(1).topk(found.rows.shape[1]).indices
        rows, scored = (each.movedim(0, 1).flatten(1).gather(1, chosen) for each in (rows, scored))
        return Found(rows, scored, log_sum.logsumexp(0), others.sum(0))

    def uniform(self, x: Tensor, scale: Tensor, samples: Tensor, k: int, seed: Tensor, anchors: slice) -> Found:
        """Draws, uniform and with replacement, from the embeddings of other samples; ``log_sum`` is that of the draws.

        Args:
            x: (N, D) anchors of all processes.
            scale: 0-dim, 1 / temperature.
            samples: (N,) sample of each anchor.
            k: Number of draws for each anchor, K.
            seed: Result of `step_seed`.
            anchors: The A anchors of this process.
        """
        if not self.layout.divided:
            x, samples, first = x[anchors], samples[anchors], anchors.start
            rows, scored = memory_uniform(x, scale, samples, self.keys, self.samples, k, seed, first)
            return Found(rows, scored, scored.logsumexp(1), self._count(samples))
        before, own, total, first = self._counted(samples)
        count = total - own
        rank = DrawTable(seed, x.device).integers(slice(0, len(x)), slice(0, k), count[:, None])
        # Ranks number the included embeddings; the ranks of the anchor's own sample are skipped.
        rank += torch.where(rank >= before[:, None], own[:, None], 0)
        rows, scored = self._at_ranks(x, scale, rank - first)
        rows, scored = rows.masked_fill(count[:, None] == 0, -1), scored.masked_fill(count[:, None] == 0, -torch.inf)
        return Found(*(each[anchors] for each in (rows, scored, scored.logsumexp(1), count)))

    def _count(self, samples: Tensor) -> Tensor:
        """(N,) number of embeddings on this process of samples other than the anchor's."""
        own = self._of_sample(samples, 2 * self.visited.long())
        return 2 * self.visited.sum() - own

    def _of_sample(self, samples: Tensor, values: Tensor) -> Tensor:
        """(N,) value of each anchor's sample, 0 for a sample on another process."""
        place, mine = self.layout.find(samples)
        return torch.where(mine, values[place], 0) if len(values) else torch.zeros_like(samples)

    def _counted(self, samples: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Numbers of embeddings: before each anchor's sample (N,), of this sample (N,), of all, before this process's."""
        layout, included = self.layout, 2 * self.visited.long()
        totals = included.new_zeros(layout.world)
        totals[layout.rank] = included.sum()
        own, before = (self._of_sample(samples, values) for values in (included, included.cumsum(0) - included))
        whole = merged(torch.cat([totals, own, before]), False, layout.group)
        totals, own, before = whole.split([layout.world, len(samples), len(samples)])
        firsts = totals.cumsum(0) - totals
        return before + firsts[samples // layout.each], own, totals.sum(), firsts[layout.rank]

    def _at_ranks(self, x: Tensor, scale: Tensor, ranks: Tensor) -> tuple[Tensor, Tensor]:
        """Numbers and log scores, (N, K), of the included embeddings of these ranks, counted from this process's first."""
        counts = (2 * self.visited.long()).cumsum(0)
        if not len(counts):
            numbers, scores, mine = torch.zeros_like(ranks), x.new_zeros(ranks.shape), torch.zeros_like(ranks, dtype=torch.bool)
        else:
            mine = (ranks >= 0) & (ranks < counts[-1])
            place = torch.searchsorted(counts, ranks + 1).clamp_max(len(counts) - 1)
            place = 2 * place + ranks % 2  # both embeddings of a sample are included, or none
            numbers, scores = place + 2 * self.layout.first, scores_at(x, scale, self.keys, place)
        flat = [each.flatten() for each in (mine, numbers, scores)]
        found = self.layout.of_owners(*flat)
        return found[0].view(ranks.shape), found[1].view(ranks.shape)
