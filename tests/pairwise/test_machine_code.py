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


def costs(*arguments: str) -> list[dict[str, Any]]:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, str(TOOL), "--json", *arguments], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


SUMS, WALKS = ("log_sums", "pair_sums", "gradients"), ("walk", "rows", "columns")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "count"),
    [
        (("--kinds", "half", "--widths", "128", "--for", "80", "89", "90", "--kernels", *SUMS), 9),
        (("--kinds", "tf32", "--widths", "128", "--for", "89", "90", "--kernels", "log_sums", "gradients"), 4),
        (("--kinds", "float32", "--widths", "256", "--for", "86", "--kernels", "gradients"), 1),
        (("--kinds", "half", "--widths", "256", "--for", "120", "--kernels", "pair_sums"), 1),
        (("--kinds", "half", "--widths", "128", "--for", "89", "--kernels", "log_sums", "--learned"), 1),
        (("--kinds", "half", "--widths", "128", "--for", "80", "86", "89", "90", "--kernels", *WALKS), 12),
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
