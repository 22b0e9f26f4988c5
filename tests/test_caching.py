"""Gradient caching against plain autograd: what must be repeated, what must not move twice, what may be handed in."""

import weakref
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import pytest
import torch
from tolerances import assert_close
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

import contrastive_zoo as zoo
from contrastive_zoo.gradient_caching import chunks

SIZE, WIDTH, CHUNK, HIDDEN = 11, 6, 4, 64
BOUNDS = [0, 3, 7, 11]  # three chunks of at most four samples, as equal as can be


def inputs(views: int = 2, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    draws = torch.Generator().manual_seed(1)
    return list(torch.randn(views, SIZE, WIDTH, generator=draws, dtype=torch.float64).to(dtype))


def network(*layers: nn.Module, dtype: torch.dtype = torch.float64) -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(WIDTH, 8), *layers, nn.Linear(8, 4)).to(dtype)


def in_chunks(encoder: Callable[[Tensor], Tensor], views: Sequence[Tensor]) -> list[Tensor]:
    """Features by one pass with a graph, a chunk at a time in the order of `cached_backward`."""
    return [torch.cat([encoder(view[start:stop]) for start, stop in pairwise(BOUNDS)]) for view in views]


def gradients(module: nn.Module) -> list[Tensor]:
    found = [parameter.grad.clone() for parameter in module.parameters()]
    module.zero_grad()
    return found


def assert_all_close(found: list[Tensor], expected: list[Tensor], dtype: torch.dtype = torch.float64) -> None:
    for number, (some, other) in enumerate(zip(found, expected, strict=True)):
        assert_close(some, other, f"gradient of parameter {number}", magnitude=1.0, dtype=dtype)


@pytest.mark.parametrize("chunk_size", [1, CHUNK, SIZE - 1, SIZE, 10 * SIZE])
def test_any_size_of_chunks_gives_the_gradient_of_the_batch(chunk_size: int) -> None:
    encoder, loss_fn, views = network(nn.Tanh()), zoo.get_loss("dcl"), inputs()
    expected = loss_fn(*map(encoder, views))
    expected.backward()
    wanted = gradients(encoder)
    loss = zoo.cached_backward(loss_fn, encoder, views, chunk_size=chunk_size)
    assert not loss.requires_grad
    assert_close(loss, expected, "loss")
    assert_all_close(gradients(encoder), wanted)


@pytest.mark.parametrize("name", ["supcon", "scl", "hscl"])
def test_one_view_where_labels_make_the_positives(name: str) -> None:
    encoder, loss_fn, (view,), labels = network(nn.Tanh()), zoo.get_loss(name), inputs(1), torch.arange(SIZE) % 3
    loss_fn(encoder(view), labels=labels).backward()
    wanted = gradients(encoder)
    zoo.cached_backward(loss_fn, encoder, (view,), chunk_size=CHUNK, labels=labels)
    assert_all_close(gradients(encoder), wanted)


def test_gradients_accumulate() -> None:
    encoder, views = network(), inputs()
    zoo.cached_backward(zoo.get_loss("dcl"), encoder, views, chunk_size=CHUNK)
    once = [parameter.grad.clone() for parameter in encoder.parameters()]
    zoo.cached_backward(zoo.get_loss("dcl"), encoder, views, chunk_size=CHUNK)
    assert_all_close(gradients(encoder), [2 * gradient for gradient in once])


def test_a_loss_may_be_handed_to_others_before_its_backward_pass() -> None:
    encoder, loss_fn, views = network(nn.Dropout(0.5)), zoo.get_loss("dcl"), inputs()
    torch.manual_seed(0)
    zoo.cached_backward(loss_fn, encoder, views, chunk_size=CHUNK)
    wanted = gradients(encoder)
    torch.manual_seed(0)
    loss = zoo.cached_loss(loss_fn, encoder, views, chunk_size=CHUNK)
    torch.rand(3)
    state = torch.get_rng_state()
    (3 * loss).backward()
    assert torch.equal(torch.get_rng_state(), state)
    assert_all_close(gradients(encoder), [3 * gradient for gradient in wanted])


