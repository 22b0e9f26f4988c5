"""Sums over pairs and objectives as double loops in float64, straight from the papers.

Shares no code with the package; gradients come from autograd through the loops. Objectives return the loss of each anchor,
(B, anchors per sample), with -inf where an anchor has nothing to be contrasted with; `mean` averages the rest.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Ids = Sequence[int]


def _number(value: float | Tensor) -> float:
    return float(value.detach()) if isinstance(value, Tensor) else value


def _log_sum(logits: list[float]) -> float:
    largest = max(logits)
    return largest + math.log(sum(math.exp(logit - largest) for logit in logits))


def log_sum_exp(logits: list[Tensor], like: Tensor) -> Tensor:
    """Of no logits -inf, attached to the graph of `like` with zero gradient."""
    if not logits:
        return like.sum() * 0 - math.inf
    largest = max(_number(logit) for logit in logits)
    return sum((logit - largest).exp() for logit in logits).log() + largest


def logsumexp(x: Tensor, keys: Tensor, scale: float | Tensor, ids: Ids | None = None, key_ids: Ids | None = None) -> Tensor:
    """(N,) log-sum-exp over the keys with another id; `scale` is one number or one per row."""
    scale = torch.as_tensor(scale, dtype=torch.float64)
    scales = scale.unbind() if scale.dim() else [scale] * len(x)
    key_rows = keys.unbind()
    sums = []
    for i, row in enumerate(x.unbind()):
        counted = [j for j in range(len(key_rows)) if ids is None or key_ids is None or ids[i] != key_ids[j]]
        sums.append(log_sum_exp([scales[i] * (row @ key_rows[j]) for j in counted], row))
    return torch.stack(sums)


def kernel_value(name: str, squared_distance: Tensor, t: float) -> Tensor:
    """The kernels of Koromilas et al., 2024, and the logarithmic and inverse multiquadric ones."""
    d2 = squared_distance
    if name == "gaussian":
        return (-t * d2).exp()
    if name == "log":
        return -(1 + t * d2).log()
    if name == "imq":
        return t / (t**2 + d2).sqrt()
    assert name == "riesz"
    return d2 ** (-t / 2) if t > 0 else -(d2 ** (-t / 2))


def kernel_sum(x: Tensor, name: str, t: float, ids: Ids, floor: float = torch.finfo(torch.float64).eps) -> Tensor:
    """(N,) sums of a kernel over the rows with another id; distances below the floor are the floor, a constant."""
    rows = x.unbind()
    sums = []
    for i, row in enumerate(rows):
        total = row.sum() * 0
        for j, other in enumerate(rows):
            if ids[i] != ids[j]:
                total = total + kernel_value(name, _floored((row - other).square().sum(), floor), t)
        sums.append(total)
    return torch.stack(sums)


def _floored(d2: Tensor, floor: float) -> Tensor:
    return d2 if _number(d2) > floor else torch.full_like(d2.detach(), floor)


def unit(z: Tensor) -> list[Tensor]:
    """Rows scaled to length 1."""
    return [row / row.square().sum().sqrt() for row in z.unbind()]


def mean(anchors: Tensor) -> Tensor:
    """Mean over the anchors that have a loss."""
    return anchors[anchors != -math.inf].mean()


def _default(ids: Ids | None, z: Tensor) -> Ids:
    return range(len(z)) if ids is None else ids


def _per_anchor(z1: Tensor, z2: Tensor, value: Callable[[int, int, list[list[Tensor]]], Tensor]) -> Tensor:
    """(B, 2) values of a function of sample, view, and the unit rows by view and sample."""
    rows = [unit(z1), unit(z2)]
    return torch.stack([torch.stack([value(i, view, rows) for view in range(2)]) for i in range(len(z1))])


def _negatives(i: int, view: int, rows: list[list[Tensor]], ids: Ids, views: Sequence[int] = (0, 1)) -> list[Tensor]:
    """Similarities of an anchor to the rows of samples with another id, in batch order."""
    anchor = rows[view][i]
    return [anchor @ rows[other][j] for j in range(len(ids)) if ids[j] != ids[i] for other in views]


def _extra(i: int, anchor: Tensor, negatives: Tensor | None, negatives_ids: Tensor | None, ids: Ids) -> list[Tensor]:
    """Similarities to the extra keys: (M, D) for all anchors or (B, M, D) for each."""
    if negatives is None:
        return []
    mine = negatives if negatives.dim() == 2 else negatives[i]
    owner = None if negatives_ids is None else (negatives_ids if negatives_ids.dim() == 1 else negatives_ids[i]).tolist()
    return [anchor @ key for m, key in enumerate(unit(mine)) if owner is None or owner[m] != ids[i]]


def ntxent(
    z1: Tensor,
    z2: Tensor,
    *,
    temperature: float | Tensor,
    ids: Ids | None = None,
    negatives: Tensor | None = None,
    negatives_ids: Tensor | None = None,
) -> Tensor:
    """Chen et al., 2020, eq. 1."""
    ids = _default(ids, z1)

    def value(i: int, view: int, rows: list[list[Tensor]]) -> Tensor:
        anchor = rows[view][i]
        positive = anchor @ rows[1 - view][i] / temperature
        others = _negatives(i, view, rows, ids) + _extra(i, anchor, negatives, negatives_ids, ids)
        if not others:
            return log_sum_exp([], anchor)
        return log_sum_exp([positive, *(s / temperature for s in others)], anchor) - positive

    return _per_anchor(z1, z2, value)


def infonce(
    z1: Tensor,
    z2: Tensor,
    *,
    temperature: float | Tensor,
    symmetric: bool = True,
    in_batch: bool = True,
    ids: Ids | None = None,
    negatives: Tensor | None = None,
    negatives_ids: Tensor | None = None,
) -> Tensor:
    """van den Oord et al., 2018, eq. 4; extra keys are for the anchors of view 1."""
    ids = _default(ids, z1)

    def value(i: int, view: int, rows: list[list[Tensor]]) -> Tensor:
        anchor = rows[view][i]
        positive = anchor @ rows[1 - view][i] / temperature
        others = _negatives(i, view, rows, ids, views=[1 - view]) if in_batch else []
        others += _extra(i, anchor, negatives, negatives_ids, ids) if view == 0 else []
        if not others:
            return log_sum_exp([], anchor)
        return log_sum_exp([positive, *(s / temperature for s in others)], anchor) - positive

    return _per_anchor(z1, z2, value)[:, : 2 if symmetric else 1]


def dcl(
    z1: Tensor,
    z2: Tensor,
    *,
    temperature: float | Tensor,
    ids: Ids | None = None,
    negatives: Tensor | None = None,
    negatives_ids: Tensor | None = None,
) -> Tensor:
    """Yeh et al., 2022, eq. 6."""
    ids = _default(ids, z1)

    def value(i: int, view: int, rows: list[list[Tensor]]) -> Tensor:
        anchor = rows[view][i]
        others = _negatives(i, view, rows, ids) + _extra(i, anchor, negatives, negatives_ids, ids)
        return log_sum_exp([s / temperature for s in others], anchor) - anchor @ rows[1 - view][i] / temperature

    return _per_anchor(z1, z2, value)


def hcl(
    z1: Tensor,
    z2: Tensor,
    *,
    temperature: float | Tensor,
    tau_plus: float,
    beta: float,
    ids: Ids | None = None,
) -> Tensor:
    """Robinson et al., 2021, eq. 4, with the floor of the authors' code: where it holds, Ng is a constant."""
    ids = _default(ids, z1)

    def value(i: int, view: int, rows: list[list[Tensor]]) -> Tensor:
        similarities = _negatives(i, view, rows, ids)
        if not similarities:
            return log_sum_exp([], rows[view][i])
        count = len(similarities)
        scores = [s / temperature for s in similarities]
        shift = max(_number(score) for score in scores)
        hardness = [(beta * (score - shift)).exp() for score in scores]
        reweighted = sum(w * (score - shift).exp() for w, score in zip(hardness, scores, strict=True)) / sum(hardness)
        positive = rows[view][i] @ rows[1 - view][i] / temperature
        # Everything below is divided by exp(shift), which the last line puts back.
        debiased = (count * reweighted - tau_plus * count * (positive - shift).exp()) / (1 - tau_plus)
        floor = count * math.exp(-1 / _number(temperature) - shift)
        kept = debiased if _number(debiased) > floor else torch.as_tensor(floor, dtype=torch.float64)
        return log_sum_exp([positive, kept.log() + shift], positive) - positive

    return _per_anchor(z1, z2, value)


