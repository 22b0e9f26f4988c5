"""Draws and views: the same for a sample in any batch, and each what its name says."""

import pytest
import torch
from torchvision.transforms.v2 import functional as tv

COUNT = 400


@pytest.fixture
def images() -> torch.Tensor:
    torch.manual_seed(0)
    coarse = torch.rand(COUNT, 3, 8, 8)
    return torch.nn.functional.interpolate(coarse, size=32, mode="bilinear")


def test_draws_are_uniform_independent_and_functions_of_the_sample() -> None:
    from draws import Draws

    index = torch.arange(2000)
    draws = Draws(index, 3, 1)
    first, second = draws.uniform(shape=(8,)), draws.uniform(2, 4)
    assert first.shape == (2000, 8)
    assert second.shape == (2000,)
    assert float(first.min()) >= 0
    assert float(first.max()) < 1
    counts = torch.histc(first, 16, 0, 1)
    assert float(((counts - 1000) ** 2 / 1000).sum()) < 40  # chi-squared with 15 degrees of freedom: 38 in a thousand
    correlation = torch.corrcoef(torch.cat([first, second[:, None]], 1).T) - torch.eye(9)
    assert float(correlation.abs().max()) < 0.1
    assert float(second.mean()) == pytest.approx(3, abs=0.05)
    some = Draws(index[[7, 3]], 3, 1)
    assert torch.equal(some.uniform(shape=(8,)), first[[7, 3]])
    assert not torch.equal(Draws(index, 3, 2).uniform(shape=(8,)), first)
    assert not torch.equal(Draws(index, 1, 3).uniform(shape=(8,)), first)
    normal = Draws(index, 5).normal((30,))
    assert float(normal.mean()) == pytest.approx(0, abs=0.02)
    assert float(normal.std()) == pytest.approx(1, abs=0.02)
    assert float((normal**4).mean()) == pytest.approx(3, abs=0.15)


def test_seeds_of_numbers_differ_by_their_order_and_leave_the_generator_alone() -> None:
    from draws import seed_of, seeded

    seeds = {seed_of(*numbers) for numbers in [(), (0,), (0, 0), (1, 0), (0, 1), (2**40, 1)]}
    assert len(seeds) == 6
    assert all(0 <= seed < 2**63 for seed in seeds)
    torch.manual_seed(4)
    expected = torch.rand(3)
    torch.manual_seed(4)
    with seeded(1, 2):
        inside = torch.rand(3)
    assert torch.equal(torch.rand(3), expected)
    with seeded(1, 2):
        assert torch.equal(torch.rand(3), inside)


@pytest.mark.parametrize("name", ["simclr", "simclr-small", "moco", "cluttered-digits"])
def test_views_of_a_batch_do_not_depend_on_the_batch(name: str, images: torch.Tensor) -> None:
    from draws import Draws
    from views import VIEWS

    whole = VIEWS[name].batch(images, Draws(torch.arange(COUNT), 1))
    part = VIEWS[name].batch(images[5:9], Draws(torch.arange(5, 9), 1))
    assert torch.allclose(whole[5:9], part, atol=1e-5)
    assert whole.shape == images.shape
    assert not torch.allclose(whole, VIEWS[name].batch(images, Draws(torch.arange(COUNT), 2)), atol=0.1)


