from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(autouse=True)
def examples_can_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in (EXAMPLES / "reproduce", EXAMPLES):
        monkeypatch.syspath_prepend(folder)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # models and batches are tiny here: more threads would only wait for one another
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def folder_of_images(tmp_path: Path) -> Path:
    """Red and blue images, 20 of each, in a folder each."""
    generator = np.random.default_rng(0)
    for channel, name in ((0, "red"), (2, "blue")):
        folder = tmp_path / "images" / name
        folder.mkdir(parents=True)
        for number in range(20):
            pixels = generator.integers(0, 80, (40, 50, 3), dtype=np.uint8)
            pixels[:, :, channel] += 150
            Image.fromarray(pixels).save(folder / f"{number}.png")
    return tmp_path / "images"
