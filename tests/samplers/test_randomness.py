"""Draws by place: any block of a table is the same however the table is cut; laws; and what is drawn with them."""

import importlib
import math
from typing import Any
from unittest import mock

import pytest
import torch
from accelerator import DEVICE, accelerator, on_host
from cases import Configuration, gradients, views
from tolerances import assert_close
from torch import Tensor

from contrastive_zoo.samplers import batch_draws, memory, philox
from contrastive_zoo.samplers.randomness import PANEL, DrawTable, random_order, step_seed

CPU = torch.device("cpu")
KINDS = ["uniform", "exponential"]
every_kind = pytest.mark.parametrize("kind", KINDS)
every_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)


def table(seed: int = 0, step: int = 0, stream: int = 0) -> DrawTable:
    return DrawTable(step_seed(seed, torch.tensor(step)), CPU, stream=stream)


def block(kind: str, dtype: torch.dtype, rows: slice, columns: slice, **of_table: int) -> Tensor:
    return getattr(table(**of_table), kind)(rows, columns, dtype)


@every_kind
@every_dtype
@pytest.mark.parametrize("there", [False, True], ids=["host", "accelerator"])
def test_blocks_are_parts_of_one_table(kind: str, dtype: torch.dtype, there: bool) -> None:
    """Also where one object is asked for them, in any order, in place of a new one each."""
    with accelerator():
        device, rows, columns = DEVICE if there else CPU, 70, 3 * PANEL + 5

        def block(shared: DrawTable | None, *place: slice) -> Tensor:
            draws = DrawTable(step_seed(0, torch.tensor(0)), device) if shared is None else shared
            drawn = getattr(draws, kind)(*place, dtype)
            assert drawn.device == device
            return on_host(drawn) if there else drawn

        whole = block(None, slice(0, rows), slice(0, columns))
        shared = DrawTable(step_seed(0, torch.tensor(0)), device)
        for low, high in ((69, 70), (0, 1), (3, 3), (10, 67), (0, 70)):
            for left, right in (
                (columns - 1, columns),
                (PANEL - 1, PANEL + 1),
                (0, 1),
                (7, 7),
                (5, columns),
                (PANEL, 2 * PANEL),
            ):
                place = slice(low, high), slice(left, right)
                assert torch.equal(block(None, *place), whole[place])
                assert torch.equal(block(shared, *place), whole[place])


