"""Groups of two and three processes, each of which is started once for all tests."""

import pytest
import torch
import torch.multiprocessing as mp
from group import FOUND, SIZES, work


@pytest.fixture(scope="session", params=SIZES, ids="{} processes".format)
def world(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture(scope="session")
def found(world: int, tmp_path_factory: pytest.TempPathFactory) -> list[FOUND]:
    """What each process found, in the order of ranks."""
    folder = tmp_path_factory.mktemp(f"processes{world}")
    mp.spawn(work, args=(world, folder), nprocs=world)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(world)]
