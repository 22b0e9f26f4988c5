"""A state that does not fit is refused by the name of its entry, and changes nothing."""

import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import CONFIGURATIONS, STATEFUL, Configuration, same_state, snapshot, views
from torch import Tensor, nn

import contrastive_zoo as zoo
from contrastive_zoo import Loss

LEARNED = Configuration("ntxent", {"temperature": 0.2})
WITH_STATE = [c for c in CONFIGURATIONS if c.card.stateful or c.draws or c.name in ("clip", "siglip")] + [LEARNED]
every_state = pytest.mark.parametrize("configuration", WITH_STATE, ids=str)


def make(configuration: Configuration, **params: Any) -> Loss:
    if configuration is LEARNED:
        params["temperature"] = nn.Parameter(torch.tensor(0.2))
    return configuration.make(**params)


def trained(configuration: Configuration, seed: int, **params: Any) -> Loss:
    loss_fn = make(configuration, **params)
    for step in range(2):
        views(seed=seed + step, dtype=torch.float32).call(loss_fn)
    return loss_fn


def with_entry(entry: Tensor, value: float) -> Tensor:
    """A copy whose first entry is another one."""
    changed = entry.clone()
    changed.view(-1)[0] = value
    return changed


def broken_forms(name: str, entry: Tensor) -> dict[str, Any]:
    """What may stand in a file in the place of an entry, and is never right."""
    forms: dict[str, Any] = {"a word": "x", "nothing": None, "a list": [1.0], "complex": entry.to(torch.complex64)}
    forms["another shape"] = torch.zeros(3, 7, 2, dtype=entry.dtype)
    if entry.is_floating_point():
        forms |= {str(value): with_entry(entry, value) for value in (torch.nan, torch.inf, -torch.inf)}
        if "_temperature" not in name:
            forms["integers"] = entry.long()
    else:
        forms["floats"] = entry.float() + 0.5
    if entry.dtype == torch.int64:
        forms["negative"] = with_entry(entry, -7)
    if name.endswith("chain"):
        forms |= {"large": with_entry(entry, 10**6), "one too large": with_entry(entry, entry.numel())}
    if name.endswith("next_slot"):
        forms["large"] = torch.tensor(10**6)
    if name.endswith("queue.view"):
        forms["a third view"] = with_entry(entry, 2)
    if name.endswith("temperatures.value"):
        forms["not positive"] = with_entry(entry, 0.0)
    return forms


@every_state
def test_every_entry_is_checked(configuration: Configuration) -> None:
    state = snapshot(trained(configuration, 0))
    loss_fn = trained(configuration, 5)
    before = snapshot(loss_fn)
    for name, entry in state.items():
        for form, value in broken_forms(name, entry).items():
            with pytest.raises(RuntimeError) as caught:
                loss_fn.load_state_dict({**state, name: value})
            assert name in str(caught.value), form
            assert same_state(before, snapshot(loss_fn)), f"{name}: {form}"
    loss_fn.load_state_dict(state)
    assert same_state(state, snapshot(loss_fn))


@every_state
def test_missing_and_superfluous_entries(configuration: Configuration) -> None:
    state = snapshot(trained(configuration, 0))
    loss_fn = trained(configuration, 5)
    before = snapshot(loss_fn)
    # Checkpoints of version 0.1 hold neither.
    optional = ("_temperature.value", "_seed._extra_state")
    for name in state:
        if not name.endswith(optional):
            with pytest.raises(RuntimeError, match=rf"Missing key\(s\) in state_dict: .*{name}"):
                loss_fn.load_state_dict({key: entry for key, entry in state.items() if key != name})
            assert same_state(before, snapshot(loss_fn)), name
    with pytest.raises(RuntimeError, match=r"Unexpected key\(s\) in state_dict: .*objective.momentum"):
        loss_fn.load_state_dict({**state, "objective.momentum": torch.zeros(3)})
    assert same_state(before, snapshot(loss_fn))


@pytest.mark.parametrize("configuration", STATEFUL, ids=str)
def test_state_of_another_loss(configuration: Configuration) -> None:
    loss_fn = trained(configuration, 5)
    before = snapshot(loss_fn)
    refused = 0
    for other in STATEFUL:
        state = snapshot(trained(other, 0))
        if state.keys() != before.keys() or any(state[name].shape != before[name].shape for name in state):
            with pytest.raises(RuntimeError, match=r"Error\(s\) in loading state_dict"):
                loss_fn.load_state_dict(state)
            assert same_state(before, snapshot(loss_fn)), str(other)
            refused += 1
    assert refused


@pytest.mark.parametrize("state", [None, [1, 2], "a path", 3], ids=str)
def test_what_is_no_state(state: Any) -> None:
    loss_fn = zoo.get_loss("sogclr", num_samples=5)
    with pytest.raises(TypeError, match=r"state_dict"):
        loss_fn.load_state_dict(state)


def test_chains_in_states_of_samples_without_an_embedding() -> None:
    loss_fn = trained(Configuration("emc2", {}), 0)
    state, before = snapshot(loss_fn), snapshot(loss_fn)
    state["objective.sampler.averages.visited"].fill_(False)
    with pytest.raises(RuntimeError, match=r"objective.sampler.chain holds states of samples that visited marks"):
        loss_fn.load_state_dict(state)
    assert same_state(before, snapshot(loss_fn))


