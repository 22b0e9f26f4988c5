"""An accelerator without hardware: its tensors are on another device than the CPU for all that PyTorch says, and hold values.

It shows what a step asks of a real one: where the host waits for a value, what it copies there, and whether a replay of the
recorded step does what the step does, as with a CUDA graph.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

# A type of device whose backward passes run on the calling thread, and which needs no driver.
DEVICE = torch.device("lazy", 0)
# Operations whose result is a value for the host, or has a shape that depends on values.
WAITS = {"_local_scalar_dense", "equal", "nonzero", "masked_select", "bincount", "unique_dim", "unique_consecutive", "_unique2"}
COPIES = {"copy_", "_to_copy"}
INDEXING = {"index", "index_put_", "index_put", "_index_put_impl_"}
# Element-wise operations that take no single entry from the host.
STRICT = {"addcmul", "addcmul_", "addcdiv", "addcdiv_"}


class OnAccelerator(torch.Tensor):
    """A tensor there; `memory` is a tensor on the CPU."""

    memory: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, memory: Tensor) -> "OnAccelerator":
        shape = torch.empty_strided(memory.shape, memory.stride(), dtype=memory.dtype, device="meta")
        made = torch.Tensor._make_subclass(cls, shape, False, dispatch_device=True, device_for_backend_keys=DEVICE)
        made.memory = memory
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return DEVICE if func is torch.ops.prim.device.default else _run(func, args, kwargs or {}, there=True)


def _is_there(leaf: object) -> bool:
    return isinstance(leaf, OnAccelerator)


def _memory(leaf: Any) -> Any:
    return leaf.memory if _is_there(leaf) else leaf


def _run(func: Any, args: Any, kwargs: Any, there: bool) -> Any:
    """Run an operation. A tensor that it wrote to stays the same object."""
    written = {id(_memory(leaf)): leaf for leaf in tree_leaves((args, kwargs)) if _is_there(leaf)}
    result = func(*tree_map(_memory, args), **tree_map(_memory, kwargs))

    def placed(leaf: Any) -> Any:
        if id(leaf) in written or not (there and isinstance(leaf, Tensor)):
            return written.get(id(leaf), leaf)
        return OnAccelerator(leaf)

    return tree_map(placed, result)


class _Launch(NamedTuple):
    func: Any
    args: Any
    kwargs: Any
    results: list[Any]

    def replay(self) -> None:
        found = tree_leaves(self.func(*tree_map(_memory, self.args), **tree_map(_memory, self.kwargs)))
        for new, old in zip(found, map(_memory, self.results), strict=True):
            if isinstance(new, Tensor) and new is not old and new.data_ptr() != old.data_ptr():
                old.copy_(new)


class Accelerator(TorchDispatchMode):
    """While active, tensors can be made on `DEVICE` or moved there.

    Attributes:
        waits: Operations for which the host waited.
        copies: Copies from the host, True for each that the host does not wait for.
        launches: Number of operations there.
    """

    def __init__(self) -> None:
        super().__init__()
        self._tape: list[_Launch] | None = None
        self.forget()

    def forget(self) -> None:
        self.waits: list[str] = []
        self.copies: list[bool] = []
        self.launches = 0

    @contextmanager
    def recording(self) -> Iterator[Callable[[], None]]:
        """Record what is launched; gives a function that does the same again, with the tensors of the first time."""
        tape = self._tape = []
        try:
            yield lambda: [launch.replay() for launch in tape] and None
        finally:
            self._tape = None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.prim.device.default:
            return func(*args)
        kwargs = dict(kwargs or {})
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        name, given = func._schema.name.split("::")[1], any(map(_is_there, tensors))
        there = given and (name != "copy_" or _is_there(args[0]))
        if kwargs.get("device") is not None:
            there = torch.device(kwargs["device"]).type == DEVICE.type
            kwargs["device"] = torch.device("cpu") if there else kwargs["device"]
        self._look(name, func, args, kwargs, tensors, there)
        result = _run(func, args, kwargs, there)
        if there:
            self.launches += 1
            if self._tape is not None:  # what is on the host is an argument of the launch, whatever becomes of it
                self._tape.append(_Launch(func, *tree_map(_baked, (args, kwargs)), tree_leaves(result)))
        return result

    def _look(self, name: str, func: Any, args: Any, kwargs: Any, tensors: list[Tensor], there: bool) -> None:
        """Note a wait or a copy; refuse tensors of the host where a real accelerator does."""
        given, on_host = any(map(_is_there, tensors)), [t for t in tensors if not _is_there(t)]
        copied = len(self.copies)
        if given and (name in WAITS or (name in COPIES and not there)):
            self._wait(str(func))
        if name == "repeat_interleave" and given and kwargs.get("output_size") is None:
            self._wait(str(func))
        if name in INDEXING and _is_there(args[0]):
            masks = [mask for mask in args[1] if mask is not None and mask.dtype == torch.bool]
            if masks:
                self._wait(f"{func} by a mask")
            self.copies += [False for index in args[1] if index is not None and not _is_there(index)]
        elif there and on_host and name in COPIES:
            self.copies.append(bool(kwargs.get("non_blocking") or (name == "copy_" and args[2:] == (True,))))
        elif there and given and any(t.dim() or torch.Tag.pointwise not in func.tags or name in STRICT for t in on_host):
            raise RuntimeError(f"{func}: expected all tensors to be on the same device, found the CPU and {DEVICE}")
        if self._tape is not None and len(self.copies) > copied:
            raise RuntimeError(f"{func}: cannot copy from the CPU while an accelerator records")

    def _wait(self, what: str) -> None:
        self.waits.append(what)
        if self._tape is not None:
            raise RuntimeError(f"{what}: cannot wait for an accelerator while it records")


def _baked(leaf: Any) -> Any:
    return leaf.clone() if isinstance(leaf, Tensor) and not _is_there(leaf) else leaf


@contextmanager
def accelerator() -> Iterator[Accelerator]:
    """The accelerator. Autocast and generators do not know its type: it has no autocast, and draws as the CPU does."""
    known, generator = torch.is_autocast_enabled, torch.Generator

    def is_autocast_enabled(device_type: str = "cuda") -> bool:
        return device_type != DEVICE.type and known(device_type)

    class Generator(generator):  # a class, since annotations name it
        def __new__(cls, device: torch.device | str = "cpu") -> torch.Generator:
            return generator("cpu" if torch.device(device).type == DEVICE.type else device)

    torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor: first on the host, then there, where this can see it
    try:
        known_here = {"is_autocast_enabled": is_autocast_enabled, "Generator": Generator}
        with mock.patch.multiple(torch, **known_here), Accelerator() as device:
            yield device
    finally:
        torch._C._set_only_lift_cpu_tensors(False)


def on_host(tensor: Tensor) -> Tensor:
    """A copy of the values there."""
    return _memory(tensor.detach()).clone()
