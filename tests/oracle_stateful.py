"""Objectives that keep state, with dictionaries for tables and a step per column for chains; in float64, from the papers."""

import math
from collections.abc import Callable, Sequence

import oracle
import torch
from oracle import Ids
from torch import Tensor


def _log_sum(logits: list[float]) -> float:
    largest = max(logits)
    return largest + math.log(sum(math.exp(logit - largest) for logit in logits))


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
        rows = [oracle.unit(z1), oracle.unit(z2)]
        values, gradient, new = [], torch.zeros((), dtype=torch.float64), {}
        for i, sample in enumerate(index):
            averages = []
            for view in range(2):
                similarities = oracle.similarities(i, view, rows, index, views=(0, 1) if self.intra_view else (1 - view,))
                batch_mean = sum((s / self.temperature).exp() for s in similarities) / len(similarities)
                u = oracle.number(batch_mean)
                if sample in self.u:
                    u = (1 - gamma) * self.u[sample][view % len(self.u[sample])] + gamma * u
                positive = rows[0][i] @ rows[1][i] / self.temperature
                values.append(math.log(u) - oracle.number(positive))
                gradient = gradient + batch_mean / u - positive
                averages.append(u)
            new.setdefault(sample, (sum(averages) / 2,) if self.intra_view else tuple(averages))
        self.u |= new
        self.step += 1
        return torch.tensor(values, dtype=torch.float64).view(-1, 2), gradient / (2 * len(index))


class ISogCLR:
    """Qiu et al., 2023, algorithm 1: `SogCLR` with dictionaries for a temperature and its gradient, one for each modality."""

    def __init__(
        self,
        *,
        temperature: float,
        gamma: float,
        intra_view: bool = True,
        rho: float = 0.3,
        eta: float = 0.01,
        temperature_min: float = 0.05,
        temperature_max: float = 0.7,
        momentum: float = 0.1,
    ) -> None:
        self.start, self.gamma, self.intra_view, self.rho, self.eta = temperature, gamma, intra_view, rho, eta
        self.lowest, self.highest, self.momentum = temperature_min, temperature_max, momentum
        self.u: dict[int, list[float]] = {}
        self.temperature: dict[int, list[float]] = {}
        self.gradient: dict[int, list[float]] = {}

    def __call__(self, z1: Tensor, z2: Tensor, index: Ids) -> tuple[Tensor, Tensor]:
        """Value of each anchor (B, 2), and a scalar whose gradient is that of the estimator."""
        rows = [oracle.unit(z1), oracle.unit(z2)]
        sides = 1 if self.intra_view else 2
        values, surrogate, averages, temperatures, gradients = [], torch.zeros((), dtype=torch.float64), {}, {}, {}
        for i, sample in enumerate(index):
            own = self.temperature.get(sample, [self.start] * sides)
            of_views, derivatives = [], []
            for view in range(2):
                t = own[view % sides]
                similarities = oracle.similarities(i, view, rows, index, views=(0, 1) if self.intra_view else (1 - view,))
                exponentials = [(s / t).exp() for s in similarities]
                u = oracle.number(sum(exponentials) / len(exponentials))
                if sample in self.u:
                    u = (1 - self.gamma) * self.u[sample][view % sides] + self.gamma * u
                positive = rows[0][i] @ rows[1][i]
                weights = [oracle.number(e) / (u * len(exponentials)) for e in exponentials]
                pull = sum(w * s for w, s in zip(weights, similarities, strict=True))
                values.append((t * (math.log(u) + self.rho) - oracle.number(positive)) / self.start)
                surrogate = surrogate + (pull - positive) / self.start
                of_views.append(u)
                derivatives.append(math.log(u) + self.rho - oracle.number(pull) / t)
            if sample not in averages:
                averages[sample] = [sum(of_views) / 2] if self.intra_view else of_views
                moved = [sum(derivatives) / 2] if self.intra_view else derivatives
                old = self.gradient.get(sample, [0.0] * sides)
                gradients[sample] = [self.momentum * m + (1 - self.momentum) * g for m, g in zip(old, moved, strict=True)]
                temperatures[sample] = [self._moved(t, m) for t, m in zip(own, gradients[sample], strict=True)]
        self.u |= averages
        self.temperature |= temperatures
        self.gradient |= gradients
        return torch.tensor(values, dtype=torch.float64).view(-1, 2), surrogate / (2 * len(index))

    def _moved(self, temperature: float, gradient: float) -> float:
        return min(max(temperature - self.eta * gradient, self.lowest), self.highest)


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

    def __call__(self, z1: Tensor, z2: Tensor, index: Ids, order: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Value of each anchor (B, 2), and the same with the gradient of the estimator; rows 2 i + view come in `order`."""
        rows = [oracle.unit(z1), oracle.unit(z2)]
        columns = [(row // 2, row % 2) for row in order]
        values, surrogates, chains, scores, log_u = [], [], {}, {}, {}
        for i, sample in enumerate(index):
            averages = []
            for view in range(2):
                anchor = rows[view][i]
                valid = [(j, w) for j, w in columns if index[j] != sample]
                similarities = [anchor @ rows[w][j] for j, w in valid]
                kept, state, score = self._walk((sample, view), anchor, valid, similarities, index)
                positive = rows[0][i] @ rows[1][i] / self.temperature
                averages.append(self._average(sample, [oracle.number(s) / self.temperature for s in similarities]))
                values.append(averages[-1] - oracle.number(positive))
                surrogates.append(sum(kept) / len(kept) / self.temperature - positive)
                chains.setdefault((sample, view), state)
                scores.setdefault((sample, view), score)
            log_u.setdefault(sample, _log_sum(averages) - math.log(2))
        fresh: dict[tuple[int, int], Tensor] = {}
        for j, view in sorted(columns):
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
            score = oracle.number(pull) / self.temperature
        elif state is not None:
            score = self.scores[chain]
        kept = []
        for number, ((j, view), similarity) in enumerate(zip(valid, similarities, strict=True)):
            if self.accepts(oracle.number(similarity) / self.temperature, score):
                state, score, pull = (index[j], view), oracle.number(similarity) / self.temperature, similarity
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
