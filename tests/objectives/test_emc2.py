"""EMC2 against a slow walk of every chain where draws do not matter, and against exact laws where they do."""

import itertools
import math

import oracle
import oracle_stateful
import pytest
import torch
from cases import Views, gradients, same_state, snapshot, views
from tolerances import assert_close
from torch import Tensor

import contrastive_zoo as zoo
from contrastive_zoo.samplers import walk_fused
from contrastive_zoo.samplers.mcmc import column_order
from contrastive_zoo.samplers.randomness import step_seed

NUM_SAMPLES = 15
VARIANTS = [{"out_of_batch": kind, "burn_in": burn_in} for kind in ("cache", "skip") for burn_in in (0.0, 0.3, 0.9)]
every_variant = pytest.mark.parametrize("params", VARIANTS, ids=str)


@pytest.fixture(params=["auto", "fused"])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    """Of the features; kernels take float32 only."""
    return torch.float64 if request.param == "auto" else torch.float32


def walker(dtype: torch.dtype, request: pytest.FixtureRequest, **params: object) -> zoo.Loss:
    """A loss in a precision, whose chains walk in the kernels if that is float32."""
    if dtype == torch.float32:
        request.getfixturevalue("kernels")
        params["backend"] = "fused"
    return zoo.get_loss("emc2", num_samples=NUM_SAMPLES, **params).to(dtype)


def rounded(batch: Views, dtype: torch.dtype) -> Views:
    return batch._replace(**{z: getattr(batch, z).detach().to(dtype).requires_grad_() for z in ("z1", "z2")})


def step_batch(step: int) -> Views:
    """Five of fifteen samples; every other step one of them twice."""
    batch = views(5, 4, seed=20 + step, num_samples=NUM_SAMPLES)
    if step % 2:
        batch.index[3] = batch.index[0]
    return batch


def order(size: int, step: int, seed: int = 0) -> list[int]:
    """The order in which rows 2 i + view of a batch are offered."""
    return column_order(2 * size, step_seed(seed, torch.tensor(step))).tolist()


def chain_table(reference: oracle_stateful.EMC2) -> Tensor:
    table = torch.full((NUM_SAMPLES, 2), -1)
    for (sample, view), (state, state_view) in reference.chains.items():
        table[sample, view] = 2 * state + state_view
    return table


@every_variant
def test_cold_chains_equal_a_slow_walk(params: dict[str, object], dtype: torch.dtype, request: pytest.FixtureRequest) -> None:
    """At a tiny temperature a chain moves to every better column and to no worse one, whatever is drawn."""
    temperature = 1e-5
    cached = params["out_of_batch"] == "cache"
    reference = oracle_stateful.EMC2(
        temperature=temperature, burn_in=params["burn_in"], accepts=lambda column, state: column >= state - 1, cached=cached
    )
    loss_fn = walker(dtype, request, temperature=temperature, **params)
    for step in range(6):
        batch = step_batch(step)
        _, surrogate = reference(*batch[:2], batch.index.tolist(), order(5, step))
        given = rounded(batch, dtype)
        loss = given.call(loss_fn)
        for found, wanted in zip(gradients(loss, given), torch.autograd.grad(surrogate.mean(), batch[:2]), strict=True):
            assert_close(found.double(), wanted, f"gradient of step {step}", dtype=dtype, logit=1 / temperature)
        assert torch.equal(loss_fn.table()["chain"], chain_table(reference))


def orthonormal_batch(index: Tensor) -> Views:
    """Views of a sample equal, samples orthogonal: all negatives are alike, so every column is accepted."""
    z1, z2 = (torch.eye(NUM_SAMPLES, dtype=torch.float64)[index].requires_grad_() for _ in range(2))
    return Views(z1, z2, index, index)


@every_variant
def test_chains_between_equals_accept_everything(
    params: dict[str, object], dtype: torch.dtype, request: pytest.FixtureRequest
) -> None:
    reference = oracle_stateful.EMC2(
        temperature=0.2, burn_in=params["burn_in"], accepts=lambda column, state: True, cached=params["out_of_batch"] == "cache"
    )
    loss_fn = walker(dtype, request, temperature=0.2, **params)
    for step, index in enumerate(([3, 1, 4, 0], [1, 5, 9, 2], [5, 3, 5, 8], [0, 9, 4, 1])):
        batch = orthonormal_batch(torch.tensor(index))
        values, surrogate = reference(*batch[:2], index, order(4, step))
        given = rounded(batch, dtype)
        loss = given.call(loss_fn)
        assert_close(loss.double(), values.mean(), "loss", dtype=dtype)
        for found, wanted in zip(gradients(loss, given), torch.autograd.grad(surrogate.mean(), batch[:2]), strict=True):
            assert_close(found.double(), wanted, "gradient", dtype=dtype)
        table = loss_fn.table()
        assert torch.equal(table["chain"], chain_table(reference))
        expected = [math.exp(reference.log_u.get(i, -math.inf)) for i in range(NUM_SAMPLES)]
        assert_close(table["u"], torch.tensor(expected, dtype=torch.float64), "running means", dtype=dtype)
        assert loss_fn.diagnostics["acceptance_rate"] == 1


