"""Repeatable tests: fixed seeds, the same Hypothesis examples every time, and NaN in all memory that nobody has written."""

import copy
import importlib.util
import os
from collections.abc import Iterator
from contextlib import nullcontext

# Compiled graphs of an earlier run know the operators as they were then.
os.environ["TORCHINDUCTOR_FX_GRAPH_CACHE"] = os.environ["TORCHINDUCTOR_AUTOGRAD_CACHE"] = "0"

import pytest
import torch

if not torch.cuda.is_available():  # Triton and the package look when they are imported
    os.environ.setdefault("TRITON_INTERPRET", "1")

from accelerator import DEVICE, accelerator
from hypothesis import HealthCheck, settings

from contrastive_zoo import devices, registry
from contrastive_zoo.pairwise.fused import refusals

STAND_IN = "stand-in"

# `make test-integrations` installs what these tests use.
collect_ignore = [] if importlib.util.find_spec("lightning") else ["integrations"]

settings.register_profile(
    "repeatable",
    max_examples=25,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("repeatable")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--device",
        default="cpu",
        help="where tests make their tensors: cpu, cuda, or stand-in, an accelerator without hardware (accelerator.py)",
    )


def pytest_configure(config: pytest.Config) -> None:
    device = config.getoption("--device")
    if device == STAND_IN:
        return
    kind = torch.device(device).type
    if kind not in ("cpu", "cuda"):
        raise pytest.UsageError(f"--device takes cpu, cuda or {STAND_IN}, got {device!r}.")
    if kind == "cuda" and not torch.cuda.is_available():
        raise pytest.UsageError(f"--device {device} needs a GPU that PyTorch can use, and there is none here.")


@pytest.fixture(autouse=True)
def _default_device(request: pytest.FixtureRequest) -> Iterator[None]:
    """Tensors that say no device, and losses, are made on the device of the tests."""
    device = request.config.getoption("--device")
    if device == "cpu":
        yield
        return
    with accelerator() if device == STAND_IN else nullcontext():
        torch.set_default_device(DEVICE if device == STAND_IN else device)
        try:
            yield
        finally:
            torch.set_default_device(None)


@pytest.fixture
def kernels() -> None:
    """Skips a test whose Triton kernels can run neither in the interpreter nor on the device of the tests."""
    if not devices.TRITON:
        pytest.skip("Triton is not installed")
    if not refusals.INTERPRETED and torch.get_default_device().type != "cuda":
        pytest.skip("Triton compiles kernels here, and tensors of these tests are on the CPU")


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> Iterator[None]:
    """Tensors are small here: on a busy machine threads would wait for each other longer than they work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True, scope="session")
def _unwritten_memory_is_nan() -> Iterator[None]:
    """Deterministic algorithms fill what `torch.empty` and its kin return, so that reading it shows."""
    assert torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(autouse=True, scope="session")
def _warnings_come_every_time() -> Iterator[None]:
    """What PyTorch warns of once per program fails every test that causes it, not only the first."""
    torch.set_warn_always(True)
    yield
    torch.set_warn_always(False)


@pytest.fixture
def _compiler() -> Iterator[None]:
    """Compiled code of one test does not count as a recompilation of the next."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture
def _clean_registries(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test registers is forgotten after it."""
    for names in (registry.losses, registry.samplers, registry.batch_samplers):
        for attribute, value in vars(names).items():
            monkeypatch.setattr(names, attribute, copy.copy(value))
