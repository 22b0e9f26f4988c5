"""What the fused kernels cost in machine code, for GPUs that need not be here: compiles them, needs no GPU and no driver.

    python benchmarks/kernels.py                                   # the whole table, for all architectures
    python benchmarks/kernels.py --widths 128 --kinds half --json  # a part of it, for programs
    python benchmarks/kernels.py --kernels softplus.gradients      # one use of a kernel

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

from contrastive_zoo.pairwise import fused
from contrastive_zoo.pairwise.fused import kernels, launch, shapes

ARCHITECTURES = (80, 86, 89, 90, 100, 120)
Use = tuple[str, dict[str, Any]]
# How sweeps use each kernel: log-sum-exps of a batch of several views, and other terms by name. Kernels of a distance differ in
# one function; the one with the most instructions stands for all.
USES: dict[str, Use] = {
    "log_sums": ("log_sums", {"TOTALS": None, "PART": 0}),
    "pair_sums": ("pair_sums", {"SELF": True, "RUN": launch.RUN}),
    "gradients": ("gradients", {"PART": 0, "K": 1, "TERM": fused.LOGSUMEXP, "OFFSETS": None}),
    "slopes": ("slopes", {"K": 1, "TERM": fused.LOGSUMEXP}),
    "products": ("products", {"TERM": fused.LOGSUMEXP, "OFFSETS": None}),
}
SUMS_ONLY: dict[str, None] = {"DERIVATIVES": None, "WEIGHTED": None}
NO_SUMS: dict[str, None] = {"OTHER_LEVEL": None, "OTHER_ERRORS": None, "OTHER_WEIGHTS": None}
TERMS: dict[str, tuple[int, dict[str, Any], dict[str, Any]]] = {
    # The flag TERM, and what else the forward and the backward pass of a step leave out. siglip learns its scale and bias.
    "softplus": (fused.SOFTPLUS, {"OTHER_LEVEL": None}, {"ERRORS": None, "OFFSETS": None, **NO_SUMS}),
    "squares": (fused.SQUARES, {"LEVEL": None, "OTHER_LEVEL": None, **SUMS_ONLY}, {"LEVEL": None, "ERRORS": None, **NO_SUMS}),
    "riesz": (fused.RIESZ, SUMS_ONLY, {"ERRORS": None, "OTHER_ERRORS": None}),
}
ORDERED = {"EQUAL": 2, "IDS": 2}
for name, (term, forward, backward) in TERMS.items():
    USES[f"{name}.sums"] = "sums", {"PART": 0, "TERM": term, **forward}
    USES[f"{name}.gradients"] = "gradients", {"PART": 0, "K": 1, "TERM": term, **backward}
    USES[f"{name}.slopes"] = "slopes", {"K": 1, "TERM": term, **backward}
    if term >= fused.SQUARES:
        USES[f"{name}.products"] = "products", {"TERM": term, "OFFSETS": None}
# Positives of ucl, hucl, scl and hscl: rows with equal ids, next to each other, both of them anchors.
USES["positives.sums"] = "sums", {**USES["softplus.sums"][1], **ORDERED}
USES["positives.gradients"] = (
    "gradients",
    {"PART": 0, "K": 1, "TERM": fused.SOFTPLUS, "ERRORS": None, "OTHER_ERRORS": None, "OFFSETS": None, **ORDERED},
)
# Means are what the gradient of a learned temperature needs.
NUMBER = {"SCALES": 0, "WEIGHTED": None, "COLUMN_WEIGHTED": None, "MEANS": None}
LEARNED = {"SCALES": 1}
OPERANDS = {"half": "*bf16", "mixed": "*fp16", "tf32": "*fp32", "float32": "*fp32"}
FLOATS = ("squared_bound", "parameter", "floor")


def compiled(use: str, kind: shapes.Kind, width: int, capability: int, shape: shapes.Shape, **flags: Any) -> dict[str, Any]:
    """Compile a kernel for a compute capability; what its machine code needs."""
    kernel, own = USES[use]
    function = getattr(kernels, kernel)
    constants = {
        **dict(zip(("BM", "BN"), shape, strict=False)),
        "D": width,
        "WIDTH": shapes.chunk_of(kernel, kind, width),
        "PRECISION": kind.precision,
        **{"IDS": 1, "EQUAL": 0},
        **flags,
        **own,
    }
    if constants["IDS"] < 2:
        constants |= {"IDS_X": None, "IDS_Y": None}
    constants = {name: value for name, value in constants.items() if name in function.arg_names}
    signature = {name: "constexpr" if name in constants else _type(name, kind, constants) for name in function.arg_names}
    positions = [
        n
        for n, name in enumerate(signature)
        if signature[name][0] == "*" or name in ("x_set", "x_row", "y_set", "y_row", "slab_row")
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
    if name == "SLAB":
        return "*fp32" if kind is shapes.MIXED else OPERANDS[kind.name]
    if name == "SCALE" and constants["SCALES"] == 0:
        return "fp32"
    if name in ("IDS_X", "IDS_Y"):
        return "*i64"
    return "*fp32" if name.isupper() else "fp32" if name in FLOATS else "i32"


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


def exists(use: str, kind: shapes.Kind, width: int) -> bool:
    """Whether a sweep of this width launches the kernel so."""
    kernel, flags = USES[use]
    if kernel in ("slopes", "products", "gradients") and shapes.is_wide(kind, width) == (kernel == "gradients"):
        return False
    term = flags.get("TERM", fused.LOGSUMEXP)
    return term >= fused.SQUARES if kind is shapes.MIXED else term <= fused.SQUARES or kind is not shapes.TF32


def table(
    kinds: list[str], widths: list[int], architectures: list[int], names: list[str], learned: bool
) -> Iterator[dict[str, Any]]:
    """One row for each kernel, kind, width and architecture."""
    every = {kind.name: kind for kind in (shapes.HALF, shapes.MIXED, shapes.TF32, shapes.FLOAT32)}
    for kind, name, width, capability in product(kinds, names, widths, architectures):
        if not exists(name, every[kind], width):
            continue
        shape = shapes.shape_of(USES[name][0], every[kind], width, capability)
        cost = compiled(name, every[kind], width, capability, shape, **(LEARNED if learned else NUMBER))
        yield {"kind": kind, "kernel": name, "width": width, "for": capability, **shape._asdict(), **cost}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", nargs="+", default=list(OPERANDS), choices=OPERANDS)
    parser.add_argument("--kernels", nargs="+", default=list(USES), choices=USES)
    parser.add_argument("--widths", nargs="+", type=int, default=[64, 128, 256, 1024])
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
            print(*(f"{name:>18}" for name in row))
        print(*(f"{value!s:>18}" for value in row.values()), flush=True)


if __name__ == "__main__":
    main()
