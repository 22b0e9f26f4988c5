"""One loss with any sampler: its special cases, encoders for what is not in the batch, and gradients on average."""

from typing import Any

import pytest
import torch
from cases import Views, gradients, same_state, snapshot, views
from tolerances import assert_close
from torch import Tensor, nn

import contrastive_zoo as zoo
from contrastive_zoo.metrics import GradientError, gradient_error
from contrastive_zoo.samplers import memory

NUM_SAMPLES = 15


def batch_of(step: int, size: int = 5) -> Views:
    """Five of fifteen samples; every other step one of them twice."""
    batch = views(size, 4, seed=step, num_samples=NUM_SAMPLES)
    if step % 2:
        batch.index[3] = batch.index[0]
    return batch


def make(name: str, **params: Any) -> zoo.Loss:
    return zoo.get_loss(name, num_samples=NUM_SAMPLES, **params).double()


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize(
    ("name", "params", "sampler"),
    [
        ("emc2", {"burn_in": 0.25}, {"sampler": "mcmc", "burn_in": 0.25}),
        ("emc2", {"out_of_batch": "skip", "seed": 2}, {"sampler": "mcmc", "out_of_batch": "skip", "seed": 2}),
        ("negative_cache", {"num_negatives": 3}, {"sampler": "gumbel", "num_negatives": 3}),
        ("negative_cache", {"seed": 7}, {"sampler": "gumbel", "seed": 7}),
    ],
    ids=str,
)
def test_special_cases(name: str, params: dict[str, Any], sampler: dict[str, Any], reduction: str) -> None:
    """Equal to the bit, in value, gradient and state, with a sampler that was made before."""
    settings = {key: value for key, value in sampler.items() if key != "sampler"}
    made = zoo.get_sampler(sampler["sampler"], num_samples=NUM_SAMPLES, **settings)
    special, general = make(name, reduction=reduction, **params), make("sampled", sampler=made, reduction=reduction)
    for step in range(4):
        batch = batch_of(step)
        first, second = batch.call(special), batch.call(general)
        assert torch.equal(first, second)
        for a, b in zip(gradients(first.sum(), batch), gradients(second.sum(), batch), strict=True):
            assert torch.equal(a, b)
        assert same_state(snapshot(special), snapshot(general))


@pytest.mark.parametrize(("name", "sampler"), [("emc2", "mcmc"), ("negative_cache", "gumbel")])
def test_special_cases_by_name(name: str, sampler: str) -> None:
    first, second = (batch_of(0).call(make(loss, **params)) for loss, params in ((name, {}), ("sampled", {"sampler": sampler})))
    assert torch.equal(first, second)


def test_settings_that_do_not_go_together() -> None:
    sampler = zoo.get_sampler("gumbel", num_samples=NUM_SAMPLES)
    with pytest.raises(ValueError, match=r"unknown sampler 'gumble'. Did you mean 'gumbel'"):
        make("sampled", sampler="gumble")
    with pytest.raises(TypeError, match=r"sampler must be a NegativeSampler or one of gumbel, mcmc.*got int"):
        make("sampled", sampler=3)
    with pytest.raises(ValueError, match="num_negatives and embedding_dim go with the name of a sampler"):
        make("sampled", sampler=sampler, num_negatives=4)
    with pytest.raises(TypeError, match="sampler 'mcmc' has no parameter 'num_negatives'"):
        make("sampled", sampler="mcmc", num_negatives=4)
    with pytest.raises(ValueError, match="sampler was made for 15 samples and the loss for 16"):
        zoo.get_loss("sampled", num_samples=16, sampler=sampler)


def test_a_sampler_without_a_table_says_so() -> None:
    class First(zoo.samplers.NegativeSampler):
        pass

    loss_fn = make("sampled", sampler=First())
    with pytest.raises(TypeError, match="First has no table"):
        loss_fn.table()
    with pytest.raises(NotImplementedError, match=r"First must implement sample\(batch, scale\)"):
        batch_of(0).call(loss_fn)


