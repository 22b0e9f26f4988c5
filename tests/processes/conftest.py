"""Groups of two, three and four processes, each of which is started once for all tests."""

from collections.abc import Callable
from typing import Any

import four
import pytest
import torch
import torch.multiprocessing as mp
from group import FOUND, SIZES, work


@pytest.fixture(scope="session")
def device(pytestconfig: pytest.Config) -> str:
    """Where the processes compute: "cpu", through Gloo, or "cuda", through NCCL."""
    kind = str(pytestconfig.getoption("--device"))
    return kind if kind == "cpu" else kind.split(":")[0]


def started(work: Callable[..., None], world: int, *given: Any, device: str) -> None:
    """Run ``work(rank, *given, device)`` on ``world`` processes, each of which has a GPU of its own on "cuda"."""
    if device not in ("cpu", "cuda"):
        pytest.skip(f"processes send through Gloo and NCCL, not between devices of the kind {device!r}")
    if device == "cuda" and torch.cuda.device_count() < world:
        pytest.skip(f"{world} processes need a GPU each, and there are {torch.cuda.device_count()}")
    mp.spawn(work, args=(*given, device), nprocs=world)


@pytest.fixture(scope="session", params=SIZES, ids="{} processes".format)
def world(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture(scope="session")
def found(world: int, tmp_path_factory: pytest.TempPathFactory, device: str) -> list[FOUND]:
    """What each process found, in the order of ranks."""
    folder = tmp_path_factory.mktemp(f"processes{world}")
    started(work, world, world, folder, device=device)
    return loaded(folder, world, device)


@pytest.fixture(scope="session")
def of_four(tmp_path_factory: pytest.TempPathFactory, device: str) -> list[FOUND]:
    """What each of four processes found, in the order of ranks."""
    folder = tmp_path_factory.mktemp("four")
    started(four.work, four.WORLD, folder, device=device)
    return loaded(folder, four.WORLD, device)


def loaded(folder: Any, world: int, device: str) -> list[FOUND]:
    """What each process wrote, on the device of the tests."""
    return [torch.load(folder / f"{rank}.pt", weights_only=True, map_location=device) for rank in range(world)]
