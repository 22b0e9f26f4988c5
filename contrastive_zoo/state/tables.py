"""State per sample: logarithms of moving averages, and embeddings."""

import math
from typing import Any

import torch
from torch import Tensor

from contrastive_zoo.checks import as_tensor, check_count, check_shape
from contrastive_zoo.operators import operator
from contrastive_zoo.state.modules import PreciseModule
from contrastive_zoo.state.saved import check_table


@operator("contrastive_zoo::rows_of_table", "(Tensor table, Tensor index) -> Tensor")
def rows_of_table(table: Tensor, index: Tensor) -> Tensor:
    """``table[index]`` as an opaque operator: else a compiled backward pass could read the table again, after its update."""
    return table[index]


@rows_of_table.register_fake
def _(table: Tensor, index: Tensor) -> Tensor:
    return table.new_empty(index.shape[0], *table.shape[1:])


class LogAverage(PreciseModule):
    """Moving averages of a positive quantity per sample, kept as logarithms.

    An unvisited sample has no average: its first value becomes the average, regardless of the weight.

    Args:
        num_samples: Size of the dataset.
        sides: Averages per sample.
    """

    log_value: Tensor
    visited: Tensor

    def __init__(self, num_samples: int, sides: int = 1) -> None:
        super().__init__()
        self.register_table("log_value", num_samples, sides, fill=0.0, per_sample=True)
        self.register_table("visited", num_samples, fill=False, per_sample=True)

    def blend(self, index: Tensor, log_new: Tensor, weight: float | Tensor) -> Tensor:
        """Logarithm of (1 - weight) old + weight new, (B, anchors); -inf if the logarithm of new is -inf.

        Args:
            index: (B,) samples.
            log_new: (B, anchors) logarithms of new values; all anchors share one average, or each has its own.
            weight: Weight of the new value, in (0, 1].
        """
        weight = as_tensor(weight).double()
        old, visited = rows_of_table(self.log_value, index), rows_of_table(self.visited, index)
        blended = torch.logaddexp(old + torch.log1p(-weight), log_new + torch.log(weight))
        return torch.where(visited[:, None] & torch.isfinite(log_new), blended.to(log_new.dtype), log_new)

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
        self.log_value[index] = torch.where(sound[:, None], log_value, self.log_value[index])
        self.visited[index] = self.visited[index] | sound

    def move(self, index: Tensor, log_new: Tensor, weight: float | Tensor, first: Tensor) -> Tensor:
        """Blend new values in and store the averages; an average shared by several anchors is the mean over the anchors.

        Args:
            index: (B,) samples.
            log_new: (B, anchors) logarithms of new values, as in `blend`.
            weight: Weight of the new values.
            first: (B,) position of the first row of each row's sample.

        Returns:
            (B, anchors) logarithms of the averages before the mean over anchors, as `blend` returns them.
        """
        log_value = self.blend(index, log_new, weight)
        shared = self.log_value.shape[1] == 1
        sides = torch.logsumexp(log_value, 1, keepdim=True) - math.log(log_value.shape[1]) if shared else log_value
        self.write(index, sides, first)
        return log_value

    def natural(self) -> list[Tensor]:
        """The averages of each side, (num_samples,) float64 on the CPU; 0 for unvisited samples."""
        return _sides(torch.where(self.visited[:, None], self.log_value.double().exp(), 0))

    @torch.no_grad()
    def load_natural(self, visited: Tensor, **sides: Tensor) -> None:
        """Load averages in natural (not log) scale, one named tensor for each side.

        Raises:
            ValueError: A size does not match the table, or a visited sample has an average that is not positive.
        """
        check_natural(visited, sides, len(self.visited), positive=True)
        self.log_value.copy_(_stacked(visited, sides, self.log_value, 1.0).log())
        self.visited.copy_(visited)


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

    def of(self, index: Tensor, visited: Tensor, start: Tensor, dtype: torch.dtype) -> Tensor:
        """(B, sides) temperatures of the samples ``index``; ``start``, a 0-dim tensor, for unvisited samples."""
        own = rows_of_table(self.value, index).to(dtype)
        # Multiplication moves a number from the host to an accelerator without a synchronisation.
        return torch.where(rows_of_table(visited, index)[:, None], own, torch.ones_like(own) * start)

    @torch.no_grad()
    def descend(self, index: Tensor, temperature: Tensor, gradient: Tensor, first: Tensor) -> None:
        """Update the temperatures of a batch, except for non-finite gradients; first rows are used as in `write`.

        Args:
            index: (B,) samples.
            temperature: (B, sides) current temperatures.
            gradient: (B, sides) gradients with respect to the temperatures.
            first: (B,) position of the first row of each row's sample.
        """
        temperature, gradient = temperature.to(self.value)[first], gradient.to(self.value)[first]
        sound = torch.isfinite(gradient).all(1, keepdim=True)
        averaged = self.momentum * self.gradient[index] + (1 - self.momentum) * gradient
        moved = (temperature - self.rate * averaged).clamp(self.lowest, self.highest)
        self.value[index] = torch.where(sound, moved, self.value[index])
        self.gradient[index] = torch.where(sound, averaged, self.gradient[index])

    def natural(self, visited: Tensor, start: float) -> tuple[list[Tensor], list[Tensor]]:
        """Temperatures and gradients of each side, (num_samples,) float64 on the CPU; ``start`` and 0 if unvisited."""
        return _sides(torch.where(visited[:, None], self.value.double(), start)), _sides(self.gradient)

    @torch.no_grad()
    def load_natural(self, visited: Tensor, temperatures: dict[str, Tensor], gradients: dict[str, Tensor]) -> None:
        """Load the result of `natural`, by name.

        Raises:
            ValueError: A size does not match the table, or a visited sample has a temperature that is not positive or a
                gradient that is not finite.
        """
        check_natural(visited, temperatures, len(self.value), positive=True)
        check_natural(visited, gradients, len(self.value), positive=False)
        self.value.copy_(_stacked(visited, temperatures, self.value, 1.0))
        self.gradient.copy_(_stacked(visited, gradients, self.gradient, 0.0))


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


def _stacked(visited: Tensor, sides: dict[str, Tensor], table: Tensor, unvisited: float) -> Tensor:
    """The tensors of all sides as one table (num_samples, sides) in float64."""
    values = torch.stack([tensor.to(table.device, torch.float64) for tensor in sides.values()], 1)
    return torch.where(visited.to(table.device, torch.bool)[:, None], values, unvisited)


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
        """Load embeddings of any width."""
        if rows.shape[-1] != self.rows.shape[-1]:
            self._allocate(rows.shape[-1])
        self.rows.copy_(rows)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        saved = state_dict.get(f"{prefix}rows")
        if isinstance(saved, Tensor) and saved.shape[:-1] == self.rows.shape[:-1] and saved.shape != self.rows.shape:
            self._allocate(saved.shape[-1])
        super()._load_from_state_dict(state_dict, prefix, *args)
