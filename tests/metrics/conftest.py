from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from contrastive_zoo.metrics import tiles

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture
def golden() -> Callable[[str], dict[str, Tensor]]:
    """Arrays of one file of the authors' numbers, by the path below tests/golden without its ending."""

    def load(name: str) -> dict[str, Tensor]:
        with np.load(GOLDEN / f"{name}.npz") as file:
            return {key: torch.as_tensor(file[key]) for key in file.files if key != "meta"}

    return load


@pytest.fixture(params=[1, 3, 7, 1024])
def tile(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Runs the test once for each size of tile."""
    monkeypatch.setattr(tiles, "TILE", request.param)
    return int(request.param)
