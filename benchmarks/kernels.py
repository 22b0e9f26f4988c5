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
from contrastive_zoo.samplers import philox_triton, walk_fused, walk_triton

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
# Kernels of the walk of the sampler "mcmc", and the one that draws.
WALKS, WALK_KINDS = ("walk", "rows", "columns"), ("half", "tf32", "float32")
DRAWS = "draws"
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
    return _cost(function, signature, constants, aligned, capability, num_warps=shape.warps, num_stages=shape.stages)


def compiled_walk(kernel: str, kind: shapes.Kind, width: int, capability: int, shape: walk_fused.Shape) -> dict[str, Any]:
    """As `compiled`, for a kernel of the walk as a mean over anchors uses it."""
    function = getattr(walk_triton, kernel)
    constants = {"BM": shape.anchors, "G": shape.runs, "D": width, "WIDTH": shapes.padded(width), "PRECISION": kind.precision}
    constants |= {"FAST": True} if kernel == "walk" else {"UPSTREAM": None}
    types = dict.fromkeys(("IDS", "SEED", "VALID", "KEPT", "FIRST_KEPT", "STATE"), "*i64")
    types |= {"X": OPERANDS[kind.name], "BITS": "*u8", "WAIT": "*i32", **dict.fromkeys(walk_triton.CHANGING, "i32")}
    signature = {name: "constexpr" if name in constants else types.get(name, "*fp32") for name in function.arg_names}
    aligned = {(n,): [["tt.divisibility", 16]] for n, kind_of in enumerate(signature.values()) if kind_of[0] == "*"}
    options = {"num_warps": shape.warps, "num_stages": walk_fused.STAGES}
    return _cost(function, signature, constants, aligned, capability, **options)


def compiled_draws(dtype: str, capability: int) -> dict[str, Any]:
    """As `compiled`, for the kernel that draws."""
    constants = {"VALUES": 4 if dtype == "*fp32" else 2, "ROWS": philox_triton.ROWS, "CALLS": philox_triton.CALLS}
    types = {"SEED": "*i64", "OUT": dtype}
    names = getattr(philox_triton, DRAWS).arg_names
    signature = {name: "constexpr" if name in constants else types.get(name, "i32") for name in names}
    aligned = {(n,): [["tt.divisibility", 16]] for n in range(2)}
    return _cost(getattr(philox_triton, DRAWS), signature, constants, aligned, capability, num_warps=4)


def _cost(function: Any, signature: Any, constants: Any, attributes: Any, capability: int, **options: int) -> dict[str, Any]:
    source = ASTSource(fn=function, signature=signature, constexprs=constants, attrs=attributes)
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
        if name == DRAWS:
            continue
        if name in WALKS:
            if kind not in WALK_KINDS or width > walk_fused.WIDTHS[-1]:
                continue
            tiles = walk_fused.shape_of("walk" if name == "walk" else "rows", every[kind], width)
            about, cost = tiles._asdict(), compiled_walk(name, every[kind], width, capability, tiles)
        elif exists(name, every[kind], width):
            shape = shapes.shape_of(USES[name][0], every[kind], width, capability)
            about = shape._asdict()
            cost = compiled(name, every[kind], width, capability, shape, **(LEARNED if learned else NUMBER))
        else:
            continue
        yield {"kind": kind, "kernel": name, "width": width, "for": capability, **about, **cost}
    for dtype, capability in product(("*fp32", "*fp64"), architectures if DRAWS in names else ()):
        yield {"kind": dtype.strip("*"), "kernel": DRAWS, "for": capability, **compiled_draws(dtype, capability)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", nargs="+", default=list(OPERANDS), choices=OPERANDS)
    parser.add_argument("--kernels", nargs="+", default=[*USES, *WALKS, DRAWS], choices=[*USES, *WALKS, DRAWS])
    parser.add_argument("--widths", nargs="+", type=int, default=[64, 128, 256, 1024])
    parser.add_argument("--for", nargs="+", type=int, default=list(ARCHITECTURES), dest="architectures", metavar="CAPABILITY")
    parser.add_argument("--learned", action="store_true", help="with the gradient of a temperature")
    parser.add_argument("--json", action="store_true", help="one JSON object per line")
    given = parser.parse_args()
    rows = table(given.kinds, given.widths, given.architectures, given.kernels, given.learned)
    names: list[str] = []
    for row in rows:
        if given.json:
            print(json.dumps(row), flush=True)
            continue
        if names != list(row):
            names = list(row)
            print(*(f"{name:>18}" for name in names))
        print(*(f"{value!s:>18}" for value in row.values()), flush=True)


if __name__ == "__main__":
    main()
