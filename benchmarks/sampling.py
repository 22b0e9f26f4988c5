"""EMC2's sampling beside its authors' loop: ``python benchmarks/sampling.py``. Uniform draws count on all sides."""

from collections.abc import Callable
from dataclasses import asdict

import dense
import harness
import torch
from harness import number
from torch import Tensor

BATCH_SIZES, SECONDS, TEMPERATURE, BURN_IN = (256, 1024), 6.0, 0.1, 0.5
BAR, STRETCH = 8.0, 15.0
LOOP, SCAN, STEP = "authors' loop", "zoo, metropolis_hastings", "zoo, sampler with products and gradient"


def _scores(batch_size: int) -> tuple[Tensor, Tensor]:
    """Log scores (2B, 2B), -inf at the columns of the anchor's own sample, and stored log scores (B,) of B chains."""
    z1, z2, _ = harness.features(batch_size)
    logits, _ = dense.masked_logits(z1.detach(), z2.detach(), TEMPERATURE)
    return logits, logits[:, -1].clamp(min=-5.0)[:batch_size].clone()


def zoo_scan(log_scores: Tensor, current: Tensor, uniforms: Callable[[], Tensor]) -> tuple[list[Tensor], Tensor]:
    """States (B, 2B) after each column for the anchors of view 1, then of view 2, and the last log scores (B,)."""
    from contrastive_zoo.samplers import metropolis_hastings

    state, states = None, []
    for scores in log_scores.chunk(2):
        visited, current = metropolis_hastings(scores, current, uniforms(), state)
        state = visited[:, -1]
        states.append(visited)
    return states, current


def verify(batch_size: int = 64) -> None:
    """With the same draws, every retained pair and every score of the loop must be the scan's."""
    log_scores, current = _scores(batch_size)
    burned = int(BURN_IN * (2 * batch_size - 2))
    torch.manual_seed(1)
    pairs, score, _ = dense.sample(log_scores.exp(), current.exp(), burned)
    torch.manual_seed(1)
    draws = torch.stack([torch.empty(batch_size).uniform_() for _ in range(4 * batch_size)], 1).chunk(2, 1)
    states, log_score = zoo_scan(log_scores, current, iter(draws).__next__)
    states = torch.cat(states)
    kept = (torch.arange(2 * batch_size) > burned) & torch.isfinite(log_scores)
    anchors = torch.arange(2 * batch_size)[:, None].expand_as(states)
    ours = torch.stack([anchors[kept], states[kept]])
    same = torch.equal(_sorted(ours), _sorted(pairs)) and torch.allclose(log_score.exp(), score, rtol=1e-5)
    if not same:
        raise SystemExit("the scan and the authors' loop retain different pairs. Wrong numbers are not timed.")


def _sorted(pairs: Tensor) -> Tensor:
    return (pairs[0] * (pairs.max() + 2) + pairs[1]).sort().values


def steps(batch_size: int) -> dict[str, harness.Step]:
    from contrastive_zoo.samplers.randomness import step_seed
    from contrastive_zoo.samplers.walk import Chains, walk_batch

    log_scores, current = _scores(batch_size)
    scores, burned = log_scores.exp(), int(BURN_IN * (2 * batch_size - 2))
    x = torch.nn.functional.normalize(torch.stack(harness.features(batch_size)[:2], 1).detach().flatten(0, 1), dim=1)
    ids = torch.arange(batch_size).repeat_interleave(2)
    scale, start = torch.tensor(1 / TEMPERATURE), current.repeat_interleave(2)
    return {
        LOOP: lambda: dense.sample(scores, current.exp(), burned),
        SCAN: lambda: zoo_scan(log_scores, current, lambda: torch.rand(batch_size, 2 * batch_size)),
        STEP: lambda: walk_batch(Chains(x, scale, ids, start, step_seed(0, torch.tensor(0)), burn_in=BURN_IN)),
    }


def main() -> None:
    harness.use_all_cores()
    harness.grow_heap()
    about = harness.machine()
    print(harness.heading(about), flush=True)
    verify()
    data, cells = [], []
    for batch_size in BATCH_SIZES:
        timings = harness.time_in_turns(steps(batch_size), SECONDS)
        for name, t in timings.items():
            times_faster = timings[LOOP].median / t.median
            verdict = "met, stretch too" if times_faster >= STRETCH else "met" if times_faster >= BAR else "MISSED"
            verdict = verdict if name == SCAN and batch_size == 256 else ""
            data.append({"batch_size": batch_size, "what": name, "times_faster": times_faster, **asdict(t)})
            cells.append((batch_size, name, number(t.median), number(times_faster), verdict))
    text = harness.table(("B", "what", "ms", "times faster", f"bar {BAR:.0f}, stretch {STRETCH:.0f}"), cells)
    print(text)
    harness.save("sampling", about, data, text)


if __name__ == "__main__":
    main()