def debiased(z1: Tensor, z2: Tensor, *, temperature: float | Tensor, tau_plus: float, ids: Ids | None = None) -> Tensor:
    """Chuang et al., 2020, eq. 8: the negatives all weigh the same."""
    return hcl(z1, z2, temperature=temperature, tau_plus=tau_plus, beta=0.0, ids=ids)


def dhel(z1: Tensor, z2: Tensor, *, temperature: float | Tensor, both_views: bool = True, ids: Ids | None = None) -> Tensor:
    """Koromilas et al., 2024, eq. 7, (B, 1)."""
    ids = _default(ids, z1)
    rows = [unit(z1), unit(z2)]
    losses = []
    for i in range(len(z1)):
        loss = -(rows[0][i] @ rows[1][i]) / temperature
        for view in range(2 if both_views else 1):
            similarities = _negatives(i, view, rows, ids, views=[view])
            loss = loss + log_sum_exp([s / temperature for s in similarities], rows[view][i])
        losses.append(loss)
    return torch.stack(losses)[:, None]


def kcl(z1: Tensor, z2: Tensor, *, kernel: str, t: float, gamma: float, ids: Ids | None = None) -> Tensor:
    """Koromilas et al., 2024, section 5, one number; the energy of the log kernel has the factor 1/2 of the authors' code."""
    ids = _default(ids, z1)
    aligned, aligned_t = ("gaussian", 2.0) if kernel == "gaussian_riesz" else (kernel, t)
    spread = "riesz" if kernel == "gaussian_riesz" else kernel
    rows = [torch.stack(unit(z)) for z in (z1, z2)]
    eps = torch.finfo(torch.float64).eps
    distances = [_floored((a - b).square().sum(), eps) for a, b in zip(*rows, strict=True)]
    alignment = sum(kernel_value(aligned, d2, aligned_t) for d2 in distances) / len(distances)
    pairs = sum(a != b for a in ids for b in ids)
    energy = sum(kernel_sum(view, spread, t, ids).sum() for view in rows) / pairs
    return -2 * alignment + gamma * (0.5 if kernel == "log" else 1.0) * energy


