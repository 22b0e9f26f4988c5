"""Tables whose rows are divided among processes: the numbers of replicated tables, in a part of the memory."""

from collections import Counter
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
from accelerator import DEVICE, accelerator, on_host
from cases import NUM_SAMPLES, WITH_TABLES, Configuration, same_state, snapshot
from group import FOUND, SIZES, WIDTH, assert_same, run, run_inside
from sharding import (
    COMPILED,
    COUNTED,
    DIVIDED,
    FEW,
    INSIDE,
    OBJECTIVES,
    SENDING,
    STEPS,
    few,
    load,
    made,
    train,
    whole_batches,
    work,
)
from tolerances import assert_close

import contrastive_zoo as zoo
from contrastive_zoo.batch import options
from contrastive_zoo.samplers import stored
from contrastive_zoo.samplers.randomness import step_seed
from contrastive_zoo.samplers.stored import Stored
from contrastive_zoo.state import layout
from contrastive_zoo.state.layout import Layout

SHARDED = [c for c in WITH_TABLES if not c.params or c.name == "sampled"]
# Those that draw from all shards sum in another order.
SUMMED_ALIKE = [c for c in SHARDED if c.name in ("sogclr", "isogclr", "emc2")]


@pytest.fixture(scope="module")
def of_worlds(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[int, list[FOUND]]]:
    """A folder of checkpoints, and what the processes of each group found."""
    folder = tmp_path_factory.mktemp("sharded")
    found = {}
    for world in SIZES:
        mp.spawn(work, args=(world, folder), nprocs=world)
        found[world] = [torch.load(folder / f"{world}-{rank}.pt", weights_only=True) for rank in range(world)]
    return folder, found