# Random123's known answers of Philox4x32-10: counter, key, words.
PI = [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344]
KNOWN = [
    ([0] * 4, [0, 0], [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
    ([2**32 - 1] * 4, [2**32 - 1] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
    (PI, [0xA4093822, 0x299F31D0], [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1]),
]


@pytest.mark.parametrize(("counter", "key", "wanted"), KNOWN, ids=["zeros", "ones", "pi"])
def test_philox_is_philox(counter: list[int], key: list[int], wanted: list[int]) -> None:
    row, call, low, high = counter
    step = high % 2**philox.STEP_BITS << 32 | low
    seed = torch.tensor([key[1] << 32 | key[0] if key[1] < 2**31 else -1, step])
    found = philox.words(seed, torch.tensor([[row]]), torch.tensor([call]), high >> philox.STEP_BITS)
    assert [word.item() for word in found] == wanted


@every_dtype
@pytest.mark.usefixtures("kernels")
def test_the_kernel_draws_the_same(dtype: torch.dtype) -> None:
    from contrastive_zoo.samplers import philox_triton

    seed = step_seed(2**62 + 2**35 + 7, torch.tensor(2**40 + 3))
    for rows, columns in (
        (slice(0, 9), slice(0, 70)),
        (slice(2**31 - 3, 2**31 - 1), slice(601, 1207)),
        (slice(4, 4), slice(0, 3)),
    ):
        with mock.patch.object(philox, "refuses_kernels", return_value="not here"):
            wanted = philox.uniform(seed, 3, rows, columns, dtype)
        assert torch.equal(philox_triton.uniform(seed, 3, rows, columns, dtype), wanted)


def test_what_is_returned_may_be_written_to() -> None:
    draws = table()
    first = draws.uniform(slice(0, 3), slice(0, PANEL), torch.float32)
    kept = first.clone()
    first.zero_()
    assert torch.equal(draws.uniform(slice(0, 3), slice(0, PANEL), torch.float32), kept)


@every_dtype
def test_seeds_steps_streams_rows_and_columns_differ(dtype: torch.dtype) -> None:
    def value(row: int = 0, column: int = 0, **of_table: int) -> float:
        return block("uniform", dtype, slice(row, row + 1), slice(column, column + 1), **of_table).item()

    found = [value(), value(seed=1), value(step=1), value(seed=2**63 - 1), value(stream=1), value(row=1), value(column=1)]
    found += [value(column=PANEL), value(row=1, column=PANEL), value(row=PANEL)]
    # In words of 32 bits these read alike: 0, 1.
    found += [value(seed=2**32), value(step=2**32), value(seed=2**32, step=1), value(step=1, stream=1)]
    assert len(set(found)) == len(found)


@every_dtype
def test_uniform_draws_have_their_law(dtype: torch.dtype) -> None:
    draws = block("uniform", dtype, slice(0, 1000), slice(0, 200)).double()
    assert 0 <= draws.min() < 1e-3
    assert 1 - 1e-3 < draws.max() < 1
    counts = torch.bincount((draws * 100).long().flatten(), minlength=100)
    assert abs(float(((counts - 2000) ** 2 / 2000).sum()) - 99) < 4.5 * math.sqrt(2 * 99)
    for near in (draws[1:] * draws[:-1], draws[:, 1:] * draws[:, :-1]):  # neighbours are not correlated
        assert abs(float(near.mean()) - 0.25) < 4.5 * math.sqrt(7 / 144 / near.numel()) * 1.5


@every_dtype
def test_exponential_draws_have_their_law_near_zero_too(dtype: torch.dtype) -> None:
    draws = block("exponential", dtype, slice(0, 4000), slice(0, 500)).double()
    assert draws.isfinite().all()
    assert float(draws.mean()) == pytest.approx(1, abs=4.5 / math.sqrt(draws.numel()))
    assert 1e-9 < float(draws.min()) < 1e-5
    smallest = draws.flatten().sort().values[:1000]
    assert len(smallest.unique()) > 995  # multiples of 2^-24 would coincide
    assert float(smallest[-1]) * draws.numel() == pytest.approx(1000, rel=0.15)


def test_integers_have_their_law() -> None:
    below = torch.tensor([[1], [3], [10], [0]]).repeat(500, 1)
    draws = table().integers(slice(5, 2005), slice(0, 40), below)
    assert draws.dtype == torch.int64
    for number, size in enumerate((1, 3, 10)):
        counts = torch.bincount(draws[number::4].flatten(), minlength=size).double()
        assert len(counts) == size
        expected = 20000 / size
        assert float(((counts - expected) ** 2 / expected).sum()) <= size - 1 + 4.5 * math.sqrt(2 * (size - 1))
    assert not draws[3::4].any()


@pytest.mark.parametrize("size", [1, 2, 63, 64, 65, 300])
def test_random_orders_are_permutations(size: int) -> None:
    orders = [random_order(size, step_seed(0, torch.tensor(step)), stream=1) for step in range(2)]
    for order in orders:
        assert torch.equal(order.sort().values, torch.arange(size))
    assert size < 63 or not torch.equal(*orders)


DRAWING = [
    Configuration("emc2", {}),
    Configuration("emc2", {"out_of_batch": "skip"}),
    Configuration("negative_cache", {"num_negatives": 5}),
    Configuration("sampled", {"sampler": "uniform"}),
    Configuration("sampled", {"sampler": "topk", "num_negatives": 5}),
    Configuration("sampled", {"sampler": "queue", "num_negatives": 300}),
    *(Configuration(name, {"num_negatives": 3}) for name in ("ucl", "hucl", "scl", "hscl")),
]


def sizes(monkeypatch: pytest.MonkeyPatch, numel: int, tile: int) -> None:
    # The package has a function of the name of this module.
    walks = importlib.import_module("contrastive_zoo.samplers.metropolis_hastings")
    monkeypatch.setattr(walks, "BLOCK_NUMEL", (numel, numel))
    monkeypatch.setattr(batch_draws, "BLOCK_NUMEL", numel)
    for name, value in (("GATHER_NUMEL", numel), ("TILE", tile), ("TILE_ACCELERATOR", tile)):
        monkeypatch.setattr(memory, name, value)


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("configuration", DRAWING, ids=str)
def test_the_size_of_blocks_decides_nothing(
    configuration: Configuration, reduction: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Values, gradients and states of three steps, with blocks of an anchor, of some, and of all."""
    found: list[Any] = []
    for numel, tile in ((1, 1), (9 * 130, 50), (2**20, 1024)):
        sizes(monkeypatch, numel, tile)
        loss_fn, steps = configuration.make(num_samples=130, reduction=reduction).double(), []
        for step in range(3):
            batch = views(65, 3, seed=step)._replace(
                index=torch.randperm(130, generator=torch.Generator().manual_seed(step))[:65]
            )
            loss = batch.call(loss_fn)
            steps += [loss, *gradients((loss * torch.arange(1, 66)).mean() if loss.dim() else loss, batch)]
        found.append(steps + list(loss_fn.state_dict().values()))
    for other in found[:-1]:
        for number, (value, expected) in enumerate(zip(other, found[-1], strict=True)):
            assert_close(value.double(), expected.double(), f"number {number}", magnitude=100.0)
