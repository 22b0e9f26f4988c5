import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import normalize

from contrastive_zoo import metrics
from contrastive_zoo.metrics import effective_rank, rank, spectrum


def draw(rows, features, seed=0):
    return torch.randn(rows, features, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def slow_effective_rank(z):
    s = np.linalg.svd(z.numpy(), compute_uv=False)
    p = s / s.sum() + 1e-7
    p = p / p.sum()
    return math.exp(-sum(x * math.log(x) for x in p))


@pytest.mark.parametrize("case", ["metrics_a", "metrics_b", "metrics_lowrank"])
def test_authors_ranks(golden, case):
    data = golden(f"dhel_kcl/{case}")
    unit = normalize(data["z1"], dim=1)
    assert (rank(unit), rank(data["z1"])) == (int(data["rank"]), int(data["rank_raw"]))
    assert effective_rank(unit) == pytest.approx(float(data["effective_rank"]), rel=1e-9)
    assert effective_rank(data["z1"]) == pytest.approx(float(data["effective_rank_raw"]), rel=1e-9)


@pytest.mark.parametrize("case", ["nc_metrics", "nc_metrics_scl_nb"])
def test_authors_spectrum(golden, case):
    data = golden(f"hscl/{case}")
    values = spectrum(data["class_means"][-1])
    torch.testing.assert_close(values, data["cov_singular_values_last"], rtol=1e-10, atol=1e-14)
    logs, expected = (values / values[0]).log(), data["log_normalised_singular_values_last"]
    above_round_off = expected > -30
    torch.testing.assert_close(logs[above_round_off], expected[above_round_off], rtol=1e-9, atol=1e-9)
    assert (logs[~above_round_off] < -30).all()


@settings(deadline=None, max_examples=40)
@given(rows=st.integers(2, 30), features=st.integers(1, 12), shift=st.floats(-5, 5), seed=st.integers(0, 999))
def test_spectrum_and_effective_rank_for_any_shape(rows, features, shift, seed):
    z = draw(rows, features, seed) + shift
    covariance = np.atleast_2d(np.cov(z.numpy().T))
    expected = torch.as_tensor(np.linalg.svd(covariance, compute_uv=False))
    torch.testing.assert_close(spectrum(z), expected, rtol=1e-10, atol=1e-12)
    assert effective_rank(z) == pytest.approx(slow_effective_rank(z), rel=1e-9)


def test_spectrum_of_a_cross_polytope():
    scale = torch.tensor([3.0, 2.0, 1.0]).diag()
    values = spectrum(torch.cat([scale, -scale]))
    torch.testing.assert_close(values, torch.tensor([18.0, 8.0, 2.0], dtype=torch.float64) / 5)


def test_rank_counts_dimensions_and_not_the_offset():
    z = draw(50, 3) @ draw(3, 20, seed=1)
    assert rank(z) == 3
    assert rank((z + 100).float()) == 3
    assert rank(torch.ones(7, 4)) == 0
    assert rank(torch.eye(6)) == 5


def test_rank_counts_what_is_above_the_tolerance():
    z = torch.tensor([1.0, 1e-2, 1e-4], dtype=torch.float64).diag()
    z = torch.cat([z, -z])  # singular values of the covariance: 2/5 of the squares
    assert [rank(z, tol) for tol in (1e-9, 1e-8, 1e-5, 1e-4, 0.39, 0.41)] == [3, 2, 2, 1, 1, 0]


def test_effective_rank_of_known_configurations():
    assert effective_rank(torch.eye(8)) == pytest.approx(8)
    assert effective_rank(torch.eye(8).repeat(5, 1)) == pytest.approx(8)
    assert effective_rank(torch.ones(9, 4)) == pytest.approx(1, abs=1e-5)
    assert effective_rank(torch.eye(3)[:1]) == pytest.approx(1)
    assert effective_rank(torch.zeros(4, 3)) == 0
    halves = torch.tensor([3.0, 1.0]).diag()
    assert effective_rank(halves) == pytest.approx(4 / 3**0.75, rel=1e-6)


@pytest.mark.parametrize("rows", [3, 40])
def test_rotation_and_scale(rows):
    z = draw(rows, 6)
    rotation = torch.linalg.qr(draw(6, 6, seed=2)).Q
    torch.testing.assert_close(spectrum(10 * z @ rotation), 100 * spectrum(z))
    assert effective_rank(10 * z @ rotation) == pytest.approx(effective_rank(z))


def test_tolerance_must_be_positive():
    with pytest.raises(ValueError, match="tol must be a finite number"):
        rank(torch.eye(3), tol=0)


def power_law(exponent: float, features: int = 128, scale: float = 1.0) -> torch.Tensor:
    """Rows whose covariance has exactly the eigenvalues k^-exponent, times a constant."""
    rows = torch.linalg.qr(torch.randn(300, features, dtype=torch.float64, generator=torch.Generator().manual_seed(0))).Q
    return scale * torch.cat([rows, -rows]) * torch.arange(1, features + 1, dtype=torch.float64) ** (-exponent / 2)


@pytest.mark.parametrize("exponent", [0.0, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_alpha_req_is_the_exponent_of_a_power_law(exponent: float, scale: float) -> None:
    assert metrics.alpha_req(power_law(exponent, scale=scale)) == pytest.approx(exponent, abs=1e-9)


def test_alpha_req_is_the_weighted_fit_of_the_authors_range() -> None:
    """NumPy's fit, whose weights multiply residuals before they are squared."""
    z = torch.randn(500, 128, generator=torch.Generator().manual_seed(1)) * torch.linspace(1, 3, 128)
    values = metrics.spectrum(z).numpy()
    ranks = np.arange(4, 101)
    slope, _ = np.polyfit(np.log(ranks), np.log(values[3:100]), 1, w=ranks**-0.5)
    assert metrics.alpha_req(z) == pytest.approx(-slope)


def test_alpha_req_leaves_rounding_errors_out() -> None:
    flat = power_law(1.0, features=20) @ torch.eye(20, 40, dtype=torch.float64)  # 20 eigenvalues of 40 are 0
    assert metrics.alpha_req(flat) == pytest.approx(1.0)
    with pytest.raises(ValueError, match="only 3 eigenvalues of the covariance"):
        metrics.alpha_req(power_law(1.0, features=3))


def test_rankme_has_the_offset_of_the_paper() -> None:
    z = torch.randn(200, 30, generator=torch.Generator().manual_seed(2))
    p = np.linalg.svd(z.double().numpy(), compute_uv=False)
    p = p / np.abs(p).sum() + 1e-7
    assert metrics.rankme(z) == pytest.approx(np.exp(-(p * np.log(p)).sum()), rel=1e-12)
    assert metrics.rankme(torch.zeros(4, 3)) == 0
