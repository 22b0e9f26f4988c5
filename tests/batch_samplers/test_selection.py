"""Batches chosen by features: against the authors' numbers, against brute force, and what is done with bad features."""

import json
import math
from itertools import chain, combinations, permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn.functional import normalize

import contrastive_zoo as zoo
from contrastive_zoo.batch_samplers import balanced_assignment, loss_graph, ordered_selection, spectral_partition
from contrastive_zoo.batch_samplers.bisection import inertial_blocks, principal_axis
from contrastive_zoo.batch_samplers.spectral import _leading_eigenvectors

GOLDEN = Path(__file__).parent.parent / "golden" / "batch_selection"
CHOOSE = ["ordered", "spectral", "bisection"]
PART = ["spectral", "bisection"]


def cases(pattern: str) -> Any:
    return pytest.mark.parametrize("path", sorted(GOLDEN.glob(pattern)), ids=lambda path: path.stem)


def load(path: Path) -> tuple[Any, dict[str, Any], Tensor, Tensor]:
    data = np.load(path)
    return data, json.loads(str(data["meta"]))["params"], *(normalize(torch.tensor(data[k]), dim=1) for k in ("z1", "z2"))


def clip_loss(z1: Tensor, z2: Tensor, temperature: float = 1.0) -> Tensor:
    """The authors' loss of a batch: both directions added."""
    return 2 * zoo.functional.infonce(z1, z2, temperature=temperature)


def mean_loss(batches: Any, z1: Tensor, z2: Tensor, temperature: float) -> float:
    return float(torch.stack([clip_loss(z1[batch], z2[batch], temperature) for batch in torch.as_tensor(batches)]).mean())


