"""Images in two views: scikit-learn's digits, torchvision's datasets, or a folder of yours."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor
from torch.utils.data import Dataset, Subset, TensorDataset
from torchvision import datasets
from torchvision.transforms import v2

# Class, arguments of the training and of the held-out part, and the size of the images.
TORCHVISION = {
    "cifar10": (datasets.CIFAR10, {"train": True}, {"train": False}, 32),
    "cifar100": (datasets.CIFAR100, {"train": True}, {"train": False}, 32),
    "stl10": (datasets.STL10, {"split": "train"}, {"split": "test"}, 96),
}
HELD_OUT_SHARE = 0.2


class SettingError(ValueError):
    """A setting that cannot be met; its message is for the command line."""


@dataclass(frozen=True)
class Images:
    """Images to learn from and images to judge by.

    Attributes:
        pairs: Training items to learn from: two views and a label, or an image and a label if there is `augment`.
        train: The training images as they are, in the same order: the evaluation classifies by them.
        held_out_pairs: Items like those of `pairs`, of the held-out images.
        held_out: The held-out images as they are.
        classes: Name of each label.
        channels: Channels of an image.
        size: Height and width of an image.
        augment: Makes a view of a batch of images at once; None if the dataset does it, image by image.
    """

    pairs: Dataset[Any]
    train: Dataset[Any]
    held_out_pairs: Dataset[Any]
    held_out: Dataset[Any]
    classes: list[str]
    channels: int
    size: int
    augment: Callable[[Tensor], Tensor] | None = None

    def two_views(self, batch: Any, device: torch.device) -> tuple[Tensor, Tensor]:
        """Two views (B, C, H, W) from what a loader over `pairs` returned besides labels."""
        if self.augment is None:
            first, second = batch
            return first.to(device), second.to(device)
        images = batch.to(device)
        return self.augment(images), self.augment(images)

    def first(self, train: int, held_out: int) -> "Images":
        """The same with the first few images of each part only, or all if there are no more."""

        def few(dataset: Any, number: int) -> Dataset[Any]:
            return Subset(dataset, range(min(number, len(dataset))))

        return replace(
            self,
            pairs=few(self.pairs, train),
            train=few(self.train, train),
            held_out_pairs=few(self.held_out_pairs, held_out),
            held_out=few(self.held_out, held_out),
        )


def load_images(name: str, root: str = "data", size: int | None = None, download: bool = False) -> Images:
    """The images behind a name, in two parts that share no image.

    Args:
        name: "digits", "cifar10", "cifar100", "stl10", or a folder with a folder of images for each class; it may hold
            train/ and val/ with such folders, otherwise a stratified fifth is held out.
        root: Where torchvision keeps its datasets.
        size: Height and width to scale images to; by default the dataset's own, 224 for folders.
        download: Whether torchvision may download what is absent.

    Raises:
        SettingError: There is nothing by that name.
    """
    if name == "digits":
        return _digits(size or 32)
    if name in TORCHVISION:
        return _from_torchvision(name, root, size, download)
    if Path(name).is_dir():
        return _from_folder(Path(name), size or 224)
    raise SettingError(f"--data {name}: neither a folder nor one of digits, {', '.join(TORCHVISION)}.")


def _split(labels: Any) -> tuple[list[int], list[int]]:
    """Positions of the training and of the held-out images, with equal shares of each class in both."""
    train, held_out = train_test_split(range(len(labels)), test_size=HELD_OUT_SHARE, stratify=labels, random_state=0)
    return train, held_out


def _digits(size: int) -> Images:
    """1,797 handwritten digits that come with scikit-learn, 8x8 and scaled up."""
    pixels, target = load_digits(return_X_y=True)
    images = torch.tensor(pixels, dtype=torch.float32).view(-1, 1, 8, 8) / 16
    images = F.interpolate(images, size=size, mode="bicubic").clamp(0, 1)
    labels = torch.tensor(target)
    train, held_out = (TensorDataset(images[part], labels[part]) for part in _split(target))
    return Images(train, train, held_out, held_out, [str(digit) for digit in range(10)], 1, size, augment_digits)


def augment_digits(images: Tensor) -> Tensor:
    """A view of each image (B, 1, H, W): turned, sheared, scaled, shifted, brightened, noisy, with a patch erased.

    A whole batch at once, which for small images is much faster than one by one. Nothing is mirrored: a digit would no
    longer be one.
    """
    count, size = len(images), images.shape[-1]

    def draw(low: float, high: float) -> Tensor:
        return torch.empty(count, device=images.device).uniform_(low, high)

    angle, shear, width, height = draw(-0.2, 0.2), draw(-0.2, 0.2), draw(0.85, 1.25), draw(0.85, 1.25)
    first_row = torch.stack([width * angle.cos(), width * (shear - angle.sin()), draw(-0.2, 0.2)], 1)
    second_row = torch.stack([height * angle.sin(), height * angle.cos(), draw(-0.2, 0.2)], 1)
    grid = F.affine_grid(torch.stack([first_row, second_row], 1), list(images.shape), align_corners=False)
    views = F.grid_sample(images, grid, align_corners=False)
    views = views * draw(0.7, 1.3).view(-1, 1, 1, 1) + 0.05 * torch.randn_like(views)
    # A rectangle is erased in a fifth of the views, each side an eighth to a third of the image's.
    place = torch.arange(size, device=images.device)
    rows = (place - draw(0, size)[:, None]).abs() < draw(size / 16, size / 6)[:, None]
    columns = (place - draw(0, size)[:, None]).abs() < draw(size / 16, size / 6)[:, None]
    chosen = (draw(0, 1) < 0.2).view(-1, 1, 1, 1)
    return views.masked_fill(rows[:, None, :, None] & columns[:, None, None, :] & chosen, 0)


class TwoViews:
    """Applies a random transform twice."""

    def __init__(self, transform: Callable[[Any], Tensor]) -> None:
        self.transform = transform

    def __call__(self, image: Any) -> tuple[Tensor, Tensor]:
        """Two views of an image."""
        return self.transform(image), self.transform(image)


def _natural(make: Callable[[bool, Any], Dataset[Any]], classes: list[str], size: int) -> Images:
    """Natural images with SimCLR's augmentations; `make` builds the training or held-out part with a transform."""
    finish = [
        v2.ToImage(),
        v2.ToDtype(torch.float32, scale=True),
        v2.Normalize(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
    ]
    plain = v2.Compose([v2.Resize(size), v2.CenterCrop(size), *finish])
    blur = [v2.RandomApply([v2.GaussianBlur(size // 20 * 2 + 1)], p=0.5)] if size >= 64 else []
    view = v2.Compose(
        [
            v2.RandomResizedCrop(size, scale=(0.2, 1.0)),
            v2.RandomHorizontalFlip(),
            v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8),
            v2.RandomGrayscale(0.2),
            *blur,
            *finish,
        ]
    )
    pair = TwoViews(view)
    return Images(make(True, pair), make(True, plain), make(False, pair), make(False, plain), classes, 3, size)


def _from_torchvision(name: str, root: str, size: int | None, download: bool) -> Images:
    build, train, held_out, own_size = TORCHVISION[name]

    def make(training: bool, transform: Any) -> Dataset[Any]:
        return build(root, transform=transform, download=download, **(train if training else held_out))

    try:
        classes = list(make(True, None).classes)
    except RuntimeError as error:
        raise SettingError(
            f"--data {name}: not found in {root!r}. Name its folder with --root, or add --download once."
        ) from error
    return _natural(make, classes, size or own_size)


def _from_folder(folder: Path, size: int) -> Images:
    try:
        if (folder / "train").is_dir() and (folder / "val").is_dir():
            return _from_two_folders(folder / "train", folder / "val", size)
        whole = datasets.ImageFolder(folder)
        train, held_out = _split(whole.targets)
    except (FileNotFoundError, ValueError) as error:
        raise SettingError(f"--data {folder}: {error}") from error

    def make(training: bool, transform: Any) -> Dataset[Any]:
        return Subset(datasets.ImageFolder(folder, transform), train if training else held_out)

    return _natural(make, whole.classes, size)


def _from_two_folders(train: Path, held_out: Path, size: int) -> Images:
    classes = datasets.ImageFolder(train).classes
    others = set(datasets.ImageFolder(held_out).classes) ^ set(classes)
    if others:
        raise ValueError(f"{train.name}/ and {held_out.name}/ must hold the same classes, but {sorted(others)} is in one only.")

    def make(training: bool, transform: Any) -> Dataset[Any]:
        return datasets.ImageFolder(train if training else held_out, transform)

    return _natural(make, classes, size)
