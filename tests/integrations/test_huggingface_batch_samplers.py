"""Batch samplers in the Trainer of Transformers, with the callback: epochs, and resuming at any step."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn
from torch.utils.data import DataLoader

import contrastive_zoo as zoo
from contrastive_zoo.batch_samplers import BatchSampler
from contrastive_zoo.integrations.huggingface import BatchSamplerCallback

# Trainer advises on devices and names; what the samplers say is an error.
pytestmark = [
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.filterwarnings("error:set_epoch"),
    pytest.mark.filterwarnings("error:a pass of epoch"),
]

SIZE, BATCH = 40, 8
X = torch.randn(SIZE, 3, generator=torch.Generator().manual_seed(0))
DATASET = zoo.IndexedDataset([{"x1": x, "x2": x + 0.1} for x in X])


class Model(nn.Module):
    """Notes the indices that it is trained on."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.loss_fn = nn.Linear(3, 2), zoo.get_loss("infonce")
        self.seen: list[list[int]] = []

    def forward(self, x1: Any, x2: Any, index: Any) -> dict[str, Any]:
        self.seen.append(index.tolist())
        return {"loss": self.loss_fn(self.encoder(x1), self.encoder(x2), index=index)}


def make(name: str = "shuffle") -> BatchSampler:
    sampler = zoo.get_batch_sampler(name, num_samples=SIZE, batch_size=BATCH, **({"k": 5, "q": 4} if name == "ordered" else {}))
    sampler.refresh(X, X.flip(1), torch.arange(SIZE))
    return sampler


class Trainer(transformers.Trainer):
    """Trains on a batch sampler."""

    sampler: BatchSampler

    def get_train_dataloader(self) -> Any:
        return DataLoader(self.train_dataset, batch_sampler=self.sampler, collate_fn=self.data_collator)


def with_workers(trainer: type[Any]) -> type[Any]:
    """The same trainer with a loader that fetches ahead."""

    class Ahead(trainer):
        def get_train_dataloader(self) -> Any:
            sampler = super().get_train_dataloader().batch_sampler
            context = {"num_workers": 1, "multiprocessing_context": "fork", "prefetch_factor": 8}
            return DataLoader(self.train_dataset, batch_sampler=sampler, collate_fn=self.data_collator, **context)

    return Ahead


def fit(
    folder: Path,
    sampler: BatchSampler,
    resume: Path | None = None,
    workers: bool = False,
    callback: bool = True,
    **params: Any,
) -> list[list[int]]:
    quiet = {"report_to": "none", "disable_tqdm": True, "logging_strategy": "no", "use_cpu": True}
    saving = {"save_strategy": "steps", "save_steps": 1}
    args = transformers.TrainingArguments(
        str(folder), **{"num_train_epochs": 3, "remove_unused_columns": False, **quiet, **saving, **params}
    )
    callbacks = [BatchSamplerCallback(sampler, checkpoint=resume)] if callback else []
    kind = with_workers(Trainer) if workers else Trainer
    trainer = kind(model=Model(), args=args, train_dataset=DATASET, callbacks=callbacks)
    trainer.sampler = sampler
    trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
    return list(trainer.model.seen)


@pytest.mark.parametrize("name", ["shuffle", "ordered"])
def test_a_run_and_every_resumed_one(tmp_path: Path, name: str) -> None:
    whole = make(name)
    wanted = [batch for _ in range(3) for batch in whole]
    steps = len(whole)
    assert wanted[:steps] != wanted[steps : 2 * steps]
    assert fit(tmp_path, make(name)) == wanted
    for step in (1, steps - 1, steps, steps + 1):
        checkpoint = tmp_path / f"checkpoint-{step}"
        assert fit(tmp_path / "again", make(name), checkpoint, save_strategy="no") == wanted[step:]


@pytest.mark.parametrize("name", ["shuffle", "ordered"])
def test_workers_that_fetch_ahead(tmp_path: Path, name: str) -> None:
    wanted = fit(tmp_path, make(name), workers=True)
    steps = len(make(name))
    for step in (1, steps, steps + 2):
        checkpoint = tmp_path / f"checkpoint-{step}"
        assert fit(tmp_path / "again", make(name), checkpoint, workers=True, save_strategy="no") == wanted[step:]


def test_without_skipping_the_sampler_does_it(tmp_path: Path) -> None:
    wanted = fit(tmp_path, make())
    again = fit(tmp_path / "again", make(), tmp_path / "checkpoint-7", save_strategy="no", ignore_data_skip=True)
    assert again[:8] == wanted[7:]


def test_steps_of_several_batches(tmp_path: Path) -> None:
    whole = make()
    wanted = [batch for _ in range(3) for batch in whole]
    several = {"gradient_accumulation_steps": 2}
    assert fit(tmp_path, make(), **several) == wanted
    assert fit(tmp_path / "again", make(), tmp_path / "checkpoint-4", save_strategy="no", **several) == wanted[7:]


def test_an_order_that_needs_no_features_is_resumed_without_a_state(tmp_path: Path) -> None:
    wanted = fit(tmp_path, make())
    for step in (5, 7):
        checkpoint = tmp_path / f"checkpoint-{step}"
        assert fit(tmp_path / "again", make(), checkpoint, callback=False, save_strategy="no") == wanted[step:]
