"""Trains, kills the process at random steps, resumes, and compares with the run that nobody killed.

    python tests/examples/killed.py 20 /tmp/killed --loss emc2 ...    # 20 trials, further options for pretrain.py

Processes are forked from one that has imported everything, which saves seconds for each.
"""

import contextlib
import io
import json
import os
import random
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))

import pretrain
import torch
from watching import Log


def attempt(options: list[str], kill_at: int | None) -> int:
    """Status of a process that trains, and kills itself when a step is done, before it is saved."""
    child = os.fork()
    if child:
        return os.waitpid(child, 0)[1]
    record = Log.record

    def record_and_die(log: Log, step: int, *figures: object) -> bool:
        known = record(log, step, *figures)
        if step == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return known

    Log.record = record_and_die
    pretrain.plot_training = pretrain.plot_embedding = lambda *args: None
    torch.set_num_threads(1)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        pretrain.main(options)
    os._exit(0)


def outcome(folder: Path) -> tuple[dict, list]:
    """Last checkpoint, and losses and evaluations of the log."""
    state = torch.load(max(folder.glob("checkpoint-*.pt")), weights_only=True)
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return state, [line for line in lines if "images_per_second" not in line]


def same(one: object, other: object) -> bool:
    """Whether two states are equal to the bit."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return torch.equal(one, other)
    return bool(one == other)


def main(trials: int, folder: Path, options: list[str]) -> int:
    """Number of trials whose outcome is that of the run that nobody killed."""
    options = [*options, "--save-every", "2", "--log-every", "3"]
    assert attempt([*options, "--output", str(folder / "whole")], kill_at=None) == 0
    state, lines = outcome(folder / "whole")
    steps = state["step"]
    draws, equal = random.Random(0), 0
    for trial in range(trials):
        run = folder / f"trial{trial}"
        first, second = sorted(draws.sample(range(2, steps), 2))
        assert attempt([*options, "--output", str(run)], first) == signal.SIGKILL
        assert attempt(["--resume", str(run)], second) == signal.SIGKILL
        assert attempt(["--resume", str(run)], kill_at=None) == 0
        found, found_lines = outcome(run)
        for one in (state, found):
            one["settings"] |= {"output": None, "resume": None}
        equal += same(state, found) and same(lines, found_lines)
    return equal


if __name__ == "__main__":
    trials = int(sys.argv[1])
    print(f"{main(trials, Path(sys.argv[2]), sys.argv[3:])} of {trials} equal to the bit")
