"""Statistics of the last batch, for logs."""

from typing import Any

import torch
from torch import Tensor

from contrastive_zoo.batch.batch import Batch
from contrastive_zoo.batch.features import inner_products_of_pairs
from contrastive_zoo.batch.pairs import Pairs
from contrastive_zoo.devices import transforming


class LastBatch:
    """What statistics need of the last batch, detached; copies and pickles leave it out.

    Attributes:
        known: Arguments of `Batch`, and which of its samples this process holds rows of; empty before the first batch.
    """

    def __init__(self) -> None:
        self.known: dict[str, Any] = {}

    def keep(self, batch: Batch) -> None:
        """Replace the last batch."""
        if not torch.compiler.is_compiling() and transforming():
            self.known = {}  # tensors made inside of a transform of torch.func are of no use after it
            return
        for name, figure in batch.diagnostics.items():
            batch.diagnostics[name] = figure.detach()
        self.known = {
            "x": batch.x.detach(),
            "ids": batch.ids,
            "sample_ids": batch.sample_ids,
            "views": batch.views,
            "labels": batch.labels,
            "diagnostics": batch.diagnostics,
            "own": batch.pairs.share.own,
        }

    def figures(self, pairs: Pairs, *, by_class: bool) -> dict[str, Tensor]:
        """Mean similarities of positives and of negatives, by sample or by class, and the objective's diagnostics."""
        return _figures(self.known, pairs, by_class=by_class) if self.known else {}

    def __getstate__(self) -> dict[str, Any]:
        return {"known": {}}


def _figures(known: dict[str, Any], pairs: Pairs, *, by_class: bool) -> dict[str, Tensor]:
    own = known["own"]
    arguments = {name: value for name, value in known.items() if name != "own"}
    pair_similarity = inner_products_of_pairs(known["x"].unflatten(0, (-1, known["views"])))
    batch = Batch(**arguments, pair_similarity=pair_similarity, pairs=pairs)
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
