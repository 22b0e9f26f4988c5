import pytest

from contrastive_zoo.pairwise.tiled import loop, tiles

TILINGS = {"one tile": (512, 2**24), "kept tiles": (16, 2**24), "recomputed tiles": (16, 0)}


@pytest.fixture(params=["dense", *TILINGS])
def engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """A backend: the dense one, or the tiled one with one tile, many kept for the backward pass, or many computed again."""
    if request.param == "dense":
        return "dense"
    size, budget = TILINGS[request.param]
    monkeypatch.setattr(tiles, "TILE_CPU", size)
    monkeypatch.setattr(tiles, "SINGLE_TILE_CPU", 0)
    monkeypatch.setattr(loop, "KEEP_BYTES", budget)
    return "tiled"
