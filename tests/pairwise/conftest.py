import pytest

from contrastive_zoo.pairwise.backends import BACKENDS
from contrastive_zoo.pairwise.tiled import loop, tiles

TILINGS = {"one tile": (512, 2**24), "kept tiles": (16, 2**24), "recomputed tiles": (16, 0)}


@pytest.fixture(params=[*(name for name in BACKENDS if name != "tiled"), *TILINGS])
def engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """A backend: any, the tiled one with one tile, with many kept for the backward pass, or with many computed again."""
    if request.param in BACKENDS:
        return str(request.param)
    size, budget = TILINGS[request.param]
    monkeypatch.setattr(tiles, "TILE_CPU", size)
    monkeypatch.setattr(tiles, "SINGLE_TILE_CPU", 0)
    monkeypatch.setattr(loop, "KEEP_BYTES", budget)
    return "tiled"
