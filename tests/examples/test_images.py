from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

CPU = torch.device("cpu")


def test_digits_are_split_by_class_without_overlap() -> None:
    from images import Source, load_images

    images = load_images(Source())
    (train, train_labels), (held_out, labels) = images.train.tensors, images.held_out.tensors
    assert train.shape == (1437, 1, 32, 32)
    assert held_out.shape == (360, 1, 32, 32)
    assert (float(train.min()), float(train.max())) == (0, 1)
    assert torch.allclose(torch.bincount(train_labels) / 1437, torch.bincount(labels) / 360, atol=0.005)
    assert float(torch.cdist(train.flatten(1), held_out.flatten(1)).min()) > 0


def test_views_of_digits_differ_but_are_not_mirrored() -> None:
    from draws import Draws
    from views import augment_digits

    left_half = torch.zeros(500, 1, 32, 32)
    left_half[..., 8:24, 8:14] = 1
    first, second = (augment_digits(left_half, Draws(torch.arange(500), view)) for view in range(2))
    assert first.shape == left_half.shape
    assert torch.unique((first - second).abs().sum((1, 2, 3))).numel() == 500
    columns = torch.arange(32.0)
    centre = (first.clamp_min(0.2).sub(0.2).sum((1, 2)) * columns).sum(1) / first.clamp_min(0.2).sub(0.2).sum((1, 2, 3))
    assert float((centre < 15.5).float().mean()) > 0.98


def test_share_of_digits_with_an_erased_patch() -> None:
    from draws import Draws
    from views import augment_digits

    views = augment_digits(torch.ones(2000, 1, 32, 32) * 2, Draws(torch.arange(2000), 0))
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
        return image if self.transform is None else self.transform(image), position % 10


def test_torchvision_data_sets_give_two_views_and_the_image_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    import folders
    from images import Source, load_images

    train = {"train": True}
    monkeypatch.setitem(folders.TORCHVISION, "cifar10", (Coloured, train, train, {"train": False}))
    loaded = load_images(Source("cifar10"))
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
    from images import Source, load_images

    (tmp_path / "both" / "val").mkdir(parents=True)
    folder_of_images.rename(tmp_path / "both" / "train")
    for name in ("red", "blue"):
        (tmp_path / "both" / "val" / name).mkdir()
        source = tmp_path / "both" / "train" / name / "0.png"
        source.rename(tmp_path / "both" / "val" / name / "0.png")
    loaded = load_images(Source(str(tmp_path / "both"), size=32))
    assert (len(loaded.train), len(loaded.held_out)) == (38, 2)
    assert loaded.classes == ["blue", "red"]
    assert loaded.held_out[1][0].shape == (3, 32, 32)


def test_parts_of_a_folder_must_agree_in_their_classes(folder_of_images: Path, tmp_path: Path) -> None:
    from errors import SettingError
    from images import Source, load_images

    (tmp_path / "both" / "val" / "red").mkdir(parents=True)
    folder_of_images.rename(tmp_path / "both" / "train")
    (tmp_path / "both" / "train" / "red" / "0.png").rename(tmp_path / "both" / "val" / "red" / "0.png")
    with pytest.raises(SettingError, match=r"same classes.*\['blue'\]"):
        load_images(Source(str(tmp_path / "both")))


def test_folder_without_images_is_refused(tmp_path: Path) -> None:
    from errors import SettingError
    from images import Source, load_images

    with pytest.raises(SettingError, match="--data"):
        load_images(Source(str(tmp_path)))


def write_images(folder: Path, count: int, colour: tuple[int, int, int] = (200, 30, 30)) -> None:
    folder.mkdir(parents=True)
    for number in range(count):
        Image.new("RGB", (64, 64), colour).save(folder / f"{folder.parent.name}_{number}.JPEG")