def test_the_table_is_visited_in_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever their size, value and table are the same; draws differ."""
    found = []
    for tile in (3, 1024):
        monkeypatch.setattr(memory, "TILE", tile)
        loss_fn = make("negative_cache")
        found.append([batch_of(step).call(loss_fn).detach() for step in range(3)])
    for first, second in zip(*found, strict=True):
        assert_close(first, second, "loss")


def test_value_of_the_cache_follows_the_features() -> None:
    """The last embedding of each row counts, and of a sample twice in a batch the first."""
    loss_fn, last = make("negative_cache", temperature=0.5, reduction="none"), {}
    for step in range(4):
        batch = batch_of(step)
        rows = [torch.nn.functional.normalize(z.detach(), dim=1) for z in batch[:2]]
        fresh: dict[int, tuple[Tensor, Tensor]] = {}
        for place, sample in enumerate(batch.index.tolist()):
            fresh.setdefault(sample, (rows[0][place], rows[1][place]))
        last |= fresh
        expected = []
        for place, sample in enumerate(batch.index.tolist()):
            keys = torch.stack([key for other, pair in last.items() if other != sample for key in pair])
            logits = 2 * torch.stack([rows[view][place] for view in range(2)]) @ keys.T
            positive = 2 * rows[0][place] @ rows[1][place]
            expected.append((logits.exp().mean(1).log() - positive).mean())
        assert_close(batch.call(loss_fn), torch.stack(expected), f"loss of step {step}")


FEATURES = torch.randn(2, NUM_SAMPLES, 4, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


class Lookup:
    """An encoder of fixed features that remembers its calls."""

    def __init__(self, features: Tensor = FEATURES) -> None:
        self.features = features
        self.calls: list[tuple[Tensor, Tensor]] = []

    def __call__(self, index: Tensor, view: Tensor) -> Tensor:
        self.calls.append((index, view))
        return self.features[view, index]

    def batch(self, index: Tensor) -> Views:
        return Views(self.features[0, index], self.features[1, index], index, index)


def encoding(name: str, encode: Any, **params: Any) -> zoo.Loss:
    extra = {"out_of_batch": "encode"} if name == "emc2" else {}
    return make(name, encode=encode, temperature=0.3, **extra, **params)


both_names = pytest.mark.parametrize("name", ["emc2", "negative_cache"])
INDICES = [torch.tensor(index) for index in ([3, 1, 4, 0], [1, 5, 9, 2], [6, 5, 3, 5], [0, 9, 4, 1])]


@both_names
def test_an_encoder_that_looks_up_fixed_features(name: str) -> None:
    """Draws, values and gradients of the batch are those of the cache; rows outside of the batch get gradient besides."""
    cached = make(name, temperature=0.3)
    leaf = FEATURES.clone().requires_grad_()
    lookup = Lookup(leaf)
    encoded, outside = encoding(name, lookup), 0.0
    for index in INDICES:
        loss, fixed = lookup.batch(index).call(encoded), Lookup(FEATURES.clone().requires_grad_())
        expected = fixed.batch(index).call(cached)
        assert_close(loss, expected, "loss")
        of_encoded, of_cached = (
            torch.autograd.grad(value, source)[0] for value, source in ((loss, leaf), (expected, fixed.features))
        )
        others = torch.ones(NUM_SAMPLES, dtype=torch.bool)
        others[index] = False
        assert not of_cached[:, others].any()
        outside += float(of_encoded[:, others].abs().sum())
        if name == "negative_cache":  # a chain may carry a state that is in the batch, and has it encoded anew
            assert_close(of_encoded[:, ~others], of_cached[:, ~others], "gradient of the batch")
    assert outside > 0
    assert torch.equal(encoded.table()["visited"], cached.table()["visited"])


@both_names
def test_an_encoder_is_called_once_a_step_with_each_row_once(name: str) -> None:
    lookup = Lookup()
    loss_fn = encoding(name, lookup)
    for step, index in enumerate(INDICES):
        carried = loss_fn.table().get("chain")
        lookup.calls.clear()
        lookup.batch(index).call(loss_fn)
        if step == 0:  # nothing is known but the batch
            assert not lookup.calls
            continue
        ((positions, view),) = lookup.calls
        rows = (2 * positions + view).tolist()
        assert positions.dtype == view.dtype == torch.int64
        assert len(set(rows)) == len(rows) > 0
        if name == "emc2":
            assert set(rows) == set(carried[index].flatten().tolist()) - {-1}
        else:
            assert not set(positions.tolist()) & set(index.tolist())


def test_both_members_of_a_carried_pair_get_gradient() -> None:
    """Sample 0 meets its near neighbour, then only a stranger: the state that it carries is kept throughout."""
    temperature, basis = 1e-4, torch.eye(4, dtype=torch.float64)
    near = (3 * basis[0] + 1.5 * basis[1]).requires_grad_()
    loss_fn = zoo.get_loss(
        "emc2",
        num_samples=3,
        temperature=temperature,
        burn_in=0.0,
        out_of_batch="encode",
        encode=lambda index, view: torch.stack([near if i == 1 else basis[0] for i in index.tolist()]),
    ).double()
    first = torch.stack([basis[0], near.detach()])
    loss_fn(first, first, index=torch.tensor([0, 1]))
    z = torch.stack([basis[0], basis[3]]).requires_grad_()
    found = torch.autograd.grad(loss_fn(z, z, index=torch.tensor([0, 2])), (z, near))
    unit, known = torch.nn.functional.normalize(z, dim=1), torch.nn.functional.normalize(near, dim=0)
    surrogate = (2 * unit[0] @ known + 2 * unit[1] @ unit[0] - 2 * (unit * unit).sum()) / temperature / 4
    for gradient, wanted in zip(found, torch.autograd.grad(surrogate, (z, near)), strict=True):
        assert_close(gradient, wanted, "gradient", logit=1 / temperature)


@both_names
@pytest.mark.parametrize("normalize", ["sphere", "ball", False])
def test_what_an_encoder_returns_is_normalised_as_the_batch_is(name: str, normalize: str | bool) -> None:
    """All features are longer than 1, so that their length is lost but for normalize=False."""
    assert (FEATURES.norm(dim=2) > 0.1).all()
    lookup, found = Lookup(FEATURES * 10), []
    for scale in (10, 30):
        loss_fn, of_steps = encoding(name, Lookup(FEATURES * scale), normalize=normalize), []
        for index in INDICES:
            batch = lookup.batch(index)
            batch = batch._replace(z1=batch.z1.clone().requires_grad_())
            of_steps.append(torch.autograd.grad(batch.call(loss_fn), batch.z1)[0])
        found.append(torch.stack(of_steps))
    if normalize is False:
        assert not torch.allclose(*found)
    else:
        assert_close(found[0], found[1], "gradients", magnitude=1.0)


BAD_FEATURES = {
    "too many": (ValueError, "encode must return one row for each of", lambda z: torch.cat([z, z])),
    "one dimension": (ValueError, r"what encode returns must be \(rows, features\)", lambda z: z[:, 0]),
    "another width": (ValueError, "encode returned 3 features per row but the batch has 4", lambda z: z[:, :3]),
    "integers": (TypeError, "what encode returns must hold floating-point", lambda z: z.long()),
    "no tensor": (TypeError, "what encode returns must be a tensor", lambda z: z.tolist()),
    "NaN": (ValueError, "what encode returns holds NaN", lambda z: z * torch.nan),
}


@both_names
@pytest.mark.parametrize(("error", "message", "spoil"), BAD_FEATURES.values(), ids=BAD_FEATURES)
def test_what_an_encoder_may_not_return(name: str, error: type[Exception], message: str, spoil: Any) -> None:
    lookup = Lookup()
    broken = encoding(name, lambda index, view: spoil(lookup(index, view)))
    lookup.batch(INDICES[0]).call(broken)
    before = snapshot(broken)
    with pytest.raises(error, match=message):
        lookup.batch(INDICES[1]).call(broken)
    assert same_state(snapshot(broken), before)


def test_an_encoder_goes_with_its_setting() -> None:
    with pytest.raises(ValueError, match=r"out_of_batch='encode' needs encode: pass encode=\.\.\."):
        make("emc2", out_of_batch="encode")
    for kind in ("cache", "skip"):
        with pytest.raises(ValueError, match=f"out_of_batch='{kind}' never calls encode"):
            make("emc2", out_of_batch=kind, encode=Lookup())
    with pytest.raises(TypeError, match=r"encode must be a callable \(index, view\)"):
        make("emc2", out_of_batch="encode", encode=FEATURES)
    with pytest.raises(TypeError, match="encode must be a callable"):
        make("negative_cache", encode=FEATURES)


class Encoder(nn.Module):
    """A module as encoder."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4).double()

    def forward(self, index: Tensor, view: Tensor) -> Tensor:
        return self.layer(FEATURES[view, index])


