"""The temperature: set anew between steps, learned within its interval, saved; its gradient against finite differences."""

import copy
import math

import pytest
import torch
from cases import BACKENDS, CONFIGURATIONS, Configuration, gradients, guaranteed, views
from tolerances import assert_close
from torch import nn

import contrastive_zoo as zoo

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
    # A number divides in fewer operations than a tensor.
    assert_close(batch.call(loss_fn), expected, "loss", magnitude=10.0)


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


def state_of(configuration: Configuration, temperature: object) -> dict[str, torch.Tensor]:
    return configuration.make(temperature=temperature).state_dict()


def learned(value: float | list[float]) -> nn.Parameter:
    return nn.Parameter(torch.tensor(value, dtype=torch.float64))


@guaranteed("temperature")
def test_a_temperature_that_was_set_is_saved_and_replaces_that_of_the_constructor(configuration: Configuration) -> None:
    first, second = configuration.make(temperature=0.5), configuration.make(temperature=0.2)
    first.temperature = 0.07
    second.load_state_dict(first.state_dict(), strict=True)
    assert float(second.temperature) == 0.07
    assert torch.equal(views().call(second), views().call(first))
    second.temperature = 0.3
    assert float(second.temperature) == 0.3
    assert float(first.temperature) == 0.07, "the state is not shared"


@with_temperature
@pytest.mark.parametrize("saved", [0.25, learned(0.25), learned([0.25]), torch.tensor(0.25)], ids=["0", "()", "(1,)", "tensor"])
@pytest.mark.parametrize("shape", ["number", (), (1,)], ids=str)
def test_numbers_and_parameters_of_one_entry_load_each_other(
    configuration: Configuration, saved: object, shape: object
) -> None:
    given = 0.5 if shape == "number" else nn.Parameter(torch.full(shape, 0.5, dtype=torch.float64))
    loss_fn, state = configuration.make(temperature=given), state_of(configuration, saved)
    assert state.keys() == loss_fn.state_dict().keys()
    loss_fn.load_state_dict(state, strict=True)
    assert float(loss_fn.temperature.detach()) == 0.25
    assert loss_fn.temperature.shape == (() if shape == "number" else shape)
    assert (loss_fn.temperature is given) == isinstance(given, nn.Parameter)
    expected = views().call(configuration.make(temperature=0.25))
    assert_close(views().call(loss_fn), expected, "loss")


@with_temperature
def test_a_checkpoint_of_version_0_1_loads_strictly(configuration: Configuration) -> None:
    """It holds no number, a parameter under another key, and no seed."""
    state = configuration.make(temperature=0.5, seed=3).state_dict()
    old = {name: tensor for name, tensor in state.items() if "_temperature" not in name and "_seed" not in name}
    loss_fn = configuration.make(temperature=0.2, seed=5)
    loss_fn.load_state_dict(old, strict=True)
    assert float(loss_fn.temperature) == 0.2
    if configuration.draws:
        assert loss_fn.seed == 5
    parameter = configuration.make(temperature=learned(0.2))
    parameter.load_state_dict(old | {"objective._temperature": torch.tensor(0.4)}, strict=True)
    assert float(parameter.temperature.detach()) == pytest.approx(0.4)
    parameter.load_state_dict(old, strict=True)
    assert float(parameter.temperature.detach()) == pytest.approx(0.4)


@with_temperature
@pytest.mark.parametrize("value", [-0.1, 0.0, math.nan, math.inf, [0.1, 0.2], "warm"])
def test_a_checkpoint_with_a_bad_temperature_is_refused(configuration: Configuration, value: object) -> None:
    loss_fn = configuration.make(temperature=0.2)
    bad = value if isinstance(value, str) else torch.tensor(value)
    with pytest.raises(RuntimeError, match="temperature"):
        loss_fn.load_state_dict(loss_fn.state_dict() | {"objective._temperature.value": bad})
    assert float(loss_fn.temperature) == 0.2


@with_temperature
def test_a_temperature_with_a_graph_serves_and_is_not_saved(configuration: Configuration) -> None:
    """As that of a model that keeps the scale itself, such as open_clip's."""
    loss_fn, batch = configuration.make(temperature=0.5), views()
    logit_scale = nn.Parameter(torch.tensor(1.2, dtype=torch.float64))
    for _ in range(2):
        loss_fn.temperature = 1 / logit_scale.exp()
        batch.call(loss_fn).backward()
    assert logit_scale.grad.abs() > 0
    assert not list(loss_fn.parameters())
    (saved,) = (tensor for name, tensor in loss_fn.state_dict().items() if "_temperature" in name)
    assert float(saved) == 0.5
    with torch.no_grad():
        expected = configuration.make(temperature=math.exp(-1.2)).eval()(*batch[:2], labels=batch.labels)
        assert_close(loss_fn.eval()(*batch[:2], labels=batch.labels), expected, "loss")
    twin = copy.deepcopy(loss_fn)
    assert float(twin.temperature) == 0.5
    loss_fn.load_state_dict(twin.state_dict())
    assert float(loss_fn.temperature) == 0.5
    assert not loss_fn.temperature.requires_grad


