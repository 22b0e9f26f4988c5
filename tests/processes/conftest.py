"""Groups of two, three and four processes, each of which is started once for all tests."""

import four
import pytest
from group import FOUND, SIZES, started, work


@pytest.fixture(scope="session")
def device(pytestconfig: pytest.Config) -> str:
    """Where the processes compute: "cpu", through Gloo, or "cuda", through NCCL."""
    kind = str(pytestconfig.getoption("--device"))
    return kind if kind == "cpu" else kind.split(":")[0]


@pytest.fixture(scope="session", params=SIZES, ids="{} processes".format)
def world(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture(scope="session")
def found(world: int, tmp_path_factory: pytest.TempPathFactory, device: str) -> list[FOUND]:
    """What each process found, in the order of ranks."""
    folder = tmp_path_factory.mktemp(f"processes{world}")
    return started(work, world, folder, world, device=device)


@pytest.fixture(scope="session")
def of_four(tmp_path_factory: pytest.TempPathFactory, device: str) -> list[FOUND]:
    """What each of four processes found, in the order of ranks."""
    folder = tmp_path_factory.mktemp("four")
    return started(four.work, four.WORLD, folder, device=device)
