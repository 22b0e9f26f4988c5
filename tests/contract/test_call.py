"""One call for all names: reductions, backends, order, samples that come twice, extra keys, gradients of any kind."""

import pytest
import torch
from cases import (
    BACKENDS,
    CONFIGURATIONS,
    HALF,
    STATELESS,
    Configuration,
    Views,
    gradients,
    guaranteed,
    outcome,
    rows,
    snapshot,
    views,
    weights,
)
from tolerances import assert_close, assert_same

import contrastive_zoo as zoo
from contrastive_zoo.pairwise import backends

every_configuration = pytest.mark.parametrize("configuration", CONFIGURATIONS, ids=str)
every_stateless = pytest.mark.parametrize("configuration", STATELESS, ids=str)
with_samples = pytest.mark.parametrize("configuration", [c for c in CONFIGURATIONS if c.card.per_sample], ids=str)
without_draws = pytest.mark.parametrize("configuration", [c for c in CONFIGURATIONS if not c.draws], ids=str)


@every_configuration
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, *HALF], ids=str)
def test_the_same_call_works_with_every_name(configuration: Configuration, dtype: torch.dtype) -> None:
    batch = views(dtype=dtype)
    loss = batch.call(configuration.make())
    assert loss.shape == ()
    assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert loss.isfinite()
    for gradient in gradients(loss, batch):
        assert gradient.dtype == dtype
        assert gradient.isfinite().all()
        assert gradient.any()


@every_configuration
def test_needs_is_what_the_card_says(configuration: Configuration) -> None:
    needs = configuration.make().needs
    assert isinstance(needs, frozenset)
    assert needs == configuration.card.needs <= {"index", "labels"}


@every_configuration
def test_aliases_make_the_same_loss(configuration: Configuration) -> None:
    for alias in configuration.card.aliases:
        assert zoo.describe_loss(alias) is configuration.card
        assert zoo.get_loss(alias, num_samples=4).card is configuration.card


@guaranteed("reductions")
@pytest.mark.parametrize("backend", BACKENDS)
def test_reductions_belong_together(configuration: Configuration, backend: str) -> None:
    batch = views()
    mean, total, none = (outcome(configuration, batch, reduction=r, backend=backend) for r in ("mean", "sum", "none"))
    assert none[0].shape == batch.index.shape
    assert_close(none[0].mean(), mean[0], "mean of none")
    assert_close(none[0].sum(), total[0], "sum of none")
    for summed, of_sum, averaged in zip(none[1:], total[1:], mean[1:], strict=True):
        assert_close(of_sum, summed, "gradient of sum")
        assert_close(averaged * len(batch.index), summed, "gradient of mean")


@every_configuration
def test_a_loss_without_a_value_per_sample_has_only_the_mean(configuration: Configuration) -> None:
    for reduction in ("sum", "none"):
        if configuration.card.per_sample:
            configuration.make(reduction=reduction)
        else:
            with pytest.raises(ValueError, match=rf"reduction='{reduction}' has no meaning for '{configuration.name}'"):
                configuration.make(reduction=reduction)


@guaranteed("backends")
@pytest.mark.parametrize("normalize", ["sphere", "ball", False])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_backends_agree(configuration: Configuration, normalize: str | bool, training: bool) -> None:
    batch, found = views(), []
    for backend in BACKENDS:
        loss_fn = configuration.make(backend=backend, normalize=normalize, seed=3).double().train(training)
        for _ in range(2):
            loss = batch.call(loss_fn)
        found.append((loss, *gradients(loss, batch)))
    assert_same(*found, logit=200.0 if normalize is False else 10.0)  # squares of lengths reach 19, over a temperature of 0.1