def clustered(n: int, noise: float, seed: int = 0, dim: int = 16) -> tuple[Tensor, Tensor]:
    """Two noisy views of samples around eight centres."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(8, dim, generator=generator)
    x = centres[torch.randint(8, (n,), generator=generator)] + torch.randn(n, dim, generator=generator)
    z1, z2 = (x + noise * torch.randn(n, dim, generator=generator) for _ in range(2))
    return normalize(z1, dim=1), normalize(z2, dim=1)


# The graph


@cases("affinity*")
def test_graph_equals_the_authors(path: Path) -> None:
    data, params, z1, z2 = load(path)
    graph = loss_graph(torch.tensor(data["z1"]), torch.tensor(data["z2"]), batch_size=params["B"], temperature=1.0)
    np.testing.assert_allclose(graph.numpy(), data["affinity"], rtol=1e-12, atol=0)
    assert math.isclose(float(clip_loss(z1, z2)), float(data["clip_loss_full"]), rel_tol=1e-12)


@given(st.integers(2, 7), st.integers(1, 5), st.sampled_from([0.005, 0.1, 1.0]), st.integers(0, 100))
def test_graph_bounds_the_loss_of_a_batch_from_below(size: int, dim: int, temperature: float, seed: int) -> None:
    z1, z2 = torch.randn(2, size, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    graph = loss_graph(z1, z2, batch_size=size, temperature=temperature)
    assert torch.equal(graph, graph.T)
    within = (graph.sum() - graph.trace()) / (2 * size * (size - 1))
    assert float(clip_loss(z1, z2, temperature)) >= float(within) * (1 - 1e-9)


def test_graph_of_pairs_is_the_loss_of_pairs() -> None:
    z1, z2 = torch.randn(2, 5, 3, dtype=torch.float64)
    graph = loss_graph(z1, z2, batch_size=2, temperature=0.3)
    for i, j in combinations(range(5), 2):
        assert torch.allclose(clip_loss(z1[[i, j]], z2[[i, j]], 0.3), graph[i, j] / 2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_graph_stays_finite(dtype: torch.dtype) -> None:
    z1, z2 = torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(1)).to(dtype)
    z1[0], z2[1] = 0, z2[0] * 1e4
    graph = loss_graph(z1, z2, batch_size=64, temperature=0.005)
    assert graph.dtype == torch.float32
    assert graph.isfinite().all()
    assert (loss_graph(z1, z2, batch_size=1) == 0).all()


@pytest.mark.parametrize(
    ("error", "message", "change"),
    [
        (ValueError, "z1 must be", {"z1": torch.zeros(4)}),
        (ValueError, "z1 and z2 must have the same shape", {"z2": torch.zeros(5, 3)}),
        (ValueError, "z2 holds NaN", {"z2": torch.full((4, 3), math.nan)}),
        (TypeError, "z1 must be a tensor", {"z1": np.zeros((4, 3))}),
        (ValueError, "batch_size must be at least 1", {"batch_size": 0}),
        (ValueError, "temperature must be", {"temperature": 0.0}),
    ],
)
def test_mistakes_about_the_graph(error: type[Exception], message: str, change: dict[str, Any]) -> None:
    given_ = {"z1": torch.ones(4, 3), "z2": torch.ones(4, 3), "batch_size": 2, "temperature": 1.0, **change}
    with pytest.raises(error, match=message):
        loss_graph(given_.pop("z1"), given_.pop("z2"), **given_)


# Ordered SGD


@cases("osgd_kb*")
def test_ordered_selection_equals_the_authors(path: Path) -> None:
    data, params, z1, z2 = load(path)
    candidates = np.arange(len(z1)).reshape(-1, params["B"])
    keep = {"max": "highest", "min": "lowest"}[params["best_criteria"]]
    loss_fn = zoo.get_loss("ntxent", temperature=params["t"])
    chosen = ordered_selection(candidates, z1, z2, loss_fn, k=params["k"], q=params["q"], keep=keep)
    np.testing.assert_array_equal(data["dataset_index"][chosen], data["selected_batches"])


@cases("osgd_NcB*")
def test_worst_pair_equals_the_authors(path: Path) -> None:
    data, _, z1, z2 = load(path)
    pairs = np.array(list(combinations(range(len(z1)), 2)))
    np.testing.assert_array_equal(pairs, data["pairs"])
    chosen = ordered_selection(pairs, z1, z2, clip_loss, k=len(pairs), q=1)
    np.testing.assert_array_equal(chosen, data["chosen"])


def test_of_equal_losses_the_earlier_is_kept() -> None:
    candidates, z = np.arange(8).reshape(4, 2), torch.ones(8, 2)
    for keep in ("highest", "lowest"):
        chosen = ordered_selection(candidates, z, z, lambda z1, z2: z1.sum(), k=4, q=2, keep=keep)
        assert sorted(chosen.tolist()) == [[0, 1], [2, 3]]


def test_ordered_batches_have_the_highest_loss_of_their_group() -> None:
    z1, z2 = clustered(66, 0.5)
    sampler = zoo.get_batch_sampler("ordered", num_samples=66, batch_size=4, k=5, q=2)
    index = torch.randperm(66)
    sampler.refresh(z1[index], z2[index], index)
    chosen = list(sampler)
    assert len(chosen) == len(sampler) == 16 // 5 * 2
    order = np.random.default_rng([0, 0, 1]).permutation(66)[:60].reshape(3, 5, 4)
    wanted = []
    for group in order:
        losses = [float(zoo.functional.infonce(z1[batch], z2[batch])) for batch in group]
        wanted += [group[number].tolist() for number in np.argsort(losses)[-2:]]
    assert sorted(chosen) == sorted(wanted)


@pytest.mark.parametrize("name", ["hcl", "sogclr", "emc2", "kcl"])
def test_any_objective_orders_batches_and_stays_as_it_is(name: str) -> None:
    loss_fn = zoo.get_loss(name, num_samples=24)
    z1, z2 = clustered(24, 0.5)
    loss_fn(z1[:6], z2[:6], index=torch.arange(6))
    before = {key: value.clone() for key, value in loss_fn.state_dict().items()}
    sampler = zoo.get_batch_sampler("ordered", num_samples=24, batch_size=4, k=3, q=1, loss=loss_fn)
    sampler.refresh(z1, z2, torch.arange(24))
    assert len(list(sampler)) == 2
    assert loss_fn.training
    assert all(torch.equal(value, loss_fn.state_dict()[key]) for key, value in before.items())


def test_features_are_taken_as_they_are_by_losses_that_do_not_normalise() -> None:
    z1, z2 = torch.randn(2, 40, 3) * 5 * torch.rand(40, 1)
    loss_fn = zoo.get_loss("infonce", normalize=False, temperature=1.0)
    sampler = zoo.get_batch_sampler("ordered", num_samples=40, batch_size=4, k=10, q=1, loss=loss_fn)
    sampler.refresh(z1, z2, torch.arange(40))
    (chosen,) = sampler
    order = np.random.default_rng([0, 0, 1]).permutation(40).reshape(10, 4)
    losses = [float(loss_fn(z1[batch], z2[batch])) for batch in order]
    normalised = [float(zoo.functional.infonce(z1[batch], z2[batch], temperature=1.0)) for batch in order]
    assert np.argmax(losses) != np.argmax(normalised)
    assert chosen == order[np.argmax(losses)].tolist()


def test_size_of_an_epoch_is_known_before_features_are() -> None:
    sampler = zoo.get_batch_sampler("ordered", num_samples=22, batch_size=2, k=4, q=3)
    assert len(sampler) == len(list(sampler)) == 6
    assert len(zoo.get_batch_sampler("ordered", num_samples=6, batch_size=2)) == 2


@pytest.mark.parametrize(
    ("error", "message", "params"),
    [
        (ValueError, "k must be at most the number of whole batches = 5, got 6", {"k": 6}),
        (ValueError, "q must be at most k = 3, got 4", {"k": 3, "q": 4}),
        (ValueError, "k must be at least 1, got 0", {"k": 0}),
        (ValueError, "q must be at least 1, got 0", {"q": 0}),
        (ValueError, "unknown loss 'infonec'. Did you mean 'infonce'", {"loss": "infonec"}),
        (TypeError, "loss must be the name of an objective or a loss made by get_loss, got int", {"loss": 3}),
        (ValueError, "keep must be one of 'highest', 'lowest'", {"keep": "best"}),
    ],
)
def test_mistakes_about_ordered(error: type[Exception], message: str, params: dict[str, Any]) -> None:
    with pytest.raises(error, match=message):
        zoo.get_batch_sampler("ordered", num_samples=22, batch_size=4, **params)


@pytest.mark.usefixtures("_clean_registries")
def test_labels_cannot_be_had() -> None:
    @zoo.register_loss("labelled", needs={"labels"})
    def labelled(batch: zoo.Batch) -> Tensor:
        return batch.positive_similarity()

    with pytest.raises(ValueError, match="loss: 'labelled' needs labels"):
        zoo.get_batch_sampler("ordered", num_samples=22, batch_size=4, loss="labelled")


# Balanced clusters


@given(st.integers(1, 6), st.integers(1, 8), st.integers(0, 1000), st.booleans())
def test_assignment_is_optimal(capacity: int, centres: int, seed: int, ties: bool) -> None:
    cost = np.random.default_rng(seed).random((capacity * centres, centres)) ** 3
    cost = cost.round(1) if ties else cost
    centre = balanced_assignment(cost)
    assert (np.bincount(centre, minlength=centres) == capacity).all()
    rows, columns = linear_sum_assignment(np.repeat(cost, capacity, axis=1))
    best = cost[rows, columns // capacity].sum()
    assert cost[np.arange(len(cost)), centre].sum() == pytest.approx(best, abs=1e-9)


def test_assignment_of_equal_costs() -> None:
    assert (np.bincount(balanced_assignment(np.full((12, 4), 3.7))) == 3).all()


@pytest.mark.parametrize("spread", [1.0, 0.1])
def test_eigenvectors_span_what_lapack_finds(spread: float) -> None:
    """Six eigenvalues from 0.75 to 1, the rest at most 0.25: the space is unique, and Lanczos must find it."""
    generator = torch.Generator().manual_seed(0)
    vectors = torch.linalg.qr(torch.randn(400, 400, generator=generator, dtype=torch.float64)).Q
    values = torch.cat([(torch.rand(394, generator=generator) - 0.5) / 2, 1 - spread * torch.rand(6, generator=generator) / 4])
    matrix = vectors @ torch.diag(values.double()) @ vectors.T
    found = _leading_eigenvectors(matrix, 6, seed=1)
    assert torch.allclose(found.T @ found, torch.eye(6, dtype=torch.float64), atol=1e-9)
    assert torch.allclose(found @ found.T, vectors[:, -6:] @ vectors[:, -6:].T, atol=1e-4)


@cases("sc_even*")
def test_spectral_partitions_are_as_good_as_the_authors(path: Path) -> None:
    """By the mean loss of a batch over ten seeds, and above all of 300 random partitions (the smallest set has a tie)."""
    data, params, z1, z2 = load(path)
    size, temperature = params["batch_size"], params["t"]
    losses = []
    for seed in range(10):
        batches = spectral_partition(z1, z2, batch_size=size, temperature=temperature, seed=seed)
        assert sorted(batches.reshape(-1)) == list(range(len(z1)))
        losses.append(mean_loss(batches, z1, z2, temperature))
    assert np.mean(losses) >= data["mean_batch_loss"].mean() - 1e-9
    assert min(losses) >= data["random_partition_mean_batch_loss"].max() - 1e-9
    assert mean_loss(data["partitions"][0], z1, z2, temperature) == pytest.approx(data["mean_batch_loss"][0])


def test_spectral_finds_the_best_of_all_partitions_into_pairs() -> None:
    data, _, z1, z2 = load(GOLDEN / "sc_even_N8_B2_D4_t1.0.npz")
    every = {tuple(sorted(map(tuple, np.sort(np.reshape(p, (4, 2)))))) for p in permutations(range(8))}
    best = max(every, key=lambda batches: mean_loss(batches, z1, z2, 1.0))
    assert mean_loss(best, z1, z2, 1.0) == pytest.approx(data["all_partition_losses_max_mean_min"][0])
    found = spectral_partition(z1, z2, batch_size=2, temperature=1.0)
    assert sorted(map(tuple, np.sort(found).tolist())) == sorted(best)


@pytest.mark.parametrize("name", PART)
@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_chosen_batches_have_a_higher_loss_than_random_ones(name: str, temperature: float) -> None:
    z1, z2 = clustered(300, 0.5)
    sampler = zoo.get_batch_sampler(name, num_samples=300, batch_size=10, k=10, temperature=temperature)
    random = mean_loss(list(sampler), z1, z2, temperature)
    sampler.refresh(z1, z2, torch.arange(300))
    assert mean_loss(list(sampler), z1, z2, temperature) > random + 0.2


@pytest.mark.parametrize("rows", [torch.ones(24, 3), torch.zeros(24, 3), torch.eye(3).repeat(8, 1)])
@pytest.mark.parametrize("temperature", [1e-3, 0.1, 100.0])
def test_partition_of_degenerate_features(rows: Tensor, temperature: float) -> None:
    for name in PART:
        sampler = zoo.get_batch_sampler(name, num_samples=24, batch_size=4, k=3, temperature=temperature)
        sampler.refresh(rows, rows, torch.arange(24))
        assert sorted(chain.from_iterable(sampler)) == list(range(24))


@pytest.mark.parametrize("n", [480, 481])
def test_partition_of_equal_features_in_a_large_block(n: int) -> None:
    sampler = zoo.get_batch_sampler("spectral", num_samples=n, batch_size=48, drop_last=False)
    sampler.refresh(torch.ones(n, 3), torch.ones(n, 3), torch.arange(n))
    assert sorted(chain.from_iterable(sampler)) == list(range(n))


def test_principal_axis_is_that_of_the_covariance() -> None:
    rows = torch.randn(500, 6, dtype=torch.float64) * torch.tensor([1, 1, 3, 1, 1, 1]) + 5
    wanted = np.linalg.eigh(np.cov(rows.numpy().T))[1][:, -1]
    found = principal_axis(rows, np.random.default_rng(0)).numpy()
    assert abs(found @ wanted) > 1 - 1e-6


def test_blocks_are_whole_batches_of_neighbours() -> None:
    """Points on a line are cut into intervals."""
    place = torch.randperm(330).double()
    blocks = inertial_blocks(torch.stack([place, torch.zeros(330)], 1), 10, 5, np.random.default_rng(0))
    assert sorted(np.concatenate(blocks)) == list(range(330))
    for block in blocks:
        assert len(block) % 10 == 0
        assert 0 < len(block) <= 50
        inside = np.sort(place.numpy()[block])
        assert inside[-1] - inside[0] == len(block) - 1


def test_bisection_finds_rivals_where_random_blocks_lose_them() -> None:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(200, 8, generator=generator).repeat_interleave(8, 0)
    z1, z2 = (x + 0.2 * torch.randn(1600, 8, generator=generator) for _ in range(2))
    losses = {}
    for name in PART:
        sampler = zoo.get_batch_sampler(name, num_samples=1600, batch_size=8, k=10)
        sampler.refresh(z1, z2, torch.arange(1600))
        losses[name] = mean_loss(list(sampler), z1, z2, 0.1)
    assert losses["bisection"] > losses["spectral"] + 0.5


def test_blocks_are_parted_in_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads of two libraries that wait for one another took thirty times as long."""
    from contrastive_zoo.batch_samplers import spectral

    threads = []

    def embedding(*args: Any) -> Any:
        threads.append(torch.get_num_threads())
        return original(*args)

    original = spectral._embedding
    monkeypatch.setattr(spectral, "_embedding", embedding)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        sampler = zoo.get_batch_sampler("spectral", num_samples=22, batch_size=4)
        sampler.refresh(*clustered(22, 0.5), torch.arange(22))
        assert (threads, torch.get_num_threads()) == ([1], 2)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("name", PART)
