"""State files in the checkpoint folders of Transformers' Trainer."""

from pathlib import Path
from typing import Any, Protocol

import torch


class Arguments(Protocol):
    """What is used of `transformers.TrainingArguments`."""

    output_dir: str
    should_save: bool


class Step(Protocol):
    """What is used of `transformers.TrainerState`."""

    global_step: int


def write_state(state: dict[str, Any], file: str, args: Arguments, step: Step) -> None:
    """Save a state in the folder of a checkpoint, on the process that saves the model."""
    if args.should_save:
        torch.save(state, _folder(args, step) / file)


def read_state(file: str, checkpoint: str | Path | None, args: Arguments, step: Step) -> dict[str, Any]:
    """Load a state from ``checkpoint``, or from the folder of the step.

    Raises:
        FileNotFoundError: There is no such file.
    """
    path = Path(_folder(args, step) if checkpoint is None else checkpoint) / file
    if not path.exists():
        raise FileNotFoundError(
            f"cannot resume: {path} does not exist. Pass to the callback, as checkpoint=..., the folder that "
            f"trainer.train(resume_from_checkpoint=...) gets, and let the callback take part in the run that saves {file}."
        )
    return torch.load(path, map_location="cpu", weights_only=True)


def _folder(args: Arguments, step: Step) -> Path:
    return Path(args.output_dir) / f"checkpoint-{step.global_step}"
