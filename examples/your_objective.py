"""Defines an objective, registers it, and pretrains with it.

    python examples/your_objective.py
    python examples/your_objective.py --set margin=0.2 --epochs 10    # it has parameters like any other

All options of pretrain.py are understood.
"""

import sys
from collections.abc import Sequence
from typing import Any

import pretrain
from torch import Tensor
from torch.nn.functional import softplus

import contrastive_zoo as zoo


@zoo.register_loss("additive_margin", paper="arXiv:1902.08564", equation=r"\log(1 + e^{\mathrm{lse} - (s_{ap} - m)/\tau})")
def additive_margin(batch: zoo.Batch, *, temperature: float = 0.1, margin: float = 0.1) -> Tensor:
    """NT-Xent whose positives must beat the negatives by a margin."""
    positive = (batch.positive_similarity() - margin) / temperature  # (B, 1)
    negatives = batch.logsumexp(1 / temperature)  # (B, 2)
    return softplus(negatives - positive)


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    return pretrain.main(["--loss", "additive_margin", *(sys.argv[1:] if argv is None else argv)])


if __name__ == "__main__":
    main()