@pytest.fixture(params=SIZES, ids="{} processes".format)
def world(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture
def found(of_worlds: tuple[Path, dict[int, list[FOUND]]], world: int) -> list[FOUND]:
    return of_worlds[1][world]


@pytest.mark.parametrize("configuration", WITH_TABLES, ids=str)
def test_equals_one_process(configuration: Configuration, found: list[FOUND], world: int) -> None:
    """With unequal batches, and a sample that is on two processes in the same step."""
    expected = run(configuration, whole_batches(world))
    for of_rank in found:
        assert_same(of_rank["runs"][str(configuration)], expected)


@pytest.mark.parametrize("configuration", SUMMED_ALIKE, ids=str)
def test_rows_travel_bit_for_bit(configuration: Configuration, found: list[FOUND]) -> None:
    assert all(of_rank["same bits"][str(configuration)] for of_rank in found)


@pytest.mark.parametrize("configuration", SHARDED, ids=str)
def test_a_process_may_hold_no_row(configuration: Configuration, found: list[FOUND], world: int) -> None:
    expected = run(configuration, few(whole_batches(world)), num_samples=FEW)
    for of_rank in found:
        assert_same(of_rank["few"][str(configuration)], expected)


@pytest.mark.parametrize("name", INSIDE)
def test_a_wrapper_does_not_overwrite_shards(name: str, found: list[FOUND], world: int) -> None:
    """DistributedDataParallel sends buffers of the first process to the others, when it is made and in every step."""
    expected = run_inside(name, whole_batches(world))
    for of_rank in found:
        assert_same(of_rank["inside"][name], expected)


@pytest.mark.parametrize("name", COMPILED)
def test_compiled(name: str, of_worlds: tuple[Path, dict[int, list[FOUND]]]) -> None:
    expected = run(Configuration(name, {}), whole_batches(2))
    for of_rank in of_worlds[1][2]:
        found = of_rank["compiled"][name]
        for loss, wanted in zip(found["losses"], expected["losses"], strict=True):
            assert_close(loss, wanted, "loss", magnitude=1.0)
        for key, tensor in expected["state"].items():
            assert_close(found["state"][key], tensor, key)


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_a_checkpoint_goes_to_another_number_of_processes(name: str, of_worlds: tuple[Path, dict[int, list[FOUND]]]) -> None:
    """From two to three in the middle of training, from there to two, and from both to a single process."""
    folder, found = of_worlds
    one = made(name)
    for number, world in ((0, 2), (1, 3)):
        losses = train(one, STEPS[number], 1, 0)
        for of_rank in found[world]:
            assert_close(of_rank["moved"][name]["losses"], losses, f"losses on {world}")
            for key, tensor in snapshot(one).items():
                assert_close(of_rank["moved"][name]["state"][key], tensor, key, magnitude=1.0)
    assert all(of_rank["moved"][name]["on two again"] for of_rank in found[3][1:])
    alone = made(name, tables="sharded")
    load(alone, folder / f"{name} of 3")
    assert same_state(snapshot(alone), found[3][0]["moved"][name]["state"])
    load(alone, folder / f"{name} of 2")
    assert_close(train(alone, STEPS[1], 1, 0), losses, "losses on one process")
    assert sum(DIVIDED[2]) == sum(DIVIDED[3]) == sum(DIVIDED[1])


@pytest.mark.parametrize("name", OBJECTIVES)
def test_what_is_true_of_tables_is_true_of_shards(name: str, found: list[FOUND]) -> None:
    for of_rank in found:
        assert [what for what, true in of_rank["kept"][name].items() if not true] == []
        assert of_rank["grown"][name]


@pytest.mark.parametrize("name", OBJECTIVES)
def test_each_process_holds_its_share(name: str, found: list[FOUND], world: int) -> None:
    sharded, replicated = zip(*(of_rank["bytes"][name] for of_rank in found), strict=True)
    assert sum(sharded) == replicated[0]
    assert max(sharded) == replicated[0] * -(-NUM_SAMPLES // world) // NUM_SAMPLES


# Bytes of the messages of a step that sharded tables add, for N anchors, K negatives of each and P processes.
def added(case: str, world: int) -> list[tuple[str, int]]:
    samples, anchors = COUNTED * world, 2 * COUNTED * world
    negatives = 64 if case == "sampled" else 16
    best = ("all_to_all_single", (16 * negatives + 12) * anchors)
    return {
        "sogclr": [("all_reduce", 8 * samples)],
        "isogclr": [("all_reduce", 16 * samples)],
        "emc2": [("all_reduce", 24 * samples), ("all_reduce", 4 * WIDTH * anchors)],
        "sogclr of two modalities": [("all_reduce", 12 * samples)],
        "isogclr of two modalities": [("all_reduce", 28 * samples)],
        "emc2 with skip": [("all_reduce", 32 * samples)],
        "negative_cache": [best, ("all_reduce", 4 * WIDTH * anchors)],
        "negative_cache that encodes": [best],
        "sampled": [
            ("all_reduce", 8 * (world + 2 * anchors)),
            ("all_reduce", 12 * negatives * anchors),
            ("all_reduce", 4 * WIDTH * anchors),
        ],
    }[case]


@pytest.mark.parametrize("case", SENDING)
def test_messages_of_a_step(case: str, found: list[FOUND], world: int) -> None:
    """Those of a replicated loss, and what docs/processes.md says; uniform draws need not be put together once more."""
    for of_rank in found:
        replicated, sharded = (Counter(of_rank["messages"][case][tables]) for tables in ("replicated", "sharded"))
        assert sharded - replicated == Counter(added(case, world))
        spared = (8 * 64, 4 * 64, 4) if case == "sampled" else ()
        assert replicated - sharded == Counter(("all_reduce", size * 2 * COUNTED * world) for size in spared)


def test_each_process_searches_its_shard(found: list[FOUND], world: int) -> None:
    anchors = 2 * COUNTED * world
    assert sum(of_rank["searched"] for of_rank in found) == anchors * 2 * NUM_SAMPLES
    assert max(of_rank["searched"] for of_rank in found) == anchors * 2 * -(-NUM_SAMPLES // world)


HEARD = {
    "table": "ValueError: the tables of 'sogclr' are sharded, and whole they would take 200 bytes ... table(index)",
    "position": "IndexError: index holds 40",
    "tables": "tables is sharded on rank 0, ... replicated on rank {last}",
    "assigned": "AttributeError: tables is fixed once a loss is made",
    "not gathered": "ValueError: tables='sharded' needs gather='auto', got gather=False",
    "no longer gathered": "ValueError: tables='sharded' needs gather='auto', got gather=False",
    "queue": "ValueError: 'sampled' keeps nothing per sample here, so it has no tables='sharded'",
    "sampler": "RuntimeError: a sampler whose table is sharded over processes is called by its loss only",
    "rows": "objective.averages.log_value must have 40 rows, got shape (39, 1)",
    "width": "the shape of sampler.embeddings.rows is [40, 2, 5] on rank 0, ... [40, 2, 6] on rank {last}",
    "stateless": "True",
    "sampler object": "True",
    "another group": "RuntimeError: the tables of 'sogclr' are sharded over",
}


@pytest.mark.parametrize("case", HEARD)
def test_what_a_process_hears(case: str, found: list[FOUND]) -> None:
    assert set(found[0]["heard"]) == set(HEARD)
    parts = HEARD[case].format(last=len(found) - 1).split(" ... ")
    for of_rank in found:
        assert all(part in of_rank["heard"][case] for part in parts), of_rank["heard"][case]


def test_an_encoder_that_raises_leaves_shards_alone(found: list[FOUND]) -> None:
    assert all(of_rank["encoder"] for of_rank in found)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_single_process_holds_all_rows(name: str) -> None:
    sharded, replicated = made(name, tables="sharded"), made(name)
    assert torch.equal(train(sharded, STEPS[0], 1, 0), train(replicated, STEPS[0], 1, 0))
    assert same_state(snapshot(sharded), snapshot(replicated))
    index = torch.tensor([3, 0, 3])
    assert all(torch.equal(rows, replicated.table()[key][index]) for key, rows in sharded.table(index).items())
    with pytest.raises(IndexError, match="index holds 40"):
        sharded.table(torch.tensor([NUM_SAMPLES]))


def test_an_old_torch_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(options, "SHARDING", False)
    with pytest.raises(ValueError, match=r"tables='sharded' needs PyTorch 2\.6 or newer, got"):
        made("sogclr", tables="sharded")


@pytest.mark.parametrize("rank", [0, 1])
def test_shards_wait_for_no_accelerator(rank: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As far as one process can tell: messages come back as they were sent, as if others knew nothing."""
    monkeypatch.setattr(layout, "merged", lambda part, log, group: part)
    monkeypatch.setattr(stored, "merged", lambda part, log, group: part)
    monkeypatch.setattr(stored, "swapped", lambda rows, group: rows[None])
    with accelerator() as device:
        held = Layout(6, rank, 2, "a group")
        keys, visited = (tensor.to(DEVICE) for tensor in (torch.randn(6, 4), torch.tensor([True, False, True])))
        x, index = torch.randn(8, 4).to(DEVICE), torch.tensor([0, 5, 2, 0]).to(DEVICE)
        scale, seed = torch.ones(()), step_seed(0, torch.tensor(1))
        table = Stored(keys, visited, held)
        samples = index.repeat_interleave(2)
        device.forget()
        (rows,) = held.read(index, keys.view(3, 2, 4))
        held.write(visited, index, torch.ones_like(index, dtype=torch.bool), index >= 0)
        largest = table.largest(x, scale, samples, 2, seed, slice(0, 8))
        uniform = table.uniform(x, scale, samples, 2, seed, slice(0, 8))
        held.weighted_sum(keys, largest.rows.clamp_min(0), largest.log_scores, views=2)
        assert device.waits == []
        mine = on_host(index) // 3 == rank
        assert torch.equal(on_host(rows)[mine], on_host(keys.view(3, 2, 4))[on_host(index)[mine] - 3 * rank])
        assert not on_host(rows)[~mine].any()
        for numbers in (largest.rows, uniform.rows):
            found = on_host(numbers)[on_host(numbers) >= 0]
            assert len(found)
            assert bool((found // 6 == rank).all())


class Counts(zoo.Objective):
    """An objective that does not say whether its table can be divided."""

    def __init__(self) -> None:
        super().__init__()
        self.register_table("count", 6, fill=0, per_sample=True)


def test_what_cannot_be_divided() -> None:
    with pytest.raises(ValueError, match="Counts has tables that processes cannot divide"):
        Counts().divide(Layout(6, 0, 2, "a group"))
    sampler = zoo.get_sampler("topk", num_samples=6)
    sampler.divide(Layout(6, 0, 2, "a group"))
    with pytest.raises(ValueError, match="are sharded already, for another loss"):
        sampler.divide(Layout(6, 0, 3, "another group"))
    with pytest.raises(TypeError, match=r"keeps nothing per sample here, .* call table\(\)"):
        zoo.get_loss("sampled", num_samples=9, sampler="queue").table(torch.tensor([0]))


def test_a_loss_made_before_the_group_does_not_take_part() -> None:
    loss_fn = made("sogclr", tables="sharded")
    loss_fn.objective.divide(Layout(NUM_SAMPLES, 0, 2, "a group"))
    with pytest.raises(RuntimeError, match="are sharded over 2 processes, and this step has 1"):
        train(loss_fn, STEPS[0], 1, 0)
    assert loss_fn.eval()(*torch.randn(2, 4, WIDTH)).isfinite()
