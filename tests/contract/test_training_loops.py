"""Every name in the loops that people write: accumulation, caching, checkpointing, loss scaling, averages of models."""

import copy
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
from cases import (
    CONFIGURATIONS,
    STATEFUL,
    STATELESS,
    Configuration,
    Views,
    gradients,
    guaranteed,
    same_state,
    snapshot,
    views,
)
from guarantees import GUARANTEES
from tolerances import assert_close
from torch import Tensor, nn
from torch.autograd import gradcheck
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.checkpoint import checkpoint

import contrastive_zoo as zoo
from contrastive_zoo import Loss

every_stateful = pytest.mark.parametrize("configuration", STATEFUL, ids=str)


class Model(nn.Module):
    """An encoder with dropout, and a loss."""

    def __init__(self, configuration: Configuration) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.encoder = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Dropout(0.2), nn.Linear(8, 4)).double()
        self.loss_fn = configuration.learning()

    def forward(self, batch: Views) -> Tensor:
        z1, z2 = self.encoder(torch.cat([batch.z1, batch.z2]).detach()).chunk(2)
        return self.loss_fn(z1, z2, index=batch.index, labels=batch.labels)


def taken(module: nn.Module) -> list[Tensor]:
    """Gradients of all parameters, which are cleared."""
    found = [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in module.parameters()]
    module.zero_grad()
    return found


def assert_gradients_close(found: list[Tensor], expected: list[Tensor]) -> None:
    for number, (some, other) in enumerate(zip(found, expected, strict=True)):
        assert_close(some, other, f"gradient of parameter {number}", magnitude=1.0)


def assert_state_close(first: nn.Module, second: nn.Module) -> None:
    """Tables are written from features that may differ by rounding."""
    state = second.state_dict()
    for name, tensor in first.state_dict().items():
        assert_close(tensor, state[name], name, magnitude=1.0)


@guaranteed("derivative")
def test_the_gradient_is_the_derivative_of_the_value(configuration: Configuration) -> None:
    """Of a loss that has seen other features of the same samples, where it remembers them."""
    batch, loss_fn = views(4, 3), configuration.make().double()
    views(4, 3, seed=8)._replace(index=batch.index).call(loss_fn)

    def value(z1: Tensor, z2: Tensor) -> Tensor:
        return copy.deepcopy(loss_fn)(z1, z2, index=batch.index, labels=batch.labels)

    assert gradcheck(value, batch[:2], eps=1e-7, atol=1e-5, rtol=1e-4)


@guaranteed("accumulation")
def test_gradients_of_several_calls_add_up(configuration: Configuration) -> None:
    apart, together, found = Model(configuration), Model(configuration), []
    torch.manual_seed(2)
    for seed in range(3):
        (apart(views(seed=seed)) / 3).backward()
        found.append(taken(apart))
    torch.manual_seed(2)
    for seed in range(3):
        (together(views(seed=seed)) / 3).backward()
    assert_gradients_close(taken(together), [sum(parts) for parts in zip(*found, strict=True)])
    assert same_state(apart.state_dict(), together.state_dict())


@guaranteed("caching")
@pytest.mark.parametrize("chunk_size", [5, 12])
def test_gradient_caching_gives_the_gradients_of_the_whole_batch(configuration: Configuration, chunk_size: int) -> None:
    whole, cached = Model(configuration), Model(configuration)
    whole.encoder.eval(), cached.encoder.eval()
    for seed in range(2):
        batch = views(seed=seed)
        expected = whole(batch)
        expected.backward()
        loss = zoo.cached_backward(
            cached.loss_fn,
            cached.encoder,
            (batch.z1.detach(), batch.z2.detach()),
            chunk_size=chunk_size,
            index=batch.index,
            labels=batch.labels,
        )
        assert_close(loss, expected, "loss", magnitude=1.0)
        assert_gradients_close(taken(cached), taken(whole))
        assert_state_close(cached, whole)