def test_an_encoder_never_sees_more_than_a_chunk_and_chunks_are_even() -> None:
    sizes: list[int] = []
    encoder = network()
    encoder.register_forward_hook(lambda module, given, output: sizes.append(len(output)))
    zoo.cached_backward(zoo.get_loss("dcl"), encoder, inputs(), chunk_size=CHUNK)
    assert sizes == 4 * [3, 4, 4]


class Held:
    """A saved activation, counted as long as autograd keeps it."""

    now = most = 0

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor.detach()  # with its graph it would hold what holds it
        if tensor.dim() == 2 and tensor.shape[1] == HIDDEN and len(tensor) != 5:  # activations; the weight has 5 rows
            self._count(len(tensor))
            weakref.finalize(self, self._count, -len(tensor))

    @classmethod
    def _count(cls, rows: int) -> None:
        cls.now += rows
        cls.most = max(cls.most, cls.now)


def most_rows_held(run: Callable[[], object]) -> int:
    Held.now = Held.most = 0
    with torch.autograd.graph.saved_tensors_hooks(Held, lambda held: held.tensor):
        run()
    return Held.most


def test_activations_are_held_for_one_chunk_only() -> None:
    encoder = nn.Sequential(nn.Linear(WIDTH, HIDDEN), nn.Tanh(), nn.Tanh(), nn.Linear(HIDDEN, 5)).double()
    loss_fn, views = zoo.get_loss("dcl"), inputs()
    whole = most_rows_held(lambda: loss_fn(*map(encoder, views)).backward())
    cached = most_rows_held(lambda: zoo.cached_backward(loss_fn, encoder, views, chunk_size=CHUNK))
    assert whole * CHUNK == cached * 2 * SIZE > 0


def test_dropout_is_repeated_and_generators_end_as_after_one_pass() -> None:
    encoder, views = network(nn.Dropout(0.5)), inputs()

    def loss_fn(z1: Tensor, z2: Tensor) -> Tensor:
        return zoo.functional.dcl(nn.functional.dropout(z1), z2)

    torch.manual_seed(0)
    expected = loss_fn(*in_chunks(encoder, views))
    expected.backward()
    wanted, after = gradients(encoder), torch.get_rng_state()
    torch.manual_seed(0)
    loss = zoo.cached_backward(loss_fn, encoder, views, chunk_size=CHUNK)
    assert torch.equal(torch.get_rng_state(), after)
    assert_close(loss, expected, "loss")
    assert_all_close(gradients(encoder), wanted)


def test_generators_of_accelerators_are_repeated_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a generator that counts its draws in the place of an accelerator's."""
    device, draws, drawn = torch.device("cuda", 0), [0], []
    monkeypatch.setattr(chunks, "_accelerators", lambda encoder, inputs: [device])
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda which: torch.tensor(draws[0]) if which == device else None)
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, which: draws.__setitem__(0, int(state)))
    linear = network()

    def encoder(x: Tensor) -> Tensor:
        draws[0] += len(x)
        drawn.append(draws[0])
        return linear(x)

    zoo.cached_backward(zoo.get_loss("dcl"), encoder, inputs(), chunk_size=CHUNK)
    assert drawn == 2 * [3, 7, 11, 14, 18, 22]
    assert draws == [22]


def test_batch_normalisation_sees_chunks_and_moves_its_statistics_once() -> None:
    encoder, twin, loss_fn, views = (
        network(nn.BatchNorm1d(8)),
        network(nn.BatchNorm1d(8)),
        zoo.get_loss("dcl"),
        inputs(),
    )
    expected = loss_fn(*in_chunks(twin, views))
    expected.backward()
    loss = zoo.cached_backward(loss_fn, encoder, views, chunk_size=CHUNK)
    assert_close(loss, expected, "loss")
    assert_all_close(gradients(encoder), gradients(twin))
    for (name, buffer), other in zip(encoder.named_buffers(), twin.buffers(), strict=True):
        assert torch.equal(buffer, other), name
    assert int(encoder[1].num_batches_tracked) == 6


