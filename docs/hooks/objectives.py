"""The pages of the objectives, the table of their settings and that of their times.

They are made from cards, docstrings, `objectives.yml` and the results of the benchmarks.

`python docs/write.py` writes them into `docs/`, where they can be read without a build. As a MkDocs hook, this module lists the
pages in the navigation and fails if the guide forgets an objective.
"""

import inspect
import json
import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from griffe import Docstring, DocstringSectionKind
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.pages import Page

import contrastive_zoo as zoo
from contrastive_zoo.registry import Card, Range

DOCS = Path(__file__).parents[1]
FOLDER = "objectives/"
GUIDE = "choosing.md"
GALLERY = "gallery.md"
TIMES = "performance.md"
RESULTS = DOCS.parent / "benchmarks" / "results"
SIZES = (256, 1024, 4096)
SETTINGS_MARK = re.compile(r"(<!-- settings -->\n)(.*?)(<!-- /settings -->)", re.DOTALL)
TIMES_MARK = re.compile(r"(<!-- times -->\n)(.*?)(<!-- /times -->)", re.DOTALL)
_ARXIV = re.compile(r"arXiv:(\d{4}\.\d{4,5})")
_DISPLAYED = re.compile(r"\$\$(.*?)\$\$", re.DOTALL)
_ENTRY = re.compile(r"@\w+\{(\w+),.*?\n\}", re.DOTALL)


def cards() -> list[Card]:
    """Cards of the package's own objectives; plugins that happen to be installed document themselves."""
    every = [zoo.describe_loss(name) for name in zoo.list_losses()]
    return [card for card in every if card.build.__module__.startswith("contrastive_zoo.")]


@cache
def guide() -> dict[str, dict[str, str]]:
    """What `objectives.yml` says about each objective."""
    written: dict[str, dict[str, str]] = yaml.safe_load(Path(__file__).with_suffix(".yml").read_text())
    return written


@cache
def references() -> dict[str, str]:
    """BibTeX entries by their keys."""
    return {match[1]: match[0] for match in _ENTRY.finditer((DOCS / "references.bib").read_text())}


def page(card: Card) -> str:
    """The page of one objective as Markdown."""
    notes = guide()[card.name]
    picture = f"![{alt(card)}](../images/objectives/{card.name}.svg)\n\n{notes['picture']}"
    sections = [
        f"# {card.title}\n\n`{card.name}`. {card.summary}",
        f"{formulas(card.equation)}\n\nHere {notes['where']}",
        f"## Use\n\n{_example(card)}",
        f"**When to use it.** {notes['use']}\n\n**Relatives.** {notes['relatives']}",
        f"## Parameters\n\n{_parameters(card)}",
        f"Set first: {notes['tune']}. Settings of the paper or its code: {notes['paper']}.",
        f"## Gradient\n\n{picture} The [gallery](../{GALLERY}) compares all objectives and says how the weights are computed.",
        f"## Details\n\n{_details(card)}\n\n{_facts(card, notes)}",
        "## Differences from the authors' code\n\n* " + "\n* ".join(card.differences) if card.differences else "",
        f"## Citation\n\n{_linked(card.paper)}\n\n```bibtex\n{references()[notes['bibtex']]}\n```",
    ]
    return "\n\n".join(filter(None, sections)) + "\n"


def gallery() -> str:
    """The page with the pictures of all objectives as Markdown."""
    pictures = [f"## [`{card.name}`]({FOLDER}{card.name}.md)\n\n{_picture(card)}" for card in cards()]
    return GALLERY_TEXT + "\n\n" + "\n\n".join(pictures) + "\n"


GALLERY_TEXT = """\
# Gallery

What an objective does to an embedding is the gradient in it. For every objective here, the gradient in an anchor is a weighted
sum of the other embeddings: negatives push the anchor away, and positives pull it closer. The pictures show these weights.

Each picture has two panels. The left panel shows the push of a negative against its similarity to the anchor, in a batch whose
negatives have all similarities from -0.95 to 0.95; the mean size of the pushes is 1. The right panel shows the pull of the
positive against its similarity; its largest size is 1. The grey curve is `ntxent` at the same temperature, or at 0.1 for
objectives without a temperature. Other parameters have their defaults. Weights are exact, for the loss in `eval()`: no table is
read, nothing is drawn, and all embeddings of the batch are negatives.

[`zoo.plots`](api/plots.md) draws such a picture for any loss:

```python
import contrastive_zoo as zoo

losses = {f"beta {beta}": zoo.get_loss("hcl", beta=beta) for beta in (0.0, 1.0, 4.0)}
figure = zoo.plots.plot_gradient_weights(losses)
figure.savefig("hcl.png")
```"""


