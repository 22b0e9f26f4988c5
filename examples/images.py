"""Images in two views: digits, cluttered digits, torchvision's datasets, or a folder of yours."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from cluttered_digits import CLUTTER, SAME_BACKGROUND, cluttered_digits
from draws import Draws, FreeDraws
from errors import SettingError
from folders import from_folder, from_torchvision
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor
from torch.utils.data import Dataset, Subset, TensorDataset
from views import MEAN, STD, VIEWS, AnyDraws, Augment, SeededViews, augment_digits, plain


class Published(NamedTuple):
    """What is known of a dataset without having it: images to learn from and to judge by, classes, size."""

    train: int
    held_out: int
    classes: int
    size: int
    channels: int = 3


PUBLISHED = {
    "digits": Published(1437, 360, 10, 32, 1),
    "cluttered-digits": Published(20_000, 2_000, 10, 32),
    "cifar10": Published(50_000, 10_000, 10, 32),
    "cifar100": Published(50_000, 10_000, 100, 32),
    "stl10": Published(105_000, 8_000, 10, 96),
    "tiny-imagenet": Published(100_000, 10_000, 200, 64),
    "imagenet100": Published(126_689, 5_000, 100, 224),
    "imagenet": Published(1_281_167, 50_000, 1_000, 224),
}
# Where --root has the folder train/ and the folder val/ of a dataset that no class of torchvision reads.
FOLDERS = {"tiny-imagenet": "tiny-imagenet-200", "imagenet100": "imagenet100", "imagenet": "imagenet"}


@dataclass(frozen=True)
class Source:
    """Which images, and which views of them.

    Attributes:
        name: One of `PUBLISHED`, or a folder with a folder of images for each class; it may hold train/ and val/ with such
            folders, otherwise a stratified fifth is held out.
        root: Where datasets are kept.
        size: Height and width to scale images to; by default the dataset's own, 224 for folders.
        download: Whether torchvision may download what is absent.
        views: One of `VIEWS`; by default "moco", for cluttered digits their own.
        on_device: Whether views are made of a whole batch, on its device; by default for images of less than 128 pixels.
        seed: Seed of the views.
        clutter: Contrast of the backgrounds of cluttered digits.
        same_background: Share of the cluttered digits whose two renderings share their background.
    """

    name: str = "digits"
    root: str = "data"
    size: int | None = None
    download: bool = False
    views: str | None = None
    on_device: bool | None = None
    seed: int = 0
    clutter: float = CLUTTER
    same_background: float = SAME_BACKGROUND


@dataclass(frozen=True)
class Images:
    """Images to learn from and images to judge by.

    Attributes:
        pairs: Items to learn from: two views and a label, or an image (or two renderings of it) and a label if there is
            `augment`.
        train: Labelled training images as they are: the evaluation classifies by them.
        held_out_pairs: Items like those of `pairs`, of the held-out images.
        held_out: The held-out images as they are.
        classes: Name of each label.
        channels: Channels of an image.
        size: Height and width of an image.
        augment: Makes a view of a batch of images at once; None if the dataset does it, image by image.
        labelled: Whether the images to learn from have labels.
    """

    pairs: Dataset[Any]
    train: Dataset[Any]
    held_out_pairs: Dataset[Any]
    held_out: Dataset[Any]
    classes: list[str]
    channels: int
    size: int
    augment: Augment | None = None
    labelled: bool = True

    def two_views(
        self, batch: Any, device: torch.device, draws: Callable[[int], AnyDraws] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Two views (B, C, H, W) from what a loader over `pairs` returned besides labels.

        Args:
            batch: Images, or views.
            device: Where the views are made.
            draws: The draws of a view, by its number; by default from PyTorch's generator.
        """
        if self.augment is None:
            first, second = batch
            return first.to(device), second.to(device)
        images = batch.to(device)
        if draws is None:
            draws = partial(_free, len(images), device)
        renderings = images.unbind(1) if images.dim() == 5 else (images, images)
        first, second = (self.augment(images, draws(view)) for view, images in enumerate(renderings))
        return first, second

    def draws(self, index: Tensor, device: torch.device, *numbers: int) -> Callable[[int], AnyDraws]:
        """Draws for `two_views` that depend on the sample, the numbers, and nothing else."""
        return lambda view: Draws(index.to(device), *numbers, view)

    def set_epoch(self, epoch: int) -> None:
        """Let views that the dataset makes be those of an epoch."""
        pairs = self.pairs.dataset if isinstance(self.pairs, Subset) else self.pairs
        if isinstance(pairs, SeededViews):
            pairs.epoch = epoch

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


