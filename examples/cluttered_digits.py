"""Cluttered digits: scikit-learn's handwritten digits over crops of its two photographs, made in seconds, nothing to download.

    python examples/cluttered_digits.py          # a picture of some, and the fingerprint

A digit lies at a random place, in a random size, tilt and colour. Each sample is rendered twice, as two views of one digit that
differ in all of these; a share of the samples keeps its background in both, the others change it. Plain digits are so easy that
an untrained network tells nine of ten; here it does not, and what an objective is worth shows within minutes.
"""

import hashlib
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_digits, load_sample_images
from sklearn.model_selection import train_test_split

SIZE = 32
TRAIN, HELD_OUT = 20_000, 2_000
# Contrast of the photographs behind the digits, and the share of samples whose two renderings share a background.
CLUTTER, SAME_BACKGROUND = 0.7, 0.5
CHUNK = 2_000

Floats = NDArray[np.float64]


class Part(NamedTuple):
    """Samples of one part.

    Attributes:
        images: (N, 2, 3, 32, 32), two renderings of each sample, uint8.
        labels: (N,) classes, 0 to 9.
        digits: (N,) positions of the digits among scikit-learn's.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    digits: NDArray[np.int64]


def cluttered_digits(
    seed: int = 0,
    clutter: float = CLUTTER,
    same_background: float = SAME_BACKGROUND,
    train: int = TRAIN,
    held_out: int = HELD_OUT,
) -> tuple[Part, Part]:
    """Training and held-out samples, made of disjoint digits.

    Args:
        seed: Of everything that is drawn; the split of the digits is always the same.
        clutter: Contrast of the backgrounds, from 0 (one colour) to 1 (the photographs).
        same_background: Share of the samples whose second rendering lies on the background of the first.
        train: Number of training samples.
        held_out: Number of held-out samples.

    Raises:
        ValueError: A share is not between 0 and 1.
    """
    for name, value in (("clutter", clutter), ("same_background", same_background)):
        if not 0 <= value <= 1:
            raise ValueError(f"{name} must be between 0 and 1, got {value}.")
    return _made(seed, clutter, same_background, (train, held_out))


@cache
def _made(seed: int, clutter: float, same_background: float, counts: tuple[int, int]) -> tuple[Part, Part]:
    pixels, labels = load_digits(return_X_y=True)
    digits = pixels.reshape(-1, 8, 8) / 16
    parts = train_test_split(np.arange(len(labels)), test_size=0.2, stratify=labels, random_state=0)
    photographs = np.stack(load_sample_images().images) / 255
    made = []
    for number, (part, count) in enumerate(zip(parts, counts, strict=True)):
        generator = np.random.default_rng([seed, number])
        # Every digit of the part about equally often.
        which = generator.permuted(np.resize(part, count))
        pieces = [
            _render(digits[which[start : start + CHUNK]], photographs, generator, clutter, same_background)
            for start in range(0, count, CHUNK)
        ]
        made.append(Part(np.concatenate(pieces), labels[which].astype(np.int64), which.astype(np.int64)))
    return made[0], made[1]


def fingerprint(*parts: Part) -> str:
    """A hash of all images and labels."""
    found = hashlib.sha256()
    for part in parts:
        found.update(part.images.tobytes())
        found.update(part.labels.tobytes())
    return found.hexdigest()[:16]


def _render(
    digits: Floats, photographs: Floats, generator: np.random.Generator, clutter: float, same_background: float
) -> NDArray[np.uint8]:
    """(N, 2, 3, 32, 32): each digit twice."""
    count = len(digits)
    first, second = (_backgrounds(count, photographs, generator, clutter) for _ in range(2))
    stays = generator.random(count) < same_background
    second[stays] = first[stays]
    renderings = [_put(digits, background, generator) for background in (first, second)]
    return np.round(255 * np.stack(renderings, axis=1)).astype(np.uint8)


def _backgrounds(count: int, photographs: Floats, generator: np.random.Generator, clutter: float) -> Floats:
    """(N, 3, 32, 32): crops of 32 to 128 pixels, scaled to 32."""
    _, height, width, _ = photographs.shape
    side = generator.integers(SIZE, 4 * SIZE + 1, count)
    top = (generator.random(count) * (height - side)).astype(int)
    left = (generator.random(count) * (width - side)).astype(int)
    steps = np.arange(SIZE) * side[:, None] // SIZE  # (N, 32)
    which = generator.integers(0, len(photographs), count)
    rows, columns = (top[:, None] + steps)[:, :, None], (left[:, None] + steps)[:, None, :]
    crops = photographs[which[:, None, None], rows, columns].transpose(0, 3, 1, 2)
    mean = crops.mean(axis=(2, 3), keepdims=True)
    return mean + clutter * (crops - mean)


def _put(digits: Floats, backgrounds: Floats, generator: np.random.Generator) -> Floats:
    """(N, 3, 32, 32): the digits over the backgrounds."""
    count = len(digits)

    def draw(low: Any, high: Any) -> Floats:
        return low + (high - low) * generator.random(count)

    # A digit of 14 to 24 pixels, wholly inside of the image; angles in radians.
    size, angle = draw(14, 24), draw(-0.25, 0.25)
    middle_row, middle_column = draw(size / 2, SIZE - size / 2), draw(size / 2, SIZE - size / 2)
    place = np.arange(SIZE) + 0.5
    rows = (place[None, :, None] - middle_row[:, None, None]) * (8 / size)[:, None, None]
    columns = (place[None, None, :] - middle_column[:, None, None]) * (8 / size)[:, None, None]
    cos, sin = np.cos(angle)[:, None, None], np.sin(angle)[:, None, None]
    ink = _sample(digits, cos * rows + sin * columns + 3.5, cos * columns - sin * rows + 3.5)
    # Any colour that is brighter or darker than the background by a third at least.
    shade = backgrounds.mean(axis=(1, 2, 3))
    brighter = shade < draw(0.35, 0.65)
    level = np.where(brighter, draw(np.minimum(shade + 0.4, 0.9), 1), draw(0, np.maximum(shade - 0.4, 0.1)))
    colours = np.clip(level[:, None] + 0.3 * (generator.random((count, 3)) - 0.5), 0, 1)
    ink = ink[:, None]
    return np.asarray(backgrounds * (1 - ink) + colours[:, :, None, None] * ink)


def _sample(digits: Floats, rows: Floats, columns: Floats) -> Floats:
    """Values of the digits (N, 8, 8) between their pixels, at (N, 32, 32) places; 0 outside."""
    padded = np.pad(digits, ((0, 0), (2, 2), (2, 2)))
    rows, columns = np.clip(rows + 2, 0, 10.999), np.clip(columns + 2, 0, 10.999)
    top, left = rows.astype(int), columns.astype(int)
    down, right = rows - top, columns - left
    which = np.arange(len(digits))[:, None, None]
    upper = padded[which, top, left] * (1 - right) + padded[which, top, left + 1] * right
    lower = padded[which, top + 1, left] * (1 - right) + padded[which, top + 1, left + 1] * right
    return np.asarray(upper * (1 - down) + lower * down)


def main() -> None:
    from matplotlib.image import imsave

    train, held_out = cluttered_digits()
    rows = train.images[:64].reshape(8, 16, 3, SIZE, SIZE).transpose(0, 3, 1, 4, 2)
    imsave("cluttered_digits.png", rows.reshape(8 * SIZE, 16 * SIZE, 3))
    print(f"{len(train.labels):,} training and {len(held_out.labels):,} held-out samples, {fingerprint(train, held_out)}")
    print("Pairs of renderings of 64 samples are in cluttered_digits.png")


if __name__ == "__main__":
    main()
