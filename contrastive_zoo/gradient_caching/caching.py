"""Gradient caching: the gradients of a large batch, with the activation memory of a small batch.

A contrastive loss couples all samples of a batch, but only through their features. So the features are computed first, a chunk
at a time and without keeping a graph. The backward pass of the loss ends at these features, where a second pass over the chunks
computes the gradients of the parameters.

Gao et al., "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup", RepL4NLP 2021, section 3.
arXiv:2101.06983
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.autograd.graph import get_gradient_edge
from torch.nn.parallel import DistributedDataParallel

from contrastive_zoo.checks import check_count, shape
from contrastive_zoo.gradient_caching.chunks import Chunk, Encoder, RandomState, make_chunks, same_buffers
from contrastive_zoo.gradient_caching.wrappers import expecting_backward, module_of, quiet, through, wrappers_in


def cached_loss(
    loss_fn: Callable[..., Tensor],
    encoder: Encoder | Sequence[Encoder] | nn.ModuleList,
    views: Sequence[Any],
    *,
    chunk_size: int,
    index: Tensor | None = None,
    labels: Tensor | None = None,
    negatives: Tensor | None = None,
    negatives_index: Tensor | None = None,
) -> Tensor:
    r"""Compute ``loss_fn(encoder(view1), encoder(view2), ...)``, and its gradients later, in chunks of the batch.

    $$\nabla_\theta L = \sum_{\text{chunks } c} \Big(\frac{\partial z_c}{\partial \theta}\Big)^{\!\top}
      \frac{\partial L}{\partial z_c}$$

    ``loss.backward()``, called directly or by a trainer, gives the parameters of the encoder and of the loss the gradients of
    the whole batch, up to rounding. The loss is called once. Besides the features, (B, D) per view, memory holds only the
    activations of one chunk, the gradients of one chunk and their sum. The cost is a second forward pass of the encoder, during
    the backward pass.

    The second pass repeats the first: each chunk starts from the same state of torch's random generators on the host and on the
    accelerators that hold inputs or parameters (other generators, such as NumPy's, are not repeated), from the same buffers of
    the encoder, and with the same autocast. Afterwards buffers and generators are as after a single pass.

    Layers that depend on the whole batch see one chunk: batch normalisation computes its statistics from one chunk, and updates
    its running statistics once per chunk. The gradients then belong to an encoder that is called with one chunk at a time.

    Each parameter gets its gradient once, when all chunks are done. So hooks of parameters see the gradient of the whole batch,
    and `DistributedDataParallel` reduces gradients once, whether it wraps the encoder or a module whose forward pass returns
    this loss. A function that calls a wrapped module hides the wrapper: give the wrapped module itself, or a module that holds
    it. FSDP has to shard the encoder itself, and reduces gradients once per chunk. Encoders that communicate in their forward
    pass, because of FSDP or SyncBatchNorm, get the same number of chunks on all processes.

    Args:
        loss_fn: Any loss of the zoo, or any callable that takes the features and the given ones of the keywords below.
        encoder: Maps a batch to features (b, D), one row per sample; or a list with one encoder for each view. If buffers
            matter, pass a module or a method of a module: buffers of a module inside another function are not found.
        views: A batch for each view or modality: a tensor with a leading axis of B samples, or tuples, lists and dicts of such
            tensors. The features of two views are passed to the loss as ``z1`` and ``z2``, another number of views as one
            tensor (V, B, D): a single view, for losses whose positives come from labels, or more than two views.
        chunk_size: Maximum number of samples per call of the encoder. Chunks have equal sizes as far as B allows.
        index: (B,) positions in the dataset, for the loss.
        labels: (B,) labels, for the loss.
        negatives: Extra negatives, for the loss.
        negatives_index: Positions of the extra negatives, for the loss.

    Returns:
        The loss, to call ``.backward()`` on. Under ``torch.no_grad()`` it has no gradient.

    Raises:
        TypeError: ``views`` is no sequence of batches, a batch holds something other than tensors, or an encoder returns no
            tensor.
        ValueError: Sizes do not fit, there is no view, the loss is not one number, or the encoder communicates
            and the batch of one process has fewer samples than another process has chunks.
        RuntimeError: FSDP shards the encoder together with other modules, or `DistributedDataParallel` is hidden in a function
            and has ``static_graph=True``. In the backward pass: parameters have changed since the loss was computed.

    Examples:
        >>> import torch
        >>> import contrastive_zoo as zoo
        >>> encoder, loss_fn = torch.nn.Linear(8, 4), zoo.get_loss("ntxent")
        >>> x1, x2 = torch.randn(2, 64, 8)
        >>> loss = zoo.cached_loss(loss_fn, encoder, (x1, x2), chunk_size=16)
        >>> loss.backward()
        >>> encoder.weight.grad.shape
        torch.Size([4, 8])
    """
    chunks = make_chunks(encoder, views, check_count("chunk_size", chunk_size))
    features = through(wrappers_in(chunk.encoder for chunk in chunks), partial(_encode, chunks, len(views)))
    keywords = {"index": index, "labels": labels, "negatives": negatives, "negatives_index": negatives_index}
    arguments = features if len(features) == 2 else [torch.stack(features)]
    loss = loss_fn(*arguments, **{name: value for name, value in keywords.items() if value is not None})
    if loss.dim() != 0:
        raise ValueError(f"the loss must be one number, got shape {shape(loss)}. Use reduction='mean' or 'sum'.")
    return loss


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
    """Accumulate the gradients of ``loss_fn(encoder(view1), encoder(view2), ...)`` in chunks of the batch.

    Equivalent to ``backward(cached_loss(...))``: see `cached_loss` for details and for the other arguments. Use `cached_loss`
    if a trainer calls ``backward`` itself: the loss returned here has no graph.

    In the forward pass of `DistributedDataParallel`, gradients are reduced as if ``backward`` was called after it.

    Args:
        loss_fn: See `cached_loss`.
        encoder: See `cached_loss`.
        views: See `cached_loss`.
        chunk_size: See `cached_loss`.
        index: See `cached_loss`.
        labels: See `cached_loss`.
        negatives: See `cached_loss`.
        negatives_index: See `cached_loss`.
        backward: Called with the loss; has to call ``.backward()`` on it, scaled or not, such as
            ``lambda loss: scaler.scale(loss).backward()``, ``accelerator.backward``, or ``self.manual_backward`` in Lightning.

    Returns:
        The loss, detached.

    Raises:
        TypeError: See `cached_loss`.
        ValueError: See `cached_loss`.
        RuntimeError: Gradients are disabled, ``backward`` computed no gradient, no parameter requires a gradient, or the call
            is in the forward pass of `DistributedDataParallel` with ``static_graph=True``.

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
        raise RuntimeError("cached_backward computes gradients, which are off here. Call it outside torch.no_grad().")
    enclosing = DistributedDataParallel._active_ddp_module
    keywords = {"index": index, "labels": labels, "negatives": negatives, "negatives_index": negatives_index}
    loss = cached_loss(loss_fn, encoder, views, chunk_size=chunk_size, **keywords)
    if not loss.requires_grad:
        raise RuntimeError("no encoder has a parameter that wants a gradient. Call requires_grad_() on what is to be trained.")
    if enclosing is not None:
        loss = expecting_backward(enclosing, loss)
    calls: list[Tensor] = []
    loss.register_hook(calls.append)
    backward(loss)
    if not calls:
        raise RuntimeError("backward(loss) computed no gradients. It has to call .backward() on the loss.")
    return loss.detach()


def _encode(chunks: list[Chunk], views: int) -> tuple[Tensor, ...]:
    """Features of each view, whose backward pass encodes the chunks again."""
    parts: list[list[Tensor]] = [[] for _ in range(views)]
    leaves: dict[Tensor, None] = {}
    with ExitStack() as stack:
        for module in dict.fromkeys(module_of(chunk.encoder) for chunk in chunks):
            stack.enter_context(same_buffers(module))
        for chunk in chunks:
            chunk.random = RandomState.now(chunk.devices)
            parts[chunk.view].append(_features_alone(chunk, leaves))
    features = tuple(map(torch.cat, parts))
    if not leaves:
        return features
    encoded: tuple[Tensor, ...] = _Encoded.apply(chunks, features, *leaves)  # type: ignore[no-untyped-call]
    return encoded


def _features_alone(chunk: Chunk, leaves: dict[Tensor, None]) -> Tensor:
    """Features of a chunk, detached; adds the leaves that they depend on to ``leaves``."""
    features = chunk.encode()
    if features.requires_grad:
        # Sharded parameters are replaced during a forward pass, so a dummy leaf is used instead.
        found = [torch.zeros((), requires_grad=True)] if chunk.sharded else _leaves(features)
        leaves.update(dict.fromkeys(found))
    return features.detach()


def _leaves(features: Tensor) -> Iterator[Tensor]:
    """All leaf tensors that get a gradient in a backward pass from the features."""
    left = [get_gradient_edge(features).node]
    seen = set(left)
    while left:
        node = left.pop()
        if type(node).__name__ == "AccumulateGrad":
            yield node.variable  # type: ignore[attr-defined]
        _refuse_hidden(getattr(node, "ddp_weakref", None))
        new = {other for other, _ in node.next_functions if other is not None} - seen
        seen |= new
        left.extend(new)


def _refuse_hidden(wrapper: Callable[[], DistributedDataParallel] | None) -> None:
    """Raise for `DistributedDataParallel` with a static graph that is hidden in a function."""
    if wrapper is not None and wrapper().static_graph:
        raise RuntimeError(
            "the encoder is a function that calls DistributedDataParallel(..., static_graph=True), whose first reduction would "
            "come before the gradients. Give the wrapped module itself, or a module that holds it."
        )


class _Encoded(torch.autograd.Function):
    """Features as a function of the leaves that they depend on.

    Each leaf gets one gradient per backward pass, as if there were no chunks. So hooks on parameters, and wrappers that reduce
    gradients, work as usual.
    """

    @staticmethod
    def forward(ctx: Any, chunks: list[Chunk], features: tuple[Tensor, ...], *leaves: Tensor) -> tuple[Tensor, ...]:
        ctx.chunks, ctx.leaves, ctx.versions = chunks, leaves, [leaf._version for leaf in leaves]
        ctx.autocast = _autocast_states({device.type for chunk in chunks for device in chunk.devices})
        return features

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        if [leaf._version for leaf in ctx.leaves] != ctx.versions:
            raise RuntimeError("parameters of the encoder have changed since the loss was computed. Call backward() first.")
        with ExitStack() as stack:
            for state in ctx.autocast:
                stack.enter_context(torch.autocast(*state))
            return None, None, *_second_pass(ctx.chunks, ctx.leaves, gradients)


def _autocast_states(accelerators: set[str]) -> list[tuple[str, torch.dtype, bool, bool]]:
    """Arguments for `torch.autocast` that restore its present state; threads of backward passes do not inherit this state."""
    types, cache = sorted({"cpu", *accelerators}), torch.is_autocast_cache_enabled()
    return [(kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind), cache) for kind in types]


