"""What trainers do to a batch sampler: tell it the epoch, wrap it, shard it again, or build another one from its class."""

from collections.abc import Iterator
from itertools import islice
from types import FrameType
from typing import Any, Protocol

ITERATE = ("torch.utils.data", "torchdata.stateful_dataloader", "accelerate.data_loader", "lightning.", "pytorch_lightning.")


class TakesEpoch(Protocol):
    """A sampler that is told the epoch."""

    def set_epoch(self, epoch: int) -> None:
        """Let the next pass be this epoch."""


class EpochRelay:
    """Passes the epoch on; Lightning and Accelerate tell it to ``batch_sampler.sampler``, Transformers to ``.batch_sampler``.

    Args:
        target: Who is told.
    """

    def __init__(self, target: TakesEpoch) -> None:
        self._target = target

    def set_epoch(self, epoch: int) -> None:
        """Tell the sampler."""
        self._target.set_epoch(epoch)


def refuse_rebuilding(name: str) -> None:
    """Raise for a trainer that builds another batch sampler from a sampler of single samples.

    Raises:
        TypeError: Always.
    """
    raise TypeError(
        f"{name} takes keyword arguments only. If a trainer tried to rebuild it with a distributed or sequential sampler: this "
        "batch sampler already gives each process its share. In Lightning, pass Trainer(use_distributed_sampler=False) or "
        "fabric.setup_dataloaders(loader, use_distributed_sampler=False); Trainer.predict needs an ordinary "
        "DataLoader(dataset, batch_size=...)."
    )


def iterated_by(frame: FrameType | None) -> Iterator[Any]:
    """Loaders, what wraps batch samplers in them, and loops of Lightning for which a pass starts, from the innermost."""
    while frame is not None and str(frame.f_globals.get("__name__")).startswith(ITERATE):
        yield frame.f_locals.get("self")
        frame = frame.f_back


def skips_batches(askers: list[Any]) -> bool:
    """Whether one of them leaves out the first batches of the pass.

    `accelerate.skip_first_batches` does, and so does a StatefulDataLoader whose batch sampler is wrapped and has no state.
    """
    return any(
        type(asker).__name__ == "SkipBatchSampler" or isinstance(getattr(asker, "_sampler_iter", None), islice)
        for asker in askers
    )


def validates(askers: list[Any]) -> bool:
    """Whether Lightning starts the pass for validation, a sanity check or a test."""
    return any(type(asker).__name__ == "_EvaluationLoop" for asker in askers)


def trains(askers: list[Any]) -> bool:
    """Whether Lightning starts the pass for training: it may do so several times in an epoch, and it sets every epoch."""
    return any(type(asker).__name__ == "_FitLoop" for asker in askers)


def check_shards(askers: list[Any], num_replicas: int, smaller_batch: bool) -> None:
    """Raise unless what Accelerate makes of the batches is a slice of each for every process.

    Args:
        askers: What `iterated_by` gives.
        num_replicas: Processes that the batch sampler shares its batches among.
        smaller_batch: Whether the last batch is smaller than the others.

    Raises:
        ValueError: Batches are sliced twice, or not at all, or the last one would be filled up or missing on some processes.
    """
    sharing = [asker for asker in askers if _processes(asker) > 1]
    if not sharing:
        return
    advice = (
        "Either leave the loader out of accelerator.prepare, or make the batch sampler with num_replicas=1 and the accelerator "
        "with Accelerator(dataloader_config=DataLoaderConfiguration(split_batches=True))."
    )
    if num_replicas > 1:
        raise ValueError(
            f"Accelerate shards this loader again, but the batch sampler already shares each batch among {num_replicas} "
            f"processes. {advice}"
        )
    if not all(asker.split_batches for asker in sharing):
        raise ValueError(
            "Accelerate gives whole batches to the processes in turn, but batch_size is that of all processes together. "
            f"{advice}"
        )
    if smaller_batch:
        raise ValueError(
            "drop_last=False leaves a smaller last batch, which Accelerate fills up with samples of the first batch or gives "
            "to some processes only. Pass drop_last=True, or leave the loader out of accelerator.prepare."
        )


def _processes(asker: Any) -> int:
    """Processes that Accelerate shares batches among."""
    if type(asker).__name__ == "DataLoaderDispatcher":
        return int(asker.state.num_processes)
    return int(asker.num_processes) if type(asker).__name__ == "BatchSamplerShard" else 1
