"""Measures shapes of tiles on one CUDA GPU; prints entries for ``MEASURED`` of ``contrastive_zoo/pairwise/fused/shapes.py``.

    python benchmarks/tune.py                     # half precision, 128 features: minutes, which go into compiling
    python benchmarks/tune.py --kinds half tf32 --widths 64 128 256 1024 --kernels log_sums gradients

From the shape that is in use, the search tries its neighbours, which differ in one number, and moves to the fastest as long as
that gains more than the noise. Times and shapes go to ``benchmarks/results/tune.*``.
"""

import argparse
import statistics
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import gpu
import harness
import torch

from contrastive_zoo import pairwise
from contrastive_zoo.pairwise.fused import launch, shapes
from contrastive_zoo.pairwise.fused.shapes import Kind, Shape

KINDS = {kind.name: kind for kind in (shapes.HALF, shapes.MIXED, shapes.TF32, shapes.FLOAT32)}
DTYPES = {"half": torch.bfloat16, "mixed": torch.float16, "tf32": torch.float32, "float32": torch.float32}
KERNELS = ("log_sums", "pair_sums", "sums", "gradients", "slopes", "products")
# What each number of a shape may be.
CHOICES = {"rows": (16, 32, 64, 128), "columns": (16, 32, 64, 128), "warps": (2, 4, 8), "stages": (1, 2, 3, 4)}
# A faster shape must be faster by this factor.
GAIN = 0.98

Timer = Callable[[Shape], float]


def neighbours(shape: Shape) -> Iterator[Shape]:
    """Shapes that differ in one number, by one step; and those of as many pairs that are higher or lower."""
    for name, value in shape._asdict().items():
        choices = CHOICES[name]
        place = choices.index(value)
        for other in choices[max(place - 1, 0) : place + 2]:
            if other != value:
                yield shape._replace(**{name: other})
    for rows, columns in ((shape.rows * 2, shape.columns // 2), (shape.rows // 2, shape.columns * 2)):
        if rows in CHOICES["rows"] and columns in CHOICES["columns"]:
            yield shape._replace(rows=rows, columns=columns)


def climb(start: Shape, timer: Timer) -> tuple[Shape, dict[Shape, float]]:
    """The shape to use, and milliseconds of all shapes that were tried, infinite for those that do not fit the card."""
    found: dict[Shape, float] = {}

    def timed(shape: Shape) -> float:
        if shape not in found:
            try:
                found[shape] = timer(shape)
            except Exception as error:
                if "out of resource" not in str(error):  # how Triton says that a program needs too much of something
                    raise
                found[shape] = float("inf")
        return found[shape]

    here, last = start, timed(start)
    while True:
        fastest = min(neighbours(here), key=timed)
        if found[fastest] >= GAIN * last:
            return here, found
        here, last = fastest, found[fastest]


def work(kernel: str, kind: Kind, width: int, size: int) -> Callable[[], Any]:
    """What launches the kernel and little else."""
    x = torch.nn.functional.normalize(torch.randn(size, width, device="cuda"), dim=1).to(DTYPES[kind.name])
    x.requires_grad_(kernel in ("gradients", "slopes", "products"))
    if kind.name == "mixed" or (kernel == "sums" and kind.name == "float32"):

        def forward() -> torch.Tensor:
            return pairwise.kernel_sum(x, kernel="imq", parameter=1.0, backend="fused")

    elif kernel == "sums":

        def forward() -> torch.Tensor:
            return pairwise.softplus_sum(x, scale=10.0, norm_bound=1.01, backend="fused")

    else:

        def forward() -> torch.Tensor:
            return pairwise.logsumexp(x, scale=10.0, norm_bound=1.01, backend="fused")

    if not x.requires_grad:
        return forward
    value = forward()
    upstream = torch.ones_like(value)
    return lambda: torch.autograd.grad(value, x, upstream, retain_graph=True)


@contextmanager
def settings(kernel: str, kind: Kind) -> Iterator[None]:
    """Settings under which a sweep launches the kernel."""
    before = torch.get_float32_matmul_precision(), launch.MANY_PAIRS
    torch.set_float32_matmul_precision("high" if kind is shapes.TF32 else "highest")
    launch.MANY_PAIRS = 0 if kernel == "pair_sums" else 2**62
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        launch.MANY_PAIRS = before[1]


def tune(kernel: str, kind: Kind, width: int, size: int, capability: int) -> tuple[Shape, dict[Shape, float]]:
    """As `climb`, with each shape in turn in the place of the one in use."""
    key = kernel, kind.name, shapes.column_of(kind, width), capability
    start, before = shapes.shape_of(kernel, kind, width, capability), shapes.MEASURED.get(key)
    with settings(kernel, kind):
        function = work(kernel, kind, width, size)

        def timer(shape: Shape) -> float:
            shapes.MEASURED[key] = shape
            function()  # compiles
            return statistics.median(gpu.milliseconds(function, 5) for _ in range(5))

        try:
            return climb(start, timer)
        finally:
            del shapes.MEASURED[key]
            if before is not None:
                shapes.MEASURED[key] = before


def exists(kernel: str, kind: Kind, width: int) -> bool:
    """Whether rows of this width launch the kernel in this precision."""
    if kernel in ("gradients", "slopes", "products") and shapes.is_wide(kind, width) == (kernel == "gradients"):
        return False
    return kind is not shapes.MIXED or kernel not in ("log_sums", "pair_sums")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", nargs="+", default=["half"], choices=KINDS)
    parser.add_argument("--kernels", nargs="+", default=list(KERNELS), choices=KERNELS)
    parser.add_argument("--widths", nargs="+", type=int, default=[128])
    parser.add_argument("--rows", type=int, default=8192)
    given = parser.parse_args()
    if not torch.cuda.is_available():
        print("This benchmark needs a CUDA GPU that PyTorch can use, and there is none here.", file=sys.stderr)
        raise SystemExit(2)
    torch.use_deterministic_algorithms(False)
    machine, results = gpu.about(), list[list[Any]]()
    major, minor = torch.cuda.get_device_capability()
    capability = 10 * major + minor
    print(f"{machine['gpu']}; {harness.heading(machine)}", flush=True)
    for name in given.kinds:
        for width in given.widths:
            for kernel in (each for each in given.kernels if exists(each, KINDS[name], width)):
                shape, times = tune(kernel, KINDS[name], width, given.rows, capability)
                best, before = times[shape], next(iter(times.values()))
                key = kernel, name, shapes.column_of(KINDS[name], width), capability
                print(f"    {key!r}: {shape},  # {best:.3f} ms, before {before:.3f}".replace("'", '"'), flush=True)
                results.append([*key[:3], tuple(shape), f"{best:.3f}", f"{before:.3f}", len(times)])
    header = ["kernel", "kind", "width", "rows, columns, warps, stages", "ms", "before", "shapes tried"]
    text = f"{machine['gpu']}, {given.rows} rows.\n\n{harness.table(header, results)}"
    harness.save("tune", machine, {"results": results}, text)


if __name__ == "__main__":
    main()
