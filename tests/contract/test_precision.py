"""Dtypes and lengths: half precision, autocast, views of two dtypes, any integers, strides, the sphere and the ball."""

import pytest
import torch
from cases import CONFIGURATIONS, HALF, Configuration, Views, gradients, guaranteed, outcome, views
from tolerances import assert_close, assert_same

import contrastive_zoo as zoo

every_configuration = pytest.mark.parametrize("configuration", CONFIGURATIONS, ids=str)


def rounded_rows(batch: Views, dtype: torch.dtype) -> Views:
    """Unit rows in float32 with the values that half precision has for them; gradients go on to the batch."""
    unit = [torch.nn.functional.normalize(z.float(), dim=1) for z in batch[:2]]
    rounded = [rows + (rows.to(dtype).float() - rows).detach() for rows in unit]
    return batch._replace(z1=rounded[0], z2=rounded[1])


@guaranteed("half")
@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("autocast", [False, True], ids=["half features", "autocast"])
def test_half_precision_rounds_the_rows_and_nothing_else(
    configuration: Configuration, dtype: torch.dtype, autocast: bool
) -> None:
    batch = views(dtype=torch.float32 if autocast else dtype)
    with torch.autocast("cpu", dtype=dtype, enabled=autocast):
        loss = batch.call(configuration.make())
    expected = rounded_rows(batch, dtype).call(configuration.make(normalize=False))
    # A gaussian takes the length of unit rows for 1, which that of rounded rows is not.
    of_distances = configuration.name == "alignment_uniformity" or str(configuration) == "kcl"
    assert_close(loss, expected, "loss", dtype=dtype if of_distances else torch.float32)
    for name, gradient, wanted in zip(("z1", "z2"), gradients(loss, batch), gradients(expected, batch), strict=True):
        assert_close(gradient, wanted, f"gradient of {name}", dtype=dtype)


