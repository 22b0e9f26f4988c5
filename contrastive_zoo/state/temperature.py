"""The temperature of a loss: a number, a learned parameter, or a tensor computed from parameters outside the loss."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from contrastive_zoo.checks import check_magnitude, check_number, shape
from contrastive_zoo.devices import batched, transforming
from contrastive_zoo.state.bounded import within
from contrastive_zoo.state.modules import at_least_float32

# A learned temperature is clamped to this interval; at the ends, gradients that point outwards are dropped.
LOWEST, HIGHEST = 0.001, 10.0


def as_temperature(value: object) -> Tensor:
    """Return a temperature as a tensor of one entry.

    A tensor that requires a gradient is returned itself. A number, or a constant tensor on the CPU, becomes a new tensor in
    float64 on the CPU; a constant tensor on an accelerator is copied there, which avoids a synchronisation.

    Raises:
        TypeError: ``value`` is neither a number nor a tensor.
        ValueError: ``value`` is not positive and finite, or is a parameter outside [0.001, 10] (checked for numbers and for
            tensors on the CPU), or has more than one entry.
    """
    if not isinstance(value, Tensor):
        return _constant(check_number("temperature", value, low=0, open_low=True))
    if tuple(value.shape) not in ((), (1,)):
        raise ValueError(f"temperature must be a number or a tensor of shape () or (1,), got shape {shape(value)}.")
    learned, known = isinstance(value, nn.Parameter), value.is_cpu and not batched(value)
    if known and learned:
        check_number("temperature (a parameter)", value.item(), low=LOWEST, high=HIGHEST)
    elif known:
        number = check_number("temperature", value.item(), low=0, open_low=True)
    if learned or value.requires_grad:
        return value
    return _constant(number) if known else value.detach().to(at_least_float32(value.dtype)).clone().reshape(())


def _constant(number: float) -> Tensor:
    check_magnitude("temperature", number, divisor=True)
    with torch.inference_mode(False):  # inference tensors are read-only outside that mode
        return torch.tensor(number, dtype=torch.float64, device="cpu")


class Temperature(nn.Module):
    """Holds a temperature of any kind, and saves it under one key.

    A number stays on the host: changing it triggers neither a recompilation nor a synchronisation. For rows on an accelerator
    formulas use a copy there, which a new number overwrites, so a CUDA graph sees the new number. A tensor with an autograd
    graph, such as ``1 / logit_scale``, is used until the next assignment; the state dict keeps the previous value.

    Args:
        value: A number, a parameter, or a tensor; of shape () or (1,).

    Attributes:
        value: The temperature as a tensor.
    """

    value: Tensor

    def __init__(self, value: float | Tensor) -> None:
        super().__init__()
        self._kept: Tensor | None = None
        self._copy: Tensor | None = None
        self._place(as_temperature(value))
        self._first = self.number()

    def set(self, value: float | Tensor) -> None:
        """Replace the temperature from the next call on."""
        replacement, current = as_temperature(value), self.value
        if not (_is_constant(current) and _is_constant(replacement)) or current.is_meta:
            self._place(replacement)
        elif replacement.device == current.device:
            current.copy_(replacement)
        elif replacement.is_cpu:  # in place on an accelerator too, for CUDA graphs that read the temperature
            current.fill_(replacement.item())
        else:
            self._place(replacement)
        self._refresh()

    def follow(self, x: Tensor) -> None:
        """Be where rows are, for the formulas of the rows: a number has a copy on an accelerator."""
        if self._copy is not None or not x.is_cpu:
            self._place_copy(x.device)

    def _place_copy(self, device: torch.device) -> None:
        if device.type == "cpu" or not self._is_number:
            self._copy = None
        elif self._copy is None or self._copy.device != device:
            self._copy = self.value.to(device, non_blocking=True)

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> "Temperature":
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self._is_number:  # now rather than in the first step, after which compiled code would be compiled again
            self._place_copy(fn(self.value.clone()).device)
        return self

    @property
    def _is_number(self) -> bool:
        return self.value.is_cpu and _is_constant(self.value)

    def _refresh(self) -> None:
        """Overwrite the copy with the current number."""
        if self._copy is not None and self._is_number:
            self._copy.fill_(self.value.item())
        else:
            self._copy = None

    def bounded(self) -> Tensor:
        """The temperature for use in formulas, a 0-dim tensor; clamped to [0.001, 10] if it requires a gradient."""
        value = self.value if self._copy is None else self._copy
        if value.requires_grad or isinstance(value, nn.Parameter):
            return within(value.to(at_least_float32(value.dtype)), LOWEST, HIGHEST)
        return value.clone()  # the original may be changed before the backward pass

    def in_formulas(self) -> float | Tensor:
        """The temperature as a number, if that is what it is and rows are on the host; else as `bounded` returns it.

        Compiled code gets a tensor, because a new number would compile it again.
        """
        value = self.value
        hidden = torch.compiler.is_compiling() or transforming()
        if hidden or self._copy is not None or value.requires_grad or type(value) is not Tensor or not value.is_cpu:
            return self.bounded()
        return value.item()

    def number(self) -> float | None:
        """The saved temperature; None if reading it would need a synchronisation."""
        return self._saved.item() if self._saved.is_cpu and not batched(self._saved) else None

    def agreed(self) -> object:
        """The value that must be equal on all processes: a number, or the kind of a tensor whose value is not compared."""
        if isinstance(self.value, nn.Parameter):
            return "a parameter"
        return "a tensor" if self._kept is not None or not self.value.is_cpu else self.number()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Restore the first temperature.

        Raises:
            RuntimeError: The first temperature was a tensor whose value is unknown, for example on the meta device.
        """
        if self._first is None:
            raise RuntimeError(
                "the first value of the temperature is not known, because it was a tensor on another device than the CPU. "
                "Load a state_dict, or set loss_fn.temperature."
            )
        if self._kept is not None:
            self._place(as_temperature(self._first))
        self.value.fill_(self._first)
        self._refresh()

    @property
    def _saved(self) -> Tensor:
        return self.value if self._kept is None else self._kept

    def _place(self, value: Tensor) -> None:
        kept = None
        if not value.is_leaf:
            kept = (self._saved if hasattr(self, "value") else value).detach().clone()
        if hasattr(self, "value"):
            del self.value
        self.value, self._kept = value, kept

    def _restore(self, value: Tensor) -> None:
        if self._kept is None:
            self.value.copy_(value.reshape(self.value.shape))
        else:
            self._place(value.detach().clone())
        self._refresh()

    def __getstate__(self) -> dict[str, Any]:
        """Leave an autograd graph and a copy on an accelerator out of copies and pickles."""
        kept = {} if self._kept is None else {"value": self._kept, "_kept": None}
        return {**self.__dict__, **kept, "_copy": None}

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if not isinstance(self.value, nn.Parameter):
            destination[f"{prefix}value"] = self._saved.detach()

    @torch.no_grad()
    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        key = f"{prefix}value"
        if key not in state_dict:  # checkpoints of version 0.1 hold no number
            return
        saved = state_dict[key]
        if isinstance(self.value, nn.Parameter) and isinstance(saved, Tensor):
            if saved.is_complex() or (saved.is_cpu and not bool(saved.isfinite().all())):
                given = "NaN" if bool(saved.isnan().any()) else saved.tolist()
                args[-1].append(f"{key}: temperature must be a number, got {given}.")
                return
            match_shapes(self, state_dict, prefix)
            state_dict[key] = state_dict[key].to(self.value.dtype)
            super()._load_from_state_dict(state_dict, prefix, *args)
            return
        if isinstance(saved, Tensor):
            # A number is saved in float64. A parameter counts as the nearest value in its interval.
            learned = saved.is_floating_point() and saved.dtype != torch.float64
            known = learned and bool((saved.isfinite() & (saved > 0)).all())
            saved = saved.detach().clamp(LOWEST, HIGHEST) if known else saved.detach()
        try:
            self._restore(as_temperature(saved))
        except (TypeError, ValueError) as error:
            args[-1].append(f"{key}: {error}")


def _is_constant(value: Tensor) -> bool:
    return not value.requires_grad and not isinstance(value, nn.Parameter)


def match_shapes(module: nn.Module, state_dict: dict[str, Any], prefix: str) -> None:
    """Let parameters of shape () and (1,) load each other, in place in a state dict."""
    for name, parameter in module.named_parameters(recurse=False):
        saved = state_dict.get(prefix + name)
        if isinstance(saved, Tensor) and saved.numel() == 1 == parameter.numel():
            state_dict[prefix + name] = saved.reshape(parameter.shape)