def test_mistakes_about_blocks(name: str) -> None:
    for params, message in (
        ({"k": 6}, "k must be at most the number of whole batches = 5, got 6"),
        ({"k": 0}, "k must be at least 1, got 0"),
        ({"temperature": -1}, "temperature must be"),
    ):
        with pytest.raises(ValueError, match=message):
            zoo.get_batch_sampler(name, num_samples=22, batch_size=4, **params)


def test_missing_scikit_learn_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "sklearn.cluster", None)
    with pytest.raises(ImportError, match=r"pip install 'contrastive-zoo\[selection\]'"):
        spectral_partition(*clustered(8, 0.1), batch_size=4)


# Features, epochs and state


@pytest.mark.parametrize("name", CHOOSE)
def test_first_epoch_can_do_without_features_the_second_cannot(name: str) -> None:
    sampler = zoo.get_batch_sampler(name, num_samples=22, batch_size=4)
    assert sampler.needs_features
    assert len(list(sampler)) == len(sampler)
    with pytest.raises(RuntimeError, match=r"has had no features before epoch 1; .*refresh\(z1, z2, index\)"):
        next(iter(sampler))


@pytest.mark.parametrize("name", CHOOSE)
def test_selection_holds_until_the_next_and_is_visited_in_another_order(name: str) -> None:
    z1, z2 = clustered(40, 0.5)
    sampler = zoo.get_batch_sampler(name, num_samples=40, batch_size=4)
    sampler.refresh(z1, z2, torch.arange(40))
    first, second = list(sampler), list(sampler)
    assert first != second
    assert sorted(first) == sorted(second)
    sampler.refresh(z1, z2, torch.arange(40))
    assert sorted(sampler) != sorted(first)


