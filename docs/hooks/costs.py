"""Tables of work, memory and traffic of many processes: from the formulas that the tests hold against what they count."""

import importlib.util
import re
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from mkdocs.structure.pages import Page

import contrastive_zoo as zoo

MARK = re.compile("<!-- costs: ([a-z ]+) -->(.*?)<!-- /costs -->", re.DOTALL)
WIDTH = 512
# Processes and samples of the whole batch.
SETTINGS = [(8, 32_768), (64, 262_144), (1_024, 1_048_576)]
SAMPLES = [10**6, 10**8, 10**10]
EXAMPLE = (8, 4_096, 128)
PREFIXES = ("", "K", "M", "G", "T", "P", "E")


@cache
def costs() -> ModuleType:
    """The formulas."""
    path = Path(__file__).parents[2] / "tests" / "costs.py"
    spec = importlib.util.spec_from_file_location("formulas_of_costs", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def short(number: float, base: int, unit: str) -> str:
    """Three digits and a prefix."""
    power = 0
    while number >= base and power < len(PREFIXES) - 1:
        number, power = number / base, power + 1
    prefix = PREFIXES[power] + ("i" if base == 1024 and power else "")
    return f"{number:.3g} {prefix}{unit}"


def memory(number: float) -> str:
    """Bytes."""
    return short(number, 1024, "B")


def operations(number: float) -> str:
    """Floating-point operations."""
    return short(number, 1000, "FLOP")


def families() -> list[tuple[list[str], Any]]:
    """Names that cost the same, with their cost."""
    found: dict[Any, list[str]] = {}
    for name, cost in costs().COSTS.items():
        found.setdefault((cost, costs().DRAWS.get(name, 0)), []).append(name)
    return [(names, cost) for (cost, _), names in found.items()]


def setting(names: list[str], processes: int, batch: int, width: int = WIDTH, dataset: int = 10**6) -> Any:
    """The sizes of a step of names of one family."""
    labels = any("labels" in zoo.describe_loss(name).needs for name in names)
    return costs().Setting(processes, batch, width, dataset, costs().DRAWS.get(names[0], 0), 1_000, 1 + labels)


def listed(names: list[str]) -> str:
    """Names as links."""
    return ", ".join(f"[`{name}`](objectives/{name}.md)" for name in names)


def table(heads: list[str], rows: list[list[str]]) -> str:
    """Markdown."""
    lines = [f"| {' | '.join(heads)} |", "|---|" + "--:|" * (len(heads) - 1)]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def _term(number: float, symbol: str) -> str:
    return f"{number:g} {symbol}".strip() if number else ""


def formula_of_work(cost: Any) -> str:
    """Floating-point operations of all processes, in symbols."""
    terms = [
        _term(2 * cost.pairs, "B^2 D"),
        _term(2 * cost.within, "B^2 D / C"),
        _term(2 * cost.table, "B N D"),
        _term(4 * cost.drawn, "B K D"),
        _term(2 * cost.squares, "B D^2"),
    ]
    return f"${' + '.join(filter(None, terms))}$"


def formula_of_sums(cost: Any) -> str:
    """Bytes of all sums over processes, in symbols."""
    one = costs()
    constant = one.FLOAT * (cost.sums + cost.upstream) + one.INTEGER * cost.found
    per_draw = _term(2 * (one.FLOAT + one.INTEGER) * cost.per_draw, "K")
    per_sample = " + ".join(filter(None, [_term(8 * cost.gradients, "D"), per_draw, f"{constant}"]))
    rest = [_term(one.FLOAT * cost.matrices, "D^2"), _term(one.FLOAT * cost.learned, "")]
    return f"${' + '.join(filter(None, [f'B ({per_sample})', *rest]))}$"


def traffic() -> str:
    """What each family computes and sends."""
    processes, batch, width = EXAMPLE
    heads = ["name", "products of a step, in FLOP", "sums $R$ over ranks, in bytes", f"sent by each of {processes} ranks"]
    rows = [
        [
            listed(names),
            formula_of_work(cost),
            formula_of_sums(cost),
            memory(cost.sent(setting(names, processes, batch, width))),
        ]
        for names, cost in families()
    ]
    return table(heads, rows)


def _across(title: str, cell: Any) -> str:
    heads = [title, *(f"P = {processes:,}, B = {batch:,}" for processes, batch in SETTINGS)]
    return table(heads, [[listed(names), *(cell(names, cost, *each) for each in SETTINGS)] for names, cost in families()])


def work() -> str:
    """Products of each process."""
    return _across("products of a rank", lambda names, cost, p, batch: operations(cost.products(setting(names, p, batch)) / p))


def gathered() -> str:
    """Traffic of each process."""
    return _across("sent by a rank, gathered", lambda names, cost, p, batch: memory(cost.sent(setting(names, p, batch))))


def features() -> str:
    """Rows, gathered and in a ring."""
    one, places = costs(), [setting(["ntxent"], *each) for each in SETTINGS]
    rows = {
        "rows and gradients on a rank, gathered": [memory(one.rows_gathered(place)) for place in places],
        "rows and gradients on a rank, ring": [memory(one.rows_in_ring(place)) for place in places],
        "sent by a rank, gathered (`ntxent`)": [memory(one.COSTS["ntxent"].sent(place)) for place in places],
        "sent by a rank, ring, rows that are their own keys": [memory(one.sent_in_ring(place, False)) for place in places],
        "sent by a rank, ring, two towers": [memory(one.sent_in_ring(place, True)) for place in places],
    }
    heads = ["", *(f"P = {processes:,}, B = {batch:,}" for processes, batch in SETTINGS)]
    return table(heads, [[head, *cells] for head, cells in rows.items()])


def bytes_per_sample(name: str) -> int:
    """Bytes of tables for each sample of the dataset."""
    sizes = []
    for samples in (1, 2):
        loss_fn = zoo.get_loss(name, num_samples=samples, embedding_dim=WIDTH)
        sizes.append(sum(buffer.nbytes for buffer in loss_fn.buffers()))
    return sizes[1] - sizes[0]


def tables() -> str:
    """Tables, whole on each process and divided."""
    one = costs()
    heads = ["name", "a sample", *(f"{samples:,} samples" for samples in SAMPLES)]
    heads += [f"{SAMPLES[-1]:,}, a share of {processes:,}" for processes, _ in SETTINGS[1:]]
    heads.append(f"a share of {SETTINGS[1][0]} sends more, B = {SETTINGS[1][1]:,}")
    rows = []
    for name in zoo.list_losses():
        size = bytes_per_sample(name)
        if size:
            cells = [memory(size * samples) for samples in (1, *SAMPLES)]
            cells += [memory(size * SAMPLES[-1] / processes) for processes, _ in SETTINGS[1:]]
            cells.append(memory(one.SHARDS[name].sent(setting([name], *SETTINGS[1]))))
            rows.append([listed([name]), *cells])
    return table(heads, rows)


def searches() -> str:
    """Products of objectives that look at the whole table in each step."""
    heads = ["products of a rank with the table, P = 64, B = 32,768", *(f"{samples:,} samples" for samples in SAMPLES)]
    cost = costs().COSTS["negative_cache"]
    cells = [operations(cost.products(setting(["negative_cache"], 64, 32_768, dataset=samples)) / 64) for samples in SAMPLES]
    return table(heads, [[listed(["negative_cache"]), *cells]])


TABLES = {
    "traffic": traffic,
    "work": work,
    "gathered": gathered,
    "features": features,
    "tables": tables,
    "searches": searches,
}


def filled(text: str) -> str:
    """A page with the tables where it asks for them."""
    return MARK.sub(lambda mark: f"<!-- costs: {mark.group(1)} -->\n\n{TABLES[mark.group(1)]()}\n\n<!-- /costs -->", text)


def on_page_markdown(markdown: str, page: Page, **_: object) -> str:
    """Leave out the marks, which are for those who write."""
    return MARK.sub(lambda mark: mark.group(2), markdown)
