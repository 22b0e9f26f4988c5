"""Images that lie in files, through torchvision's own classes: CIFAR, STL-10, Tiny ImageNet, ImageNet, or any folder."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from errors import SettingError
from sklearn.model_selection import train_test_split
from torch.utils.data import Dataset, Subset
from torchvision import datasets

Transform = Callable[[Any], Any] | None
# Class, and arguments of the part to learn from, of the labelled training part and of the held-out part.
TORCHVISION: dict[str, tuple[Any, dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "cifar10": (datasets.CIFAR10, {"train": True}, {"train": True}, {"train": False}),
    "cifar100": (datasets.CIFAR100, {"train": True}, {"train": True}, {"train": False}),
    "stl10": (datasets.STL10, {"split": "train+unlabeled"}, {"split": "train"}, {"split": "test"}),
}
ANNOTATIONS = "val_annotations.txt"


@dataclass(frozen=True)
class Part:
    """A part of a dataset, to be read with a transform of images."""

    shown: Callable[[Transform], Dataset[Any]]


@dataclass(frozen=True)
class Parts:
    """Parts to learn from, to classify by, and to judge by; the first may be without labels."""

    learn: Part
    train: Part
    held_out: Part
    classes: list[str]
    labelled: bool = True


def from_torchvision(name: str, root: str, download: bool) -> Parts:
    """A dataset that a class of torchvision reads.

    Raises:
        SettingError: It is not there, or damaged.
    """
    build, learn, train, held_out = TORCHVISION[name]

    def part(options: dict[str, Any]) -> Part:
        return Part(lambda transform: build(root, transform=transform, download=download, **options))

    try:
        classes = list(part(held_out).shown(None).classes)  # type: ignore[attr-defined]
    except (RuntimeError, OSError) as error:
        raise SettingError(
            f"--data {name}: not found in {root!r} ({error}) Name its folder with --root, or add --download once."
        ) from error
    return Parts(part(learn), part(train), part(held_out), classes, labelled=learn == train)


def from_folder(folder: Path) -> Parts:
    """A folder with a folder of images for each class, or with train/ and val/ that hold such folders.

    Tiny ImageNet, whose val/ names the classes in a file, is read as it is published.

    Raises:
        SettingError: There are no images, or the two parts have different classes.
    """
    try:
        if (folder / "train").is_dir() and (folder / "val").is_dir():
            return _two_folders(folder / "train", folder / "val")
        whole = datasets.ImageFolder(folder)
        train, held_out = train_test_split(range(len(whole)), test_size=0.2, stratify=whole.targets, random_state=0)
    except (FileNotFoundError, ValueError) as error:
        raise SettingError(f"--data {folder}: {error}") from error

    def part(positions: list[int]) -> Part:
        return Part(lambda transform: Subset(datasets.ImageFolder(folder, transform), positions))

    return Parts(part(train), part(train), part(held_out), whole.classes)


def _two_folders(train: Path, held_out: Path) -> Parts:
    classes = datasets.ImageFolder(train).classes
    first = Part(lambda transform: datasets.ImageFolder(train, transform))
    if (held_out / ANNOTATIONS).is_file():
        return Parts(first, first, Part(lambda transform: AnnotatedImages(held_out, classes, transform)), classes)
    others = set(datasets.ImageFolder(held_out).classes) ^ set(classes)
    if others:
        raise ValueError(f"{train.name}/ and {held_out.name}/ must hold the same classes, but {sorted(others)} is in one only.")
    return Parts(first, first, Part(lambda transform: datasets.ImageFolder(held_out, transform)), classes)


class AnnotatedImages(datasets.VisionDataset):
    """Images of one folder whose classes a file lists: the validation part of Tiny ImageNet."""

    def __init__(self, root: Path, classes: list[str], transform: Transform) -> None:
        super().__init__(root, transform=transform)
        numbers = {name: number for number, name in enumerate(classes)}
        lines = [line.split("\t")[:2] for line in (root / ANNOTATIONS).read_text().splitlines() if line]
        unknown = {name for _, name in lines} - numbers.keys()
        if unknown:
            raise SettingError(f"{root / ANNOTATIONS} names classes that train/ does not have: {sorted(unknown)[:5]}.")
        self.samples = [(root / "images" / file, numbers[name]) for file, name in lines]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        path, label = self.samples[index]
        image = datasets.folder.default_loader(str(path))
        return image if self.transform is None else self.transform(image), label
