r"""Sums, largest scores and draws over stored embeddings, in tiles: the anchors x embeddings matrix is never stored.

Embeddings are constants here. A pair is excluded if the embedding belongs to the anchor's own sample or to no sample.

Shapes: N anchors, M embeddings, D features, K negatives of an anchor, A anchors and W embeddings of a tile.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from contrastive_zoo.operators import operator
from contrastive_zoo.samplers.randomness import DrawTable

# Anchors per tile, and embeddings per tile on CPUs, where its scores take 4 MiB in float32, and so does its noise.
TILE = 1024
# Embeddings per tile on accelerators, where launching the operations of a smaller tile takes longer than its arithmetic.
TILE_ACCELERATOR = 4096
# Columns of noise per panel on CPUs. The draws depend on this number; tiles of the same width waste no draws.
NOISE_WIDTH = 1024
# Entries of the embeddings gathered at once for draws.
GATHER_NUMEL = 2**20


def _tiles(
    x: Tensor, scale: Tensor, samples: Tensor, keys: Tensor, key_samples: Tensor, offset: int = 0
) -> Iterator[tuple[slice, slice, Tensor]]:
    """Anchors, embeddings, and the log scores (A, W) of each tile, -inf for excluded pairs.

    Tiles begin at multiples of their width in the numbers of embeddings, which begin with ``offset``.
    """
    width = TILE if x.is_cpu else TILE_ACCELERATOR
    for start in range(0, len(x), TILE):
        anchors = slice(start, min(start + TILE, len(x)))
        queries = x[anchors] * scale.to(x)
        for column in range(-(offset % width), len(keys), width):
            columns = slice(max(column, 0), min(column + width, len(keys)))
            scores = queries @ keys[columns].to(x).T
            excluded = (key_samples[columns] == samples[anchors, None]) | (key_samples[columns] < 0)
            yield anchors, columns, scores.masked_fill_(excluded, -torch.inf)


@operator(
    "contrastive_zoo::memory_softmax",
    "(Tensor x, Tensor scale, Tensor samples, Tensor keys, Tensor key_samples) -> (Tensor, Tensor)",
)
def memory_softmax(x: Tensor, scale: Tensor, samples: Tensor, keys: Tensor, key_samples: Tensor) -> tuple[Tensor, Tensor]:
    """Log-sum-exp of scale * s over the included embeddings, (N,), and their mean under the softmax of scale * s, (N, D).

    Args:
        x: (N, D) anchors.
        scale: 0-dim.
        samples: (N,) sample of each anchor.
        keys: (M, D) embeddings.
        key_samples: (M,) sample of each embedding; `NOBODY` where there is none.
    """
    log_sum, mean = x.new_full((len(x),), -torch.inf), torch.zeros_like(x)
    for anchors, columns, scores in _tiles(x, scale, samples, keys, key_samples):
        total = torch.logaddexp(log_sum[anchors], scores.logsumexp(1))
        shift = torch.where(total == -torch.inf, 0, total)
        mean[anchors] *= (log_sum[anchors] - shift).exp()[:, None]
        mean[anchors] += (scores - shift[:, None]).exp() @ keys[columns].to(x)
        log_sum[anchors] = total
    return log_sum, mean


@memory_softmax.register_fake
def _(x: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape[0]), torch.empty_like(x)


@operator(
    "contrastive_zoo::memory_largest",
    "(Tensor x, Tensor scale, Tensor samples, Tensor keys, Tensor key_samples, int k, Tensor? seed,"
    " SymInt first, SymInt offset)"
    " -> (Tensor, Tensor, Tensor, Tensor)",
)
def memory_largest(
    x: Tensor,
    scale: Tensor,
    samples: Tensor,
    keys: Tensor,
    key_samples: Tensor,
    k: int,
    seed: Tensor | None,
    first: int,
    offset: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The k embeddings of the largest scores, or of the largest scores plus Gumbel noise, largest first.

    Args:
        x: (N, D) anchors.
        scale: 0-dim.
        samples: (N,) sample of each anchor.
        keys: (M, D) embeddings.
        key_samples: (M,) sample of each embedding; `NOBODY` where there is none.
        k: Number of embeddings per anchor.
        seed: Result of `step_seed`, to add noise. The embeddings are then k draws without replacement from softmax(scale * s).
        first: Position of the first anchor among the anchors of all processes.
        offset: Number of the first embedding among the embeddings of all processes.

    Returns:
        (N, k) numbers of embeddings, -1 if fewer are included; (N, k) log scores of these embeddings, then -inf; (N,) the
        log-sum-exp over all included embeddings; and (N, k) log scores plus noise, by which embeddings are ordered.
    """
    noise = None if seed is None else DrawTable(seed, x.device, width=NOISE_WIDTH)
    log_sum = x.new_full((len(x),), -torch.inf)
    best, scored = (x.new_full((len(x), k), -torch.inf) for _ in range(2))
    numbers = samples.new_full((len(x), k), -1)
    for anchors, columns, scores in _tiles(x, scale, samples, keys, key_samples, offset):
        log_sum[anchors] = torch.logaddexp(log_sum[anchors], scores.logsumexp(1))
        drawn = slice(columns.start + offset, columns.stop + offset)
        ranked = scores if noise is None else scores + _gumbel(noise, anchors, drawn, first, x.dtype)
        top = ranked.topk(min(k, scores.shape[1]))
        ranking = torch.cat([best[anchors], top.values], 1)
        best[anchors], chosen = ranking.topk(k)
        scored[anchors] = torch.cat([scored[anchors], scores.gather(1, top.indices)], 1).gather(1, chosen)
        numbers[anchors] = torch.cat([numbers[anchors], top.indices + drawn.start], 1).gather(1, chosen)
    return numbers.masked_fill_(scored == -torch.inf, -1), scored, log_sum, best