@pytest.mark.parametrize("configuration", [c for c in STATELESS if not c.draws], ids=str)
def test_second_derivatives_are_there_or_refused(configuration: Configuration) -> None:
    batch = views(4, 3)
    for backend in BACKENDS:
        loss = batch.call(configuration.make(backend=backend))
        first = torch.autograd.grad(loss, batch[:2], create_graph=True)
        if backends.BACKENDS[backend].plain is not None:
            for gradient in torch.autograd.grad(sum(g.square().sum() for g in first), batch[:2]):
                assert gradient.isfinite().all()
        else:
            with pytest.raises(RuntimeError, match="backend='dense'"):
                torch.autograd.grad(sum(g.square().sum() for g in first), batch[:2])


@guaranteed("order")
@pytest.mark.parametrize("backend", BACKENDS)
def test_order_of_samples_does_not_matter(configuration: Configuration, backend: str) -> None:
    batch, order = views(), torch.randperm(12)
    mixed = Views(*(leaf.detach()[order] for leaf in batch))
    mixed.z1.requires_grad_(), mixed.z2.requires_grad_()
    found = [outcome(configuration, b, backend=backend) for b in (batch, mixed)]
    assert_same(found[1], (found[0][0], found[0][1][order], found[0][2][order]))


@every_stateless
def test_index_of_different_samples_changes_nothing(configuration: Configuration) -> None:
    batch, loss_fn = views(), configuration.make()
    with_index, without = batch.call(configuration.make()), loss_fn(batch.z1, batch.z2, labels=batch.labels)
    assert_close(with_index, without, "loss")
    for given, bare in zip(gradients(with_index, batch), gradients(without, batch), strict=True):
        assert_close(given, bare, "gradient")


@every_configuration
def test_every_name_takes_note_of_samples_that_come_twice(configuration: Configuration) -> None:
    batch = views()
    twice = batch._replace(index=torch.where(torch.arange(12) == 7, batch.index[2], batch.index))
    assert not torch.equal(outcome(configuration, twice)[0], outcome(configuration, batch)[0])


@every_configuration
def test_inputs_and_their_gradients_are_left_alone(configuration: Configuration) -> None:
    batch = views()
    before = [leaf.detach().clone() for leaf in batch]
    batch.call(configuration.make()).backward()
    assert all(torch.equal(leaf, copy) for leaf, copy in zip(batch, before, strict=True))


@every_configuration
def test_gradient_of_one_view_alone(configuration: Configuration) -> None:
    batch = views()
    both = outcome(configuration, batch)[1:]
    for number in range(2):
        fixed = [leaf if leaf is batch[number] else leaf.detach() for leaf in batch]
        loss = Views(*fixed).call(configuration.make().double())
        assert_close(torch.autograd.grad(loss, batch[number])[0], both[number], f"gradient of view {number + 1}")


@every_configuration
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_backward_pass_can_be_repeated(configuration: Configuration, backend: str) -> None:
    batch = views()
    loss = batch.call(configuration.make(backend=backend))
    first = torch.autograd.grad(loss, batch[:2], retain_graph=True)
    second = torch.autograd.grad(loss, batch[:2])
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@every_configuration
@pytest.mark.parametrize("backend", BACKENDS)
def test_several_calls_before_one_backward_pass(configuration: Configuration, backend: str) -> None:
    """Steps that have moved tables on do not spoil the gradients of those before."""
    first, second, (a, b) = views(seed=0), views(seed=1), (configuration.make(backend=backend).double() for _ in range(2))
    expected = [gradients(batch.call(a), batch) for batch in (first, second)]
    losses = [batch.call(b) for batch in (first, second)]
    found = torch.autograd.grad(sum(losses), (*first[:2], *second[:2]))
    for gradient, wanted in zip(found, (*expected[0], *expected[1]), strict=True):
        assert_close(gradient, wanted, "gradient")


@every_configuration
def test_evaluation_in_inference_mode(configuration: Configuration) -> None:
    batch, loss_fn = views(), configuration.make().eval()
    with torch.inference_mode():
        value = batch.call(loss_fn)
    assert torch.equal(value.clone(), batch.call(loss_fn))