def test_buffers_that_a_forward_pass_reads_and_moves_are_the_same_in_both_passes() -> None:
    """Spectral norm takes a step of its power iteration in each forward pass."""
    encoder, twin = (nn.Sequential(spectral_norm(network()[0]), network()[1]).double() for _ in range(2))
    twin.load_state_dict(encoder.state_dict())
    loss_fn, views = zoo.get_loss("dcl"), inputs()
    expected = loss_fn(*in_chunks(twin, views))
    expected.backward()
    assert_close(zoo.cached_backward(loss_fn, encoder, views, chunk_size=CHUNK), expected, "loss")
    assert_all_close(gradients(encoder), gradients(twin))
    for (name, buffer), other in zip(encoder.named_buffers(), twin.buffers(), strict=True):
        assert torch.equal(buffer, other), name


def test_a_call_that_fails_leaves_buffers_as_they_were() -> None:
    encoder, loss_fn = network(nn.BatchNorm1d(8)), zoo.get_loss("sogclr", num_samples=30)
    before = {name: buffer.clone() for name, buffer in encoder.named_buffers()}
    with pytest.raises(ValueError, match="needs index"):
        zoo.cached_backward(loss_fn, encoder, inputs(), chunk_size=CHUNK)
    assert all(torch.equal(buffer, before[name]) for name, buffer in encoder.named_buffers())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_holds_in_both_passes_and_its_cache_keeps_no_gradient_back(dtype: torch.dtype) -> None:
    encoder, loss_fn, views = network(dtype=torch.float32), zoo.get_loss("ntxent"), inputs(dtype=torch.float32)
    with torch.autocast("cpu", dtype=dtype):
        expected = loss_fn(*in_chunks(encoder, views))
        expected.backward()
    wanted = gradients(encoder)
    with torch.autocast("cpu", dtype=dtype):
        loss = zoo.cached_backward(loss_fn, encoder, views, chunk_size=CHUNK)
    assert_close(loss, expected, "loss")
    assert_all_close(gradients(encoder), wanted, dtype)


