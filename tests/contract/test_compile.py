"""Every name under `torch.compile`: one graph, the same numbers and tables, the same errors, no recompilation in training."""

import math

import pytest
import torch
from cases import DEFAULTS, Configuration, Views, gradients, guaranteed, same_state, snapshot, views
from tolerances import assert_close

from contrastive_zoo import Loss

pytestmark = pytest.mark.usefixtures("_compiler")
every_default = pytest.mark.parametrize("configuration", DEFAULTS, ids=str)


def step(loss_fn: Loss, batch: Views) -> tuple[torch.Tensor, ...]:
    loss = batch.call(loss_fn)
    return loss, *gradients(loss, batch)


def assert_steps_agree(configuration: Configuration, backend: str, fullgraph: bool, dtype: torch.dtype) -> None:
    eager, plain = configuration.make().to(dtype), configuration.make().to(dtype)
    compiled = torch.compile(plain, backend=backend, fullgraph=fullgraph)
    for seed in range(2):
        batch = views(seed=seed, dtype=dtype)
        for name, found, expected in zip(("loss", "z1", "z2"), step(compiled, batch), step(eager, batch), strict=True):
            # Compiled code divides by a temperature where the call multiplies by its inverse; losses are differences.
            assert_close(found, expected, f"{name} of step {seed}", magnitude=10.0 if name == "loss" else 0.0)
    state = snapshot(plain)
    for name, expected in snapshot(eager).items():
        assert_close(state[name], expected, name, dtype=dtype)


@guaranteed("compile")
def test_compiled_equals_eager(configuration: Configuration) -> None:
    assert_steps_agree(configuration, "aot_eager", True, torch.float64)


@pytest.mark.parametrize("name", ["ntxent", "sogclr"])
def test_inductor_equals_eager(name: str) -> None:
    assert_steps_agree(Configuration(name, {}), "inductor", True, torch.float32)


@guaranteed("recompile", DEFAULTS)
def test_training_does_not_recompile(configuration: Configuration) -> None:
    """A new temperature, another batch of the same size, a last batch that is smaller and another epoch."""
    loss_fn = configuration.make()
    compiled = torch.compile(loss_fn, backend="eager", fullgraph=True)
    for size in (12, 12, 7, 5):
        step(compiled, views(size))
    with torch._dynamo.config.patch(error_on_recompile=True):
        for temperature, size in ((0.5, 12), (0.4, 9), (0.3, 12)):
            if "temperature" in configuration.card.parameters:
                loss_fn.temperature = temperature
            step(compiled, views(size, seed=size))


@pytest.mark.parametrize("configuration", [c for c in DEFAULTS if "temperature" in c.card.parameters], ids=str)
def test_a_temperature_set_after_compilation_counts(configuration: Configuration) -> None:
    loss_fn, batch = configuration.make(temperature=0.1).eval(), views()
    compiled = torch.compile(loss_fn, backend="eager", fullgraph=True)
    batch.call(compiled)
    loss_fn.temperature = 0.5
    assert_close(batch.call(compiled), batch.call(configuration.make(temperature=0.5).eval()), "loss")


@every_default
def test_bad_values_are_still_errors(configuration: Configuration) -> None:
    loss_fn, batch = configuration.make(), views()
    compiled = torch.compile(loss_fn, backend="eager", fullgraph=True)
    batch.call(compiled)
    before = snapshot(loss_fn)
    broken = batch.z1.detach().clone()
    broken[3, 1] = math.nan
    with pytest.raises(ValueError, match="NaN or infinite values, first in row 3"):
        compiled(broken.requires_grad_(), batch.z2, index=batch.index, labels=batch.labels)
    index = batch.index.clone()
    index[0] = -1
    with pytest.raises(IndexError, match="index holds -1"):
        compiled(batch.z1, batch.z2, index=index, labels=batch.labels)
    assert same_state(snapshot(loss_fn), before)


@every_default
def test_a_batch_of_one_sample_is_zero(configuration: Configuration) -> None:
    """It cannot warn from compiled code, but value, gradients and tables are those of eager mode."""
    loss_fn, batch = configuration.make(), views(5, 4)
    compiled = torch.compile(loss_fn, backend="eager", fullgraph=True)
    step(compiled, batch)
    before = snapshot(loss_fn)
    loss, *found = step(compiled, batch._replace(index=torch.full((5,), 3)))
    assert loss == 0
    for gradient in found:
        assert torch.equal(gradient, torch.zeros_like(gradient))
    for name, tensor in snapshot(loss_fn).items():
        assert "step" in name or torch.equal(tensor, before[name]), name


class Model(torch.nn.Module):
    """Encoder and loss as one module."""

    def __init__(self, configuration: Configuration) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.encoder = torch.nn.Linear(6, 4)
        self.loss_fn = configuration.make()

    def forward(self, batch: Views) -> torch.Tensor:
        return self.loss_fn(self.encoder(batch.z1), self.encoder(batch.z2), index=batch.index, labels=batch.labels)


@guaranteed("compile with encoder", DEFAULTS)
def test_an_encoder_and_its_loss_compile_together(configuration: Configuration) -> None:
    """Two batches, one that is smaller, and both again in another epoch."""
    eager, model = Model(configuration), Model(configuration)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    for number, size in enumerate((12, 12, 7, 12, 9)):
        batch = views(size, seed=number, dtype=torch.float32)
        with torch._dynamo.config.patch(error_on_recompile=number > 2):
            expected, found = eager(batch), compiled(batch)
        assert_close(found, expected, "loss")
        wanted = torch.autograd.grad(expected, list(eager.parameters()))
        for actual, reference in zip(torch.autograd.grad(found, list(model.parameters())), wanted, strict=True):
            assert_close(actual, reference, "gradient of the encoder", magnitude=1.0)
    state = snapshot(model.loss_fn)
    for name, tensor in snapshot(eager.loss_fn).items():
        assert_close(state[name], tensor, name)
