"""Time, memory and share of the roofline on one CUDA GPU: ``python benchmarks/gpu.py [--sizes 256 4096] [--names ntxent]``.

Right numbers first: every contestant against a dense float64 reference on the CPU. Then forward and backward passes from raw
features, D = 128, under bfloat16 autocast, contestants in turns: a drift of the machine meets all alike. Meant to take under
four minutes on an H100. Results go to ``benchmarks/results/gpu.*``, with a plot where Matplotlib is installed.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any, NamedTuple

import harness
import torch
import torch.nn.functional as F
from torch import Tensor

import contrastive_zoo as zoo

NAMES = ["ntxent", "clip", "infonce", "dcl", "dclw", "supcon", "debiased", "hcl", "dhel", "sogclr", "isogclr", "kcl"]
NAMES += ["alignment_uniformity"]
SIZES = [256, 4096, 16_384, 65_536]
# The largest matrix of similarities that dense contestants may build, in rows.
DENSE_ROWS = 32_768
TURNS, SECONDS, SLOW_MS = 15, 1.0, 300.0
TOLERANCE = {False: 1e-4, True: 2e-2}  # of the norm of the gradient: float32, and bfloat16 autocast

Objective = Callable[[Tensor, Tensor], Tensor]


class Result(NamedTuple):
    """Milliseconds and megabytes (10^6 bytes) of a forward and a backward pass, beyond the features and their gradients."""

    name: str
    contestant: str
    pairs: int
    milliseconds: float
    megabytes: float


def dense_ntxent(z1: Tensor, z2: Tensor) -> Tensor:
    z = F.normalize(torch.cat([z1, z2]), dim=1)
    n = len(z)
    logits = _wide(z @ z.T / 0.1).masked_fill(torch.eye(n, dtype=torch.bool, device=z.device), -torch.inf)
    return F.cross_entropy(logits, (torch.arange(n, device=z.device) + n // 2) % n)


def dense_clip(z1: Tensor, z2: Tensor) -> Tensor:
    logits = _wide(F.normalize(z1, dim=1) @ F.normalize(z2, dim=1).T / 0.07)
    positives = torch.arange(len(z1), device=z1.device)
    return (F.cross_entropy(logits, positives) + F.cross_entropy(logits.T, positives)) / 2


def _wide(logits: Tensor) -> Tensor:
    return logits.float() if logits.dtype == torch.bfloat16 else logits


def inf_cl(z1: Tensor, z2: Tensor) -> Tensor:
    """Inf-CL of DAMO, one direction, on one GPU."""
    from inf_cl import cal_flash_loss

    scale = torch.tensor(1 / 0.07, device=z1.device)
    return cal_flash_loss(F.normalize(z1, dim=1), F.normalize(z2, dim=1), scale=scale, head_dim=z1.shape[1])


DENSE: dict[str, Objective] = {"ntxent": dense_ntxent, "clip": dense_clip}


def ours(name: str, device: str, dtype: torch.dtype = torch.float32, backend: str = "auto") -> Objective:
    loss_fn = zoo.get_loss(name, num_samples=max(SIZES), backend=backend).to(device, dtype)

    def call(z1: Tensor, z2: Tensor) -> Tensor:
        position = torch.arange(len(z1), device=device)
        return loss_fn(z1, z2, index=position, labels=position % 100)

    return call


def contestants(name: str, size: int, device: str) -> dict[str, Objective]:
    """What is timed; the zoo first."""
    found = {"zoo": ours(name, device)}
    if name in DENSE and size * (2 if name == "ntxent" else 1) <= DENSE_ROWS:
        found |= {"dense": DENSE[name], "compiled": torch.compile(DENSE[name], dynamic=False)}
    if name == "clip" and find_spec("inf_cl"):
        found["inf_cl, one direction"] = inf_cl
    return found


def features(size: int, device: str, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    z1, z2, _ = harness.features(size)
    z1, z2 = (z.detach().to(device, dtype).requires_grad_() for z in (z1, z2))
    return z1, z2


def step(objective: Objective, z1: Tensor, z2: Tensor, half: bool) -> Tensor:
    z1.grad = z2.grad = None
    with torch.autocast(z1.device.type, torch.bfloat16, enabled=half):
        value = objective(z1, z2)
    value.backward()
    return value


def gradient(objective: Objective, size: int, device: str, half: bool = False, dtype: torch.dtype = torch.float32) -> Tensor:
    z1, z2 = features(size, device, dtype)
    step(objective, z1, z2, half)
    return torch.cat([z1.grad, z2.grad]).double().cpu()


def worst_errors(name: str, size: int, device: str) -> dict[str, float]:
    """Error of the gradient over its norm, of all contestants in float32 and under autocast."""
    reference = gradient(ours(name, "cpu", torch.float64, "dense"), size, "cpu", dtype=torch.float64)
    errors = {}
    for label in contestants(name, size, device):
        if label == "inf_cl, one direction":
            continue  # another objective: half of clip's
        for half in (True,) if label == "compiled" else (False, True):  # compiling takes seconds
            objective = contestants(name, size, device)[label]  # anew: tables start empty
            found = gradient(objective, size, device, half)
            errors[f"{label}, {'bf16' if half else 'f32'}"] = float((found - reference).norm() / reference.norm())
    return errors


def verify(names: list[str], device: str, size: int = 200) -> dict[str, dict[str, float]]:
    """Stops the benchmark if a contestant's gradient is wrong."""
    found = {name: worst_errors(name, size, device) for name in names}
    for name, errors in found.items():
        for label, error in errors.items():
            if not error < TOLERANCE[label.endswith("bf16")]:
                raise SystemExit(f"{name}, {label}: the gradient is {error:.1e} of its norm off. Wrong numbers are not timed.")
    return found


