"""The authors' own numbers: value and gradients of every recorded case, see golden/README.md."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import oracle
import pytest
import torch
from cases import BACKENDS, NAMES
from torch import Tensor

import contrastive_zoo as zoo

GOLDEN = Path(__file__).parents[1] / "golden"
Arrays = dict[str, Tensor]

# The authors' numbers are themselves checked to 1e-8 or better.
RTOL, ATOL = 1e-7, 1e-9


def load(family: str, case: str) -> tuple[Arrays, dict[str, Any]]:
    """Arrays, and the parameters that they were made with."""
    with np.load(GOLDEN / family / f"{case}.npz") as file:
        arrays = {key: torch.as_tensor(file[key]) for key in file.files if key != "meta"}
        return arrays, json.loads(str(file["meta"]))["params"]


def cases(family: str, *prefixes: str) -> list[str]:
    return sorted(path.stem for path in (GOLDEN / family).glob("*.npz") if path.stem.startswith(prefixes))


def leaf(array: Tensor) -> Tensor:
    return array.clone().requires_grad_()


def assert_close(found: Tensor, expected: Tensor, what: str) -> None:
    found, expected = found.detach().cpu(), expected.cpu()  # tables are read there whatever the device
    torch.testing.assert_close(
        found, expected, rtol=0, atol=ATOL + RTOL * float(expected.abs().max()), msg=lambda text: f"{what}: {text}"
    )


Call = tuple[str, dict[str, Any], dict[str, Any]]


def from_hcl(arrays: Arrays, p: dict[str, Any]) -> Iterator[Call]:
    if p["estimator"] == "easy":
        yield "ntxent", {"temperature": p["temperature"]}, {}
        return
    yield "hcl", {key: p[key] for key in ("temperature", "tau_plus", "beta")}, {}
    if p["beta"] == 0:
        yield "debiased", {key: p[key] for key in ("temperature", "tau_plus")}, {}
    if p["beta"] == p["tau_plus"] == 0:
        yield "ntxent", {"temperature": p["temperature"]}, {}


def from_dhel_kcl(arrays: Arrays, p: dict[str, Any]) -> Iterator[Call]:
    if "tau" in p:
        yield "dhel", {"temperature": p["tau"], "both_views": p["include_augs"]}, {}
    else:
        yield "kcl", {key: p[key] for key in ("kernel", "t", "gamma")}, {}


def same(name: str, *keys: str) -> Callable[[Arrays, dict[str, Any]], Iterator[Call]]:
    """A case whose parameters have our names."""
    return lambda arrays, p: iter([(name, {key: p[key] for key in keys}, {})])


def from_clip(arrays: Arrays, p: dict[str, Any]) -> Iterator[Call]:
    yield "infonce", {"temperature": 1 / p["logit_scale"]}, {}
    yield "clip", {"init_scale": p["logit_scale"]}, {}


def from_siglip(arrays: Arrays, p: dict[str, Any]) -> Iterator[Call]:
    yield "siglip", {"init_scale": p["logit_scale"], "init_bias": p["logit_bias"]}, {}


def from_supcon(arrays: Arrays, p: dict[str, Any]) -> Iterator[Call]:
    labels = arrays["labels"][: len(arrays["z1"])] if "labels" in arrays else torch.arange(len(arrays["z1"]))
    yield "supcon", {"temperature": p["temperature"]}, {"labels": labels}


def from_info_nce(arrays: Arrays, p: dict[str, Any]) -> Iterator[Call]:
    params = {"temperature": p["temperature"], "reduction": p["reduction"], "symmetric": False}
    if "negative_keys" in arrays:
        yield "infonce", {**params, "in_batch": False}, {"negatives": leaf(arrays["negative_keys"])}
    else:
        yield "infonce", params, {}


FILES: list[tuple[str, str, Callable[[Arrays, dict[str, Any]], Iterator[Call]]]] = [
    *(("hcl", case, from_hcl) for case in cases("hcl", "")),
    *(("dhel_kcl", case, from_dhel_kcl) for case in cases("dhel_kcl", "dhel", "kcl")),
    *(("infonce", case, same("ntxent", "temperature")) for case in cases("infonce", "lightly_ntxent", "pml_ntxent_views")),
    *(("infonce", case, same("dcl", "temperature")) for case in cases("infonce", "lightly_dcl_")),
    *(("infonce", case, same("dclw", "temperature", "sigma")) for case in cases("infonce", "lightly_dclw")),
    *(("infonce", case, from_clip) for case in cases("infonce", "clip")),
    *(("infonce", case, from_siglip) for case in cases("infonce", "siglip")),
    *(("infonce", case, from_info_nce) for case in cases("infonce", "infonce")),
    *(("infonce", case, from_supcon) for case in cases("infonce", "pml_supcon") if case.endswith("2view") or "views" in case),
]
# Cases of objectives that are not registered wait for them.
CALLS = [(family, case, call) for family, case, calls in FILES for call in calls(*load(family, case)) if call[0] in NAMES]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("family", "case", "call"), CALLS, ids=[f"{c[2][0]}-{c[0]}-{c[1]}" for c in CALLS])
def test_stateless(family: str, case: str, call: Call, backend: str) -> None:
    (name, params, arguments), (arrays, _) = call, load(family, case)
    arguments = {key: value.detach().to(arrays["z1"].device) for key, value in arguments.items()}  # made before the test
    z1, z2 = leaf(arrays["z1"]), leaf(arrays["z2"])
    if "negatives" in arguments:
        arguments["negatives"].requires_grad_()
    loss = zoo.get_loss(name, backend=backend, **params).double()(z1, z2, **arguments)
    if "loss_vector" in arrays and loss.dim():
        assert_close(loss, arrays["loss_vector"], "loss per sample")
    inputs = {"grad_z1": z1, "grad_z2": z2}
    if "negatives" in arguments:
        inputs["grad_negative_keys"] = arguments["negatives"]
    found = torch.autograd.grad(loss.sum(), inputs.values())
    assert_close(loss.sum(), arrays["loss"].sum(), "loss")
    for gradient, key in zip(found, inputs, strict=True):
        assert_close(gradient, arrays[key], key)


def of_one_view() -> Iterator[tuple[str, str, str, dict[str, Any]]]:
    """Family, case, name and parameters of the cases that have one row per sample, with a label."""
    for case in cases("infonce", "pml_supcon"):
        if case.endswith("1view"):
            yield "infonce", case, "supcon", {"temperature": load("infonce", case)[1]["temperature"]}
    for case in cases("hscl", "scl"):
        p = load("hscl", case)[1]
        if not p["two_views"]:
            normalize = {"unit": "sphere", "ball": "ball"}[p["projection"]]
            beta = {"beta": p["beta"]} if p["beta"] else {}
            yield "hscl", case, "hscl" if beta else "scl", {"normalize": normalize, **beta}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("family", "case", "name", "params"), list(of_one_view()), ids=str)
def test_one_view(family: str, case: str, name: str, params: dict[str, Any], backend: str) -> None:
    arrays, _ = load(family, case)
    z, prefix = leaf(arrays["z1"]), "" if name == "supcon" else "expect_"
    loss = zoo.get_loss(name, backend=backend, **params)(z, labels=arrays["labels"][: len(z)].long())
    assert_close(loss, arrays[f"{prefix}loss"], "loss")
    assert_close(torch.autograd.grad(loss, z)[0], arrays[f"{prefix}grad_z1"], "gradient")


WITH_REFERENCE = [c for c in CALLS if hasattr(oracle, c[2][0])]


@pytest.mark.skipif("config.getoption('--device') != 'cpu'", reason="double loops are for the CPU")
@pytest.mark.parametrize(("family", "case", "call"), WITH_REFERENCE, ids=[f"{c[2][0]}-{c[0]}-{c[1]}" for c in WITH_REFERENCE])
def test_the_double_loops_themselves(family: str, case: str, call: Call) -> None:
    (name, params, arguments), (arrays, _) = call, load(family, case)
    factor = len(arrays["z1"]) if params.get("reduction", "mean") != "mean" else 1
    params = {key: value for key, value in params.items() if key != "reduction"}
    z1, z2 = leaf(arrays["z1"]), leaf(arrays["z2"])
    loss = oracle.mean(getattr(oracle, name)(z1, z2, **params, **arguments)) * factor
    assert_close(loss, arrays["loss"].sum(), "loss")
    for gradient, key in zip(torch.autograd.grad(loss, (z1, z2)), ("grad_z1", "grad_z2"), strict=True):
        assert_close(gradient, arrays[key], key)


@pytest.mark.parametrize("case", cases("infonce", "dcl_"))
def test_dcl_of_one_view(case: str) -> None:
    """The authors ask for the loss of each view by itself; ours is the mean of the two."""
    arrays, p = load("infonce", case)
    z1, z2 = leaf(arrays["z1"]), leaf(arrays["z2"])
    of_views = oracle.dcl(z1, z2, temperature=p["temperature"]).mean(0)
    assert_close(of_views[0], arrays["loss"], "loss")
    for gradient, key in zip(torch.autograd.grad(of_views[0], (z1, z2)), ("grad_z1", "grad_z2"), strict=True):
        assert_close(gradient, arrays[key], key)
    assert_close(zoo.get_loss("dcl", temperature=p["temperature"])(z1, z2), of_views.detach().mean(), "mean of the views")


@pytest.mark.parametrize("case", cases("hcl", "clamp"))
def test_clamped_anchors(case: str) -> None:
    arrays, p = load("hcl", case)
    loss_fn = zoo.get_loss("hcl", **{key: p[key] for key in ("temperature", "tau_plus", "beta")})
    loss_fn(arrays["z1"], arrays["z2"])
    expected = arrays["clamped_anchor_mask"].double().mean()
    assert float(loss_fn.diagnostics["clamped_anchors"]) == pytest.approx(float(expected))


def is_comparable(gamma: Tensor, seen: Tensor) -> bool:
    """The authors weigh samples that they meet for the first time by gamma too, where others are known already; we do not."""
    return bool((gamma == 1).all() or seen.all())


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", cases("sogclr", "v1_const", "v1_cosine"))
def test_sogclr(case: str, backend: str) -> None:
    """One step at a time from the authors' table; their gradient is 2 tau times ours."""
    arrays, p = load("sogclr", case)
    u, compared = torch.zeros(p["N"], dtype=torch.float64), 0
    for step, index in enumerate(arrays["index"]):
        gamma, after = arrays["gamma_used"][step], arrays["u_after"][step]
        if is_comparable(gamma, u[index] > 0):
            loss_fn = zoo.get_loss(
                "sogclr", num_samples=p["N"], temperature=p["tau"], gamma=float(gamma), backend=backend
            ).double()
            loss_fn.load_table(u=u, visited=u > 0)
            z1, z2 = leaf(arrays["z1"][step]), leaf(arrays["z2"][step])
            found = torch.autograd.grad(loss_fn(z1, z2, index=index), (z1, z2))
            for gradient, key in zip(found, ("grad_z1", "grad_z2"), strict=True):
                assert_close(gradient * 2 * p["tau"], arrays[key][step], f"{key} of step {step}")
            assert_close(loss_fn.table()["u"], after, f"table after step {step}")
            compared += 1
        u = after
    assert compared


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", [case for case in cases("sogclr_bimodal", "v2_global_constant") if "epsclamp" not in case])
def test_sogclr_of_two_modalities(case: str, backend: str) -> None:
    """Theirs is (B-1) tau times ours. They average exp((s_ij - s_ii)/tau), so only steps that forget the past compare."""
    arrays, p = load("sogclr_bimodal", case)
    compared = 0
    for step, index in enumerate(arrays["index"]):
        lowest = torch.stack([arrays[key][step][index] for key in ("u1_after", "u2_after")]).min()
        if (arrays["gamma_used"][step] == 1).all() and lowest > 1e-18:
            params = {"num_samples": p["N"], "temperature": p["tau"], "gamma": 1.0, "intra_view": False}
            loss_fn = zoo.get_loss("sogclr", backend=backend, **params).double()
            z1, z2 = leaf(arrays["z1"][step]), leaf(arrays["z2"][step])
            found = torch.autograd.grad(loss_fn(z1, z2, index=index), (z1, z2))
            for gradient, key in zip(found, ("grad_z1", "grad_z2"), strict=True):
                assert_close(gradient * (len(index) - 1) * p["tau"], arrays[key][step], f"{key} of step {step}")
            compared += 1
    assert compared


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", cases("sogclr", "v1_iso"))
def test_isogclr(case: str, backend: str) -> None:
    """One step at a time from the authors' tables; their gradient is 2 tau_0 times ours."""
    arrays, p = load("sogclr", case)
    names = {"u": "u_after", "temperature": "tau_after", "temperature_gradient": "grad_tau_after"}
    zeros = torch.zeros(p["N"], dtype=torch.float64)
    table, compared = {"u": zeros, "temperature": zeros + p["tau"], "temperature_gradient": zeros}, 0
    for step, index in enumerate(arrays["index"]):
        gamma, after = arrays["gamma_used"][step], {name: arrays[key][step] for name, key in names.items()}
        if is_comparable(gamma, table["u"][index] > 0):
            loss_fn = isogclr(p, float(gamma), backend)
            loss_fn.load_table(**table, visited=table["u"] > 0)
            z1, z2 = leaf(arrays["z1"][step]), leaf(arrays["z2"][step])
            found = torch.autograd.grad(loss_fn(z1, z2, index=index), (z1, z2))
            for gradient, key in zip(found, ("grad_z1", "grad_z2"), strict=True):
                assert_close(gradient * 2 * p["tau"], arrays[key][step], f"{key} of step {step}")
            for name, expected in after.items():
                assert_close(loss_fn.table()[name], expected, f"{name} after step {step}")
            compared += 1
        table = after
    assert compared > 1


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", cases("sogclr_bimodal", "v2_individual"))
def test_isogclr_of_two_modalities(case: str, backend: str) -> None:
    """Theirs is (B-1) tau_0 times ours. Only steps that forget the past compare, as for SogCLR; temperatures do not forget."""
    arrays, p = load("sogclr_bimodal", case)
    loss_fn, compared = isogclr(p, 1.0, backend, intra_view=False), 0
    for step, index in enumerate(arrays["index"]):
        if (arrays["gamma_used"][step] < 1).any():
            break
        z1, z2 = leaf(arrays["z1"][step]), leaf(arrays["z2"][step])
        found = torch.autograd.grad(loss_fn(z1, z2, index=index), (z1, z2))
        for gradient, key in zip(found, ("grad_z1", "grad_z2"), strict=True):
            assert_close(gradient * (len(index) - 1) * p["tau"], arrays[key][step], f"{key} of step {step}")
        table = loss_fn.table()
        for name, key in {"temperature": "tau", "temperature_gradient": "grad_tau"}.items():
            for side, modality in (("1", "img"), ("2", "txt")):
                assert_close(table[name + side], arrays[f"{key}_{modality}_after"][step], f"{name + side} after step {step}")
        compared += 1
    assert compared > 1


