"""The base of what is minimised: hyperparameters, and state if there is any."""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from contrastive_zoo.batch import Batch
from contrastive_zoo.checks import check_number, shape
from contrastive_zoo.tables import PreciseModule


def as_temperature(value: object) -> Tensor:
    """Return a temperature as a 0-dim tensor; a float becomes one in float64 on the host.

    Raises:
        TypeError: ``value`` is neither a number nor a tensor.
        ValueError: It is not positive and finite (seen for numbers and tensors on the CPU), or has dimensions.
    """
    if not isinstance(value, Tensor):
        return torch.tensor(check_number("temperature", value, low=0, open_low=True), dtype=torch.float64)
    if value.dim() != 0:
        raise ValueError(f"temperature must be a number or a 0-dim tensor, got shape {shape(value)}.")
    if value.device.type == "cpu":
        check_number("temperature", float(value.detach()), low=0, open_low=True)
    return value


class Objective(PreciseModule):
    """One value per anchor from a `Batch`; subclasses implement `forward` and may hold state.

    A temperature given as a number is kept as a 0-dim tensor on the host: setting it anew neither recompiles nor waits.
    Floating-point state stays in float32 or better whatever `.half()` or `.bfloat16()` say.
    """

    def __init__(self, temperature: float | Tensor | None = None) -> None:
        super().__init__()
        self._temperature = None if temperature is None else as_temperature(temperature)

    @property
    def temperature(self) -> Tensor:
        """0-dim tensor; the parameter itself if one was given."""
        if self._temperature is None:
            raise AttributeError("this objective has no temperature.")
        return self._temperature

    def set_temperature(self, value: float | Tensor) -> None:
        """Replace the temperature from the next call on."""
        current = self.temperature
        replacement = as_temperature(value)
        if not isinstance(value, Tensor) and not current.requires_grad and current.is_cpu:
            current.fill_(replacement)
        else:
            del self._temperature
            self._temperature = replacement

    def forward(self, batch: Batch) -> Tensor:
        """Loss of each anchor, (B, anchors per sample), -inf where an anchor drops out; or one number."""
        raise NotImplementedError(f"{type(self).__name__} must implement forward(batch).")


class FunctionObjective(Objective):
    """A stateless objective made of a function of a batch and keyword parameters."""

    def __init__(self, function: Callable[..., Tensor], parameters: dict[str, Any]) -> None:
        super().__init__(parameters.get("temperature"))
        self.function = function
        self.parameters_given = {name: value for name, value in parameters.items() if name != "temperature"}

    def forward(self, batch: Batch) -> Tensor:
        """See `Objective.forward`."""
        if self._temperature is None:
            return self.function(batch, **self.parameters_given)
        return self.function(batch, temperature=self._temperature, **self.parameters_given)


def keyword_parameters(build: Callable[..., Any]) -> dict[str, Any]:
    """Keyword-only parameters of a function or class with their defaults; `inspect.Parameter.empty` without."""
    try:
        signature = inspect.signature(build)
    except ValueError:  # classes written in C have none
        return {}
    return {
        name: parameter.default
        for name, parameter in signature.parameters.items()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    }


class StepCounter(nn.Module):
    """Counts training steps on the host, wherever the rest of the module lives; saved with the state.

    It is no buffer: wrappers that broadcast or average buffers have nothing to do with it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.value = torch.zeros((), dtype=torch.int64)

    def advance(self) -> None:
        """Count one step."""
        self.value.add_(1)

    def get_extra_state(self) -> Tensor:
        """The count, for `state_dict`."""
        return self.value.clone()

    def set_extra_state(self, state: Tensor) -> None:
        """Take over a saved count."""
        self.value.copy_(state)
