"""The loss with open_clip's signature against ClipLoss and SigLipLoss: values and gradients, on one process and on two."""

from pathlib import Path
from typing import Any

import open_clip.loss
import pytest
import torch
from integrations.spawning import WORLD, in_processes
from torch import Tensor, nn

import contrastive_zoo as zoo
from contrastive_zoo.integrations.open_clip import OpenClipLoss

# Building models warns of what PyTorch deprecates.
pytestmark = pytest.mark.filterwarnings("ignore")

BATCH, WIDTH = 12, 6
THEIRS = {"clip": open_clip.loss.ClipLoss, "siglip": open_clip.loss.SigLipLoss}
NAMES = ["clip", "siglip", "infonce", "sogclr", "isogclr"]


class Towers(nn.Module):
    """Two linear towers that return what open_clip's models return."""

    def __init__(self, scale: float, bias: float | None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.image, self.text = nn.Linear(WIDTH, 4), nn.Linear(WIDTH, 4)
        self.logit_scale = nn.Parameter(torch.tensor(scale).log())
        self.logit_bias = None if bias is None else nn.Parameter(torch.tensor(bias))

    def forward(self, images: Tensor, texts: Tensor) -> dict[str, Tensor]:
        features = (nn.functional.normalize(tower(x), dim=-1) for tower, x in ((self.image, images), (self.text, texts)))
        found = dict(zip(("image_features", "text_features"), features, strict=True))
        found["logit_scale"] = self.logit_scale.exp()
        return found if self.logit_bias is None else {**found, "logit_bias": self.logit_bias}


def batch(size: int = BATCH) -> tuple[Tensor, Tensor]:
    images, texts = torch.randn(2, size, WIDTH, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return images, texts


def make(name: str) -> OpenClipLoss:
    params: dict[str, Any] = {"num_samples": BATCH, "intra_view": False} if name in ("sogclr", "isogclr") else {}
    return OpenClipLoss(zoo.get_loss(name, **params)).double()


def value_and_gradients(loss_fn: Any, scale: float = 10.0, bias: float | None = None, **arguments: Any) -> dict[str, Tensor]:
    model = Towers(scale, bias).double()
    loss = loss_fn(**model(*batch()), **arguments, output_dict=True)["contrastive_loss"]
    loss.backward()
    return {"loss": loss.detach(), **{name: p.grad for name, p in model.named_parameters()}}


@pytest.mark.parametrize("scale", [1.0, 14.3, 100.0])
@pytest.mark.parametrize(("name", "bias"), [("clip", None), ("clip", -3.0), ("siglip", -10.0), ("siglip", 0.5)])
def test_equals_open_clip(name: str, bias: float | None, scale: float) -> None:
    found = value_and_gradients(make(name), scale, bias)
    wanted = value_and_gradients(THEIRS[name](), scale, bias)
    if scale in (1.0, 100.0):  # the ends of the interval keep only gradients that lead back
        del found["logit_scale"], wanted["logit_scale"]
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-7)


def test_infonce_is_clip() -> None:
    torch.testing.assert_close(value_and_gradients(make("infonce")), value_and_gradients(make("clip")), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", NAMES)
def test_the_scale_of_the_call_is_the_only_one(name: str) -> None:
    loss_fn, index = make(name), torch.arange(BATCH)
    low, high = (value_and_gradients(loss_fn, scale, -1.0, index=index) for scale in (5.0, 20.0))
    assert not torch.isclose(low["loss"], high["loss"])
    assert (high["logit_scale"] != 0) == (name != "isogclr")
    assert not [p for p in loss_fn.parameters() if p.requires_grad]
    assert zoo.parameter_groups(loss_fn.loss_fn) == []


def test_temperatures_of_isogclr_are_its_own() -> None:
    loss_fn = make("isogclr")
    value_and_gradients(loss_fn, index=torch.arange(BATCH))
    assert len(loss_fn.loss_fn.table()["temperature1"].unique()) == BATCH


def test_signature() -> None:
    x, y = batch()
    for ours, theirs in ((make("clip"), open_clip.loss.ClipLoss()), (make("siglip"), open_clip.loss.SigLipLoss())):
        x, y = nn.functional.normalize(x, dim=1), nn.functional.normalize(y, dim=1)
        scale, bias = torch.tensor(10.0, dtype=torch.float64), torch.tensor(-10.0, dtype=torch.float64)
        torch.testing.assert_close(ours(x, y, scale, bias), theirs(x, y, scale, bias), rtol=1e-5, atol=0)


def test_refusals() -> None:
    with pytest.raises(ValueError, match="intra_view=False"):
        OpenClipLoss(zoo.get_loss("sogclr", num_samples=4))
    with pytest.raises(ValueError, match="loss_fn must be one of clip, siglip, infonce, sogclr, isogclr, got 'ntxent'"):
        OpenClipLoss(zoo.get_loss("ntxent"))
    with pytest.raises(TypeError, match="loss_fn must be a loss of the zoo, got ClipLoss"):
        OpenClipLoss(open_clip.loss.ClipLoss())


@pytest.mark.parametrize("name", ["clip", "sogclr"])
def test_state_is_saved_and_restored(name: str) -> None:
    first, second, index = make(name), make(name), torch.arange(BATCH)
    value_and_gradients(first, index=index)
    second.load_state_dict(first.state_dict())
    for _ in range(2):
        found, wanted = (value_and_gradients(loss_fn, 11.0, index=index) for loss_fn in (second, first))
        torch.testing.assert_close(found, wanted, rtol=0, atol=0)


def share(name: str, theirs: bool) -> dict[str, Tensor]:
    """Gradients of this process for its part of the batch, averaged over processes as DistributedDataParallel does."""
    rank = torch.distributed.get_rank()
    options = {"gather_with_grad": True} if name == "clip" else {}
    loss_fn = THEIRS[name](rank=rank, world_size=WORLD, **options) if theirs else make(name)
    model = Towers(10.0, -5.0).double()
    found = model(*(part.chunk(WORLD)[rank] for part in batch()))
    loss = loss_fn(**found, **({} if theirs else {"index": torch.arange(BATCH).chunk(WORLD)[rank]}))
    loss.backward()
    gradients = {key: p.grad for key, p in model.named_parameters()}
    for tensor in gradients.values():
        torch.distributed.all_reduce(tensor)
        tensor /= WORLD
    return gradients


def work(folder: Path) -> dict[str, Any]:
    torch.distributed.init_process_group("gloo")
    return {
        f"{name} {theirs}": share(name, theirs)
        for name in ("clip", "siglip", "sogclr")
        for theirs in (False, True)
        if name in THEIRS or not theirs
    }


def test_two_processes_train_as_one_and_as_open_clip(tmp_path: Path) -> None:
    for of_rank in in_processes(work, tmp_path):
        for name in ("clip", "siglip", "sogclr"):
            alone = value_and_gradients(make(name), 10.0, -5.0, index=torch.arange(BATCH))
            alone.pop("loss")
            torch.testing.assert_close(of_rank[f"{name} False"], alone, rtol=1e-5, atol=1e-7)
        for name in THEIRS:
            torch.testing.assert_close(of_rank[f"{name} False"], of_rank[f"{name} True"], rtol=1e-5, atol=1e-7)