def settings() -> str:
    """The settings of all objectives, one line each, as Markdown."""
    lines = ["| name | in the paper or its code | defaults here | set first |", "|---|---|---|---|"]
    for card in cards():
        notes = guide()[card.name]
        defaults = ", ".join(f"`{name}` {_short(value)}" for name, value in card.parameters.items()) or "none"
        lines.append(f"| [`{card.name}`]({FOLDER}{card.name}.md) | {notes['paper']} | {defaults} | {notes['tune']} |")
    return "\n".join(lines)


@cache
def _measured() -> tuple[str, dict[tuple[str, int], dict[str, float]]]:
    """The machine of the benchmarks, and milliseconds of each contestant by objective and batch size."""
    runs = [json.loads((RESULTS / f"{run}.json").read_text()) for run in ("ntxent", "objectives")]
    machines = {f"{m['cores']}-core {m['cpu']} with PyTorch {m['versions']['torch']}" for m in (run["machine"] for run in runs)}
    if len(machines) > 1:
        raise ValueError(f"ntxent.json and objectives.json come from different machines: {machines}. Measure both on one.")
    found: dict[tuple[str, int], dict[str, float]] = {}
    for row in (row for run in runs for row in run["results"]["rows"]):
        found.setdefault((row["objective"], row["batch_size"]), {})[row["contestant"]] = row["milliseconds"]
    return machines.pop(), found


def times() -> str:
    """The time of each objective and of the fastest alternative, at several batch sizes, as Markdown."""
    machine, measured = _measured()
    lines = [f"| {machine} | {' | '.join(f'{size:,} pairs' for size in SIZES)} |", "|---|" + "---|" * len(SIZES)]
    for name in (card.name for card in cards() if (card.name, SIZES[0]) in measured):
        cells = [_compared(dict(measured[name, size])) for size in SIZES]
        lines.append(f"| [`{name}`]({FOLDER}{name}.md) | {' | '.join(cells)} |")
    return "\n".join(lines)


def _compared(contestants: dict[str, float]) -> str:
    own = contestants.pop("zoo")
    contestants.pop("bare sweep", None)  # the products and exponentials alone are no loss
    other = min(contestants, key=lambda name: contestants[name])
    return f"{_milliseconds(own)}; {other} {_milliseconds(contestants[other])}"


def _milliseconds(time: float) -> str:
    return f"{time:,.0f}" if time >= 10 else f"{time:.2g}"


def alt(card: Card) -> str:
    """Text in place of the picture of an objective."""
    compared = "ntxent" if card.name == "ntxent" else f"{card.name} and ntxent"
    return f"Push of a negative and pull of the positive against similarity, for {compared}"


def formulas(equation: str) -> str:
    """A line of display mathematics for each part of an equation, so that each fits a narrow page."""
    return "\n\n".join(f"$$\n{part.strip()}\n$$" for part in equation.split(r"\quad"))


def _picture(card: Card) -> str:
    return f"![{alt(card)}](images/{FOLDER}{card.name}.svg)\n\n{guide()[card.name]['picture']}"


def _linked(text: str) -> str:
    """Papers as links."""
    return _ARXIV.sub(r"[arXiv:\1](https://arxiv.org/abs/\1)", text)


