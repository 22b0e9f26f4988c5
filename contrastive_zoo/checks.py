"""All argument checks of the package. Errors state the expected value, the given value and a remedy."""

import difflib
import math
import numbers
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor

FLOATING = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
# Outside this range, quotients and products with similarities overflow in float32.
TINY, HUGE = 1e-30, 1e30

C = TypeVar("C")


def shape(tensor: Tensor) -> str:
    """Render the shape of a tensor the way the docs write it: ``(32, 128)``."""
    return str(tuple(int(size) for size in tensor.shape))


def check_name(kind: str, name: object, known: Iterable[str], advice: str = "", guess: bool = True) -> None:
    """Raise if ``name`` is not one of ``known``, naming the closest first if ``guess``, with the advice and all names."""
    names = sorted(known)
    if name in names:
        return
    wanted = name.strip().lower() if isinstance(name, str) and guess else ""
    close = difflib.get_close_matches(wanted, names, n=3, cutoff=0.56)
    hint = f" Did you mean {' or '.join(map(repr, close))}?" if close else ""
    hint += f" {advice}" if advice else ""
    listed = ", ".join([*close, *(known_name for known_name in names if known_name not in close)])
    raise ValueError(f"unknown {kind} {name!r}.{hint} Available: {listed}.")


def check_parameters(owner: str, given: Iterable[str], known: Sequence[str]) -> None:
    """Raise if a keyword is not a parameter of ``owner``, naming the closest and listing all."""
    for name in given:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            raise TypeError(f"{owner} has no parameter {name!r}.{hint} Its parameters: {', '.join(known)}.")


def check_choice(argument: str, value: C, choices: Sequence[C]) -> C:
    """Return the element of ``choices`` with the value and type of ``value``; raise if there is none.

    Raises:
        ValueError: No element of ``choices`` matches.
    """
    for choice in choices:
        if type(value) is type(choice) and value == choice:
            return choice
    scalar = as_scalar(argument, value)
    if scalar is not value:
        return check_choice(argument, scalar, choices)  # type: ignore[return-value]
    raise ValueError(f"{argument} must be one of {', '.join(map(repr, choices))}, got {value!r}.")


def as_scalar(argument: str, value: object) -> object:
    """The Python scalar in a NumPy scalar, 0-dim tensor or 0-dim array; any other value unchanged.

    Raises:
        TypeError: A tensor requires a gradient, which a constant would never get, or is on the meta device.
    """
    if type(value) in (int, float) or getattr(value, "ndim", None) != 0:
        return value
    if isinstance(value, Tensor) and (value.requires_grad or value.is_meta):
        state = "wants a gradient" if value.requires_grad else "is on the meta device"
        raise TypeError(f"{argument} must be a constant number, got a tensor that {state}. Pass a number.")
    scalar: object = value.item()  # type: ignore[attr-defined]
    return scalar


def check_number(
    argument: str,
    value: object,
    *,
    low: float = -math.inf,
    high: float = math.inf,
    open_low: bool = False,
    open_high: bool = False,
) -> float:
    """Return ``value``, any real scalar, as a float; raise unless ``value`` is a finite number in the interval.

    Raises:
        TypeError: ``value`` is not a number.
        ValueError: ``value`` is not finite, or outside the interval.
    """
    if torch.compiler.is_compiling() and isinstance(value, float):
        return value  # checked by the caller; the compiler may not know the value
    given = as_scalar(argument, value)
    if isinstance(given, bool) or not isinstance(given, numbers.Real):
        raise TypeError(f"{argument} must be a number, got {value!r} of type {type(value).__name__}.")
    try:
        number = float(given)
    except OverflowError:
        number = math.inf
    below = number <= low if open_low else number < low
    above = number >= high if open_high else number > high
    if not math.isfinite(number) or below or above:
        left = "(" if open_low or low == -math.inf else "["
        right = ")" if open_high or high == math.inf else "]"
        interval = f"{left}{low:g}, {high:g}{right}"
        raise ValueError(f"{argument} must be a finite number in {interval}, got {value!r}.")
    return number


