"""Interaction with trainers, which may set the epoch of a batch sampler, wrap, re-shard or rebuild the sampler."""

from collections.abc import Iterator
from itertools import islice
from types import FrameType
from typing import Any, Protocol

ITERATE = ("torch.utils.data", "torchdata.stateful_dataloader", "accelerate.data_loader", "lightning.", "pytorch_lightning.")


class TakesEpoch(Protocol):
    """A sampler with `set_epoch`."""

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next pass."""


class EpochRelay:
    """Forwards `set_epoch`; Lightning and Accelerate call it on ``batch_sampler.sampler``, Transformers on ``.batch_sampler``.

    Args:
        target: The sampler whose epoch is set.
    """

    def __init__(self, target: TakesEpoch) -> None:
        self._target = target

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the sampler."""
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
    """The loaders, wrappers of batch samplers and Lightning loops that start a pass, innermost first."""
    while frame is not None and str(frame.f_globals.get("__name__")).startswith(ITERATE):
        yield frame.f_locals.get("self")
        frame = frame.f_back


def skips_batches(askers: list[Any]) -> bool:
    """Whether one of the ``askers`` skips the first batches of the pass.

    `accelerate.skip_first_batches` skips batches, and so does a StatefulDataLoader with a wrapped, stateless batch sampler.
    """
    return any(
        type(asker).__name__ == "SkipBatchSampler" or isinstance(getattr(asker, "_sampler_iter", None), islice)
        for asker in askers
    )


def validates(askers: list[Any]) -> bool:
    """Whether Lightning starts the pass for validation, a sanity check or a test."""
    return any(type(asker).__name__ == "_EvaluationLoop" for asker in askers)


def trains(askers: list[Any]) -> bool:
    """Whether Lightning starts the pass for training, possibly several times per epoch; Lightning sets every epoch."""
    return any(type(asker).__name__ == "_FitLoop" for asker in askers)


def check_shards(askers: list[Any], num_replicas: int, smaller_batch: bool) -> None:
    """Raise unless, after sharding by Accelerate, every process gets one slice of each batch.

    Args:
        askers: Result of `iterated_by`.
        num_replicas: Number of processes that share the batches of the batch sampler.
        smaller_batch: Whether the last batch is smaller than the others.

    Raises:
        ValueError: Batches are sliced twice, or not at all, or the last batch would be padded or missing on some processes.
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
            "Accelerate gives whole batches to the processes in turn, but batch_size is the size for all processes together. "
            f"{advice}"
        )
    if smaller_batch:
        raise ValueError(
            "drop_last=False leaves a smaller last batch, which Accelerate fills up with samples of the first batch or gives "
            "to some processes only. Pass drop_last=True, or leave the loader out of accelerator.prepare."
        )


def _processes(asker: Any) -> int:
    """Number of processes that share batches through Accelerate."""
    if type(asker).__name__ == "DataLoaderDispatcher":
        return int(asker.state.num_processes)
    return int(asker.num_processes) if type(asker).__name__ == "BatchSamplerShard" else 1
