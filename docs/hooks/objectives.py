"""MkDocs hook: a page for each objective, made from its card, a table of all, and a check that none is forgotten."""

import inspect
import re
from collections.abc import Iterable

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

import contrastive_zoo as zoo
from contrastive_zoo.registry import Card, Range

FOLDER = "objectives/"
TABLE_MARK = "<!-- objectives -->"
GUIDE = "choosing.md"
_ARXIV = re.compile(r"arXiv:(\d{4}\.\d{4,5})")
_INDENTED = re.compile(r"(^ {4}.*\n)+", re.MULTILINE)


def cards() -> list[Card]:
    """Cards of the package's own objectives; plugins that happen to be installed document themselves."""
    every = [zoo.describe_loss(name) for name in zoo.list_losses()]
    return [card for card in every if card.build.__module__.startswith("contrastive_zoo.")]


def table() -> str:
    """All objectives, one line each, as Markdown."""
    lines = ["| name | method | in one line | needs |", "|---|---|---|---|"]
    for card in cards():
        lines.append(f"| [`{card.name}`]({FOLDER}{card.name}.md) | {card.title} | {card.summary} | {_names(card.needs)} |")
    return "\n".join(lines)


def page(card: Card) -> str:
    """The page of one objective as Markdown."""
    sections = [f"# {card.title}", _introduction(card), _example(card), _facts(card), _parameters(card)]
    if card.differences:
        sections.append("## Differences from the authors' code\n\n* " + "\n* ".join(card.differences))
    options = '    options:\n      filters: ["!^_", "!^forward$"]'
    sections.append(f"## Reference\n\n::: {card.build.__module__}.{card.build.__qualname__}\n{options}")
    return "\n\n".join(filter(None, sections)) + "\n"


def _introduction(card: Card) -> str:
    """What the module says, its formula in the notation of the card; the card alone where objectives share a module."""
    equation = f"$$\n{card.equation}\n$$\n"
    module = inspect.getmodule(card.build)
    if module is None or module.__name__.rpartition(".")[2] != card.name:
        return f"{card.summary}\n\n{equation}"
    return _linked(_INDENTED.sub(lambda _: equation, inspect.getdoc(module) or card.summary, count=1))


def _linked(text: str) -> str:
    """Papers as links, one citation a line."""
    return _ARXIV.sub(r"[arXiv:\1](https://arxiv.org/abs/\1)", text).replace(")\n", ")  \n")


def _example(card: Card) -> str:
    size = ", num_samples=len(dataset)" if "num_samples" in inspect.signature(card.build).parameters else ""
    needs = "".join(f", {need}={need}" for need in sorted(card.needs))
    one_view = f"\nloss = loss_fn(z1{needs})  # one view" if "one_view" in card.uses else ""
    return (
        "```python\nimport contrastive_zoo as zoo\n\n"
        f'loss_fn = zoo.get_loss("{card.name}"{size})\nloss = loss_fn(z1, z2{needs}){one_view}\n```'
    )


def _facts(card: Card) -> str:
    facts = {
        "also called": _names(card.aliases),
        "paper": _linked(card.paper),
        "needs": _names(card.needs) or "features only",
        "uses when given": _names(card.uses - card.needs),
        "state": "kept between steps, saved in `state_dict()`" if card.stateful else "none",
        "randomness": "draws, from a saved seed" if card.draws else "none",
        "reductions": _names(('"mean"', '"sum"', '"none"') if card.per_sample else ('"mean"',)),
        "scale": card.scale,
    }
    lines = [
        f"| name | `{card.name}` |",
        "|---|---|",
        *(f"| {fact} | {text} |" for fact, text in facts.items() if text),
    ]
    return "\n".join(lines)


def _names(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _parameters(card: Card) -> str:
    if not card.parameters:
        return ""
    common = "Settings that all objectives share are on [the interface](../interface.md#common-settings)."
    lines = [f"## Parameters\n\n{common}\n", "| parameter | default | allowed |", "|---|---|---|"]
    for name, default in card.parameters.items():
        shown = "required" if default is inspect.Parameter.empty else f"`{default!r}`"
        lines.append(f"| `{name}` | {shown} | {_interval(card.ranges.get(name))} |")
    return "\n".join(lines)


def _interval(limits: Range | None) -> str:
    if limits is None:
        return ""
    low = f"{'>' if limits.open_low else '≥'} {limits.low:g}" if limits.low > float("-inf") else ""
    high = f"{'<' if limits.open_high else '≤'} {limits.high:g}" if limits.high < float("inf") else ""
    return ", ".join(filter(None, [low, high]))


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put the pages of the objectives where the navigation names their folder."""
    pages = [{card.name: f"{FOLDER}{card.name}.md"} for card in cards()]
    config.nav = [
        {title: pages if target == FOLDER else target for title, target in entry.items()} for entry in config.nav or []
    ]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the page of each objective."""
    for card in cards():
        files.append(File.generated(config, f"{FOLDER}{card.name}.md", content=page(card)))
    return files


def on_page_markdown(markdown: str, page: Page, **_: object) -> str:
    """Fill in the table where a page asks for it; fail if the guide is silent about an objective."""
    if page.file.src_uri == GUIDE:
        missing = [card.name for card in cards() if f"({FOLDER}{card.name}.md)" not in markdown]
        if missing:
            raise PluginError(f"docs/{GUIDE} does not say when to choose {', '.join(missing)}: link to each page.")
    return markdown.replace(TABLE_MARK, table())
