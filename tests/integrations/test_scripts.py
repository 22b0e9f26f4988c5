"""The scripts of examples/integrations: they learn, they resume where they stopped, and two processes train as one."""

import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path
from subprocess import STDOUT
from typing import Any

import pytest
import torch
from integrations.blocks import ROOT, SCRIPTS, names_of

# Packages advise on devices, workers and names.
pytestmark = pytest.mark.filterwarnings("ignore")

NAMES = ["ntxent", "sogclr", "emc2"]
TOWERS = ["clip", "siglip", "sogclr"]
ALONE = ["metric_learning", "lightly", "compile", "open_clip"]
RESUMED = ["lightning", "huggingface", "sentence_transformers", "accelerate", "ddp"]
SEVERAL = ["lightning", "huggingface", "accelerate", "ddp", "open_clip"]
OBJECTIVES = {script: TOWERS if script == "open_clip" else NAMES for script in [*ALONE, *RESUMED, "fsdp2"]}
# A thread of Gloo may release a tensor after the interpreter has begun to end, when all work is done: PyTorch's issue 190489.
ABORTED_AT_EXIT = "terminate called without an active exception"


def run(script: str, *arguments: str, processes: int, folder: Path) -> list[tuple[str, str]]:
    """Losses at the start and at the end, as each process prints them."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    command = [sys.executable, str(SCRIPTS / f"train_{script}.py"), *arguments]
    running = []
    for rank in range(processes):
        # What torchrun sets. Started by hand, since torchrun also ends the processes beside one that aborts at exit.
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes, "GROUP_RANK": 0}
        torchrun = {**place, "MASTER_ADDR": "localhost", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "test"}
        environment = os.environ | {name: str(value) for name, value in torchrun.items() if processes > 1}
        with (folder / f"{rank}.log").open("w") as log:
            running.append(subprocess.Popen(command, stdout=log, stderr=STDOUT, cwd=folder, env=environment))
    losses = []
    for rank, process in enumerate(running):
        code, output = process.wait(), (folder / f"{rank}.log").read_text()
        assert code == 0 or (code == -signal.SIGABRT and ABORTED_AT_EXIT in output), output
        losses += re.findall(r"loss (-?\d+\.\d+) -> (-?\d+\.\d+)", output)
    assert len(losses) == processes
    return losses


def assert_learns(losses: list[float]) -> None:
    several = len(losses) // 5
    assert sum(losses[-several:]) < sum(losses[:several])


def test_every_script_is_tested_and_shown() -> None:
    assert {path.stem.removeprefix("train_") for path in SCRIPTS.glob("*.py")} == set(OBJECTIVES)
    pages = "".join(path.read_text() for path in (ROOT / "docs" / "integrations").glob("*.md"))
    for script in OBJECTIVES:
        assert (SCRIPTS / f"train_{script}.py").read_text() in pages


@pytest.mark.parametrize(("script", "objective"), [(script, name) for script in ALONE for name in OBJECTIVES[script]])
def test_a_script_learns(script: str, objective: str) -> None:
    assert_learns(names_of(script)["main"](objective))


def test_classes_in_metric_learning() -> None:
    assert_learns(names_of("metric_learning")["main"]("supcon"))


@pytest.mark.parametrize("objective", NAMES)
@pytest.mark.parametrize("script", RESUMED)
def test_a_script_resumes_where_it_stopped(script: str, objective: str, tmp_path: Path) -> None:
    names = names_of(script)
    losses = names["main"](objective, str(tmp_path / "parts"))
    assert_learns(losses)
    length = {"epochs": 5} if script in ("accelerate", "ddp") else {"steps": len(losses)}
    whole: Any = names["fit"](objective, tmp_path / "whole", **length)
    torch.testing.assert_close(getattr(whole, "losses", whole), losses, rtol=0, atol=0)


@pytest.mark.parametrize("script", SEVERAL)
def test_two_processes_train_as_one(script: str, tmp_path: Path) -> None:
    assert run(script, "sogclr", processes=2, folder=tmp_path) == run(script, "sogclr", processes=1, folder=tmp_path) * 2


@pytest.mark.parametrize("objective", NAMES)
def test_sharded_parameters(objective: str, tmp_path: Path) -> None:
    first, second = run("fsdp2", objective, processes=2, folder=tmp_path)
    assert first == second
    assert float(first[1]) < float(first[0])
    assert (tmp_path / "runs" / "fsdp2" / ".metadata").exists()