@pytest.mark.parametrize("name", CHOOSE)
def test_order_of_the_features_does_not_matter(name: str) -> None:
    z1, z2 = clustered(22, 0.5)
    index = torch.randperm(22)
    twice = torch.cat([index, index[:5]])
    epochs = []
    for given_ in (torch.arange(22), index, twice):
        sampler = zoo.get_batch_sampler(name, num_samples=22, batch_size=4)
        sampler.refresh(z1[given_], z2[given_], given_)
        epochs.append(list(sampler))
    assert epochs[0] == epochs[1] == epochs[2]


@pytest.mark.parametrize("name", CHOOSE)
def test_features_that_come_within_an_epoch_are_for_the_next(name: str) -> None:
    views, others = clustered(40, 0.5), clustered(40, 0.5, seed=1)
    index = torch.arange(40)

    def run(interrupt_at: int | None) -> list[list[int]]:
        sampler = zoo.get_batch_sampler(name, num_samples=40, batch_size=4)
        sampler.refresh(*views, index)
        seen: list[list[int]] = []
        for number, batch in enumerate(sampler):
            seen.append(batch)
            if number == 1:
                sampler.refresh(*others, index)
            if number == interrupt_at:
                state, sampler = sampler.state_dict(), zoo.get_batch_sampler(name, num_samples=40, batch_size=4)
                sampler.load_state_dict(state)
                seen += list(sampler)
                break
        return seen + list(sampler)

    assert run(None) == run(1) == run(3)