@every_configuration
def test_without_gradients_the_value_is_the_same(configuration: Configuration) -> None:
    batch = views()
    with torch.no_grad():
        value = batch.call(configuration.make().double())
    assert not value.requires_grad
    assert_close(value, outcome(configuration, batch)[0], "loss")


takes_negatives = pytest.mark.parametrize("configuration", [c for c in CONFIGURATIONS if "negatives" in c.card.uses], ids=str)


@takes_negatives
@pytest.mark.parametrize("shape", [(5, 6), (12, 5, 6)], ids=["for all", "for each"])
def test_negatives_count_and_get_a_gradient(configuration: Configuration, shape: tuple[int, ...]) -> None:
    batch, keys = views(), rows(5, 6).detach().expand(shape).contiguous().requires_grad_()
    found = []
    for backend in BACKENDS:
        loss_fn = configuration.make(backend=backend)
        loss = loss_fn(batch.z1, batch.z2, index=batch.index, negatives=keys)
        assert loss > batch.call(loss_fn)
        found.append((loss, *torch.autograd.grad(loss, (batch.z1, keys))))
    assert_same(*found)


@takes_negatives
def test_negatives_of_a_sample_itself_do_not_count(configuration: Configuration) -> None:
    batch, loss_fn = views(), configuration.make(reduction="none")
    keys, strangers = rows(5, 6), 100 + torch.arange(5)
    owned = strangers.clone()
    owned[2] = batch.index[4]
    bare, of_strangers, of_own = (
        loss_fn(batch.z1, batch.z2, index=batch.index, negatives=keys, negatives_index=negatives_index)
        for negatives_index in (None, strangers, owned)
    )
    assert torch.equal(bare, of_strangers)
    others = torch.arange(12) != 4
    assert_close(of_own[others], bare[others], "others")
    assert of_own[4] < bare[4]


@every_configuration
def test_a_call_leaves_no_trace_in_a_stateless_loss(configuration: Configuration) -> None:
    batch, loss_fn = views(), configuration.make()
    before = snapshot(loss_fn)
    first, second = batch.call(loss_fn), batch.call(loss_fn)
    if not configuration.card.stateful and not configuration.draws:
        assert torch.equal(first, second)
        assert snapshot(loss_fn).keys() == before.keys()


@with_samples
def test_upstream_gradients_per_sample(configuration: Configuration) -> None:
    """The weighted sum of per-sample losses has the weighted sum of their gradients."""
    batch, upstream = views(6, 4), weights(6)
    found = gradients(batch.call(configuration.make(reduction="none").double()), batch, upstream)
    single = [
        gradients(batch.call(configuration.make(reduction="none").double()), batch, torch.eye(6, dtype=torch.float64)[i])
        for i in range(6)
    ]
    for number in range(2):
        expected = sum(weight * one[number] for weight, one in zip(upstream, single, strict=True))
        assert_close(found[number], expected, f"gradient of view {number + 1}")


def test_what_all_losses_share_can_be_set() -> None:
    loss_fn = zoo.get_loss("ntxent")
    z1, z2 = torch.randn(2, 6, 4)
    for name, value in {"normalize": False, "reduction": "none", "backend": "dense", "on_empty": "error"}.items():
        setattr(loss_fn, name, value)
    expected = zoo.get_loss("ntxent", normalize=False, reduction="none", backend="dense")(z1, z2)
    torch.testing.assert_close(loss_fn(z1, z2), expected)
    with pytest.raises(ValueError, match="nothing to contrast"):
        loss_fn(z1[:1], z2[:1])


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [("normalize", "cube", ValueError), ("validate", 1, TypeError), ("num_samples", 5, AttributeError)],
)
def test_what_cannot_be_set_is_refused(name: str, value: object, error: type[Exception]) -> None:
    loss_fn = zoo.get_loss("ntxent")
    before = getattr(loss_fn, name)
    with pytest.raises(error, match=name):
        setattr(loss_fn, name, value)
    assert getattr(loss_fn, name) == before
