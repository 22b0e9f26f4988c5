"""Batch samplers in Lightning, with the callback: epochs, validation, and resuming at any step."""

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import lightning
import pytest
import torch
import torch.multiprocessing as mp
from integrations.blocks import run_block
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torchdata.stateful_dataloader import StatefulDataLoader

import contrastive_zoo as zoo
from contrastive_zoo.batch_samplers import BatchSampler
from contrastive_zoo.integrations.lightning import BatchSamplerCallback

# Lightning advises on the number of workers, loggers and resuming; what the samplers say is an error.
pytestmark = [
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.filterwarnings("error:set_epoch"),
    pytest.mark.filterwarnings("error:a pass of epoch"),
]

SIZE, BATCH = 40, 8
X = torch.randn(SIZE, 3, generator=torch.Generator().manual_seed(0))
DATASET = zoo.IndexedDataset(TensorDataset(X, X + 0.1))
NAMES = {"torch": torch, "zoo": zoo, "DataLoader": DataLoader, "dataset": DATASET}


class Noting(lightning.LightningModule):
    """Notes what it is trained on, each batch with its epoch."""

    with_callback = True

    def __init__(self, encoder: nn.Module, sampler: BatchSampler) -> None:
        super().__init__()
        self.encoder, self.sampler = encoder, sampler
        self.loss_fn = zoo.get_loss("infonce")
        self.seen: list[tuple[int, list[int]]] = []

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        x1, x2, index = batch
        self.seen.append((self.current_epoch, index.tolist()))
        return self.loss_fn(self.encoder(x1), self.encoder(x2), index=index)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        assert len(batch[-1])

    def predict_step(self, batch: Any, batch_idx: int) -> None: ...


class WithoutState(Noting):
    """Leaves the state of the sampler to the loader."""

    with_callback = False


def make(name: str = "shuffle", **params: Any) -> BatchSampler:
    return zoo.get_batch_sampler(name, num_samples=SIZE, batch_size=BATCH, **params)


def trainer_in(folder: Path, **params: Any) -> lightning.Trainer:
    """Saves a checkpoint after every step."""
    saving = ModelCheckpoint(folder, "{step}", every_n_train_steps=1, save_top_k=-1)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    place = {"accelerator": "cpu", "use_distributed_sampler": False}
    return lightning.Trainer(**{"max_epochs": 3, "callbacks": [saving], **quiet, **place, **params})


def fit(
    folder: Path,
    *,
    module: type[Any] = Noting,
    sampler: BatchSampler | None = None,
    loader: Callable[[BatchSampler], Any] | None = None,
    validate: bool = False,
    ckpt_path: str | None = None,
    **params: Any,
) -> list[tuple[int, list[int]]]:
    torch.manual_seed(0)
    model = module(nn.Linear(3, 2), sampler or make())
    loaded = loader(model.sampler) if loader is not None else None
    trainer = trainer_in(folder, **params)
    if model.with_callback:
        trainer.callbacks.insert(0, BatchSamplerCallback(model.sampler))
    trainer.fit(model, loaded, loaded if validate else None, ckpt_path=ckpt_path)
    return model.seen


def plain(sampler: BatchSampler) -> DataLoader[Any]:
    return DataLoader(DATASET, batch_sampler=sampler)


def with_workers(sampler: BatchSampler) -> DataLoader[Any]:
    context = {"num_workers": 1, "multiprocessing_context": "fork", "persistent_workers": True}
    return DataLoader(DATASET, batch_sampler=sampler, **context)


def stateful(sampler: BatchSampler) -> Any:
    return StatefulDataLoader(DATASET, batch_sampler=sampler)


def epochs(sampler: BatchSampler) -> list[tuple[int, list[int]]]:
    return [(epoch, batch) for epoch in range(3) for batch in sampler]


@pytest.mark.parametrize("loader", [plain, with_workers])
@pytest.mark.parametrize("limits", [{}, {"limit_train_batches": 3}])
def test_a_run_and_every_resumed_one(tmp_path: Path, loader: Any, limits: dict[str, int]) -> None:
    sampler, steps = make(), limits.get("limit_train_batches", 5)
    seen = fit(tmp_path, sampler=sampler, loader=loader, **limits)
    assert seen == [(epoch, batch) for epoch in range(3) for batch in list(make_at(epoch))[:steps]]
    for step in (1, steps - 1, steps, steps + 1):
        ckpt_path = str(tmp_path / f"step={step}.ckpt")
        assert fit(tmp_path / "again", loader=loader, ckpt_path=ckpt_path, **limits) == seen[step:]


