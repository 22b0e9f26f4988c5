"""The arguments of a call of a loss, and whether they fit its objective."""

from dataclasses import dataclass

import torch
from torch import Tensor

from contrastive_zoo.batch.features import HALF
from contrastive_zoo.checks import INTEGERS, check_device, check_features, check_integers, check_same, shape
from contrastive_zoo.devices import readable
from contrastive_zoo.registry import Card


@dataclass(eq=False)
class Call:
    """The arguments of `Loss.forward`: features of a batch, positions, labels and extra negatives.

    Attributes:
        z1: (B, D) features of the first view, or (V, B, D) features of all views.
        z2: (B, D) features of the second view, if there is one.
        index: (B,) positions in the dataset.
        labels: (B,) labels.
        negatives: (M, D) extra negatives for all anchors, or (B, M, D) separate extra negatives for each sample.
        negatives_index: (M,) or (B, M) positions of the extra negatives in the dataset.
    """

    z1: Tensor
    z2: Tensor | None
    index: Tensor | None
    labels: Tensor | None
    negatives: Tensor | None
    negatives_index: Tensor | None

    @property
    def views(self) -> int:
        """Number of views, V."""
        if self.z2 is not None:
            return 2
        return self.z1.shape[0] if self.z1.dim() == 3 else 1

    @property
    def names(self) -> str:
        """Names of the arguments that hold the features, for error messages."""
        return "z1" if self.z2 is None else "z1 or z2"

    def operand(self, autocast: torch.dtype | None) -> torch.dtype:
        """Precision that rows are rounded to: half precision under half-precision autocast, else the features' own dtype."""
        dtype = self.z1.dtype if self.z2 is None else torch.promote_types(self.z1.dtype, self.z2.dtype)
        return autocast if autocast in HALF and dtype == torch.float32 else dtype

    def check(self, card: Card, training: bool) -> None:
        """Raise unless the arguments fit an objective.

        Args:
            card: Summary of the objective.
            training: Whether the loss is in training mode.

        Raises:
            TypeError: An argument is no tensor or has the wrong dtype, or the objective takes no ``negatives``.
            ValueError: Shapes or devices do not fit, or a required argument is missing.
            IndexError: A position in ``negatives_index`` is negative (checked where the host can read it).
        """
        check_features("z1", self.z1, (2, 3) if self.z2 is None else (2,))
        if self.z2 is None:
            self._check_views(card)
        else:
            check_features("z2", self.z2, (2,))
            check_same("z1", self.z1, "z2", self.z2)
        for name, value in (("index", self.index), ("labels", self.labels)):
            if value is not None:
                check_integers(name, value, self.z1.shape[-2])
            elif name in card.needs and (training or name == "labels"):
                hint = "zoo.IndexedDataset(dataset) adds it to any dataset" if name == "index" else "one per sample"
                features = "z1" if self.z2 is None else "z1, z2"
                raise ValueError(f"{card.name!r} needs {name}: call loss_fn({features}, {name}={name}); {hint}.")
        if self.negatives is not None:
            self._check_negatives(self.negatives, card)
        elif self.negatives_index is not None:
            raise ValueError("negatives_index was given without negatives. Give both, or neither.")

    def _check_views(self, card: Card) -> None:
        given = shape(self.z1)
        if self.views == 1 and "one_view" not in card.uses:
            raise ValueError(
                f"z2 is missing: {card.name!r} needs two views, and z1 of shape {given} holds one. Pass the second as "
                "loss_fn(z1, z2), or both as z1 of shape (2, B, D). With one view and labels, use 'supcon', 'scl' or 'hscl'."
            )
        if self.views > 2 and "views" not in card.uses:
            raise ValueError(f"{card.name!r} takes two views, z1 holds {self.views}: shape {given}. Give it two of them.")

    def _check_negatives(self, negatives: Tensor, card: Card) -> None:
        if "negatives" not in card.uses:
            raise TypeError(f"{card.name!r} has no place for negatives. Call it without them.")
        nothing_yet = "Leave negatives out as long as there are none, for example while a queue is empty."
        check_features("negatives", negatives, (2, 3), if_empty=nothing_yet)
        check_device("z1", self.z1, "negatives", negatives)
        size, width = self.z1.shape[-2:]
        if negatives.shape[-1] != width or (negatives.dim() == 3 and len(negatives) != size):
            raise ValueError(f"negatives must have shape (M, {width}) or ({size}, M, {width}), got {shape(negatives)}.")
        positions = self.negatives_index
        if positions is None:
            return
        if not isinstance(positions, Tensor) or positions.dtype not in INTEGERS:
            given = positions.dtype if isinstance(positions, Tensor) else type(positions).__name__
            raise TypeError(f"negatives_index must hold integers (torch.int64), got {given}.")
        if positions.shape != negatives.shape[:-1]:
            raise ValueError(f"negatives_index must have shape {shape(negatives[..., 0])}, got {shape(positions)}.")
        if readable(positions) and positions.numel() and int(positions.min()) < 0:
            raise IndexError(
                f"negatives_index holds {int(positions.min())}, wanted positions in the dataset. Leave out empty places of a "
                "queue; a key from elsewhere may have any position from the size of the dataset on."
            )
        if self.index is None:
            raise ValueError("negatives_index was given without index, so a sample's own keys cannot be told apart. Give both.")