@guaranteed("checkpointed encoder")
def test_checkpointing_of_the_encoder(configuration: Configuration) -> None:
    plain, frugal = Model(configuration), Model(configuration)
    encode, frugal.encoder.forward = frugal.encoder.forward, lambda x: checkpoint(encode, x, use_reentrant=False)
    for seed in range(2):
        for model in (plain, frugal):
            torch.manual_seed(seed)
            model(views(seed=seed)).backward()
        assert_gradients_close(taken(frugal), taken(plain))
        assert same_state(snapshot(frugal.loss_fn), snapshot(plain.loss_fn))


@guaranteed("checkpointed loss")
@pytest.mark.parametrize("reentrant", [False, True], ids=["", "reentrant"])
def test_checkpointing_of_the_loss(configuration: Configuration, reentrant: bool) -> None:
    batch, loss_fn = views(), configuration.make()
    expected = batch.call(configuration.make())

    def run(z1: Tensor, z2: Tensor) -> Tensor:
        return loss_fn(z1, z2, index=batch.index, labels=batch.labels)

    wanted = gradients(expected, batch)
    loss = checkpoint(run, *batch[:2], use_reentrant=reentrant)
    loss.backward()
    assert_close(loss, expected, "loss")
    for view, gradient in zip(batch[:2], wanted, strict=True):
        assert_close(view.grad, gradient, "gradient")


@every_stateful
@pytest.mark.parametrize("reentrant", [False, True], ids=["", "reentrant"])
def test_a_loss_with_state_says_that_it_cannot_be_repeated(configuration: Configuration, reentrant: bool) -> None:
    batch, loss_fn, once = views(), configuration.make(), configuration.make()
    loss = checkpoint(lambda z1, z2: loss_fn(z1, z2, index=batch.index), *batch[:2], use_reentrant=reentrant)
    with pytest.raises(RuntimeError, match=f"'{configuration.name}' keeps state.*Checkpoint the encoder only"):
        loss.backward()
    batch.call(once)
    assert same_state(snapshot(loss_fn), snapshot(once))
    batch.call(loss_fn.eval())


@guaranteed("skipped")
def test_a_skipped_step_leaves_parameters_but_tables_have_moved(configuration: Configuration) -> None:
    plain, scaled = Model(configuration), Model(configuration)
    before, tables = copy.deepcopy(list(scaled.encoder.parameters())), snapshot(scaled.loss_fn)
    batch = views(dtype=torch.float32)
    optimizer, scaler = torch.optim.SGD(scaled.parameters(), lr=0.1), torch.amp.GradScaler("cpu", init_scale=2.0**40)
    for model in (plain, scaled):
        model.encoder.float().eval()
    features = [model.encoder(torch.cat(batch[:2]).detach()).half() for model in (plain, scaled)]
    losses = [
        model.loss_fn(*z.chunk(2), index=batch.index, labels=batch.labels)
        for model, z in zip((plain, scaled), features, strict=True)
    ]
    scaler.scale(losses[1]).backward()
    scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() == 2.0**39
    for parameter, old in zip(scaled.encoder.parameters(), before, strict=True):
        assert torch.equal(parameter, old.float())
    assert same_state(snapshot(scaled.loss_fn), snapshot(plain.loss_fn))
    if configuration.card.stateful:
        assert not same_state(snapshot(scaled.loss_fn), tables)


@guaranteed("learned")
def test_what_a_loss_learns_gets_a_gradient_and_no_weight_decay(configuration: Configuration) -> None:
    loss_fn, batch = configuration.learning(), views()
    (group,) = zoo.parameter_groups(loss_fn)
    assert list(map(id, group["params"])) == list(map(id, loss_fn.parameters()))
    batch.call(loss_fn).backward()
    assert all(parameter.grad.isfinite().all() and parameter.grad.any() for parameter in loss_fn.parameters())
    before = [parameter.detach().clone() for parameter in loss_fn.parameters()]
    loss_fn.zero_grad(set_to_none=False)
    torch.optim.AdamW([group], lr=0.1, weight_decay=0.5).step()
    assert all(torch.equal(new, old) for new, old in zip(loss_fn.parameters(), before, strict=True))