@every_configuration
def test_a_backward_pass_under_autocast(configuration: Configuration) -> None:
    """Where the backward pass is started makes no difference to its precision."""
    batch = views(dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = batch.call(configuration.make())
        found = gradients(loss, batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = batch.call(configuration.make())
    for gradient, wanted in zip(found, gradients(loss, batch), strict=True):
        assert torch.equal(gradient, wanted)


@every_configuration
@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("backend", ["auto", "dense"])
def test_autocast_in_the_backward_pass_alone_changes_nothing(
    configuration: Configuration, dtype: torch.dtype, backend: str
) -> None:
    """With the loss scale of a GradScaler, which float16 could not hold."""
    batch = views(dtype=torch.float32)
    loss = 65536 * batch.call(configuration.make(backend=backend))
    wanted = torch.autograd.grad(loss, (batch.z1, batch.z2), retain_graph=True)
    with torch.autocast("cpu", dtype=dtype):
        found = torch.autograd.grad(loss, (batch.z1, batch.z2))
    assert all(map(torch.equal, found, wanted))


@pytest.mark.parametrize("shape", [(7, 6), (8, 3, 6)], ids=str)
def test_nor_with_extra_negatives(shape: tuple[int, ...]) -> None:
    batch, negatives = views(8, 6, dtype=torch.float32), torch.randn(shape).requires_grad_()
    loss = zoo.get_loss("ntxent")(batch.z1, batch.z2, negatives=negatives)
    wanted = torch.autograd.grad(loss, (batch.z1, negatives), retain_graph=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = torch.autograd.grad(loss, (batch.z1, negatives))
    assert all(map(torch.equal, found, wanted))


@every_configuration
def test_autocast_leaves_float64_alone(configuration: Configuration) -> None:
    batch, loss_fn = views(), configuration.make().double()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = batch.call(loss_fn)
    assert torch.equal(loss, outcome(configuration, batch)[0])


@every_configuration
def test_views_of_two_dtypes(configuration: Configuration) -> None:
    """The wider counts; each view gets a gradient of its own dtype."""
    exact, batch = views(), views()
    mixed = batch._replace(z1=batch.z1.detach().float().requires_grad_())
    exact = exact._replace(z1=mixed.z1.detach().double().requires_grad_())
    loss, expected = mixed.call(configuration.make().double()), exact.call(configuration.make().double())
    assert_close(loss, expected, "loss")
    for gradient, wanted, z in zip(gradients(loss, mixed), gradients(expected, exact), mixed, strict=False):
        assert gradient.dtype == z.dtype
        assert_close(gradient, wanted, "gradient", dtype=z.dtype)


@every_configuration
@pytest.mark.parametrize("dtype", [torch.int32, torch.int16, torch.uint8], ids=str)
def test_any_integers_will_do_for_an_index(configuration: Configuration, dtype: torch.dtype) -> None:
    batch = views()
    assert torch.equal(outcome(configuration, batch._replace(index=batch.index.to(dtype)))[0], outcome(configuration, batch)[0])


@every_configuration
def test_features_and_index_may_be_strided(configuration: Configuration) -> None:
    batch = views()
    strided = Views(*(torch.stack([leaf.detach(), leaf.detach()], -1)[..., 0] for leaf in batch))
    assert not strided.index.is_contiguous()
    assert torch.equal(strided.call(configuration.make().double()), outcome(configuration, batch)[0])


@every_configuration
def test_normalize_true_means_sphere(configuration: Configuration) -> None:
    assert_same(outcome(configuration, views(), normalize=True), outcome(configuration, views(), normalize="sphere"))


@every_configuration
def test_length_of_rows_does_not_matter_on_the_sphere(configuration: Configuration) -> None:
    batch = views()
    factors = torch.rand(2, len(batch.z1), 1, dtype=torch.float64) + 0.5
    stretched = batch._replace(z1=batch.z1 * factors[0], z2=batch.z2 * factors[1])
    assert_close(stretched.call(configuration.make().double()), batch.call(configuration.make().double()), "loss")


@every_configuration
@pytest.mark.parametrize("backend", ["dense", "tiled"])
def test_in_the_ball_only_long_rows_are_scaled(configuration: Configuration, backend: str) -> None:
    batch = views()
    lengths = torch.linspace(0.2, 3, 12, dtype=torch.float64)[:, None]
    z1, z2 = ((torch.nn.functional.normalize(z.detach(), dim=1) * lengths).requires_grad_() for z in batch[:2])
    batch = batch._replace(z1=z1, z2=z2)
    short1, short2 = (z / z.norm(dim=1, keepdim=True).clamp_min(1) for z in (z1, z2))
    projected = batch._replace(z1=short1, z2=short2)
    loss = batch.call(configuration.make(normalize="ball", backend=backend).double())
    expected = projected.call(configuration.make(normalize=False, backend=backend).double())
    assert_same((loss, *gradients(loss, batch)), (expected, *gradients(expected, batch)))


@every_configuration
@pytest.mark.parametrize("backend", ["dense", "tiled"])
@pytest.mark.parametrize("autocast", [False, True], ids=["half features", "autocast"])
def test_loss_scaling_does_not_overflow_in_float16(configuration: Configuration, backend: str, autocast: bool) -> None:
    """The initial scale of `GradScaler`, at a low temperature; long rows, so that the gradient itself fits into float16."""
    batch = views(dtype=torch.float32 if autocast else torch.float16)
    length = 1.0 if autocast else 1000.0
    batch = batch._replace(z1=(batch.z1.detach() * length).requires_grad_(), z2=(batch.z2.detach() * length).requires_grad_())
    temperature = {"temperature": 0.02} if "temperature" in configuration.card.parameters else {}

    def scaled(scale: float) -> tuple[torch.Tensor, ...]:
        with torch.autocast("cpu", dtype=torch.float16, enabled=autocast):
            loss = batch.call(configuration.make(backend=backend, normalize=True, **temperature))
        return tuple(gradient.float() / scale for gradient in gradients(loss * scale, batch))

    for gradient, wanted in zip(scaled(65536.0), scaled(1.0), strict=True):
        assert gradient.isfinite().all()
        if autocast:
            assert_close(gradient, wanted, "gradient")