def isogclr(p: dict[str, Any], gamma: float, backend: str, **params: bool) -> zoo.Loss:
    """With the authors' parameters."""
    params |= {"temperature": p["tau"], "temperature_min": p["tau_min"], "temperature_max": p["tau_max"]}
    params |= {"num_samples": p["N"], "rho": p["rho"], "eta": p["eta"], "momentum": 1 - p["beta"]}
    return zoo.get_loss("isogclr", gamma=gamma, backend=backend, **params).double()


@pytest.mark.parametrize("case", cases("emc2", "mh"))
def test_a_scan_of_emc2(case: str) -> None:
    """Scores after the scan, last states, and the states retained after each column."""
    arrays, p = load("emc2", case)
    index, scores = arrays["query_index"], arrays["scores_matrix"]
    log_current = arrays["chain_score_before"].double()[index].log()
    states, log_score = zoo.samplers.metropolis_hastings(scores.log(), log_current, arrays["uniforms"].T.double())
    assert_close(log_score.exp(), arrays["chain_score_after"].double()[index], "scores after the scan")
    assert torch.equal(states[:, -1], arrays["chain_state_after"])
    # They drop one column more than burn_in, and never retain after a column of the anchor's own.
    retained = [
        (row, int(states[row, column]))
        for column in range(int(p["burn_in"]) + 1, scores.shape[1])
        for row in range(len(scores))
        if scores[row, column] != 0
    ]
    assert sorted(retained) == sorted(map(tuple, arrays["accepted_pairs"].tolist()))


