"""Modules with state: checked and precise buffers, and tables per sample that processes may divide."""

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from copy import copy, deepcopy
from dataclasses import replace
from math import prod
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from contrastive_zoo.state.counters import Seed
from contrastive_zoo.state.layout import Layout, is_dtensor, layout_of, whole
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

    Tables that processes divide are buffers only for the methods of this module. Wrappers such as DistributedDataParallel find
    none, and so do not overwrite the rows of one process with those of another.

    Attributes:
        divisible: Whether the module reads and writes tables per sample through `layout` only, so that processes can divide
            them.
        layout: The rows of the tables per sample that this process holds.
    """

    divisible: ClassVar[bool] = False

    def __init__(self) -> None:
        super().__init__()
        self.layout = Layout(0)
        self._fills: dict[str, float] = {}
        self._per_sample: list[str] = []  # in one order on all processes
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
        layout = layout_of(shape[0]) if per_sample and self.divisible else Layout(shape[0] if shape else 0)
        if layout.divided:
            shape = (layout.count, *shape[1:])
        integral = torch.bool if isinstance(fill, bool) else torch.int64
        dtype = at_least_float32(torch.get_default_dtype()) if isinstance(fill, float) else integral
        with torch.inference_mode(False):  # inference tensors are read-only outside that mode
            self.register_buffer(name, torch.full(shape, fill, dtype=dtype))
        self._fills[name] = fill
        if per_sample:
            self._per_sample.append(name)
            self.layout = layout
            self._hide()

    def _hide(self) -> None:
        """Make divided tables plain attributes."""
        for name in self._per_sample if self.layout.divided else ():
            if name in self._buffers:
                self.__dict__[name] = self._buffers.pop(name)

    @contextmanager
    def _all_buffers(self) -> Iterator[None]:
        """Make divided tables buffers for a while."""
        for name in self._per_sample:
            if name in self.__dict__:
                self._buffers[name] = self.__dict__.pop(name)
        try:
            yield
        finally:
            self._hide()

    @torch.no_grad()
    def divide(self, layout: Layout) -> None:
        """Keep a share of the rows of all tables per sample, also of submodules.

        Raises:
            ValueError: A module with tables per sample is not divisible, or has another layout already.
        """
        for part in self.precise_parts():
            if part._per_sample and not part.divisible:
                raise ValueError(f"{type(part).__name__} has tables that processes cannot divide. Use tables='replicated'.")
            if part.layout.divided and part.layout != layout:
                raise ValueError(f"the tables of {type(part).__name__} are sharded already, for another loss. Make a new one.")
            for name in part._per_sample if not part.layout.divided else ():
                part._buffers[name] = layout.own(part.get_buffer(name)).clone()
            if part._per_sample:
                part.layout = layout
                part._hide()

    def divided_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the whole tables that processes divide, also of submodules, by name."""
        found = {}
        for prefix, part in self.named_modules():
            if isinstance(part, PreciseModule) and part.layout.divided:
                for name in part._per_sample:
                    shape = part.layout.size, *getattr(part, name).shape[1:]
                    found[f"{prefix}.{name}".lstrip(".")] = shape
        return found

    def divided_bytes(self) -> int:
        """Size of the whole tables that processes divide."""
        sizes = [
            part.layout.size * prod(getattr(part, name).shape[1:]) * getattr(part, name).element_size()
            for part in self.precise_parts()
            if part.layout.divided
            for name in part._per_sample
        ]
        return sum(sizes)

    def per_sample_tables(self) -> list[Tensor]:
        """The rows of this module's own tables per sample that this process holds."""
        return [getattr(self, name) for name in self._per_sample]

    def precise_parts(self) -> "list[PreciseModule]":
        """This module and its submodules, but those that have no such tables."""
        return [part for part in self.modules() if isinstance(part, PreciseModule)]

    @torch.no_grad()
    def resize(self, num_samples: int) -> None:
        """Add entries for new samples to the tables per sample, also of submodules."""
        layout = replace(self.layout, size=num_samples)
        for name in self._per_sample:
            old = getattr(self, name)
            with torch.inference_mode(False):
                new = old.new_full((layout.count, *old.shape[1:]), self._fills[name])
            self.layout.move(old, new, layout)
            setattr(self, name, new)
        if self._per_sample:
            self.layout = layout
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
            getattr(self, name).fill_(fill)

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> "PreciseModule":
        with self._all_buffers():
            before = dict(self._buffers)
            super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
            for name, buffer in self._buffers.items():
                kept = before[name]
                if buffer is not None and kept is not None and buffer.dtype in HALF:
                    self._buffers[name] = kept.to(buffer.device)
        return self

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        with self._all_buffers():
            super()._save_to_state_dict(destination, prefix, keep_vars)
        for name in self._per_sample if self.layout.divided else ():
            destination[prefix + name] = self.layout.as_dtensor(destination[prefix + name])

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        with self._all_buffers():
            self._load_buffers(state_dict, prefix, *args)

    def _load_buffers(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        try:
            for name in self._buffers:
                saved = state_dict.get(prefix + name)
                if isinstance(saved, Tensor):
                    state_dict[prefix + name] = saved = self._own_of_saved(name, saved)
                    self.make_room(name, saved)
        except ValueError as error:
            args[-1].append(f"{prefix}{error}")
            return
        given = {key.removeprefix(prefix): value for key, value in state_dict.items() if key.startswith(prefix)}
        try:
            held = {name: value for name, value in given.items() if isinstance(value, Tensor) and not is_dtensor(value)}
            self.check_saved({name: value for name, value in held.items() if not value.is_meta})
        except (TypeError, ValueError) as error:
            args[-1].append(f"{prefix}{error}")
            return
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _own_of_saved(self, name: str, saved: Tensor) -> Tensor:
        """A table as this module holds it: in single precision at least, and the rows of this process."""
        divided = self.layout.divided and name in self._per_sample
        saved = self.layout.own_of_saved(name, saved) if divided else whole(saved)
        return saved.float() if saved.dtype in HALF else saved

    def make_room(self, name: str, saved: Tensor) -> None:
        """Prepare a table for what is about to be loaded, the rows of this process; subclasses may allocate."""

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
