"""Checkpoints: written whole or not at all, the last two kept, and read with an error that says what else there is."""

import os
import zipfile
from pathlib import Path
from typing import Any

import torch
from errors import SettingError

KEPT = 2
PARTS = {"settings", "step", "model", "loss", "optimizer", "sampler"}


def name_of(step: int) -> str:
    """File name of the checkpoint after a number of steps."""
    return f"checkpoint-{step:08d}.pt"


def in_folder(folder: Path) -> list[Path]:
    """Checkpoints of a run, the newest first."""
    return sorted(folder.glob("checkpoint-*.pt"), reverse=True)


def newest(run: str) -> Path:
    """The newest checkpoint of a run, or the one that is named.

    Raises:
        SettingError: There is none.
    """
    path = Path(run)
    if path.is_file():
        return path
    found = in_folder(path)
    if not found:
        raise SettingError(f"--resume {run}: there is no {path / 'checkpoint-*.pt'}.")
    return found[0]


def write(folder: Path, state: dict[str, Any]) -> Path:
    """Write a checkpoint; whoever reads it, at any time, finds all of it, and the one before it."""
    path = folder / name_of(state["step"])
    unfinished = path.with_suffix(".unfinished")
    with unfinished.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())  # the name must not reach the disk before the content
    unfinished.replace(path)
    for old in in_folder(folder)[KEPT:]:
        old.unlink()
    for left in folder.glob("checkpoint-*.unfinished"):  # of a run that was killed
        left.unlink()
    return path


def read(path: Path) -> dict[str, Any]:
    """A checkpoint, on the CPU.

    Raises:
        SettingError: The file is damaged, or no checkpoint of this script.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            wrong = archive.testzip()  # torch.load does not look at checksums
        if wrong is not None:
            raise zipfile.BadZipFile(f"the checksum of {wrong} is wrong.")
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # what bytes can be wrong decides what is raised
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise SettingError(f"{path} is damaged, or no checkpoint: {reason} {_instead(path)}") from error
    missing = PARTS - state.keys() if isinstance(state, dict) else PARTS
    if missing:
        raise SettingError(f"{path} is no checkpoint of pretrain.py: it lacks {', '.join(sorted(missing))}. {_instead(path)}")
    return dict(state)


def _instead(path: Path) -> str:
    others = [other for other in in_folder(path.parent) if other.name < path.name]
    if not others:
        return "There is no earlier one: start anew."
    return f"The previous one is {others[0]}: go on with --resume {others[0]}"