@pytest.mark.parametrize("name", CHOOSE)
@pytest.mark.parametrize(
    ("error", "message", "change"),
    [
        (ValueError, "z1 and z2 must have the same shape", {"z2": torch.ones(21, 3)}),
        (ValueError, r"index must have shape \(22,\)", {"index": torch.arange(21)}),
        (
            ValueError,
            "z1 holds NaN or infinite values in 1 of 22 samples, first in sample 7",
            {"z1": torch.ones(22, 3).index_fill(0, torch.tensor(7), math.nan)},
        ),
        (ValueError, "z2 holds NaN or infinite values", {"z2": torch.full((22, 3), math.inf)}),
        (IndexError, r"index holds 22, wanted positions in \[0, 22\)", {"index": torch.arange(1, 23)}),
        (IndexError, r"index holds -1, wanted positions in \[0, 22\)", {"index": torch.arange(-1, 21)}),
        (
            ValueError,
            "index lacks 1 of 22 samples, first 1. Encode the whole dataset",
            {"index": torch.tensor([0, 0, *range(2, 22)])},
        ),
        (TypeError, "index must hold integers", {"index": torch.arange(22.0)}),
        (TypeError, "z1 must be a tensor", {"z1": [[1.0]]}),
    ],
)
def test_mistakes_about_features(name: str, error: type[Exception], message: str, change: dict[str, Any]) -> None:
    sampler = zoo.get_batch_sampler(name, num_samples=22, batch_size=4)
    given_ = {"z1": torch.ones(22, 3), "z2": torch.ones(22, 3), "index": torch.arange(22), **change}
    with pytest.raises(error, match=message):
        sampler.refresh(**given_)


def test_features_that_want_a_gradient_are_taken() -> None:
    sampler = zoo.get_batch_sampler("spectral", num_samples=22, batch_size=4)
    z = torch.randn(22, 3, dtype=torch.bfloat16, requires_grad=True)
    sampler.refresh(z, z * 2, torch.arange(22))
    assert len(list(sampler)) == 5
