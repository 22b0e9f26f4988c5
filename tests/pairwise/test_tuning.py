"""The search for shapes of tiles, with a clock that is made up; nothing is measured here."""

import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from contrastive_zoo.pairwise.fused import shapes
from contrastive_zoo.pairwise.fused.shapes import Shape

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
BEST = Shape(128, 32, 8, 3)


@pytest.fixture
def tune(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    pytest.importorskip("triton")
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import tune

    yield tune
    for name in ("tune", "gpu", "harness"):
        if name not in before:
            sys.modules.pop(name, None)


def distance(shape: Shape) -> float:
    """Steps from the best shape, which are doublings, or stages."""
    doublings = sum(abs(a.bit_length() - b.bit_length()) for a, b in zip(shape[:3], BEST[:3], strict=True))
    return doublings + abs(shape.stages - BEST.stages)


@pytest.mark.parametrize("start", [Shape(64, 64, 4, 2), Shape(16, 128, 2, 4), BEST], ids=str)
def test_the_search_finds_the_fastest_shape_in_spite_of_noise(tune: Any, start: Shape) -> None:
    noise = random.Random(0)
    found, times = tune.climb(start, lambda shape: (1 + distance(shape)) * noise.uniform(0.995, 1.005))
    assert found == BEST
    assert next(iter(times)) == start
    assert len(times) < 60


def test_every_shape_is_timed_once(tune: Any) -> None:
    seen: list[Shape] = []
    tune.climb(Shape(64, 64, 4, 2), lambda shape: seen.append(shape) or 1 + distance(shape))
    assert len(seen) == len(set(seen))


def test_noise_moves_nothing(tune: Any) -> None:
    noise, start = random.Random(0), Shape(64, 64, 4, 2)
    assert tune.climb(start, lambda shape: noise.uniform(0.995, 1.005))[0] == start


def test_shapes_that_do_not_fit_the_card_are_passed_over(tune: Any) -> None:
    def timer(shape: Shape) -> float:
        if shape.rows * shape.columns > 2048:
            raise Exception("out of resource: shared memory, Required: 131072, Hardware limit: 101376")
        return 1 + distance(shape)

    found, times = tune.climb(Shape(32, 32, 4, 2), timer)
    assert found.rows * found.columns <= 2048
    assert float("inf") in times.values()
    with pytest.raises(ValueError, match="something else"):
        tune.climb(BEST, lambda shape: int("something else"))


def test_a_kernel_is_timed_in_each_shape_and_the_table_stays_as_it_was(tune: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    used, table = [], dict(shapes.MEASURED)
    key = "log_sums", "half", 128, 90
    monkeypatch.setattr(tune, "work", lambda *_: lambda: used.append(shapes.shape_of("log_sums", shapes.HALF, 100, 90)))
    monkeypatch.setattr(tune.gpu, "milliseconds", lambda function, calls: 1 + distance(shapes.MEASURED[key]))
    found, times = tune.tune("log_sums", shapes.HALF, 100, 64, 90)
    assert found == BEST
    assert used == list(times)
    assert used[0] == table[key]
    assert table == shapes.MEASURED


@pytest.mark.parametrize(("kind", "width"), [("half", 128), ("half", 1024), ("mixed", 64), ("tf32", 300), ("float32", 64)])
def test_what_is_timed_launches_the_kernel(tune: Any, kind: str, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch
    from launches import Recorder

    from contrastive_zoo.pairwise.fused import launch, refusals

    seen: list[tuple[str, tuple[Any, ...]]] = []
    monkeypatch.setattr(launch, "_kernels", lambda: Recorder(seen))
    monkeypatch.setattr(refusals, "INTERPRETED", True)
    draw = torch.randn
    monkeypatch.setattr(torch, "randn", lambda *shape, device: draw(*shape))
    kinds = []
    original = launch.kind_of
    monkeypatch.setattr(launch, "kind_of", lambda *given: kinds.append(original(*given)) or kinds[-1])
    torch.use_deterministic_algorithms(False)
    try:
        for kernel in tune.KERNELS:
            if not tune.exists(kernel, tune.KINDS[kind], width):
                continue
            with tune.settings(kernel, tune.KINDS[kind]):
                function = tune.work(kernel, tune.KINDS[kind], width, 9)
                seen.clear(), kinds.clear()
                function()
            assert kernel in [name for name, _ in seen]
            assert set(kinds) == {tune.KINDS[kind]}
    finally:
        torch.use_deterministic_algorithms(True)


def test_without_a_gpu_the_command_says_so() -> None:
    pytest.importorskip("triton")
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, str(BENCHMARKS / "tune.py")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 2
    assert "needs a CUDA GPU" in done.stderr