def _gumbel(draws: DrawTable, anchors: slice, columns: slice, first: int, dtype: torch.dtype) -> Tensor:
    """Gumbel noise of a tile, finite."""
    noise = draws.exponential(slice(anchors.start + first, anchors.stop + first), columns, dtype)
    return noise.clamp_(min=torch.finfo(dtype).tiny).log_().neg_()


@memory_largest.register_fake
def _(x: Tensor, scale: Tensor, samples: Tensor, keys: Tensor, key_samples: Tensor, k: int, *_: Any) -> tuple[Tensor, ...]:
    scores = x.new_empty(x.shape[0], k)
    return samples.new_empty(x.shape[0], k), scores, x.new_empty(x.shape[0]), torch.empty_like(scores)


def scores_at(x: Tensor, scale: Tensor, keys: Tensor, places: Tensor) -> Tensor:
    """(N, k) log scores of k embeddings for each anchor, at ``places`` (N, k) among the keys."""
    scores = x.new_empty(places.shape)
    height = max(1, GATHER_NUMEL // (places.shape[1] * x.shape[1]))
    for start in range(0, len(x), height):
        anchors = slice(start, start + height)
        scores[anchors] = torch.einsum("ad,akd->ak", x[anchors] * scale.to(x), keys[places[anchors]].to(x))
    return scores


@operator(
    "contrastive_zoo::memory_uniform",
    "(Tensor x, Tensor scale, Tensor samples, Tensor keys, Tensor key_samples, int k, Tensor seed, SymInt first)"
    " -> (Tensor, Tensor)",
)
def memory_uniform(
    x: Tensor, scale: Tensor, samples: Tensor, keys: Tensor, key_samples: Tensor, k: int, seed: Tensor, first: int
) -> tuple[Tensor, Tensor]:
    """Draws of k embeddings for each anchor, uniform and with replacement, from the included embeddings.

    Args:
        x: (N, D) anchors.
        scale: 0-dim.
        samples: (N,) sample of each anchor.
        keys: (M, D) embeddings, two per sample: sample i has the embeddings 2 i and 2 i + 1.
        key_samples: (M,) sample of each embedding; `NOBODY` where there is none.
        k: Number of draws per anchor.
        seed: Result of `step_seed`.
        first: Position of the first anchor among the anchors of all processes.

    Returns:
        (N, k) numbers of embeddings, -1 if none is included; and (N, k) log scores of these embeddings, then -inf.
    """
    counts = (key_samples >= 0).cumsum(0)
    mine = counts[2 * samples + 1] - counts[2 * samples] + (key_samples[2 * samples] >= 0)
    others = (counts[-1] - mine)[:, None]
    rank = DrawTable(seed, x.device).integers(slice(first, first + len(x)), slice(0, k), others)
    # Ranks number the included embeddings; the ranks of the anchor's own sample are skipped.
    rank += torch.where(rank >= (counts[2 * samples + 1] - mine)[:, None], mine[:, None], 0)
    numbers = torch.searchsorted(counts, rank + 1).clamp_max(len(keys) - 1)
    scores = scores_at(x, scale, keys, numbers)
    return numbers.masked_fill_(others == 0, -1), scores.masked_fill_(others == 0, -torch.inf)


@memory_uniform.register_fake
def _(x: Tensor, scale: Tensor, samples: Tensor, keys: Tensor, key_samples: Tensor, k: int, *_: Any) -> tuple[Tensor, ...]:
    return samples.new_empty(x.shape[0], k), x.new_empty(x.shape[0], k)
