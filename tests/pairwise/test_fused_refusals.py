"""Where the fused backend cannot run: with a reason if it was asked for, silently if it was not."""

from typing import Any

import pytest
import torch
from cases import rows

from contrastive_zoo import devices, pairwise
from contrastive_zoo.pairwise import backends
from contrastive_zoo.pairwise.fused import refusals
from contrastive_zoo.pairwise.sweep import Ids, Sweep
from contrastive_zoo.pairwise.terms import LogSumExp, Squares


@pytest.fixture(autouse=True)
def _able(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refusals, "TRITON", True)
    monkeypatch.setattr(refusals, "INTERPRETED", True)


def reason(x: torch.Tensor) -> str:
    return refusals.refuses(Sweep.of(x), LogSumExp.of(1.0, len(x)))


def test_equal_ids_of_separate_keys_are_refused() -> None:
    x, ids = torch.ones(4, 3), torch.arange(4)
    assert "own keys" in refusals.refuses(Sweep.of(x, x, ids, ids, counts="equal"), LogSumExp.of(1.0, len(x)))
    assert not refusals.refuses(Sweep.of(x, ids=ids, counts="equal"), LogSumExp.of(1.0, len(x)))


def test_what_it_can_do_is_not_refused() -> None:
    for x in (rows(3, 4096, dtype=torch.float32), rows(3, 1, dtype=torch.bfloat16)):
        assert reason(x) == ""


@pytest.mark.parametrize(
    ("message", "x"),
    [
        ("its kernels compute in float32, and the rows are in torch.float64", rows(3, 4)),
        ("its kernels take at most 4096 features, and the rows have 4097", rows(3, 4097, dtype=torch.float32)),
    ],
)
def test_rows(message: str, x: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=f"backend='fused' cannot do this: {message}. Use backend='auto'"):
        pairwise.logsumexp(x, scale=1.0, backend="fused")
    assert pairwise.logsumexp(x, scale=1.0).isfinite().all()


@pytest.mark.parametrize(
    ("size", "ids", "taken"),
    [
        (9, Ids(torch.arange(9), 1), "tiled"),
        (9, torch.arange(9), "tiled"),
        (4, Ids(torch.arange(4), 1), "fused"),  # the Gram matrix would be the larger one
        (9, torch.arange(9) // 2, "fused"),
        (9, torch.arange(9, device="meta"), "fused"),  # not read
    ],
    ids=str,
)
def test_sums_of_squares_by_the_matrix_that_costs_less(
    size: int, ids: torch.Tensor | Ids, taken: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If no backend was named; a named one is never replaced."""
    monkeypatch.setattr(refusals, "refuses_unasked", refusals.refuses)  # as on a GPU
    x = rows(size, 5, dtype=torch.float32)
    sweep = Sweep.of(x, x, ids, ids)
    # Without "dense", which is for the host.
    assert backends.choose(sweep, Squares(), "auto", opaque=True).name == taken
    assert backends.choose(sweep, Squares(), "fused").name == "fused"


@pytest.mark.usefixtures("_compiler", "kernels")
def test_a_compiled_sum_of_squares_does_not_read_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refusals, "refuses_unasked", refusals.refuses)  # as on a GPU
    x, ids = rows(9, 5, dtype=torch.float32).detach(), torch.arange(9)
    compiled = torch.compile(lambda x, ids: pairwise.square_sum(x, x, ids=ids), backend="aot_eager", fullgraph=True)
    assert torch.allclose(compiled(x, ids), pairwise.square_sum(x, x, ids=ids, backend="dense"), rtol=1e-5, atol=1e-6)


def test_machines(monkeypatch: pytest.MonkeyPatch) -> None:
    x = rows(3, 4, dtype=torch.float32)
    monkeypatch.setattr(refusals, "INTERPRETED", False)
    with pytest.raises(ValueError, match="its kernels need an NVIDIA GPU, and the rows are on cpu"):
        pairwise.logsumexp(x, scale=1.0, backend="fused")
    monkeypatch.setattr(devices, "TRITON", False)
    with pytest.raises(ValueError, match="its kernels need PyTorch 2"):
        pairwise.logsumexp(x, scale=1.0, backend="fused")


@pytest.mark.parametrize(("major", "minor", "able"), [(7, 5, False), (8, 0, True), (9, 0, True), (12, 0, True)])
def test_old_cards(major: int, minor: int, able: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    class Properties:
        pass

    properties = Properties()
    properties.major, properties.minor = major, minor  # type: ignore[attr-defined]
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    found = devices.refuses_kernels(torch.device("cuda", 0))
    assert (found == "") == able
    assert able or found == "its kernels need a GPU of compute capability 8.0 or newer, and cuda:0 has 7.5"
    monkeypatch.setattr(torch.version, "hip", "6.0")
    assert "need an NVIDIA GPU" in devices.refuses_kernels(torch.device("cuda", 0))


def test_auto_is_never_interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    x = rows(3, 4, dtype=torch.float32)
    sweep, term = Sweep.of(x), LogSumExp.of(1.0, len(x))
    assert backends.choose(sweep, term, "fused").name == "fused"
    assert backends.choose(sweep, term, "auto").name != "fused"
    assert backends.choose(sweep, term, "auto", opaque=True).name == "tiled"

    def on_gpu(*_: Any) -> str:
        return ""

    monkeypatch.setattr(backends, "AUTO", (backends.replace(backends.AUTO[0], refuses=on_gpu), *backends.AUTO[1:]))
    assert backends.choose(sweep, term, "auto").name == "fused"
