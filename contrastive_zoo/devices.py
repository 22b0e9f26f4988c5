"""Devices: what the host can read, copies between it and an accelerator, and GPUs that Triton kernels run on."""

import importlib.util
from collections.abc import Callable
from functools import lru_cache, wraps
from typing import Any, TypeVar, cast

import numpy as np
import torch
from torch import Tensor

OLDEST = (8, 0)
# Triton before 3.3, which comes with PyTorch 2.7, aborts while it compiles some of the kernels.
RECENT = tuple(int(number) for number in torch.__version__.split(".")[:2]) >= (2, 7)
TRITON = RECENT and importlib.util.find_spec("triton") is not None

Cached = TypeVar("Cached", bound=Callable[..., Tensor])


def transforming() -> bool:
    """Whether a transform of `torch.func`, such as grad or vmap, is running."""
    return torch._C._are_functorch_transforms_active()


def cached_on_host(function: Cached) -> Cached:
    """Decorator that caches small constant tensors on the host by the arguments of a function; do not write to them.

    Inside of a transform, a compiler or a mode such as FakeTensorMode tensors are of another kind, and nothing is cached.
    """

    @lru_cache(maxsize=64)
    def kept(*arguments: Any) -> Tensor:
        with torch.inference_mode(False):  # autograd cannot save inference tensors for backward
            return function(*arguments)

    @wraps(function)
    def call(*arguments: Any) -> Tensor:
        apart = torch.compiler.is_compiling() or transforming() or (torch._C._len_torch_dispatch_stack() and _faked())
        return function(*arguments) if apart else kept(*arguments)

    return cast(Cached, call)


def _faked() -> bool:
    """Whether a mode makes tensors of another kind."""
    return type(torch.empty(0, device="cpu")) is not Tensor


def batched(tensor: Tensor) -> bool:
    """Whether `torch.func.vmap`, or a backward pass with ``is_grads_batched=True``, hides the values of a tensor."""
    if torch.compiler.is_compiling():
        return False
    functorch = torch._C._functorch
    return functorch.is_legacy_batchedtensor(tensor) or (transforming() and functorch.is_batchedtensor(_innermost(tensor)))


def readable(tensor: Tensor) -> bool:
    """Whether the host knows the values of a tensor: neither an accelerator, a compiler nor `torch.func.vmap` hides them."""
    return tensor.is_cpu and not torch.compiler.is_compiling() and not batched(tensor)


def as_array(tensor: Tensor) -> "np.ndarray[Any, Any]":
    """The values of a readable tensor (n,), also inside of `torch.func.grad`, where tensors have no memory of their own."""
    return np.array([value.item() for value in tensor]) if transforming() else tensor.numpy()


def _innermost(tensor: Tensor) -> Tensor:
    """The tensor inside of the wrappers of `torch.func.grad`, or the outermost one that `torch.func.vmap` batches."""
    functorch = torch._C._functorch
    while functorch.is_functorch_wrapped_tensor(tensor) and not functorch.is_batchedtensor(tensor):
        tensor = functorch.get_unwrapped(tensor)
    return tensor


def beside(tensor: Tensor, other: Tensor) -> Tensor:
    """The tensor on the device of another; a copy from the host does not wait for the accelerator."""
    return tensor.to(other.device, non_blocking=tensor.is_cpu)


def written_beside(numbers: Tensor, other: Tensor) -> Tensor:
    """A few numbers in the dtype and on the device of another tensor; host numbers are written there.

    A CUDA graph can record that a number is written, but not that it is copied from the host.
    """
    if not numbers.is_cpu or other.is_cpu:
        return numbers.to(other)
    return torch.stack([other.new_full((), number) for number in numbers.flatten().tolist()]).view(numbers.shape)


def refuses_kernels(device: torch.device) -> str:
    """The reason why Triton kernels cannot run on a device; empty if they can."""
    if not TRITON:
        return "its kernels need PyTorch 2.7 or newer with its Triton, 3.3 or newer"
    if device.type != "cuda" or torch.version.hip is not None:
        other = " of another make" if torch.version.hip else ""
        return f"its kernels need an NVIDIA GPU, and the rows are on {device}{other}"
    properties = torch.cuda.get_device_properties(device)
    capability = properties.major, properties.minor
    if capability < OLDEST:
        needed, given = (".".join(map(str, each)) for each in (OLDEST, capability))
        return f"its kernels need a GPU of compute capability {needed} or newer, and {device} has {given}"
    return ""
