"""The temperature: set anew between steps, learned, and its gradient against finite differences."""

import pytest
import torch
from cases import BACKENDS, CONFIGURATIONS, Configuration, gradients, views
from tolerances import assert_close
from torch import nn

HALVES = [0.5, torch.tensor(0.5), torch.tensor(0.5, dtype=torch.float64), nn.Parameter(torch.tensor(0.5))]
with_temperature = pytest.mark.parametrize(
    "configuration", [c for c in CONFIGURATIONS if "temperature" in c.card.parameters], ids=str
)


@with_temperature
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("value", HALVES, ids=["number", "float32", "float64", "parameter"])
def test_a_new_temperature_counts_from_the_next_call_on(configuration: Configuration, backend: str, value: object) -> None:
    batch, loss_fn = views(), configuration.make(temperature=0.1, backend=backend)
    batch.call(loss_fn.eval())
    loss_fn.train().temperature = value
    assert float(loss_fn.temperature.detach()) == 0.5
    expected = batch.call(configuration.make(temperature=0.5, backend=backend))
    assert torch.equal(batch.call(loss_fn), expected)


@with_temperature
def test_a_number_may_follow_a_parameter_and_the_other_way_round(configuration: Configuration) -> None:
    batch = views()
    loss_fn = configuration.make(temperature=nn.Parameter(torch.tensor(0.5)))
    assert len(list(loss_fn.parameters())) == 1
    loss_fn.temperature = 0.2
    assert torch.equal(batch.call(loss_fn), batch.call(configuration.make(temperature=0.2)))
    loss_fn.temperature = nn.Parameter(torch.tensor(0.3))
    assert [float(parameter.detach()) for parameter in loss_fn.parameters()] == [pytest.approx(0.3)]


@with_temperature
@pytest.mark.parametrize("value", [0, -0.1, float("nan"), float("inf")])
def test_a_bad_temperature_is_refused_and_the_old_one_kept(configuration: Configuration, value: float) -> None:
    loss_fn = configuration.make(temperature=0.1)
    with pytest.raises(ValueError, match="temperature must be a finite number"):
        loss_fn.temperature = value
    assert float(loss_fn.temperature) == 0.1


@with_temperature
@pytest.mark.parametrize("backend", BACKENDS)
def test_gradient_of_a_learned_temperature(configuration: Configuration, backend: str) -> None:
    """In eval mode the value of every method is what its gradient belongs to."""
    batch = views()

    def value(temperature: float) -> float:
        return float(batch.call(configuration.make(temperature=temperature, backend=backend).eval()).detach())

    parameter = nn.Parameter(torch.tensor(0.3, dtype=torch.float64))
    loss_fn = configuration.make(temperature=parameter, backend=backend).eval()
    assert loss_fn.temperature is parameter
    batch.call(loss_fn).backward()
    step = 1e-5
    slope = (value(0.3 + step) - value(0.3 - step)) / (2 * step)
    assert float(parameter.grad) == pytest.approx(slope, rel=1e-7)


@with_temperature
def test_a_learned_temperature_moves_and_is_saved(configuration: Configuration) -> None:
    loss_fn = configuration.make(temperature=nn.Parameter(torch.tensor(0.3)))
    optimiser = torch.optim.SGD(loss_fn.parameters(), lr=0.01)
    views(dtype=torch.float32).call(loss_fn).backward()
    optimiser.step()
    moved = float(loss_fn.temperature.detach())
    assert moved != pytest.approx(0.3)
    other = configuration.make(temperature=nn.Parameter(torch.tensor(0.3)))
    other.load_state_dict(loss_fn.state_dict())
    assert float(other.temperature.detach()) == moved


@with_temperature
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_learned_temperature_changes_no_other_gradient(configuration: Configuration, backend: str) -> None:
    batch = views()
    learned = configuration.make(temperature=nn.Parameter(torch.tensor(0.25, dtype=torch.float64)), backend=backend)
    fixed = configuration.make(temperature=0.25, backend=backend)
    for first, second in zip(gradients(batch.call(learned), batch), gradients(batch.call(fixed), batch), strict=True):
        assert_close(first, second, "gradient")


@pytest.mark.parametrize("configuration", [c for c in CONFIGURATIONS if "temperature" not in c.card.parameters], ids=str)
def test_a_name_without_temperature_says_so(configuration: Configuration) -> None:
    loss_fn = configuration.make()
    with pytest.raises(AttributeError, match="temperature"):
        _ = loss_fn.temperature
    with pytest.raises(AttributeError, match="temperature"):
        loss_fn.temperature = 0.1
