"""Numbers that are saved with the state and are no buffers: a step counter and a seed."""

from typing import Any

import torch
from torch import Tensor, nn

from contrastive_zoo.checks import check_count
from contrastive_zoo.devices import beside


class _Counted(nn.Module):
    """A number in the state dict, checked when it is loaded."""

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        try:
            super()._load_from_state_dict(state_dict, prefix, *args)
        except (TypeError, ValueError) as error:
            args[-1].append(f"{prefix}_extra_state: {error}")


class StepCounter(_Counted):
    """Counts training steps, on the host unless `place` moves the counter, and is saved with the state.

    The counter is no buffer, so wrappers neither broadcast nor average it, and on the host reading it needs no synchronisation.
    """

    def __init__(self) -> None:
        super().__init__()
        with torch.inference_mode(False):  # inference tensors are read-only outside that mode
            self.value = torch.zeros((), dtype=torch.int64, device="cpu")

    def place(self, like: Tensor) -> None:
        """Count on the device of a tensor from now on."""
        if self.value.device != like.device:
            self.value = beside(self.value, like)

    def advance(self) -> None:
        """Count one step."""
        self.value.add_(1)

    def reset_parameters(self) -> None:
        """Count from 0 again."""
        self.value.zero_()

    def get_extra_state(self) -> Tensor:
        """The count, for `state_dict`."""
        return self.value.clone()

    def set_extra_state(self, state: Tensor) -> None:
        """Load a saved count."""
        self.value.fill_(check_count("the saved count of steps", state, low=0))


class Seed(_Counted):
    """The seed of random draws, saved with the state.

    Args:
        value: A whole number from 0 to 2^63 - 1.

    Raises:
        TypeError: ``value`` is not whole.
        ValueError: ``value`` is out of range.
    """

    def __init__(self, value: int) -> None:
        super().__init__()
        self.set(value)
        self._first = self.value

    def set(self, value: int) -> None:
        """Replace the seed."""
        self.value = check_count("seed", value, low=0, high=2**63 - 1)

    def reset_parameters(self) -> None:
        """Restore the first seed."""
        self.value = self._first

    def get_extra_state(self) -> Tensor:
        """The seed, for `state_dict`."""
        return torch.tensor(self.value, dtype=torch.int64, device="cpu")

    def set_extra_state(self, state: Tensor) -> None:
        """Load a saved seed."""
        self.set(check_count("the saved seed", state, low=0))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        state_dict.setdefault(f"{prefix}_extra_state", self.value)  # checkpoints of version 0.1 have no seed
        super()._load_from_state_dict(state_dict, prefix, *args)