def _free(count: int, device: torch.device, view: int) -> AnyDraws:
    return FreeDraws(count, device)


def load_images(source: Source) -> Images:
    """The images of a source, in two parts that share no image.

    Raises:
        SettingError: There is nothing by that name, or no such views.
    """
    if source.views is not None and source.views not in VIEWS:
        raise SettingError(f"--views {source.views}: not one of {', '.join(VIEWS)}.")
    if source.name == "digits":
        if source.views is not None:
            raise SettingError(f"--views {source.views}: digits are grey and have views of their own; leave it out.")
        return _digits(source.size or 32)
    if source.name == "cluttered-digits":
        return _cluttered(source)
    folder = Path(source.root) / FOLDERS[source.name] if source.name in FOLDERS else Path(source.name)
    if source.name in FOLDERS and not (folder / "train").is_dir():
        raise SettingError(f"--data {source.name}: there is no {folder / 'train'}. Name the folder that holds it with --root.")
    if source.name in PUBLISHED and source.name not in FOLDERS:
        parts = from_torchvision(source.name, source.root, source.download)
    elif folder.is_dir():
        parts = from_folder(folder)
    else:
        raise SettingError(f"--data {source.name}: neither a folder nor one of {', '.join(PUBLISHED)}.")
    known = PUBLISHED.get(source.name)
    return _natural(parts, source, source.size or (known.size if known else 224))


def _natural(parts: Any, source: Source, size: int) -> Images:
    """Natural images with the views of SimCLR or MoCo v2."""
    views = VIEWS[source.views or "moco"]
    on_device = size < 128 if source.on_device is None else source.on_device
    as_is = plain(size)
    train, held_out = parts.train.shown(as_is), parts.held_out.shown(as_is)
    if on_device:
        square = plain(size, normalised=False)  # views normalise
        pairs, held_out_pairs = parts.learn.shown(square), parts.held_out.shown(square)
        return Images(pairs, train, held_out_pairs, held_out, parts.classes, 3, size, views.batch, parts.labelled)
    pairs, held_out_pairs = (
        SeededViews(part.shown(None), views.transform(size), source.seed) for part in (parts.learn, parts.held_out)
    )
    return Images(pairs, train, held_out_pairs, held_out, parts.classes, 3, size, None, parts.labelled)


def split(labels: Any) -> tuple[list[int], list[int]]:
    """Positions of the training and of the held-out images, with equal shares of each class in both."""
    train, held_out = train_test_split(range(len(labels)), test_size=0.2, stratify=labels, random_state=0)
    return train, held_out


def _digits(size: int) -> Images:
    """1,797 handwritten digits that come with scikit-learn, 8x8 and scaled up."""
    pixels, target = load_digits(return_X_y=True)
    images = torch.tensor(pixels, dtype=torch.float32).view(-1, 1, 8, 8) / 16
    images = F.interpolate(images, size=size, mode="bicubic").clamp(0, 1)
    labels = torch.tensor(target)
    train, held_out = (TensorDataset(images[part], labels[part]) for part in split(target))
    return Images(train, train, held_out, held_out, [str(digit) for digit in range(10)], 1, size, augment_digits)


class _Rendered(Dataset[Any]):
    """Cluttered digits: both renderings with values from 0 to 1 for `augment`, or the first one, normalised."""

    def __init__(self, images: Tensor, labels: Tensor, both: bool) -> None:
        self.images, self.labels, self.both = images, labels, both
        self.mean, self.std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        images = self.images[index].float() / 255
        return images if self.both else (images[0] - self.mean) / self.std, self.labels[index]


def _cluttered(source: Source) -> Images:
    if source.size not in (None, 32):
        raise SettingError(f"--image-size {source.size}: cluttered digits are made of 32 pixels.")
    try:
        parts = cluttered_digits(clutter=source.clutter, same_background=source.same_background)
    except ValueError as error:
        raise SettingError(str(error)) from error
    tensors = [(torch.from_numpy(part.images), torch.from_numpy(part.labels)) for part in parts]
    pairs, held_out_pairs = (_Rendered(*part, both=True) for part in tensors)
    train, held_out = (_Rendered(*part, both=False) for part in tensors)
    augment = VIEWS[source.views or "cluttered-digits"].batch
    return Images(pairs, train, held_out_pairs, held_out, [str(digit) for digit in range(10)], 3, 32, augment)