def make_at(epoch: int) -> BatchSampler:
    sampler = make()
    sampler.set_epoch(epoch)
    return sampler


def test_epochs_differ() -> None:
    assert len({str(list(make_at(epoch))) for epoch in range(3)}) == 3


class PlainState(WithoutState):
    """Saves what the sampler itself says."""

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["sampler"] = self.sampler.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.sampler.load_state_dict(checkpoint["sampler"])


@pytest.mark.parametrize("module", [Noting, PlainState])
@pytest.mark.parametrize("limits", [{}, {"limit_val_batches": 3}])
def test_validation_on_the_same_sampler(tmp_path: Path, module: Any, limits: dict[str, int]) -> None:
    params = {"loader": plain, "validate": True, "val_check_interval": 2, "module": module, **limits}
    seen = fit(tmp_path, **params)
    assert seen == epochs(make())
    for step in (2, 3, 5, 6):
        assert fit(tmp_path / "again", ckpt_path=str(tmp_path / f"step={step}.ckpt"), **params) == seen[step:]


def test_validation_on_the_same_loader_with_workers(tmp_path: Path) -> None:
    def not_persistent(sampler: BatchSampler) -> DataLoader[Any]:
        return DataLoader(DATASET, batch_sampler=sampler, num_workers=1, multiprocessing_context="fork")

    assert fit(tmp_path, loader=not_persistent, validate=True) == epochs(make())


@pytest.mark.parametrize(("at_end_of_epoch", "steps"), [(False, (2, 4)), (True, (5, 10))])
def test_checkpoints_when_validation_or_an_epoch_ends(tmp_path: Path, at_end_of_epoch: bool, steps: tuple[int, int]) -> None:
    saving = ModelCheckpoint(tmp_path, "{step}", save_top_k=-1, save_on_train_epoch_end=at_end_of_epoch)
    params = {"loader": plain, "validate": True, "val_check_interval": 2, "module": PlainState}
    seen = fit(tmp_path, callbacks=[saving], **params)
    for step in steps:
        assert fit(tmp_path / "again", ckpt_path=str(tmp_path / f"step={step}.ckpt"), **params) == seen[step:]


@pytest.mark.parametrize("module", [WithoutState, Noting])
def test_a_stateful_loader_needs_no_callback_and_bears_it(tmp_path: Path, module: Any) -> None:
    seen = fit(tmp_path, module=module, loader=stateful)
    assert seen == epochs(make())
    for step in (1, 4, 5, 6):
        ckpt_path = str(tmp_path / f"step={step}.ckpt")
        assert fit(tmp_path / "again", module=module, loader=stateful, ckpt_path=ckpt_path) == seen[step:]


def hidden(sampler: BatchSampler) -> Any:
    """A loader in which Lightning finds no sampler."""

    class Batches:
        def __iter__(self) -> Any:
            return iter(plain(sampler))

        def __len__(self) -> int:
            return len(sampler)

    return Batches()


def test_the_callback_sets_epochs(tmp_path: Path) -> None:
    seen = fit(tmp_path, loader=hidden)
    assert seen == epochs(make())
    for step in (5, 10):
        ckpt_path = str(tmp_path / f"step={step}.ckpt")
        assert fit(tmp_path / "again", loader=hidden, ckpt_path=ckpt_path) == seen[step:]


def test_a_callback_takes_a_batch_sampler_only() -> None:
    with pytest.raises(TypeError, match="sampler must be a batch sampler of the zoo, got DataLoader"):
        BatchSamplerCallback(plain(make()))


class Selecting(Noting):
    """Has the documented loader, which selects batches before every epoch."""

    workers: dict[str, Any]

    def train_dataloader(self) -> Any:
        names = {**NAMES, "encoder": self.encoder, "sampler": self.sampler}
        return run_block("batches.md", "class Selecting", names)["Selecting"](
            DATASET, batch_sampler=self.sampler, **self.workers
        )


class SelectingWithoutWorkers(Selecting):
    workers: ClassVar = {}


class SelectingWithWorkers(Selecting):
    workers: ClassVar = {"num_workers": 1, "multiprocessing_context": "fork"}


def select(folder: Path, module: Any, step: int | None = None) -> list[tuple[int, list[int]]]:
    ckpt_path = None if step is None else str(folder / f"step={step}.ckpt")
    return fit(
        folder if step is None else folder / "again", module=module, sampler=make("ordered", k=5, q=4), ckpt_path=ckpt_path
    )


