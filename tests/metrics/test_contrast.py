"""The global loss against a double loop, its gradient against autograd, and what a gradient error must say."""

import copy

import pytest
import torch
from torch import Tensor

import contrastive_zoo as zoo
from contrastive_zoo.metrics import contrast, global_contrastive_loss, gradient_error


def views(size: int = 9, width: int = 4) -> tuple[Tensor, Tensor]:
    z1, z2 = torch.randn(2, size, width, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return z1, z1 + 0.7 * z2


def double_loop(z1: Tensor, z2: Tensor, temperature: float) -> Tensor:
    rows = [torch.nn.functional.normalize(z, dim=1) for z in (z1, z2)]
    losses = []
    for i in range(len(z1)):
        for view in range(2):
            negatives = [rows[view][i] @ rows[w][j] for j in range(len(z1)) for w in range(2) if j != i]
            partition = sum((s / temperature).exp() for s in negatives) / len(negatives)
            losses.append(partition.log() - rows[0][i] @ rows[1][i] / temperature)
    return torch.stack(losses).mean()


@pytest.mark.parametrize("temperature", [0.05, 0.5, 2.0])
def test_value_and_gradient_against_a_double_loop(temperature: float, tile: int) -> None:
    z1, z2 = (z.requires_grad_() for z in views())
    expected = double_loop(z1, z2, temperature)
    assert global_contrastive_loss(z1, z2, temperature) == pytest.approx(float(expected.detach()), rel=1e-12)
    exact = contrast._exact_gradient(z1.detach(), z2.detach(), temperature)
    torch.testing.assert_close(exact, torch.stack(torch.autograd.grad(expected, (z1, z2))), rtol=1e-10, atol=1e-12)


def test_small_temperatures_do_not_overflow() -> None:
    z1, z2 = views()
    value = global_contrastive_loss(z1.float(), z2.float(), 0.001)
    assert value == pytest.approx(global_contrastive_loss(z1, z2, 0.001), rel=1e-4)


@pytest.mark.parametrize("name", ["emc2", "negative_cache"])
def test_global_losses_are_on_its_scale(name: str) -> None:
    """In eval mode, on the whole set as one batch, they are it."""
    z1, z2 = views()
    value = zoo.get_loss(name, num_samples=9, temperature=0.3).eval()(z1, z2)
    assert float(value) == pytest.approx(global_contrastive_loss(z1, z2, 0.3), rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("temperature", [0.01, 0.3, 5.0])
def test_it_is_sogclr_in_eval_mode(temperature: float, dtype: torch.dtype) -> None:
    z1, z2 = (z.to(dtype) * 1e3 for z in views(size=300))
    z1[7] = 0
    loss_fn = zoo.get_loss("sogclr", num_samples=300, temperature=temperature).eval()
    assert global_contrastive_loss(z1, z2, temperature) == float(loss_fn(z1.double(), z2.double()))
    assert float(loss_fn(z1, z2)) == pytest.approx(global_contrastive_loss(z1, z2, temperature), rel=1e-5, abs=1e-5)


def test_it_leaves_no_graph_and_needs_no_gradient() -> None:
    z1, z2 = (z.requires_grad_() for z in views())
    value = global_contrastive_loss(z1, z2, 0.3)
    with torch.inference_mode():
        assert global_contrastive_loss(z1, z2, 0.3) == value


def test_a_zero_row_has_no_gradient() -> None:
    z1, z2 = views()
    z1[3] = 0
    exact = contrast._exact_gradient(z1, z2, 0.3)
    assert exact.isfinite().all()
    assert not exact[0, 3].any()


def test_the_whole_set_as_one_batch_has_no_error() -> None:
    error = gradient_error(zoo.get_loss("dcl", temperature=0.3), *views(), batch_size=9, epochs=1, warmup=0)
    assert error.cosine == pytest.approx(1, abs=1e-12)
    assert error.relative_length == pytest.approx(1, rel=1e-12)


def test_length_and_direction_are_told_apart() -> None:
    loss_fn, settings = zoo.get_loss("dcl", temperature=0.3), {"batch_size": 9, "epochs": 2, "warmup": 1}
    for factor in (3.0, -0.5):
        error = gradient_error(lambda *z, index, factor=factor: factor * loss_fn(*z), *views(), 0.3, **settings)
        assert error.cosine == pytest.approx(1 if factor > 0 else -1, abs=1e-12)
        assert error.relative_length == pytest.approx(abs(factor), rel=1e-12)


def test_the_loss_and_the_features_stay_as_they_are() -> None:
    loss_fn, (z1, z2) = zoo.get_loss("sogclr", num_samples=9), views()
    before, kept = copy.deepcopy(loss_fn.state_dict()), (z1.clone(), z2.clone())
    first = gradient_error(loss_fn, z1, z2, batch_size=4, epochs=2)
    assert all(torch.equal(tensor, before[name]) for name, tensor in loss_fn.state_dict().items())
    assert torch.equal(z1, kept[0])
    assert torch.equal(z2, kept[1])
    assert not z1.requires_grad
    assert gradient_error(loss_fn, z1, z2, batch_size=4, epochs=2) == first
    assert gradient_error(loss_fn, z1, z2, batch_size=4, epochs=2, seed=1) != first


def test_labels_reach_the_loss() -> None:
    seen = []

    def loss_fn(z1: Tensor, z2: Tensor, *, index: Tensor, labels: Tensor) -> Tensor:
        seen.append(torch.equal(labels, 10 + index))
        return (z1 * z2).sum()

    gradient_error(loss_fn, *views(), 0.3, batch_size=4, epochs=1, warmup=0, labels=10 + torch.arange(9))
    assert seen == [True, True]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 10}, "batch_size must be at most 9, got 10"),
        ({"batch_size": 1}, "batch_size must be at least 2, got 1"),
        ({"epochs": 0}, "epochs must be at least 1, got 0"),
        ({"warmup": -1}, "warmup must be at least 0, got -1"),
        ({"temperature": 0.0}, r"temperature must be a finite number in \(0, inf\), got 0\.0"),
    ],
)
def test_settings_out_of_range(settings: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        gradient_error(zoo.get_loss("dcl"), *views(), **{"batch_size": 4, **settings})
    with pytest.raises(ValueError, match=r"temperature must be a finite number in \(0, inf\), got 0"):
        global_contrastive_loss(*views(), 0)


def test_a_loss_without_temperature_needs_one() -> None:
    with pytest.raises(ValueError, match="temperature is None and loss_fn has no temperature"):
        gradient_error(lambda z1, z2, index: (z1 * z2).sum(), *views(), batch_size=4)