def test_crop_of_everything_is_the_image_or_its_mirror(images: torch.Tensor) -> None:
    from draws import Draws
    from views import crop

    class Middle(Draws):
        """The whole area, a square, no shift; not mirrored in the first half."""

        def uniform(self, low: float = 0, high: float = 1, shape: tuple[int, ...] = ()) -> torch.Tensor:
            if (low, high) == (0, 1):
                return (torch.arange(COUNT) < COUNT // 2).float()
            return torch.full((COUNT,), 1.0 if low == 1 else 0.0)

    found = crop(images, Middle(torch.arange(COUNT)), smallest=1, flip=0.5)
    half = COUNT // 2
    assert torch.allclose(found[:half], images[:half], atol=1e-5)
    assert torch.allclose(found[half:], images[half:].flip(3), atol=1e-5)


def test_crops_lie_inside_and_are_as_small_as_allowed() -> None:
    from draws import Draws
    from views import crop

    # Coordinates as colours: the corners of a crop can be read off.
    place = (torch.arange(32) + 0.5) / 32
    images = torch.stack([place.expand(32, 32), place[:, None].expand(32, 32)]).expand(2000, 2, 32, 32)
    found = crop(images, Draws(torch.arange(2000), 0), smallest=0.25, flip=0.5)
    width = (found[:, 0, 0, -1] - found[:, 0, 0, 0]).abs() * 32 / 31
    height = (found[:, 1, -1, 0] - found[:, 1, 0, 0]) * 32 / 31
    area = width * height
    assert float(area.min()) == pytest.approx(0.25, abs=0.03)
    assert float(area.max()) > 0.9
    inside = (width < 0.97) & (height < 0.97)
    ratio = (width / height)[inside]
    assert 0.73 < float(ratio.min()) < 0.8
    assert 1.25 < float(ratio.max()) < 1.37
    mirrored = (found[:, 0, 0, -1] < found[:, 0, 0, 0]).float().mean()
    assert float(mirrored) == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("which", range(3), ids=["brightness", "contrast", "saturation"])
def test_colours_change_as_torchvision_changes_them(which: int, images: torch.Tensor) -> None:
    from draws import Draws
    from views import jitter

    strength = [0.0] * 4
    strength[which] = 0.8
    found = jitter(images, Draws(torch.arange(COUNT), 0), tuple(strength))
    adjust = (tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation)[which]
    draws = Draws(torch.arange(COUNT), 0)
    for _ in range(which + 1):
        factors = draws.uniform(0.2, 1.8)
    wanted = torch.stack([adjust(image, float(factor)) for image, factor in zip(images, factors, strict=True)])
    assert torch.allclose(found, wanted, atol=2e-3)
    assert not torch.allclose(found, images, atol=0.1)


def test_hue_turns_and_leaves_brightness_and_grey_alone(images: torch.Tensor) -> None:
    from draws import Draws
    from views import grey, jitter

    muted = 0.5 + 0.2 * (images - 0.5)  # no colour leaves the range
    found = jitter(muted, Draws(torch.arange(COUNT), 0), (0, 0, 0, 0.5))
    assert torch.allclose(grey(found), grey(muted), atol=2e-3)
    assert float((found - muted).abs().mean()) > 0.02
    level = torch.full((COUNT, 3, 4, 4), 0.3)
    assert torch.allclose(jitter(level, Draws(torch.arange(COUNT), 0), (0, 0, 0, 0.5)), level, atol=2e-3)


def test_blur_is_the_one_of_torchvision_with_a_width_for_each_image(images: torch.Tensor) -> None:
    from views import blur

    sigma = torch.linspace(0.1, 2, 4)
    large = torch.nn.functional.interpolate(images[:4], size=64)
    wanted = torch.stack([tv.gaussian_blur(image, [7, 7], [float(s)] * 2) for image, s in zip(large, sigma, strict=True)])
    assert torch.allclose(blur(large, sigma), wanted, atol=1e-5)


def test_shares_of_grey_and_jittered_views(images: torch.Tensor) -> None:
    from draws import Draws
    from views import MEAN, STD, Views

    views = Views(1, (0, 0, 0, 0), blur=0, flip=0, grey=0.2).batch(images, Draws(torch.arange(COUNT), 3))
    views = views * torch.tensor(STD).view(3, 1, 1) + torch.tensor(MEAN).view(3, 1, 1)
    colourless = (views.amax(1) - views.amin(1)).amax((1, 2)) < 1e-5
    assert 0.14 < float(colourless.float().mean()) < 0.26


def test_transform_of_one_image_has_the_parts_that_the_papers_name() -> None:
    from views import VIEWS

    names = [type(part).__name__ for part in VIEWS["moco"].transform(224).transforms]
    wanted = ["RandomResizedCrop", "RandomHorizontalFlip", "RandomApply", "RandomGrayscale", "RandomApply"]
    assert names[1:6] == wanted
    assert "GaussianBlur" in repr(VIEWS["simclr"].transform(224))
    assert "GaussianBlur" not in repr(VIEWS["simclr"].transform(32))
    assert "brightness=(0.19999999999999996, 1.8)" in repr(VIEWS["simclr"].transform(224))
