"""The documentation tells the truth: pages exist, examples run, formulas render, links lead somewhere."""

import doctest
import importlib
import importlib.util
import inspect
import pkgutil
import re
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from adapters import importable
from mkdocs.config import load_config
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError

import contrastive_zoo as zoo
from contrastive_zoo import registry
from contrastive_zoo.registry import Card

ROOT = Path(__file__).parent.parent
FENCED = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def hook(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"docs_hook_{name}", ROOT / "docs" / "hooks" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


objectives, maths, guarantees = hook("objectives"), hook("maths"), hook("guarantees")
CARDS = objectives.cards()
NAMES = [card.name for card in CARDS]
MODULES = [zoo.__name__, *(info.name for info in pkgutil.walk_packages(zoo.__path__, "contrastive_zoo."))]
MODULES = [*filter(importable, MODULES)]
FOLDERS = (".", "docs", "docs/api", "docs/integrations", "docs/objectives", "contrastive_zoo/pairwise", "benchmarks")
MARKDOWN = sorted(path for folder in FOLDERS for path in (ROOT / folder).glob("*.md"))


@pytest.fixture
def reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """What someone who pastes an example has at hand; registrations and files do not outlive the test."""
    monkeypatch.chdir(tmp_path)
    for table in ("_cards", "_aliases"):
        monkeypatch.setattr(registry.losses, table, dict(getattr(registry.losses, table)))
    torch.manual_seed(0)
    z1, z2 = (torch.randn(16, 32, requires_grad=True) for _ in range(2))
    index = torch.arange(16)
    dataset = torch.utils.data.TensorDataset(torch.randn(100, 3, 8, 8), torch.arange(100) % 4)
    return {"z1": z1, "z2": z2, "index": index, "labels": index % 4, "dataset": dataset}


def run_blocks(text: str, name: str, namespace: dict[str, object]) -> None:
    for block in FENCED.finditer(text):
        line = text.count("\n", 0, block.start(1))
        exec(compile("\n" * line + block[1], name, "exec"), namespace)


@pytest.fixture(scope="module")
def site() -> MkDocsConfig:
    config = load_config(str(ROOT / "mkdocs.yml"))
    return config.plugins.on_config(config)


def test_cards_cover_every_objective() -> None:
    assert {card.build for card in CARDS} == {getattr(zoo.objectives, name) for name in zoo.objectives.__all__}


def test_every_objective_has_a_page() -> None:
    assert {path.stem for path in (ROOT / "docs/objectives").glob("*.md")} == set(NAMES)


def test_navigation_lists_every_objective(site: MkDocsConfig) -> None:
    (listed,) = (target for entry in site.nav for title, target in entry.items() if title == "Objectives")
    assert listed == [{name: f"objectives/{name}.md"} for name in NAMES]


def test_home_lists_every_objective() -> None:
    home = (ROOT / "docs/index.md").read_text()
    assert all(f"(objectives/{name}.md)" in home for name in NAMES)


def test_guide_may_not_forget_an_objective() -> None:
    page = SimpleNamespace(file=SimpleNamespace(src_uri=objectives.GUIDE))
    guide = (ROOT / "docs" / objectives.GUIDE).read_text()
    assert "<!--" not in objectives.on_page_markdown(guide, page=page)
    with pytest.raises(PluginError, match="dhel"):
        objectives.on_page_markdown(guide.replace("(objectives/dhel.md)", "()"), page=page)


@pytest.mark.parametrize("card", CARDS, ids=lambda card: card.name)
def test_page_says_what_the_card_says(card: Card) -> None:
    page = objectives.page(card)
    assert page.startswith(f"# {card.title}\n")
    formulas = [part.strip() for part in card.equation.split(r"\quad")]
    assert all(text in page for text in (*formulas, card.scale, *card.differences, *card.aliases))
    assert all(f"| `{name}` |" in page for name in card.parameters)
    assert card.summary
    assert card.paper
    assert card.equation


@pytest.mark.parametrize("card", CARDS, ids=lambda card: card.name)
def test_equation_of_a_card_renders(card: Card) -> None:
    assert maths.to_mathml(card.equation, "block").startswith("<math")


@pytest.mark.parametrize("latex", [r"\undefinedcommand x", r"\begin{aligned} a &= b \end{aligned}"])
def test_latex_beyond_the_converter_is_refused(latex: str) -> None:
    with pytest.raises(ValueError, match="cannot turn this LaTeX into MathML"):
        maths.to_mathml(latex, "block")


def test_formulas_of_a_page_become_mathml() -> None:
    page = SimpleNamespace(file=SimpleNamespace(src_uri="some.md"))
    html = '<p><span class="arithmatex">\\(a &lt; b\\)</span></p><div class="arithmatex">\n\\[\n\\tau\n\\]</div>'
    rendered = maths.on_page_content(html, page=page)
    assert rendered.count("<math") == 2
    assert "\\" not in rendered
    assert 'display="block"><mrow><mi>&#x003C4;</mi>' in rendered
    with pytest.raises(PluginError, match=r"some\.md: .*nosuch"):
        maths.on_page_content('<span class="arithmatex">\\(\\nosuch\\)</span>', page=page)


@pytest.mark.parametrize("name", MODULES)
def test_doctests(name: str) -> None:
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    assert doctest.testmod(importlib.import_module(name), optionflags=flags).failed == 0


@pytest.mark.parametrize("name", MODULES)
def test_examples_stand_under_the_heading_that_pages_render(name: str) -> None:
    assert not re.search(r"^ *Example:$", inspect.getsource(importlib.import_module(name)), re.MULTILINE)


@pytest.mark.parametrize("card", CARDS, ids=lambda card: card.name)
def test_objective_has_a_doctest(card: Card) -> None:
    tests = doctest.DocTestFinder().find(card.build, card.name, module=inspect.getmodule(card.build))
    assert any(test.examples for test in tests)


@pytest.mark.parametrize("path", MARKDOWN, ids=lambda path: str(path.relative_to(ROOT)))
def test_blocks_marked_python_run(path: Path, reader: dict[str, object]) -> None:
    run_blocks(path.read_text(), str(path), reader)


def test_a_block_that_fails_is_noticed_with_its_line(reader: dict[str, object]) -> None:
    with pytest.raises(ZeroDivisionError) as caught:
        run_blocks("one\n\n```python\nx = 1\nx / 0\n```\n", "page.md", reader)
    assert caught.traceback[-1].lineno + 1 == 5


def page_of_guarantees() -> str:
    page = SimpleNamespace(file=SimpleNamespace(src_uri="guarantees.md"))
    return guarantees.on_page_markdown((ROOT / "docs/guarantees.md").read_text(), page=page)


def rows_of_tables(text: str) -> list[list[str]]:
    """Cells of the rows that begin with the link to an objective."""
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("| [`")]


