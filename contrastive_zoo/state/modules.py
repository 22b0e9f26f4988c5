"""Modules with state: checked and precise buffers, a step counter and a seed."""

from collections import OrderedDict
from collections.abc import Callable, Mapping
from copy import copy, deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from contrastive_zoo.checks import check_count
from contrastive_zoo.devices import beside
from contrastive_zoo.state.saved import check_table

HALF = (torch.float16, torch.bfloat16)


def at_least_float32(dtype: torch.dtype) -> torch.dtype:
    """The dtype, or float32 if the dtype is half precision."""
    return torch.float32 if dtype in HALF else dtype


class AllOrNothing(nn.Module):
    """A module whose `load_state_dict` changes nothing if it raises."""

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """As in `torch.nn.Module`; a state that is refused leaves the module as it is."""
        trial = copy(state_dict)
        if isinstance(trial, OrderedDict) and hasattr(trial, "_metadata"):
            trial._metadata = deepcopy(trial._metadata)  # where PyTorch notes that entries were assigned
        nn.Module.load_state_dict(_without_data(self), trial, strict, True)
        return super().load_state_dict(state_dict, strict, assign)


def _without_data(module: nn.Module) -> nn.Module:
    """A copy of a module and its submodules, with tensors on the meta device."""
    twin = copy(module)
    tensors = {name: value.to("meta") for name, value in vars(twin).items() if isinstance(value, Tensor)}
    parameters = {name: None if value is None else _empty(value) for name, value in module._parameters.items()}
    buffers = {name: None if value is None else value.to("meta") for name, value in module._buffers.items()}
    modules = {name: None if child is None else _without_data(child) for name, child in module._modules.items()}
    vars(twin).update(tensors, _parameters=parameters, _buffers=buffers, _modules=modules)
    return twin


def _empty(parameter: nn.Parameter) -> nn.Parameter:
    return nn.Parameter(parameter.detach().to("meta"), requires_grad=parameter.requires_grad)


class PreciseModule(AllOrNothing):
    """A module whose floating-point buffers stay in float32 or better, and whose loaded tables are checked.

    ``.half()``, ``.bfloat16()``, the default dtype and the dtype of a checkpoint do not change the dtype of buffers.
    """

    def __init__(self) -> None:
        super().__init__()
        self._fills: dict[str, float] = {}
        self._per_sample: set[str] = set()
        self._seed: Seed | None = None

    def register_table(self, name: str, *shape: int, fill: float, per_sample: bool = False) -> None:
        """Register a buffer whose entries all start as ``fill``, and which `reset_parameters` restores.

        Args:
            name: Name of the buffer.
            *shape: Shape of the buffer.
            fill: Initial value. A bool gives a buffer of dtype bool, an int one of dtype int64, and a float one of the default
                dtype, float32 at least.
            per_sample: Whether the first dimension counts the samples of the dataset, so that `resize` changes it.
        """
        integral = torch.bool if isinstance(fill, bool) else torch.int64
        dtype = at_least_float32(torch.get_default_dtype()) if isinstance(fill, float) else integral
        with torch.inference_mode(False):  # inference tensors are read-only outside that mode
            self.register_buffer(name, torch.full(shape, fill, dtype=dtype))
        self._fills[name] = fill
        if per_sample:
            self._per_sample.add(name)

    @torch.no_grad()
    def resize(self, num_samples: int) -> None:
        """Add entries for new samples to the tables per sample, also of submodules."""
        for name in self._per_sample:
            old = self.get_buffer(name)
            with torch.inference_mode(False):
                new = old.new_full((num_samples, *old.shape[1:]), self._fills[name])
            new[: len(old)] = old
            setattr(self, name, new)
        for part in self.children():
            if isinstance(part, PreciseModule):
                part.resize(num_samples)

    @property
    def seed(self) -> int:
        """Random seed; a seed that is assigned in the constructor becomes part of the state."""
        if self._seed is None:
            raise AttributeError(f"{type(self).__name__} draws nothing, so it has no seed.")
        return self._seed.value

    @seed.setter
    def seed(self, value: int) -> None:
        if self._seed is None:
            self._seed = Seed(value)
        else:
            self._seed.set(value)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Restore the initial values of this module's own buffers, for example after ``to_empty``."""
        for name, fill in self._fills.items():
            self.get_buffer(name).fill_(fill)

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> "PreciseModule":
        before = dict(self._buffers)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, buffer in self._buffers.items():
            kept = before[name]
            if buffer is not None and kept is not None and buffer.dtype in HALF:
                self._buffers[name] = kept.to(buffer.device)
        return self

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        for name in self._buffers:
            saved = state_dict.get(prefix + name)
            if isinstance(saved, Tensor) and saved.dtype in HALF:
                state_dict[prefix + name] = saved.float()
        given = {key.removeprefix(prefix): value for key, value in state_dict.items() if key.startswith(prefix)}
        try:
            self.check_saved({name: value for name, value in given.items() if isinstance(value, Tensor) and not value.is_meta})
        except (TypeError, ValueError) as error:
            args[-1].append(f"{prefix}{error}")
            return
        super()._load_from_state_dict(state_dict, prefix, *args)

    def check_saved(self, saved: dict[str, Tensor]) -> None:
        """Check what is about to be loaded; subclasses add what they know of their tables.

        Args:
            saved: Entries of a state for this module and its submodules, by name; of any shape.

        Raises:
            TypeError: A table or parameter holds values of another kind: floating-point, integer or bool.
            ValueError: A table or parameter holds NaN or infinity. Messages begin with the name of the entry.
        """
        for name in (*self._fills, *self._parameters):
            own = self._buffers.get(name, self._parameters.get(name))
            if name in saved and own is not None:
                check_table(name, saved[name], own)


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
