"""What a step of every name launches on a GPU, counted without one; the table of `docs/performance.md` says the same.

python tests/contract/test_launches.py    # the rows of the table
"""

import sys
from pathlib import Path
from typing import Any, NamedTuple

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

import pytest
import torch
from accelerator import DEVICE, accelerator
from cases import NAMES, NUM_SAMPLES, views
from launches import Recorder, Work

import contrastive_zoo as zoo
from contrastive_zoo.batch import features
from contrastive_zoo.batch.samples import regular_ids
from contrastive_zoo.loss import reduction
from contrastive_zoo.pairwise import backends, operator_
from contrastive_zoo.pairwise.fused import launch, refusals

DOCS = Path(__file__).parents[2] / "docs" / "performance.md"
# Their samplers draw on the host, or not, as other tests say; here they are only listed.
DRAWING = {"emc2", "negative_cache", "sampled"}


class Step(NamedTuple):
    """What one step launches.

    Attributes:
        backends: The backends that "auto" takes on a GPU.
        forward: Kernels of the package in the forward pass.
        backward: Kernels of the package in the backward pass.
        operations: Operations of PyTorch in both.
    """

    backends: tuple[str, ...]
    forward: list[str]
    backward: list[str]
    operations: int

    def row(self, name: str) -> str:
        """The row of the table, without times."""
        kernels = len(self.forward) + len(self.backward)
        return f"| {name} | {', '.join(self.backends)} | {kernels} | {self.operations} |"


def step(name: str, size: int = 8, width: int = 4, dtype: torch.dtype = torch.float32, **params: Any) -> Step:
    """A step on unit rows, with what the name needs: an index, or labels."""
    from contrastive_zoo.batch import features_triton

    seen: list[tuple[str, tuple[Any, ...]]] = []
    taken: dict[str, None] = {}
    kernels, choose, rows_of = Recorder(seen), backends.choose, features.normalized_rows

    def noted(*given: Any) -> backends.Backend:
        backend = choose(*given)
        taken[backend.name] = None
        return backend

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launch, "_kernels", lambda: kernels)
        for kernel in ("_forward", "_backward"):
            patch.setattr(features_triton, kernel, getattr(kernels, kernel))
        patch.setattr(features, "has_kernels", lambda z: True)
        patch.setattr(reduction, "readable", lambda values: False)  # as on a GPU
        patch.setattr(features, "normalized_rows", lambda *args: rows_of(*args[:5], False))  # values are checked on CPUs
        patch.setattr(refusals, "INTERPRETED", True)
        patch.setattr(refusals, "refuses_unasked", refusals.refuses)  # as on a GPU
        patch.setattr(backends, "AUTO", tuple(each for each in backends.AUTO if each.plain is None))  # as on a GPU
        patch.setattr(operator_, "choose", noted)
        card = zoo.describe_loss(name)
        generator = torch.Generator("cpu").manual_seed(0)
        z1, z2 = (torch.randn(size, width, generator=generator, device="cpu").to(dtype).requires_grad_() for _ in range(2))
        loss_fn = zoo.get_loss(name, num_samples=NUM_SAMPLES, **params)
        needed = {"index": torch.arange(size), "labels": torch.arange(size) % 4}
        given = {key: value for key, value in needed.items() if key in card.needs}
        regular_ids(size, 1), regular_ids(2 * size, 2)  # made once for all batches of a size
        loss_fn(z1, z2, **given)  # the first step may make what later steps find
        seen.clear()
        with Work() as forward:
            loss = loss_fn(z1, z2, **given)
        before = [kernel for kernel, _ in seen]
        with Work() as backward:
            loss.backward()
    after = [kernel for kernel, _ in seen[len(before) :]]
    return Step(tuple(taken), before, after, len(forward.seen) + len(backward.seen))


def table() -> dict[str, str]:
    """Rows of the table in the docs, by name, each without times."""
    lines = DOCS.read_text().split("## Every name")[1].split("\n## ")[0].splitlines()
    rows = [line for line in lines if line.startswith("| ") and not line.startswith(("| name", "| ---"))]
    return {row.split("|")[1].strip(): "|".join(row.split("|")[:5]) + "|" for row in rows}


