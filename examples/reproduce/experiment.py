"""What the experiments on the papers' claims share: a budget, runs over processes that can be interrupted, tables and verdicts.

A run is a dictionary of settings that JSON can hold, among them its seed; what it finds is a dictionary too. A script makes
the runs, gives them to `carry_out` with the function that does one, and writes its claims with `write`.
"""

import argparse
import json
import math
import multiprocessing
import os
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib import rc_context
from matplotlib.figure import Figure
from scipy.stats import t as student
from tqdm import tqdm

import contrastive_zoo as zoo

STYLE = {"font.size": 10, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.color": "#e6e6e6"}
COLOURS = {
    "ntxent": "#8a8a8a",
    "dcl": "#9467bd",
    "sogclr": "#3465a4",
    "emc2": "#e07b39",
    "dhel": "#3d7a2a",
    "kcl": "#b03030",
    "negative_cache": "#7fb069",
    "infonce": "#c9a227",
}

Run = dict[str, Any]
Result = dict[str, Any]


class Claim(NamedTuple):
    """What a paper says, and what the table says to it.

    Attributes:
        text: The claim.
        verdict: "holds", "does not show" or "the opposite shows", by `Difference.verdict` or another rule that `write` is told.
        evidence: The figures behind the verdict.
    """

    text: str
    verdict: str
    evidence: str


class Difference(NamedTuple):
    """Mean of differences between runs of the same seed, with the 95% interval of Student's t.

    Attributes:
        mean: Mean over seeds.
        half: Half the width of the interval.
    """

    mean: float
    half: float

    def verdict(self) -> str:
        """Whether the difference is positive: it holds if the whole interval is, and the opposite shows if all is negative."""
        if self.mean - self.half > 0:
            return "holds"
        return "the opposite shows" if self.mean + self.half < 0 else "does not show"

    def below(self, margin: float) -> str:
        """Whether the difference is less than a margin: it holds if the whole interval is, the opposite shows if none is."""
        return Difference(margin - self.mean, self.half).verdict()

    def __str__(self) -> str:
        return f"{self.mean:+.3g} ± {self.half:.2g}"


def arguments(name: str, doc: str) -> argparse.ArgumentParser:
    """The settings of every experiment; a script may add its own."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("runs/reproduce") / name, help="folder for runs, table and picture")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each setting, 3 or more")
    parser.add_argument("--workers", type=int, default=2, help="processes of one thread each")
    parser.add_argument("--quick", action="store_true", help="a few tiny runs in this process, to see that it works")
    return parser


def carry_out(
    runs: Sequence[Run], do: Callable[[Run], Result], seconds: Callable[[Run], float], settings: argparse.Namespace
) -> list[Result]:
    """What all runs find, each with its settings and seconds; runs that an earlier call has finished are not done again.

    Args:
        runs: Settings of each run.
        do: Does one run; a function of a module.
        seconds: How long a run takes, for the budget; from a measurement, such as `seconds_per_step`.
        settings: From `arguments`.
    """
    torch.set_num_threads(1)
    folder = settings.output / "runs"
    folder.mkdir(parents=True, exist_ok=True)
    left = [run for run in runs if stored(folder, run) is None]
    workers = 1 if settings.quick else settings.workers
    minutes = sum(seconds(run) for run in left) / workers / 60
    print(f"{len(runs)} runs, {len(runs) - len(left)} of them done before: about {minutes:.1f} minutes on {workers} cores")
    jobs = [(do, run, folder) for run in left]
    if workers == 1:
        for job in tqdm(jobs, desc="runs", disable=settings.quick):
            _do(job)
    elif jobs:
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(workers, context, torch.set_num_threads, (1,)) as pool:
            list(tqdm(pool.map(_do, jobs), total=len(jobs), desc="runs"))
    return [found for run in runs if (found := stored(folder, run)) is not None]


def _do(job: tuple[Callable[[Run], Result], Run, Path]) -> None:
    """Do a run and store what it found at once."""
    do, run, folder = job
    started = time.perf_counter()
    found = {**run, **do(run), "seconds": round(time.perf_counter() - started, 1)}
    path = _path(folder, run)
    unfinished = path.with_suffix(".tmp")
    unfinished.write_text(json.dumps({"run": run, "found": found}))
    unfinished.replace(path)


def _path(folder: Path, run: Run) -> Path:
    return folder / ("_".join(str(value) for value in run.values()).replace("/", "-") + ".json")


def stored(folder: Path, run: Run) -> Result | None:
    """What an earlier call found with these very settings."""
    path = _path(folder, run)
    kept = json.loads(path.read_text()) if path.exists() else {"run": None}
    return kept["found"] if kept["run"] == run else None


def seconds_per_step(step: Callable[[], object], times: int = 3) -> float:
    """How long a step takes, after one to warm up."""
    torch.set_num_threads(1)
    step()
    started = time.perf_counter()
    for _ in range(times):
        step()
    return (time.perf_counter() - started) / times


def values(results: Sequence[Result], figure: str, **where: Any) -> np.ndarray[Any, np.dtype[np.float64]]:
    """A figure of the runs with given settings, in the order of seeds."""
    chosen = [result for result in results if all(result[key] == value for key, value in where.items())]
    return np.array([result[figure] for result in sorted(chosen, key=lambda result: result["seed"])], dtype=np.float64)


def difference(first: Sequence[float] | np.ndarray[Any, Any], second: Sequence[float] | np.ndarray[Any, Any]) -> Difference:
    """First minus second, both in the order of the same seeds."""
    differences = np.asarray(first, dtype=float) - np.asarray(second, dtype=float)
    count = len(differences)
    if count < 2:
        return Difference(float(differences.mean()), math.inf)
    half = student.ppf(0.975, count - 1) * differences.std(ddof=1) / math.sqrt(count)
    return Difference(float(differences.mean()), float(half))


def spread(found: Sequence[float] | np.ndarray[Any, Any], digits: int = 3) -> str:
    """Mean and standard deviation over seeds."""
    deviation = np.std(found, ddof=1) if len(found) > 1 else 0.0
    return f"{np.mean(found):.{digits}f} ± {deviation:.{digits}f}"


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def write(name: str, settings: argparse.Namespace, results: Sequence[Result], tables: str, claims: Sequence[Claim]) -> str:
    """Write what was found: `name.json` with everything, `name.md` for the documentation; returns the latter.

    Args:
        name: Of the experiment and its page.
        settings: From `arguments`.
        results: What `carry_out` returned.
        tables: Markdown.
        claims: Each with its verdict.
    """
    seeds = sorted({result["seed"] for result in results})
    made = {
        "command": f"python examples/reproduce/{name}.py" + (" --quick" if settings.quick else ""),
        "seeds": seeds,
        "machine": machine(),
        "versions": f"Python {platform.python_version()}, PyTorch {torch.__version__}, contrastive-zoo {zoo.__version__}",
        "minutes of runs": round(sum(result["seconds"] for result in results) / 60, 1),
    }
    verdicts = table(["claim", "verdict", "figures"], [list(claim) for claim in claims])
    source = (
        f"`{made['command']}`, seeds {', '.join(map(str, seeds))}. The runs took {made['minutes of runs']} minutes in all, "
        f"{1 if settings.quick else settings.workers} at a time, on a {made['machine']}; {made['versions']}.\n"
    )
    text = f"{tables}\n{verdicts}\n{source}"
    record = {**made, "claims": [claim._asdict() for claim in claims], "runs": results}
    settings.output.mkdir(parents=True, exist_ok=True)
    (settings.output / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n")
    (settings.output / f"{name}.md").write_text(text)
    print(text)
    return text


def machine() -> str:
    """The cores and the name of the processor."""
    described = Path("/proc/cpuinfo")
    lines = described.read_text().splitlines() if described.exists() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{os.cpu_count()}-core {models[0] if models else platform.processor() or platform.machine()}"


@contextmanager
def picture(path: Path, width: float, height: float) -> Iterator[Figure]:
    """A figure to draw into, saved as an SVG whose text stays text and whose ids are the same in every run."""
    with rc_context({**STYLE, "svg.fonttype": "none", "svg.hashsalt": path.stem}):
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, metadata={"Date": None, "Creator": None})
