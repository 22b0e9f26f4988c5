"""Sizes, dtypes, scales, and the configurations of every registered loss that all tests go through."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import pytest
import torch
from guarantees import GUARANTEES
from torch import Tensor, nn

import contrastive_zoo as zoo
from contrastive_zoo import Loss
from contrastive_zoo.pairwise import backends

# (rows, features): one, two and three rows, sizes that no tile divides, one feature.
SIZES = [(1, 4), (2, 1), (3, 5), (63, 7), (111, 3)]
DTYPES = [torch.float32, torch.float64]
HALF = [torch.float16, torch.bfloat16]
# Those that compute everything on every device; "fused" has tests of its own.
BACKENDS = sorted(set(backends.BACKENDS) - {"fused"})
TEMPERATURES = [0.005, 0.1, 1.0, 10.0]

NUM_SAMPLES = 40

# Parameters to try besides the defaults; a name that is not listed is tried with its defaults.
VARIANTS: dict[str, list[dict[str, Any]]] = {
    "alignment_uniformity": [{"alpha": 1.0, "t": 3.0, "weight": 0.5}],
    "infonce": [{"symmetric": False}],
    "dhel": [{"both_views": False}],
    "hcl": [{"beta": 0.0}, {"beta": 2.0, "tau_plus": 0.3}],
    "kcl": [
        {"kernel": "log"},
        {"kernel": "imq"},
        {"kernel": "riesz", "t": 1.0},
        {"kernel": "riesz", "t": -1.5},
        {"kernel": "gaussian_riesz", "t": -1.5},
    ],
    "spectral_contrastive": [{"radius": 2.0}],
    "sogclr": [{"intra_view": False, "gamma": 0.5}, {"gamma": zoo.CosineSchedule(1.0, 0.2, steps=3)}],
    "isogclr": [{"intra_view": False, "gamma": 0.5, "momentum": 0.5}, {"eta": 0.1, "rho": 0.1}],
    "emc2": [{"out_of_batch": "skip", "burn_in": 0.0}],
    "siglip": [{"init_scale": 3.0, "init_bias": -1.0}],
    "ucl": [{"self_positive": False}, {"num_negatives": 3}],
    "hucl": [{"beta": 5.0, "self_positive": False}, {"num_negatives": 3}],
    "scl": [{"self_positive": False}, {"num_negatives": 3}],
    "hscl": [{"beta": 5.0, "self_positive": False}, {"num_negatives": 3, "self_positive": False}],
    "negative_cache": [{"num_negatives": 1}],
    "sampled": [
        {"sampler": "gumbel", "num_negatives": 5},
        {"sampler": "mcmc"},
        {"sampler": "queue", "num_negatives": 30},
        {"sampler": "topk", "num_negatives": 5},
    ],
}


class Configuration(NamedTuple):
    """A registered name with parameters."""

    name: str
    params: dict[str, Any]

    def __str__(self) -> str:
        return "-".join([self.name, *(f"{key}={value}" for key, value in self.params.items())])

    @property
    def card(self) -> zoo.Card:
        return zoo.describe_loss(self.name)

    def learning(self, **params: Any) -> Loss:
        """The same in float64, with a learned temperature where it has one."""
        if "temperature" in self.card.parameters:
            params["temperature"] = nn.Parameter(torch.tensor(0.3, dtype=torch.float64))
        return self.make(**params).double()

    @property
    def draws(self) -> bool:
        """Whether it draws at random; not if its sampler does not, and ``num_negatives=None`` is an expectation."""
        given = {"num_negatives": 1, **self.card.parameters, **self.params}
        if "sampler" in given:
            return zoo.describe_sampler(given["sampler"]).draws
        return self.card.draws and given["num_negatives"] is not None

    def make(self, **params: Any) -> Loss:
        """The loss, for NUM_SAMPLES samples unless `params` say otherwise."""
        return zoo.get_loss(self.name, **{"num_samples": NUM_SAMPLES, **self.params, **params})


NAMES = zoo.list_losses()
DEFAULTS = [Configuration(name, {}) for name in NAMES]
CONFIGURATIONS = [Configuration(name, params) for name in NAMES for params in ({}, *VARIANTS.get(name, []))]
STATELESS = [c for c in CONFIGURATIONS if not c.card.stateful]
STATEFUL = [c for c in CONFIGURATIONS if c.card.stateful]
# Those that keep something for each sample, which a queue does not.
WITH_TABLES = [c for c in STATEFUL if c.params.get("sampler") != "queue"]


def guaranteed(key: str, among: Sequence[Configuration] = CONFIGURATIONS) -> pytest.MarkDecorator:
    """Run a test for all names that a guarantee concerns; it must fail for those that are declared to be exceptions."""
    guarantee = GUARANTEES[key]
    cases = []
    for configuration in among:
        if guarantee.concerns(configuration.card):
            reason = guarantee.exception(configuration.card, configuration.params)
            broken = pytest.mark.xfail(strict=True, reason=reason, raises=(AssertionError, RuntimeError, ValueError))
            cases.append(pytest.param(configuration, marks=broken if reason else ()))
    return pytest.mark.parametrize("configuration", cases, ids=str)


class Views(NamedTuple):
    """What a call of a loss takes."""

    z1: Tensor
    z2: Tensor
    index: Tensor
    labels: Tensor

    def call(self, loss_fn: Loss) -> Tensor:
        return loss_fn(self.z1, self.z2, index=self.index, labels=self.labels)


def views(
    size: int = 12, width: int = 6, *, seed: int = 0, dtype: torch.dtype = torch.float64, num_samples: int = NUM_SAMPLES
) -> Views:
    """Two noisy views, leaves that want a gradient, of different samples of a dataset in random order."""
    draws, device = torch.Generator("cpu").manual_seed(seed), torch.get_default_device()
    with torch.device("cpu"):  # the same draws for all devices
        z1 = torch.randn(size, width, generator=draws, dtype=torch.float64)
        z2 = z1 + 0.5 * torch.randn(size, width, generator=draws, dtype=torch.float64)
        index = torch.randperm(num_samples, generator=draws)[:size].to(device)
    z1, z2 = (z.to(device, dtype).requires_grad_() for z in (z1, z2))
    return Views(z1, z2, index, torch.arange(size) % 4)


def gradients(loss: Tensor, batch: Views, weights: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Gradients of both views."""
    return torch.autograd.grad(loss, (batch.z1, batch.z2), weights)


