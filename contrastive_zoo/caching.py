"""Gradient caching: the gradients of one big batch, with the activations of a small one.

A contrastive loss couples all samples of a batch, but only through their features. So the features are computed first, a chunk
at a time and without a graph; the loss gives their gradients; and a second pass over the chunks hands these on to the encoder.

Gao et al., "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup", RepL4NLP 2021, section 3.
arXiv:2101.06983
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from contrastive_zoo.checks import check_count, shape

Encoder = Callable[[Any], Tensor]


def cached_backward(
    loss_fn: Callable[..., Tensor],
    encoder: Encoder | Sequence[Encoder] | nn.ModuleList,
    views: Sequence[Any],
    *,
    chunk_size: int,
    index: Tensor | None = None,
    labels: Tensor | None = None,
    negatives: Tensor | None = None,
    negatives_index: Tensor | None = None,
    backward: Callable[[Tensor], object] = Tensor.backward,
) -> Tensor:
    r"""Accumulate the gradients of ``loss_fn(encoder(view1), encoder(view2), ...)`` in chunks of the batch.

    $$\nabla_\theta L = \sum_{\text{chunks } c} \Big(\frac{\partial z_c}{\partial \theta}\Big)^{\!\top}
      \frac{\partial L}{\partial z_c}$$

    Parameters of the encoder and of the loss get the gradients of the whole batch, up to rounding, and the loss is called once.
    Beyond the features, (B, D) per view, no more activations are held than those of one chunk. The price is a second forward
    pass of the encoder.

    The second pass repeats the first: torch's random generators, of the host and of the accelerators that hold inputs or
    parameters, start every chunk where they did then (other generators, such as NumPy's, do not), buffers of the encoder start
    from where they were, and autocast is that of the caller. Afterwards buffers and generators are as after a single pass.

    Layers that look at a batch as a whole see a chunk: batch normalisation takes its statistics from one chunk, and moves its
    running statistics once per chunk. Gradients are then those of an encoder that is called with one chunk after the other.
    Layers that communicate, such as SyncBatchNorm, need the same number of chunks on all processes.

    Under `DistributedDataParallel` gradients are reduced once, with the last chunk; give the wrapped encoder itself.

    Args:
        loss_fn: Any loss of the zoo, or any callable that takes the features and those of the keywords below that are given.
        encoder: From a batch to features (b, D), one row per sample; or a list with one encoder for each view. A module or a
            method of one, if buffers matter: those of a module inside of another function are not seen.
        views: A batch for each view or modality: a tensor with a leading axis of B samples, or tuples, lists and dicts of them.
            Two are handed to the loss as ``z1`` and ``z2``, more than two as one tensor (V, B, D).
        chunk_size: Most samples that the encoder gets at once. Chunks are of equal size as far as B allows.
        index: (B,) positions in the data set, for the loss.
        labels: (B,) labels, for the loss.
        negatives: Further keys, for the loss.
        negatives_index: Positions of the further keys, for the loss.
        backward: Called with the loss; has to call ``.backward()`` on it, scaled or not, such as
            ``lambda loss: scaler.scale(loss).backward()``.

    Returns:
        The loss, detached.

    Raises:
        TypeError: ``views`` is no sequence of batches, a batch holds something other than tensors, or an encoder returns none.
        ValueError: Sizes do not fit, there are fewer than two views, or the loss is not one number.
        RuntimeError: Gradients are off, ``backward`` computed none, or nothing in the encoders wants one.

    Examples:
        >>> import torch
        >>> import contrastive_zoo as zoo
        >>> encoder, loss_fn = torch.nn.Linear(8, 4), zoo.get_loss("ntxent")
        >>> x1, x2 = torch.randn(2, 64, 8)
        >>> loss = zoo.cached_backward(loss_fn, encoder, (x1, x2), chunk_size=16)
        >>> encoder.weight.grad.shape
        torch.Size([4, 8])
    """
    if not torch.is_grad_enabled():
        raise RuntimeError("cached_backward computes gradients, which are off here. Call it outside of torch.no_grad().")
    chunks = _chunks(encoder, views, check_count("chunk_size", chunk_size))
    features = _first_pass(chunks, len(views))
    keywords = {"index": index, "labels": labels, "negatives": negatives, "negatives_index": negatives_index}
    arguments = features if len(features) == 2 else [torch.stack(features)]
    loss = loss_fn(*arguments, **{name: value for name, value in keywords.items() if value is not None})
    if loss.dim() != 0:
        raise ValueError(f"the loss must be one number, got shape {shape(loss)}. Use reduction='mean' or 'sum'.")
    backward(loss)
    if all(z.grad is None for z in features):
        raise RuntimeError("backward(loss) computed no gradient of the features. It has to call .backward() on the loss.")
    _second_pass(chunks, [torch.zeros_like(z) if z.grad is None else z.grad for z in features])
    return loss.detach()


@dataclass
class _Chunk:
    """Some samples of one view, and the random state in which their encoder met them."""

    encoder: Encoder
    view: int
    rows: slice
    batch: Any
    devices: list[torch.device]
    random: "_RandomState | None" = None

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
class _RandomState:
    """Where torch's generators stand, on the host and on accelerators."""

    host: Tensor
    accelerators: list[tuple[torch.device, Tensor]]

    @staticmethod
    def now(devices: list[torch.device]) -> "_RandomState":
        states = [(device, getattr(torch, device.type).get_rng_state(*_number(device))) for device in devices]
        return _RandomState(torch.get_rng_state(), states)

    def restore(self) -> None:
        torch.set_rng_state(self.host)
        for device, state in self.accelerators:
            getattr(torch, device.type).set_rng_state(state, *_number(device))


def _number(device: torch.device) -> tuple[torch.device, ...]:
    return () if device.type == "mps" else (device,)  # there is but one


def _first_pass(chunks: list[_Chunk], views: int) -> list[Tensor]:
    """Features of each view, leaves that want a gradient; buffers are left as they were."""
    features: list[list[Tensor]] = [[] for _ in range(views)]
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        for module in dict.fromkeys(_module(chunk.encoder) for chunk in chunks):
            stack.enter_context(_same_buffers(module))
        for chunk in chunks:
            chunk.random = _RandomState.now(chunk.devices)
            features[chunk.view].append(chunk.encode())
    # Some versions of PyTorch would give the second pass the weights that were cast in the first, without a graph.
    torch.clear_autocast_cache()
    return [torch.cat(parts).requires_grad_() for parts in features]


def _second_pass(chunks: list[_Chunk], gradients: list[Tensor]) -> None:
    """Hand the gradients of the features on to the encoders."""
    last = {id(chunk.encoder): number for number, chunk in enumerate(chunks)}
    after, reached = _RandomState.now(list({device for chunk in chunks for device in chunk.devices})), False
    try:
        for number, chunk in enumerate(chunks):
            assert chunk.random is not None
            chunk.random.restore()
            with nullcontext() if last[id(chunk.encoder)] == number else _no_sync(chunk.encoder):
                features = chunk.encode()
                if features.requires_grad:
                    features.backward(gradients[chunk.view][chunk.rows])
                    reached = True
    finally:
        after.restore()
    if not reached:
        raise RuntimeError("no encoder has a parameter that wants a gradient. Call requires_grad_() on what is to be trained.")


def _no_sync(encoder: Encoder) -> AbstractContextManager[Any]:
    """No reduction of gradients over processes, for an encoder that is wrapped to do so."""
    no_sync = getattr(encoder, "no_sync", nullcontext)
    context: AbstractContextManager[Any] = no_sync()
    return context


def _module(encoder: Encoder) -> nn.Module | None:
    owner = getattr(encoder, "__self__", encoder)
    return owner if isinstance(owner, nn.Module) else None


@contextmanager
def _same_buffers(module: nn.Module | None) -> Iterator[None]:
    """Put buffers back where they were, so that running statistics move in one of the two passes only."""
    if module is None:
        yield
        return
    before = {name: buffer.clone() for name, buffer in module.named_buffers()}
    # DistributedDataParallel sends buffers of the first process to the others before a forward pass, unless this is False.
    sends = getattr(module, "require_forward_param_sync", None)
    try:
        yield
    finally:
        for name, buffer in module.named_buffers():
            if name in before:
                buffer.copy_(before[name])
        if sends is not None:
            module.require_forward_param_sync = sends


def _chunks(encoder: Any, views: Sequence[Any], chunk_size: int) -> list[_Chunk]:
    """All chunks in the order in which they are encoded: view after view."""
    if not isinstance(views, (tuple, list)):
        raise TypeError(f"views must be a tuple or list with a batch for each view, got {type(views).__name__}.")
    if len(views) < 2:
        raise ValueError(f"views must hold at least two batches, one for each view, got {len(views)}.")
    several = isinstance(encoder, (tuple, list, nn.ModuleList))
    if several and len(encoder) != len(views):
        raise ValueError(
            f"encoder holds {len(encoder)} encoders for {len(views)} views. Give one for each view, or one for all."
        )
    tensors = [list(_tensors(view, f"views[{number}]")) for number, view in enumerate(views)]
    size = _batch_size(tensors)
    count = -(-size // chunk_size)
    chunks = []
    for number, view in enumerate(views):
        own = encoder[number] if several else encoder
        devices = _accelerators(own, tensors[number])
        for part in range(count):
            rows = slice(size * part // count, size * (part + 1) // count)
            chunks.append(_Chunk(own, number, rows, _rows(view, rows), devices))
    return chunks


def _batch_size(tensors: list[list[Tensor]]) -> int:
    """The B that all tensors of all views have in common."""
    sizes = [len(tensor) for of_view in tensors for tensor in of_view]
    if len(set(sizes)) != 1 or not all(tensors):
        found = "; ".join(f"views[{number}]: {', '.join(map(shape, of_view))}" for number, of_view in enumerate(tensors))
        raise ValueError(f"all tensors of all views must have the batch as leading axis, got {found}.")
    if sizes[0] == 0:
        raise ValueError("views are empty: their leading axis is 0. Skip empty batches.")
    return sizes[0]


def _accelerators(encoder: Encoder, inputs: list[Tensor]) -> list[torch.device]:
    module = _module(encoder)
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