@with_temperature
def test_a_loss_may_begin_with_a_temperature_that_carries_a_graph(configuration: Configuration) -> None:
    scale = nn.Parameter(torch.tensor(4.0))
    loss_fn = configuration.make(temperature=1 / scale)
    views().call(loss_fn).backward()
    assert scale.grad.abs() > 0
    assert float(next(t for name, t in loss_fn.state_dict().items() if "_temperature" in name)) == 0.25


@guaranteed("bounded")
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("outside", "end", "shape"), [(-3.0, 0.001, ()), (0.0, 0.001, (1,)), (40.0, 10.0, ())])
def test_a_learned_temperature_stays_within_its_interval(
    configuration: Configuration, outside: float, end: float, shape: tuple[int, ...], backend: str
) -> None:
    """An optimiser may move the parameter further; the loss is that of the nearer end, and gradients only lead back."""
    parameter = nn.Parameter(torch.full(shape, 0.5, dtype=torch.float64))
    loss_fn = configuration.make(temperature=parameter, backend=backend).eval()
    with torch.no_grad():
        parameter.fill_(outside)
    batch = views()
    loss = batch.call(loss_fn)
    fixed = configuration.make(temperature=learned(end), backend=backend).eval()
    assert_close(loss, batch.call(fixed), "loss")
    for sign in (1, -1):
        (gradient,) = torch.autograd.grad(sign * batch.call(loss_fn), parameter)
        (inside,) = torch.autograd.grad(sign * batch.call(fixed), fixed.temperature)
        leads_back = inside < 0 if end == 0.001 else inside > 0
        assert gradient.shape == shape
        assert torch.equal(gradient.reshape(()) != 0, leads_back)


@with_temperature
@pytest.mark.parametrize("value", [0.0, -0.1, 5e-4, 11.0, math.nan])
def test_a_parameter_outside_of_the_interval_is_refused(configuration: Configuration, value: float) -> None:
    with pytest.raises(ValueError, match=r"temperature \(a parameter\) must be a finite number in \[0.001, 10\]"):
        configuration.make(temperature=nn.Parameter(torch.tensor(value)))
    loss_fn = configuration.make()
    with pytest.raises(ValueError, match=r"temperature \(a parameter\) must be"):
        loss_fn.temperature = nn.Parameter(torch.tensor(value))


