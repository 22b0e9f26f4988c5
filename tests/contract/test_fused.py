"""Losses whose sums the fused backend can compute, against dense code; in Triton's interpreter where there is no GPU."""

import math
from typing import Any

import pytest
import torch
from cases import views
from tolerances import assert_close

import contrastive_zoo as zoo

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
    *(("kcl", {"kernel": kernel, "t": t}) for kernel, t in [("log", 0.7), ("imq", 0.5), ("riesz", 1.0), ("riesz", -1.5)]),
    ("kcl", {"kernel": "gaussian_riesz", "t": -1.5}),
    ("alignment_uniformity", {}),
    ("siglip", {}),
    ("spectral_contrastive", {}),
    *((name, {"self_positive": own}) for name in ("ucl", "hucl", "scl", "hscl") for own in (True, False)),
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