def test_page_of_guarantees_is_complete() -> None:
    """Every name in every table, every promise with its claim, every exception with its reason."""
    text, declared = page_of_guarantees(), guarantees.declared().GUARANTEES
    themes = {promise.theme for promise in declared.values()}
    names = [cells[0].split("`")[1] for cells in rows_of_tables(text)]
    assert names == NAMES * (len(themes) + 1)
    assert "<!--" not in text
    for promise in declared.values():
        assert f"* **{promise.column}**: {promise.claim}" in text
        for card in CARDS:
            if promise.concerns(card) and promise.exception(card, {}):
                assert f". {promise.exception(card, {})}" in text


def test_cells_of_guarantees() -> None:
    """Of names whose cards say what to expect."""
    text = page_of_guarantees()
    training = text.split("\n## ")[-2]
    assert training.startswith("Training loops")
    head = next(line for line in training.splitlines() if line.startswith("| name"))
    column = [cell.strip() for cell in head.strip("|").split("|")].index("loss checkpointed")
    cells = {cells[0].split("`")[1]: cells[column] for cells in rows_of_tables(training)}
    assert cells == {card.name: "1" if card.stateful or card.draws else "✓" for card in CARDS}


def test_sizes_of_gradients() -> None:
    """Of two names, against their formulas on the dense matrix of similarities."""
    sizes = guarantees.gradient_sizes()
    assert sizes["ntxent"] == [1.0] * len(guarantees.SETTINGS)
    for (alignment, temperature), size in zip(guarantees.SETTINGS, sizes["dcl"], strict=True):
        lengths = [0.0, 0.0]
        z1, z2 = guarantees.features(alignment)
        assert float((z1 * z2).sum(1).mean()) == pytest.approx(alignment, abs=0.03)
        for batch in torch.arange(guarantees.NUM_SAMPLES).split(guarantees.BATCH):
            for number, own_counts in enumerate((True, False)):
                views = torch.cat([z1[batch], z2[batch]]).requires_grad_()
                x, samples = torch.nn.functional.normalize(views, dim=1), torch.arange(len(views)) % len(batch)
                logits = x @ x.T / temperature
                left_out = torch.eye(len(x)).bool() if own_counts else samples[:, None] == samples[None, :]
                positives = logits.roll(len(batch), 1).diagonal()
                (logits.masked_fill(left_out, -torch.inf).logsumexp(1) - positives).mean().backward()
                lengths[number] += float(views.grad.norm())
        assert size == pytest.approx(lengths[1] / lengths[0], rel=1e-3)


def test_no_page_has_a_gap_that_was_to_be_filled_in() -> None:
    for page in MARKDOWN:
        gaps = re.findall(r"^(?:[A-Z]{3,}|.*\b(?:TODO|TBD|FIXME)\b.*)$", page.read_text(), re.MULTILINE)
        assert not gaps, f"{page.name}: {gaps}"
