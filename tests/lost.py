"""Processes that lose one after another, for `processes/test_lost.py`: killed, raising, standing still."""

import os
import signal
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from cases import NUM_SAMPLES, same_state, snapshot, views

import contrastive_zoo as zoo

# How the last process of each group is lost, and after how many seconds the others may give up waiting for it.
LOSSES = {"killed": 600.0, "raises": 600.0, "stands still": 3.0}
FIRST = 1 + len(LOSSES)


def lose(how: str) -> None:
    """End or stop this process."""
    if how == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "raises":
        raise OSError("the disk is gone")
    time.sleep(600)


def work(rank: int, folder: Path) -> None:
    """Steps of a loss; at the end of each act the last process is lost in the middle of one, and the others go on."""
    torch.set_num_threads(1)
    loss_fn, found = zoo.get_loss("negative_cache", num_samples=NUM_SAMPLES, num_negatives=3, embedding_dim=6).double(), []
    for act, (how, seconds) in enumerate(LOSSES.items()):
        world = FIRST - act
        place = {"init_method": f"file://{folder}/group{act}", "timeout": timedelta(seconds=seconds)}
        dist.init_process_group("gloo", rank=rank, world_size=world, **place)
        batch = views(12, seed=act)
        own = slice(rank * 12 // world, (rank + 1) * 12 // world)
        call = lambda loss_fn, batch=batch, own=own: loss_fn(batch.z1[own], batch.z2[own], index=batch.index[own])  # noqa: E731
        value = call(loss_fn).item()
        before = snapshot(loss_fn)
        all_reduce = dist.all_reduce
        if rank == world - 1:
            dist.all_reduce = lambda *_, how=how, **__: lose(how)
        said = ""
        try:
            call(loss_fn)
        except RuntimeError as error:
            said = f"{type(error).__name__}: {error}"
        dist.all_reduce = all_reduce
        found.append({"value": value, "heard": said, "unchanged": same_state(snapshot(loss_fn), before)})
        torch.save(found, folder / f"{rank}.pt")
        dist.destroy_process_group()


def one_process() -> list[float]:
    """Values of the steps of one process with the whole batches."""
    loss_fn: Any = zoo.get_loss("negative_cache", num_samples=NUM_SAMPLES, num_negatives=3, embedding_dim=6).double()
    return [views(12, seed=act).call(loss_fn).item() for act in range(len(LOSSES))]