def test_value_is_the_logarithm_of_a_running_mean_whatever_is_drawn() -> None:
    reference = oracle_stateful.EMC2(temperature=0.3, burn_in=0.5, accepts=lambda column, state: True, cached=True)
    loss_fn = zoo.get_loss("emc2", num_samples=NUM_SAMPLES, temperature=0.3, reduction="none").double()
    for step in range(4):
        batch = step_batch(step)
        values, _ = reference(*batch[:2], batch.index.tolist(), order(5, step))
        assert_close(batch.call(loss_fn), values.mean(1), f"loss of step {step}")


@every_variant
def test_weights_per_sample_are_those_of_the_walk_behind_the_mean(
    params: dict[str, object], dtype: torch.dtype, request: pytest.FixtureRequest
) -> None:
    """The general backward pass, which walks again, agrees with the stored gradient of the mean."""
    mean, none = (walker(dtype, request, temperature=0.3, reduction=reduction, **params) for reduction in ("mean", "none"))
    for step in range(3):
        batch = rounded(step_batch(step), dtype)
        of_mean = gradients(batch.call(mean), batch)
        upstream = torch.full((5,), 0.2, dtype=dtype)
        for found, wanted in zip(gradients(batch.call(none), batch, upstream), of_mean, strict=True):
            assert_close(found, wanted, f"gradient of step {step}", magnitude=1.0)


def test_a_carried_state_pulls_on_the_anchor_by_its_cached_embedding() -> None:
    """Sample 0 meets its near neighbour, then only a stranger: the state that it carries is kept throughout."""
    temperature, basis = 1e-4, torch.eye(4, dtype=torch.float64)
    near = torch.nn.functional.normalize(basis[0] + 0.5 * basis[1], dim=0)
    loss_fn = zoo.get_loss("emc2", num_samples=3, temperature=temperature, burn_in=0.0).double()
    first = torch.stack([basis[0], near])
    loss_fn(first, first, index=torch.tensor([0, 1]))
    at_near, at_first = (max(rows, key=order(2, step=0).index) for rows in ((2, 3), (0, 1)))
    assert loss_fn.table()["chain"].tolist() == [[at_near] * 2, [at_first] * 2, [-1, -1]]
    z1, z2 = (torch.stack([basis[0], basis[3]]).requires_grad_() for _ in range(2))
    found = torch.autograd.grad(loss_fn(z1, z2, index=torch.tensor([0, 2])), (z1, z2))
    last = max((0, 1), key=order(2, step=1).index)
    assert loss_fn.table()["chain"].tolist() == [[at_near] * 2, [at_first] * 2, [last] * 2]
    assert loss_fn.diagnostics["carried_share"] == 0.5
    a, b = (torch.nn.functional.normalize(z, dim=1) for z in (z1, z2))
    carried = (a[0] + b[0]) @ near
    in_batch = (a[1] + b[1]) @ (a[0] + b[0]) / 2
    surrogate = (carried + in_batch - 2 * (a * b).sum()) / temperature / 4
    for gradient, wanted in zip(found, torch.autograd.grad(surrogate, (z1, z2)), strict=True):
        assert_close(gradient, wanted, "gradient", logit=1 / temperature)


def test_eval_is_the_logarithm_of_the_mean_over_the_batch() -> None:
    batch = views(9, 5)
    loss = zoo.get_loss("emc2", num_samples=40, temperature=0.3).eval()(*batch[:2])
    expected = zoo.get_loss("sogclr", num_samples=40, temperature=0.3).eval()(*batch[:2])
    assert_close(loss, expected, "loss")
    for found, wanted in zip(gradients(loss, batch), gradients(expected, batch), strict=True):
        assert_close(found, wanted, "gradient")