def milliseconds(function: Callable[[], Any], calls: int = 1) -> float:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(calls):
        function()
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end) / calls


def megabytes(function: Callable[[], Any]) -> float:
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    function()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 1e6


def measure(name: str, size: int) -> list[Result]:
    """Every contestant at one size, in turns."""
    z1, z2 = features(size, "cuda")
    steps = {label: lambda f=f: step(f, z1, z2, True) for label, f in contestants(name, size, "cuda").items()}
    usage = {}
    for label in list(steps):
        try:
            steps[label](), steps[label]()  # compile, and allocate what stays
            usage[label] = megabytes(steps[label])
        except (RuntimeError, ImportError) as error:  # out of memory, or a peer that cannot
            print(f"{name}, {label}, {size}: {type(error).__name__}: {error}"[:160], flush=True)
            del steps[label]
            torch.cuda.empty_cache()
    times: dict[str, list[float]] = {label: [] for label in steps}
    calls = {label: max(1, round(2 / milliseconds(function))) for label, function in steps.items()}
    started = time.perf_counter()
    while len(next(iter(times.values()))) < TURNS and (time.perf_counter() - started < SECONDS or not times["zoo"]):
        for label, function in steps.items():
            times[label].append(milliseconds(function, calls[label]))
    return [Result(name, label, size, statistics.median(times[label]), usage[label]) for label in steps]


def roofline() -> dict[str, float]:
    """What the card does at best: bfloat16 products in TFLOP/s, and exponentials in 10^12 a second."""
    a = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
    x = torch.randn(2**26, device="cuda")
    many = torch.compile(lambda x: sum((x + k).exp2() for k in range(64)), dynamic=False)
    for function in (lambda: a @ a, lambda: many(x)):
        function()
    return {
        "bf16_tflops": 2 * 8192**3 / milliseconds(lambda: a @ a, 20) / 1e9,
        "exponentials_1e12": 64 * x.numel() / milliseconds(lambda: many(x), 20) / 1e9,
    }


