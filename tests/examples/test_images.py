from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

CPU = torch.device("cpu")


def test_digits_are_split_by_class_without_overlap() -> None:
    from images import load_images

    images = load_images("digits")
    (train, train_labels), (held_out, labels) = images.train.tensors, images.held_out.tensors
    assert train.shape == (1437, 1, 32, 32)
    assert held_out.shape == (360, 1, 32, 32)
    assert (float(train.min()), float(train.max())) == (0, 1)
    assert torch.allclose(torch.bincount(train_labels) / 1437, torch.bincount(labels) / 360, atol=0.005)
    assert float(torch.cdist(train.flatten(1), held_out.flatten(1)).min()) > 0


def test_views_of_digits_differ_but_are_not_mirrored() -> None:
    from images import augment_digits

    torch.manual_seed(0)
    left_half = torch.zeros(500, 1, 32, 32)
    left_half[..., 8:24, 8:14] = 1
    first, second = augment_digits(left_half), augment_digits(left_half)
    assert first.shape == left_half.shape
    assert torch.unique((first - second).abs().sum((1, 2, 3))).numel() == 500
    columns = torch.arange(32.0)
    centre = (first.clamp_min(0.2).sub(0.2).sum((1, 2)) * columns).sum(1) / first.clamp_min(0.2).sub(0.2).sum((1, 2, 3))
    assert float((centre < 15.5).float().mean()) > 0.98


def test_share_of_digits_with_an_erased_patch() -> None:
    from images import augment_digits

    torch.manual_seed(0)
    views = augment_digits(torch.ones(2000, 1, 32, 32) * 2)
    inside = views[:, :, 8:24, 8:24]  # far from what a shift brings in from outside
    assert 0.05 < float((inside.amin((1, 2, 3)) == 0).float().mean()) < 0.2


class Coloured:
    """Stands in for one of torchvision's datasets: ten classes, one shade each; held-out shades are green."""

    classes = tuple("0123456789")

    def __init__(self, root: str, train: bool, transform: Any, download: bool) -> None:
        self.train, self.transform = train, transform

    def __len__(self) -> int:
        return 40 if self.train else 20

    def __getitem__(self, position: int) -> tuple[Any, int]:
        shade = 20 * (position % 10)
        image = Image.new("RGB", (32, 32), (shade, 0, 0) if self.train else (0, shade, 0))
        return self.transform(image), position % 10


def test_torchvision_data_sets_give_two_views_and_the_image_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    import images

    monkeypatch.setitem(images.TORCHVISION, "cifar10", (Coloured, {"train": True}, {"train": False}, 32))
    loaded = images.load_images("cifar10")
    assert (len(loaded.pairs), len(loaded.train), len(loaded.held_out_pairs), len(loaded.held_out)) == (40, 40, 20, 20)
    plain, labels = next(iter(DataLoader(loaded.train, batch_size=40)))
    assert torch.equal(labels, torch.arange(40) % 10)
    red = plain[:, 0] * 0.229 + 0.485  # undoes the normalisation
    assert torch.allclose(red, (20 * labels / 255)[:, None, None].expand_as(red), atol=1e-6)
    pair, pair_labels = next(iter(DataLoader(loaded.held_out_pairs, batch_size=20)))
    first, second = loaded.two_views(pair, CPU)
    assert first.shape == second.shape == (20, 3, 32, 32)
    assert torch.equal(pair_labels, torch.arange(20) % 10)
    assert not torch.equal(first, second)


def test_folder_with_its_own_held_out_part(folder_of_images: Path, tmp_path: Path) -> None:
    from images import load_images

    (tmp_path / "both" / "val").mkdir(parents=True)
    folder_of_images.rename(tmp_path / "both" / "train")
    for name in ("red", "blue"):
        (tmp_path / "both" / "val" / name).mkdir()
        source = tmp_path / "both" / "train" / name / "0.png"
        source.rename(tmp_path / "both" / "val" / name / "0.png")
    loaded = load_images(str(tmp_path / "both"), size=32)
    assert (len(loaded.train), len(loaded.held_out)) == (38, 2)
    assert loaded.classes == ["blue", "red"]
    assert loaded.held_out[1][0].shape == (3, 32, 32)


def test_parts_of_a_folder_must_agree_in_their_classes(folder_of_images: Path, tmp_path: Path) -> None:
    from images import SettingError, load_images

    (tmp_path / "both" / "val" / "red").mkdir(parents=True)
    folder_of_images.rename(tmp_path / "both" / "train")
    (tmp_path / "both" / "train" / "red" / "0.png").rename(tmp_path / "both" / "val" / "red" / "0.png")
    with pytest.raises(SettingError, match=r"same classes.*\['blue'\]"):
        load_images(str(tmp_path / "both"))


def test_folder_without_images_is_refused(tmp_path: Path) -> None:
    from images import SettingError, load_images

    with pytest.raises(SettingError, match="--data"):
        load_images(str(tmp_path))
