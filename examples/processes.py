"""Processes that torchrun has started: which one this is, what all of them agree on, and how a run is asked to stop."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import torch
import torch.distributed as dist
from errors import SettingError


@contextmanager
def processes(device: str) -> Iterator[torch.device]:
    """The device of this process, in the group of all processes if torchrun has started several.

    Raises:
        SettingError: PyTorch has no such device.
    """
    started = "RANK" in os.environ and not dist.is_initialized()
    found = choose_device(device)
    if started:
        if found.type == "cuda":
            found = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
            torch.cuda.set_device(found)
        dist.init_process_group("nccl" if found.type == "cuda" else "gloo")
    try:
        yield found
        if started:
            dist.barrier()  # a process that leaves early takes the connections of the others with it
    finally:
        if started:
            dist.destroy_process_group()


def choose_device(name: str) -> torch.device:
    """CUDA where there is one for "auto", otherwise what the name says.

    Raises:
        SettingError: PyTorch has no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise SettingError(f"--device {name}: {error}") from error


def rank() -> int:
    """Number of this process; 0 is the one that evaluates and writes."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def wait() -> None:
    """Wait for all processes."""
    if dist.is_initialized():
        dist.barrier()


class Stop:
    """Whether the run is to save and stop: a signal came, or its time is over.

    The signals are those of an interruption (Ctrl-C) and of a scheduler (SIGTERM). A second one ends the process at once.

    Args:
        minutes: Time after which the run stops; None for no limit.
        device: Device of this process, for the vote of all processes.
        clock: Seconds.
    """

    def __init__(self, minutes: float | None, device: torch.device, clock: Callable[[], float] = time.monotonic) -> None:
        self.signal: int | None = None
        self._device, self._clock = device, clock
        self._end = float("inf") if minutes is None else clock() + 60 * minutes

    @contextmanager
    def listening(self) -> Iterator["Stop"]:
        """Catch the signals."""
        before = {number: signal.signal(number, self._remember) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self.signal = number
        signal.signal(number, signal.SIG_DFL)

    def wanted(self) -> bool:
        """Whether any process is to stop; all processes must ask together."""
        own = self.signal is not None or self._clock() >= self._end
        if not dist.is_initialized():
            return own
        vote = torch.tensor(int(own), device=self._device)
        dist.all_reduce(vote, dist.ReduceOp.MAX)
        return bool(vote)
