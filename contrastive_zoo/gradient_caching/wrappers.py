"""Handles wrappers that synchronise gradients, such as DistributedDataParallel, for encoders that are called per chunk."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

T = TypeVar("T")


def module_of(encoder: Callable[..., object]) -> nn.Module | None:
    """The module of an encoder, which is a module or a method of a module."""
    owner = getattr(encoder, "__self__", encoder)
    return owner if isinstance(owner, nn.Module) else None


def parts_of(encoder: Callable[..., object]) -> list[nn.Module]:
    """The module of an encoder, and those inside."""
    module = module_of(encoder)
    return [] if module is None else list(module.modules())


def is_sharded(encoder: Callable[..., object]) -> bool:
    """Whether FSDP holds the parameters of an encoder.

    Raises:
        RuntimeError: The encoder is a part of what FSDP holds together.
    """
    parts = parts_of(encoder)
    sharding = [part for part in parts if hasattr(part, "set_requires_gradient_sync") or hasattr(part, "_fsdp_wrapped_module")]
    within = not sharding and any(getattr(part, "_is_fsdp_managed_module", False) for part in parts)
    if within or (sharding and _is_within_another(sharding[0])):
        raise RuntimeError(
            "the encoder is a part of a module that FSDP shards, whose forward and backward pass cannot be repeated for each "
            "chunk. Shard the encoder itself, and give it outside the forward pass of any other sharded module."
        )
    return bool(sharding)


def _is_within_another(sharding: Any) -> bool:
    """Known as soon as one of the two was called."""
    state = sharding._get_fsdp_state() if hasattr(sharding, "_get_fsdp_state") else sharding
    return state._is_root is False


def wrappers_in(encoders: Iterable[Callable[..., object]]) -> list[DistributedDataParallel]:
    """Wrappers, in or around the encoders, that reduce gradients over processes."""
    parts = dict.fromkeys(part for encoder in encoders for part in parts_of(encoder))
    return [part for part in parts if isinstance(part, DistributedDataParallel)]


@contextmanager
def quiet(wrappers: list[DistributedDataParallel]) -> Iterator[None]:
    """Forward passes of the wrappers neither send buffers nor prepare a reduction of gradients."""
    settings: dict[str, Any] = {
        "require_backward_grad_sync": False,
        "require_forward_param_sync": False,
        "_static_graph_delay_allreduce_enqueued": True,
        "reducer": _NoReducer(),
    }
    before = [{name: vars(wrapper)[name] for name in settings if name in vars(wrapper)} for wrapper in wrappers]
    try:
        for wrapper, names in zip(wrappers, before, strict=True):
            vars(wrapper).update({name: settings[name] for name in names})
        yield
    finally:
        for wrapper, values in zip(wrappers, before, strict=True):
            vars(wrapper).update(values)


class _NoReducer:
    """Whether gradients may be on their way to the reducer of a wrapper, which must then not be disturbed."""

    def _rebuild_buckets(self) -> bool:
        return False


def through(wrappers: list[DistributedDataParallel], encode: Callable[[], T]) -> T:
    """Call ``encode()`` as one forward pass of each wrapper, so the wrapper expects one backward pass."""
    for wrapper in wrappers:
        encode = partial(_as_forward_pass, wrapper, encode)
    return encode()


def expecting_backward(wrapper: DistributedDataParallel, loss: Tensor) -> Tensor:
    """The loss, whose backward pass comes before the end of the wrapper's forward pass, and is the only one.

    Raises:
        RuntimeError: The wrapper needs the end of its forward pass for its first reduction.
    """
    if wrapper.static_graph:
        raise RuntimeError(
            "cached_backward was called in the forward pass of DistributedDataParallel(..., static_graph=True), which reduces "
            "gradients only of backward passes that come later. Return cached_loss(...) from the forward pass, and call "
            "backward() on it then."
        )

    def skip(output: Any) -> Any:
        end.remove()
        vars(wrapper).pop("_post_forward", None)
        return output

    prepared: Tensor = type(wrapper)._post_forward(wrapper, loss)
    vars(wrapper)["_post_forward"] = skip
    end = wrapper.register_forward_hook(lambda module, given, output: skip(None), always_call=True)  # if it fails
    return prepared


def _as_forward_pass(wrapper: DistributedDataParallel, encode: Callable[[], T]) -> T:
    def instead() -> T:
        del vars(wrapper)["_run_ddp_forward"]  # chunks do run the wrapped module
        with quiet([wrapper]):
            return encode()

    # What the wrapper does between its preparations and its preparations of the backward pass.
    vars(wrapper)["_run_ddp_forward"] = instead
    try:
        output: T = wrapper.forward()
        return output
    finally:
        vars(wrapper).pop("_run_ddp_forward", None)
