"""Functional forms of the objectives that have neither state nor learned parameters.

Every function takes the features and the parameters that `get_loss` takes for this name:

>>> import torch
>>> from contrastive_zoo import functional
>>> z = torch.eye(4)
>>> functional.dcl(z, z, temperature=1.0)
tensor(0.7918)
"""

import inspect
from dataclasses import fields
from typing import Any, Protocol

from torch import Tensor

import contrastive_zoo.objectives  # noqa: F401 - registers the names
from contrastive_zoo.batch.options import Options
from contrastive_zoo.loss import describe_loss, get_loss
from contrastive_zoo.state.bounded import within
from contrastive_zoo.state.temperature import HIGHEST, LOWEST

__all__ = [
    "alignment_uniformity",
    "dcl",
    "dclw",
    "debiased",
    "dhel",
    "hcl",
    "hscl",
    "hucl",
    "infonce",
    "kcl",
    "ntxent",
    "scl",
    "spectral_contrastive",
    "supcon",
    "ucl",
]

_CALL = ("index", "labels", "negatives", "negatives_index")


class FunctionalLoss(Protocol):
    """A loss as a function of features and parameters."""

    def __call__(
        self,
        z1: Tensor,
        z2: Tensor | None = None,
        *,
        index: Tensor | None = None,
        labels: Tensor | None = None,
        negatives: Tensor | None = None,
        negatives_index: Tensor | None = None,
        **params: Any,
    ) -> Tensor:
        """The loss of a batch; ``params`` are the parameters of `get_loss` for this name."""


def _functional(name: str) -> FunctionalLoss:
    card = describe_loss(name)

    def loss(
        z1: Tensor,
        z2: Tensor | None = None,
        *,
        index: Tensor | None = None,
        labels: Tensor | None = None,
        negatives: Tensor | None = None,
        negatives_index: Tensor | None = None,
        **params: Any,
    ) -> Tensor:
        learned = params.get("temperature")
        if isinstance(learned, Tensor) and learned.requires_grad:  # an optimiser may have moved it out of its interval
            params["temperature"] = within(learned, LOWEST, HIGHEST)
        loss_fn = get_loss(name, **params)
        result: Tensor = loss_fn(z1, z2, index=index, labels=labels, negatives=negatives, negatives_index=negatives_index)
        return result

    loss.__name__ = loss.__qualname__ = name
    one_view = ", or one view as z1 of shape (B, D)" if "one_view" in card.uses else ""
    shapes = f"Takes z1 and z2 of shape (B, D), or z1 of shape (V, B, D){one_view}"
    loss.__doc__ = f"{card.summary}\n\n{shapes}; see ``zoo.get_loss({name!r})`` for everything else."
    loss.__signature__ = _signature(card.parameters)  # type: ignore[attr-defined]
    return loss


def _signature(parameters: dict[str, Any]) -> inspect.Signature:
    """Signature: z1, z2, the other arguments of a call, the objective's parameters, and the parameters of all losses."""
    keyword, positional = inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD
    common = {field.name: field.default for field in fields(Options) if field.name not in ("embedding_dim", "seed")}
    defaults = dict.fromkeys(_CALL) | parameters | common
    return inspect.Signature(
        [inspect.Parameter("z1", positional), inspect.Parameter("z2", positional, default=None)]
        + [inspect.Parameter(name, keyword, default=default) for name, default in defaults.items()]
    )


ntxent = _functional("ntxent")
infonce = _functional("infonce")
dcl = _functional("dcl")
dclw = _functional("dclw")
debiased = _functional("debiased")
hcl = _functional("hcl")
dhel = _functional("dhel")
kcl = _functional("kcl")
ucl = _functional("ucl")
hucl = _functional("hucl")
scl = _functional("scl")
hscl = _functional("hscl")
alignment_uniformity = _functional("alignment_uniformity")
spectral_contrastive = _functional("spectral_contrastive")
supcon = _functional("supcon")