@both_names
def test_an_encoder_keeps_its_parameters(name: str) -> None:
    encoder = Encoder()
    loss_fn, lookup = encoding(name, encoder), Lookup()
    assert not list(loss_fn.parameters())
    assert not any("layer" in key for key in loss_fn.state_dict())
    losses = [lookup.batch(index).call(loss_fn) for index in INDICES]
    torch.stack(losses).sum().backward()
    assert encoder.layer.weight.grad.any()


@both_names
def test_an_encoder_runs_in_the_autocast_state_of_the_caller(name: str) -> None:
    seen, lookup = [], Lookup()

    def encode(index: Tensor, view: Tensor) -> Tensor:
        seen.append((torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")))
        return lookup(index, view)

    loss_fn = encoding(name, encode)
    for index in INDICES[:2]:
        lookup.batch(index).call(loss_fn)
    with torch.autocast("cpu", dtype=torch.float16):
        lookup.batch(INDICES[2]).call(loss_fn)
    assert [enabled for enabled, _ in seen] == [False, True]
    assert seen[1][1] == torch.float16


@both_names
def test_a_resumed_run_with_an_encoder_is_the_same(name: str) -> None:
    lookup = Lookup()
    first, second = encoding(name, lookup), encoding(name, lookup)
    for index in INDICES[:2]:
        lookup.batch(index).call(first)
    second.load_state_dict(first.state_dict())
    for index in INDICES[2:]:
        assert torch.equal(lookup.batch(index).call(first), lookup.batch(index).call(second))
    assert same_state(snapshot(first), snapshot(second))


def clustered(seed: int, size: int = 32) -> tuple[Tensor, Tensor]:
    """Two views of samples in eight clusters, that want a gradient."""
    draws = torch.Generator().manual_seed(seed)
    centres = 1.5 * torch.randn(8, 6, generator=draws, dtype=torch.float64).repeat(size // 8, 1)
    samples = centres + torch.randn(size, 6, generator=draws, dtype=torch.float64)
    z1, z2 = (samples + 0.5 * torch.randn(size, 6, generator=draws, dtype=torch.float64) for _ in range(2))
    return z1.requires_grad_(), z2.requires_grad_()


def error_of(z: tuple[Tensor, Tensor], name: str, **params: Any) -> GradientError:
    loss_fn = zoo.get_loss(name, num_samples=len(z[0]), temperature=0.1, **params).double()
    return gradient_error(loss_fn, *z, batch_size=4, epochs=20, warmup=10)


@pytest.mark.parametrize("seed", range(3))
def test_global_methods_point_at_the_exact_gradient_better_than_the_batch_does(seed: int) -> None:
    """Batches of 4 out of 32: direction against both in-batch losses, length against NT-Xent, which nearly vanishes."""
    z = clustered(seed)
    in_batch = [error_of(z, "ntxent"), error_of(z, "dcl")]

    def encode(index: Tensor, view: Tensor) -> Tensor:
        return torch.stack(z)[view, index]

    methods: dict[str, dict[str, Any]] = {
        "sogclr": {"gamma": 0.1},
        "emc2": {},
        "emc2, encode": {"out_of_batch": "encode", "encode": encode},
        "negative_cache": {},
        "negative_cache, encode": {"encode": encode},
    }
    for method, params in methods.items():
        error = error_of(z, method.split(",")[0], **params)
        assert error.cosine > max(other.cosine for other in in_batch) + 0.02, method
        assert abs(error.relative_length - 1) < abs(in_batch[0].relative_length - 1) / 2, method
        if method == "negative_cache, encode":  # unbiased: only the noise of the draws is left
            assert error.cosine > 0.999
            assert error.relative_length == pytest.approx(1, abs=0.01)
