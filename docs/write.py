"""Write what the documentation derives: pages and pictures of objectives, tables of settings, times, verdicts; files of code.

python docs/write.py             # after a change of a card, a docstring, tests/costs.py, docs/hooks/objectives.yml or a script
python docs/write.py --pictures  # after a change of a formula; needs Matplotlib
"""

import argparse
import importlib.util
from pathlib import Path
from types import ModuleType

import contrastive_zoo as zoo
from contrastive_zoo.registry import Card

DOCS = Path(__file__).parent
STYLE = {"font.size": 10, "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False, "lines.linewidth": 2}


def hook(name: str) -> ModuleType:
    """A hook that makes pages."""
    spec = importlib.util.spec_from_file_location(f"docs_hook_{name}", DOCS / "hooks" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def texts() -> dict[Path, str]:
    """Every derived text by the file that holds it."""
    made, files, claims, costs = (hook(name) for name in ("objectives", "files", "claims", "costs"))
    pages = {DOCS / made.FOLDER / f"{card.name}.md": made.page(card) for card in made.cards()}
    pages |= {DOCS / made.GALLERY: made.gallery()}
    tables = (
        (made.GUIDE, made.SETTINGS_MARK, made.settings()),
        (made.TIMES, made.TIMES_MARK, made.times()),
        (claims.PAGE, claims.MARK, claims.verdicts()),
    )
    for page, mark, table in tables:
        pages[DOCS / page] = mark.sub(rf"\g<1>\n{table}\n\n\g<3>", (DOCS / page).read_text())
    written = {path: path.read_text() for path in DOCS.rglob("*.md")} | pages
    return pages | {path: text for path, before in written.items() if (text := costs.filled(files.with_code(before))) != before}


def draw(card: Card, path: Path) -> None:
    """The picture of one objective, beside ntxent at the same temperature."""
    from matplotlib import rc_context

    temperature = card.parameters.get("temperature", 0.1)
    reference = zoo.get_loss("ntxent", temperature=temperature)
    losses = {} if card.name == "ntxent" else {f"ntxent, temperature {temperature:g}": reference}
    losses[card.name] = zoo.get_loss(card.name, num_samples=100)
    with rc_context({**STYLE, "svg.fonttype": "none", "svg.hashsalt": card.name}):
        figure = zoo.plots.plot_gradient_weights(losses)
        for axes in figure.axes:
            axes.lines[0].set(color="#8a8a8a", linewidth=4)
            axes.lines[-1].set(color="#e0662b", linewidth=2)
        figure.axes[0].legend(fontsize=8)
        figure.savefig(path, metadata={"Date": None})


def main() -> None:
    """Write all texts, and the pictures if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", action="store_true", help="draw the pictures too")
    for path, text in texts().items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    if parser.parse_args().pictures:
        folder = DOCS / "images" / "objectives"
        folder.mkdir(exist_ok=True)
        for card in hook("objectives").cards():
            draw(card, folder / f"{card.name}.svg")


if __name__ == "__main__":
    main()