def outcome(configuration: Configuration, batch: Views, **params: Any) -> tuple[Tensor, ...]:
    """Value and gradients of one call of a new loss, in the precision of the batch."""
    loss = batch.call(configuration.make(**params).to(batch.z1.dtype))
    return loss, *gradients(loss.sum(), batch)


def drawn(*shape: int, seed: int) -> Tensor:
    """Normal draws in float64, the same on all devices."""
    generator = torch.Generator("cpu").manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64, device="cpu").to(torch.get_default_device())


def rows(size: int, width: int, *, seed: int = 0, dtype: torch.dtype = torch.float64, unit: bool = True) -> Tensor:
    """Random rows, of length 1 unless told otherwise, that want a gradient."""
    x = drawn(size, width, seed=seed)
    x = torch.nn.functional.normalize(x, dim=1) if unit else x
    return x.to(dtype).requires_grad_()


def weights(*shape: int, seed: int = 7, dtype: torch.dtype = torch.float64) -> Tensor:
    """Upstream gradients, different for every entry and of both signs."""
    return drawn(*shape, seed=seed).to(dtype)


def snapshot(loss_fn: nn.Module) -> dict[str, Tensor]:
    """A copy of all state; sharded tables are put together, by all processes."""
    return {name: getattr(tensor, "full_tensor", tensor.clone)() for name, tensor in loss_fn.state_dict().items()}


def same_state(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    """Whether two snapshots agree bit for bit."""
    return first.keys() == second.keys() and all(
        first[name].dtype == second[name].dtype and torch.equal(first[name], second[name]) for name in first
    )


def largest_logit(temperature: float) -> float:
    """Largest |s / temperature| of unit rows."""
    return math.ceil(1 / temperature)
