"""Any real scalar is a number, for every parameter of every loss, sampler, batch sampler and metric, and is checked as one."""

import inspect
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from cases import DEFAULTS, NUM_SAMPLES, Configuration, views
from torch import nn

import contrastive_zoo as zoo
from contrastive_zoo import Card, batch_samplers, metrics
from contrastive_zoo.checks import check_bool, check_count, check_number

SCALARS: dict[str, Callable[[float], Any]] = {
    "float64": np.float64,
    "float32": np.float32,
    "array": np.array,
    "tensor": lambda value: torch.tensor(value, dtype=torch.float64),
    "fraction": Fraction,
}
WHOLE: dict[str, Callable[[int], Any]] = {
    "int64": np.int64,
    "uint8": np.uint8,
    "array": np.array,
    "tensor": torch.tensor,
}
scalars = pytest.mark.parametrize("kind", SCALARS)
whole = pytest.mark.parametrize("kind", WHOLE)

# A value that float32 holds exactly, for each numeric parameter of a loss or sampler.
VALUES = {"temperature": 0.25, "temperature_min": 0.125, "temperature_max": 0.5, "init_scale": 8.0, "max_scale": 64.0}
OTHERS = {"gamma": 0.5, "tau_plus": 0.125, "burn_in": 0.25, "momentum": 0.25}


def numeric(card: Card) -> list[str]:
    """Parameters of a card that are numbers."""
    return [name for name, value in card.parameters.items() if isinstance(value, float) or name in card.ranges]


def value_of(card: Card, name: str) -> float:
    return VALUES.get(name, OTHERS.get(name, 0.5)) if isinstance(card.parameters[name], float) else 4


LOSS_PARAMETERS = [(c, name) for c in DEFAULTS for name in numeric(c.card)]
with_parameter = pytest.mark.parametrize(
    ("configuration", "name"), LOSS_PARAMETERS, ids=[f"{c}.{name}" for c, name in LOSS_PARAMETERS]
)


def test_every_float_of_a_loss_or_sampler_has_its_interval() -> None:
    cards = [*map(zoo.describe_loss, zoo.list_losses()), *map(zoo.describe_sampler, zoo.list_samplers())]
    for card in cards:
        assert {name for name, value in card.parameters.items() if isinstance(value, float)} <= set(card.ranges), card.name


@with_parameter
@scalars
def test_numbers_of_losses(configuration: Configuration, name: str, kind: str) -> None:
    value, batch = value_of(configuration.card, name), views()
    kinds = SCALARS if isinstance(value, float) else WHOLE
    if kind not in kinds:
        pytest.skip("no whole number")
    loss_fn, expected = (configuration.make(**{name: given}) for given in (kinds[kind](value), value))
    for _ in range(2):
        assert torch.equal(batch.call(loss_fn), batch.call(expected))


@with_parameter
@pytest.mark.parametrize("kind", ["float32", "tensor"])
def test_numbers_of_losses_are_checked(configuration: Configuration, name: str, kind: str) -> None:
    limits = configuration.card.ranges[name]
    wrong = [float("nan"), float("inf")]
    wrong += [limits.low - 1.5] if limits.low > -float("inf") else []
    wrong += [limits.high + 0.5] if limits.high < float("inf") else []
    for value in wrong:
        with pytest.raises(ValueError, match=f"{name} must be a finite number in"):
            configuration.make(**{name: SCALARS[kind](value)})


@with_parameter
@pytest.mark.parametrize("value", [np.bool_(True), torch.tensor(True), np.complex64(1), np.ones(1), "0.5", [0.5]], ids=repr)
def test_what_is_no_number_is_refused(configuration: Configuration, name: str, value: object) -> None:
    with pytest.raises(TypeError, match=f"{name} must be a number"):
        configuration.make(**{name: value})


def test_a_constant_does_not_take_a_parameter() -> None:
    """It would never learn."""
    for name, parameter in (("sogclr", "gamma"), ("hcl", "beta"), ("clip", "init_scale")):
        with pytest.raises(TypeError, match=f"{parameter} must be a constant number, got a tensor that wants a gradient"):
            zoo.get_loss(name, num_samples=4, **{parameter: nn.Parameter(torch.tensor(1.0))})


def test_only_gamma_may_be_a_schedule() -> None:
    with pytest.raises(TypeError, match="rho must be a number"):
        zoo.get_loss("isogclr", num_samples=4, rho=lambda step: 0.3)


@whole
@pytest.mark.parametrize("name", ["num_samples", "seed", "embedding_dim"])
def test_whole_numbers_common_to_all_losses(name: str, kind: str) -> None:
    value = {"num_samples": NUM_SAMPLES, "seed": 3, "embedding_dim": 6}[name]
    for configuration in DEFAULTS:
        loss_fn = configuration.make(**{name: WHOLE[kind](value)})
        assert torch.equal(views().call(loss_fn), views().call(configuration.make(**{name: value})))


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("seed", np.float32(1.5), TypeError),
        ("seed", torch.tensor(-1), ValueError),
        ("seed", 2**63, ValueError),
        ("num_samples", np.float64(4.0), TypeError),
        ("num_samples", np.int64(0), ValueError),
        ("num_samples", torch.tensor([4]), TypeError),
    ],
)
def test_whole_numbers_are_checked(name: str, value: object, error: type[Exception]) -> None:
    for configuration in DEFAULTS:
        with pytest.raises(error, match=f"{name} must be"):
            configuration.make(**{name: value})


