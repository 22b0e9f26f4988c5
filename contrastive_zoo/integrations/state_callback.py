"""The base of callbacks for Transformers' Trainer that keep a state in the folder of each checkpoint."""

from abc import abstractmethod
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


class StateCallback(TrainerCallback):
    """Saves a state as a file in the folder of each checkpoint, and loads the file when a run is resumed.

    Args:
        checkpoint: The folder to resume from; by default the folder of the step in ``args.output_dir``.

    Attributes:
        file: Name of the file.
    """

    file: str

    def __init__(self, checkpoint: str | Path | None) -> None:
        self.checkpoint = None if checkpoint is None else Path(checkpoint)

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """The state; `torch.distributed.checkpoint` calls this too."""

    @abstractmethod
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the state; `torch.distributed.checkpoint` calls this too."""

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Restore the state if the run is resumed.

        Raises:
            FileNotFoundError: The folder of the checkpoint lacks the file.
        """
        if state.global_step == 0:
            return
        path = (self.checkpoint or _folder(args, state)) / self.file
        if not path.exists():
            raise FileNotFoundError(
                f"cannot resume: {path} does not exist. Pass checkpoint=folder to {type(self).__name__}, the folder that "
                f"trainer.train(resume_from_checkpoint=folder) gets; the run that saved it needs the callback too."
            )
        self.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Save the state, on the process that saves the model."""
        if args.should_save:
            torch.save(self.state_dict(), _folder(args, state) / self.file)


def _folder(args: TrainingArguments, state: TrainerState) -> Path:
    return Path(args.output_dir) / f"checkpoint-{state.global_step}"
