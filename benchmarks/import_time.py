"""Import time beyond torch, in fresh processes: ``python benchmarks/import_time.py``.

Byte code is written first, as pip does when it installs a wheel.
"""

import compileall
import json
import statistics
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import harness

BAR, STRETCH, REPEATS = 0.1, 0.05, 15
HEAVY = ("timm", "torchvision", "sklearn", "scipy", "matplotlib")
PROGRAM = f"""
import json, sys, time
import torch
start, loaded = time.perf_counter(), set(sys.modules)
import contrastive_zoo
taken = time.perf_counter() - start
print(json.dumps([taken, [name for name in {HEAVY} if name in sys.modules], len(set(sys.modules) - loaded)]))
"""


def main() -> None:
    about = harness.machine()
    print(harness.heading(about))
    package = find_spec("contrastive_zoo")
    compileall.compile_dir(Path(package.origin).parent, quiet=1)
    runs = [json.loads(subprocess.check_output([sys.executable, "-c", PROGRAM], text=True)) for _ in range(REPEATS + 1)]
    seconds = [run[0] for run in runs[1:]]  # the first reads the files from the disk
    if runs[0][1]:
        raise SystemExit(f"import contrastive_zoo also imports {', '.join(runs[0][1])}")
    median = statistics.median(seconds)
    verdict = "met, stretch too" if median <= STRETCH else "met" if median <= BAR else "MISSED"
    text = f"{median:.3f} s over `import torch` ({min(seconds):.3f} to {max(seconds):.3f} in {REPEATS} processes, "
    text += f"{runs[0][2]} modules); bar {BAR} s, stretch {STRETCH} s: {verdict}"
    print(text)
    harness.save("import_time", about, {"seconds": seconds, "median": median}, text)


if __name__ == "__main__":
    main()