def test_tiny_imagenet_is_read_as_it_is_published(tmp_path: Path) -> None:
    from errors import SettingError
    from images import Source, load_images

    root = tmp_path / "tiny-imagenet-200"
    for number, name in enumerate(("n01", "n02")):
        write_images(root / "train" / name / "images", 3, (100 * number, 0, 0))
    write_images(root / "val" / "images", 4)
    lines = [f"val_{number}.JPEG\tn0{1 + number % 2}\t0\t0\t62\t62\n" for number in range(4)]
    (root / "val" / "val_annotations.txt").write_text("".join(lines))
    loaded = load_images(Source("tiny-imagenet", root=str(tmp_path)))
    assert (len(loaded.pairs), len(loaded.held_out), loaded.size, loaded.classes) == (6, 4, 64, ["n01", "n02"])
    assert [loaded.held_out[number][1] for number in range(4)] == [0, 1, 0, 1]
    assert [label for _, label in loaded.train] == [0, 0, 0, 1, 1, 1]
    (root / "val" / "val_annotations.txt").write_text("val_0.JPEG\tn07\n")
    with pytest.raises(SettingError, match=r"classes that train/ does not have: \['n07'\]"):
        load_images(Source("tiny-imagenet", root=str(tmp_path)))
    with pytest.raises(SettingError, match=r"imagenet/train.*--root"):
        load_images(Source("imagenet", root=str(tmp_path)))


class Unlabelled(Coloured):
    """Stands in for STL-10."""

    def __init__(self, root: str, split: str, transform: Any, download: bool) -> None:
        super().__init__(root, split != "test", transform, download)
        self.split = split

    def __len__(self) -> int:
        return {"train+unlabeled": 60, "train": 10, "test": 20}[self.split]

    def __getitem__(self, position: int) -> tuple[Any, int]:
        image, label = super().__getitem__(position)
        return image, label if position < 10 or self.split == "test" else -1


def test_stl10_learns_from_all_images_and_is_judged_by_those_with_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    import folders
    from images import Source, load_images

    monkeypatch.setitem(folders.TORCHVISION, "stl10", (Unlabelled, *folders.TORCHVISION["stl10"][1:]))
    loaded = load_images(Source("stl10", size=32))
    assert (len(loaded.pairs), len(loaded.train), len(loaded.held_out)) == (60, 10, 20)
    assert not loaded.labelled
    assert [loaded.train[number][1] for number in range(10)] == list(range(10))
    assert loaded.pairs[30][1] == -1


def test_views_in_the_loader_are_functions_of_seed_epoch_and_sample(folder_of_images: Path) -> None:
    from images import Source, load_images

    def pair(index: int, seed: int = 0, epoch: int = 0, few: bool = False) -> torch.Tensor:
        images = load_images(Source(str(folder_of_images), size=32, on_device=False, seed=seed))
        images = images.first(20, 8) if few else images
        images.set_epoch(epoch)
        return torch.stack(images.pairs[index][0])

    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    first = pair(3)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(2)
    assert torch.equal(pair(3), first)
    assert torch.equal(pair(3, few=True), first)
    assert not torch.equal(first[0], first[1])
    others = [pair(4), pair(3, seed=1), pair(3, epoch=1), pair(3, epoch=1, few=True)]
    assert not any(torch.equal(other, first) for other in others)
    assert torch.equal(others[2], others[3])


def test_unknown_views_and_views_of_digits_are_refused() -> None:
    from errors import SettingError
    from images import Source, load_images

    with pytest.raises(SettingError, match="not one of simclr, simclr-small, moco"):
        load_images(Source(views="mocov3"))
    with pytest.raises(SettingError, match="digits are grey"):
        load_images(Source(views="moco"))
    with pytest.raises(SettingError, match="clutter must be between 0 and 1, got 2"):
        load_images(Source("cluttered-digits", clutter=2))
    with pytest.raises(SettingError, match="made of 32 pixels"):
        load_images(Source("cluttered-digits", size=64))