def shares_in_random_order(log_scores: list[float], burn_in: int) -> Tensor:
    """Expected share of each column among the kept states of a fresh chain, all orders of columns being alike."""
    shares = torch.zeros(len(log_scores), dtype=torch.float64)
    orders = list(itertools.permutations(range(len(log_scores))))
    for columns in orders:
        law = oracle_stateful.chain_law([log_scores[j] for j in columns], burn_in)
        shares[list(columns)] += torch.tensor(law, dtype=torch.float64) / len(orders)
    return shares


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_mean_gradient_over_seeds_is_the_exact_expectation(reduction: str) -> None:
    """Fresh chains on one batch: the expected share of each column follows from the transition matrices, without draws."""
    temperature, burn_in, seeds = 0.4, 0.5, 800
    batch = views(3, 3, seed=1, num_samples=NUM_SAMPLES)
    rows = [oracle.unit(z) for z in batch[:2]]
    surrogate = 0.0
    for i in range(3):
        for view in range(2):
            similarities = torch.stack([rows[view][i] @ rows[w][j] for j in range(3) for w in range(2) if j != i])
            shares = shares_in_random_order((similarities / temperature).tolist(), int(burn_in * len(similarities)))
            surrogate = surrogate + shares @ similarities - rows[0][i] @ rows[1][i]
    expected = torch.cat(torch.autograd.grad(surrogate / temperature / 6, batch[:2]))
    samples = []
    for seed in range(seeds):
        params = {"temperature": temperature, "burn_in": burn_in, "seed": seed, "reduction": reduction}
        loss_fn = zoo.get_loss("emc2", num_samples=NUM_SAMPLES, **params).double()
        samples.append(torch.cat(gradients(batch.call(loss_fn).mean(), batch)))
    drawn = torch.stack(samples)
    error = drawn.std(0) / math.sqrt(seeds)
    assert ((drawn.mean(0) - expected).abs() <= 4.5 * error + 1e-12).all()


def test_chains_find_the_global_softmax_from_small_batches() -> None:
    """Batches of 6 out of 60 fixed samples: the states of all chains weigh as the softmax over the whole dataset does."""
    size, batch_size, temperature, steps = 60, 6, 0.25, 800
    draws = torch.Generator().manual_seed(0)
    z = torch.nn.functional.normalize(torch.randn(2, size, 3, generator=draws, dtype=torch.float64), dim=2)
    loss_fn = zoo.get_loss("emc2", num_samples=size, temperature=temperature)
    flat = z.transpose(0, 1).reshape(2 * size, -1)
    similarity = flat @ flat.T
    own = torch.arange(2 * size) // 2
    excluded = own[:, None] == own[None, :]
    exact = ((similarity / temperature).masked_fill(excluded, -torch.inf).softmax(1) * similarity).sum(1).mean()
    uniform = similarity[~excluded].mean()
    found = []
    for step in range(steps):
        index = torch.randperm(size, generator=draws)[:batch_size]
        with torch.no_grad():
            loss_fn(z[0, index], z[1, index], index=index)
        if step >= 100 and step % 10 == 0:
            chain = loss_fn.table()["chain"].flatten()
            found.append(similarity[torch.arange(2 * size), chain][chain >= 0].mean())
    assert exact > uniform + 0.3
    assert float(torch.stack(found).mean()) == pytest.approx(float(exact), abs=0.02)


def test_the_cache_follows_features_that_move() -> None:
    """A carried state is scored by where it was last seen, not by where it was accepted."""
    loss_fn = zoo.get_loss("emc2", num_samples=6, temperature=0.5).double()
    batch = views(6, 3, num_samples=6)
    batch.call(loss_fn)
    moved = views(6, 3, seed=4, num_samples=6)._replace(index=batch.index)
    moved.call(loss_fn)
    cached = {name: tensor for name, tensor in loss_fn.state_dict().items() if tensor.shape == (6, 2, 3)}
    (embeddings,) = cached.values()
    for view in range(2):
        rows = torch.nn.functional.normalize(moved[view].detach(), dim=1)
        assert_close(embeddings[moved.index, view], rows, "embeddings")


def test_chain_table_must_point_into_the_data_set() -> None:
    loss_fn = zoo.get_loss("emc2", num_samples=4)
    table = loss_fn.table()
    for wrong in (torch.full((4, 2), 8), torch.full((4, 2), -2), torch.zeros(3, 2, dtype=torch.int64)):
        with pytest.raises(ValueError, match="chain must be"):
            loss_fn.load_table(**{**table, "chain": wrong})


@pytest.mark.parametrize("name", ["emc2", "sampled"])
@pytest.mark.parametrize("out_of_batch", ["cache", "skip", "encode"])
def test_chains_given_back_are_scored_as_before(name: str, out_of_batch: str) -> None:
    """A state without what it is scored by would have the score of a zero vector, and move nearly always."""
    encode = {"encode": lambda index, view: torch.ones(len(index), 6)} if out_of_batch == "encode" else {}
    settings = {"out_of_batch": out_of_batch, **encode}

    def make() -> zoo.Loss:
        if name == "emc2":
            return zoo.get_loss("emc2", num_samples=40, **settings).double()
        sampler = zoo.get_sampler("mcmc", num_samples=40, **settings)
        return zoo.get_loss("sampled", num_samples=40, sampler=sampler).double()

    loss_fn, twin = make(), make()
    for seed in range(4):
        views(seed=seed).call(loss_fn)
    twin.load_table(**loss_fn.table())
    twin.objective.sampler.step.value.copy_(loss_fn.objective.sampler.step.value)
    first, second = (views(seed=9), views(seed=9))
    losses = first.call(loss_fn), second.call(twin)
    assert_close(losses[1], losses[0], "loss")
    for gradient, expected in zip(gradients(losses[1], second), gradients(losses[0], first), strict=True):
        assert_close(gradient, expected, "gradient")


