"""With ``gather="ring"`` two, three and four processes give what one process gives, and none holds all rows."""

from typing import Any

import pytest
import torch
import torch.multiprocessing as mp
from cases import Configuration, guaranteed
from group import FOUND, ONE_VIEW, assert_same, global_batch, global_negatives, global_weights, local_batch, part_of, run
from rounds import (
    COMPILED_IN_RING,
    FEATURES,
    IN_RING,
    KEYS_IN_RING,
    KINDS,
    MEASURED,
    PRECISIONS,
    SAMPLES,
    SIZES_OF_RING,
    VIEWS_IN_RING,
    direct,
    three_views,
    work_in_ring,
)
from tolerances import assert_close

import contrastive_zoo as zoo


@pytest.fixture(scope="module", params=SIZES_OF_RING, ids="{} processes".format)
def size(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture(scope="module")
def ring(size: int, tmp_path_factory: pytest.TempPathFactory) -> list[FOUND]:
    """What each process found, in the order of ranks."""
    folder = tmp_path_factory.mktemp(f"ring{size}")
    mp.spawn(work_in_ring, args=(size, folder), nprocs=size)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(size)]


def one_process(configuration: Configuration, size: int, **params: Any) -> FOUND:
    return run(configuration, [global_batch(step, sizes) for step, sizes in enumerate(SIZES_OF_RING[size])], **params)


@guaranteed("ring")
def test_equals_one_process(configuration: Configuration, ring: list[FOUND], size: int) -> None:
    """Value, gradients of the encoder and of what is learned, and tables; batches are unequal, and share a sample."""
    configuration.make(gather="ring")  # raises for a name that a ring cannot do
    expected = one_process(configuration, size)
    for of_rank in ring:
        assert str(configuration) in of_rank, of_rank["refused"]["draws"]
        assert_same(of_rank[str(configuration)], expected)


@pytest.mark.parametrize("name", KINDS)
def test_each_process_has_the_values_of_its_own_samples(name: str, ring: list[FOUND], size: int) -> None:
    sizes_of = SIZES_OF_RING[size]
    weights = [global_weights(step, sizes) for step, sizes in enumerate(sizes_of)]
    expected = one_process(Configuration(name, {}), size, reduction="none", weights=weights)
    for rank, of_rank in enumerate(ring):
        own = [loss[part_of(sizes, rank)] for loss, sizes in zip(expected["losses"], sizes_of, strict=True)]
        assert_same(of_rank["none"][name], {**expected, "losses": own}, magnitude=30.0)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("how", ["sum", "dense", "tiles"])
def test_sums_with_other_backends_and_in_small_tiles(name: str, how: str, ring: list[FOUND], size: int) -> None:
    expected = one_process(Configuration(name, {}), size, reduction="sum" if how == "sum" else "mean")
    for of_rank in ring:
        assert_same(of_rank[how][name], expected)


@pytest.mark.parametrize("configuration", [c for c in ONE_VIEW if c in IN_RING], ids=str)
def test_one_view(configuration: Configuration, ring: list[FOUND], size: int) -> None:
    expected = one_process(configuration, size, one_view=True)
    for of_rank in ring:
        assert_same(of_rank["one view"][str(configuration)], expected)


CASES = [(c, False) for c in KEYS_IN_RING] + [(c, True) for c in KEYS_IN_RING[::4]]


@pytest.mark.parametrize(("configuration", "shared"), CASES, ids=[f"{c}, {shared=}" for c, shared in CASES])
def test_extra_keys(configuration: Configuration, shared: bool, ring: list[FOUND], size: int) -> None:
    keys = [global_negatives(step, sizes, shared) for step, sizes in enumerate(SIZES_OF_RING[size])]
    expected = one_process(configuration, size, negatives=keys)
    for of_rank in ring:
        assert_same(of_rank[f"{shared=}"][str(configuration)], expected)


@pytest.mark.parametrize("name", [c.name for c in VIEWS_IN_RING])
def test_three_views(name: str, ring: list[FOUND], size: int) -> None:
    """Gradients of features, which carry the number of processes as a factor."""
    for step, sizes in enumerate(SIZES_OF_RING[size]):
        value, gradient = direct(name, *three_views(step, sizes))
        for rank, of_rank in enumerate(ring):
            loss, found = of_rank["three views"][name][step]
            assert_close(loss, value, "loss", magnitude=1.0)
            assert_close(found, gradient[:, part_of(sizes, rank)] * size, "gradient of the rows", magnitude=1.0)


@pytest.mark.parametrize("dtype", PRECISIONS, ids=str)
@pytest.mark.parametrize("name", KINDS)
def test_equals_the_gathered_form_in_lower_precision(name: str, dtype: torch.dtype, ring: list[FOUND]) -> None:
    """Up to the rounding of single precision; gradients of half-precision features are rounded to it."""
    for of_rank in ring:
        for found, wanted in zip(*of_rank[str(dtype)][name], strict=True):
            allowed = 1e-6 if found.dtype == torch.float32 else torch.finfo(dtype).eps
            torch.testing.assert_close(found, wanted, rtol=allowed, atol=allowed)


