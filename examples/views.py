"""Two views of images: the transforms of SimCLR and MoCo v2, image by image in the loader or a whole batch on the device.

Image by image, they are torchvision's (v2). Given a batch, torchvision draws one crop and one colour for all of it, which would
tell an objective what the negatives have in common; so the transforms of a batch draw for each sample. They crop without
antialiasing, turn the hue in YIQ, and change brightness, contrast, saturation and hue in this order, not in a random one.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from draws import Draws, FreeDraws, seeded
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import v2

AnyDraws = Draws | FreeDraws
Augment = Callable[[Tensor, AnyDraws], Tensor]
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
GREY = (0.299, 0.587, 0.114)
YIQ = ((0.299, 0.587, 0.114), (0.5959, -0.2746, -0.3213), (0.2115, -0.5227, 0.3112))


@dataclass(frozen=True)
class Views:
    """Random views of natural images.

    Attributes:
        smallest: Smallest area of a crop; the largest is the whole image.
        jitter: Strength of brightness, contrast, saturation and hue, which four of five views change.
        blur: Share of views that are blurred, if images have 64 pixels or more.
        flip: Share of views that are mirrored.
        grey: Share of views without colour.
    """

    smallest: float
    jitter: tuple[float, float, float, float]
    blur: float = 0.5
    flip: float = 0.5
    grey: float = 0.2

    def transform(self, size: int) -> v2.Compose:
        """A view of one image, a tensor (3, size, size), by torchvision."""
        blur = [v2.RandomApply([v2.GaussianBlur(_kernel(size), (0.1, 2.0))], self.blur)] if _blurs(self, size) else []
        return v2.Compose(
            [
                v2.ToImage(),
                v2.RandomResizedCrop(size, scale=(self.smallest, 1.0), antialias=True),
                v2.RandomHorizontalFlip(self.flip),
                v2.RandomApply([v2.ColorJitter(*self.jitter)], p=0.8),
                v2.RandomGrayscale(self.grey),
                *blur,
                *finish(),
            ]
        )

    def batch(self, images: Tensor, draws: AnyDraws) -> Tensor:
        """A view of each image of a batch (B, 3, H, W) with values from 0 to 1, on its device."""
        views = crop(images, draws, self.smallest, self.flip)
        views = torch.where(_share(draws, 0.8), jitter(views, draws, self.jitter), views)
        views = torch.where(_share(draws, self.grey), grey(views), views)
        if _blurs(self, images.shape[-1]):
            views = torch.where(_share(draws, self.blur), blur(views, draws.uniform(0.1, 2.0)), views)
        mean, std = (torch.tensor(values, device=images.device).view(3, 1, 1) for values in (MEAN, STD))
        return (views - mean) / std


# SimCLR with colour strength 1, appendix A, and 0.5 without blur for small images, appendix B.9; MoCo v2, section 3.
VIEWS = {
    "simclr": Views(0.08, (0.8, 0.8, 0.8, 0.2)),
    "simclr-small": Views(0.08, (0.4, 0.4, 0.4, 0.1), blur=0),
    "moco": Views(0.2, (0.4, 0.4, 0.4, 0.1)),
    "cluttered-digits": Views(0.5, (0.4, 0.4, 0.4, 0.2), blur=0, flip=0),
}


def finish() -> list[v2.Transform]:
    """From an image to a tensor with mean 0 and standard deviation 1 over ImageNet."""
    return [v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)]


def plain(size: int, normalised: bool = True) -> v2.Compose:
    """An image as it is, the middle square of it; with values from 0 to 1 if it is not normalised."""
    last = finish() if normalised else [v2.ToDtype(torch.float32, scale=True)]
    return v2.Compose([v2.ToImage(), v2.Resize(size, antialias=True), v2.CenterCrop(size), *last])


class SeededViews(Dataset[Any]):
    """Two views of each image of a dataset, drawn by the seed, the epoch and the position of the sample.

    Args:
        dataset: Gives images and labels.
        transform: Makes a view; its draws come from PyTorch's generator, as those of torchvision do.
        seed: Seed.
    """

    def __init__(self, dataset: Any, transform: Callable[[Any], Tensor], seed: int) -> None:
        self.dataset, self.transform, self.seed = dataset, transform, seed
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[tuple[Tensor, Tensor], int]:
        image, label = self.dataset[index]
        views = []
        for number in range(2):
            with seeded(self.seed, self.epoch, number, index):
                views.append(self.transform(image))
        return (views[0], views[1]), label


def _share(draws: AnyDraws, share: float) -> Tensor:
    return (draws.uniform() < share).view(-1, 1, 1, 1)


def _blurs(views: Views, size: int) -> bool:
    return views.blur > 0 and size >= 64


def _kernel(size: int) -> int:
    return size // 20 * 2 + 1  # a tenth of the image, and odd


def crop(images: Tensor, draws: AnyDraws, smallest: float, flip: float) -> Tensor:
    """A part of each image, a ratio of sides between 3/4 and 4/3, scaled to the size of the image."""
    area = draws.uniform(smallest, 1)
    ratio = torch.exp(draws.uniform(-1, 1) * torch.log(torch.tensor(4 / 3)))
    width, height = ((area * ratio).sqrt().clamp(max=1), (area / ratio).sqrt().clamp(max=1))
    right, down = draws.uniform(-1, 1) * (1 - width), draws.uniform(-1, 1) * (1 - height)
    mirrored = torch.where(draws.uniform() < flip, -1.0, 1.0)
    zero = torch.zeros_like(width)
    affine = torch.stack([torch.stack([mirrored * width, zero, right], 1), torch.stack([zero, height, down], 1)], 1)
    grid = F.affine_grid(affine.to(images.dtype), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)


def jitter(images: Tensor, draws: AnyDraws, strength: tuple[float, float, float, float]) -> Tensor:
    """Another brightness, contrast, saturation and hue."""
    brightness, contrast, saturation = (draws.uniform(1 - s, 1 + s).view(-1, 1, 1, 1) for s in strength[:3])
    images = (images * brightness).clamp(0, 1)
    middle = grey(images).mean(dim=(1, 2, 3), keepdim=True)
    images = (middle + contrast * (images - middle)).clamp(0, 1)
    level = grey(images)
    images = (level + saturation * (images - level)).clamp(0, 1)
    angle = 2 * torch.pi * draws.uniform(-strength[3], strength[3])
    cos, sin, zero, one = angle.cos(), angle.sin(), torch.zeros_like(angle), torch.ones_like(angle)
    rows = ((one, zero, zero), (zero, cos, -sin), (zero, sin, cos))
    turn = torch.stack([torch.stack(row, 1) for row in rows], 1)
    yiq = torch.tensor(YIQ, device=images.device)
    return torch.einsum("bij,bjhw->bihw", torch.linalg.inv(yiq) @ turn @ yiq, images).clamp(0, 1)


def grey(images: Tensor) -> Tensor:
    """Images without colour, (B, 1, H, W)."""
    weights = torch.tensor(GREY, device=images.device).view(3, 1, 1)
    return (images * weights).sum(1, keepdim=True)


def blur(images: Tensor, sigma: Tensor) -> Tensor:
    """Images under a Gaussian of their own width (B,)."""
    count, channels, height, width = images.shape
    size = _kernel(height)
    place = torch.arange(size, device=images.device) - size // 2
    kernel = torch.softmax(-(place**2) / (2 * sigma[:, None] ** 2), dim=1).repeat_interleave(channels, 0)
    flat = F.pad(images, [size // 2] * 4, mode="reflect").view(1, count * channels, height + size - 1, width + size - 1)
    flat = F.conv2d(flat, kernel[:, None, :, None], groups=count * channels)
    return F.conv2d(flat, kernel[:, None, None, :], groups=count * channels).view_as(images)


def augment_digits(images: Tensor, draws: AnyDraws) -> Tensor:
    """Views of grey digits (B, 1, H, W): turned, slanted, scaled, moved; brightness, noise, and sometimes a patch that is gone.

    Nothing is mirrored: a digit would no longer be one.
    """
    size, draw = images.shape[-1], draws.uniform
    angle, shear, width, height = draw(-0.2, 0.2), draw(-0.2, 0.2), draw(0.85, 1.25), draw(0.85, 1.25)
    first_row = torch.stack([width * angle.cos(), width * (shear - angle.sin()), draw(-0.2, 0.2)], 1)
    second_row = torch.stack([height * angle.sin(), height * angle.cos(), draw(-0.2, 0.2)], 1)
    grid = F.affine_grid(torch.stack([first_row, second_row], 1), list(images.shape), align_corners=False)
    views = F.grid_sample(images, grid, align_corners=False)
    views = views * draw(0.7, 1.3).view(-1, 1, 1, 1) + 0.05 * draws.normal(tuple(images.shape[1:]))
    # A rectangle is erased in a fifth of the views, each side an eighth to a third of the image's.
    place = torch.arange(size, device=images.device)
    rows = (place - draw(0, size)[:, None]).abs() < draw(size / 16, size / 6)[:, None]
    columns = (place - draw(0, size)[:, None]).abs() < draw(size / 16, size / 6)[:, None]
    chosen = (draw(0, 1) < 0.2).view(-1, 1, 1, 1)
    return views.masked_fill(rows[:, None, :, None] & columns[:, None, None, :] & chosen, 0)
