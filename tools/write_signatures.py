"""Writes contrastive_zoo/loss/signatures.pyi: get_loss as editors see it, with the parameters of each name.

    python tools/write_signatures.py

A test fails when the file is not what this script writes.
"""

import inspect
from dataclasses import fields
from pathlib import Path

import contrastive_zoo as zoo
from contrastive_zoo.batch.options import Options
from contrastive_zoo.registry import REQUIRED, Card

TARGET = Path(zoo.__file__).parent / "loss" / "signatures.pyi"
HEAD = '''"""Signature of `get_loss` for each name, written by tools/write_signatures.py: do not edit."""

# mypy: disable-error-code="overload-overlap"

from collections.abc import Callable
from typing import Any, Literal, overload

from torch import Tensor
from torch.distributed import ProcessGroup

from contrastive_zoo.loss.module import Loss
from contrastive_zoo.samplers.base import NegativeSampler

class WrongParameters:
    """In place of a loss where a name has no such parameter, or one of another type: the call raises."""
'''
TAIL = '''
@overload
def get_loss(
    name: Literal[
        {names},
    ],
    **params: Any,
) -> WrongParameters:
    """Wrong parameters."""

@overload
def get_loss(name: str, **params: Any) -> Loss:
    """Make a loss by the name of a plugin, or by a name that is not a literal."""
'''
# What annotations are called in the file.
SHORT = {
    "collections.abc.": "",
    "torch.distributed.distributed_c10d.": "",
    "torch.distributed.": "",
    "torch.": "",
    "contrastive_zoo.samplers.base.": "",
    "'": "",
}
CHOICES = {
    "normalize": 'Literal["sphere", "ball", "none"] | bool',
    "reduction": 'Literal["mean", "sum", "none"]',
    "gather": 'Literal["auto", "ring"] | bool',
    "tables": 'Literal["replicated", "sharded"]',
    "on_empty": 'Literal["warn", "error"]',
}


def text_of(annotation: object) -> str:
    """An annotation as the file writes it."""
    text = inspect.formatannotation(annotation)
    for long, short in SHORT.items():
        text = text.replace(long, short)
    return text


def parameters(card: Card) -> dict[str, tuple[str, object]]:
    """Annotation and default of each parameter: those of the objective, then those of every loss."""
    own = inspect.signature(card.build).parameters
    found = {name: (text_of(own[name].annotation), default) for name, default in card.parameters.items()}
    for option in fields(Options):
        found.setdefault(option.name, (CHOICES.get(option.name) or text_of(option.type), option.default))
    if card.stateful:
        found["num_samples"] = ("int", REQUIRED)
    return found


def overload(card: Card) -> str:
    """One overload."""
    lines = ["@overload", "def get_loss("]
    names = ", ".join(f'"{name}"' for name in (card.name, *card.aliases))
    lines += [f"    name: Literal[{names}],", "    *,"]
    for name, (annotation, default) in parameters(card).items():
        value = "" if default is REQUIRED else f" = {default!r}".replace("'", '"')
        lines.append(f"    {name}: {annotation}{value},")
    return "\n".join([*lines, ") -> Loss:", f'    """{card.title}.', "", f"    {card.summary}", '    """', ""])


def text() -> str:
    """The whole file; plugins are left out."""
    cards = [zoo.describe_loss(name) for name in zoo.list_losses()]
    own = [card for card in cards if card.build.__module__.startswith("contrastive_zoo.")]
    names = [f'"{name}"' for card in own for name in (card.name, *card.aliases)]
    return "\n".join([HEAD, *map(overload, own)]) + TAIL.format(names=",\n        ".join(names))


if __name__ == "__main__":
    TARGET.write_text(text())
