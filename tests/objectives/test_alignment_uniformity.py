"""Alignment and uniformity beside the metrics of these names, on rows of any length, far apart and coinciding."""

import pytest
import torch
from cases import BACKENDS, gradients, views
from tolerances import assert_close
from torch.nn.functional import normalize

import contrastive_zoo as zoo


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("alpha", "t"), [(2.0, 2.0), (1.0, 3.0)])
def test_equals_the_metrics(alpha: float, t: float, backend: str) -> None:
    batch = views(15, 4)
    a, b = (normalize(z.detach(), dim=1) for z in batch[:2])
    loss_fn = zoo.get_loss("alignment_uniformity", alpha=alpha, t=t, weight=0.7, backend=backend)
    alignment = zoo.metrics.alignment(a, b, alpha=alpha)
    uniformity = (zoo.metrics.uniformity(a, t=t) + zoo.metrics.uniformity(b, t=t)) / 2
    assert float(batch.call(loss_fn).detach()) == pytest.approx(float(alignment + 0.7 * uniformity), rel=1e-12)
    assert float(loss_fn.diagnostics["alignment"]) == pytest.approx(float(alignment), rel=1e-12)
    assert float(loss_fn.diagnostics["uniformity"]) == pytest.approx(float(uniformity), rel=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("normalize_rows", ["ball", False])
@pytest.mark.parametrize("size", [0.3, 1.0, 30.0])
def test_rows_of_any_length(size: float, normalize_rows: str | bool, backend: str) -> None:
    """At the largest size all potentials are below the smallest number of the dtype; their logarithm is not."""
    batch = views(9, 4)
    batch = batch._replace(**{name: (getattr(batch, name).detach() * size).requires_grad_() for name in ("z1", "z2")})
    index = torch.tensor([0, 1, 2, 3, 1, 5, 6, 1, 8])
    loss = zoo.get_loss("alignment_uniformity", normalize=normalize_rows, backend=backend)(*batch[:2], index=index)
    a, b = (z / z.norm(dim=1, keepdim=True).clamp_min(1) if normalize_rows == "ball" else z for z in batch[:2])
    others = index[:, None] != index[None, :]
    potentials = [-2 * (z[:, None] - z[None, :]).square().sum(2)[others] for z in (a, b)]
    uniformity = sum(p.logsumexp(0) - others.sum().double().log() for p in potentials) / 2
    expected = (a - b).square().sum(1).mean() + uniformity
    logit = 4 * float(a.detach().square().sum(1).max())
    assert_close(loss, expected, "loss", logit=logit, magnitude=max(1.0, logit))
    for found, wanted in zip(gradients(loss, batch), gradients(expected, batch), strict=True):
        assert_close(found, wanted, "gradient", logit=logit, magnitude=max(1.0, logit))


@pytest.mark.parametrize("alpha", [0.1, 1.0, 2.0])
def test_views_that_coincide_are_aligned_and_pull_no_more(alpha: float) -> None:
    z = views(6, 4, dtype=torch.float32).z1
    loss_fn = zoo.get_loss("alignment_uniformity", alpha=alpha, weight=0.0)
    loss = loss_fn(z, z * 2)
    assert loss == 0
    assert torch.equal(torch.autograd.grad(loss, z)[0], torch.zeros_like(z))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("normalize_rows", ["sphere", "ball", False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("width", [2, 7, 768, 4096])
def test_views_that_are_equal_up_to_rounding(width: int, dtype: torch.dtype, normalize_rows: str | bool, backend: str) -> None:
    """Of other lengths, or in another order of summation: what is between them has no direction."""
    draws = torch.Generator().manual_seed(width)
    random = torch.randn(6, width, generator=draws, dtype=torch.float64)
    constant = torch.linspace(0.3, 7, 6, dtype=torch.float64)[:, None].expand(6, width)
    for z in (random, constant):
        z1 = z.to(dtype).requires_grad_()
        z2 = (z * (1 + 2 * torch.finfo(dtype).eps if normalize_rows is False else 3.7)).to(dtype)
        if normalize_rows == "ball":
            z1, z2 = (9 * z1.detach()).requires_grad_(), 9 * z2
        loss_fn = zoo.get_loss("alignment_uniformity", alpha=0.5, weight=0.0, normalize=normalize_rows, backend=backend)
        loss = loss_fn(z1, z2)
        assert loss == 0
        assert not torch.autograd.grad(loss, z1)[0].any()


def test_a_sharp_potential_is_the_nearest_pair() -> None:
    batch, t = views(8, 4), 1e4
    a, b = (normalize(z.detach(), dim=1) for z in batch[:2])
    nearest = sum(torch.pdist(z).min().square() for z in (a, b)) / 2
    loss_fn = zoo.get_loss("alignment_uniformity", t=t)
    batch.call(loss_fn)
    assert float(-loss_fn.diagnostics["uniformity"] / t) == pytest.approx(float(nearest), rel=1e-2)
