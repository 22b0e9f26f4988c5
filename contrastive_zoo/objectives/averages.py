"""Shared by the objectives over the whole dataset: the mean over a batch's negatives, and moving averages of this mean."""

from collections.abc import Callable

import torch
from torch import Tensor

from contrastive_zoo.batch.batch import Batch
from contrastive_zoo.checks import as_tensor, check_number
from contrastive_zoo.schedules import scheduled_weight
from contrastive_zoo.state.counters import StepCounter
from contrastive_zoo.state.tables import LogAverage

Schedule = Callable[[Tensor], "Tensor | float"]


class Weight:
    """Weight of the new value in a moving average: a number, or a schedule that is called once per step.

    The weight ``gamma`` is a number in (0, 1], or a callable that maps the number of steps so far (0-dim tensor) to one.
    """

    def __init__(self) -> None:
        self._agreed: float | Tensor | None = None

    def take(self, gamma: float | Schedule, step: StepCounter, like: Tensor) -> float | Tensor:
        """The weight in this step; the agreed weight if the processes have agreed on one.

        On a single process the steps are counted on the device of ``like``, so replays of a recorded step count.

        Raises:
            TypeError: The schedule returned no number.
            ValueError: The number is outside (0, 1].
        """
        agreed, self._agreed = self._agreed, None
        if agreed is not None:
            return agreed
        step.place(like)
        return _at(gamma, step)

    def agreement(self, gamma: float | Schedule, step: StepCounter) -> dict[str, object]:
        """See `Objective.agreement`; raises as `take` does."""
        weight = self._agreed = _at(gamma, step)
        on_host = not isinstance(weight, Tensor) or weight.is_cpu
        return {"gamma in this step": float(weight) if on_host else "not compared"}


def _at(gamma: float | Schedule, step: StepCounter) -> float | Tensor:
    if not callable(gamma):
        return gamma
    weight = gamma(step.value.clone())
    if not isinstance(weight, Tensor):
        weight = as_tensor(check_number("gamma", weight, low=0, high=1, open_low=True))
    return scheduled_weight(weight.detach().to(torch.float64))


def log_mean(batch: Batch, scale: float | Tensor, intra_view: bool = True) -> Tensor:
    """Logarithm of the mean of exp(scale s) over the negatives of each row, (B, V), -inf without negatives.

    Args:
        batch: Rows of all views.
        scale: Multiplies the similarities.
        intra_view: Whether rows of all views are negatives; if not, only rows of the other modality are.
    """
    sums = batch.logsumexp(scale) if intra_view else _across_modalities(batch, scale)
    return sums - log_count(batch, intra_view)


def log_count(batch: Batch, intra_view: bool) -> Tensor:
    """Logarithm of the number of negatives of each sample, (B, 1)."""
    count = batch.negatives_count(views=batch.views if intra_view else 1)
    return count.clamp_min(1).to(batch.x.dtype).log()


def _across_modalities(batch: Batch, scale: float | Tensor) -> Tensor:
    """Log-sum-exp of each row over the other samples' rows of the other modality, (B, 2)."""
    (x, y), ids = batch.each_view(), batch.sample_ids
    return torch.stack(batch.pairs.logsumexp_both(x, y, scale=scale, ids=ids, key_ids=ids), 1)


def moved(averages: LogAverage, batch: Batch, log_new: Tensor, weight: float | Tensor) -> Tensor:
    """Blend new values into the averages and store them; log of each anchor's average, (B, V), -inf without one."""
    assert batch.index is not None
    index = batch.placed(batch.index)
    return averages.move(index, averages.read(index), log_new.detach(), weight, batch.placed(batch.sample_ids))


def estimator(log_new: Tensor, log_u: Tensor) -> Tensor:
    """exp(log_new - log_u), whose gradient is the gradient of the batch mean divided by a constant u; finite if u is not."""
    return (log_new - torch.where(torch.isfinite(log_u), log_u, 0)).exp()


def table_names(name: str, intra_view: bool) -> list[str]:
    """Names of a table: one, or one for each modality."""
    return [name] if intra_view else [f"{name}1", f"{name}2"]


def chosen_tables(given: dict[str, Tensor], names: tuple[str, ...], intra_view: bool) -> list[dict[str, Tensor]]:
    """The given tables, grouped by each of ``names``.

    Raises:
        TypeError: A table is missing or superfluous.
    """
    wanted = [table_names(name, intra_view) for name in names]
    if set(given) != set().union(*wanted):
        listed = " and ".join(table for tables in wanted for table in tables)
        raise TypeError(f"load_table needs {listed} in addition to visited, got {', '.join(given) or 'none'}.")
    return [{table: given[table] for table in tables} for tables in wanted]