def test_chains_without_what_scores_them_are_refused() -> None:
    loss_fn, fresh = (zoo.get_loss("emc2", num_samples=40) for _ in range(2))
    views().call(loss_fn)
    table, before = loss_fn.table(), snapshot(fresh)
    without = {name: tensor for name, tensor in table.items() if name != "embeddings"}
    with pytest.raises(TypeError, match=r"out_of_batch='cache' wants the tables chain, u, visited, embeddings; got chain, u"):
        fresh.load_table(**without)
    with pytest.raises(TypeError, match="out_of_batch='skip' wants the tables chain, u, visited, log_score; got"):
        zoo.get_loss("emc2", num_samples=40, out_of_batch="skip").load_table(**table)
    with pytest.raises(ValueError, match="embeddings must be finite"):
        fresh.load_table(**table | {"embeddings": table["embeddings"] * torch.nan})
    with pytest.raises(ValueError, match=r"embeddings must have a shape that begins with \(40, 2\), got \(39, 2, 6\)"):
        fresh.load_table(**table | {"embeddings": table["embeddings"][1:]})
    unvisited = int((~table["visited"]).nonzero()[0])
    chain = table["chain"].clone()
    chain[0, 0] = 2 * unvisited
    with pytest.raises(ValueError, match="chain holds states of samples that visited marks as not visited"):
        fresh.load_table(**table | {"chain": chain})
    assert same_state(snapshot(fresh), before)


def test_compiled_gradients_are_those_of_the_carried_embeddings() -> None:
    """The same samples in each step, so that the table holds other embeddings of carried states in the backward pass."""
    eager, compiled = (zoo.get_loss("emc2", num_samples=6, burn_in=0.0) for _ in range(2))
    call = torch.compile(compiled, backend="aot_eager", fullgraph=True)
    for step in range(4):
        batch = views(6, 3, seed=step, dtype=torch.float32)._replace(index=torch.arange(6))
        expected, found = (gradients(batch.call(loss_fn), batch) for loss_fn in (eager, call))
        assert step == 0 or eager.diagnostics["carried_share"] > 0
        for gradient, wanted in zip(found, expected, strict=True):
            assert_close(gradient, wanted, "gradient", magnitude=1.0)


def test_a_learned_temperature_of_cold_chains(request: pytest.FixtureRequest) -> None:
    """Chains so cold that draws hardly matter: the kernels give the gradient that PyTorch gives in float64."""
    found = []
    for dtype in (torch.float64, torch.float32):
        temperature = torch.nn.Parameter(torch.tensor(0.002, dtype=dtype))
        loss_fn = walker(dtype, request, temperature=temperature, normalize="none")
        for step in range(3):
            batch = rounded(views(5, 4, seed=20 + step, num_samples=NUM_SAMPLES), dtype)
            batch = batch._replace(**{z: (30 * getattr(batch, z)).detach() for z in ("z1", "z2")})
            loss = batch.call(loss_fn)
            found.append(torch.autograd.grad(loss, loss_fn.temperature)[0])
        found.append(loss_fn.table()["chain"])
    assert torch.equal(found[3], found[7])
    for step in range(3):
        assert float(found[4 + step]) == pytest.approx(float(found[step]), rel=1e-5)
        assert abs(found[step]) > 1


@pytest.mark.parametrize(("width", "dtype"), [(4, torch.float64), (257, torch.float32)], ids=str)
def test_what_the_kernels_cannot_do_says_so(width: int, dtype: torch.dtype, request: pytest.FixtureRequest) -> None:
    request.getfixturevalue("kernels")
    batch = views(5, width, dtype=dtype, num_samples=NUM_SAMPLES)
    loss_fn = zoo.get_loss("emc2", num_samples=NUM_SAMPLES, backend="fused").to(dtype)
    before = snapshot(loss_fn)
    with pytest.raises(ValueError, match=r"backend='fused' cannot do this: its kernels (compute in float32|take at most 256)"):
        batch.call(loss_fn)
    assert same_state(snapshot(loss_fn), before)
    assert batch.call(zoo.get_loss("emc2", num_samples=NUM_SAMPLES).to(dtype)).isfinite()


def test_kernels_walk_on_gpus_unless_another_backend_is_named() -> None:
    x = torch.ones(4, 4)
    refuses = walk_fused.refuses
    assert refuses(x.cpu(), "auto") == "the rows are not on a GPU"
    for backend in ("tiled", "dense"):
        assert refuses(x, backend) == f"the backend is '{backend}'"