def share(result: Result, best: dict[str, float]) -> float:
    """Time of the products and exponentials that a sweep needs over the time that was taken.

    ntxent: similarities of each pair of rows once, forward and backward, and two products for the gradient. clip: the
    similarities twice, a product for each tower.
    """
    rows = 2 * result.pairs if result.name == "ntxent" else result.pairs
    pairs = rows**2
    products, exponentials = (2.5, 1.5) if result.name == "ntxent" else (4.0, 2.0)
    flops = products * 2 * pairs * harness.DIMENSION
    seconds = flops / (best["bf16_tflops"] * 1e12) + exponentials * pairs / (best["exponentials_1e12"] * 1e12)
    return 1e3 * seconds / result.milliseconds


def plot(results: list[Result], path: str) -> None:
    """Time and memory against the number of pairs, both axes logarithmic."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), layout="constrained")
    for axes, column, label in zip(figure.subplots(1, 2), (3, 4), ("milliseconds", "extra megabytes"), strict=True):
        for name, contestant in dict.fromkeys((r.name, r.contestant) for r in results if r.name in DENSE):
            line = [r for r in results if (r.name, r.contestant) == (name, contestant)]
            style = "-" if contestant == "zoo" else "--"
            pairs, values = [r.pairs for r in line], [max(r[column], 0.01) for r in line]
            axes.loglog(pairs, values, style, marker="o", label=f"{name}, {contestant}")
        axes.set(xlabel="pairs", ylabel=label)
        axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    figure.savefig(path)


def rows_of(results: list[Result], best: dict[str, float]) -> list[list[str]]:
    shown = []
    for r in results:
        zoo_time = next(o.milliseconds for o in results if o[:3] == (r.name, "zoo", r.pairs))
        part = f"{100 * share(r, best):.0f} %" if r.name in DENSE and r.contestant == "zoo" else "-"
        ratio = f"{r.milliseconds / zoo_time:.2f}x"
        shown.append([r.name, r.contestant, str(r.pairs), *map(harness.number, r[3:]), ratio, part])
    return shown


def about() -> dict[str, Any]:
    found = harness.machine()
    found["gpu"] = torch.cuda.get_device_name()
    found["capability"] = torch.cuda.get_device_capability()
    found["versions"] |= {"cuda": torch.version.cuda or "none", **{p: harness._version(p) for p in ("triton", "inf-cl")}}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--names", nargs="+", default=NAMES, choices=zoo.list_losses())
    parser.add_argument("--sizes", nargs="+", type=int, default=SIZES)
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("This benchmark needs a CUDA GPU that PyTorch can use, and there is none here.", file=sys.stderr)
        raise SystemExit(2)
    machine, started = about(), time.perf_counter()
    print(f"{machine['gpu']}; {harness.heading(machine)}", flush=True)
    errors = verify(options.names, "cuda")
    best, results = roofline(), []
    for name in options.names:
        for size in sorted(options.sizes):
            results += measure(name, size)
            print(*rows_of([r for r in results if r[::2][:2] == (name, size)], best), sep="\n", flush=True)
            if max(r.milliseconds for r in results if r.name == name and r.contestant == "zoo") > SLOW_MS:
                break
    header = ["objective", "contestant", "pairs", "ms", "extra MB", "over the zoo", "of the roofline"]
    text = f"{machine['gpu']}. Bare products {best['bf16_tflops']:.0f} TFLOP/s, "
    text += f"{best['exponentials_1e12']:.1f}e12 exponentials a second.\n\n"
    text += harness.table(header, rows_of(results, best))
    print(f"\n{text}\n\n{time.perf_counter() - started:.0f} s")
    data = {"roofline": best, "gradient_errors": errors, "results": [r._asdict() for r in results]}
    harness.save("gpu", machine, data, text)
    if find_spec("matplotlib"):
        plot(results, str(harness.RESULTS / "gpu.svg"))


if __name__ == "__main__":
    main()