def check_count(argument: str, value: object, low: int = 1, high: int = 2**63 - 1) -> int:
    """Return ``value``, any whole scalar, as an int; raise unless ``value`` is between ``low`` and ``high``, inclusive.

    Raises:
        TypeError: ``value`` is not a whole number.
        ValueError: ``value`` is out of range.
    """
    given = as_scalar(argument, value)
    if isinstance(given, bool) or not isinstance(given, numbers.Integral):
        raise TypeError(f"{argument} must be a whole number, got {value!r} of type {type(value).__name__}.")
    number = int(given)
    if number < low:
        raise ValueError(f"{argument} must be at least {low}, got {number}.")
    if number > high:
        raise ValueError(f"{argument} must be at most {high}, got {number}.")
    return number


def check_at_most(argument: str, value: float, limit: str, high: float, advice: str = "") -> None:
    """Raise unless ``value`` is at most ``high``, named ``limit`` in the message."""
    if value > high:
        raise ValueError(f"{argument} must be at most {limit} = {high!r}, got {value!r}.{' ' if advice else ''}{advice}")


def check_magnitude(argument: str, value: float, *, divisor: bool) -> None:
    """Raise if ``value`` overflows in float32 arithmetic: beyond 1e30, or, for a divisor, below 1e-30."""
    low = TINY if divisor else -HUGE
    if not low <= value <= HUGE:
        raise ValueError(f"{argument} must be between {low:g} and {HUGE:g}, got {value!r}.")


def as_tensor(value: float | Tensor) -> Tensor:
    """A tensor as it is, or a number as a float64 tensor on the CPU, whatever the default device."""
    return value if isinstance(value, Tensor) else torch.tensor(value, dtype=torch.float64, device="cpu")


def check_bool(argument: str, value: object) -> bool:
    """Return ``value``, True or False in any scalar type, as a bool.

    Raises:
        TypeError: ``value`` is not True or False.
    """
    given = as_scalar(argument, value)
    if not isinstance(given, bool):
        raise TypeError(f"{argument} must be True or False, got {value!r}.")
    return given


def comparable(value: object) -> object:
    """A form of a setting that processes can compare: a value, or the name of a function, or a class with its attributes."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (list, tuple)):
        return [comparable(entry) for entry in value]
    if isinstance(value, (set, frozenset)):
        return sorted(repr(comparable(entry)) for entry in value)
    if isinstance(value, Mapping):
        return {repr(comparable(key)): comparable(entry) for key, entry in value.items()}
    if callable(value) and hasattr(value, "__qualname__"):
        return value.__qualname__
    public = {k: v for k, v in getattr(value, "__dict__", {}).items() if not k.startswith("_") and k != "training"}
    known = {k: comparable(v) for k, v in public.items() if v is None or callable(v) or isinstance(v, (bool, int, float, str))}
    return f"{type(value).__qualname__}({', '.join(f'{k}={v!r}' for k, v in sorted(known.items()))})"


def check_features(argument: str, tensor: object, dims: tuple[int, ...], if_empty: str = "Skip empty batches.") -> None:
    """Raise unless ``tensor`` is a non-empty floating-point tensor with one of ``dims`` dimensions."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{argument} must be a tensor of shape {_wanted_shape(dims)}, got {type(tensor).__name__}.")
    if tensor.dim() not in dims:
        raise ValueError(
            f"{argument} must be {_wanted_shape(dims)}, got shape {shape(tensor)}. "
            "Flatten or pool the encoder's output to one feature vector per sample."
        )
    if tensor.dtype not in FLOATING:
        raise TypeError(f"{argument} must hold floating-point features, got {tensor.dtype}. Convert with .float().")
    if tensor.numel() == 0:
        raise ValueError(f"{argument} is empty: shape {shape(tensor)}. {if_empty}")


