"""Statistics of the last batch, for logs."""

from typing import Any

import torch
from torch import Tensor

from contrastive_zoo.batch.batch import Batch
from contrastive_zoo.batch.pairs import Pairs


def constants(batch: Batch) -> dict[str, Any]:
    """What `figures` needs of a batch, detached, and which of its samples this process holds rows of."""
    for name, figure in batch.diagnostics.items():
        batch.diagnostics[name] = figure.detach()
    return {
        "x": batch.x.detach(),
        "pair_similarity": batch.pair_similarity.detach(),
        "ids": batch.ids,
        "sample_ids": batch.sample_ids,
        "views": batch.views,
        "labels": batch.labels,
        "diagnostics": batch.diagnostics,
        "own": batch.pairs.share.own,
    }


def figures(seen: dict[str, Any], pairs: Pairs, *, by_class: bool) -> dict[str, Tensor]:
    """Mean similarities of positives and of negatives, by sample or by class, and the objective's diagnostics; all detached."""
    own = seen["own"]
    known = {name: value for name, value in seen.items() if name != "own"}
    batch = Batch(**known | {"pair_similarity": seen["pair_similarity"][own]}, pairs=pairs)
    x, samples = batch.x, (batch.class_ids() if by_class else batch.sample_ids)[own].to(batch.x.device)
    # Numbers below that of the rows, which may be those of one process only.
    groups = torch.searchsorted(samples.sort().values, samples).repeat_interleave(batch.views)
    # The sum of x_i . x_j over all pairs equals the squared norm of the sum of the rows.
    within = x.new_zeros(x.shape).index_add_(0, groups, x).square().sum()
    same = x.new_zeros(len(x)).index_add_(0, groups, torch.ones_like(x[:, 0])).square().sum()
    found = {"negative_similarity": (x.sum(0).square().sum() - within) / (len(x) ** 2 - same).clamp_min(1)}
    if by_class:
        found["positive_similarity"] = (within - x.square().sum()) / (same - len(x)).clamp_min(1)
    else:
        found["positive_similarity"] = batch.positive_similarity().mean()
    found["dropped_anchors"] = x.new_zeros(())
    return found | batch.diagnostics
