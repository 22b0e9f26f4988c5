"""What Triton makes of the kernels for GPUs that are not here: shared memory, tensor cores, spilled registers.

A process in which Triton interprets cannot compile.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton")

TOOL = Path(__file__).parents[2] / "benchmarks" / "kernels.py"
# Of a block, in bytes.
SHARED = {80: 163 * 1024, 86: 99 * 1024, 89: 99 * 1024, 90: 227 * 1024, 120: 99 * 1024}
HALF = ("--kinds", "half", "--widths")


def costs(*arguments: str) -> list[dict[str, Any]]:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, str(TOOL), "--json", *arguments], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


WALKS = ("walk", "rows", "columns")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "count"),
    [
        ((*HALF, "128", "--for", "80", "89", "90", "--kernels", "log_sums", "pair_sums", "gradients"), 9),
        ((*HALF, "128", "--for", "80", "89", "90", "--kernels", "softplus.sums", "positives.gradients", "riesz.gradients"), 9),
        ((*HALF, "128", "--for", "90", "--kernels", "softplus.gradients", "riesz.sums"), 2),
        ((*HALF, "1024", "--for", "80", "90", "--kernels", "slopes", "products"), 4),
        ((*HALF, "1024", "--for", "86", "--kernels", "log_sums", "riesz.sums", "softplus.slopes"), 3),
        (("--kinds", "mixed", "--widths", "128", "1024", "--for", "90", "--kernels", "riesz.gradients", "riesz.products"), 2),
        (("--kinds", "tf32", "--widths", "128", "--for", "89", "90", "--kernels", "log_sums", "gradients"), 4),
        (("--kinds", "tf32", "--widths", "768", "--for", "86", "--kernels", "slopes", "products"), 2),
        (("--kinds", "float32", "--widths", "128", "--for", "86", "--kernels", "gradients"), 1),
        (("--kinds", "float32", "--widths", "256", "--for", "86", "--kernels", "riesz.slopes", "riesz.products"), 2),
        ((*HALF, "256", "--for", "120", "--kernels", "pair_sums"), 1),
        ((*HALF, "128", "--for", "89", "--kernels", "log_sums", "softplus.sums", "--learned"), 2),
        ((*HALF, "128", "--for", "80", "86", "89", "90", "--kernels", *WALKS), 12),
        (("--kinds", "tf32", "float32", "--widths", "128", "--for", "86", "--kernels", *WALKS), 6),
        (("--kinds", "half", "tf32", "float32", "--widths", "256", "--for", "86", "90", "--kernels", "walk"), 6),
    ],
    ids=lambda each: "-".join(each) if isinstance(each, tuple) else "",
)
def test_machine_code(arguments: tuple[str, ...], count: int) -> None:
    rows = costs(*arguments)
    assert len(rows) == count
    for row in rows:
        assert 0 < row["shared"] <= SHARED[row["for"]], row
        large = row.get("anchors", 64) >= 64  # tiles of fewer rows are no operands of the instruction of Hopper
        assert row["tensor_cores"] == ("wgmma" if row["for"] == 90 and large else "mma.sync"), row
        if (row["kind"] != "float32" or row["kernel"] in WALKS) and row["spills"] is not None:
            assert row["spills"] == row["stack"] == 0, row


def test_machine_code_of_draws() -> None:
    rows = costs("--kernels", "draws", "--for", "80", "90")
    assert [row["kind"] for row in rows] == ["fp32", "fp32", "fp64", "fp64"]
    for row in rows:
        assert row["shared"] <= SHARED[86]
        assert not row["spills"], row
