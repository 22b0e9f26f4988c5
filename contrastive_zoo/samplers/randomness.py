"""Random draws that depend on a seed and a step only, so that nothing else has to be saved."""

import numpy as np
import torch


def generator(seed: int, step: int, device: torch.device) -> torch.Generator:
    """A generator for one step; neighbouring seeds and steps give unrelated draws."""
    mixed = np.random.SeedSequence([seed, step]).generate_state(1, np.uint64)[0]
    return torch.Generator(device=device).manual_seed(int(mixed >> 1))
