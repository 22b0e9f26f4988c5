"""Transforms of `torch.func`, batched gradients and second derivatives: right with "dense", else an error that says so."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import CONFIGURATIONS, STATEFUL, Configuration, Views, gradients, snapshot, views
from tolerances import assert_close
from torch import Tensor
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vmap

import contrastive_zoo as zoo
from contrastive_zoo import Loss, functional, pairwise

# What PyTorch's own forward-mode derivatives do.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script:FutureWarning", "ignore:`torch.jit.script:DeprecationWarning")

# Names that change their state in a training step.
MOVING = [c for c in CONFIGURATIONS if c.card.stateful or c.draws]
STILL = [c for c in CONFIGURATIONS if c not in MOVING]
# Those whose gradient of a draw is written by hand.
DRAWING_ONCE = [c for c in MOVING if c.name == "emc2" or c.params.get("sampler") == "mcmc" or not c.card.stateful]
INDEX = {"no index": None, "index": [3, 1, 4, 7, 5, 9], "duplicates": [3, 1, 4, 1, 5, 9]}
SIZE, WIDTH = 6, 4

every_still = pytest.mark.parametrize("configuration", STILL, ids=str)
every_index = pytest.mark.parametrize("index", INDEX.values(), ids=INDEX)


def batch_of(index: list[int] | None) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """Two views, and the other arguments of a call."""
    batch = views(SIZE, WIDTH)
    given = {} if index is None else {"index": torch.tensor(index)}
    return batch.z1.detach(), batch.z2.detach(), {"labels": batch.labels, **given}


def dense(configuration: Configuration) -> Loss:
    return configuration.make(backend="dense").double()


@every_index
@every_still
def test_grad_is_the_gradient(configuration: Configuration, index: list[int] | None) -> None:
    z1, z2, given = batch_of(index)
    loss_fn = dense(configuration)
    leaf = z1.clone().requires_grad_()
    (expected,) = torch.autograd.grad(loss_fn(leaf, z2, **given), leaf)
    before = loss_fn.diagnostics
    for derivative in (grad, jacrev, jacfwd):
        assert_close(derivative(lambda z: loss_fn(z, z2, **given))(z1), expected, derivative.__name__)
    assert before
    assert not loss_fn.diagnostics, "tensors of a transform are of no use after it"
    assert_close(loss_fn(z1, z2, **given), dense(configuration)(z1, z2, **given), "a call afterwards")


@every_index
@every_still
def test_vmap_is_a_loop(configuration: Configuration, index: list[int] | None) -> None:
    _, z2, given = batch_of(index)
    stacked = torch.randn(3, SIZE, WIDTH, dtype=torch.float64)
    loss_fn = dense(configuration)

    def value(z: Tensor) -> Tensor:
        return loss_fn(z, z2, **given)

    assert_close(vmap(value)(stacked), torch.stack([value(z) for z in stacked]), "values")
    assert_close(vmap(grad(value))(stacked), torch.stack([grad(value)(z) for z in stacked]), "gradients")


@every_still
def test_vmap_over_index_and_labels(configuration: Configuration) -> None:
    z1, z2, given = batch_of(None)
    loss_fn = dense(configuration)
    index = torch.tensor([[3, 1, 4, 7, 5, 9], [3, 1, 4, 1, 5, 9], [2, 2, 5, 5, 0, 0]])
    labels = torch.stack([given["labels"], given["labels"] // 2, torch.arange(SIZE) // 3])

    def value(index: Tensor, labels: Tensor) -> Tensor:
        return loss_fn(z1, z2, index=index, labels=labels)

    expected = torch.stack([value(i, y) for i, y in zip(index, labels, strict=True)])
    assert_close(vmap(value)(index, labels), expected, "values")


@every_index
@every_still
def test_second_derivatives(configuration: Configuration, index: list[int] | None) -> None:
    """Backward through backward, forward over reverse, and differences of gradients are the same."""
    z1, z2, given = batch_of(index)
    loss_fn, direction = dense(configuration), torch.randn(SIZE, WIDTH, dtype=torch.float64)

    def value(z: Tensor) -> Tensor:
        return loss_fn(z, z2, **given)

    leaf = z1.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(value(leaf), leaf, create_graph=True)
    (product,) = torch.autograd.grad(gradient, leaf, direction)
    step = 1e-5
    difference = (grad(value)(z1 + step * direction) - grad(value)(z1 - step * direction)) / (2 * step)
    torch.testing.assert_close(product, difference, rtol=1e-5, atol=1e-6)
    assert_close(torch.tensordot(hessian(value)(z1), direction, 2), product, "Hessian")


@every_index
@pytest.mark.parametrize("configuration", [c for c in CONFIGURATIONS if c not in DRAWING_ONCE], ids=str)
def test_batched_gradients(configuration: Configuration, index: list[int] | None) -> None:
    index = INDEX["index"] if index is None and "index" in configuration.card.needs else index
    z1, z2, given = batch_of(index)
    leaf = z1.requires_grad_()
    loss, weights = dense(configuration)(leaf, z2, **given), torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    (single,) = torch.autograd.grad(loss, leaf, retain_graph=True)
    (stacked,) = torch.autograd.grad(loss, leaf, weights, is_grads_batched=True)
    assert_close(stacked, weights[:, None, None] * single, "gradients")


def test_ensembles_of_what_a_loss_learns() -> None:
    z1, z2, given = batch_of(INDEX["duplicates"])
    for name, parameter in (("clip", "objective.logit_scale"), ("siglip", "objective.logit_bias")):
        loss_fn = zoo.get_loss(name, backend="dense").double()
        values = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)

        def value(one: Tensor, loss_fn: Loss = loss_fn, parameter: str = parameter) -> Tensor:
            return functional_call(loss_fn, {parameter: one}, (z1, z2), {"index": given["index"]})

        assert_close(vmap(value)(values), torch.stack([value(one) for one in values]), name)
        assert_close(vmap(grad(value))(values), torch.stack([grad(value)(one) for one in values]), name)


@pytest.mark.parametrize("name", ["ntxent", "supcon", "hcl"])
def test_temperatures(name: str) -> None:
    z1, z2, given = batch_of(INDEX["index"])
    temperatures = torch.tensor([0.2, 0.5, 1.0], dtype=torch.float64)

    def value(temperature: Tensor) -> Tensor:
        return getattr(functional, name)(z1, z2, temperature=temperature, backend="dense", **given)

    assert_close(vmap(value)(temperatures), torch.stack([value(each) for each in temperatures]), "values")
    step = 1e-6
    difference = (value(temperatures[1] + step) - value(temperatures[1] - step)) / (2 * step)
    torch.testing.assert_close(grad(value)(temperatures[1]), difference, rtol=1e-6, atol=1e-8)


TRANSFORMS: dict[str, Callable[[Callable[[Tensor], Tensor], Tensor], Tensor]] = {
    "grad": lambda value, z: grad(value)(z),
    "vmap": lambda value, z: vmap(value)(z[None]),
    "vmap of grad": lambda value, z: vmap(grad(value))(z[None]),
    "jacrev": lambda value, z: jacrev(value)(z),
    "jacfwd": lambda value, z: jacfwd(value)(z),
}


@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)
@pytest.mark.parametrize("configuration", MOVING, ids=str)
@pytest.mark.parametrize("backend", ["dense", "tiled"])
def test_state_cannot_change_inside_of_a_transform(configuration: Configuration, backend: str, transform: Any) -> None:
    z1, z2, given = batch_of(INDEX["index"])
    loss_fn = configuration.make(backend=backend).double()
    before = snapshot(loss_fn)
    with pytest.raises(
        RuntimeError, match=r"changes its state in every training step.*Use loss.backward\(\).*loss_fn.eval\(\)"
    ):
        transform(lambda z: loss_fn(z, z2, **given), z1)
    after = snapshot(loss_fn)
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


@pytest.mark.parametrize("configuration", MOVING, ids=str)
def test_in_eval_state_does_not_change_so_transforms_work(configuration: Configuration) -> None:
    z1, z2, given = batch_of(INDEX["index"])
    loss_fn = dense(configuration).eval()
    leaf = z1.clone().requires_grad_()
    (expected,) = torch.autograd.grad(loss_fn(leaf, z2, **given), leaf)
    assert_close(grad(lambda z: loss_fn(z, z2, **given))(z1), expected, "gradient")


def refuse(value: Callable[[Tensor], Tensor], z: Tensor, advice: str) -> None:
    """Every transform, batched gradients and second derivatives raise with this advice."""
    message = rf"written by hand.*{advice}"
    for name, transform in TRANSFORMS.items():
        with pytest.raises(RuntimeError, match=message):
            pytest.fail(f"{name}: {transform(value, z)}")
    leaf = z.clone().requires_grad_()
    with pytest.raises(RuntimeError, match=message):
        torch.autograd.grad(value(leaf), leaf, torch.ones(2, dtype=z.dtype), is_grads_batched=True)
    (gradient,) = torch.autograd.grad(value(leaf), leaf, create_graph=True)
    with pytest.raises(RuntimeError, match=message):
        torch.autograd.grad(gradient.sum(), leaf)
    with torch.autograd.forward_ad.dual_level(), pytest.raises(RuntimeError, match=message):
        value(torch.autograd.forward_ad.make_dual(z, torch.ones_like(z)))


@pytest.mark.parametrize("backend", ["tiled", "auto"])
@every_index
@every_still
def test_backends_written_by_hand_say_so(configuration: Configuration, index: list[int] | None, backend: str) -> None:
    z1, z2, given = batch_of(index)
    loss_fn = configuration.make(backend=backend).double()
    refuse(lambda z: loss_fn(z, z2, **given), z1, "Use backend='dense'")


@pytest.mark.parametrize("name", ["ntxent", "infonce", "dhel", "hcl", "supcon", "clip"])
def test_kernels_say_so(name: str, kernels: None) -> None:
    z1, z2, given = batch_of(INDEX["duplicates"])
    loss_fn = zoo.get_loss(name, backend="fused")
    refuse(lambda z: loss_fn(z, z2.float(), **given), z1.float(), "Use backend='dense'")


def test_sums_over_pairs_say_so() -> None:
    x = torch.randn(300, 3, dtype=torch.float64)  # "auto" is dense for fewer rows
    refuse(lambda x: pairwise.logsumexp(x, scale=2.0).sum(), x, "Use backend='dense'")
    refuse(lambda x: pairwise.square_sum(x, x).sum(), x, "Use backend='dense'")


@pytest.mark.parametrize("scale", [2.0, 300.0, (2.0, 3.0)], ids=str)
@pytest.mark.parametrize("with_keys", [False, True])
def test_forward_mode_without_a_transform(scale: Any, with_keys: bool) -> None:
    x, keys, of_x, of_keys = torch.randn(4, 7, 3, dtype=torch.float64)

    def sums(x: Tensor, keys: Tensor) -> Tensor:
        return pairwise.logsumexp(x, *([keys] if with_keys else []), scale=scale, norm_bound=4.0, backend="dense")

    with forward_ad.dual_level():
        dual = sums(forward_ad.make_dual(x, of_x), forward_ad.make_dual(keys, of_keys))
        found = forward_ad.unpack_dual(dual).tangent
    _, wanted = jvp(sums, (x, keys), (of_x, of_keys))
    assert_close(found, wanted, "tangent", logit=1e3)


@pytest.mark.parametrize("configuration", DRAWING_ONCE, ids=str)
def test_drawn_negatives_have_one_derivative(configuration: Configuration) -> None:
    """Else the part of a second derivative that goes through draws would be missing without a word."""
    batch = views()
    loss_fn = dense(configuration)
    gradient, _ = torch.autograd.grad(batch.call(loss_fn), batch[:2], create_graph=True)
    with pytest.raises(RuntimeError, match=r"A loss that draws negatives has one derivative; its eval\(\) form"):
        torch.autograd.grad(gradient.sum(), batch.z1)
    with pytest.raises(RuntimeError, match=r"A loss that draws negatives has one derivative; its eval\(\) form"):
        torch.autograd.grad(batch.call(loss_fn), batch.z1, torch.ones(2, dtype=torch.float64), is_grads_batched=True)


@pytest.mark.parametrize("configuration", [c for c in STATEFUL if c not in DRAWING_ONCE], ids=str)
def test_second_derivatives_with_state(configuration: Configuration) -> None:
    """They are those of the gradient that a step takes, with tables and draws as constants."""
    batch, loss_fn = views(), dense(configuration)
    batch.call(loss_fn)
    state = snapshot(loss_fn)
    direction = torch.randn_like(batch.z2)

    def gradient(z2: Tensor, create_graph: bool = False) -> Tensor:
        loss_fn.load_state_dict(state)
        loss = Views(batch.z1, z2, batch.index, batch.labels).call(loss_fn)
        return torch.autograd.grad(loss, batch.z1, create_graph=create_graph)[0]

    mixed = torch.autograd.grad(gradient(batch.z2, create_graph=True), batch.z2, direction)[0]
    assert mixed.isfinite().all()
    assert mixed.any()
    assert gradients(batch.call(loss_fn), batch)[0].isfinite().all()
