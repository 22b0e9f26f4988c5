"""What goes wrong by no fault of the code, with messages for the command line."""


class SettingError(ValueError):
    """A setting that cannot be met."""


class Diverged(RuntimeError):
    """A loss that is not finite."""


class Stopped(Exception):
    """A run that was asked to stop, and has saved.

    Args:
        step: Steps done.
        steps: Steps in all.
        folder: Folder of the run.
        signal: Number of the signal that asked; None if the time was over.
    """

    def __init__(self, step: int, steps: int, folder: str, signal: int | None) -> None:
        super().__init__(f"Stopped after {step} of {steps} steps; go on with --resume {folder}")
        self.code = 0 if signal is None else 128 + signal
