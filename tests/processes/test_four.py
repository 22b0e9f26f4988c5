"""Four processes are one, share work, traffic and mined negatives, and go on as two or as three.

One file, because a worker of pytest starts the four processes for each file that needs them.
"""

from itertools import chain

import pytest
import torch
from cases import CONFIGURATIONS, NAMES, STATEFUL, Configuration
from costs import COSTS, DRAWS, Setting, rows_gathered
from four import (
    BATCH,
    CLASSES,
    COST_WIDTH,
    COUNTED,
    COUNTED_CONFIGURATIONS,
    DRAWING,
    HELD,
    HELD_BATCH,
    HELD_WIDTH,
    LEFT,
    MINED,
    RESUMED,
    SIZES,
    TRAINED_BATCH,
    TRAINED_SAMPLES,
    WORLD,
    Run,
    contrasted,
    mined,
    stepped,
)
from group import FOUND, WITH_NEGATIVES, global_batch, part_of
from tolerances import assert_close

UNEVEN = 1.25  # tiles on the diagonal are visited whole, and the last ones are smaller


@pytest.mark.parametrize("configuration", CONFIGURATIONS, ids=str)
def test_four_equal_one(configuration: Configuration, of_four: list[FOUND]) -> None:
    """Value, gradients of each process's own features, times four, and state."""
    batches = [global_batch(step, sizes) for step, sizes in enumerate(SIZES[WORLD])]
    expected = stepped(configuration.learning(), batches)
    for rank, of_rank in enumerate(of_four):
        actual = of_rank["same"][str(configuration)]
        for step, sizes in enumerate(SIZES[WORLD]):
            assert_close(actual["losses"][step], expected["losses"][step], f"loss of step {step}", magnitude=1.0)
            (z1, z2, *learned), (own1, own2, *own_learned) = expected["gradients"][step], actual["gradients"][step]
            part = part_of(sizes, rank)
            wanted = [WORLD * z1[part], WORLD * z2[part], *learned]
            for gradient, other in zip((own1, own2, *own_learned), wanted, strict=True):
                assert_close(gradient, other, f"gradient of step {step}", magnitude=10.0)
        for name, tensor in expected["state"].items():
            assert_close(actual["state"][name], tensor, name)


@pytest.mark.parametrize("world", SIZES)
@pytest.mark.parametrize("configuration", WITH_NEGATIVES, ids=str)
def test_shared_negatives_are_those_of_one_process_with_all(
    configuration: Configuration, world: int, of_four: list[FOUND]
) -> None:
    """Also where processes have mined more or fewer, and with cached gradients."""
    rows, index = mined(world)
    expected = contrasted(configuration.learning(), global_batch(0, SIZES[world][0]), rows, index)
    encoders = []
    for rank, of_rank in enumerate(of_four[:world]):
        actual = of_rank["negatives"][world][str(configuration)]
        encoders.append(actual["of encoder"])
        assert_close(actual["loss"], expected["loss"], "loss", magnitude=1.0)
        assert_close(actual["cached"], expected["cached"], "loss", magnitude=1.0)
        part, of_keys = part_of(SIZES[world][0], rank), part_of(MINED, rank)
        z1, z2, keys, *learned = expected["gradients"]
        wanted = [world * z1[part], world * z2[part], world * keys[of_keys], *learned]
        for name, gradient, other in zip(("z1", "z2", "keys", "learned"), actual["gradients"], wanted, strict=False):
            assert_close(gradient, other, name, magnitude=10.0)
    assert_close(torch.stack(encoders).mean(0), expected["of encoder"], "encoder", magnitude=10.0)


REFUSED = {
    "of each sample": "gather_negatives=True shares negatives of shape (M, D), got (4, 2, 4)",
    "a gradient on one": "whether negatives want a gradient is False on rank 0",
    "positions on one": "whether negatives_index is given is False on rank 0",
    "another setting": "gather_negatives is True on rank 0",
    "none on one": "whether negatives are given is True on rank 0",
}


@pytest.mark.parametrize("mistake", REFUSED)
def test_negatives_that_cannot_be_shared_are_an_error_of_all(mistake: str, of_four: list[FOUND]) -> None:
    for of_rank in of_four:
        assert REFUSED[mistake] in of_rank["negatives refused"][mistake]


