"""Bad input: an error that names the argument, what came and what is wanted, and no table changed."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from cases import (
    BACKENDS,
    CONFIGURATIONS,
    DEFAULTS,
    NUM_SAMPLES,
    STATEFUL,
    WITH_TABLES,
    Configuration,
    Views,
    same_state,
    snapshot,
    views,
)

import contrastive_zoo as zoo
from contrastive_zoo import Loss

every_default = pytest.mark.parametrize("configuration", DEFAULTS, ids=str)
needing_index = pytest.mark.parametrize("configuration", [c for c in DEFAULTS if "index" in c.card.needs], ids=str)


def refused(
    loss_fn: Loss, error: type[Exception] | tuple[type[Exception], ...], message: str, *features: Any, **arguments: Any
) -> None:
    """Whether a call raises, after a good one, and leaves all state as it was."""
    views(seed=5).call(loss_fn)
    before = snapshot(loss_fn)
    with pytest.raises(error, match=message):
        loss_fn(*features, **arguments)
    assert same_state(snapshot(loss_fn), before)


FEATURES: dict[str, tuple[type[Exception], str, Callable[[Views], tuple[Any, ...]]]] = {
    "z2 missing": (ValueError, "z2 is missing", lambda b: (b.z1,)),
    "z2 shorter": (ValueError, r"z1 and z2 must have the same shape, got \(12, 6\) and \(11, 6\)", lambda b: (b.z1, b.z2[1:])),
    "z2 narrower": (ValueError, r"same shape, got \(12, 6\) and \(12, 5\)", lambda b: (b.z1, b.z2[:, 1:])),
    "one dimension": (ValueError, r"z1 must be \(rows, features\), got shape \(12,\)", lambda b: (b.z1[:, 0], b.z2[:, 0])),
    "feature maps": (ValueError, r"got shape \(12, 6, 1, 1\).*pool", lambda b: (b.z1[..., None, None], b.z2[..., None, None])),
    "integers": (
        TypeError,
        r"z1 must hold floating-point features, got torch.int64.*\.float\(\)",
        lambda b: (b.z1.long(), b.z2),
    ),
    "complex": (TypeError, "z2 must hold floating-point", lambda b: (b.z1, b.z2.to(torch.complex64))),
    "list": (TypeError, "z1 must be a tensor", lambda b: (b.z1.tolist(), b.z2)),
    "no rows": (ValueError, r"z1 is empty: shape \(0, 6\)", lambda b: (b.z1[:0], b.z2[:0])),
    "no columns": (ValueError, r"z1 is empty: shape \(12, 0\)", lambda b: (b.z1[:, :0], b.z2[:, :0])),
    "devices": (ValueError, "z1 is on cpu and z2 on meta. Move both", lambda b: (b.z1, b.z2.to("meta"))),
}


@every_default
@pytest.mark.parametrize(("error", "message", "change"), FEATURES.values(), ids=FEATURES)
def test_features(configuration: Configuration, error: type[Exception], message: str, change: Callable[[Views], Any]) -> None:
    batch = views()
    features = change(batch)
    if len(features) == 1 and "one_view" in configuration.card.uses:
        pytest.skip("one view will do")
    refused(configuration.make(), error, message, *features, index=batch.index, labels=batch.labels)


@every_default
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("normalize", ["sphere", "ball", False])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("number", [0, 1])
def test_features_that_are_not_finite(
    configuration: Configuration, number: int, value: float, normalize: str | bool, backend: str
) -> None:
    batch = views()
    with torch.no_grad():
        batch[number][7, 2] = value
    loss_fn = configuration.make(backend=backend, normalize=normalize)
    refused(loss_fn, ValueError, "NaN or infinite.*row 7", *batch[:2], index=batch.index, labels=batch.labels)


INDICES: dict[str, tuple[type[Exception], str, Callable[[torch.Tensor], Any]]] = {
    "float": (TypeError, r"index must hold integers \(torch.int64\), got torch.float32", lambda i: i.float()),
    "bool": (TypeError, "index must hold integers", lambda i: i > 3),
    "list": (TypeError, r"index must be an integer tensor of shape \(12,\), got list", lambda i: i.tolist()),
    "short": (ValueError, r"index must have shape \(12,\), one entry per sample, got \(11,\)", lambda i: i[1:]),
    "matrix": (ValueError, r"index must have shape \(12,\).*got \(12, 1\)", lambda i: i[:, None]),
    "negative": (IndexError, "index holds -1, wanted positions in", lambda i: i.where(torch.arange(12) != 4, -1)),
}


@every_default
@pytest.mark.parametrize(("error", "message", "change"), INDICES.values(), ids=INDICES)
def test_index(configuration: Configuration, error: type[Exception], message: str, change: Callable[..., Any]) -> None:
    batch = views()
    refused(configuration.make(), error, message, *batch[:2], index=change(batch.index), labels=batch.labels)


@needing_index
def test_index_outside_of_the_data_set(configuration: Configuration) -> None:
    batch = views()
    index = batch.index.where(torch.arange(12) != 4, NUM_SAMPLES)
    message = rf"index holds {NUM_SAMPLES}, wanted positions in \[0, {NUM_SAMPLES}\)"
    refused(configuration.make(), IndexError, message, *batch[:2], index=index, labels=batch.labels)


@needing_index
def test_index_missing(configuration: Configuration) -> None:
    message = f"'{configuration.name}' needs index.*IndexedDataset"
    refused(configuration.make(), ValueError, message, *views()[:2], labels=views().labels)


def test_an_index_beyond_the_data_set_is_nothing_to_a_loss_without_tables() -> None:
    batch = views()
    zoo.get_loss("ntxent", num_samples=4)(batch.z1, batch.z2, index=batch.index + 10**9)


@every_default
@pytest.mark.parametrize(
    ("error", "message", "labels"),
    [
        (TypeError, "labels must hold integers", torch.zeros(12)),
        (ValueError, r"labels must have shape \(12,\)", torch.zeros(3, dtype=torch.int64)),
        (TypeError, "labels must be an integer tensor", [1, 2]),
    ],
    ids=["float", "short", "list"],
)
def test_labels(configuration: Configuration, error: type[Exception], message: str, labels: Any) -> None:
    batch = views()
    refused(configuration.make(), error, message, *batch[:2], index=batch.index, labels=labels)


@every_default
def test_labels_missing(configuration: Configuration) -> None:
    batch, loss_fn = views(), configuration.make()
    if "labels" in configuration.card.needs:
        refused(loss_fn, ValueError, "needs labels", *batch[:2], index=batch.index)
    else:
        assert loss_fn(*batch[:2], index=batch.index).isfinite()


def keys(*shape: int) -> torch.Tensor:
    return torch.ones(*shape, dtype=torch.float64)


NEGATIVES: dict[str, tuple[type[Exception], str, dict[str, Any]]] = {
    "wide": (ValueError, r"negatives must have shape \(M, 6\) or \(12, M, 6\), got \(5, 7\)", {"negatives": keys(5, 7)}),
    "other batch": (ValueError, r"negatives must have shape .*got \(3, 5, 6\)", {"negatives": keys(3, 5, 6)}),
    "one dimension": (ValueError, r"negatives must be .*got shape \(6,\)", {"negatives": keys(6)}),
    "integers": (TypeError, "negatives must hold floating-point", {"negatives": keys(5, 6).long()}),
    "none at all": (ValueError, r"negatives is empty: .* Leave negatives out", {"negatives": keys(0, 6)}),
    "devices": (ValueError, "z1 is on cpu and negatives on meta", {"negatives": keys(5, 6).to("meta")}),
    "NaN": (ValueError, "negatives holds NaN or infinite values", {"negatives": keys(5, 6) * math.nan}),
    "NaN for each": (ValueError, "negatives holds NaN or infinite values", {"negatives": keys(12, 5, 6) * math.nan}),
    "index alone": (ValueError, "negatives_index was given without negatives", {"negatives_index": torch.arange(5)}),
    "short index": (
        ValueError,
        r"negatives_index must have shape \(5,\), got \(4,\)",
        {"negatives": keys(5, 6), "negatives_index": torch.arange(4)},
    ),
    "float index": (
        TypeError,
        "negatives_index must hold integers",
        {"negatives": keys(5, 6), "negatives_index": torch.arange(5) + 0.5},
    ),
}


@pytest.mark.parametrize("configuration", [c for c in DEFAULTS if "negatives" in c.card.uses], ids=str)
@pytest.mark.parametrize(("error", "message", "arguments"), NEGATIVES.values(), ids=NEGATIVES)
def test_negatives(configuration: Configuration, error: type[Exception], message: str, arguments: dict[str, Any]) -> None:
    batch = views()
    refused(configuration.make(), error, message, *batch[:2], index=batch.index, **arguments)


@pytest.mark.parametrize("configuration", [c for c in DEFAULTS if "negatives" in c.card.uses], ids=str)
def test_negatives_index_needs_an_index(configuration: Configuration) -> None:
    arguments = {"negatives": keys(5, 6), "negatives_index": torch.arange(5)}
    refused(configuration.make(), ValueError, "negatives_index was given without index", *views()[:2], **arguments)


@pytest.mark.parametrize("configuration", [c for c in DEFAULTS if "negatives" not in c.card.uses], ids=str)
def test_negatives_without_a_place(configuration: Configuration) -> None:
    batch = views()
    message = f"'{configuration.name}' has no place for negatives"
    arguments = {"index": batch.index, "labels": batch.labels, "negatives": keys(5, 6)}
    refused(configuration.make(), TypeError, message, *batch[:2], **arguments)


def test_infonce_without_keys() -> None:
    batch = views()
    with pytest.raises(ValueError, match=r"in_batch=False leaves no keys.*negatives=negatives"):
        batch.call(zoo.get_loss("infonce", in_batch=False, symmetric=False))
    with pytest.raises(ValueError, match="leaves the anchors of z2 without keys: pass symmetric=False"):
        zoo.get_loss("infonce", in_batch=False)(batch.z1, batch.z2, negatives=keys(5, 6))


def test_emc2_serves_one_width() -> None:
    loss_fn = zoo.get_loss("emc2", num_samples=NUM_SAMPLES)
    narrow = views(12, 4)
    refused(loss_fn, ValueError, "z1 has 4 features per row but the table of embeddings has 6", *narrow[:2], index=narrow.index)


@pytest.mark.parametrize("configuration", STATEFUL, ids=str)
def test_num_samples_missing(configuration: Configuration) -> None:
    with pytest.raises(ValueError, match=r"keeps state per sample: pass num_samples=len\(dataset\)"):
        zoo.get_loss(configuration.name, **configuration.params)


@pytest.mark.parametrize("configuration", WITH_TABLES, ids=str)
@pytest.mark.parametrize("spoil", ["size", "value", "names"])
def test_tables_that_do_not_fit(configuration: Configuration, spoil: str) -> None:
    loss_fn = configuration.make()
    views().call(loss_fn)
    table, before = loss_fn.table(), snapshot(loss_fn)
    values = next(name for name, tensor in table.items() if tensor.is_floating_point())
    if spoil == "size":
        table[values] = table[values][1:]
    elif spoil == "value":
        table[values] = torch.full_like(table[values], -math.inf)
    else:
        table["nonsense"] = table.pop(values)
    with pytest.raises(TypeError if spoil == "names" else ValueError):
        loss_fn.load_table(**table)
    assert same_state(snapshot(loss_fn), before)


CONSTRUCTION: list[tuple[type[Exception], str, str, dict[str, Any]]] = [
    (ValueError, r"unknown loss 'ntxnet'. Did you mean 'ntxent'.*Available: ntxent, .*sogclr", "ntxnet", {}),
    (ValueError, "unknown loss 3", 3, {}),  # type: ignore[list-item]
    (
        TypeError,
        r"'ntxent' has no parameter 'temprature'. Did you mean 'temperature'\? Its parameters: temp",
        "ntxent",
        {"temprature": 1},
    ),
    (TypeError, "no parameter 'burn_in'.*reduction", "dcl", {"burn_in": 0.5}),
    (ValueError, r"temperature must be a finite number in \(0, inf.*got 0", "ntxent", {"temperature": 0}),
    (ValueError, "temperature .* got -1", "emc2", {"temperature": -1, "num_samples": 4}),
    (ValueError, "temperature .* got nan", "dcl", {"temperature": math.nan}),
    (ValueError, "temperature .* got inf", "hcl", {"temperature": math.inf}),
    (TypeError, "temperature must be a number, got 'warm'", "ntxent", {"temperature": "warm"}),
    (TypeError, "temperature must be a number, got True", "ntxent", {"temperature": True}),
    (TypeError, "temperature must be a number, got None", "ntxent", {"temperature": None}),
    (
        ValueError,
        r"temperature must be a number or a tensor of shape \(\) or \(1,\), got shape \(2,\)",
        "ntxent",
        {"temperature": torch.ones(2)},
    ),
    (ValueError, "temperature .* got -", "ntxent", {"temperature": torch.tensor(-0.5)}),
    (ValueError, r"sigma must be a finite number in \(0, inf.*got 0", "dclw", {"sigma": 0}),
    (ValueError, r"alpha must be a finite number in \(0, inf.*got 0", "alignment_uniformity", {"alpha": 0}),
    (ValueError, r"t must be a finite number in \(0, inf.*got -1", "alignment_uniformity", {"t": -1}),
    (ValueError, r"weight must be a finite number in \[0, inf.*got -1", "alignment_uniformity", {"weight": -1}),
    (ValueError, r"radius must be a finite number in \(0, inf.*got 0", "spectral_contrastive", {"radius": 0}),
    (ValueError, r"tau_plus must be a finite number in \[0, 1\), got 1", "hcl", {"tau_plus": 1}),
    (ValueError, r"tau_plus .*got -0.1", "debiased", {"tau_plus": -0.1}),
    (ValueError, r"beta must be a finite number in \[0, inf.*got -1", "hcl", {"beta": -1}),
    (ValueError, r"gamma must be a finite number in \(0, 1\], got 0", "sogclr", {"gamma": 0, "num_samples": 4}),
    (ValueError, r"gamma .* got 1.5", "sogclr", {"gamma": 1.5, "num_samples": 4}),
    (ValueError, r"burn_in must be a finite number in \[0, 1\), got 1", "emc2", {"burn_in": 1, "num_samples": 4}),
    (ValueError, r"init_scale must be a finite number in \[1, inf.*got 0.5", "clip", {"init_scale": 0.5}),
    (ValueError, "init_scale must be at most max_scale = 10, got 20", "clip", {"init_scale": 20, "max_scale": 10}),
    (
        ValueError,
        "out_of_batch must be one of 'cache', 'encode', 'skip'.*'drop'",
        "emc2",
        {"out_of_batch": "drop", "num_samples": 4},
    ),
    (TypeError, "both_views of 'dhel' must be True or False, got 1", "dhel", {"both_views": 1}),
    (TypeError, "intra_view of 'sogclr' must be True or False, got 'no'", "sogclr", {"intra_view": "no", "num_samples": 4}),
    (ValueError, "kernel must be one of 'gaussian', .*'gaussian_riesz', got 'cosine'", "kcl", {"kernel": "cosine"}),
    (ValueError, "gaussian kernel wants t > 0, got .*-2", "kcl", {"t": -2}),
    (ValueError, "reduction must be one of 'mean', 'sum', 'none', got 'max'", "ntxent", {"reduction": "max"}),
    (ValueError, "backend must be one of 'auto', 'dense', 'fused', 'tiled', got 'fast'", "ntxent", {"backend": "fast"}),
    (ValueError, "normalize must be one of .*got 'l2'", "ntxent", {"normalize": "l2"}),
    (ValueError, "normalize must be one of .*got 1", "ntxent", {"normalize": 1}),
    (ValueError, "gather must be one of 'auto', 'ring', True, False, got 'rings'", "ntxent", {"gather": "rings"}),
    (ValueError, "gather must be one of 'auto', 'ring', True, False, got 1", "ntxent", {"gather": 1}),
    (
        TypeError,
        "process_group must be None or what torch.distributed.new_group returns, got 3",
        "ntxent",
        {"process_group": 3},
    ),
    (TypeError, "process_group must be None", "ntxent", {"process_group": "gloo"}),
    (ValueError, "on_empty must be one of 'warn', 'error', got 'ignore'", "ntxent", {"on_empty": "ignore"}),
    (TypeError, "validate must be True or False, got 1", "ntxent", {"validate": 1}),
    (ValueError, "num_samples must be at least 1, got 0", "sogclr", {"num_samples": 0}),
    (TypeError, "num_samples must be a whole number, got 2.5", "sogclr", {"num_samples": 2.5}),
    (TypeError, "num_samples must be a whole number", "ntxent", {"num_samples": "all"}),
    (ValueError, "seed must be at least 0, got -1", "emc2", {"seed": -1, "num_samples": 4}),
    (TypeError, "seed must be a whole number", "ntxent", {"seed": 0.5}),
]


@pytest.mark.parametrize("flag", [np.bool_, torch.tensor, np.array], ids=["numpy", "tensor", "array"])
@pytest.mark.parametrize("value", [True, False])
def test_flags_of_any_kind(value: bool, flag: Callable[[bool], Any]) -> None:
    loss_fn = zoo.get_loss("infonce", validate=flag(value), normalize=flag(value), gather=flag(False), symmetric=flag(value))
    assert loss_fn.validate is value
    assert loss_fn.gather is False
    assert loss_fn.normalize == zoo.get_loss("infonce", normalize=value).normalize
    assert loss_fn.settings["symmetric"] is value
    assert zoo.get_loss("infonce", gather=flag(True)).gather == "auto"


def test_choices_of_numpy() -> None:
    loss_fn = zoo.get_loss("kcl", normalize=np.str_("ball"), kernel=np.str_("log"))
    assert type(loss_fn.normalize) is str
    with pytest.raises(ValueError, match="reduction must be one of 'mean', 'sum', 'none', got 'max'"):
        zoo.get_loss("ntxent", reduction=np.str_("max"))


@pytest.mark.parametrize(("error", "message", "name", "params"), CONSTRUCTION, ids=lambda value: str(value)[:60])
def test_parameters(error: type[Exception], message: str, name: str, params: dict[str, Any]) -> None:
    with pytest.raises(error, match=message):
        zoo.get_loss(name, **params)


def test_describe_loss_of_an_unknown_name() -> None:
    with pytest.raises(ValueError, match=r"unknown loss 'emc'. Did you mean 'emc2'"):
        zoo.describe_loss("emc")


@pytest.mark.parametrize("configuration", CONFIGURATIONS, ids=str)
def test_cards_and_losses_can_be_printed(configuration: Configuration) -> None:
    text = str(configuration.card)
    assert all(part in text for part in (configuration.name, configuration.card.title, configuration.card.paper))
    assert all(f"{name}=" in text for name in configuration.card.parameters)
    assert configuration.name in repr(configuration.make())
