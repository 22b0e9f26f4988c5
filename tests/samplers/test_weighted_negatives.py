"""What every sampler returns: weights, surrogate and value against the list of negatives; laws, enumerated and counted."""

import importlib
import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import oracle_stateful
import pytest
import torch
from accelerator import DEVICE, accelerator
from cases import Views, views
from tolerances import assert_close
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import contrastive_zoo as zoo
from contrastive_zoo.samplers import Negatives, NegativeSampler, WeightedNegatives, des_raj_weights, memory
from contrastive_zoo.samplers.mcmc import column_order
from contrastive_zoo.samplers.randomness import step_seed

NUM_SAMPLES, SCALE = 12, torch.tensor(4.0, dtype=torch.float64)
SAMPLERS = ["gumbel", "mcmc", "queue", "topk", "uniform"]
every_sampler = pytest.mark.parametrize("name", SAMPLERS)
GOLDEN = Path(__file__).parents[1] / "golden" / "emc2" / "gumbel_cache.npz"


class Recorder(NegativeSampler):
    """Hands on what another sampler returns, and remembers it with the batch."""

    def __init__(self, sampler: NegativeSampler) -> None:
        super().__init__()
        self.sampler = sampler

    def sample(self, batch: zoo.Batch, scale: Tensor) -> Negatives:
        self.batch, self.found = batch, self.sampler.sample(batch, scale)
        return self.found


def make(name: str, *, seed: int = 0, **params: Any) -> Recorder:
    return Recorder(zoo.get_sampler(name, num_samples=NUM_SAMPLES, seed=seed, **params).double())


def step(recorder: Recorder, batch: Views) -> Negatives:
    loss_fn = zoo.get_loss("sampled", num_samples=NUM_SAMPLES, sampler=recorder, temperature=float(1 / SCALE))
    batch.call(loss_fn)
    return recorder.found


def small(seed: int, size: int = 5) -> Views:
    return views(size, 3, seed=seed, num_samples=NUM_SAMPLES)


def known_rows(batches: list[Views]) -> dict[int, Tensor]:
    """Last features of each row of the dataset, 2 * sample + view."""
    rows: dict[int, Tensor] = {}
    for batch in batches:
        for place, sample in enumerate(batch.index.tolist()):
            for view in range(2):
                rows[2 * sample + view] = torch.nn.functional.normalize(batch[view][place].detach(), dim=0)
    return rows


def test_every_own_sampler_is_here() -> None:
    own = [n for n in zoo.list_samplers() if zoo.describe_sampler(n).build.__module__.startswith("contrastive_zoo.")]
    assert own == SAMPLERS
    for name in SAMPLERS:
        assert zoo.get_sampler(name, num_samples=3).law


def features_of(name: str, recorder: Recorder, known: dict[int, Tensor], held: Tensor, listed: WeightedNegatives) -> Tensor:
    """(N, K, D) features behind each entry of a list: rows of the batch, or what the sampler remembers."""
    x, width = recorder.batch.x, recorder.batch.x.shape[1]
    if name == "queue":  # which may hold a row several times: entries are the batch, then the slots
        return torch.cat([x, held]).expand(len(x), -1, -1)
    samples = recorder.batch.index.tolist()
    place = {2 * sample + view: 2 * p + view for p, sample in enumerate(samples) for view in range(2)}
    found = [
        [x[place[row]] if live else known.get(row, torch.zeros(width).double()) for row, live in zip(*entries, strict=True)]
        for entries in zip(listed.rows.tolist(), (listed.in_batch & (listed.rows >= 0)).tolist(), strict=True)
    ]
    return torch.stack([torch.stack(row) for row in found])