class SogCLR:
    """Yuan et al., 2022, algorithm 1, with a dictionary for the moving averages u; one for each modality if there are two.

    A sample that is visited for the first time starts at its batch value; of a sample twice in a batch the first counts.
    """

    def __init__(self, *, temperature: float, gamma: float | Callable[[int], float], intra_view: bool = True) -> None:
        self.temperature, self.gamma, self.intra_view = temperature, gamma, intra_view
        self.u: dict[int, tuple[float, ...]] = {}
        self.step = 0

    def __call__(self, z1: Tensor, z2: Tensor, index: Ids) -> tuple[Tensor, Tensor]:
        """Value of each anchor (B, 2), and a scalar whose gradient is that of the estimator."""
        gamma = self.gamma(self.step) if callable(self.gamma) else self.gamma
        rows = [unit(z1), unit(z2)]
        values, gradient, new = [], torch.zeros((), dtype=torch.float64), {}
        for i, sample in enumerate(index):
            averages = []
            for view in range(2):
                similarities = _negatives(i, view, rows, index, views=(0, 1) if self.intra_view else (1 - view,))
                batch_mean = sum((s / self.temperature).exp() for s in similarities) / len(similarities)
                u = _number(batch_mean)
                if sample in self.u:
                    u = (1 - gamma) * self.u[sample][view % len(self.u[sample])] + gamma * u
                positive = rows[0][i] @ rows[1][i] / self.temperature
                values.append(math.log(u) - _number(positive))
                gradient = gradient + batch_mean / u - positive
                averages.append(u)
            new.setdefault(sample, (sum(averages) / 2,) if self.intra_view else tuple(averages))
        self.u |= new
        self.step += 1
        return torch.tensor(values, dtype=torch.float64).view(-1, 2), gradient / (2 * len(index))


