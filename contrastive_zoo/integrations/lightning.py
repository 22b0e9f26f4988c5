"""Lightning: a callback that saves and restores a batch sampler with its position in the epoch, and sets epochs."""

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from contrastive_zoo.batch_samplers import BatchSampler
from contrastive_zoo.integrations.arguments import check_batch_sampler

__all__ = ["BatchSamplerCallback"]


class BatchSamplerCallback(Callback):
    """Puts a batch sampler into every checkpoint: a resumed run continues with the next batch, in the middle of an epoch too.

    Lightning saves no state of a `DataLoader`. A loader with workers requests batches before training sees them, so the
    callback counts the batches that the model was trained on.

    The loss needs no callback as long as it is a submodule of the `LightningModule`. Gradient caching needs none either: under
    `DistributedDataParallel`, `contrastive_zoo.cached_loss` (automatic optimization) and `contrastive_zoo.cached_backward` with
    ``backward=self.manual_backward`` (manual optimization) reduce each gradient once.

    Make the trainer with ``Trainer(use_distributed_sampler=False)``: a batch sampler already gives each process its share.

    Args:
        sampler: The batch sampler of the training loader.

    Raises:
        TypeError: ``sampler`` is no batch sampler of the zoo.

    Examples:
        >>> import contrastive_zoo as zoo
        >>> from contrastive_zoo.integrations.lightning import BatchSamplerCallback
        >>> sampler = zoo.get_batch_sampler("shuffle", num_samples=64, batch_size=16)
        >>> callback = BatchSamplerCallback(sampler)  # for lightning.Trainer(callbacks=[callback])
        >>> callback.state_dict()["batches_seen"]
        0
    """

    def __init__(self, sampler: BatchSampler) -> None:
        self.sampler = check_batch_sampler(sampler)
        self._position: dict[str, int] = {}

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Set the epoch of the batch sampler, in a loader where Lightning does not find the sampler too."""
        self.sampler.set_epoch(trainer.current_epoch)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Note the position."""
        epoch = trainer.current_epoch
        # Lightning resumes a run that stopped after the last batch of an epoch with the next epoch.
        epoch, seen = (epoch + 1, 0) if trainer.is_last_batch else (epoch, batch_idx + 1)
        self._position = {"epoch": epoch, "batches_seen": seen}

    def state_dict(self) -> dict[str, Any]:
        """The state of the batch sampler after the last batch; `torch.distributed.checkpoint` calls this too."""
        return self.sampler.state_dict(**self._position)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the batch sampler before training begins; `torch.distributed.checkpoint` calls this too."""
        self.sampler.load_state_dict(state_dict)
        self._position = {}
