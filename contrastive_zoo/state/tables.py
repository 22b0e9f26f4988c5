"""State per sample: logarithms of moving averages, and embeddings."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from contrastive_zoo.checks import as_tensor, check_count, check_shape
from contrastive_zoo.state.layout import Layout
from contrastive_zoo.state.modules import PreciseModule
from contrastive_zoo.state.saved import check_table


class Averages(NamedTuple):
    """Rows of `LogAverage`: logarithms of averages, (B, sides), and whether each sample was visited, (B,)."""

    log_value: Tensor
    visited: Tensor


class LogAverage(PreciseModule):
    """Moving averages of a positive quantity per sample, kept as logarithms.

    An unvisited sample has no average: its first value becomes the average, regardless of the weight.

    Args:
        num_samples: Size of the dataset.
        sides: Averages per sample.
    """

    divisible = True

    log_value: Tensor
    visited: Tensor

    def __init__(self, num_samples: int, sides: int = 1) -> None:
        super().__init__()
        self.register_table("log_value", num_samples, sides, fill=0.0, per_sample=True)
        self.register_table("visited", num_samples, fill=False, per_sample=True)

    def read(self, index: Tensor) -> Averages:
        """The averages of the samples ``index``."""
        return Averages(*self.layout.read(index, self.log_value, self.visited))

    @staticmethod
    def blend(old: Averages, log_new: Tensor, weight: float | Tensor) -> Tensor:
        """Logarithm of (1 - weight) old + weight new, (B, anchors); -inf if the logarithm of new is -inf.

        Args:
            old: Averages of B samples.
            log_new: (B, anchors) logarithms of new values; all anchors share one average, or each has its own.
            weight: Weight of the new value, in (0, 1].
        """
        weight = as_tensor(weight).double()
        blended = torch.logaddexp(old.log_value + torch.log1p(-weight), log_new + torch.log(weight))
        return torch.where(old.visited[:, None] & torch.isfinite(log_new), blended.to(log_new.dtype), log_new)

    @torch.no_grad()
    def write(self, index: Tensor, log_value: Tensor, first: Tensor) -> None:
        """Store new averages, except non-finite ones; if a sample appears twice in the batch, its first row is used.

        Args:
            index: (B,) samples.
            log_value: (B, sides) logarithms.
            first: (B,) position of the first row of each row's sample.
        """
        log_value = log_value.to(self.log_value)[first]
        sound = torch.isfinite(log_value).all(1)
        self.layout.write(self.log_value, index, log_value, sound[:, None])
        self.layout.write(self.visited, index, sound, sound)

    def move(self, index: Tensor, old: Averages, log_new: Tensor, weight: float | Tensor, first: Tensor) -> Tensor:
        """Blend new values in and store the averages; an average shared by several anchors is the mean over the anchors.

        Args:
            index: (B,) samples.
            old: Their averages.
            log_new: (B, anchors) logarithms of new values, as in `blend`.
            weight: Weight of the new values.
            first: (B,) position of the first row of each row's sample.

        Returns:
            (B, anchors) logarithms of the averages before the mean over anchors, as `blend` returns them.
        """
        log_value = self.blend(old, log_new, weight)
        shared = self.log_value.shape[1] == 1
        sides = torch.logsumexp(log_value, 1, keepdim=True) - math.log(log_value.shape[1]) if shared else log_value
        self.write(index, sides, first)
        return log_value

    def held(self, index: Tensor | None) -> Averages:
        """The averages of the samples ``index``, or of all samples."""
        return Averages(*self.layout.held(index, self.log_value, self.visited))

    @staticmethod
    def natural(held: Averages) -> list[Tensor]:
        """The averages of each side, (B,) float64 on the CPU; 0 for unvisited samples."""
        return _sides(torch.where(held.visited[:, None], held.log_value.double().exp(), 0))

    @torch.no_grad()
    def load_natural(self, visited: Tensor, **sides: Tensor) -> None:
        """Load averages in natural (not log) scale, one named tensor for each side.

        Raises:
            ValueError: A size does not match the table, or a visited sample has an average that is not positive.
        """
        check_natural(visited, sides, self.layout.size, positive=True)
        self.log_value.copy_(_stacked(self.layout, visited, sides, self.log_value, 1.0).log())
        self.visited.copy_(self.layout.own(visited))


class Temperatures(PreciseModule):
    """Temperatures per sample, updated by gradient descent with momentum.

    Args:
        num_samples: Size of the dataset.
        sides: Temperatures per sample.
        rate: Step size.
        momentum: Fraction of the old gradient that is kept.
        lowest: Lower bound.
        highest: Upper bound.
    """

    divisible = True

    value: Tensor
    gradient: Tensor

    def __init__(self, num_samples: int, sides: int, *, rate: float, momentum: float, lowest: float, highest: float) -> None:
        super().__init__()
        self.rate, self.momentum, self.lowest, self.highest = rate, momentum, lowest, highest
        self.register_table("value", num_samples, sides, fill=1.0, per_sample=True)
        self.register_table("gradient", num_samples, sides, fill=0.0, per_sample=True)

    def check_saved(self, saved: dict[str, Tensor]) -> None:
        """See `PreciseModule.check_saved`."""
        super().check_saved(saved)
        if "value" in saved and not bool((saved["value"] > 0).all()):
            raise ValueError("value holds temperatures that are not positive. The state is broken.")

    @staticmethod
    def current(value: Tensor, visited: Tensor, start: Tensor, dtype: torch.dtype) -> Tensor:
        """(B, sides) temperatures: the rows ``value`` of visited samples; ``start``, a 0-dim tensor, for unvisited ones."""
        own = value.to(dtype)
        # Multiplication moves a number from the host to an accelerator without a synchronisation.
        return torch.where(visited[:, None], own, torch.ones_like(own) * start)

    @torch.no_grad()
    def descend(self, index: Tensor, temperature: Tensor, old: Tensor, gradient: Tensor, first: Tensor) -> None:
        """Update the temperatures of a batch, except for non-finite gradients; first rows are used as in `write`.

        Args:
            index: (B,) samples.
            temperature: (B, sides) current temperatures.
            old: (B, sides) their rows of the table of gradients.
            gradient: (B, sides) gradients with respect to the temperatures.
            first: (B,) position of the first row of each row's sample.
        """
        temperature, gradient = temperature.to(self.value)[first], gradient.to(self.value)[first]
        sound = torch.isfinite(gradient).all(1, keepdim=True)
        averaged = self.momentum * old + (1 - self.momentum) * gradient
        moved = (temperature - self.rate * averaged).clamp(self.lowest, self.highest)
        self.layout.write(self.value, index, moved, sound)
        self.layout.write(self.gradient, index, averaged, sound)

    def natural(self, index: Tensor | None, visited: Tensor, start: float) -> tuple[list[Tensor], list[Tensor]]:
        """Temperatures and gradients of each side, (B,) float64 on the CPU; ``start`` and 0 if not ``visited``.

        Args:
            index: (B,) samples; None for all.
            visited: (B,) whether each was visited.
            start: Temperature of the others.
        """
        value, gradient = self.layout.held(index, self.value, self.gradient)
        return _sides(torch.where(visited[:, None], value.double(), start)), _sides(gradient)

    @torch.no_grad()
    def load_natural(self, visited: Tensor, temperatures: dict[str, Tensor], gradients: dict[str, Tensor]) -> None:
        """Load the result of `natural`, by name.

        Raises:
            ValueError: A size does not match the table, or a visited sample has a temperature that is not positive or a
                gradient that is not finite.
        """
        check_natural(visited, temperatures, self.layout.size, positive=True)
        check_natural(visited, gradients, self.layout.size, positive=False)
        self.value.copy_(_stacked(self.layout, visited, temperatures, self.value, 1.0))
        self.gradient.copy_(_stacked(self.layout, visited, gradients, self.gradient, 0.0))


def check_natural(visited: Tensor, sides: dict[str, Tensor], size: int, *, positive: bool) -> None:
    """Raise unless all tables have an entry per sample, finite, and positive if ``positive``, for every visited sample.

    Raises:
        TypeError: A table is no tensor.
        ValueError: A size or an entry is wrong.
    """
    check_visited(visited, size)
    for name, tensor in sides.items():
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name} must be a tensor, got {type(tensor).__name__}. Pass what table() returned.")
        check_shape(name, tensor, (size,))
        values = tensor[visited.to(tensor.device, torch.bool)]
        if not bool((torch.isfinite(values) & ((values > 0) | (not positive))).all()):
            raise ValueError(f"{name} must be {'positive and ' if positive else ''}finite for every visited sample.")


def check_visited(visited: Tensor, size: int) -> None:
    """Raise unless ``visited`` says for each sample whether the sample was visited."""
    check_table("visited", visited, torch.empty(0, dtype=torch.bool, device="cpu"))
    check_shape("visited", visited, (size,))


def _stacked(layout: Layout, visited: Tensor, sides: dict[str, Tensor], table: Tensor, unvisited: float) -> Tensor:
    """The tensors of all sides as one table (num_samples, sides) in float64, the rows of this process."""
    values = torch.stack([layout.own(tensor).to(table.device, torch.float64) for tensor in sides.values()], 1)
    return torch.where(layout.own(visited).to(table.device, torch.bool)[:, None], values, unvisited)


def _sides(table: Tensor) -> list[Tensor]:
    """Each column in float64 on the CPU."""
    return [side.clone() for side in table.double().cpu().unbind(1)]


class EmbeddingTable(PreciseModule):
    """A table of embeddings. Without ``width``, the first batch or checkpoint sets the width, which is 0 until then.

    Args:
        *shape: Shape of the table without the width: (num_samples, 2), or the length of a queue.
        width: Features per embedding.
        per_sample: As for `register_table`.

    Raises:
        TypeError: ``width`` is not whole.
        ValueError: ``width`` is below 1.
    """

    divisible = True

    rows: Tensor

    def __init__(self, *shape: int, width: int | None = None, per_sample: bool = True) -> None:
        super().__init__()
        width = 0 if width is None else check_count("embedding_dim", width)
        self.register_table("rows", *shape, width, fill=0.0, per_sample=per_sample)

    def fit(self, width: int) -> None:
        """Allocate the table for embeddings of a width, if the table has no width yet.

        Raises:
            ValueError: The table holds embeddings of another width.
        """
        if self.rows.shape[-1] == 0:
            self._allocate(width)
        if self.rows.shape[-1] != width:
            raise ValueError(
                f"z1 has {width} features per row but the table of embeddings has {self.rows.shape[-1]}, as embedding_dim, a "
                "checkpoint or an earlier batch said. One loss serves one encoder: make a new loss for another width."
            )

    def _allocate(self, width: int) -> None:
        with torch.inference_mode(False):  # inference tensors are read-only outside that mode
            self.rows = torch.zeros(*self.rows.shape[:-1], width, dtype=self.rows.dtype, device=self.rows.device)

    @torch.no_grad()
    def load(self, rows: Tensor) -> None:
        """Load embeddings of any width, of all samples."""
        if rows.shape[-1] != self.rows.shape[-1]:
            self._allocate(rows.shape[-1])
        self.rows.copy_(self.layout.own(rows))

    def make_room(self, name: str, saved: Tensor) -> None:
        """See `PreciseModule.make_room`."""
        if saved.shape[:-1] == self.rows.shape[:-1] and saved.shape != self.rows.shape:
            self._allocate(saved.shape[-1])
