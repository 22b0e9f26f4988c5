"""Transformers' Trainer: callbacks that save and restore losses and batch samplers, and parameter groups for the optimizer."""

from pathlib import Path
from typing import Any

from torch import nn
from transformers import TrainerControl, TrainerState, TrainingArguments

from contrastive_zoo.batch_samplers import BatchSampler
from contrastive_zoo.integrations.arguments import check_batch_sampler
from contrastive_zoo.integrations.state_callback import StateCallback
from contrastive_zoo.loss import Loss
from contrastive_zoo.loss.get import check_loss

__all__ = ["BatchSamplerCallback", "LossCallback", "parameter_groups"]


class LossCallback(StateCallback):
    """Saves a loss as ``loss.pt`` in each checkpoint folder of `Trainer`, and restores the loss when a run is resumed.

    `Trainer` saves the model alone. A loss outside the model, in ``compute_loss`` or as the loss of a
    ``SentenceTransformerTrainer``, would resume with new tables, a new step counter and a new temperature.

    Args:
        loss_fn: A loss of the zoo.
        checkpoint: The folder to resume from; by default the folder of the step in ``args.output_dir``.

    Raises:
        ValueError: The tables of the loss are sharded, and one process would save its rows only.
    """

    file = "loss.pt"

    def __init__(self, loss_fn: Loss, checkpoint: str | Path | None = None) -> None:
        super().__init__(checkpoint)
        self.loss_fn = check_loss(loss_fn)
        if self.loss_fn.objective.divided_shapes():
            advice = "Save it with torch.distributed.checkpoint, or make it with tables='replicated'."
            raise ValueError(f"the tables of loss_fn are sharded, and one process would save its rows only. {advice}")

    def state_dict(self) -> dict[str, Any]:
        """The state of the loss; `torch.distributed.checkpoint` calls this too."""
        return self.loss_fn.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the loss; `torch.distributed.checkpoint` calls this too."""
        self.loss_fn.load_state_dict(state_dict)


class BatchSamplerCallback(StateCallback):
    """Saves a batch sampler as ``batch_sampler.pt``, restores it when a run is resumed, and sets its epoch.

    Return the loader with the batch sampler from ``get_train_dataloader``, unprepared. `Trainer` skips the batches of the epoch
    that a resumed run has seen; the batch sampler takes that into account.

    Args:
        sampler: The batch sampler of the training loader.
        checkpoint: The folder to resume from; by default the folder of the step in ``args.output_dir``.
    """

    file = "batch_sampler.pt"

    def __init__(self, sampler: BatchSampler, checkpoint: str | Path | None = None) -> None:
        super().__init__(checkpoint)
        self.sampler = check_batch_sampler(sampler)
        self._epoch: float | None = None

    def on_epoch_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Set the epoch of the batch sampler."""
        self.sampler.set_epoch(int(state.epoch or 0))

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Note the position: the number of epochs, with the fraction of the running epoch."""
        self._epoch = state.epoch

    def state_dict(self) -> dict[str, Any]:
        """The state of the batch sampler after the last step; `torch.distributed.checkpoint` calls this too."""
        if self._epoch is None:
            return self.sampler.state_dict()
        epoch, part = divmod(self._epoch, 1)
        return self.sampler.state_dict(batches_seen=round(part * len(self.sampler)), epoch=int(epoch))

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the batch sampler; `torch.distributed.checkpoint` calls this too."""
        self.sampler.load_state_dict(state_dict)
        self._epoch = None


def parameter_groups(model: nn.Module, weight_decay: float, loss_fn: Loss | None = None) -> list[dict[str, Any]]:
    """Optimizer groups for ``Trainer(optimizers=(optimizer, None))``: weight decay for the matrices of the model alone.

    Parameters with fewer than two dimensions (biases, norms) and all parameters of losses (scales, temperatures) get none.
    ``loss_fn`` is a loss outside the model; losses inside the model are found.
    """
    losses = [part for part in (*model.modules(), loss_fn) if isinstance(part, Loss)]
    learned = {id(parameter) for loss in losses for parameter in loss.parameters()}
    parameters = dict.fromkeys(p for part in (model, *losses) for p in part.parameters() if p.requires_grad)
    decayed = [p for p in parameters if p.dim() >= 2 and id(p) not in learned]
    rest = [p for p in parameters if p.dim() < 2 or id(p) in learned]
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": rest, "weight_decay": 0.0}]
