"""What the fused kernels cost in machine code, for GPUs that need not be here: compiles them, needs no GPU and no driver.

    python benchmarks/kernels.py                                   # the whole table, for all architectures
    python benchmarks/kernels.py --widths 128 --kinds half --json  # a part of it, for programs

Spilled registers and a stack mean that tiles are too large for their warps. It says nothing of speed. Pointers and strides are
taken to be multiples of 16, as those of tensors with 16, 32, ... features are.
"""

import argparse
import json
import re
import subprocess
import tempfile
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from contrastive_zoo.pairwise.fused import kernels, launch, shapes

ARCHITECTURES = (80, 86, 89, 90, 100, 120)
# How the sweep over a batch of several views uses each kernel.
FLAGS: dict[str, dict[str, Any]] = {
    "log_sums": {"TOTALS": None, "PART": 0},
    "pair_sums": {"SELF": True, "RUN": launch.RUN},
    "gradients": {"PART": 0, "K": 1},
}
# Means are what the gradient of a learned temperature needs.
NUMBER = {"SCALES": 0, "WEIGHTED": None, "COLUMN_WEIGHTED": None, "MEANS": None}
LEARNED = {"SCALES": 1}
OPERANDS = {"half": "*bf16", "tf32": "*fp32", "float32": "*fp32"}


def compiled(kernel: str, kind: shapes.Kind, width: int, capability: int, shape: shapes.Shape, **flags: Any) -> dict[str, Any]:
    """Compile a kernel for a compute capability; what its machine code needs."""
    function = getattr(kernels, kernel)
    constants = {
        **dict(zip(("BM", "BN"), shape, strict=False)),
        "D": width,
        "WIDTH": shapes.padded(width),
        "PRECISION": kind.precision,
        **{"IDS": 1, "EQUAL": False, "IDS_X": None, "IDS_Y": None},
        **FLAGS[kernel],
        **flags,
    }
    constants = {name: value for name, value in constants.items() if name in function.arg_names}
    signature = {name: "constexpr" if name in constants else _type(name, kind, constants) for name in function.arg_names}
    positions = [
        n for n, name in enumerate(signature) if signature[name][0] == "*" or name in ("x_set", "x_row", "y_set", "y_row")
    ]
    aligned = {(position,): [["tt.divisibility", 16]] for position in positions}  # as in a launch
    source = ASTSource(fn=function, signature=signature, constexprs=constants, attrs=aligned)
    options = {"num_warps": shape.warps, "num_stages": shape.stages}
    found = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    ptx = found.asm["ptx"]
    tensor_cores = next((name for name in ("wgmma", "tcgen05", "mma.sync") if name in ptx), "none")
    return {"shared": found.metadata.shared, **_usage(found.asm["cubin"]), "tensor_cores": tensor_cores}


def _type(name: str, kind: shapes.Kind, constants: dict[str, Any]) -> str:
    if name in ("X", "Y"):
        return OPERANDS[kind.name]
    if name == "SCALE" and constants["SCALES"] == 0:
        return "fp32"
    return "*fp32" if name.isupper() else "fp32" if name == "squared_bound" else "i32"


def _usage(cubin: bytes) -> dict[str, int | None]:
    """Registers, stack and spills, as the tool that comes with Triton reads them."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    used: dict[str, int | None] = {"registers": None, "stack": None, "spills": None}
    if tool.exists():
        with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
            file.write(cubin)
            file.flush()
            said, code = (
                subprocess.run([tool, flag, file.name], capture_output=True, text=True, check=False).stdout
                for flag in ("--dump-resource-usage", "--dump-sass")
            )
        if found := re.search(r"REG:(\d+) STACK:(\d+)", said):
            used["registers"], used["stack"] = int(found[1]), int(found[2])
        used["spills"] = len(re.findall(r"\b(?:STL|LDL)\b", code)) if code else None
    return used


def table(
    kinds: list[str], widths: list[int], architectures: list[int], names: list[str], learned: bool
) -> Iterator[dict[str, Any]]:
    """One row for each kernel, kind, width and architecture."""
    every = {kind.name: kind for kind in (shapes.HALF, shapes.TF32, shapes.FLOAT32)}
    for kind, name, width, capability in product(kinds, names, widths, architectures):
        shape = shapes.shape_of(name, every[kind], width, capability)
        cost = compiled(name, every[kind], width, capability, shape, **(LEARNED if learned else NUMBER))
        yield {"kind": kind, "kernel": name, "width": width, "for": capability, **shape._asdict(), **cost}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", nargs="+", default=list(OPERANDS), choices=OPERANDS)
    parser.add_argument("--kernels", nargs="+", default=list(FLAGS), choices=FLAGS)
    parser.add_argument("--widths", nargs="+", type=int, default=[64, 128, 256])
    parser.add_argument("--for", nargs="+", type=int, default=list(ARCHITECTURES), dest="architectures", metavar="CAPABILITY")
    parser.add_argument("--learned", action="store_true", help="with the gradient of a temperature")
    parser.add_argument("--json", action="store_true", help="one JSON object per line")
    given = parser.parse_args()
    rows = table(given.kinds, given.widths, given.architectures, given.kernels, given.learned)
    for number, row in enumerate(rows):
        if given.json:
            print(json.dumps(row), flush=True)
            continue
        if number == 0:
            print(*(f"{name:>12}" for name in row))
        print(*(f"{value!s:>12}" for value in row.values()), flush=True)


if __name__ == "__main__":
    main()