@pytest.mark.parametrize("configuration", STATELESS, ids=str)
def test_a_loss_that_learns_nothing_has_no_groups(configuration: Configuration) -> None:
    assert zoo.parameter_groups(configuration.make().requires_grad_(False)) == []


def test_parameter_groups_of_something_else() -> None:
    with pytest.raises(TypeError, match=r"must be a loss of the zoo, got Linear"):
        zoo.parameter_groups(nn.Linear(2, 2))


@guaranteed("averaged")
@pytest.mark.parametrize("buffers", [False, True], ids=["parameters", "buffers too"])
def test_averages_of_models(configuration: Configuration, buffers: bool) -> None:
    model = Model(configuration)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.5), use_buffers=buffers)
    for seed in range(3):
        model(views(seed=seed)).backward()
        average.update_parameters(model)
    if not buffers:
        for averaged, buffer in zip(average.module.buffers(), model.buffers(), strict=True):
            assert torch.equal(averaged, buffer)
    loss = average.eval()(views())
    assert_close(loss, model.eval()(views()), "loss")


@every_stateful
def test_averages_made_after_the_first_step(configuration: Configuration) -> None:
    model = Model(configuration)
    model(views()).backward()
    average = AveragedModel(model)
    model(views(seed=1)).backward()
    average.update_parameters(model)
    assert all(torch.equal(mean, buffer) for mean, buffer in zip(average.module.buffers(), model.buffers(), strict=True))


@every_stateful
def test_averages_of_a_loss_that_knows_its_width(configuration: Configuration) -> None:
    """Made before the first step; the features have four entries."""
    model = Model(Configuration(configuration.name, {**configuration.params, "embedding_dim": 4}))
    average = AveragedModel(model)
    model(views()).backward()
    average.update_parameters(model)
    assert all(torch.equal(mean, buffer) for mean, buffer in zip(average.module.buffers(), model.buffers(), strict=True))


def work(rank: int, losses: dict[str, Loss], folder: Path) -> None:
    """What the spawned process does: one step with each loss that came."""
    torch.set_num_threads(1)
    found = {}
    for name, loss_fn in losses.items():
        batch = views(seed=1)
        loss = batch.call(loss_fn)
        found[name] = (loss.detach(), *gradients(loss, batch), snapshot(loss_fn))
    torch.save(found, folder / "found.pt")


@pytest.fixture(scope="module")
def spawned(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Tensor, Tensor, Tensor, dict[str, Tensor]]]:
    """What another process made of losses that had been used."""
    folder, losses = tmp_path_factory.mktemp("spawned"), {str(c): c.make() for c in CONFIGURATIONS}
    for loss_fn in losses.values():
        views().call(loss_fn)
    mp.spawn(work, args=(losses, folder))
    return torch.load(folder / "found.pt", weights_only=True)


@guaranteed("spawn")
def test_a_loss_goes_on_in_a_spawned_process(
    configuration: Configuration, spawned: dict[str, tuple[Tensor, Tensor, Tensor, dict[str, Tensor]]]
) -> None:
    loss_fn, batch = configuration.make(), views(seed=1)
    views().call(loss_fn)
    expected = batch.call(loss_fn)
    loss, first, second, state = spawned[str(configuration)]
    assert torch.equal(loss, expected)
    assert all(torch.equal(a, b) for a, b in zip((first, second), gradients(expected, batch), strict=True))
    assert same_state(state, snapshot(loss_fn))


def test_every_guarantee_is_tested() -> None:
    tests = "".join(path.read_text() for path in Path(__file__).parent.parent.rglob("test_*.py"))
    untested = [key for key in GUARANTEES if f'@guaranteed("{key}"' not in tests]
    assert not untested


def test_every_exception_concerns_somebody_and_says_why() -> None:
    for key, guarantee in GUARANTEES.items():
        for exception in guarantee.exceptions:
            assert any(exception.which(c.card, c.params) for c in CONFIGURATIONS if guarantee.concerns(c.card)), key
            assert exception.reason.endswith(".")