class EMC2:
    """Yau et al., 2024, algorithm 1, a chain per sample and view, told by `accepts` whether to move.

    Args:
        temperature: Divides the similarities.
        burn_in: Share of the valid columns whose states are not kept.
        accepts: Of log score of the column and log score of the state.
        cached: Whether a carried state is scored by its last embedding and pulls on the anchor; if not it keeps its score.
    """

    def __init__(self, *, temperature: float, burn_in: float, accepts: Callable[[float, float], bool], cached: bool) -> None:
        self.temperature, self.burn_in, self.accepts, self.cached = temperature, burn_in, accepts, cached
        self.chains: dict[tuple[int, int], tuple[int, int]] = {}
        self.scores: dict[tuple[int, int], float] = {}
        self.embeddings: dict[tuple[int, int], Tensor] = {}
        self.log_u: dict[int, float] = {}

    def __call__(self, z1: Tensor, z2: Tensor, index: Ids) -> tuple[Tensor, Tensor]:
        """Value of each anchor (B, 2), and the same with the gradient of the estimator."""
        rows = [unit(z1), unit(z2)]
        columns = [(j, view) for j in range(len(index)) for view in range(2)]
        values, surrogates, chains, scores, log_u = [], [], {}, {}, {}
        for i, sample in enumerate(index):
            averages = []
            for view in range(2):
                anchor = rows[view][i]
                valid = [(j, w) for j, w in columns if index[j] != sample]
                similarities = [anchor @ rows[w][j] for j, w in valid]
                kept, state, score = self._walk((sample, view), anchor, valid, similarities, index)
                positive = rows[0][i] @ rows[1][i] / self.temperature
                averages.append(self._average(sample, [_number(s) / self.temperature for s in similarities]))
                values.append(averages[-1] - _number(positive))
                surrogates.append(sum(kept) / len(kept) / self.temperature - positive)
                chains.setdefault((sample, view), state)
                scores.setdefault((sample, view), score)
            log_u.setdefault(sample, _log_sum(averages) - math.log(2))
        fresh: dict[tuple[int, int], Tensor] = {}
        for j, view in columns:
            fresh.setdefault((index[j], view), rows[view][j].detach())
        self.chains |= chains
        self.scores |= scores
        self.embeddings |= fresh
        self.log_u |= log_u
        return torch.tensor(values, dtype=torch.float64).view(-1, 2), torch.stack(surrogates).view(-1, 2)

    def _average(self, sample: int, log_scores: list[float]) -> float:
        """Logarithm of the running mean of exp(s/t): the new batch weighs 0.9."""
        new = _log_sum(log_scores) - math.log(len(log_scores))
        if sample not in self.log_u:
            return new
        return _log_sum([math.log(0.1) + self.log_u[sample], math.log(0.9) + new])

    def _walk(
        self, chain: tuple[int, int], anchor: Tensor, valid: list[tuple[int, int]], similarities: list[Tensor], index: Ids
    ) -> tuple[list[Tensor], tuple[int, int], float]:
        """Similarities to the kept states, the last state as (sample, view), and its log score."""
        state, score, pull = self.chains.get(chain), -math.inf, anchor.sum() * 0
        if state is not None and self.cached:
            pull = anchor @ self.embeddings[state]
            score = _number(pull) / self.temperature
        elif state is not None:
            score = self.scores[chain]
        kept = []
        for number, ((j, view), similarity) in enumerate(zip(valid, similarities, strict=True)):
            if self.accepts(_number(similarity) / self.temperature, score):
                state, score, pull = (index[j], view), _number(similarity) / self.temperature, similarity
            if number >= int(self.burn_in * len(valid)):
                kept.append(pull)
        assert state is not None
        return kept, state, score


def chain_law(log_scores: Sequence[float], burn_in: int = 0, start: Sequence[float] | None = None) -> list[float]:
    """Expected share of each column among the kept states of a Metropolis-Hastings walk over all columns in order.

    Args:
        log_scores: Log score of each column.
        burn_in: Number of columns whose states are not kept.
        start: Probabilities of the columns to start in; by default the chain has no state and takes the first column.
    """
    law = list(start) if start is not None else [1.0] + [0.0] * (len(log_scores) - 1)
    shares = [0.0] * len(log_scores)
    for j, score in enumerate(log_scores):
        moved = [p * min(1.0, math.exp(min(0.0, score - log_scores[s]))) if s != j else 0.0 for s, p in enumerate(law)]
        law = [p - m for p, m in zip(law, moved, strict=True)]
        law[j] += sum(moved)
        if j >= burn_in:
            shares = [share + p for share, p in zip(shares, law, strict=True)]
    return [share / (len(log_scores) - burn_in) for share in shares]
