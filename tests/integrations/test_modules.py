"""The modules of contrastive_zoo.integrations: examples run, sizes are small, and callbacks follow the protocols of PyTorch."""

import doctest
import importlib
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.stateful import Stateful

import contrastive_zoo as zoo
from contrastive_zoo.integrations import huggingface, lightning

# torch.distributed.checkpoint warns that there is one process; torchdata calls a deprecated function of PyTorch.
pytestmark = pytest.mark.filterwarnings("ignore")

FILES = sorted((Path(zoo.__file__).parent / "integrations").glob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_modules_are_short_and_their_examples_run(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 100
    module = importlib.import_module(f"contrastive_zoo.integrations.{path.stem}".removesuffix(".__init__"))
    assert doctest.testmod(module).failed == 0
    for name in getattr(module, "__all__", []):
        public = [
            getattr(module, name),
            *(vars(getattr(module, name)).values() if isinstance(getattr(module, name), type) else ()),
        ]
        assert all(one.__doc__ for one in public if callable(one) and not getattr(one, "__name__", "_").startswith("_"))


def sampler() -> Any:
    return zoo.get_batch_sampler("shuffle", num_samples=24, batch_size=6)


def callbacks(taken: Any, loss_fn: Any) -> list[Any]:
    return [
        lightning.BatchSamplerCallback(taken),
        huggingface.BatchSamplerCallback(taken),
        huggingface.LossCallback(loss_fn),
    ]


@pytest.mark.parametrize("number", range(3))
def test_callbacks_are_saved_by_distributed_checkpoints(number: int, tmp_path: Path) -> None:
    taken, again = sampler(), sampler()
    wanted = [batch for _ in range(2) for batch in sampler_epochs()]
    loss_fn, other = (zoo.get_loss("sogclr", num_samples=24) for _ in range(2))
    iterator = iter(taken)
    for _ in range(2):
        next(iterator)
    z1, z2 = torch.randn(2, 6, 4)
    loss_fn(z1, z2, index=torch.arange(6))
    callback = callbacks(taken, loss_fn)[number]
    assert isinstance(callback, Stateful)
    dcp.save({"callback": callback}, checkpoint_id=tmp_path)
    dcp.load({"callback": callbacks(again, other)[number]}, checkpoint_id=tmp_path)
    if number < 2:
        assert list(again) == wanted[2:4]
    else:
        torch.testing.assert_close(other.state_dict(), loss_fn.state_dict(), rtol=0, atol=0)


def sampler_epochs() -> list[list[int]]:
    taken = sampler()
    return [batch for _ in range(2) for batch in taken]


@pytest.mark.parametrize("kind", [lightning.BatchSamplerCallback, huggingface.BatchSamplerCallback])
def test_the_state_of_a_callback_is_that_of_a_stateful_loader(kind: Any) -> None:
    """A run with a callback goes on in a StatefulDataLoader, and the other way round."""
    from torchdata.stateful_dataloader import StatefulDataLoader

    def loader(taken: Any) -> Any:
        return StatefulDataLoader(range(24), batch_sampler=taken, collate_fn=list)

    first, second = sampler(), sampler()
    iterator = iter(loader(first))
    assert [next(iterator) for _ in range(2)] == sampler_epochs()[:2]
    kind(second).load_state_dict(kind(first).state_dict())
    assert list(loader(second)) == sampler_epochs()[2:4]
