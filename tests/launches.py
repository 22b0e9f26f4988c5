"""Counts what a step launches: kernels of this package and operations of PyTorch."""

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class Recorder:
    """Stands for the module of kernels, and remembers what is launched, without doing it."""

    def __init__(self, seen: list[tuple[str, tuple[Any, ...]]]) -> None:
        self.seen = seen

    def __getattr__(self, name: str) -> Any:
        class Kernel:
            def __getitem__(self, grid: Any) -> Callable[..., None]:
                return lambda *arguments, **_: seen.append((name, arguments))

        seen = self.seen
        return Kernel()


class Work(TorchDispatchMode):
    """Remembers the operators of PyTorch that launch a kernel if tensors are on a GPU."""

    FREE = ("empty", "new_empty", "_local_scalar_dense")

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        name = func.name().removeprefix("aten::").split(".")[0]
        if not func.is_view and not name.startswith(self.FREE) and isinstance(found, Tensor) and found.numel():
            self.seen.append(name)
        return found