def test_a_backward_pass_outside_autocast_computes_as_inside() -> None:
    encoder, loss_fn, views = network(dtype=torch.float32), zoo.get_loss("ntxent"), inputs(dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        zoo.cached_backward(loss_fn, encoder, views, chunk_size=CHUNK)
        wanted = gradients(encoder)
        loss = zoo.cached_loss(loss_fn, encoder, views, chunk_size=CHUNK)
    loss.backward()
    assert all(map(torch.equal, gradients(encoder), wanted))


def test_hooks_of_parameters_see_the_gradient_of_the_batch_once() -> None:
    encoder, loss_fn, views, seen = network(), zoo.get_loss("dcl"), inputs(), []
    loss_fn(*map(encoder, views)).backward()
    wanted, (weight, *others) = gradients(encoder), list(encoder.parameters())
    hook = weight.register_hook(lambda gradient: gradient.clamp(-0.01, 0.01))
    for parameter in others:
        parameter.register_post_accumulate_grad_hook(lambda parameter: seen.append(parameter.grad.clone()))
    for _ in range(2):
        seen.clear()
        zoo.cached_backward(loss_fn, encoder, views, chunk_size=CHUNK)
        assert wanted[0].abs().max() > 0.01
        assert_all_close(sorted(seen, key=torch.Tensor.numel), sorted(wanted[1:], key=torch.Tensor.numel))
        assert_all_close(gradients(encoder), [wanted[0].clamp(-0.01, 0.01), *wanted[1:]])
    hook.remove()
    zoo.cached_backward(loss_fn, encoder, views, chunk_size=CHUNK)
    assert_all_close(gradients(encoder), wanted)


def test_a_parameter_outside_any_module_and_in_two_encoders() -> None:
    prompt = torch.ones(WIDTH, dtype=torch.float64, requires_grad=True)
    encoder, other, loss_fn, views = network(), network(nn.Tanh()), zoo.get_loss("dcl"), inputs()
    other[0] = encoder[0]
    encoders = [lambda x: encoder(x * prompt), lambda x: other(x + prompt)]
    everything = [prompt, *nn.ModuleList([encoder, other]).parameters()]
    loss = loss_fn(*(each(view) for each, view in zip(encoders, views, strict=True)))
    wanted = torch.autograd.grad(loss, everything)
    zoo.cached_backward(loss_fn, encoders, views, chunk_size=CHUNK)
    assert_all_close([leaf.grad for leaf in everything], wanted)


def test_views_that_want_a_gradient() -> None:
    encoder, loss_fn, views = network(), zoo.get_loss("dcl"), [view.requires_grad_() for view in inputs()]
    wanted = torch.autograd.grad(loss_fn(*map(encoder, views)), views)
    zoo.cached_backward(loss_fn, encoder, views, chunk_size=CHUNK)
    assert_all_close([view.grad for view in views], wanted)


def test_sparse_gradients_stay_sparse() -> None:
    words = nn.EmbeddingBag(20, 4, mode="sum", sparse=True).double()
    views = list(torch.randint(20, (2, SIZE, 3), generator=torch.Generator().manual_seed(0)))
    zoo.get_loss("dcl")(*map(words, views)).backward()
    wanted = words.weight.grad.to_dense()
    words.zero_grad()
    zoo.cached_backward(zoo.get_loss("dcl"), words, views, chunk_size=CHUNK)
    assert words.weight.grad.is_sparse
    assert_close(words.weight.grad.to_dense(), wanted, "gradient", magnitude=1.0)


def test_a_gradient_of_parameters_that_have_changed_is_refused() -> None:
    encoder = network()
    loss = zoo.cached_loss(zoo.get_loss("dcl"), encoder, inputs(), chunk_size=CHUNK)
    with torch.no_grad():
        encoder[0].weight.mul_(2)
    with pytest.raises(RuntimeError, match="parameters of the encoder have changed"):
        loss.backward()


def test_without_gradients_there_is_a_loss_all_the_same() -> None:
    encoder, loss_fn, views = network(nn.BatchNorm1d(8)).eval(), zoo.get_loss("dcl"), inputs()
    with torch.no_grad():
        loss = zoo.cached_loss(loss_fn, encoder, views, chunk_size=CHUNK)
    assert not loss.requires_grad
    assert_close(loss, loss_fn(*map(encoder, views)).detach(), "loss")


def test_a_compiled_encoder_is_compiled_once() -> None:
    encoder, loss_fn, views, compiled = network(), zoo.get_loss("dcl"), inputs(), []

    def backend(graph: torch.fx.GraphModule, examples: list[Tensor]) -> Callable[..., Any]:
        compiled.append(graph)
        return graph.forward

    loss_fn(*map(encoder, views)).backward()
    wanted = gradients(encoder)
    zoo.cached_backward(loss_fn, torch.compile(encoder, backend=backend, dynamic=True), views, chunk_size=CHUNK)
    assert_all_close(gradients(encoder), wanted)
    assert len(compiled) == 1


def test_a_scaler_scales_all_gradients() -> None:
    encoder, views = network(dtype=torch.float32), inputs(dtype=torch.float32)
    loss_fn = zoo.get_loss("ntxent", temperature=nn.Parameter(torch.tensor(0.2)))
    zoo.cached_backward(loss_fn, encoder, views, chunk_size=CHUNK)
    wanted, of_temperature = gradients(encoder), gradients(loss_fn)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    zoo.cached_backward(loss_fn, encoder, views, chunk_size=CHUNK, backward=lambda loss: scaler.scale(loss).backward())
    assert_all_close([gradient / 1024 for gradient in gradients(encoder)], wanted)
    assert_all_close([gradient / 1024 for gradient in gradients(loss_fn)], of_temperature)


def test_the_loss_is_called_once_with_what_was_given() -> None:
    calls = []

    def loss_fn(z1: Tensor, z2: Tensor, **given: Tensor) -> Tensor:
        calls.append(given)
        return (z1 * z2).sum()

    index, negatives = torch.arange(SIZE), torch.ones(3, 4)
    zoo.cached_backward(loss_fn, network(), inputs(), chunk_size=CHUNK, index=index, negatives=negatives)
    ((names, found),) = [(sorted(given), given) for given in calls]
    assert names == ["index", "negatives"]
    assert found["index"] is index


def test_further_keys_may_want_a_gradient() -> None:
    encoder, views, loss_fn = network(), inputs(), zoo.get_loss("infonce")
    keys = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    zoo.cached_backward(loss_fn, encoder, views, chunk_size=CHUNK, negatives=keys)
    (wanted,) = torch.autograd.grad(loss_fn(*map(encoder, views), negatives=keys), keys)
    assert_close(keys.grad, wanted, "gradient of the keys")


def test_an_encoder_for_each_view() -> None:
    towers, loss_fn, views = nn.ModuleList([network(), network(nn.Tanh())]), zoo.get_loss("infonce"), inputs()
    loss_fn(towers[0](views[0]), towers[1](views[1])).backward()
    wanted = gradients(towers)
    for encoders in (towers, list(towers), tuple(tower.forward for tower in towers)):
        zoo.cached_backward(loss_fn, encoders, views, chunk_size=CHUNK)
        assert_all_close(gradients(towers), wanted)


def test_methods_of_one_module_keep_its_buffers() -> None:
    class Towers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.image, self.text = network(nn.BatchNorm1d(8)), network(nn.BatchNorm1d(8))

        def encode_image(self, x: Tensor) -> Tensor:
            return self.image(x)

        def encode_text(self, x: Tensor) -> Tensor:
            return self.text(x)

    model = Towers()
    zoo.cached_backward(zoo.get_loss("infonce"), (model.encode_image, model.encode_text), inputs(), chunk_size=CHUNK)
    assert int(model.image[1].num_batches_tracked) == int(model.text[1].num_batches_tracked) == 3


class Masked(NamedTuple):
    values: Tensor
    mask: Tensor


def masked(x: Tensor) -> Masked:
    return Masked(x, x > 0)


WRAPPINGS: dict[str, tuple[Callable[[Tensor], Any], Callable[[Any], Tensor]]] = {
    "dict": (lambda x: {"values": x, "mask": x > 0}, lambda batch: batch["values"] * batch["mask"]),
    "tuple": (lambda x: (x, x > 0), lambda batch: batch[0] * batch[1]),
    "list in a dict": (lambda x: {"both": [x, x > 0]}, lambda batch: batch["both"][0] * batch["both"][1]),
    "named tuple": (masked, lambda batch: batch.values * batch.mask),
}


@pytest.mark.parametrize(("wrap", "unwrap"), WRAPPINGS.values(), ids=WRAPPINGS)
def test_batches_may_be_tuples_lists_and_dicts(wrap: Callable[[Tensor], Any], unwrap: Callable[[Any], Tensor]) -> None:
    encoder, loss_fn, views = network(), zoo.get_loss("dcl"), inputs()
    loss_fn(*(encoder(unwrap(wrap(view))) for view in views)).backward()
    wanted = gradients(encoder)
    zoo.cached_backward(loss_fn, lambda batch: encoder(unwrap(batch)), list(map(wrap, views)), chunk_size=CHUNK)
    assert_all_close(gradients(encoder), wanted)


def test_more_than_two_views_come_as_one_tensor() -> None:
    encoder, views = network(), inputs(views=3)

    def loss_fn(z: Tensor) -> Tensor:
        assert z.shape == (3, SIZE, 4)
        return z.var(0).sum() + z.prod(0).sum()

    loss_fn(torch.stack([encoder(view) for view in views])).backward()
    wanted = gradients(encoder)
    zoo.cached_backward(loss_fn, encoder, views, chunk_size=CHUNK)
    assert_all_close(gradients(encoder), wanted)


def test_a_frozen_tower_gets_no_gradient() -> None:
    frozen, trained, views = network().requires_grad_(False), network(), inputs()
    zoo.cached_backward(zoo.get_loss("infonce"), (frozen, trained), views, chunk_size=CHUNK)
    assert all(parameter.grad is None for parameter in frozen.parameters())
    assert all(gradient.any() for gradient in gradients(trained))


def test_a_batch_with_nothing_to_contrast_has_zero_gradients() -> None:
    encoder, loss_fn = network(), zoo.get_loss("dcl")
    with pytest.warns(UserWarning, match="nothing to contrast"):
        loss = zoo.cached_backward(loss_fn, encoder, inputs(), chunk_size=CHUNK, index=torch.zeros(SIZE, dtype=torch.int64))
    assert loss == 0
    assert not any(gradient.any() for gradient in gradients(encoder))


ERRORS: dict[str, tuple[type[Exception], str, dict[str, Any]]] = {
    "chunk of none": (ValueError, "chunk_size must be at least 1, got 0", {"chunk_size": 0}),
    "part of a sample": (TypeError, "chunk_size must be a whole number, got 2.5", {"chunk_size": 2.5}),
    "one tensor": (TypeError, "views must be a tuple or list with a batch for each view, got Tensor", {"views": inputs()[0]}),
    "no view": (ValueError, "views must hold a batch for each view, got none", {"views": ()}),
    "one view of two": (ValueError, "z2 is missing: 'dcl' needs two views", {"views": inputs()[:1]}),
    "sizes": (
        ValueError,
        r"leading axis, got views\[0\]: \(11, 6\); views\[1\]: \(10, 6\)",
        {"views": [inputs()[0], inputs()[1][1:]]},
    ),
    "sizes in a view": (ValueError, "batch as leading axis", {"views": [(inputs()[0], torch.ones(3)), inputs()[1]]}),
    "no tensor": (ValueError, r"views\[1\]: \.", {"views": [inputs()[0], {}]}),
    "no samples": (ValueError, "views are empty", {"views": [x[:0] for x in inputs()]}),
    "no axes": (ValueError, r"views\[0\] is a tensor without axes", {"views": [torch.tensor(1.0), inputs()[1]]}),
    "text": (TypeError, r"views\[0\]\['text'\] must be a tensor.*got str", {"views": [{"text": "a cat"}, inputs()[1]]}),
    "encoders": (ValueError, "encoder holds 3 encoders for 2 views", {"encoder": [network()] * 3}),
    "no features": (
        TypeError,
        r"encoder of views\[0\] must return a tensor of features, got tuple",
        {"encoder": lambda x: (x,)},
    ),
    "rows": (ValueError, r"one row for each of its 3 samples, got \(2, 6\)", {"encoder": lambda x: x[1:]}),
    "feature maps": (ValueError, r"one row for each .* got \(3, 6, 1\)", {"encoder": lambda x: x[..., None]}),
    "loss per sample": (
        ValueError,
        r"one number, got shape \(11,\). Use reduction='mean'",
        {"loss_fn": zoo.get_loss("dcl", reduction="none")},
    ),
    "no backward": (RuntimeError, r"has to call .backward\(\)", {"backward": lambda loss: None}),
    "nothing to train": (RuntimeError, "no encoder has a parameter that wants a gradient", {"encoder": lambda x: x}),
}


@pytest.mark.parametrize(("error", "message", "change"), ERRORS.values(), ids=ERRORS)
def test_errors(error: type[Exception], message: str, change: dict[str, Any]) -> None:
    arguments = {"loss_fn": zoo.get_loss("dcl"), "encoder": network(), "views": inputs(), "chunk_size": CHUNK, **change}
    with pytest.raises(error, match=message):
        zoo.cached_backward(**arguments)


def test_gradients_that_are_off() -> None:
    with torch.no_grad(), pytest.raises(RuntimeError, match=r"outside torch.no_grad\(\)"):
        zoo.cached_backward(zoo.get_loss("dcl"), network(), inputs(), chunk_size=CHUNK)
