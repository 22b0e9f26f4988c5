"""State: saved, loaded, copied, moved, and left alone in eval mode."""

import copy
import io
import pickle

import pytest
import torch
from cases import (
    CONFIGURATIONS,
    NUM_SAMPLES,
    STATEFUL,
    WITH_TABLES,
    Configuration,
    Views,
    gradients,
    guaranteed,
    same_state,
    snapshot,
    views,
)

from contrastive_zoo import Loss

every_configuration = pytest.mark.parametrize("configuration", CONFIGURATIONS, ids=str)
with_tables = pytest.mark.parametrize("configuration", WITH_TABLES, ids=str)
every_stateful = pytest.mark.parametrize("configuration", STATEFUL, ids=str)


def train(loss_fn: Loss, seeds: range, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    """Values and gradients of some steps, one batch for each seed."""
    found = []
    for seed in seeds:
        batch = views(seed=seed, dtype=dtype)
        loss = batch.call(loss_fn)
        found += [loss.detach(), *gradients(loss, batch)]
    return found


def all_equal(first: list[torch.Tensor], second: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def saved_and_loaded(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


@guaranteed("resume")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_resumed_run_is_the_same_bit_for_bit(configuration: Configuration, dtype: torch.dtype) -> None:
    first = configuration.make().to(dtype)
    train(first, range(3), dtype)
    state = saved_and_loaded(first.state_dict())
    torch.manual_seed(99)
    second = configuration.make().to(dtype)
    second.load_state_dict(state, strict=True)
    assert same_state(snapshot(second), snapshot(first))
    assert all_equal(train(first, range(3, 6), dtype), train(second, range(3, 6), dtype))
    assert same_state(snapshot(second), snapshot(first))


@every_configuration
def test_a_state_loads_into_a_loss_that_has_been_used(configuration: Configuration) -> None:
    first, second = configuration.make(), configuration.make()
    train(first, range(3))
    train(second, range(5, 6))
    second.load_state_dict(first.state_dict())
    assert all_equal(train(first, range(3, 5)), train(second, range(3, 5)))


@every_stateful
def test_a_saved_state_does_not_move_with_the_loss_it_came_from(configuration: Configuration) -> None:
    loss_fn = configuration.make()
    train(loss_fn, range(1))
    kept = copy.deepcopy(loss_fn.state_dict())
    train(loss_fn, range(1, 2))
    assert not same_state(kept, snapshot(loss_fn))


@with_tables
def test_a_state_of_another_data_set_is_refused(configuration: Configuration) -> None:
    loss_fn = configuration.make()
    train(loss_fn, range(1))
    with pytest.raises(RuntimeError, match="size mismatch"):
        configuration.make(num_samples=7).load_state_dict(loss_fn.state_dict())


@guaranteed("copies")
@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, lambda loss_fn: pickle.loads(pickle.dumps(loss_fn))], ids=["copy", "pickle"]
)
def test_copies_go_on_by_themselves(configuration: Configuration, duplicate: object) -> None:
    loss_fn = configuration.make()
    train(loss_fn, range(2))
    twin = duplicate(loss_fn)
    before = snapshot(twin)
    expected = train(loss_fn, range(2, 4))
    assert same_state(snapshot(twin), before)
    assert all_equal(train(twin, range(2, 4)), expected)


@guaranteed("tables")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_tables_are_never_in_half_precision(configuration: Configuration, dtype: torch.dtype) -> None:
    loss_fn = configuration.make()
    train(loss_fn, range(2))
    before = snapshot(loss_fn)
    loss_fn.to(dtype)
    assert same_state(snapshot(loss_fn), before)
    train(torch.nn.ModuleList([loss_fn]).to(dtype)[0], range(2, 3))
    for name, tensor in snapshot(loss_fn).items():
        assert tensor.dtype == before[name].dtype, name


@every_stateful
def test_tables_follow_to_float64_and_back(configuration: Configuration) -> None:
    loss_fn = configuration.make()
    train(loss_fn, range(2))
    before = snapshot(loss_fn)
    loss_fn.double()
    assert all(t.dtype == torch.float64 for t in snapshot(loss_fn).values() if t.is_floating_point())
    train(copy.deepcopy(loss_fn), range(2, 3), torch.float64)
    assert same_state(snapshot(loss_fn.float()), before)


@guaranteed("eval")
@pytest.mark.parametrize("backend", ["dense", "tiled"])
def test_eval_needs_no_index_and_touches_no_table(configuration: Configuration, backend: str) -> None:
    loss_fn, fresh = configuration.make(backend=backend), configuration.make(backend=backend).eval()
    train(loss_fn, range(2))
    before, batch = snapshot(loss_fn), views(seed=9)
    loss_fn.eval()
    extra = {"labels": batch.labels} if "labels" in configuration.card.needs else {}
    value = loss_fn(batch.z1, batch.z2, **extra)
    assert value.isfinite()
    assert torch.equal(value, loss_fn(batch.z1, batch.z2, **extra))
    assert torch.equal(value, fresh(batch.z1, batch.z2, **extra))
    assert torch.equal(value, batch.call(loss_fn))
    assert same_state(snapshot(loss_fn), before)


@every_configuration
def test_eval_of_stateless_names_is_train(configuration: Configuration) -> None:
    if not configuration.card.stateful and not configuration.draws:
        batch = views()
        assert torch.equal(batch.call(configuration.make()), batch.call(configuration.make().eval()))


@with_tables
def test_tables_can_be_read_and_given_back(configuration: Configuration) -> None:
    loss_fn, twin = configuration.make().double(), configuration.make().double()
    train(loss_fn, range(2), torch.float64)
    table = loss_fn.table()
    assert all(tensor.device.type == "cpu" for tensor in table.values())
    assert int(table["visited"].sum()) == len(set(views(seed=0).index.tolist() + views(seed=1).index.tolist()))
    twin.load_table(**table)
    for name, tensor in twin.table().items():
        torch.testing.assert_close(tensor, table[name], rtol=1e-14, atol=0)
    table["visited"].fill_(False)
    assert loss_fn.table()["visited"].any()


@every_configuration
def test_a_stateless_name_has_no_table(configuration: Configuration) -> None:
    if not configuration.card.stateful:
        with pytest.raises(TypeError, match="keeps no state per sample"):
            configuration.make().table()
        with pytest.raises(TypeError, match=rf"'{configuration.name}' keeps no state per sample"):
            configuration.make().load_table(u=torch.zeros(3))


@with_tables
def test_only_visited_samples_change(configuration: Configuration) -> None:
    loss_fn, batch = configuration.make(), views()
    before = loss_fn.table()
    batch.call(loss_fn)
    after = loss_fn.table()
    others = torch.ones(len(after["visited"]), dtype=torch.bool, device="cpu")
    others[batch.index.cpu()] = False
    assert torch.equal(after["visited"], ~others)
    for name in before:
        if before[name].shape == after[name].shape:
            assert torch.equal(after[name][others], before[name][others])
        else:  # made when the width of the features was known
            assert not after[name][others].any()


@guaranteed("no_grad")
def test_a_step_under_no_grad_is_a_step(configuration: Configuration) -> None:
    first, second, batch = configuration.make(), configuration.make(), views()
    batch.call(first)
    with torch.no_grad():
        batch.call(second)
    assert same_state(snapshot(first), snapshot(second))


@every_stateful
def test_a_step_in_inference_mode_does_no_harm(configuration: Configuration) -> None:
    """Tables made there can be written to outside of it."""
    first, second = configuration.make(), configuration.make()
    detached = Views(*(leaf.detach() for leaf in views()))
    with torch.inference_mode():
        detached.call(first)
    detached.call(second)
    assert all_equal(train(first, range(1, 3)), train(second, range(1, 3)))
    assert same_state(snapshot(first), snapshot(second))


drawing = pytest.mark.parametrize("configuration", [c for c in CONFIGURATIONS if c.draws], ids=str)


@drawing
def test_every_step_draws_anew(configuration: Configuration) -> None:
    """The same features, of samples that the loss has not met before."""
    batch, loss_fn = views(), configuration.make(num_samples=2 * NUM_SAMPLES)
    first = gradients(batch.call(loss_fn), batch)
    second = gradients(batch._replace(index=batch.index + NUM_SAMPLES).call(loss_fn), batch)
    assert not any(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@drawing
def test_a_loaded_seed_replaces_that_of_the_constructor(configuration: Configuration) -> None:
    first, second, third = (configuration.make(seed=seed) for seed in (3, 5, 5))
    second.load_state_dict(first.state_dict(), strict=True)
    assert second.seed == 3
    assert all_equal(train(second, range(2)), train(first, range(2)))
    first.load_state_dict(third.state_dict())
    first.seed = 7
    assert all_equal(train(first, range(2)), train(configuration.make(seed=7), range(2)))


@every_configuration
def test_a_loss_that_draws_nothing_has_no_seed(configuration: Configuration) -> None:
    if not configuration.card.draws:
        loss_fn = configuration.make()
        with pytest.raises(AttributeError, match="seed"):
            _ = loss_fn.seed
        with pytest.raises(AttributeError, match="seed"):
            loss_fn.seed = 3


@drawing
def test_draws_depend_on_seed_and_step_only(configuration: Configuration) -> None:
    batch = views()

    def gradient_of(step: int, **params: int) -> torch.Tensor:
        loss_fn = configuration.make(**params)
        for _ in range(step):
            Views(*(t.detach() for t in batch)).call(loss_fn)
        torch.rand(3)
        return gradients(batch.call(loss_fn), batch)[0]

    first = gradient_of(0)
    assert torch.equal(gradient_of(0), first)
    assert torch.equal(gradient_of(0, seed=0), first)
    assert not torch.equal(gradient_of(0, seed=1), first)
    assert torch.equal(gradient_of(2), gradient_of(2))
    before = torch.get_rng_state()
    gradient_of(1)
    torch.set_rng_state(before)
    expected = torch.rand(3)
    torch.set_rng_state(before)
    batch.call(configuration.make())
    assert torch.equal(torch.rand(3), expected)
