"""What the papers prove: minimisers, values at known points, independence of the batch size."""

import math
from collections.abc import Callable
from functools import partial
from itertools import combinations
from typing import Any

import pytest
import torch
from cases import BACKENDS
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import contrastive_zoo as zoo


def minimise(loss_fn: Callable[..., Tensor], points: int, width: int) -> tuple[Tensor, Tensor]:
    """Unit rows of both views, free to move from a random start."""
    draws = torch.Generator().manual_seed(1)
    z = torch.randn(2, points, width, generator=draws, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([z], max_iter=300, tolerance_grad=1e-9, tolerance_change=0, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = loss_fn(z[0], z[1])
        loss.backward()
        return loss

    optimiser.step(closure)
    a, b = torch.nn.functional.normalize(z.detach(), dim=2)
    return a, b


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("name", "params", "width"),
    [
        *((name, {"temperature": 0.5}, width) for name in ("ntxent", "dcl", "dhel") for width in (5, 8)),
        *(("alignment_uniformity", {"t": 2.0}, width) for width in (5, 8)),
        # In the smallest space that holds the simplex the flat tails of the gaussian kernel have other minima.
        ("kcl", {"kernel": "gaussian", "t": 2.0, "gamma": 16.0}, 8),
        ("kcl", {"kernel": "log", "t": 2.0, "gamma": 16.0}, 5),
    ],
    ids=str,
)
def test_the_minimiser_is_the_simplex(name: str, params: dict[str, Any], width: int, backend: str) -> None:
    """With d >= N - 1 views coincide, and samples have the inner product -1/(N - 1).

    Koromilas et al., 2024, theorem 4.1; Cho et al., 2023, theorem 4.1.
    """
    points = 6
    a, b = minimise(zoo.get_loss(name, backend=backend, **params), points, width)
    simplex = torch.eye(points, dtype=torch.float64) * (1 + 1 / (points - 1)) - 1 / (points - 1)
    for gram in (a @ a.T, a @ b.T, b @ b.T):
        torch.testing.assert_close(gram, simplex, rtol=0, atol=1e-3)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_minimiser_of_supcon_is_the_simplex_of_the_classes(backend: str) -> None:
    """Rows of a class coincide, and classes have the inner product -1/(C - 1). Graf et al., 2021, theorem 2."""
    labels = torch.arange(6) % 3
    a, b = minimise(partial(zoo.get_loss("supcon", temperature=0.5, backend=backend), labels=labels), 6, 5)
    simplex = torch.where(labels[:, None] == labels[None, :], 1.0, -0.5).double()
    for gram in (a @ a.T, a @ b.T, b @ b.T):
        torch.testing.assert_close(gram, simplex, rtol=0, atol=1e-3)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("size", [2, 7, 33])
def test_all_rows_equal(size: int, backend: str) -> None:
    """Every anchor picks one of as many equal keys as there are."""
    z = torch.ones(size, 3, dtype=torch.float64)
    keys = {"ntxent": 2 * size - 1, "dcl": 2 * size - 2, "dclw": 2 * size - 2, "infonce": size}
    for name, count in keys.items():
        for temperature in (0.005, 0.1, 10.0):
            loss = zoo.get_loss(name, temperature=temperature, backend=backend)(z, z)
            assert float(loss) == pytest.approx(math.log(count), abs=1e-11)
    for name, params in {"sogclr": {}, "isogclr": {"rho": 0.0}, "emc2": {}}.items():
        params = params | {"num_samples": size, "temperature": 0.1, "backend": backend}
        loss = zoo.get_loss(name, **params).double()(z, z, index=torch.arange(size))
        assert float(loss) == pytest.approx(0, abs=1e-11)


@pytest.mark.parametrize("backend", BACKENDS)
def test_orthonormal_samples(backend: str) -> None:
    z = torch.eye(6, dtype=torch.float64)
    for temperature in (0.1, 1.0):
        for name, negatives in {"ntxent": 10, "infonce": 5}.items():
            loss = zoo.get_loss(name, temperature=temperature, backend=backend)(z, z)
            assert float(loss) == pytest.approx(math.log1p(negatives * math.exp(-1 / temperature)), rel=1e-12)


def mean_over_batches(loss_fn: zoo.Loss, z1: Tensor, z2: Tensor, size: int) -> float:
    """Expected value of a random mini-batch, by running through all of them."""
    batches = [torch.tensor(batch) for batch in combinations(range(len(z1)), size)]
    return float(torch.stack([loss_fn(z1[batch], z2[batch]) for batch in batches]).mean())


@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("kcl", {"kernel": "gaussian"}),
        ("kcl", {"kernel": "imq"}),
        ("kcl", {"kernel": "riesz", "t": 1.0}),
        ("spectral_contrastive", {"radius": 2.0}),
    ],
    ids=str,
)
def test_what_is_linear_in_its_pairs_does_not_depend_on_the_size_of_batches(name: str, params: dict[str, Any]) -> None:
    """Koromilas et al., 2024, section 5, and likewise HaoChen et al., 2021: mini-batches are unbiased. NT-Xent's are not."""
    draws = torch.Generator().manual_seed(0)
    z1, z2 = torch.randn(2, 7, 4, generator=draws, dtype=torch.float64)
    loss_fn = zoo.get_loss(name, **params)
    whole = float(loss_fn(z1, z2))
    for size in range(2, 7):
        assert mean_over_batches(loss_fn, z1, z2, size) == pytest.approx(whole, rel=1e-12)
    ntxent = zoo.get_loss("ntxent")
    assert mean_over_batches(ntxent, z1, z2, 3) != pytest.approx(float(ntxent(z1, z2)), rel=1e-2)


