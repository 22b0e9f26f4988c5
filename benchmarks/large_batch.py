"""One step of a batch that no similarity matrix could hold: ``python benchmarks/large_batch.py [--name ntxent]``."""

import argparse
from dataclasses import asdict

import harness
from objectives import build
from peers import OBJECTIVES

BAR_MEGABYTES = 1000.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--name", default="ntxent", choices=[objective.title for objective in OBJECTIVES])
    parser.add_argument("--batch-size", type=int, default=65_536)
    options = parser.parse_args()
    harness.use_all_cores()
    about = harness.machine()
    print(harness.heading(about), flush=True)
    usage = harness.usage_in_fresh_process(build, options.name, "zoo", options.batch_size)
    if usage is None:
        raise SystemExit("this system does not tell the peak memory of a process")
    matrix = (2 * options.batch_size) ** 2 * 4 / 1e9
    verdict = "met" if usage.megabytes <= BAR_MEGABYTES else "MISSED"
    text = f"{options.name}, {options.batch_size:,} pairs, d={harness.DIMENSION}, forward and backward: "
    text += f"{usage.seconds:.1f} s, {usage.megabytes:.0f} MB extra; bar {BAR_MEGABYTES:.0f} MB: {verdict} "
    text += f"(one matrix of similarities: {matrix:.0f} GB)"
    print(text)
    harness.save("large_batch", about, vars(options) | asdict(usage), text)


if __name__ == "__main__":
    main()