@pytest.mark.parametrize("module", [SelectingWithoutWorkers, SelectingWithWorkers])
def test_features_for_every_epoch(tmp_path: Path, module: Any) -> None:
    seen = select(tmp_path, module)
    assert seen == select(tmp_path / "other", SelectingWithoutWorkers)
    batches = [frozenset(batch) for _, batch in seen]
    assert (len(batches), len(set(batches))) == (12, 12)
    for step in (2, 4, 7):
        assert select(tmp_path, module, step) == seen[step:]


class Reloading(Noting):
    """Makes a loader for every epoch."""

    def train_dataloader(self) -> Any:
        return DataLoader(DATASET, batch_sampler=self.sampler, num_workers=1, multiprocessing_context="fork")


def test_a_loader_for_every_epoch(tmp_path: Path) -> None:
    params = {"module": Reloading, "reload_dataloaders_every_n_epochs": 1}
    seen = fit(tmp_path, **params)
    assert seen == epochs(make())
    for step in (1, 4, 5, 7):
        assert fit(tmp_path / "again", ckpt_path=str(tmp_path / f"step={step}.ckpt"), **params) == seen[step:]


def test_prediction_takes_an_ordinary_loader(tmp_path: Path) -> None:
    model = Noting(nn.Linear(3, 2), make())
    for name in zoo.list_batch_samplers():
        sampler = zoo.get_batch_sampler(name, num_samples=SIZE, batch_size=SIZE if name == "full" else BATCH)
        with pytest.raises(TypeError, match=r"Trainer.predict needs an ordinary DataLoader\(dataset, batch_size=\.\.\.\)"):
            trainer_in(tmp_path).predict(model, plain(sampler))


def message(call: Callable[[], object]) -> str:
    try:
        return f"returned {call()}"
    except TypeError as error:
        return str(error)


def work(rank: int, port: int, folder: Path) -> None:
    torch.set_num_threads(1)
    place = {"LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({key: str(value) for key, value in place.items()})
    params = {"strategy": "ddp", "devices": 2}
    found: dict[str, Any] = {"seen": fit(folder, loader=plain, **params)}
    for step in (2, 5):
        ckpt_path = str(folder / f"step={step}.ckpt")
        found[f"from {step}"] = fit(folder / "again", loader=plain, ckpt_path=ckpt_path, **params)
    selecting = {"module": SelectingWithoutWorkers, **params}
    found["selected"] = fit(folder / "selected", sampler=make("ordered", k=5, q=4), **selecting)
    default = {**params, "use_distributed_sampler": True}
    found["default"] = {
        name: message(lambda n=name: fit(folder, sampler=make(n), loader=plain, **default)) for name in ("shuffle", "ordered")
    }
    fabric = lightning.Fabric(accelerator="cpu", strategy="ddp", devices=2)
    fabric.launch()
    found["fabric default"] = message(lambda: fabric.setup_dataloaders(plain(make())))
    loader = fabric.setup_dataloaders(plain(make()), use_distributed_sampler=False)
    found["fabric"] = [(epoch, batch[-1].tolist()) for epoch in range(3) for batch in loader]
    torch.save(found, folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("lightning")
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    mp.spawn(work, (port, folder), nprocs=2)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


def together(found: list[dict[str, Any]], key: str) -> list[tuple[int, list[int]]]:
    """Global batches, from the slices of both processes."""
    first, second = (part[key] for part in found)
    assert all(len(one) == len(two) == BATCH // 2 for (_, one), (_, two) in zip(first, second, strict=True))
    return [(epoch, one + two) for (epoch, one), (_, two) in zip(first, second, strict=True)]


def test_two_processes_train_on_the_batches_of_one(found: list[dict[str, Any]]) -> None:
    assert together(found, "seen") == together(found, "fabric") == epochs(make())
    assert together(found, "from 2") == epochs(make())[2:]
    assert together(found, "from 5") == epochs(make())[5:]


def test_two_processes_select_the_same(found: list[dict[str, Any]]) -> None:
    batches = together(found, "selected")
    for epoch in range(3):
        samples = [position for at, batch in batches if at == epoch for position in batch]
        assert len(set(samples)) == 4 * BATCH


def test_a_distributed_sampler_is_refused(found: list[dict[str, Any]]) -> None:
    for process in found:
        for words in (*process["default"].values(), process["fabric default"]):
            assert "already gives each process its share. In Lightning, pass Trainer(use_distributed_sampler=False)" in words


def test_without_the_callback_a_resumed_run_repeats_batches(tmp_path: Path) -> None:
    seen = fit(tmp_path, module=WithoutState, loader=plain)
    again = fit(tmp_path / "again", module=WithoutState, loader=plain, ckpt_path=str(tmp_path / "step=2.ckpt"))
    assert again != seen[2:]
