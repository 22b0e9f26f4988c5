"""Timing in turns, peak memory in fresh processes, and the tables and files that results go to."""

import ctypes
import gc
import json
import os
import platform
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

DIMENSION = 128
NUM_SAMPLES = 50_000
RESULTS = Path(__file__).parent / "results"
PEER_PACKAGES = ("lightly", "pytorch-metric-learning", "info-nce-pytorch", "open-clip-torch", "libauc")

TURN_SECONDS = 0.03
FEWEST_TURNS, MOST_TURNS = 3, 40
SLOW_SECONDS = 10.0

# Compiling waits for a lock in the cache folder, which a process that has nothing to do with the benchmark may hold.
os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(Path(tempfile.gettempdir()) / "contrastive-zoo-benchmarks"))

# Blocks of this size and more go back to the system once they are freed: resident memory then follows live memory.
MALLOC = {"MALLOC_MMAP_THRESHOLD_": "262144", "MALLOC_TRIM_THRESHOLD_": "0"}

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
Step = Callable[[], object]


@dataclass(frozen=True)
class Timing:
    """Milliseconds per call: median, fastest turn and quartiles over the turns."""

    median: float
    fastest: float
    quartiles: tuple[float, float]
    turns: int


@dataclass(frozen=True)
class Usage:
    """What one call takes in a fresh process: megabytes (10^6 bytes) beyond the inputs, and seconds."""

    megabytes: float
    seconds: float


def use_all_cores() -> None:
    torch.set_num_threads(len(os.sched_getaffinity(0)))


def grow_heap() -> None:
    """Frees a block as large as an encoder's activations, as every training step does.

    glibc hands memory back to the system after each step until it has seen such a block, and steps of a few milliseconds then
    consist of page faults, for all contestants.
    """
    torch.empty(30 * 2**20, dtype=torch.uint8).zero_()


def features(batch_size: int, dimension: int = DIMENSION, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Two related views (B, D) as leaves that want a gradient, and the index (B,) of distinct samples."""
    generator = torch.Generator().manual_seed(seed)
    common, first, second = torch.randn(3, batch_size, dimension, generator=generator)
    index = torch.randperm(max(NUM_SAMPLES, batch_size), generator=generator)[:batch_size]
    return (common + first).requires_grad_(), (common + second).requires_grad_(), index


def forward_backward(loss: Loss, z1: Tensor, z2: Tensor, index: Tensor) -> Step:
    """A step from raw features to their gradients."""

    def step() -> None:
        z1.grad = z2.grad = None
        loss(z1, z2, index).backward()

    return step


def time_in_turns(steps: Mapping[str, Step], seconds: float) -> dict[str, Timing]:
    """Times the steps in turns of random order, about `seconds` each, so that a drift of the machine meets all alike.

    A turn repeats a fast step until it lasts 30 ms. A slow step takes fewer turns, spread over the whole run; one that
    lasts more than 10 s takes a single turn, without warm-up.
    """
    calls, turns = {}, {}
    for name, step in steps.items():
        once = _seconds(step, 1)
        once = once if once > SLOW_SECONDS else _seconds(step, 1)
        calls[name] = max(1, round(TURN_SECONDS / once))
        fewest = 1 if once > SLOW_SECONDS else FEWEST_TURNS
        turns[name] = min(max(int(seconds / (once * calls[name])), fewest), MOST_TURNS)
    samples: dict[str, list[float]] = {name: [] for name in steps}
    order, rounds, shuffle = list(steps), max(turns.values()), random.Random(0).shuffle
    for r in range(rounds):
        shuffle(order)
        for name in order:
            if r * turns[name] // rounds != (r + 1) * turns[name] // rounds:
                samples[name].append(1e3 * _seconds(steps[name], calls[name]))
    return {name: _summary(values) for name, values in samples.items()}


class OtherLoad:
    """Share of the machine that other processes took within the `with` block, from 0 to 1, in `share`."""

    share = 0.0

    def __enter__(self) -> "OtherLoad":
        self._start = time.perf_counter(), _others()
        return self

    def __exit__(self, *_: object) -> None:
        start, others = self._start
        self.share = max(0.0, _others() - others) / ((time.perf_counter() - start) * (os.cpu_count() or 1))


def _others() -> float:
    """Seconds of processor time of all other processes since the system started."""
    user, nice, system, _, _, irq, soft, steal = map(int, Path("/proc/stat").read_text().split()[1:9])
    own = os.times()
    return (user + nice + system + irq + soft + steal) / os.sysconf("SC_CLK_TCK") - own.user - own.system


def _seconds(step: Step, calls: int) -> float:
    gc.disable()
    start = time.perf_counter()
    for _ in range(calls):
        step()
    taken = (time.perf_counter() - start) / calls
    gc.enable()
    return taken


def _summary(milliseconds: list[float]) -> Timing:
    low, _, high = statistics.quantiles(milliseconds * (2 if len(milliseconds) == 1 else 1), n=4)
    return Timing(statistics.median(milliseconds), min(milliseconds), (low, high), len(milliseconds))


def usage_in_fresh_process(build: Callable[..., tuple[Step, Step]], *arguments: Any) -> Usage | None:
    """Peak memory of a step beyond its inputs, None where the system does not tell.

    ``build(*arguments)`` runs in the new process, must be importable there, and returns a warm-up and the step itself.
    """
    before = {name: os.environ.get(name) for name in MALLOC}
    os.environ.update(MALLOC)
    try:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            return pool.submit(_usage, build, *arguments).result()
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.__setitem__(name, value)


def _usage(build: Callable[..., tuple[Step, Step]], *arguments: Any) -> Usage | None:
    use_all_cores()
    warm_up, step = build(*arguments)
    torch.mm(torch.rand(600, 600), torch.rand(600, 600)).exp()
    warm_up()
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return None
    resident = _status("VmRSS")
    seconds = _seconds(step, 1)
    return Usage((_status("VmHWM") - resident) * 1024 / 1e6, seconds)


def _status(field: str) -> int:
    """A field of the process status in kibibytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field))


def machine() -> dict[str, Any]:
    """Hardware, versions and load, to head every table."""
    return {
        "cpu": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "load_at_start": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in ("torch", "contrastive-zoo", *PEER_PACKAGES)},
    }


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def heading(about: Mapping[str, Any]) -> str:
    versions = ", ".join(f"{name} {number}" for name, number in about["versions"].items())
    return (
        f"{about['cores']}-core {about['cpu']}, {about['threads']} threads, {about['memory_gb']} GB; "
        f"load {about['load_at_start']} when started; Python {about['python']}; {versions}"
    )


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table whose columns line up as plain text too."""
    cells = [[str(cell) for cell in row] for row in [header, *rows]]
    widths = [max(len(row[k]) for row in cells) for k in range(len(header))]
    lines = ["| " + " | ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) + " |" for row in cells]
    return "\n".join([lines[0], "|" + "|".join("-" * (w + 2) for w in widths) + "|", *lines[1:]])


def number(value: float | None) -> str:
    """Three significant digits, ``-`` for what was not measured."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def save(name: str, about: Mapping[str, Any], data: Any, markdown: str, folder: Path = RESULTS) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps({"machine": about, "results": data}, indent=1) + "\n")
    (folder / f"{name}.md").write_text(f"# {name}\n\n{heading(about)}\n\n{markdown}\n")
