"""Each stateless objective against its double loop: value and gradients in float64, samples that come twice, extra keys."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import oracle
import pytest
import torch
from cases import BACKENDS, NAMES, Views, rows, views
from tolerances import assert_close
from torch import Tensor
from torch.autograd import gradcheck

import contrastive_zoo as zoo


class Case(NamedTuple):
    name: str
    params: dict[str, Any]
    reference: Callable[..., Tensor]

    def __str__(self) -> str:
        return "-".join([self.name, *(f"{key}={value}" for key, value in self.params.items())])

    def needed(self, batch: Views) -> dict[str, Tensor]:
        """What a call needs besides features."""
        return {"labels": batch.labels} if "labels" in zoo.describe_loss(self.name).needs else {}


CASES = [
    *(Case("ntxent", {"temperature": t}, oracle.ntxent) for t in (0.005, 0.1, 10.0)),
    *(Case("dcl", {"temperature": t}, oracle.dcl) for t in (0.005, 0.1, 10.0)),
    *(Case("dclw", {"temperature": t, "sigma": s}, oracle.dclw) for t, s in [(0.005, 0.5), (0.1, 0.5), (0.2, 0.1)]),
    *(Case("infonce", {"temperature": t}, oracle.infonce) for t in (0.005, 0.1, 10.0)),
    Case("infonce", {"temperature": 0.2, "symmetric": False}, oracle.infonce),
    *(Case("clip", {"init_scale": scale}, oracle.clip) for scale in (1.0, 1 / 0.07, 100.0)),
    *(Case("debiased", {"temperature": t, "tau_plus": p}, oracle.debiased) for t, p in [(0.5, 0.1), (0.1, 0.3), (0.5, 0.0)]),
    *(
        Case("hcl", {"temperature": t, "tau_plus": p, "beta": b}, oracle.hcl)
        for t, p, b in [(0.5, 0.1, 1.0), (0.1, 0.1, 2.0), (0.5, 0.4, 0.5), (0.1, 0.0, 1.0), (0.5, 0.1, 0.0), (0.005, 0.1, 1.0)]
    ),
    *(Case("supcon", {"temperature": t}, oracle.supcon) for t in (0.005, 0.1, 10.0)),
    *(Case("dhel", {"temperature": t}, oracle.dhel) for t in (0.005, 0.3, 10.0)),
    Case("dhel", {"temperature": 0.3, "both_views": False}, oracle.dhel),
    *(
        Case("alignment_uniformity", {"alpha": alpha, "t": t, "weight": weight}, oracle.alignment_uniformity)
        for alpha, t, weight in [(2.0, 2.0, 1.0), (1.0, 2.0, 1.0), (2.0, 0.1, 0.5), (3.0, 20.0, 2.0), (2.0, 100.0, 1.0)]
    ),
    *(Case("spectral_contrastive", {"radius": radius}, oracle.spectral_contrastive) for radius in (1.0, 0.5, 10.0**0.5)),
    *(
        Case("kcl", {"kernel": kernel, "t": t, "gamma": gamma}, oracle.kcl)
        for kernel, t, gamma in [
            ("gaussian", 2.0, 16.0),
            ("log", 0.7, 3.0),
            ("imq", 0.5, 5.0),
            ("riesz", 1.0, 2.0),
            ("riesz", -1.5, 4.0),
            ("gaussian_riesz", -1.5, 4.0),
            ("gaussian_riesz", 1.0, 2.0),
        ]
    ),
    *(
        # The parameter is the logarithm of the scale in float32.
        Case("siglip", {"init_scale": math.exp(np.float32(math.log(scale))), "init_bias": bias}, oracle.siglip)
        for scale, bias in [(10, -10), (3, -1), (99, 5)]
    ),
    *(Case("ucl", {"self_positive": p}, oracle.ucl) for p in (True, False)),
    *(Case("hucl", {"beta": b, "self_positive": p}, oracle.hucl) for b, p in [(1.0, True), (5.0, False), (0.0, True)]),
    *(Case("scl", {"self_positive": p}, oracle.scl) for p in (True, False)),
    *(Case("hscl", {"beta": b, "self_positive": p}, oracle.hscl) for b, p in [(1.0, True), (5.0, False), (0.0, True)]),
]
# Their gradient takes weights for constants, so that it is not the derivative of the value.
CONSTANT_WEIGHTS = {"dclw", "hucl", "hscl"}
SHAPES = [(2, 1), (3, 5), (13, 4)]
every_case = pytest.mark.parametrize("case", CASES, ids=str)


def assert_equals_reference(case: Case, batch: Views, found: Tensor, expected: Tensor, *more: Tensor) -> None:
    """Value, and gradients of both views and of anything more."""
    logit = case.params.get("init_scale", 2 * case.params.get("t", 5.0))
    logit = 1 / case.params["temperature"] if "temperature" in case.params else logit
    # Losses and gradients are differences of terms as large as logits, gradients over the length of their row.
    shortest = min(float(z.detach().norm(dim=1).min()) for z in batch[:2])
    magnitude, value = max(1.0, logit / 10) / min(1.0, shortest), oracle.mean(expected)
    assert_close(found, value, "loss", logit=logit, magnitude=1.0)
    leaves = (*batch[:2], *more)
    wanted = torch.autograd.grad(value, leaves)
    for name, a, b in zip(("z1", "z2", "negatives"), torch.autograd.grad(found, leaves), wanted, strict=False):
        assert_close(a, b, f"gradient of {name}", logit=logit, magnitude=magnitude)


def test_every_stateless_name_has_a_reference() -> None:
    assert {case.name for case in CASES} == {name for name in NAMES if not zoo.describe_loss(name).stateful}


@every_case
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_value_and_gradients(case: Case, shape: tuple[int, int], backend: str) -> None:
    batch = views(*shape)
    needed = case.needed(batch)
    loss = zoo.get_loss(case.name, backend=backend, **case.params).double()(*batch[:2], **needed)
    assert_equals_reference(case, batch, loss, case.reference(*batch[:2], **case.params, **needed))


@every_case
@pytest.mark.parametrize("backend", BACKENDS)
def test_samples_that_come_twice(case: Case, backend: str) -> None:
    batch, index = views(7, 4), torch.tensor([9, 3, 9, 5, 3, 9, 0])
    needed = case.needed(batch)
    loss = zoo.get_loss(case.name, backend=backend, **case.params).double()(*batch[:2], index=index, **needed)
    assert_equals_reference(case, batch, loss, case.reference(*batch[:2], **case.params, **needed, ids=index.tolist()))


@pytest.mark.parametrize(
    "case", [c for c in CASES if c.params.get("temperature", 1) >= 0.1 and c.name not in CONSTANT_WEIGHTS], ids=str
)
@pytest.mark.parametrize("backend", BACKENDS)
def test_finite_differences(case: Case, backend: str) -> None:
    batch, loss_fn = views(4, 2), zoo.get_loss(case.name, backend=backend, **case.params)
    index = torch.tensor([4, 1, 2, 1])
    assert gradcheck(lambda z1, z2: loss_fn(z1, z2, index=index, labels=batch.labels), batch[:2])


def extra_keys(shape: tuple[int, ...]) -> Tensor:
    return rows(math.prod(shape[:-1]), shape[-1], seed=2, unit=False).detach().view(shape).requires_grad_()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "case",
    [
        *(Case(name, {"temperature": 0.2}, getattr(oracle, name)) for name in ("ntxent", "dcl", "infonce")),
        Case("dclw", {"temperature": 0.2, "sigma": 0.5}, oracle.dclw),
        Case("debiased", {"temperature": 0.5, "tau_plus": 0.1}, oracle.debiased),
        Case("hcl", {"temperature": 0.5, "tau_plus": 0.1, "beta": 1.0}, oracle.hcl),
    ],
    ids=str,
)
@pytest.mark.parametrize("shape", [(5, 4), (7, 5, 4)], ids=["for all", "for each"])
@pytest.mark.parametrize("owned", [False, True], ids=["of nobody", "some of samples"])
def test_extra_keys(case: Case, shape: tuple[int, ...], owned: bool, backend: str) -> None:
    batch, index = views(7, 4), torch.tensor([9, 3, 9, 5, 3, 9, 0])
    keys = extra_keys(shape)
    owners = torch.randint(0, 10, shape[:-1]) if owned else None
    loss_fn = zoo.get_loss(case.name, backend=backend, **case.params)
    loss = loss_fn(*batch[:2], index=index, negatives=keys, negatives_index=owners)
    expected = case.reference(*batch[:2], **case.params, ids=index.tolist(), negatives=keys, negatives_ids=owners)
    assert_equals_reference(case, batch, loss, expected, keys)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", [(5, 4), (7, 5, 4)], ids=["for all", "for each"])
def test_infonce_with_extra_keys_alone(shape: tuple[int, ...], backend: str) -> None:
    params = {"temperature": 0.2, "symmetric": False, "in_batch": False}
    batch = views(7, 4)
    keys = extra_keys(shape)
    loss = zoo.get_loss("infonce", backend=backend, **params)(*batch[:2], negatives=keys)
    expected = oracle.infonce(*batch[:2], **params, negatives=keys)
    assert_equals_reference(Case("infonce", params, oracle.infonce), batch, loss, expected, keys)


@pytest.mark.parametrize("backend", BACKENDS)
def test_floor_of_the_debiased_negatives(backend: str) -> None:
    """A close positive and a large tau_plus leave a negative count: the floor holds, and Ng is a constant."""
    batch = views(6, 8)
    close = batch._replace(z2=(batch.z1.detach() * 1.01).requires_grad_())
    params = {"temperature": 0.5, "tau_plus": 0.5, "beta": 1.0}
    loss_fn = zoo.get_loss("hcl", backend=backend, **params)
    loss = loss_fn(*close[:2])
    assert loss_fn.diagnostics["clamped_anchors"] == 1
    assert_equals_reference(Case("hcl", params, oracle.hcl), close, loss, oracle.hcl(*close[:2], **params))


def test_a_gradient_of_one_view_only_is_that_of_a_frozen_other() -> None:
    batch = views(6, 4)
    z2 = batch.z2.detach()
    loss = zoo.get_loss("dcl", temperature=0.2)(batch.z1, z2)
    expected = oracle.mean(oracle.dcl(batch.z1, z2, temperature=0.2))
    assert_close(torch.autograd.grad(loss, batch.z1)[0], torch.autograd.grad(expected, batch.z1)[0], "gradient of z1")


def test_tied_views_get_both_gradients() -> None:
    z = views(6, 4).z1
    loss, expected = zoo.get_loss("ntxent", temperature=0.2)(z, 2 * z), oracle.ntxent(z, 2 * z, temperature=0.2)
    found, wanted = (torch.autograd.grad(value, z)[0] for value in (loss, oracle.mean(expected)))
    assert_close(found, wanted, "gradient", magnitude=1.0)