def test_a_group_of_some_processes(ring: list[FOUND], size: int) -> None:
    """The first and the last. Not averaged: the gradients of the two sum to twice those of one process."""
    parts = [local_batch(0, SIZES_OF_RING[size][0], rank) for rank in (0, size - 1)]
    expected = run(IN_RING[0], [type(parts[0])(*(torch.cat(leaves) for leaves in zip(*parts, strict=True)))])
    first, last = ring[0]["group"], ring[-1]["group"]
    assert_close(first["losses"][0], expected["losses"][0], "loss")
    for one, other, wanted in zip(first["gradients"][0], last["gradients"][0], expected["gradients"][0], strict=True):
        learned = wanted.dim() == 0
        assert_close(one if learned else (one + other) / 2, wanted, "gradient", magnitude=1.0)


@pytest.mark.parametrize("name", COMPILED_IN_RING)
def test_compiled_equals_eager(name: str, ring: list[FOUND], size: int) -> None:
    if size != 2:
        pytest.skip("compiled by two processes only")
    for of_rank in ring:
        assert_same(*of_rank["compiled"][name])


def test_batches_in_chunks(ring: list[FOUND]) -> None:
    for of_rank in ring:
        at_once, in_chunks = of_rank["cached"]
        assert_close(in_chunks, at_once, "gradient of the encoder", magnitude=1.0)


def test_what_a_ring_cannot_do_raises(ring: list[FOUND]) -> None:
    for of_rank in ring:
        heard = of_rank["refused"]
        assert set(heard) == {"draws", "squares", "kernels"}
        assert all("Use gather='auto'." in text for text in heard.values())
        assert "draws and searches" in heard["draws"]
        assert "squares" in heard["squares"]
        assert "kernels of a distance" in heard["kernels"]


def test_names_that_need_more_are_refused_at_once() -> None:
    refused = []
    for name in zoo.list_losses():
        if not zoo.describe_loss(name).ring:
            with pytest.raises(ValueError, match=rf"gather='ring' has log-sum-exps .* '{name}' needs more .* gather='auto'"):
                zoo.get_loss(name, num_samples=10, gather="ring")
            refused.append(name)
    assert refused == ["alignment_uniformity", "emc2", "kcl", "negative_cache", "sampled", "spectral_contrastive"]


def test_a_ring_of_one_process_is_the_loss() -> None:
    z = torch.randn(6, 4)
    assert torch.equal(zoo.get_loss("dcl", gather="ring")(z, z.flip(0)), zoo.get_loss("dcl")(z, z.flip(0)))


# Rows of a sample that are swept together, and how many such sweeps there are; whether rows are their own keys.
SWEEPS = {
    "ntxent": (2, 1, True),
    "supcon": (2, 1, True),
    "dhel": (1, 2, True),
    "infonce": (1, 1, False),
    "siglip": (1, 1, False),
}


@pytest.mark.parametrize("name", SWEEPS)
def test_each_process_computes_its_share(name: str, ring: list[FOUND], size: int) -> None:
    """Products of rows: one for each pair forward, and backward the same again and two for gradients.

    Each pair is visited once; of rows with themselves, from both sides, where one product gives the gradient.
    """
    per_sample, sweeps, symmetric = SWEEPS[name]
    block = (per_sample * SAMPLES) ** 2
    others = block * (size - 1) // (2 if symmetric else 1)
    forward = block + others
    backward = (2 if symmetric else 3) * block + 3 * others
    for of_rank in ring:
        found = of_rank["measured"][name]
        assert found["forward"][0] == sweeps * forward
        assert found["backward"][0] == sweeps * backward


@pytest.mark.parametrize("name", MEASURED)
def test_no_tensor_holds_rows_of_more_than_one_process(name: str, ring: list[FOUND], size: int) -> None:
    """Two rows for each of its samples, however many processes there are; gathered, a tensor holds those of all."""
    for of_rank in ring:
        for direction in ("forward", "backward"):
            assert 0 < of_rank["measured"][name][direction][1] <= 2 * SAMPLES
            assert of_rank["measured when gathered"][direction][1] == 2 * SAMPLES * size


@pytest.mark.parametrize("name", MEASURED)
def test_bytes_sent(name: str, ring: list[FOUND], size: int) -> None:
    """The formula of `contrastive_zoo.ring`."""
    view = 8 * FEATURES * SAMPLES
    half, others = size // 2, size - 1
    forward = {
        "ntxent": 2 * view * half,
        "dhel": 2 * view * half,
        "supcon": 2 * view * half + view * others,
        "scl": 2 * 2 * view * half,
        "infonce": view * others,
        "siglip": view * others,
    }[name]
    backward = forward if name == "nothing" else 2 * forward
    if name == "supcon":
        backward -= view * others  # sums of classes take as much backward as forward
    for of_rank in ring:
        assert of_rank["measured"][name]["forward"][2] == forward
        assert of_rank["measured"][name]["backward"][2] == backward
