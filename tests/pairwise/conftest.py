import pytest
from cases import BACKENDS

from contrastive_zoo.pairwise.tiled import loop, tiles

# Size of tiles, bytes of tiles that are kept.
TILINGS = {"one tile": (512, 2**24), "kept tiles": (16, 2**24), "recomputed tiles": (16, 0)}


@pytest.fixture(params=[*(name for name in BACKENDS if name != "tiled"), *TILINGS])
def engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """A backend: any, or the tiled one with one tile, with many tiles kept, or with many recomputed."""
    if request.param in BACKENDS:
        return str(request.param)
    size, budget = TILINGS[request.param]
    for name in ("TILE_CPU", "TILE_ACCELERATOR"):
        monkeypatch.setattr(tiles, name, size)
    monkeypatch.setattr(tiles, "SINGLE_TILE_CPU", 0)
    monkeypatch.setattr(loop, "KEEP_BYTES", budget)
    return "tiled"
