"""Splits a batch into chunks, and encodes each chunk twice with the same random state and buffers."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from contrastive_zoo.checks import shape
from contrastive_zoo.gradient_caching.wrappers import is_sharded, module_of, parts_of
from contrastive_zoo.processes.gather import exchange, group_size

Encoder = Callable[[Any], Tensor]


@dataclass
class Chunk:
    """Some samples of one view, and the random state of their first encoding."""

    encoder: Encoder
    view: int
    rows: slice
    batch: Any
    devices: list[torch.device]
    sharded: bool
    random: "RandomState | None" = None

    def encode(self) -> Tensor:
        """Features of the samples, checked."""
        features, size = self.encoder(self.batch), self.rows.stop - self.rows.start
        if not isinstance(features, Tensor):
            raise TypeError(
                f"the encoder of views[{self.view}] must return a tensor of features, got {type(features).__name__}. "
                "Wrap it in a module that picks the features."
            )
        if features.dim() != 2 or len(features) != size:
            raise ValueError(
                f"the encoder of views[{self.view}] must return one row for each of its {size} samples, got {shape(features)}."
            )
        return features


@dataclass
class RandomState:
    """State of torch's random generators, on the host and on accelerators."""

    host: Tensor
    accelerators: list[tuple[torch.device, Tensor]]

    @staticmethod
    def now(devices: list[torch.device]) -> "RandomState":
        """The current state of the generators of the host and of the given devices."""
        states = [(device, getattr(torch, device.type).get_rng_state(*_number(device))) for device in devices]
        return RandomState(torch.get_rng_state(), states)

    def restore(self) -> None:
        """Restore the state of the generators."""
        torch.set_rng_state(self.host)
        for device, state in self.accelerators:
            getattr(torch, device.type).set_rng_state(state, *_number(device))


def _number(device: torch.device) -> tuple[torch.device, ...]:
    return () if device.type == "mps" else (device,)  # MPS has a single device


@contextmanager
def same_buffers(module: nn.Module | None) -> Iterator[None]:
    """Restore buffers on exit, so running statistics are updated in only one of the two passes."""
    buffers = [] if module is None else list(module.named_buffers())
    before = {name: buffer.clone() for name, buffer in buffers}
    try:
        yield
    finally:
        with torch.no_grad():
            for name, buffer in [] if module is None else module.named_buffers():
                if name in before:
                    buffer.copy_(before[name])


def make_chunks(encoder: Any, views: Sequence[Any], chunk_size: int) -> list[Chunk]:
    """All chunks in the order of encoding: view after view."""
    if not isinstance(views, (tuple, list)):
        raise TypeError(f"views must be a tuple or list with a batch for each view, got {type(views).__name__}.")
    if not views:
        raise ValueError("views must hold a batch for each view, got none.")
    several = isinstance(encoder, (tuple, list, nn.ModuleList))
    if several and len(encoder) != len(views):
        raise ValueError(
            f"encoder holds {len(encoder)} encoders for {len(views)} views. Give one for each view, or one for all."
        )
    tensors = [list(_tensors(view, f"views[{number}]")) for number, view in enumerate(views)]
    size = _batch_size(tensors)
    encoders = list(encoder) if several else [encoder] * len(views)
    count = _number_of_chunks(size, chunk_size, encoders)
    chunks = []
    for number, view in enumerate(views):
        own = encoders[number]
        devices, sharded = _accelerators(own, tensors[number]), is_sharded(own)
        for part in range(count):
            rows = slice(size * part // count, size * (part + 1) // count)
            chunks.append(Chunk(own, number, rows, _rows(view, rows), devices, sharded))
    return chunks


def _number_of_chunks(size: int, chunk_size: int, encoders: list[Encoder]) -> int:
    """Number of chunks; equal on all processes if the encoder communicates in every forward pass."""
    count = -(-size // chunk_size)
    parts = [part for encoder in encoders for part in parts_of(encoder)]
    communicates = any(map(is_sharded, encoders)) or any(isinstance(part, nn.SyncBatchNorm) for part in parts)
    if not communicates or group_size("auto", None) == 1:
        return count
    counts, sizes = exchange([count, size], None)
    if min(sizes) < max(counts):
        raise ValueError(
            f"the encoder communicates, so all processes need the same number of chunks, but their batches hold {sizes} "
            f"samples and would make {counts} chunks of at most chunk_size={chunk_size}. Use batches of similar size."
        )
    return max(counts)


def _batch_size(tensors: list[list[Tensor]]) -> int:
    """The number of samples, B, which must be equal for all tensors of all views."""
    sizes = [len(tensor) for of_view in tensors for tensor in of_view]
    if len(set(sizes)) != 1 or not all(tensors):
        found = "; ".join(f"views[{number}]: {', '.join(map(shape, of_view))}" for number, of_view in enumerate(tensors))
        raise ValueError(f"all tensors of all views must have the batch as leading axis, got {found}.")
    if sizes[0] == 0:
        raise ValueError("views are empty: their leading axis is 0. Skip empty batches.")
    return sizes[0]


def _accelerators(encoder: Encoder, inputs: list[Tensor]) -> list[torch.device]:
    module = module_of(encoder)
    parameters = [] if module is None else list(module.parameters())
    return sorted({tensor.device for tensor in [*inputs, *parameters]} - {torch.device("cpu")}, key=str)


def _tensors(batch: Any, name: str) -> Iterator[Tensor]:
    """All tensors of a batch."""
    if isinstance(batch, Tensor):
        if batch.dim() == 0:
            raise ValueError(f"{name} is a tensor without axes, wanted a leading axis of samples.")
        yield batch
    elif isinstance(batch, (Mapping, tuple, list)):
        keys = batch.keys() if isinstance(batch, Mapping) else range(len(batch))
        for key in keys:
            yield from _tensors(batch[key], f"{name}[{key!r}]")
    else:
        raise TypeError(f"{name} must be a tensor, or a tuple, list or dict of tensors, got {type(batch).__name__}.")


def _rows(batch: Any, rows: slice) -> Any:
    """The same rows of all tensors of a batch."""
    if isinstance(batch, Tensor):
        return batch[rows]
    if isinstance(batch, Mapping):
        return {key: _rows(value, rows) for key, value in batch.items()}
    parts = [_rows(value, rows) for value in batch]
    return type(batch)(*parts) if hasattr(batch, "_fields") else type(batch)(parts)
