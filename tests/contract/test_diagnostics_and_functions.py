"""Figures of the last step, and the names that keep nothing as functions."""

import inspect

import pytest
import torch
from cases import CONFIGURATIONS, STATELESS, Configuration, Views, views
from tolerances import assert_close

import contrastive_zoo as zoo

every_configuration = pytest.mark.parametrize("configuration", CONFIGURATIONS, ids=str)
# A function has nowhere to keep what is learned.
FUNCTIONS = [c for c in STATELESS if not list(c.make().parameters())]
every_function = pytest.mark.parametrize("configuration", FUNCTIONS, ids=str)


def assert_similarities(loss_fn: zoo.Loss, batch: Views) -> None:
    """The figures of the last call equal the means over the dense matrix of similarities."""
    figures = loss_fn.diagnostics
    unit = torch.nn.functional.normalize(torch.cat(batch[:2]).detach(), dim=1)
    similarity, by_class = unit @ unit.T, "labels" in loss_fn.needs
    groups = (batch.labels if by_class else batch.index).repeat(2)
    same = groups[:, None] == groups[None, :]
    positives = similarity[same & ~torch.eye(24, dtype=torch.bool)] if by_class else similarity.diagonal(12)
    assert_close(figures["positive_similarity"], positives.mean(), "positives", magnitude=1.0)
    assert_close(figures["negative_similarity"], similarity[~same].mean(), "negatives", magnitude=1.0)


@every_configuration
def test_diagnostics(configuration: Configuration) -> None:
    batch, loss_fn = views(), configuration.make()
    assert loss_fn.diagnostics == {}
    batch.call(loss_fn)
    for figure in loss_fn.diagnostics.values():
        assert figure.dim() == 0
        assert figure.isfinite()
        assert not figure.requires_grad
    assert_similarities(loss_fn, batch)


def test_diagnostics_do_not_count_a_sample_as_its_own_negative() -> None:
    batch, loss_fn = views(), zoo.get_loss("ntxent")
    batch.index[3] = batch.index[8]
    batch.call(loss_fn)
    assert_similarities(loss_fn, batch)


def test_diagnostics_of_single_methods() -> None:
    batch = views()
    hcl = zoo.get_loss("hcl", tau_plus=0.5, temperature=0.1)
    batch.call(hcl)
    assert 0 < hcl.diagnostics["clamped_anchors"] < 1
    emc2 = zoo.get_loss("emc2", num_samples=40)
    batch.call(emc2)
    assert 0 < emc2.diagnostics["acceptance_rate"] <= 1
    assert emc2.diagnostics["carried_share"] == 0
    kcl = zoo.get_loss("kcl", gamma=3.0)
    loss = batch.call(kcl)
    assert_close(-2 * kcl.diagnostics["alignment"] + 3 * kcl.diagnostics["energy"], loss, "kcl")


def test_functional_forms_are_those_of_the_names_that_keep_nothing() -> None:
    assert set(zoo.functional.__all__) == {c.name for c in FUNCTIONS}


@every_function
def test_functional_form_equals_the_module(configuration: Configuration) -> None:
    batch, function = views(), getattr(zoo.functional, configuration.name)
    value = function(batch.z1, batch.z2, index=batch.index, labels=batch.labels, **configuration.params)
    assert torch.equal(value, batch.call(configuration.make()))
    accepted = inspect.signature(function).parameters
    assert {"z1", "z2", "index", "labels", "negatives", "negatives_index", *configuration.card.parameters} <= set(accepted)
    assert accepted["reduction"].default == "mean"
    with pytest.raises(TypeError, match="no parameter 'temprature'"):
        function(batch.z1, batch.z2, temprature=0.1)