@with_temperature
def test_training_a_temperature_too_fast_does_no_harm(configuration: Configuration) -> None:
    """AdamW at a rate that takes the parameter through zero: positives stay the more similar pairs."""
    batch, parameter = views(16, 8, dtype=torch.float32), nn.Parameter(torch.tensor(0.1))
    loss_fn, features = configuration.make(temperature=parameter), [nn.Parameter(z.detach()) for z in batch[:2]]
    optimizer = torch.optim.AdamW([*features, parameter], lr=3e-2)
    for _ in range(120):
        loss = loss_fn(*features, index=batch.index, labels=batch.labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        assert loss.isfinite()
    figures = loss_fn.diagnostics
    assert figures["positive_similarity"] > figures["negative_similarity"].clamp_min(0)


def test_a_half_precision_parameter_is_used_in_float32() -> None:
    """1 / 0.1 would be rounded to 9.9375 or 10 in bfloat16."""
    parameter = nn.Parameter(torch.tensor(0.1, dtype=torch.bfloat16))
    loss_fn, batch = zoo.get_loss("ntxent", temperature=parameter), views()
    exact = zoo.get_loss("ntxent", temperature=float(parameter.detach()))
    assert_close(batch.call(loss_fn).float(), batch.call(exact).float(), "loss")
    batch.call(loss_fn).backward()
    assert parameter.grad.dtype == torch.bfloat16


def test_a_function_keeps_a_learned_temperature_within_its_interval() -> None:
    batch, parameter = views(), nn.Parameter(torch.tensor(-0.2, dtype=torch.float64))
    loss = zoo.functional.ntxent(*batch[:2], temperature=parameter)
    assert_close(loss, zoo.functional.ntxent(*batch[:2], temperature=0.001), "loss")
    (gradient,) = torch.autograd.grad(loss, parameter)
    assert gradient <= 0


@pytest.mark.parametrize("dtype", [torch.int64, torch.float16, torch.bfloat16, torch.float32], ids=str)
@with_temperature
def test_a_tensor_that_holds_a_number_is_that_number(configuration: Configuration, dtype: torch.dtype) -> None:
    """Whatever its dtype, and it is neither changed nor looked at again."""
    given, batch = torch.tensor([1, 2], dtype=dtype), views(dtype=torch.float32)
    loss_fn = configuration.make(temperature=given[0])
    other = configuration.make(temperature=loss_fn.temperature)
    assert torch.equal(batch.call(loss_fn), batch.call(configuration.make(temperature=1.0)))
    loss_fn.temperature = 0.1
    assert float(loss_fn.temperature) == 0.1
    assert given.tolist() == [1, 2]
    assert float(other.temperature) == 1
    half = torch.tensor(0.1, dtype=torch.bfloat16)
    assert float(configuration.make(temperature=half).temperature) == float(half)


@with_temperature
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_temperature_may_be_set_before_the_backward_pass(configuration: Configuration, backend: str) -> None:
    batch, loss_fn = views(), configuration.make(temperature=0.3, backend=backend).eval()
    first = batch.call(loss_fn)
    loss_fn.temperature = 0.2
    second = batch.call(loss_fn)
    loss_fn.load_state_dict(configuration.make(temperature=0.9).state_dict(), strict=False)
    found = gradients(first + second, batch)
    alone = [gradients(batch.call(configuration.make(temperature=t, backend=backend).eval()), batch) for t in (0.3, 0.2)]
    for number, gradient in enumerate(found):
        assert_close(gradient, alone[0][number] + alone[1][number], "gradient", magnitude=1.0)


@pytest.mark.parametrize("name", [*zoo.list_losses()])
def test_a_learned_parameter_that_is_nan_is_an_error(name: str) -> None:
    params = {"temperature": learned(0.1)} if "temperature" in zoo.describe_loss(name).parameters else {}
    loss_fn, batch = zoo.get_loss(name, num_samples=40, **params), views()
    for parameter in loss_fn.parameters():
        parameter.data.fill_(math.nan)
        before = {key: tensor.clone() for key, tensor in loss_fn.state_dict().items()}
        with pytest.raises(ValueError, match=rf"the learned (temperature|logit_scale) of '{name}' is NaN"):
            batch.call(loss_fn)
        assert all(torch.equal(t, before[k]) or t.isnan().any() for k, t in loss_fn.state_dict().items())


@with_temperature
def test_a_parameter_keeps_its_dtype_and_refuses_nan_from_a_checkpoint(configuration: Configuration) -> None:
    loss_fn = configuration.make(temperature=nn.Parameter(torch.tensor(0.1)))
    loss_fn.load_state_dict(configuration.make(temperature=0.2).state_dict(), assign=True)
    assert loss_fn.temperature.dtype == torch.float32
    state = loss_fn.state_dict() | {"objective._temperature.value": torch.tensor(math.nan)}
    with pytest.raises(RuntimeError, match="temperature must be a number, got NaN"):
        loss_fn.load_state_dict(state)


@pytest.mark.usefixtures("_compiler")
def test_a_second_number_compiles_to_one_graph_too() -> None:
    """The compiler takes a float that differs from one seen before for an unknown one."""
    batch = views()
    for name, settings in (("kcl", [{"t": 1.0}, {"t": 2.0}]), ("hucl", [{"beta": 1.0}, {"beta": 2.0}]), ("ucl", [{}])):
        for params in settings:
            loss_fn = zoo.get_loss(name, **params)
            compiled = torch.compile(loss_fn, fullgraph=True, backend="eager")
            assert_close(compiled(*batch[:2]), loss_fn(*batch[:2]), name)


@pytest.mark.parametrize("value", [5e-324, 1e-46, 1e39, 10**400], ids=str)
def test_numbers_that_float32_cannot_work_with_are_refused(value: float) -> None:
    for name in ("ntxent", "sogclr", "isogclr"):
        with pytest.raises(ValueError, match="temperature must be"):
            zoo.get_loss(name, num_samples=4, temperature=value)
    dividing, others = [("dclw", "sigma")], [("kcl", "t"), ("hcl", "beta"), ("siglip", "init_bias")]
    for name, parameter in dividing + (others if value > 1 else []):
        with pytest.raises(ValueError, match=f"{parameter} must be"):
            zoo.get_loss(name, **{parameter: value})


def test_a_name_without_a_temperature_or_a_seed_says_so() -> None:
    for attribute in ("temperature", "seed", "logit_scale"):
        with pytest.raises(AttributeError, match=f"'kcl' has no {attribute}"):
            getattr(zoo.get_loss("kcl"), attribute)
        with pytest.raises(AttributeError, match=f"'kcl' has no {attribute}"):
            setattr(zoo.get_loss("kcl"), attribute, 0.1)


def test_a_loss_made_in_inference_mode_can_be_trained() -> None:
    for name in ("ntxent", "sogclr", "emc2"):
        with torch.inference_mode():
            loss_fn = zoo.get_loss(name, num_samples=40)
        loss_fn.temperature = 0.2
        views().call(loss_fn).backward()
