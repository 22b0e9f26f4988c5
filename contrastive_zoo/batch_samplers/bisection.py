"""Recursive inertial bisection into blocks of neighbours, and balanced spectral clustering of each block: near-linear time."""

import numpy as np
import torch
from torch import Tensor

from contrastive_zoo.batch_samplers.base import Positions
from contrastive_zoo.batch_samplers.spectral import BlockBatches
from contrastive_zoo.registry import batch_samplers

# Maximum number of rows for estimating a principal axis, and steps of the power iteration.
AXIS_ROWS, AXIS_STEPS = 16_384, 10


def principal_axis(rows: Tensor, generator: "np.random.Generator") -> Tensor:
    """Direction (D,) of the largest variance, by power iteration on a sample of the rows."""
    if len(rows) > AXIS_ROWS:
        rows = rows[torch.from_numpy(generator.choice(len(rows), AXIS_ROWS, replace=False))]
    centred = rows - rows.mean(0)
    axis = torch.from_numpy(generator.standard_normal(rows.shape[1])).to(rows)
    for _ in range(AXIS_STEPS):
        axis = torch.nn.functional.normalize(centred.T @ (centred @ axis), dim=0)
    return axis


def inertial_blocks(rows: Tensor, batch_size: int, k: int, generator: "np.random.Generator") -> list[Positions]:
    """Split rows into blocks of at most k batches, by recursive bisection across the principal axis, in whole batches.

    Args:
        rows: (n, D), n a multiple of batch_size.
        batch_size: Samples in a batch.
        k: Maximum number of batches in a block.
        generator: Random generator for the starts of power iterations.
    """
    finished, waiting = [], [(np.arange(len(rows)), rows)]
    while waiting:
        part, members = waiting.pop()
        batches = len(part) // batch_size
        if batches <= k:
            finished.append(part)
            continue
        place = (members @ principal_axis(members, generator)).numpy()
        cut = batches // 2 * batch_size
        order = np.argpartition(place, cut)
        waiting += [(part[half], members[torch.from_numpy(half)]) for half in (order[:cut], order[cut:])]
    return finished


@batch_samplers.register(
    "bisection",
    title="Recursive inertial bisection and spectral clustering",
    summary="Blocks of neighbouring samples by cuts across principal axes, each split by balanced spectral clustering.",
    paper="Within a block: Cho et al., 2023. arXiv:2307.05906",
    draws=True,
    scale="The authors have no such sampler.",
)
class BisectionBatches(BlockBatches):
    """Blocks of neighbours, each split by balanced spectral clustering; see `BlockBatches` for the arguments.

    The position of a sample is the mean of its two rows. A part with more than k batches is cut in two across its principal
    axis, at the median, in whole batches. Time is near-linear in the number of samples: a million samples with 128 dimensions
    take minutes on two cores. `spectral` looks for the hard negatives of a sample in a random block; `bisection` looks among
    the sample's neighbours in the whole dataset.

    Call `refresh` before every epoch. Needs scikit-learn: ``pip install 'contrastive-zoo[selection]'``. Samples that do not
    fill a batch are drawn at random.

    Examples:
        >>> import torch
        >>> import contrastive_zoo as zoo
        >>> z = torch.eye(2).repeat(4, 1)
        >>> sampler = zoo.get_batch_sampler("bisection", num_samples=8, batch_size=4, k=1)
        >>> sampler.refresh(z, z, torch.arange(8))
        >>> sorted(sorted(batch) for batch in sampler)
        [[0, 2, 4, 6], [1, 3, 5, 7]]
    """

    def blocks(self, z1: Tensor, z2: Tensor, positions: Positions, generator: "np.random.Generator") -> list[Positions]:
        """See `BlockBatches.blocks`."""
        rows = torch.from_numpy(positions)
        return [positions[block] for block in inertial_blocks(z1[rows] + z2[rows], self.batch_size, self.k, generator)]
