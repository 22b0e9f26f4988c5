import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch.nn.functional import normalize

import contrastive_zoo as zoo
from contrastive_zoo import metrics
from contrastive_zoo.metrics import alignment, uniformity, wasserstein_uniformity
from contrastive_zoo.metrics.hypersphere import BINS

BIN_WIDTH = 2 / BINS


def draw(rows, features, seed=0, dtype=torch.float64):
    return torch.randn(rows, features, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def slow_alignment(z1, z2, alpha):
    distances = [math.dist(a, b) ** alpha for a, b in zip(z1.tolist(), z2.tolist(), strict=True)]
    return math.fsum(distances) / len(distances)


def slow_uniformity(z, t):
    rows = z.tolist()
    exponents = [-t * math.dist(rows[i], rows[j]) ** 2 for i in range(len(rows)) for j in range(i + 1, len(rows))]
    largest = max(exponents)
    return largest + math.log(math.fsum(math.exp(e - largest) for e in exponents) / len(exponents))


def slow_wasserstein(z, repeats=400):
    """W1 as the mean distance of the quantiles of both laws, at the middles of equal steps of probability."""
    rows = normalize(z.double(), dim=1)
    cosines = sorted(float(rows[i] @ rows[j]) for i in range(len(rows)) for j in range(i + 1, len(rows)))
    steps = len(cosines) * repeats
    a = (rows.shape[1] - 1) / 2
    quantiles = 2 * torch.as_tensor(stats.beta.ppf((torch.arange(steps) + 0.5).numpy() / steps, a, a)) - 1
    return float((torch.tensor(cosines).double().repeat_interleave(repeats) - quantiles).abs().mean())


@pytest.mark.parametrize("case", ["metrics_a", "metrics_b", "metrics_lowrank"])
def test_authors_alignment_and_uniformity(golden, case):
    data = golden(f"dhel_kcl/{case}")
    z1, z2 = normalize(data["z1"], dim=1), normalize(data["z2"], dim=1)
    for alpha in (1, 2):
        assert alignment(z1, z2, alpha) == pytest.approx(float(data[f"alignment_alpha{alpha}"]), rel=1e-12)
    for t in (2, 3):
        assert uniformity(z1, t) == pytest.approx(float(data[f"uniformity_t{t}"]), rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("case", ["wasserstein_a", "wasserstein_collapsed"])
def test_authors_wasserstein_uniformity(golden, case, dtype, tile):
    data = golden(f"dhel_kcl/{case}")
    assert wasserstein_uniformity(data["z1"].to(dtype)) == pytest.approx(float(data["exact_actual_dim"]), abs=2e-6)


@settings(deadline=None, max_examples=40)
@given(
    rows=st.integers(2, 12),
    features=st.integers(1, 7),
    exponent=st.floats(0.3, 4),
    scale=st.sampled_from([1e-3, 1.0, 30.0]),
    seed=st.integers(0, 999),
)
def test_alignment_and_uniformity_equal_the_double_loop(rows, features, exponent, scale, seed):
    z1, z2 = scale * draw(rows, features, seed), scale * draw(rows, features, seed + 1)
    assert alignment(z1, z2, exponent) == pytest.approx(slow_alignment(z1, z2, exponent), rel=1e-11)
    assert uniformity(z1, exponent) == pytest.approx(slow_uniformity(z1, exponent), rel=1e-11, abs=1e-13)


@pytest.mark.parametrize("offset", [0.0, 1.0, 1000.0])
@pytest.mark.parametrize("spread", [1e-4, 1e-2, 1.0])
def test_uniformity_in_float32_is_as_accurate_as_its_input(offset, spread):
    z = (offset + spread * draw(40, 16)).float()
    assert uniformity(z) == pytest.approx(slow_uniformity(z.double(), 2), rel=1e-7)


def test_uniformity_stays_finite_at_any_scale():
    z = draw(9, 4, dtype=torch.float32)
    assert uniformity(z * 1e18) == pytest.approx(slow_uniformity((z * 1e18).double(), 2), rel=1e-12)
    assert uniformity(z * 1e-30) == pytest.approx(0, abs=1e-50)


@pytest.mark.parametrize("t", [0.5, 2, 7])
def test_uniformity_of_known_configurations(t, tile):
    assert uniformity(torch.eye(6), t) == pytest.approx(-2 * t)
    assert uniformity(torch.ones(5, 3), t) == pytest.approx(0, abs=1e-15)
    simplex = normalize(torch.eye(5, dtype=torch.float64) - 0.2, dim=1)
    assert uniformity(simplex, t) == pytest.approx(-t * 2 * 5 / 4)


@pytest.mark.parametrize("t", [0.5, 2.0])
def test_uniformity_is_that_of_the_objective(t):
    z = torch.randn(50, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    for kind in ("sphere", False):
        loss_fn = zoo.get_loss("alignment_uniformity", t=t, normalize=kind).eval()
        loss_fn(z, z)
        rows = torch.nn.functional.normalize(z) if kind else z
        assert uniformity(rows, t) == pytest.approx(float(loss_fn.diagnostics["uniformity"]), rel=1e-12)


def test_rows_are_taken_as_they_are_by_alignment_and_uniformity():
    z = torch.tensor([[3.0, 0.0], [0.0, 4.0]])
    assert alignment(z, torch.zeros(2, 2)) == 12.5
    assert uniformity(z) == pytest.approx(-50)


@pytest.mark.parametrize("features", [2, 3, 4, 17, 128, 2048])
@pytest.mark.parametrize("shift", [0.0, 0.5])
def test_wasserstein_uniformity_equals_the_distance_of_quantiles(features, shift):
    z = draw(12, features) + shift
    assert wasserstein_uniformity(z) == pytest.approx(slow_wasserstein(z), abs=BIN_WIDTH)


@settings(deadline=None, max_examples=25)
@given(rows=st.integers(2, 9), features=st.integers(2, 40), shift=st.floats(-2, 2), seed=st.integers(0, 999))
def test_wasserstein_uniformity_for_any_shape(rows, features, shift, seed):
    z = draw(rows, features, seed) + shift
    repeats = 20_000 // math.comb(rows, 2)
    assert wasserstein_uniformity(z) == pytest.approx(slow_wasserstein(z, repeats), abs=1e-4)


@pytest.mark.parametrize("features", [1, 2, 3, 10, 300, 100_000])
def test_wasserstein_uniformity_of_known_configurations(features):
    ones = torch.ones(4, features, dtype=torch.float64)
    assert wasserstein_uniformity(ones) == pytest.approx(1, abs=BIN_WIDTH)
    assert wasserstein_uniformity(torch.stack([ones[0], -ones[0]])) == pytest.approx(1, abs=BIN_WIDTH)
    if features > 1:  # one pair at a right angle: the mean absolute inner product of uniform points
        mean_absolute = math.exp(math.lgamma(features / 2) - math.lgamma((features + 1) / 2)) / math.sqrt(math.pi)
        assert wasserstein_uniformity(torch.eye(2, features, dtype=torch.float64)) == pytest.approx(
            mean_absolute, abs=BIN_WIDTH
        )


def test_wasserstein_uniformity_takes_the_law_of_the_dimension():
    assert wasserstein_uniformity(draw(2000, 8)) < 1e-3
    assert wasserstein_uniformity(torch.nn.functional.pad(draw(2000, 8), (0, 8))) > 0.05


def test_wasserstein_uniformity_ignores_the_length_of_the_rows():
    z = draw(10, 5)
    lengths = torch.logspace(-18, 18, 10, dtype=torch.float64)[:, None]
    assert wasserstein_uniformity((z * lengths).float()) == pytest.approx(wasserstein_uniformity(z), abs=1e-6)


@pytest.mark.parametrize("value", [0, -1, math.inf, math.nan])
def test_exponents_must_be_positive(value):
    with pytest.raises(ValueError, match="alpha must be a finite number"):
        alignment(torch.eye(2), torch.eye(2), alpha=value)
    with pytest.raises(ValueError, match="t must be a finite number"):
        uniformity(torch.eye(2), t=value)


@pytest.mark.parametrize("width", [2, 3, 8, 64])
def test_cosine_density_of_uniform_points_is_its_law(width: int) -> None:
    z = torch.randn(3000, width, generator=torch.Generator().manual_seed(width))
    found = metrics.cosine_density(z, bins=32)
    for density in (found.density, found.uniform):
        assert density.mean() == pytest.approx(0.5)
    torch.testing.assert_close(found.density, found.uniform, rtol=0.05, atol=0.02)
    law = stats.beta((width - 1) / 2, (width - 1) / 2, loc=-1, scale=2)
    edges = np.linspace(-1, 1, 33)
    torch.testing.assert_close(found.uniform, torch.from_numpy(np.diff(law.cdf(edges)) * 16), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("bins", [0, 3, 2**17, 2.0])
def test_bins_are_a_power_of_two(bins: float) -> None:
    with pytest.raises((ValueError, TypeError), match="bins"):
        metrics.cosine_density(torch.eye(3), bins=bins)
