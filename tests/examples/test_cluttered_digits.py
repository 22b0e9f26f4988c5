"""Cluttered digits are always the same, and what raw pixels do not tell."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

import contrastive_zoo as zoo


@pytest.fixture(scope="module")
def parts() -> tuple:
    """Training and held-out samples; made once, since that takes seconds."""
    import sys
    from pathlib import Path

    sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))
    from cluttered_digits import cluttered_digits

    return cluttered_digits()


def test_fingerprint(parts: tuple) -> None:
    from cluttered_digits import fingerprint

    train, held_out = parts
    assert train.images.shape == (20_000, 2, 3, 32, 32)
    assert held_out.images.shape == (2_000, 2, 3, 32, 32)
    assert fingerprint(train, held_out) == "7846f0ff58281764"
    changed = train._replace(labels=np.roll(train.labels, 1))
    assert fingerprint(changed, held_out) != fingerprint(train, held_out)


def test_classes_are_about_equally_frequent(parts: tuple) -> None:
    for part in parts:
        shares = np.bincount(part.labels) / len(part.labels)
        assert shares.min() > 0.09
        assert shares.max() < 0.11


def test_seed_and_dials(parts: tuple) -> None:
    from cluttered_digits import cluttered_digits

    small = {"train": 200, "held_out": 100}
    (one, _), (other, _) = cluttered_digits(1, **small), cluttered_digits(2, **small)
    assert not np.array_equal(one.images, other.images)
    plain, _ = cluttered_digits(1, clutter=0, **small)
    corners = plain.images[:, 0][:, :, [0, 0, -1, -1], [0, -1, 0, -1]].astype(int)
    assert (np.ptp(corners, axis=2).max(axis=1) == 0).mean() > 0.5  # one colour, but where a digit lies in a corner

    def shared(share: float) -> float:
        images = cluttered_digits(1, same_background=share, **small)[0].images.astype(int)
        corners = images[:, :, :, [0, 0, -1, -1], [0, -1, 0, -1]]
        return float((np.abs(corners[:, 0] - corners[:, 1]).min(axis=(1, 2)) == 0).mean())

    assert shared(1) > 0.95
    assert shared(0) < 0.4


def test_parts_are_made_of_disjoint_digits(parts: tuple) -> None:
    train, held_out = parts
    assert len(set(train.digits)) == 1437
    assert len(set(held_out.digits)) == 360
    assert not set(train.digits) & set(held_out.digits)
    for part in parts:
        assert np.array_equal(load_digits().target[part.digits], part.labels)
        assert np.ptp(np.bincount(part.digits)[np.unique(part.digits)]) <= 1  # each about equally often


def test_raw_pixels_stay_under_one_half(parts: tuple) -> None:
    train, held_out = ((torch.from_numpy(part.images[:, 0]).flatten(1) / 255, torch.from_numpy(part.labels)) for part in parts)
    assert 0.15 < zoo.metrics.knn_accuracy(*train, *held_out) < 0.5


def test_images_for_training_are_two_renderings(parts: tuple) -> None:
    from draws import Draws
    from images import Source, load_images

    images = load_images(Source("cluttered-digits"))
    assert (len(images.pairs), len(images.held_out), images.size, images.channels) == (20_000, 2_000, 32, 3)
    batch = torch.stack([images.pairs[number][0] for number in range(4)])
    assert batch.shape == (4, 2, 3, 32, 32)
    first, second = images.two_views(batch, torch.device("cpu"), lambda view: Draws(torch.arange(4), view))
    assert first.shape == second.shape == (4, 3, 32, 32)
    assert images.train[0][0].shape == (3, 32, 32)
    raw = torch.from_numpy(parts[0].images[0, 0]) / 255
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    assert torch.allclose(images.train[0][0] * std + mean, raw, atol=1e-6)