@pytest.mark.parametrize("case", cases("emc2", "full"))
def test_two_scans_of_emc2_one_after_the_other(case: str) -> None:
    """View 2 goes on where view 1 ended, with its own anchors: states, scores and how often each pair is retained."""
    arrays, p = load("emc2", case)
    batch = p["B"]
    own = torch.arange(2 * batch)[None, :] % batch == torch.arange(batch)[:, None]
    for step, index in enumerate(arrays["index"]):
        rows = torch.nn.functional.normalize(torch.cat([arrays["z1"][step], arrays["z2"][step]]), dim=1)
        score, state = arrays["chain_score_before"][step].double()[index].log(), torch.full((batch,), -1)
        multiplicity = torch.zeros(2 * batch, 2 * batch, dtype=torch.int64)
        outside = torch.zeros(2 * batch, dtype=torch.int64)
        for view in range(2):
            log_scores = (p["beta"] * rows[view * batch :][:batch] @ rows.T).masked_fill(own, -torch.inf)
            uniforms = arrays["uniforms"][step, view].T.double()
            states, score = zoo.samplers.metropolis_hastings(log_scores, score, uniforms, state)
            state = states[:, -1]
            for anchor in range(batch):
                for column in range(int(arrays["burn_in_steps"]) + 1, 2 * batch):
                    if not own[anchor, column]:
                        at = int(states[anchor, column])
                        counts = outside if at < 0 else multiplicity[:, at]
                        counts[view * batch + anchor] += 1
        assert_close(score.exp(), arrays["chain_score_after"][step].double()[index], f"scores after step {step}")
        expected = arrays["chain_index_before"][step][index]
        found = torch.where(state >= 0, index[state.clamp_min(0) % batch], expected.to(index))
        assert torch.equal(found, arrays["chain_index_after"][step][index].to(index))
        assert torch.equal(multiplicity, arrays["inbatch_pair_multiplicity"][step].long())
        assert torch.equal(outside, arrays["oob_frequency"][step].long())