@every_sampler
def test_the_list_accounts_for_the_surrogate(name: str) -> None:
    """Weights add up to one; nobody is a negative of itself; the gradient is that of the weighted similarities."""
    batches = [small(seed) for seed in range(3)]
    recorder = make(name)
    for number, batch in enumerate(batches):
        held = recorder.sampler.queue.embeddings.rows.clone() if name == "queue" and number else torch.zeros(4096, 3).double()
        # A chain scores its carried state by where it was last seen before this batch; a table takes the batch in first.
        known = known_rows(batches[: number + (name != "mcmc")])
        found = step(recorder, batch)
        listed, x = found.listing(), recorder.batch.x
        own = batch.index.repeat_interleave(2)
        assert_close(listed.weights.sum(1), torch.ones(10, dtype=torch.float64), "sum of weights")
        assert (listed.weights[listed.rows < 0] == 0).all()
        assert not (listed.rows // 2 == own[:, None])[listed.weights > 0].any()
        features = features_of(name, recorder, known, held, listed)
        surrogate = SCALE * torch.einsum("ak,ad,akd->a", listed.weights, x, features)
        wanted, actual = (torch.autograd.grad(value.sum(), x, retain_graph=True)[0] for value in (surrogate, found.surrogate))
        assert_close(actual, wanted, f"gradient of step {number}", logit=40)


@pytest.mark.parametrize("name", ["gumbel", "topk"])
@pytest.mark.parametrize("tile", [2, 7, 1024])
def test_value_and_weights_over_the_table(name: str, tile: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "TILE", tile)
    batches, recorder = [small(0), small(1)], make(name, num_negatives=3)
    for batch in batches:
        found = step(recorder, batch)
    rows, listed = known_rows(batches), found.listing()
    for a, sample in enumerate(batches[-1].index.repeat_interleave(2).tolist()):
        logits = {row: float(SCALE * recorder.batch.x[a].detach() @ rows[row]) for row in rows if row // 2 != sample}
        hardest = sorted(logits, key=logits.get, reverse=True)[:3]
        counted = logits if name == "gumbel" else {row: logits[row] for row in hardest}
        total = sum(math.exp(logit) for logit in counted.values())
        assert float(found.log_mean[a]) == pytest.approx(math.log(total / len(logits)), rel=1e-12)
        if name == "topk":
            assert listed.rows[a].tolist() == hardest
            shares = [math.exp(logits[row]) / total for row in hardest]
            assert listed.weights[a].tolist() == pytest.approx(shares, rel=1e-12)
        else:
            assert len(set(listed.rows[a].tolist())) == 3
            log_p = torch.tensor([[logits[row] - math.log(total) for row in listed.rows[a].tolist()]], dtype=torch.float64)
            assert_close(listed.weights[a], des_raj_weights(log_p)[0], "weights", logit=40)


@pytest.mark.parametrize("name", ["gumbel", "topk", "uniform"])
def test_more_negatives_than_there_are(name: str) -> None:
    """Two samples: each anchor has two rows to choose from."""
    recorder, batch = make(name, num_negatives=9), small(0, size=2)
    found = step(recorder, batch)
    listed, x = found.listing(), recorder.batch.x.detach()
    for a in range(4):
        others = [2, 3] if a < 2 else [0, 1]
        rows = [int(2 * batch.index[other // 2] + other % 2) for other in others]
        logits = SCALE * x[others] @ x[a]
        chosen = listed.rows[a][listed.rows[a] >= 0]
        log_p = logits.log_softmax(0)[[rows.index(row) for row in chosen.tolist()]]
        if name == "uniform":
            assert len(chosen) == 9
            assert_close(listed.weights[a], log_p.softmax(0), "weights")
            continue
        assert sorted(chosen.tolist()) == sorted(rows)
        padded = torch.cat([log_p, torch.full((7,), -torch.inf, dtype=torch.float64)])
        expected = padded.exp() if name == "topk" else des_raj_weights(padded[None])[0]
        assert_close(listed.weights[a], expected, "weights")
        assert_close(found.log_mean[a], logits.logsumexp(0) - math.log(2), "log mean")


@pytest.mark.parametrize("asked", [1, 2, 3, 4, 5, 8])
def test_des_raj_is_unbiased_by_enumeration(asked: int) -> None:
    """Over all ordered draws without replacement, the expected weight of each row is its probability."""
    p = torch.tensor([0.45, 0.25, 0.15, 0.1, 0.05], dtype=torch.float64)
    expected = torch.zeros(5, dtype=torch.float64)
    total, draws = 0.0, min(asked, 5)
    for order in itertools.permutations(range(5), draws):
        chance, left = 1.0, 1.0
        for row in order:
            chance, left = chance * float(p[row]) / left, left - float(p[row])
        log_p = torch.cat([p[list(order)].log(), torch.full((asked - draws,), -torch.inf, dtype=torch.float64)])
        weights = des_raj_weights(log_p[None])[0]
        assert float(weights.sum()) == pytest.approx(1)
        assert not weights[draws:].any()
        expected[list(order)] += chance * weights[:draws]
        total += chance
    assert total == pytest.approx(1)
    assert_close(expected, p, "expected weights")


def test_des_raj_weights_are_the_terms_averaged() -> None:
    p = torch.tensor([0.3, 0.2, 0.4], dtype=torch.float64)
    values = torch.tensor([2.0, -1.0, 5.0], dtype=torch.float64)
    terms = [sum(p[m] * values[m] for m in range(j)) + (1 - p[:j].sum()) * values[j] for j in range(3)]
    assert_close(des_raj_weights(p.log()[None])[0] @ values, torch.stack(terms).mean(), "mean of terms")


def chi_square(counts: Tensor, probabilities: Tensor) -> float:
    """Statistic over its degrees of freedom's mean in standard deviations: below 4.5 for draws from the law."""
    expected = counts.sum(-1, keepdim=True) * probabilities
    counted = expected > 0
    assert not counts[~counted].any()
    statistic = ((counts - expected)[counted].square() / expected[counted]).sum()
    freedom = int(counted.sum()) - counts[..., 0].numel()
    return float((statistic - freedom) / math.sqrt(2 * freedom))


def authors() -> tuple[dict[str, Tensor], float]:
    with np.load(GOLDEN) as file:
        arrays = {key: torch.as_tensor(file[key]) for key in file.files if key != "meta"}
        return arrays, float(json.loads(str(file["meta"]))["params"]["beta"])


def test_first_draws_follow_the_softmax_that_the_authors_draw_from() -> None:
    arrays, beta = authors()
    table, queries, own = arrays["cache_table"].double(), arrays["queries"].double(), arrays["query_index"].long()
    owners, scale, repeats = torch.arange(12), torch.tensor(beta, dtype=torch.float64), 3000
    counts = torch.zeros(4, 12, dtype=torch.float64)
    for number in range(repeats):
        rows, scores, *_ = memory.memory_largest(queries, scale, own, table, owners, 3, seed(number), 0, 0)
        counts[torch.arange(4), rows[:, 0]] += 1
        assert not (rows == own[:, None]).any()
    softmax = (scale * queries @ table.T).masked_fill(owners == own[:, None], -torch.inf).softmax(1)
    assert_close(softmax, arrays["softmax_probs"], "the authors' softmax", dtype=torch.float32)
    assert chi_square(counts, softmax) < 4.5
    assert_close(scores, (scale * queries @ table.T).gather(1, rows), "scores of the draws")


def seed(step: int = 0) -> Tensor:
    return step_seed(0, torch.tensor(step))


def test_draws_without_replacement_follow_their_law() -> None:
    """Frequencies of ordered pairs against p_m p_n / (1 - p_m)."""
    x, keys = torch.eye(3, dtype=torch.float64)[:1], torch.eye(3, dtype=torch.float64)[[0, 1, 0, 2]] * 0.8
    own, owners = torch.tensor([9]), torch.tensor([0, 1, 2, -1])
    counts = torch.zeros(4, 4, dtype=torch.float64)
    for number in range(4000):
        rows, *_ = memory.memory_largest(x, SCALE / 3, own, keys, owners, 2, seed(number), 0, 0)
        counts[rows[0, 0], rows[0, 1]] += 1
    p = (SCALE / 3 * keys @ x[0]).masked_fill(owners < 0, -torch.inf).softmax(0)
    law = (p[:, None] * p[None, :] / (1 - p[:, None])).fill_diagonal_(0)
    assert chi_square(counts.view(1, -1), law.view(1, -1)) < 4.5


def test_uniform_draws_are_uniform() -> None:
    """Over the rows that somebody owns, but for the anchor's own."""
    x, keys = torch.randn(3, 2, dtype=torch.float64), torch.randn(10, 2, dtype=torch.float64)
    owners = torch.tensor([0, 0, -1, -1, 2, 2, 3, 3, 4, 4])
    own = torch.tensor([0, 3, 4])
    rows, scores = memory.memory_uniform(x, SCALE, own, keys, owners, 20000, seed(), 0)
    counts = torch.stack([torch.bincount(r, minlength=10) for r in rows]).double()
    allowed = ((owners >= 0) & (owners != own[:, None])).double()
    assert chi_square(counts, allowed / allowed.sum(1, keepdim=True)) < 4.5
    assert_close(scores, SCALE * torch.einsum("ad,akd->ak", x, keys[rows]), "scores")


def test_nothing_to_draw_from() -> None:
    x, keys, own, owners = torch.ones(1, 2), torch.ones(4, 2), torch.tensor([1]), torch.tensor([-1, -1, 1, 1])
    rows, scores = memory.memory_uniform(x, SCALE, own, keys, owners, 3, seed(), 0)
    assert rows.tolist() == [[-1, -1, -1]]
    assert (scores == -torch.inf).all()
    rows, scores, log_sum, _ = memory.memory_largest(x, SCALE, own, keys, owners, 3, seed(), 0, 0)
    assert rows.tolist() == [[-1, -1, -1]]
    assert (scores == -torch.inf).all()
    assert log_sum.tolist() == [-torch.inf]
    log_sum, mean = memory.memory_softmax(x, SCALE, own, keys, owners)
    assert log_sum.tolist() == [-torch.inf]
    assert not mean.any()


@pytest.mark.parametrize("tile", [1, 3, 1024])
def test_softmax_over_a_memory(tile: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "TILE", tile)
    x, keys = torch.randn(5, 3, dtype=torch.float64), torch.randn(8, 3, dtype=torch.float64)
    own, owners = torch.arange(5), torch.tensor([0, 1, -1, 3, 3, 7, 8, 0])
    logits = (SCALE * x @ keys.T).masked_fill((owners == own[:, None]) | (owners < 0), -torch.inf)
    log_sum, mean = memory.memory_softmax(x, SCALE, own, keys, owners)
    assert_close(log_sum, logits.logsumexp(1), "log-sum-exp", logit=40)
    assert_close(mean, logits.softmax(1) @ keys, "mean", logit=40)


class LargestTensor(TorchDispatchMode):
    """Remembers the number of entries of the largest tensor that any operation returned."""

    entries = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(value, Tensor):
                self.entries = max(self.entries, value.numel())
        return result


@pytest.mark.parametrize("name", [*zoo.list_samplers(), "negative_cache"])
def test_no_matrix_of_anchors_and_memory(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On CPUs, and with the tiles of accelerators; nor does a step of chains hold the matrix of the batch."""
    for module, constant, value in (
        (memory, "TILE", 64),
        (memory, "TILE_ACCELERATOR", 256),
        (memory, "GATHER_NUMEL", 2**12),
        # The package has a function of the name of this module.
        (importlib.import_module("contrastive_zoo.samplers.metropolis_hastings"), "BLOCK_NUMEL", (2**13, 2**13)),
    ):
        monkeypatch.setattr(module, constant, value)
    size, batch_size = 4000, 150
    settings = {"num_negatives": 2 * size if name == "queue" else 4} if name != "mcmc" else {}
    settings |= {} if name == "negative_cache" else {"sampler": name}
    with accelerator():
        for device in (torch.device("cpu"), DEVICE):
            loss_fn = zoo.get_loss(name if name == "negative_cache" else "sampled", num_samples=size, **settings).to(device)
            z = torch.randn(2, batch_size, 3).to(device).requires_grad_()
            with LargestTensor() as largest:
                loss_fn(z[0], z[1], index=torch.arange(batch_size)).backward()
            table, matrix = 2 * size * 3, (2 * batch_size) ** 2 if name == "mcmc" else 2 * batch_size * 2 * size
            assert table <= largest.entries < matrix / (2 if name == "mcmc" else 10)


def test_orders_of_columns_are_all_alike() -> None:
    counts = dict.fromkeys(itertools.permutations(range(4)), 0)
    for number in range(4800):
        counts[tuple(column_order(4, seed(number)).tolist())] += 1
    frequencies = torch.tensor([list(counts.values())], dtype=torch.float64)
    assert chi_square(frequencies, torch.full((1, 24), 1 / 24, dtype=torch.float64)) < 4.5


def stationary_law(log_scores: list[float], orders: list[tuple[int, ...]]) -> Tensor:
    """Law that a chain tends to when offered all columns, in one of the orders at random, again and again."""
    size = len(log_scores)
    matrix = torch.zeros(size, size, dtype=torch.float64)
    for columns in orders:
        one = torch.eye(size, dtype=torch.float64)
        for j in columns:
            accept = torch.tensor([min(1.0, math.exp(log_scores[j] - score)) for score in log_scores], dtype=torch.float64)
            moved = torch.diag(1 - accept)
            moved[:, j] += accept
            one = one @ moved
        matrix += one / len(orders)
    return torch.linalg.matrix_power(matrix, 400)[0]


def test_an_order_drawn_anew_brings_chains_nearer_to_softmax() -> None:
    """Worst case: every batch is the whole dataset. Exact, from transition matrices."""
    log_scores = [2.0, -1.0, 0.5, 1.5, -0.5]
    softmax = torch.tensor(log_scores, dtype=torch.float64).softmax(0)
    fixed = stationary_law(log_scores, [tuple(range(5))])
    drawn = stationary_law(log_scores, list(itertools.permutations(range(5))))
    far, near = (float((law - softmax).abs().sum() / 2) for law in (fixed, drawn))
    assert near < far / 2
    single = torch.zeros(5, 5, dtype=torch.float64)
    for j in range(5):
        accept = torch.tensor([min(1.0, math.exp(log_scores[j] - score)) for score in log_scores], dtype=torch.float64)
        single += torch.diag(1 - accept) / 5
        single[:, j] += accept / 5
    assert_close(softmax @ single, softmax, "one column at random leaves softmax invariant")


def test_shares_of_the_sampler_are_those_of_its_chains() -> None:
    """Mean over seeds of the listed weights of fresh chains, against exact propagation over all orders."""
    batch, seeds = small(0, size=3), 600
    found = torch.stack([step_of := step(make("mcmc", seed=seed), batch).listing().weights for seed in range(seeds)])
    assert step_of.shape == (6, 7)
    x = torch.nn.functional.normalize(torch.stack(batch[:2], 1).detach().flatten(0, 1), dim=1)
    for a in range(6):
        others = [b for b in range(6) if b // 2 != a // 2]
        log_scores = (SCALE * x[others] @ x[a]).tolist()
        expected = torch.zeros(7, dtype=torch.float64)
        orders = list(itertools.permutations(range(4)))
        for columns in orders:
            law = oracle_stateful.chain_law([log_scores[j] for j in columns], burn_in=2)
            expected[[others[j] for j in columns]] += torch.tensor(law, dtype=torch.float64) / len(orders)
        error = found[:, a].std(0) / math.sqrt(seeds)
        assert ((found[:, a].mean(0) - expected).abs() <= 4.5 * error + 1e-12).all()