LOG_SUM_EXP = ["log_sums"], ["weigh", "gradients"]
# Negatives by a log-sum-exp, positives by a sum of softplus.
TWO_SUMS = ["log_sums", "sums"], ["weigh", "gradients", "weigh", "gradients"]
# The constants in the gradient that weigh the negatives are another log-sum-exp.
WEIGHTED = ["log_sums", *TWO_SUMS[0]], TWO_SUMS[1]
BOTH = ["log_sums", "log_sums"], ["weigh", "gradients", "gradients"]
KERNELS = {
    **dict.fromkeys(("alignment_uniformity", "dcl", "dclw", "debiased", "dhel", "hcl", "isogclr", "kcl"), LOG_SUM_EXP),
    **dict.fromkeys(("ntxent", "sogclr", "supcon"), LOG_SUM_EXP),
    **dict.fromkeys(("clip", "infonce"), BOTH),
    **dict.fromkeys(("scl", "ucl"), TWO_SUMS),
    **dict.fromkeys(("hscl", "hucl"), WEIGHTED),
    "siglip": (["sums"], ["weigh", "gradients", "gradients"]),
    "spectral_contrastive": ([], []),  # the Gram matrix, by PyTorch
}


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("name", sorted(set(NAMES) - DRAWING))
def test_launches_of_a_step(name: str) -> None:
    """Pairs, the normalisation and the positives are in kernels of this package, and the docs count all launches."""
    found, rows = step(name), table()
    assert found.forward == ["_forward", *KERNELS[name][0]]
    assert found.backward == [*KERNELS[name][1], "_backward"]
    *start, operations, _ = rows[name].split("|")
    assert found.row(name).startswith("|".join(start))
    assert found.operations <= int(operations), "the docs promise fewer operations of PyTorch"


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("name", ["ntxent", "infonce", "clip", "dcl", "dhel", "kcl", "siglip"])
def test_half_precision_launches_nothing_more(name: str) -> None:
    """The kernels of the features convert, also views of the batch and gradients."""
    assert step(name, dtype=torch.float16) == step(name)


def test_every_name_is_in_the_table() -> None:
    assert sorted(table()) == sorted(NAMES)


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("kernel", ["log", "imq", "riesz"])
def test_other_kernels_take_one_sweep_too(kernel: str) -> None:
    found = step("kcl", kernel=kernel, t=0.5)
    assert (found.backends, found.forward) == (("fused",), ["_forward", "sums"])
    assert found.backward == ["weigh", "gradients", "_backward"]


@pytest.mark.usefixtures("kernels")
def test_wide_rows_take_a_launch_more_for_each_gradient() -> None:
    found = step("clip", width=300)
    assert found.forward == ["_forward", "log_sums", "log_sums"]
    assert found.backward == ["weigh", "slopes", "products", "slopes", "products", "_backward"]


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("index_there", [False, True], ids=["index on the host", "index there"])
@pytest.mark.parametrize("width", [6, 300])
@pytest.mark.parametrize("name", sorted(set(NAMES) - DRAWING))
def test_the_host_launches_kernels_without_a_wait(
    name: str, width: int, index_there: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the stand-in for an accelerator, whose kernels compute nothing: only what the host asks of it counts."""
    seen: list[tuple[str, tuple[Any, ...]]] = []
    monkeypatch.setattr(launch, "_kernels", lambda: Recorder(seen))
    monkeypatch.setattr(launch, "MANY_PAIRS", 0)  # rows are ordered by id
    monkeypatch.setattr(refusals, "INTERPRETED", True)
    with accelerator() as device:
        loss_fn = zoo.get_loss(name, num_samples=NUM_SAMPLES, backend="fused").to(DEVICE)
        for number in range(3):
            batch = views(12, width, seed=number, dtype=torch.float32)
            z1, z2 = (z.detach().to(DEVICE).requires_grad_() for z in (batch.z1, batch.z2))
            index, labels = (t.to(DEVICE) if index_there else t for t in (batch.index, batch.labels))
            device.forget()
            seen.clear()
            loss_fn(z1, z2, index=index, labels=labels).backward()
            assert seen
            if number:  # the first step may move what later steps find there
                assert device.waits == []
                assert all(device.copies)
                assert not (index_there and device.copies)


if __name__ == "__main__":
    for each in NAMES:
        found = step(each)
        print(found.row(each), *found.forward, "/", *found.backward)