def setting(name: str, world: int) -> Setting:
    integers = 1 + (name in ("supcon", "scl", "hscl"))
    return Setting(world, BATCH, COST_WIDTH, BATCH, DRAWS.get(name, 0), CLASSES, integers)


def counted(of_four: list[FOUND], configuration: object, world: int, what: str) -> list[float]:
    return [of_rank["costs"][world][str(configuration)][what] for of_rank in of_four[:world]]


def test_every_name_has_a_formula() -> None:
    assert set(COSTS) == set(NAMES)


@pytest.mark.parametrize("configuration", COUNTED_CONFIGURATIONS, ids=str)
def test_each_process_does_its_share_of_the_work(configuration: Configuration, of_four: list[FOUND]) -> None:
    (alone,) = counted(of_four, configuration, 1, "operations")
    assert alone > 0
    for world in COUNTED[1:]:
        shares = counted(of_four, configuration, world, "operations")
        assert sum(shares) <= 1.1 * alone
        assert max(shares) <= 1.35 / world * alone


@pytest.mark.parametrize("name", NAMES)
def test_work_is_what_the_formula_says(name: str, of_four: list[FOUND]) -> None:
    (alone,) = counted(of_four, name, 1, "operations")
    assert 1 <= alone / COSTS[name].products(setting(name, 1)) <= UNEVEN


@pytest.mark.parametrize("world", COUNTED)
@pytest.mark.parametrize("name", NAMES)
def test_bytes_are_what_the_formula_says(name: str, world: int, of_four: list[FOUND]) -> None:
    expected = COSTS[name].sent(setting(name, world))
    for sent in counted(of_four, name, world, "bytes"):
        assert sent == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("world", [2, 4])
@pytest.mark.parametrize("name", HELD)
def test_rows_take_about_what_the_formula_says(name: str, world: int, of_four: list[FOUND], device: str) -> None:
    """Two copies of the rows of all and two of their gradients, not all of which are there at once in every objective."""
    if device != "cpu":
        pytest.skip("memory is measured on CPUs")
    for of_rank in of_four[:world]:
        held = of_rank["rows held"][world][name]
        assert 0.6 <= held / rows_gathered(Setting(world, HELD_BATCH, HELD_WIDTH)) <= 1.2


@pytest.mark.parametrize("name", RESUMED)
@pytest.mark.parametrize("world", [2, 3])
def test_four_stop_within_an_epoch_and_others_go_on(name: str, world: int, of_four: list[FOUND]) -> None:
    """Each sample of an epoch is seen once, and the run ends as one that never stopped, on one process."""
    run = Run(name)
    expected = run.train(2)
    started = [of_rank["resumed"][name][WORLD] for of_rank in of_four]
    ended = [of_rank["resumed"][name][world] for of_rank in of_four[:world]]
    batches = [
        list(chain(*parts))
        for of_ranks in (started, ended)
        for parts in zip(*(of_rank["seen"] for of_rank in of_ranks), strict=True)
    ]
    per_epoch = TRAINED_SAMPLES // TRAINED_BATCH
    assert LEFT % per_epoch
    assert [sorted(batch) for batch in batches] == [sorted(batch) for batch in expected["seen"]]
    for epoch in (batches[:per_epoch], batches[per_epoch:]):
        assert sorted(chain(*epoch)) == list(range(TRAINED_SAMPLES))
    for of_rank in ended:
        for key, tensor in expected["state"].items():
            assert_close(of_rank["state"][key], tensor, key, magnitude=1.0)


@pytest.mark.parametrize("configuration", STATEFUL + DRAWING, ids=str)
def test_an_exchange_that_is_lost_changes_no_state(configuration: Configuration, of_four: list[FOUND]) -> None:
    """Whichever of a step's sums over processes it is; the next step works."""
    for of_rank in of_four[:2]:
        lost = of_rank["lost"][str(configuration)]
        assert lost["sums"] > 0
        assert lost["unchanged"]
        assert lost["then"].startswith("a loss of")