@pytest.mark.parametrize("value", [True, np.bool_(True), torch.tensor(True)], ids=repr)
def test_truth_values(value: object) -> None:
    loss_fn = zoo.get_loss("ucl", self_positive=value)
    assert loss_fn.objective.self_positive is True
    with pytest.raises(TypeError, match="self_positive of 'ucl' must be True or False, got 1"):
        zoo.get_loss("ucl", self_positive=1)


@scalars
@pytest.mark.parametrize("sampler", zoo.list_samplers())
def test_numbers_of_samplers(sampler: str, kind: str) -> None:
    card = zoo.describe_sampler(sampler)
    for name in numeric(card):
        value = value_of(card, name)
        given = (SCALARS if isinstance(value, float) else WHOLE).get(kind, np.int64)(value)
        made = zoo.get_sampler(sampler, num_samples=np.int64(NUM_SAMPLES), seed=np.int32(3), **{name: given})
        expected = zoo.get_sampler(sampler, num_samples=NUM_SAMPLES, seed=3, **{name: value})
        batch = views()
        losses = [zoo.get_loss("sampled", num_samples=NUM_SAMPLES, sampler=each) for each in (made, expected)]
        assert torch.equal(*(batch.call(loss_fn) for loss_fn in losses))
        with pytest.raises(ValueError, match=f"{name} must be"):
            zoo.get_sampler(sampler, num_samples=NUM_SAMPLES, **{name: np.float32(-2)})


BATCH_SAMPLERS = {
    name: {"num_samples": 24, **({} if name == "full" else {"batch_size": 4})} for name in zoo.list_batch_samplers()
}


@whole
@pytest.mark.parametrize("name", BATCH_SAMPLERS)
def test_numbers_of_batch_samplers(name: str, kind: str) -> None:
    settings = {**BATCH_SAMPLERS[name], "seed": 5, "num_replicas": 2, "rank": 1}
    taken = inspect.signature(zoo.describe_batch_sampler(name).build).parameters
    settings |= {key: value for key, value in {"k": 3, "q": 2, "batches_per_epoch": 5}.items() if key in taken}
    made = zoo.get_batch_sampler(name, **{key: WHOLE[kind](value) for key, value in settings.items()})
    expected = zoo.get_batch_sampler(name, **settings)
    assert list(made) == list(expected)
    assert made.state_dict() == expected.state_dict()
    for key in settings:
        for wrong in (np.float32(2.5), np.bool_(True)):
            with pytest.raises(TypeError, match=f"{key} must be a whole number"):
                zoo.get_batch_sampler(name, **settings | {key: wrong})


@scalars
def test_numbers_of_the_graph_of_batches(kind: str) -> None:
    (z1, z2, *_), number = views(8, 4), SCALARS[kind]
    pairs = [(np.int64(4), number(0.25)), (4, 0.25)]
    assert torch.equal(*(batch_samplers.loss_graph(z1, z2, batch_size=b, temperature=t) for b, t in pairs))
    with pytest.raises(ValueError, match="temperature must be"):
        batch_samplers.loss_graph(z1, z2, batch_size=4, temperature=number(0.0))
    with pytest.raises(ValueError, match="temperature must be"):
        zoo.get_batch_sampler("spectral", num_samples=8, batch_size=4, temperature=number(0.0))


@scalars
def test_numbers_of_metrics(kind: str) -> None:
    number, (z1, z2, _, labels) = SCALARS[kind], views(dtype=torch.float32)
    z1, z2 = z1.detach(), z2.detach()
    split = (z1, labels, z2, labels)
    cases: list[tuple[Callable[..., Any], tuple[Any, ...], dict[str, float]]] = [
        (metrics.alignment, (z1, z2), {"alpha": 0.5}),
        (metrics.uniformity, (z1,), {"t": 0.5}),
        (metrics.rank, (z1,), {"tol": 0.5}),
        (metrics.knn_accuracy, split, {"k": 3, "temperature": 0.5}),
        (metrics.linear_probe, split, {"C": 0.5, "max_iter": 50}),
        (metrics.global_contrastive_loss, (z1, z2), {"temperature": 0.5}),
        (metrics.gradient_error, (zoo.get_loss("dcl"), z1, z2), {"temperature": 0.5, "batch_size": 4, "epochs": 1, "seed": 2}),
    ]
    for metric, given, settings in cases:
        converted = {key: number(v) if isinstance(v, float) else np.int64(v) for key, v in settings.items()}
        assert metric(*given, **converted) == metric(*given, **settings), metric
        for key in settings:
            with pytest.raises((TypeError, ValueError), match=f"{key} must be"):
                metric(*given, **converted | {key: np.float32(-1.5)})
    assert metrics.retrieval_accuracy(z1, z2, k=(np.int64(1), torch.tensor(3))) == metrics.retrieval_accuracy(z1, z2, k=(1, 3))


@scalars
def test_numbers_of_schedules(kind: str) -> None:
    number = SCALARS[kind]
    assert zoo.CosineSchedule(number(1.0), number(0.25), steps=np.int64(4)) == zoo.CosineSchedule(1.0, 0.25, steps=4)
    with pytest.raises(ValueError, match="steps must be at least 1"):
        zoo.CosineSchedule(1.0, number(0.25), steps=np.int64(0))


def test_scalars_are_returned_as_numbers_of_python() -> None:
    assert type(check_number("x", torch.tensor(0.5))) is float
    assert type(check_count("x", np.uint8(3))) is int
    assert type(check_bool("x", np.bool_(False))) is bool
    with pytest.raises(TypeError, match="x must be a constant number, got a tensor that is on the meta device"):
        check_number("x", torch.empty((), device="meta"))
