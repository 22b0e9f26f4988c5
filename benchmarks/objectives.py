"""Time and memory of the objectives beside their peers: ``python benchmarks/objectives.py [--names ntxent ...]``.

Nothing is timed before its value and gradient equal the float64 reference; `README.md` says what is measured and how.
"""

import argparse
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

import harness
import torch
from bars import SWEEP, Bar, Row, bars, render_bars, render_rows
from harness import Loss, Step
from peers import OBJECTIVES, Objective
from sweep import bare_sweep_of
from verify import verify

BUSY = 0.05


def build(title: str, contestant: str, batch_size: int) -> tuple[Step, Step]:
    """Warm-up and step of a contestant, for a fresh process; compiled code is warmed up at its own size."""
    warnings.filterwarnings("ignore", module="torch._inductor")
    objective = next(objective for objective in OBJECTIVES if objective.title == title)
    peer = objective.contestants[contestant]
    loss = peer.make()
    step = harness.forward_backward(loss, *harness.features(batch_size))
    return step if peer.kind == "compiled" else harness.forward_backward(loss, *harness.features(64)), step


def verified(objective: Objective) -> dict[str, Loss]:
    """The contestants that are installed and right, ready to use."""
    losses = {}
    for name, peer in objective.contestants.items():
        try:
            losses[name] = peer.make()
        except ImportError as error:
            print(f"  {name}: left out, {error}")
            continue
        verify(objective, peer)
    return losses


def measure(objective: Objective, losses: dict[str, Loss], batch_size: int, seconds: float, memory: bool) -> list[Row]:
    torch.compiler.reset()
    z1, z2, index = harness.features(batch_size)
    steps = {}
    for name, loss in losses.items():
        peer = objective.contestants[name]
        if peer.largest is not None and batch_size > peer.largest:
            print(f"  {name}: left out at {batch_size}, {peer.why}")
        else:
            steps[name] = harness.forward_backward(loss, z1, z2, index)
    if sweep := bare_sweep_of(objective, z1, z2):
        steps[SWEEP] = sweep
    with harness.OtherLoad() as others:
        timings = harness.time_in_turns(steps, seconds)
    if others.share > BUSY:
        print(f"  other processes took {others.share:.0%} of the machine meanwhile: do not trust these times")
    rows = []
    for name, t in timings.items():
        kind = SWEEP if name == SWEEP else objective.contestants[name].kind
        usage = None
        if memory and name != SWEEP:
            usage = harness.usage_in_fresh_process(build, objective.title, name, batch_size)
        ratio, megabytes = t.median / timings["zoo"].median, usage and usage.megabytes
        times = t.median, t.quartiles, t.fastest, ratio
        rows.append(Row(objective.title, batch_size, name, kind, *times, megabytes, others.share))
    return rows


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    names = sorted({objective.name for objective in OBJECTIVES})
    parser.add_argument("--names", nargs="+", choices=names, default=names, help="objectives to measure (default: all)")
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[256, 1024, 4096])
    parser.add_argument("--seconds", type=float, default=5.0, help="time for each contestant at each size")
    parser.add_argument("--no-memory", action="store_true", help="leave out peak memory, which takes a process per figure")
    parser.add_argument("--quick", action="store_true", help="256 and 1024 pairs, one second each, no memory")
    parser.add_argument("--output", type=Path, default=harness.RESULTS, help="folder of the result files")
    options = parser.parse_args()
    if options.quick:
        options.batch_sizes, options.seconds, options.no_memory = [256, 1024], 1.0, True
    return options


def main() -> None:
    options = arguments()
    harness.use_all_cores()
    harness.grow_heap()
    warnings.filterwarnings("ignore", module="torch._inductor")
    about = harness.machine()
    print(harness.heading(about))
    rows: list[Row] = []
    found: list[Bar] = []
    for objective in (o for o in OBJECTIVES if o.name in options.names):
        print(f"\n{objective.title}", flush=True)
        losses = verified(objective)
        for batch_size in options.batch_sizes:
            new = measure(objective, losses, batch_size, options.seconds, memory=not options.no_memory)
            rows, found = rows + new, found + bars(new)
            print(render_rows(new), flush=True)
            save(about, rows, found, options.output)
    print(f"\n{render_bars(found)}\n\nsaved in {options.output}")


def save(about: dict[str, Any], rows: list[Row], found: list[Bar], folder: Path) -> None:
    data = {"rows": [asdict(row) for row in rows], "bars": [asdict(bar) | {"verdict": bar.verdict} for bar in found]}
    harness.save("objectives", about, data, f"{render_rows(rows)}\n\n{render_bars(found)}", folder)


if __name__ == "__main__":
    main()
