"""Base classes of objectives: hyperparameters and state."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from contrastive_zoo.batch.batch import Batch
from contrastive_zoo.state.modules import PreciseModule
from contrastive_zoo.state.temperature import Temperature, match_shapes


class Objective(PreciseModule):
    """Computes one value per anchor from a `Batch`; subclasses implement `forward` and may hold state.

    Buffers made by `register_table` stay in float32 or better, regardless of `.half()`, `.bfloat16()`, the default dtype or a
    checkpoint, and `reset_parameters` restores them. The temperature is part of the state, whether it is a number or a
    parameter.

    Args:
        temperature: A positive number, a tensor, or a parameter to be learned; of shape () or (1,).

    Raises:
        TypeError: The temperature is neither a number nor a tensor.
        ValueError: The temperature is out of range, or has more than one entry.
    """

    def __init__(self, temperature: float | Tensor | None = None) -> None:
        super().__init__()
        self._temperature = None if temperature is None else Temperature(temperature)

    @property
    def temperature(self) -> Tensor:
        """The temperature for use in formulas, a 0-dim tensor; a learned temperature is clamped to [0.001, 10]."""
        return self.held_temperature.bounded()

    @property
    def held_temperature(self) -> Temperature:
        """The module that holds the temperature.

        Raises:
            AttributeError: The objective has no temperature.
        """
        if self._temperature is None:
            raise AttributeError("this objective has no temperature.")
        return self._temperature

    def agreement(self) -> dict[str, object]:
        """Values that must be equal on all processes in this step, by name, in addition to the objective's parameters.

        `agreement` is called before processes exchange anything, so an error here is raised on all processes.
        """
        return {}

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        match_shapes(self, state_dict, prefix)
        if f"{prefix}_temperature" in state_dict:  # where version 0.1 saved a parameter
            state_dict[f"{prefix}_temperature.value"] = state_dict.pop(f"{prefix}_temperature")
        super()._load_from_state_dict(state_dict, prefix, *args)

    def forward(self, batch: Batch) -> Tensor:
        """Loss of each anchor, (B, anchors per sample), -inf for an anchor that is left out; or one number."""
        raise NotImplementedError(f"{type(self).__name__} must implement forward(batch).")


class FunctionObjective(Objective):
    """A stateless objective made of a function of a batch and keyword parameters."""

    def __init__(self, function: Callable[..., Tensor], parameters: dict[str, Any]) -> None:
        super().__init__(parameters.get("temperature"))
        self.function = function
        # Others get a 0-dim tensor, whatever the temperature is; a number saves calls.
        self._takes_number = function.__annotations__.get("temperature") == Tensor | float
        self.parameters_given = {name: value for name, value in parameters.items() if name != "temperature"}

    def forward(self, batch: Batch) -> Tensor:
        """See `Objective.forward`."""
        held = self._temperature
        if held is None:
            return self.function(batch, **self.parameters_given)
        temperature = held.in_formulas() if self._takes_number else held.bounded()
        return self.function(batch, temperature=temperature, **self.parameters_given)