@pytest.mark.parametrize("name", zoo.list_samplers())
def test_samplers_by_themselves(name: str) -> None:
    params = {} if name == "mcmc" else {"num_negatives": 12}
    sampler, other = (zoo.get_sampler(name, num_samples=40, **params) for _ in range(2))
    for seed, each in enumerate((sampler, other)):
        batch = views(seed=seed)
        each(batch.z1, batch.z2, index=batch.index)
    state, before = snapshot(other), snapshot(sampler)
    for entry, value in state.items():
        for form, broken in broken_forms(entry, value).items():
            with pytest.raises(RuntimeError) as caught:
                sampler.load_state_dict({**state, entry: broken})
            assert entry in str(caught.value), form
            assert same_state(before, snapshot(sampler)), f"{entry}: {form}"


def test_a_queue_by_itself() -> None:
    queue = zoo.samplers.FeatureQueue(8)
    queue.push(torch.randn(5, 3), torch.arange(5))
    before, state = snapshot(queue), snapshot(queue)
    state["embeddings.rows"] = torch.ones(8, 9)  # another width, which would be right
    for entry, broken in (("owner", -2), ("next_slot", 8), ("next_slot", -1), ("view", -1)):
        with pytest.raises(RuntimeError, match=f"{entry} must be from"):
            queue.load_state_dict({**state, entry: with_entry(state[entry], broken)})
        assert same_state(before, snapshot(queue))
    assert len(queue) == 5


TABLES = [c for c in STATEFUL if c.params.get("sampler") != "mcmc" or c.name == "sampled"]


@pytest.mark.parametrize("configuration", TABLES, ids=str)
def test_tables_are_checked_before_any_is_written(configuration: Configuration) -> None:
    loss_fn = trained(configuration, 5)
    before, tables = snapshot(loss_fn), trained(configuration, 0).table()
    for name, table in tables.items():
        forms: dict[str, Any] = {"a word": "x", "nothing": None, "a list": [0.5], "another shape": torch.zeros(3, 7, 2, 1)}
        if table.is_floating_point():
            forms |= {str(value): table.clone().fill_(value) for value in (torch.nan, torch.inf)}
        else:
            forms |= {"floats": table.float() + 0.5}
        if table.dtype == torch.int64:
            forms |= {"negative": with_entry(table, -7), "large": with_entry(table, 2**62)}
        for form, broken in forms.items():
            with pytest.raises((TypeError, ValueError)) as caught:
                loss_fn.load_table(**{**tables, name: broken})
            assert name in str(caught.value), form
            assert same_state(before, snapshot(loss_fn)), f"{name}: {form}"
        with pytest.raises(TypeError, match=name):
            loss_fn.load_table(**{other: table for other, table in tables.items() if other != name})
    with pytest.raises(TypeError, match=r"momentum"):
        loss_fn.load_table(**tables, momentum=torch.zeros(3))
    assert same_state(before, snapshot(loss_fn))


@pytest.mark.parametrize(("saved", "loaded"), [(12.5, 10.0), (1e-5, 0.001), (0.25, 0.25)])
def test_a_learned_temperature_counts_as_the_nearest_in_its_interval_when_it_becomes_a_number(
    saved: float, loaded: float
) -> None:
    learned, fixed = make(LEARNED), zoo.get_loss("ntxent", temperature=0.1)
    with torch.no_grad():
        learned.temperature.fill_(saved)
    fixed.load_state_dict(learned.state_dict())
    assert float(fixed.temperature) == pytest.approx(loaded)
    batch = views(dtype=torch.float32)
    assert batch.call(fixed).item() == pytest.approx(batch.call(learned).item(), rel=1e-5)


def test_a_number_outside_of_that_interval_is_loaded_as_it_is() -> None:
    fixed = zoo.get_loss("ntxent", temperature=0.1)
    fixed.load_state_dict(zoo.get_loss("ntxent", temperature=20.0).state_dict())
    assert float(fixed.temperature) == 20.0


def test_a_model_that_holds_a_loss_names_the_entry() -> None:
    model = nn.ModuleDict({"loss": trained(Configuration("isogclr", {}), 0)})
    state, before = snapshot(model), snapshot(model)
    name = "loss.objective.averages.log_value"
    state[name] = state[name] * torch.nan
    with pytest.raises(RuntimeError, match=f"{name} must be finite"):
        model.load_state_dict(state)
    assert torch.equal(snapshot(model)[name], before[name])


@pytest.mark.parametrize("assign", [False, True])
@every_state
def test_what_is_right_still_loads(configuration: Configuration, assign: bool) -> None:
    first, second = trained(configuration, 0), make(configuration)
    second.load_state_dict(snapshot(first), assign=assign)
    assert same_state(snapshot(first), snapshot(second))
    batch = views(seed=8, dtype=torch.float32)
    assert torch.equal(batch.call(first), batch.call(second))


@pytest.mark.parametrize("duplicate", [pickle.dumps, lambda loss_fn: loss_fn.state_dict()], ids=["pickle", "state"])
def test_loading_leaves_no_trace(duplicate: Callable[[Loss], Any]) -> None:
    """Neither hooks nor tensors of the trial copy."""
    loss_fn = trained(Configuration("emc2", {}), 0)
    loss_fn.load_state_dict(snapshot(loss_fn))
    assert not any(tensor.is_meta for tensor in (*loss_fn.buffers(), *loss_fn.parameters()))
    assert duplicate(loss_fn)


def test_a_loss_that_another_version_pickled() -> None:
    """Version 0.1 knew neither options nor temperatures that are modules."""
    loss_fn = zoo.get_loss("ntxent")
    for name in ("options", "_temperatures"):
        state = {key: value for key, value in loss_fn.__getstate__().items() if key != name}
        with pytest.raises(RuntimeError, match=r"pickled by another version. Load its state_dict\(\)"):
            Loss.__new__(Loss).__setstate__(state)
