"""Pages can be read on the site and in the repository: derived texts are up to date, nothing is missing or left unrendered."""

import inspect
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from mkdocs.exceptions import PluginError
from test_docs import CARDS, FENCED, ROOT, hook, maths

import contrastive_zoo as zoo
from contrastive_zoo.registry import Card, batch_samplers, samplers

HOOKS = ("objectives", "figures", "rendered", "files", "claims", "costs")
objectives, figures, rendered, files, claims, costs = map(hook, HOOKS)
DOCS = ROOT / "docs"
PAGES = sorted({*DOCS.rglob("*.md"), *ROOT.glob("*.md"), *(ROOT / "contrastive_zoo").rglob("*.md")})
EVERYWHERE = sorted({*PAGES, *(path for name in ("benchmarks", "examples", "tests") for path in (ROOT / name).rglob("*.md"))})
# Text without code, where brackets and dollars mean other things.
CODE = re.compile(r"^(```|~~~).*?^\1|`[^`\n]*`", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")
IMAGE = re.compile(r"!\[([^\]]*)\]\(([^)\s]+)\)")


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


def prose(path: Path) -> str:
    return CODE.sub("", path.read_text())


# Derived texts


def test_derived_texts_are_up_to_date() -> None:
    """After a change of a card or a docstring: python docs/write.py."""
    made = {DOCS / "gallery.md": objectives.gallery()}
    made |= {DOCS / "objectives" / f"{card.name}.md": objectives.page(card) for card in CARDS}
    stale = [relative(path) for path, text in made.items() if not path.exists() or path.read_text() != text]
    pages = {path: path.read_text() for path in DOCS.rglob("*.md")}
    stale += [relative(path) for path, text in pages.items() if costs.filled(files.with_code(text)) != text]
    assert not stale
    assert objectives.settings() in (DOCS / "choosing.md").read_text()
    assert objectives.times() in (DOCS / "performance.md").read_text()
    assert claims.verdicts() in (DOCS / claims.PAGE).read_text()
    assert {path.stem for path in (DOCS / "objectives").glob("*.md")} == {card.name for card in CARDS}


def test_tests_that_a_page_names_exist() -> None:
    tests = "".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    named = set(re.findall(r"`(?:[\w/.]+::)?(test_\w+)(?:\[[^`]*\])?`", (DOCS / "processes.md").read_text()))
    assert len(named) > 15
    assert not [name for name in named if f"def {name}(" not in tests]


def squeezed(latex: str) -> str:
    return re.sub(r"\s+", "", latex)


@pytest.mark.parametrize("card", CARDS, ids=lambda card: card.name)
def test_docstring_begins_with_the_formula_of_the_card(card: Card) -> None:
    first = re.search(r"\$\$(.*?)\$\$", inspect.getdoc(card.build) or "", re.DOTALL)
    assert first is not None
    assert squeezed(first[1]) == squeezed(card.equation)


@pytest.mark.parametrize("card", CARDS, ids=lambda card: card.name)
def test_page_says_what_a_user_needs(card: Card) -> None:
    text = objectives.page(card)
    assert "@" in text.split("```bibtex")[1]
    assert all(number in card.paper for number in re.findall(r"eprint = \{(.*?)\}", text))
    assert f'zoo.get_loss("{card.name}"' in text
    assert f"batch: {zoo.Batch.__name__}" not in text
    assert all(len(objectives.guide()[card.name][key]) > 10 for key in ("where", "use", "relatives", "cost", "picture"))
    for line in text.split("## Parameters")[1].split("##")[0].splitlines():
        if line.startswith("| `"):
            assert len(line.split("|")[4].strip()) > 5, f"{line}: no meaning"


def test_cards_claim_nothing_by_default() -> None:
    """Only a card that says so is equal to the authors' code."""
    for registry in (samplers, batch_samplers):
        assert not any(card.scale == "Equal to the authors' code." for card in registry.cards())
    quiet = Card(name="quiet", build=lambda batch: batch)
    assert "scale" not in str(quiet)


# Code

# What a block of code shows at 1,400 pixels.
COLUMNS = 112


@pytest.mark.parametrize("path", [path for path in PAGES if path.name != "CHANGELOG.md"], ids=relative)
def test_code_fits_the_page(path: Path) -> None:
    blocks = re.findall(r"^```\w*\n(.*?)^```", path.read_text(), re.DOTALL | re.MULTILINE)
    assert not [line for block in blocks for line in block.splitlines() if len(line) > COLUMNS]


@pytest.mark.parametrize(
    ("page", "script", "longest"), [("tutorial.md", "timm_pretraining.py", 60), ("negative_samplers.md", "moco.py", 34)]
)
def test_a_script_to_copy_is_on_its_page_and_short(page: str, script: str, longest: int) -> None:
    text = (ROOT / "examples" / script).read_text()
    assert text in (DOCS / page).read_text()
    assert len(text.splitlines()) <= longest


# Pictures


@pytest.mark.parametrize("path", PAGES, ids=relative)
def test_pictures_exist_and_have_a_text(path: Path) -> None:
    assert "<img" not in prose(path)
    for text, target in IMAGE.findall(prose(path)):
        assert len(text.split()) >= 4, f"{target}: say what the picture shows"
        assert (path.parent / target).exists(), target


def test_every_objective_has_its_picture() -> None:
    gallery = (DOCS / "gallery.md").read_text()
    for card in CARDS:
        assert f"(images/objectives/{card.name}.svg)" in gallery
        assert (DOCS / "images" / "objectives" / f"{card.name}.svg").read_text().startswith("<?xml")


def test_a_picture_without_text_stops_the_build() -> None:
    page = SimpleNamespace(file=SimpleNamespace(src_uri="some.md"))
    with pytest.raises(PluginError, match=r"some\.md.*has no text"):
        figures.on_page_content('<p><img alt="" src="images/ntxent.svg" /></p>', page=page)


OTHERS = ("gradient_error", "minibatch_optimization", "negative_samplers", "tutorial")


def test_pictures_follow_the_colours_of_the_page() -> None:
    page = SimpleNamespace(file=SimpleNamespace(src_uri="some.md"))
    pictures = ["images/ntxent.svg", *(f"images/objectives/{card.name}.svg" for card in CARDS)]
    pictures += [f"images/{name}.svg" for name in OTHERS]
    for source in pictures:
        svg = figures.on_page_content(f'<p><img alt="what it shows" src="{source}" /></p>', page=page)
        assert svg.startswith("<figure")
        assert 'aria-label="what it shows"' in svg
        assert "currentColor" in svg
        assert not re.search(r"#000000|#ffffff", svg), source


# Links


def anchors(path: Path) -> set[str]:
    headings = re.findall(
        r"^#+ (.+)$", re.sub(r"^```.*?^```", "", path.read_text(), flags=re.DOTALL | re.MULTILINE), re.MULTILINE
    )
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def dead(path: Path) -> list[str]:
    """Links that lead nowhere where GitHub resolves them; members of api pages exist on the site only."""
    lost = []
    for link in LINK.findall(prose(path)):
        if re.match(r"\w+:", link):
            continue
        target, _, anchor = link.partition("#")
        file = (path.parent / target).resolve() if target else path
        own = file.exists() and file.is_relative_to(ROOT)
        listed = anchor and own and file.suffix == ".md" and "api" not in file.parts
        if not own or (listed and anchor not in anchors(file)):
            lost.append(link)
    return lost


@pytest.mark.parametrize("path", EVERYWHERE, ids=relative)
def test_relative_links_lead_somewhere(path: Path) -> None:
    assert not dead(path)


def test_dead_links_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    (tmp_path / "page.md").write_text(
        "# A heading\n[a](page.md#a-heading) [b](page.md#b) [c](gone.md) [d](https://example.org)"
    )
    assert dead(tmp_path / "page.md") == ["page.md#b", "gone.md"]


# Placeholders


@pytest.mark.parametrize("path", PAGES, ids=relative)
def test_no_placeholder_is_empty_where_markdown_is_read(path: Path) -> None:
    """A mark that the build replaces encloses a text for those who read the file."""
    text = path.read_text()
    assert "--8<--" not in prose(path)
    for mark in re.findall(r"<!-- (?!/)(.*?) -->", prose(path)):
        closing = f"<!-- /{mark.split(':')[0]} -->"
        assert closing in text, f"{mark} is not closed"
        assert len(text.split(f"<!-- {mark} -->")[1].split(closing)[0].strip()) > 10, f"{mark} is empty"


@pytest.mark.parametrize("left", [r"\quadw_l", "$$ x $$", "<!-- settings -->", '--8<-- "page.md"', r"\(x\)"])
def test_a_page_that_shows_a_placeholder_stops_the_build(left: str) -> None:
    page = SimpleNamespace(file=SimpleNamespace(src_uri="some.md"))
    assert rendered.on_page_content(f"<p>fine</p><pre>{left}</pre>", page=page)
    with pytest.raises(PluginError, match=r"some\.md shows"):
        rendered.on_page_content(f"<p>{left}</p>", page=page)


def test_a_page_of_a_file_holds_the_file() -> None:
    page = files.on_page_markdown((DOCS / "changelog.md").read_text(), page=SimpleNamespace())
    assert page.strip() == (ROOT / "CHANGELOG.md").read_text().strip()


def test_dead_links_find_a_page_in_any_folder() -> None:
    page = '<link href="/assets/main.css"><script src="/assets/a.js"></script><a href="//host/x">{"base": "/"}'
    assert files.relative(page) == (
        '<link href="./assets/main.css"><script src="./assets/a.js"></script><a href="//host/x">{"base": "."}'
    )


def test_search_leaves_out_formulas_of_their_own_line() -> None:
    page = SimpleNamespace(file=SimpleNamespace(src_uri="some.md"))
    html = '<span class="arithmatex">\\(a\\)</span><div class="arithmatex">\\[b\\]</div>'
    assert maths.on_page_content(html, page=page).count("data-search-exclude") == 1


# Symbols

FORMULA = re.compile(r"\$\$(.*?)\$\$|(?<![\w$`])\$([^$\n]+?)\$(?!\d)", re.DOTALL)
SYMBOL = re.compile(
    r"\\mathcal\{[A-Z]\}|\\(?:[a-z]*(?:lpha|eta|amma|elta|psilon|ambda|tau|rho|sigma|theta|pi|ell))\b|(?<![A-Za-z\\])[A-Za-z](?![A-Za-z])"
)
NO_SYMBOL = re.compile(r"\\(?:mathrm|text|operatorname)\{[^}]*\}|\\(?:big|Big)l?r?[|/()\[\]]?")
# e is the base of exponentials; the others have one meaning on all pages: rows i and j, similarity s, temperature tau,
# B samples in a batch, N samples or rows in all, D features, k and K counts, d dimensions.
KNOWN = {"e", "i", "j", "l", "s", "d", "k", "m", "r", r"\ell", r"\tau", "B", "D", "K", "N", "P", "O", "E"}


def symbols(latex: str) -> set[str]:
    return set(SYMBOL.findall(NO_SYMBOL.sub("", latex.replace("_{", " _{"))))


def undefined(text: str) -> set[str]:
    """Symbols of formulas that neither begin a formula in a sentence, which says what they are, nor are known."""
    used: set[str] = set()
    defined: set[str] = set()
    for shown, inline in FORMULA.findall(text):
        used |= symbols(shown or inline)
        if inline:
            first = SYMBOL.search(NO_SYMBOL.sub("", inline))
            defined |= {first[0]} if first else set()
    return used - defined - KNOWN


@pytest.mark.parametrize("path", PAGES, ids=relative)
def test_symbols_are_defined_on_their_page(path: Path) -> None:
    assert not undefined(prose(path))


def test_undefined_symbols_are_found() -> None:
    assert undefined(r"$$\lambda x + \tau$$ where $x$ is known") == {r"\lambda"}
    assert undefined(r"$$\mathcal{N}_a$$ of $a$") == {r"\mathcal{N}"}


# README


def test_blocks_of_the_readme_run_when_copied(tmp_path: Path) -> None:
    blocks = FENCED.findall((ROOT / "README.md").read_text())
    assert blocks
    for block in blocks:
        subprocess.run([sys.executable, "-c", block], cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}, check=True, timeout=120)


def test_calls_of_the_readme_run() -> None:
    rows = re.findall(r"^\| [^|]+ \| `(\w+)` \| `(zoo\.[^`]+)` \|$", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert len(rows) == 6
    z1, z2 = torch.randn(2, 8, 16)
    queue = zoo.samplers.FeatureQueue(64)
    queue.push(z2, torch.arange(8, 16))
    given = {"zoo": zoo, "z": z1, "z1": z1, "z2": z2, "images": z1, "texts": z2, "queries": z1, "documents": z2}
    given |= {"queue": queue, "mined": torch.randn(8, 4, 16), "labels": torch.arange(8) % 2, "index": torch.arange(8)}
    for name, call in rows:
        assert f'"{name}"' in call
        assert eval(call, given).isfinite()


@pytest.mark.parametrize("path", [ROOT / "README.md", DOCS / "index.md"], ids=relative)
def test_number_of_objectives(path: Path) -> None:
    assert f"{len(CARDS)} contrastive losses for PyTorch" in path.read_text()