def _example(card: Card) -> str:
    size = {"num_samples": "len(dataset)"} if "num_samples" in inspect.signature(card.build).parameters else {}
    shown = {name: repr(value) for name, value in card.parameters.items() if isinstance(value, float)}
    if card.name == "clip":
        shown["init_scale"] = "1 / 0.07"
    arguments = "".join(f", {name}={value}" for name, value in (size | dict(list(shown.items())[:2])).items())
    needs = "".join(f", {need}={need}" for need in sorted(card.needs))
    lines = ["import contrastive_zoo as zoo", "", f'loss_fn = zoo.get_loss("{card.name}"{arguments})']
    lines.append(f"loss = loss_fn(z1, z2{needs})  # two views, (B, D) each")
    if "views" in card.uses:
        lines.append(f"loss = loss_fn(torch.stack([z1, z2]){needs})  # any number of views, (V, B, D)")
        lines.insert(0, "import torch\n")
    if "one_view" in card.uses:
        lines.append(f"loss = loss_fn(z1{needs})  # one view, (B, D)")
    return "```python\n" + "\n".join(lines) + "\n```"


def _parameters(card: Card) -> str:
    common = "All objectives also take the [common settings](../interface.md#common-settings)."
    if not card.parameters:
        return common
    meanings = _sections(card)[DocstringSectionKind.parameters]
    lines = ["| parameter | default | allowed | meaning |", "|---|---|---|---|"]
    for name, default in card.parameters.items():
        row = (f"`{name}`", _short(default), _interval(card.ranges.get(name)), meanings[name].replace("\n", " "))
        lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines) + f"\n\n{common}"


def _sections(card: Card) -> dict[DocstringSectionKind, Any]:
    """Text and descriptions of the parameters, from the docstring."""
    found: dict[DocstringSectionKind, Any] = {DocstringSectionKind.text: [], DocstringSectionKind.parameters: {}}
    for section in Docstring(inspect.getdoc(card.build) or "").parse("google", warnings=False):
        if section.kind is DocstringSectionKind.text:
            found[section.kind].append(section.value)
        elif section.kind is DocstringSectionKind.parameters:
            found[section.kind] = {argument.name: argument.description for argument in section.value}
    return found


def _details(card: Card) -> str:
    """The text of the docstring without the formula that the page begins with."""
    text = "\n\n".join(_sections(card)[DocstringSectionKind.text])
    text = _DISPLAYED.sub("", text, count=1)
    text = _DISPLAYED.sub(lambda match: formulas(match[1].replace(r"\qquad", r"\quad")), text)
    text = re.sub(r"^    (\S)", r"\1", text, flags=re.MULTILINE)
    return re.sub(r"\n{3,}", "\n\n", text).strip()


def _facts(card: Card, notes: dict[str, str]) -> str:
    facts = {
        "also called": _names(card.aliases),
        "needs": _names(card.needs) or "embeddings only",
        "uses if given": _names(card.uses - card.needs - {"views", "one_view"}),
        "state": "kept between steps, saved in `state_dict()`" if card.stateful else "none",
        "randomness": "drawn from a saved seed" if card.draws else "none",
        "reductions": _names(('"mean"', '"sum"', '"none"') if card.per_sample else ('"mean"',)),
        "scale": card.scale,
        "cost": notes["cost"] + _time(card),
    }
    lines = [f"* **{fact}**: {text}" for fact, text in facts.items() if text]
    return "\n".join(lines)


def _time(card: Card) -> str:
    machine, measured = _measured()
    own = measured.get((card.name, SIZES[-1]), {}).get("zoo")
    of = f"for {SIZES[-1]:,} pairs of 128 features, forward and backward, on a {machine}"
    return f" {_milliseconds(own)} ms {of}." if own else ""


def _names(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in sorted(names))


def _short(default: object) -> str:
    """A default as users would write it."""
    if default is inspect.Parameter.empty:
        return "required"
    return f"`{default:.4g}`" if isinstance(default, float) else f"`{default!r}`"


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


def on_page_markdown(markdown: str, page: Page, **_: object) -> str:
    """Take out the marks around the tables; fail if the guide is silent about an objective."""
    if page.file.src_uri == GUIDE:
        missing = [card.name for card in cards() if f"({FOLDER}{card.name}.md)" not in SETTINGS_MARK.sub("", markdown)]
        if missing:
            raise PluginError(f"docs/{GUIDE} does not say when to choose {', '.join(missing)}: link to each page.")
    return TIMES_MARK.sub(lambda match: match[2], SETTINGS_MARK.sub(lambda match: match[2], markdown))
