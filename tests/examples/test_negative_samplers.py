"""The picture of negative samplers is drawn, and samplers of the softmax are nearer to it than the batch is."""

import runpy
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "examples" / "reproduce" / "negative_samplers.py"


def test_a_quick_run_draws_every_sampler(tmp_path: Path) -> None:
    distances = runpy.run_path(str(SCRIPT))["main"](["--quick", "--output", str(tmp_path)])
    assert set(distances) == {"batch", "uniform", "topk", "gumbel", "mcmc", "queue"}
    assert all(0 <= distance < distances["batch"] for name, distance in distances.items() if name not in ("batch", "topk"))
    assert distances["gumbel"] < distances["uniform"]
    picture = (tmp_path / "negative_samplers.svg").read_text()
    assert all(name in picture for name in distances)
