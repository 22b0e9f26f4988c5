"""Finite whatever the features: tiny and huge, zero, equal, opposite and orthogonal rows, all temperatures."""

from typing import Any

import pytest
import torch
from cases import (
    BACKENDS,
    CONFIGURATIONS,
    DEFAULTS,
    NUM_SAMPLES,
    Configuration,
    Views,
    gradients,
    guaranteed,
    outcome,
    snapshot,
    views,
)
from hypothesis import given
from hypothesis import strategies as st
from tolerances import assert_close

GEOMETRIES = ["random", "all rows equal", "views equal", "views opposite", "orthogonal", "few directions"]


@st.composite
def batches(draw: st.DrawFn) -> Views:
    """float32 views of at least two samples."""
    size, width = draw(st.integers(2, 9)), draw(st.integers(1, 9))
    random = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    z1, z2 = torch.randn(2, size, width, generator=random, dtype=torch.float64)
    geometry = draw(st.sampled_from(GEOMETRIES))
    if geometry == "all rows equal":
        z1 = z2 = z1[:1].expand(size, width)
    elif geometry == "views equal":
        z2 = z1
    elif geometry == "views opposite":
        z2 = -z1
    elif geometry == "orthogonal":
        z1 = z2 = torch.eye(max(size, width), dtype=torch.float64)[:size, :width]
    elif geometry == "few directions":
        z1, z2 = (z[torch.randint(0, size, (size,), generator=random) // 2] for z in (z1, z2))
    smallest, largest = sorted(draw(st.tuples(st.floats(-18, 18), st.floats(-18, 18))))
    exponents = smallest + (largest - smallest) * torch.rand(2, size, 1, generator=random, dtype=torch.float64)
    zero = torch.rand(2, size, 1, generator=random) < draw(st.sampled_from([0.0, 0.3]))
    scales = torch.where(zero, 0, 10**exponents)
    index = torch.randperm(NUM_SAMPLES, generator=random)[:size]
    if size > 2 and draw(st.booleans()):
        index[-1] = index[0]
    labels = torch.arange(size) % 3
    return Views(*((z * scale).float().requires_grad_() for z, scale in zip((z1, z2), scales, strict=True)), index, labels)


def parameters(configuration: Configuration) -> st.SearchStrategy[dict[str, Any]]:
    if "temperature" not in configuration.card.parameters:
        return st.just({})
    exponents = st.floats(-2.3, 1.0)
    return st.fixed_dictionaries({"temperature": exponents.map(lambda exponent: max(0.005, 10**exponent))})


@pytest.mark.parametrize("backend", BACKENDS)
@guaranteed("finite")
@given(data=st.data())
def test_value_gradient_and_state_are_finite(configuration: Configuration, backend: str, data: st.DataObject) -> None:
    batch, params = data.draw(batches()), data.draw(parameters(configuration))
    loss_fn = configuration.make(backend=backend, **params)
    for _ in range(2):
        loss = batch.call(loss_fn)
        assert loss.isfinite()
        for z, gradient in zip(batch[:2], gradients(loss, batch), strict=True):
            assert gradient.isfinite().all()
            zero_rows = ~z.detach().any(1)
            assert not gradient[zero_rows].any()
        for name, tensor in snapshot(loss_fn).items():
            assert tensor.isfinite().all(), name
    assert all(figure.isfinite() for figure in loss_fn.diagnostics.values())


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("configuration", CONFIGURATIONS, ids=str)
@pytest.mark.parametrize("exponent", [-25, -22, -18, 18, 25])
def test_scale_of_the_features_does_not_matter(configuration: Configuration, backend: str, exponent: int) -> None:
    draws = torch.Generator().manual_seed(0)
    z1, z2 = torch.randn(2, 6, 5, generator=draws)
    found = []
    for scale in (1.0, 10.0**exponent):
        batch = Views((z1 * scale).requires_grad_(), (z2 * scale).requires_grad_(), torch.arange(6), torch.arange(6))
        loss = batch.call(configuration.make(backend=backend))
        found.append((loss, *(gradient * scale for gradient in gradients(loss, batch))))
    for first, second in zip(*found, strict=True):
        torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-4)


def test_float64_reaches_further() -> None:
    for exponent in (-200, 200):
        z = (torch.randn(2, 6, 5, dtype=torch.float64) * 10.0**exponent).requires_grad_()
        loss = Configuration("ntxent", {}).make()(*z)
        assert loss.isfinite()
        assert torch.autograd.grad(loss, z)[0].isfinite().all()


@pytest.mark.parametrize("configuration", DEFAULTS, ids=str)
def test_a_zero_row_in_the_ball_has_the_same_gradient_on_both_backends(configuration: Configuration) -> None:
    """It is inside the ball, so nothing is scaled."""
    batch = views(12, 64)
    with torch.no_grad():
        batch.z1.mul_(0.05)[0] = 0
        batch.z2.mul_(0.05)
    dense, tiled = (outcome(configuration, batch, backend=backend, normalize="ball") for backend in ("dense", "tiled"))
    for number, (some, other) in enumerate(zip(dense, tiled, strict=True)):
        assert_close(some, other, f"output {number}", magnitude=1.0)
