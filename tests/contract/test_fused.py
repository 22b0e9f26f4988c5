"""Losses whose sums the fused backend can compute, against dense code; in Triton's interpreter where there is no GPU."""

import math
from typing import Any

import pytest
import torch
from cases import gradients, views
from launches import Recorder, Work
from tolerances import assert_close

import contrastive_zoo as zoo
from contrastive_zoo.batch import features
from contrastive_zoo.batch.samples import regular_ids
from contrastive_zoo.pairwise.fused import launch

pytestmark = pytest.mark.usefixtures("kernels")

NAMES: list[tuple[str, dict[str, Any]]] = [
    ("ntxent", {}),
    ("infonce", {}),
    ("infonce", {"symmetric": False}),
    ("clip", {}),
    ("dcl", {}),
    ("dclw", {}),
    ("supcon", {}),
    ("debiased", {}),
    ("hcl", {}),
    ("dhel", {}),
    ("sogclr", {}),
    ("sogclr", {"intra_view": False}),
    ("isogclr", {}),
    ("isogclr", {"intra_view": False}),
    ("kcl", {}),
    ("alignment_uniformity", {}),
]
every_name = pytest.mark.parametrize(
    ("name", "params"), NAMES, ids=lambda each: each if isinstance(each, str) else str(each or "")
)


def outcome(name: str, dtype: torch.dtype, steps: int = 2, autocast: bool = False, **params: Any) -> tuple[torch.Tensor, ...]:
    """Value, gradients of both views and of what is learned, at the last of some steps."""
    loss_fn = zoo.get_loss(name, num_samples=40, **params)
    loss_fn = loss_fn.double() if dtype == torch.float64 else loss_fn
    for seed in range(steps):
        batch = views(21, 6, seed=seed)  # the same rows in both precisions
        batch = batch._replace(**{z: getattr(batch, z).detach().float().to(dtype).requires_grad_() for z in ("z1", "z2")})
        with torch.autocast(torch.get_default_device().type, torch.float16, enabled=autocast):
            loss = batch.call(loss_fn)
    learned = [parameter for parameter in loss_fn.parameters() if parameter.requires_grad]
    return loss.detach(), *gradients_of(loss, [batch.z1, batch.z2, *learned])


def gradients_of(loss: torch.Tensor, leaves: list[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    return torch.autograd.grad(loss, leaves, materialize_grads=True)


@every_name
@pytest.mark.parametrize("normalize", ["sphere", "ball"])
def test_fused_equals_dense(name: str, params: dict[str, Any], normalize: str) -> None:
    if name == "kcl" and normalize == "ball":
        pytest.skip("the gaussian of rows of any length is not a log-sum-exp")
    found = outcome(name, torch.float32, backend="fused", normalize=normalize, **params)
    wanted = outcome(name, torch.float64, backend="dense", normalize=normalize, **params)
    for number, (a, b) in enumerate(zip(found, wanted, strict=True)):
        assert_close(a, b, f"result {number}", dtype=torch.float32, logit=20.0, magnitude=0.05)


@every_name
def test_float16_autocast(name: str, params: dict[str, Any]) -> None:
    found, wanted = (outcome(name, torch.float32, autocast=True, backend=backend, **params) for backend in ("fused", "dense"))
    for number, (a, b) in enumerate(zip(found, wanted, strict=True)):
        assert_close(a, b, f"result {number}", dtype=torch.float16, magnitude=0.05)


@pytest.mark.parametrize("temperature", [0.005, 0.05, 10.0])
def test_temperatures(temperature: float) -> None:
    for learned in (False, True):
        found, wanted = (
            outcome("ntxent", dtype, backend=backend, temperature=torch.nn.Parameter(given) if learned else temperature)
            for dtype, backend in ((torch.float32, "fused"), (torch.float64, "dense"))
            for given in [torch.tensor(temperature)]
        )
        for number, (a, b) in enumerate(zip(found, wanted, strict=True)):
            assert_close(a, b, f"result {number}", dtype=torch.float32, logit=math.ceil(2 / temperature))


def test_a_loss_that_sums_something_else_says_so() -> None:
    batch = views(dtype=torch.float32)
    with pytest.raises(ValueError, match="backend='fused' cannot do this: its kernels compute log-sum-exps"):
        batch.call(zoo.get_loss("siglip", backend="fused"))
    loss = batch.call(zoo.get_loss("siglip"))
    assert all(gradient.isfinite().all() for gradient in gradients(loss, batch))


# Operations of PyTorch in a step: the scale, positives over the temperature, the softplus and the mean; and their gradients.
STEPS = {
    "ntxent": (["_forward", "log_sums"], ["weigh", "gradients", "_backward"], 13),
    "infonce": (["_forward", "log_sums", "log_sums"], ["weigh", "gradients", "gradients", "_backward"], 17),
    "dcl": (["_forward", "log_sums"], ["weigh", "gradients", "_backward"], 11),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("name", STEPS)
def test_launches_of_a_step(name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """All pairs of rows, the normalisation, the positives and the conversions are in kernels of this package."""
    from contrastive_zoo.batch import features_triton

    seen: list[tuple[str, tuple[Any, ...]]] = []
    kernels = Recorder(seen)
    monkeypatch.setattr(launch, "_kernels", lambda: kernels)
    for kernel in ("_forward", "_backward"):
        monkeypatch.setattr(features_triton, kernel, getattr(kernels, kernel))
    monkeypatch.setattr(features, "has_kernels", lambda z: True)
    rows_of = features.normalized_rows
    monkeypatch.setattr(features, "normalized_rows", lambda *args: rows_of(*args[:5], False))  # values are checked on CPUs
    batch = views(8, 16, dtype=dtype)
    loss_fn = zoo.get_loss(name, backend="fused")
    regular_ids(8, 1), regular_ids(16, 2)  # made once for all batches of a size
    with Work() as forward:
        loss = loss_fn(batch.z1, batch.z2)
    before = [name for name, _ in seen]
    with Work() as backward:
        loss.backward()
    wanted_forward, wanted_backward, of_pytorch = STEPS[name]
    assert before == wanted_forward
    assert [name for name, _ in seen[len(before) :]] == wanted_backward
    assert len(forward.seen) + len(backward.seen) <= of_pytorch, (forward.seen, backward.seen)