def _wanted_shape(dims: tuple[int, ...]) -> str:
    return " or ".join({2: "(rows, features)", 3: "three-dimensional"}[d] for d in dims)


def check_finite(argument: str, rows: Tensor, one: str = "row") -> None:
    """Raise if a row (N, D) holds NaN or infinity; ``one`` is the word for a row in the message."""
    bad = (~rows.isfinite().all(1)).nonzero()
    if len(bad):
        raise ValueError(
            f"{argument} holds NaN or infinite values in {len(bad)} of {len(rows)} {one}s, first in {one} {int(bad[0])}. "
            "The encoder has diverged or its input is broken: look at the learning rate and the data."
        )


def check_rows(argument: str, tensor: Tensor, low: int) -> None:
    """Raise unless a tensor has at least ``low`` rows."""
    if len(tensor) < low:
        raise ValueError(f"{argument} must have at least {low} rows, got shape {shape(tensor)}. Pass more samples.")


def check_classes(argument: str, number: int) -> None:
    """Raise unless labels contain at least two classes."""
    if number < 2:
        raise ValueError(f"{argument} must hold at least two classes, got one class only. Pass samples of other classes.")


def check_pair(first: str, a: object, second: str, b: object) -> None:
    """Raise unless two feature batches are (rows, features) and agree in shape and device."""
    check_features(first, a, (2,))
    check_features(second, b, (2,))
    assert isinstance(a, Tensor)
    assert isinstance(b, Tensor)
    check_same(first, a, second, b)


def check_width(first: str, a: Tensor, second: str, b: Tensor) -> None:
    """Raise unless two feature batches have equally many features per row, on one device."""
    if a.shape[-1] != b.shape[-1]:
        raise ValueError(
            f"{first} and {second} must have the same width, got shapes {shape(a)} and {shape(b)}. "
            "Take both from the same layer of the same model."
        )
    check_device(first, a, second, b)


def check_shape(argument: str, tensor: Tensor, wanted: tuple[int, ...], reason: str = "") -> None:
    """Raise unless a tensor has the wanted shape; the message includes ``reason``."""
    if tensor.shape != wanted:
        because = f", {reason}" if reason else ""
        raise ValueError(f"{argument} must have shape {wanted}{because}, got {shape(tensor)}.")


def check_same(first: str, a: Tensor, second: str, b: Tensor) -> None:
    """Raise unless two feature batches agree in shape and device."""
    if a.shape != b.shape:
        raise ValueError(
            f"{first} and {second} must have the same shape, got {shape(a)} and {shape(b)}. "
            f"Row i of both must come from sample i."
        )
    check_device(first, a, second, b)


def check_device(first: str, a: Tensor, second: str, b: Tensor) -> None:
    """Raise unless two tensors are on one device."""
    if a.device != b.device:
        raise ValueError(f"{first} is on {a.device} and {second} on {b.device}. Move both to one device.")


def check_integers(argument: str, tensor: object, size: int) -> None:
    """Raise unless ``tensor`` holds ``size`` integers."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{argument} must be an integer tensor of shape ({size},), got {type(tensor).__name__}.")
    if tensor.dtype not in INTEGERS:
        raise TypeError(f"{argument} must hold integers (torch.int64), got {tensor.dtype}.")
    check_shape(argument, tensor, (size,), "one entry per sample")


def check_index_range(low: int, high: int, num_samples: int) -> None:
    """Raise unless the positions from ``low`` to ``high`` are in ``[0, num_samples)``; negative ``num_samples``: no limit.

    Raises:
        IndexError: A position is outside the dataset.
    """
    if low < 0 or (num_samples >= 0 and high >= num_samples):
        bad = low if low < 0 else high
        limit = f"[0, {num_samples})" if num_samples >= 0 else "the non-negative integers"
        raise IndexError(
            f"index holds {bad}, wanted positions in {limit}. "
            "index is the position of a sample in the dataset and num_samples the size of the dataset."
        )
