"""Random draws that depend on a seed and a step only, so that nothing else has to be saved."""

import numpy as np
import torch


def generator(seed: int, step: int, device: torch.device, stream: int = 0) -> torch.Generator:
    """A generator for one step; neighbouring seeds, steps and streams give unrelated draws."""
    mixed = np.random.SeedSequence([seed, step, stream]).generate_state(1, np.uint64)[0]
    return torch.Generator(device=device).manual_seed(int(mixed) >> 1)
