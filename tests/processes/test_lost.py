"""A process that is killed, raises or stands still in the middle of a step: the others raise soon, and can go on without it."""

import signal
from typing import Any

import lost
import pytest
import torch
import torch.multiprocessing as mp

SECONDS = 120  # far below the time after which processes stop waiting for one that is gone


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory, device: str) -> list[list[dict[str, Any]]]:
    """What each process found in each act, in the order of ranks."""
    if device != "cpu":
        pytest.skip("on NCCL no error reaches Python: its watchdog ends processes that wait for one that is gone")
    folder = tmp_path_factory.mktemp("lost")
    context = mp.get_context("spawn")
    processes = [context.Process(target=lost.work, args=(rank, folder)) for rank in range(lost.FIRST)]
    for process in processes:
        process.start()
    still = processes.pop(1)  # the last one to be lost stands still
    for process in processes:
        process.join(SECONDS)
    ended = [process.exitcode for process in processes]
    still.kill()
    assert ended == [0, 1, -signal.SIGKILL]
    return [
        torch.load(folder / f"{rank}.pt", weights_only=True)
        for rank in range(lost.FIRST - 1)
        if (folder / f"{rank}.pt").exists()
    ]


@pytest.mark.parametrize("act", range(len(lost.LOSSES)), ids=list(lost.LOSSES))
def test_others_raise_and_their_tables_are_unchanged(act: int, found: list[list[dict[str, Any]]]) -> None:
    remaining = lost.FIRST - 1 - act
    heard = [of_rank[act] for of_rank in found[:remaining]]
    assert len(heard) == remaining
    for of_rank in heard:
        assert of_rank["heard"].startswith(("RuntimeError:", "DistNetworkError:", "DistBackendError:"))
        assert of_rank["unchanged"]


def test_those_that_remain_go_on_in_a_new_group(found: list[list[dict[str, Any]]]) -> None:
    """With the same loss: the step that was lost is not counted."""
    for of_rank in found:
        for act, value in zip(of_rank, lost.one_process(), strict=False):
            assert act["value"] == pytest.approx(value, rel=1e-9)
