"""Losses made under another default dtype or on the meta device, averaged, checkpointed by shards, and freed."""

import copy
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from cases import (
    CONFIGURATIONS,
    DEFAULTS,
    NUM_SAMPLES,
    STATEFUL,
    Configuration,
    Views,
    gradients,
    guaranteed,
    same_state,
    snapshot,
    views,
)
from torch import nn
from torch.distributed.checkpoint.state_dict import get_model_state_dict, set_model_state_dict

import contrastive_zoo as zoo
from contrastive_zoo import Loss
from contrastive_zoo.samplers import FeatureQueue

every_configuration = pytest.mark.parametrize("configuration", CONFIGURATIONS, ids=str)
every_stateful = pytest.mark.parametrize("configuration", STATEFUL, ids=str)
WIDTH = views().z1.shape[1]


def train(loss_fn: Loss, seeds: range) -> list[torch.Tensor]:
    found = []
    for seed in seeds:
        batch = views(seed=seed, dtype=torch.float32)
        loss = batch.call(loss_fn)
        found += [loss.detach(), *gradients(loss, batch)]
    return found


def all_equal(first: list[torch.Tensor], second: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@guaranteed("tables")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_tables_are_precise_whatever_the_default_dtype(configuration: Configuration, dtype: torch.dtype) -> None:
    """A bfloat16 average that moves by a tenth of its distance stops moving."""
    expected = configuration.make()
    with default_dtype(dtype):
        loss_fn = configuration.make()
    assert same_state(snapshot(loss_fn), snapshot(expected))
    assert all_equal(train(loss_fn, range(3)), train(expected, range(3)))
    assert same_state(snapshot(loss_fn), snapshot(expected))


@guaranteed("tables")
@pytest.mark.parametrize("assign", [True, False], ids=["assigned", "copied"])
def test_tables_are_precise_whatever_the_checkpoint(configuration: Configuration, assign: bool) -> None:
    first = configuration.make()
    train(first, range(2))
    state = {name: t.bfloat16() if t.is_floating_point() else t for name, t in snapshot(first).items()}
    second = configuration.make()
    second.load_state_dict(state, assign=assign)
    assert all(t.dtype in (torch.float32, torch.float64) for t in snapshot(second).values() if t.is_floating_point())
    train(second, range(2, 4))
    assert all(t.dtype in (torch.float32, torch.float64) for t in snapshot(second).values() if t.is_floating_point())


def test_a_queue_is_precise_too() -> None:
    with default_dtype(torch.bfloat16):
        queue = FeatureQueue(4, embedding_dim=3)
    assert queue.embeddings.rows.dtype == torch.float32
    queue.load_state_dict({n: t.bfloat16() if t.is_floating_point() else t for n, t in queue.state_dict().items()}, assign=True)
    assert queue.embeddings.rows.dtype == torch.float32


def test_long_averages_do_not_stand_still() -> None:
    """300 steps at gamma = 0.01, where each moves the average by less than bfloat16 resolves."""

    def average(dtype: torch.dtype) -> torch.Tensor:
        with default_dtype(dtype):
            loss_fn = zoo.get_loss("sogclr", num_samples=12, gamma=0.01, temperature=0.5)
        for seed in range(300):
            batch = views(seed=seed, dtype=torch.float32)
            loss_fn(batch.z1, batch.z2, index=torch.arange(12))
        return loss_fn.table()["u"]

    torch.testing.assert_close(average(torch.bfloat16), average(torch.float32), rtol=1e-6, atol=0)


def on_meta(configuration: Configuration) -> Loss:
    with torch.device("meta"):
        loss_fn = configuration.make(embedding_dim=WIDTH)
    return loss_fn.to_empty(device="cpu")


@guaranteed("meta")
def test_a_loss_made_on_the_meta_device_loads_a_state(configuration: Configuration) -> None:
    first = configuration.make(embedding_dim=WIDTH)
    train(first, range(2))
    second = on_meta(configuration)
    second.load_state_dict(first.state_dict(), strict=True)
    assert same_state(snapshot(second), snapshot(first))
    assert all_equal(train(second, range(2, 4)), train(first, range(2, 4)))


@every_configuration
def test_a_loss_made_on_the_meta_device_takes_over_tensors(configuration: Configuration) -> None:
    """Without ``to_empty``."""
    first = configuration.make()
    train(first, range(2))
    with torch.device("meta"):
        second = configuration.make()
    second.load_state_dict(copy.deepcopy(first.state_dict()), assign=True)
    assert all_equal(train(second, range(2, 4)), train(first, range(2, 4)))


@guaranteed("meta")
def test_a_loss_made_on_the_meta_device_can_be_reset(configuration: Configuration) -> None:
    fresh, loss_fn = configuration.make(embedding_dim=WIDTH), on_meta(configuration)
    loss_fn.reset_parameters()
    assert same_state(snapshot(loss_fn), snapshot(fresh))
    assert all_equal(train(loss_fn, range(2)), train(fresh, range(2)))


@every_configuration
def test_a_reset_module_by_module_is_the_same(configuration: Configuration) -> None:
    """As FSDP's initialisation does it."""
    loss_fn = on_meta(configuration)
    for module in loss_fn.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    assert same_state(snapshot(loss_fn), snapshot(configuration.make(embedding_dim=WIDTH)))


@every_configuration
def test_a_used_loss_can_be_reset(configuration: Configuration) -> None:
    loss_fn, fresh = configuration.make(embedding_dim=WIDTH), configuration.make(embedding_dim=WIDTH)
    train(loss_fn, range(2))
    if "temperature" in configuration.card.parameters:
        loss_fn.temperature = 0.33
    if configuration.draws:
        loss_fn.seed = 9
    loss_fn.reset_parameters()
    assert same_state(snapshot(loss_fn), snapshot(fresh))
    assert all_equal(train(loss_fn, range(2)), train(fresh, range(2)))


def test_a_learned_temperature_made_on_the_meta_device() -> None:
    with torch.device("meta"):
        loss_fn = zoo.get_loss("dcl", temperature=nn.Parameter(torch.tensor(0.2)))
    loss_fn.to_empty(device="cpu")
    with pytest.raises(RuntimeError, match=r"first value of the temperature is not known.*Load a state_dict"):
        loss_fn.reset_parameters()
    loss_fn.load_state_dict(zoo.get_loss("dcl", temperature=0.3).state_dict())
    assert float(loss_fn.temperature.detach()) == pytest.approx(0.3)


@guaranteed("sharded checkpoint")
def test_a_fresh_loss_loads_a_distributed_checkpoint(configuration: Configuration, tmp_path: Path) -> None:
    model = nn.ModuleDict({"encoder": nn.Linear(2, 2), "loss": configuration.make(embedding_dim=WIDTH)})
    train(model["loss"], range(2))
    if "temperature" in configuration.card.parameters:
        model["loss"].temperature = 0.3
    with pytest.warns(UserWarning, match="single process"):
        dcp.save(get_model_state_dict(model), checkpoint_id=tmp_path)
    fresh = nn.ModuleDict({"encoder": nn.Linear(2, 2), "loss": configuration.make(embedding_dim=WIDTH, seed=7)})
    state = get_model_state_dict(fresh)
    with pytest.warns(UserWarning, match="single process"):
        dcp.load(state, checkpoint_id=tmp_path)
    set_model_state_dict(fresh, state)
    assert same_state(snapshot(fresh["loss"]), snapshot(model["loss"]))
    assert all_equal(train(fresh["loss"], range(2, 4)), train(model["loss"], range(2, 4)))


@every_stateful
def test_the_width_of_embeddings_changes_nothing_but_the_time_when_it_is_known(configuration: Configuration) -> None:
    early, late = configuration.make(embedding_dim=WIDTH), configuration.make()
    assert all_equal(train(early, range(3)), train(late, range(3)))
    assert same_state(snapshot(early), snapshot(late))


@every_configuration
@pytest.mark.parametrize(("value", "error"), [(0, ValueError), (-3, ValueError), (2.5, TypeError), (True, TypeError)])
def test_a_width_of_embeddings_that_makes_no_sense(configuration: Configuration, value: object, error: type[Exception]) -> None:
    with pytest.raises(error, match="embedding_dim must be"):
        configuration.make(embedding_dim=value)


def test_a_width_of_embeddings_that_is_not_that_of_the_features() -> None:
    for name in ("emc2", "negative_cache", "sampled"):
        with pytest.raises(ValueError, match="z1 has 6 features per row but the table of embeddings has 5, as embedding_dim"):
            views().call(zoo.get_loss(name, num_samples=NUM_SAMPLES, embedding_dim=5))


class Saved:
    """An activation that a graph holds."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor


def encoded(x: torch.Tensor) -> tuple[torch.Tensor, weakref.WeakSet[Saved]]:
    """Features, and the activations that their graph holds as long as it lives."""
    alive: weakref.WeakSet[Saved] = weakref.WeakSet()

    def pack(tensor: torch.Tensor) -> Saved:
        saved = Saved(tensor.detach())
        alive.add(saved)
        return saved

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved.tensor):
        return x.detach().requires_grad_().tanh() * 2, alive


@every_configuration
def test_a_step_on_the_cpu_ignores_the_default_device(configuration: Configuration) -> None:
    """As one on the CPU does after ``torch.set_default_device("cuda")``; a sample comes twice in the batch."""
    batch = views(dtype=torch.float32)
    if batch.index is not None:
        batch = batch._replace(index=batch.index.where(batch.index != batch.index[1], batch.index[0]))
    first, second = configuration.make(), configuration.make()
    expected = batch.call(first)
    torch.set_default_device("meta")
    try:
        found = batch.call(second)
        gradient = torch.autograd.grad(found.sum(), batch.z1)
    finally:
        torch.set_default_device(None)
    assert torch.equal(found, expected)
    assert torch.equal(*gradient, *torch.autograd.grad(expected.sum(), batch.z1))


@guaranteed("freed")
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("backend", ["dense", "tiled"])
def test_a_loss_does_not_keep_the_graph_of_the_encoder(configuration: Configuration, training: bool, backend: str) -> None:
    """Activations are freed with the value, before the next call."""
    loss_fn, batch = configuration.make(backend=backend).train(training), views(dtype=torch.float32)
    (z1, first), (z2, second) = encoded(batch.z1), encoded(batch.z2)
    loss = Views(z1, z2, batch.index, batch.labels).call(loss_fn)
    assert first
    assert second
    del z1, z2, loss
    assert not first
    assert not second
    assert loss_fn.diagnostics["positive_similarity"].isfinite()
    assert not any(figure.requires_grad for figure in loss_fn.diagnostics.values())


@pytest.mark.usefixtures("_clean_registries")
def test_an_objective_that_reports_with_a_graph_keeps_none() -> None:
    @zoo.register_loss("reporting")
    def reporting(batch: zoo.Batch) -> torch.Tensor:
        """Mean similarity."""
        batch.diagnostics["similarity"] = batch.positive_similarity().mean()
        return batch.positive_similarity()

    loss_fn = zoo.get_loss("reporting")
    views().call(loss_fn)
    assert not loss_fn.diagnostics["similarity"].requires_grad


def test_negatives_are_not_kept() -> None:
    for configuration in DEFAULTS:
        if "negatives" in configuration.card.uses:
            loss_fn, batch = configuration.make(), views()
            negatives, alive = encoded(torch.randn(5, WIDTH, dtype=torch.float64))
            loss = loss_fn(batch.z1, batch.z2, negatives=negatives)
            assert alive
            del negatives, loss
            assert not alive


@every_stateful
def test_a_table_that_a_wrapper_has_rounded_is_refused(configuration: Configuration) -> None:
    """As the buffer_dtype of FSDP's first version does, past the module's own methods."""
    loss_fn = configuration.make(embedding_dim=WIDTH)
    for buffer in loss_fn.buffers():
        if buffer.is_floating_point():
            buffer.data = buffer.data.bfloat16()
    with pytest.raises(TypeError, match=r"is in torch.bfloat16, too coarse.*MixedPrecision\(buffer_dtype=torch.float32\)"):
        views().call(loss_fn)
    assert views().call(loss_fn.eval()).isfinite()