@given(
    size=st.integers(2, 9),
    width=st.integers(1, 6),
    classes=st.integers(2, 4),
    seed=st.integers(0, 2**16),
    beta=st.floats(0, 30),
    more=st.floats(0, 30),
    self_positive=st.booleans(),
    normalize=st.sampled_from(["sphere", "ball"]),
    backend=st.sampled_from(BACKENDS),
)
@pytest.mark.parametrize("name", ["scl", "ucl"])
def test_hardness_never_lessens_the_loss(
    name: str,
    size: int,
    width: int,
    classes: int,
    seed: int,
    beta: float,
    more: float,
    self_positive: bool,
    normalize: str,
    backend: str,
) -> None:
    """HSCL >= SCL and HUCL >= UCL for any features (Jiang et al., 2023), and the more the harder."""
    z1, z2 = torch.randn(2, size, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    common = {"self_positive": self_positive, "normalize": normalize, "backend": backend}
    easy, hard, harder = (
        float(zoo.get_loss(kind, **params, **common)(z1, z2, labels=torch.arange(size) % classes))
        for kind, params in ((name, {}), (f"h{name}", {"beta": beta}), (f"h{name}", {"beta": beta + more}))
    )
    assert easy <= hard + 1e-12
    assert hard <= harder + 1e-12


@pytest.mark.parametrize("backend", BACKENDS)
def test_classes_at_the_corners_of_a_simplex_minimise_scl(backend: str) -> None:
    """Neural collapse: rows of a class coincide, class means are a simplex, and hard negatives are not harder than others."""
    classes, labels = 4, torch.arange(8) % 4
    loss_fn = zoo.get_loss("scl", backend=backend)
    a, b = minimise(lambda z1, z2: loss_fn(z1, z2, labels=labels), 8, 5)
    simplex = torch.eye(classes, dtype=torch.float64) * (1 + 1 / (classes - 1)) - 1 / (classes - 1)
    for gram in (a @ a.T, a @ b.T, b @ b.T):
        torch.testing.assert_close(gram, simplex[labels][:, labels], rtol=0, atol=1e-3)
    least = math.log1p(math.exp(-1 - 1 / (classes - 1)))
    for name in ("scl", "hscl"):
        assert float(zoo.get_loss(name, backend=backend)(a, b, labels=labels)) == pytest.approx(least, abs=1e-6)


def test_debiased_negatives_without_debiasing_are_those_of_ntxent() -> None:
    z1, z2 = torch.randn(2, 9, 5, dtype=torch.float64)
    expected = float(zoo.get_loss("ntxent", temperature=0.5)(z1, z2))
    assert float(zoo.get_loss("debiased", tau_plus=0.0)(z1, z2)) == pytest.approx(expected, rel=1e-12)
    assert float(zoo.get_loss("hcl", tau_plus=0.0, beta=0.0)(z1, z2)) == pytest.approx(expected, rel=1e-12)
    assert float(zoo.get_loss("hcl", tau_plus=0.0, beta=1e-9)(z1, z2)) == pytest.approx(expected, rel=1e-6)
