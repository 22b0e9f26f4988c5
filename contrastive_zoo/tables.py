"""State per sample: logarithms of moving averages, and embeddings."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from contrastive_zoo.checks import shape


class PreciseModule(nn.Module):
    """A module whose floating-point buffers stay in float32 or better whatever ``.half()`` or ``.bfloat16()`` say."""

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> "PreciseModule":
        before = dict(self._buffers)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, buffer in self._buffers.items():
            kept = before[name]
            if buffer is not None and kept is not None and buffer.dtype in (torch.float16, torch.bfloat16):
                self._buffers[name] = kept.to(buffer.device)
        return self


class LogAverage(PreciseModule):
    """Moving averages of a positive quantity per sample, kept as logarithms.

    Unvisited samples have no average: their first value replaces it whatever its weight.

    Args:
        num_samples: Size of the data set.
        sides: Averages per sample.
    """

    log_value: Tensor
    visited: Tensor

    def __init__(self, num_samples: int, sides: int = 1) -> None:
        super().__init__()
        self.register_buffer("log_value", torch.zeros(num_samples, sides))
        self.register_buffer("visited", torch.zeros(num_samples, dtype=torch.bool))

    def blend(self, index: Tensor, log_new: Tensor, weight: float | Tensor) -> Tensor:
        """Logarithm of (1 - weight) old + weight new, (B, anchors); -inf where new is.

        Args:
            index: (B,) samples.
            log_new: (B, anchors) logarithms of new values; one average serves all anchors, or there is one for each.
            weight: Weight of the new value, in (0, 1].
        """
        weight = torch.as_tensor(weight, dtype=torch.float64)
        blended = torch.logaddexp(self.log_value[index] + torch.log1p(-weight), log_new + torch.log(weight))
        return torch.where(self.visited[index][:, None] & torch.isfinite(log_new), blended.to(log_new.dtype), log_new)

    @torch.no_grad()
    def write(self, index: Tensor, log_value: Tensor, first: Tensor) -> None:
        """Store new averages; non-finite ones are not written, and of a sample twice in the batch the first row counts.

        Args:
            index: (B,) samples.
            log_value: (B, sides) logarithms.
            first: (B,) position of the first row of each row's sample.
        """
        log_value = log_value.to(self.log_value)[first]
        sound = torch.isfinite(log_value).all(1)
        self.log_value[index] = torch.where(sound[:, None], log_value, self.log_value[index])
        self.visited[index] = self.visited[index] | sound

    def natural(self) -> list[Tensor]:
        """The averages of each side, (num_samples,) float64 on the CPU; 0 where unvisited."""
        values = torch.where(self.visited[:, None], self.log_value.double().exp(), 0)
        return [side.clone() for side in values.cpu().unbind(1)]

    @torch.no_grad()
    def load_natural(self, visited: Tensor, **sides: Tensor) -> None:
        """Take over averages in natural scale, one named tensor for each side.

        Raises:
            ValueError: A size is not that of the table, or a visited sample has an average that is not positive.
        """
        for name, tensor in {"visited": visited, **sides}.items():
            if tensor.shape != self.visited.shape:
                raise ValueError(f"{name} must have shape {shape(self.visited)}, got {shape(tensor)}.")
        visited = visited.to(self.visited)
        for side, (name, given) in enumerate(sides.items()):
            values = given.to(self.log_value.device, torch.float64)
            if not bool(((values > 0) & torch.isfinite(values))[visited].all()):
                raise ValueError(f"{name} must be positive and finite for every visited sample.")
            self.log_value[:, side] = torch.where(visited, values, 1).log()
        self.visited.copy_(visited)


class EmbeddingTable(PreciseModule):
    """Embeddings whose width is known from the first batch on; until then, and in an untouched state dict, it is 0.

    Args:
        *shape: What is held besides the width: (num_samples, 2), or the length of a queue.
    """

    rows: Tensor

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.register_buffer("rows", torch.zeros(*shape, 0))

    def fit(self, width: int) -> None:
        """Make room for embeddings of a width.

        Raises:
            ValueError: The table holds embeddings of another width.
        """
        if self.rows.shape[-1] == 0:
            self._allocate(width)
        if self.rows.shape[-1] != width:
            raise ValueError(
                f"z1 has {width} features per row but earlier batches had {self.rows.shape[-1]}. "
                "One loss serves one encoder: make a new loss for another width."
            )

    def _allocate(self, width: int) -> None:
        with torch.inference_mode(False):  # a tensor made in inference mode could never be written to outside of it
            self.rows = torch.zeros(*self.rows.shape[:-1], width, dtype=self.rows.dtype, device=self.rows.device)

    @torch.no_grad()
    def load(self, rows: Tensor) -> None:
        """Take over embeddings of any width."""
        if rows.shape[-1] != self.rows.shape[-1]:
            self._allocate(rows.shape[-1])
        self.rows.copy_(rows)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        saved = state_dict.get(f"{prefix}rows")
        if isinstance(saved, Tensor) and saved.shape[:-1] == self.rows.shape[:-1] and saved.shape != self.rows.shape:
            self._allocate(saved.shape[-1])
        super()._load_from_state_dict(state_dict, prefix, *args)