def _second_pass(chunks: list[Chunk], leaves: tuple[Tensor, ...], gradients: tuple[Tensor, ...]) -> list[Tensor | None]:
    """Gradients of the leaves, from the gradients of the features."""
    totals: list[Tensor | None] = [None] * len(leaves)
    after = RandomState.now(list({device for chunk in chunks for device in chunk.devices}))
    with quiet(wrappers_in(chunk.encoder for chunk in chunks)), _without_hooks(leaves), torch.enable_grad():
        try:
            for chunk in chunks:
                assert chunk.random is not None
                chunk.random.restore()
                features = chunk.encode()
                upstream = gradients[chunk.view][chunk.rows]
                if features.requires_grad and chunk.sharded:
                    features.backward(upstream)
                elif features.requires_grad:
                    _add(totals, torch.autograd.grad(features, leaves, upstream, allow_unused=True))
        finally:
            after.restore()
    return totals


def _add(totals: list[Tensor | None], parts: Sequence[Tensor | None]) -> None:
    for number, part in enumerate(parts):
        if part is not None:
            total = totals[number]
            totals[number] = part if total is None else total + part  # not in place: parts may share memory


@contextmanager
def _without_hooks(leaves: tuple[Tensor, ...]) -> Iterator[None]:
    """Disable hooks of the leaves, which must see the total gradient, not the gradient of a chunk."""
    hooks = [(leaf._backward_hooks, dict(leaf._backward_hooks)) for leaf in leaves if leaf._backward_hooks]
    for of_leaf, _ in hooks:
        of_leaf.clear()
    try:
        yield
    finally:
        for of_leaf, kept in hooks:
            of_leaf.update(kept)
