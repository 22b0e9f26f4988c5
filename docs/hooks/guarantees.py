"""MkDocs hook: what holds for which objective, from the list that the tests go by, and how large each one's gradient is."""

import importlib.util
import re
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from mkdocs.structure.pages import Page
from torch import Tensor

import contrastive_zoo as zoo
from contrastive_zoo.registry import Card

GUARANTEES_MARK = re.compile("<!-- guarantees -->.*?<!-- /guarantees -->", re.DOTALL)
SIZES_MARK = re.compile("<!-- gradient sizes -->.*?<!-- /gradient sizes -->", re.DOTALL)
HOLDS, MEANINGLESS = "✓", "–"

NUM_SAMPLES, BATCH, WIDTH, CLASSES, EPOCHS = 512, 128, 64, 10, 3
REFERENCE = "ntxent"
# Mean similarity of positives, and temperature.
SETTINGS = [(0.0, 0.5), (0.9, 0.5), (0.0, 0.1), (0.9, 0.1)]


def declared() -> ModuleType:
    """The list of guarantees."""
    path = Path(__file__).parents[2] / "tests" / "guarantees.py"
    spec = importlib.util.spec_from_file_location("declared_guarantees", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def cards() -> list[Card]:
    """Cards of the package's own objectives."""
    every = [zoo.describe_loss(name) for name in zoo.list_losses()]
    return [card for card in every if card.build.__module__.startswith("contrastive_zoo.")]


def guarantees() -> str:
    """For each theme what is promised, a table of names and promises, and the exceptions."""
    themes: dict[str, list[Any]] = {}
    for guarantee in declared().GUARANTEES.values():
        themes.setdefault(guarantee.theme, []).append(guarantee)
    return "\n\n".join(_theme(theme, promises) for theme, promises in themes.items())


def _theme(theme: str, promises: list[Any]) -> str:
    reasons = list(dict.fromkeys(reason for promise in promises for card in cards() if (reason := _exception(promise, card))))
    claims = [f"* **{promise.column}**: {promise.claim}" for promise in promises]
    rows = [f"| name | {' | '.join(promise.column for promise in promises)} |", "|---|" + ":-:|" * len(promises)]
    for card in cards():
        cells = [_cell(promise, card, reasons) for promise in promises]
        rows.append(f"| [`{card.name}`](objectives/{card.name}.md) | {' | '.join(cells)} |")
    notes = [f"{number}. {reason}" for number, reason in enumerate(reasons, 1)]
    parts = [f"## {theme}", "\n".join(claims), "\n".join(rows), "Exceptions:\n\n" + "\n".join(notes) if notes else ""]
    return "\n\n".join(filter(None, parts))


def _exception(promise: Any, card: Card) -> str:
    reason: str = promise.exception(card, {}) if promise.concerns(card) else ""
    return reason


def _cell(promise: Any, card: Card, reasons: list[str]) -> str:
    if not promise.concerns(card):
        return MEANINGLESS
    reason = _exception(promise, card)
    return str(reasons.index(reason) + 1) if reason else HOLDS


def features(alignment: float) -> tuple[Tensor, Tensor]:
    """Unit rows of two views of all samples, whose positives have this similarity on average."""
    draws = torch.Generator().manual_seed(0)
    z1, noise = torch.nn.functional.normalize(torch.randn(2, NUM_SAMPLES, WIDTH, generator=draws), dim=-1)
    z2 = alignment * z1 + (1 - alignment**2) ** 0.5 * noise
    return z1, torch.nn.functional.normalize(z2, dim=1)


def gradient_size(card: Card, alignment: float, temperature: float) -> float:
    """Mean length of the features' gradient over an epoch, after others in which tables fill up; features stay as they are."""
    params = _at_temperature(card, temperature)
    loss_fn, (z1, z2) = zoo.get_loss(card.name, num_samples=NUM_SAMPLES, **params), features(alignment)
    lengths = []
    for index in torch.arange(NUM_SAMPLES).split(BATCH) * EPOCHS:
        views = torch.stack([z1[index], z2[index]]).requires_grad_()
        loss_fn(views[0], views[1], index=index, labels=index % CLASSES).backward()
        assert views.grad is not None
        lengths.append(float(views.grad.norm()))
    last_epoch = lengths[-NUM_SAMPLES // BATCH :]
    return sum(last_epoch) / len(last_epoch)


def _at_temperature(card: Card, temperature: float) -> dict[str, float]:
    """The temperature, or the scale that is its inverse; nothing for objectives with neither."""
    if "temperature" in card.parameters:
        return {"temperature": temperature}
    return {"init_scale": 1 / temperature} if "init_scale" in card.parameters else {}


@cache
def gradient_sizes() -> dict[str, list[float]]:
    """Size of each name's gradient as a multiple of that of ntxent, for each of `SETTINGS`."""
    reference = zoo.describe_loss(REFERENCE)
    sizes = [gradient_size(reference, alignment, temperature) for alignment, temperature in SETTINGS]
    return {
        card.name: [gradient_size(card, *setting) / size for setting, size in zip(SETTINGS, sizes, strict=True)]
        for card in cards()
    }


def sizes_table() -> str:
    """The same as Markdown."""
    heads = [f"τ = {temperature:g}, {'aligned' if alignment else 'unaligned'}" for alignment, temperature in SETTINGS]
    lines = [f"| name | {' | '.join(heads)} |", "|---|" + "--:|" * len(SETTINGS)]
    for name, sizes in gradient_sizes().items():
        mark = "" if _at_temperature(zoo.describe_loss(name), 1.0) else " *"
        lines.append(f"| [`{name}`](objectives/{name}.md){mark} | {' | '.join(f'{size:.2g}' for size in sizes)} |")
    return "\n".join(lines)


def on_page_markdown(markdown: str, page: Page, **_: object) -> str:
    """Fill in the tables where a page asks for them."""
    if GUARANTEES_MARK.search(markdown):
        text, sizes = guarantees(), sizes_table()
        markdown = GUARANTEES_MARK.sub(lambda _: text, SIZES_MARK.sub(lambda _: sizes, markdown))
    return markdown
