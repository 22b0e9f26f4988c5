r"""Shared by UCL, HUCL, SCL and HSCL: each positive separately against a mean over negatives, weighted by hardness.

    loss = mean over pairs (a, p) of log(1 + exp(m_a - s_ap)),    m_a = log E_{n ~ q_a} exp(s_an)

The positives p are the rows of the anchor's sample (UCL) or class (SCL). q_a is uniform over the negatives, or proportional to
exp(beta s_an) (HUCL, HSCL); the gradient treats q_a as constant. The exact expectation is m_a = lse_a(1 + beta) - lse_a(beta),
where lse_a(c) is the log-sum-exp of c s_an; alternatively m_a is a mean over K draws per anchor. There is no temperature.

Jiang, Nguyen, Aeron and Ishwar, "Hard-Negative Sampling for Contrastive Learning: Optimal Representation Geometry and Neural-
vs Dimensional-Collapse", 2023. arXiv:2311.05139
"""

from functools import partial

import torch
from torch import Tensor

from contrastive_zoo.batch.batch import Batch
from contrastive_zoo.checks import check_count
from contrastive_zoo.logspace import log1p_exp
from contrastive_zoo.objectives.base import Objective
from contrastive_zoo.samplers.batch_draws import drawn_log_mean
from contrastive_zoo.samplers.randomness import step_seed
from contrastive_zoo.state.counters import StepCounter

PAPER = "Jiang et al., 2023. arXiv:2311.05139"
EASY = (
    r"\ell = \mathrm{mean}_{a,\,p \in \mathcal{P}_a} "
    r"\log\Big(1 + \frac{1}{|\mathcal{N}_a|} \sum_{n \in \mathcal{N}_a} e^{s_{an} - s_{ap}}\Big)"
)
HARD = (
    r"\ell = \mathrm{mean}_{a,\,p \in \mathcal{P}_a} "
    r"\log\Big(1 + \frac{\sum_{n \in \mathcal{N}_a} e^{(1+\beta) s_{an}}}"
    r"{\sum_{n \in \mathcal{N}_a} e^{\beta s_{an}}}\, e^{-s_{ap}}\Big)"
)
SCALE = "Equal in expectation to the authors' code, which samples negatives: the mean over pairs (anchor, positive)."
DRAWS = (
    "With num_negatives=K an anchor draws K negatives for all its positives; the authors' code draws K negatives for each pair "
    "of an anchor and a positive. The expectation of the loss is the same."
)
OTHERS = "With self_positive=False an anchor is no positive of itself."
OTHER_SAMPLES = f"{OTHERS} The negatives are then the rows of other samples; the paper draws them independently of the anchor."
ONE_LABEL = "A sample has one label: rows with the same index take the label of the first such row in the batch."


def check_draws(*, num_negatives: int | None, self_positive: bool, beta: float = 0.0) -> None:
    """Raise if the number of draws is invalid."""
    if num_negatives is not None:
        check_count("num_negatives", num_negatives)


class Generalised(Objective):
    """The loss of each anchor, summed over its positives, for any beta; see the subclasses."""

    def __init__(self, by_label: bool, beta: float, num_negatives: int | None, self_positive: bool, seed: int) -> None:
        super().__init__()
        self.by_label = by_label
        self.beta = beta
        self.num_negatives = None if num_negatives is None else check_count("num_negatives", num_negatives)
        self.self_positive = self_positive
        if num_negatives is not None:
            self.seed, self.step = seed, StepCounter()

    def forward(self, batch: Batch) -> Tensor:
        """See `Objective.forward`; -inf where an anchor has no positive or no negative."""
        x, positives, order = batch.x, batch.ids, None
        if self.by_label:
            positives = batch.class_ids().repeat_interleave(batch.views)
            if not batch.scattered:  # sorted by class, so the rows of a class are excluded in blocks
                positives, order = positives.sort(stable=True)
                x = x.index_select(0, batch.placed(order))
        excluded = positives if self.by_label or not self.self_positive else None
        same = batch.placed(_count(positives)) if self.by_label else _count(batch.placed(positives))
        counts = same if self.self_positive else same - 1
        negatives = len(same) - same if excluded is not None else torch.full_like(same, len(same))
        log_mean = self._log_mean(batch, x, excluded, negatives)
        ascending = order is not None or batch.complete
        values = batch.pairs.softplus_sum_within(x, ids=positives, scale=-1.0, bias=log_mean, ordered=ascending)
        if self.training and self.num_negatives is not None:
            self.step.advance()  # after the last sum, so that a step that fails is not counted
        if self.self_positive:
            values = values + log1p_exp(log_mean - batch.squared_lengths(x))
        kept = (counts > 0) & (same < len(same))
        # Turn the mean over anchors into a mean over pairs.
        share = kept.sum().to(x.dtype) / (kept * counts).sum().clamp_min(1)
        values = torch.where(kept, values * share, -torch.inf)
        return batch.per_view(values if order is None else values.index_select(0, batch.placed(order.argsort())))

    def _log_mean(self, batch: Batch, x: Tensor, excluded: Tensor | None, negatives: Tensor) -> Tensor:
        """(N,) m_a: the exact expectation, or a mean over draws."""
        if self.num_negatives is None or not self.training:
            return _log_expectation(batch, x, excluded, negatives, self.beta)
        if batch.alone:
            self.step.place(x)
        seed = step_seed(self.seed, self.step.value)
        drawn = partial(drawn_log_mean, excluded=excluded, beta=self.beta, num_negatives=self.num_negatives, seed=seed)
        (log_mean,) = batch.pairs.on_rows(lambda x, anchors: (drawn(x, anchors),), x)
        return log_mean


def _count(ids: Tensor) -> Tensor:
    """(N,) number of rows with the same id."""
    ordered = ids.sort().values
    return torch.searchsorted(ordered, ids, right=True) - torch.searchsorted(ordered, ids)


def _log_expectation(batch: Batch, x: Tensor, excluded: Tensor | None, negatives: Tensor, beta: float) -> Tensor:
    """(N,) log of the expectation of exp(s_an) over q_a, with q_a constant in the gradient; 0 without negatives."""
    exponent = _lse(batch, x, excluded, 1 + beta)
    weight = _lse(batch, x.detach(), excluded, beta) if beta else negatives.clamp_min(1).to(x.dtype).log()
    exponent, weight = (torch.where(negatives > 0, t, 0) for t in (exponent, weight))
    return exponent.detach() - weight + (exponent - exponent.detach()) / (1 + beta)


def _lse(batch: Batch, x: Tensor, excluded: Tensor | None, scale: float) -> Tensor:
    """(N,) log-sum-exp over the rows with a different id; without ids, over all rows, the anchor included."""
    others = batch.pairs.logsumexp(x, scale=scale, ids=excluded)
    return others if excluded is not None else torch.logaddexp(others, scale * batch.squared_lengths(x))
