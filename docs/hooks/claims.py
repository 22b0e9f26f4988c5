"""MkDocs hook: what became of the papers' claims, from the results that the experiments have written."""

import json
import re
from pathlib import Path

from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "examples" / "reproduce" / "results"
PAGE = "reproduce/index.md"
MARK = re.compile(r"(<!-- verdicts -->\n)(.*?)(<!-- /verdicts -->)", re.DOTALL)


def verdicts() -> str:
    """For each experiment, its claims with their verdicts and figures, as Markdown."""
    sections = []
    for path in sorted(RESULTS.glob("*.json")):
        title = (ROOT / "docs" / "reproduce" / f"{path.stem}.md").read_text().splitlines()[0].removeprefix("# ")
        claims = json.loads(path.read_text())["claims"]
        rows = [f"| {claim['text']} | **{claim['verdict']}** | {claim['evidence']} |" for claim in claims]
        lines = [f"## [{title}]({path.stem}.md)", "", "| claim | verdict | figures |", "|---|---|---|", *rows]
        sections.append("\n".join(lines))
    return "\n\n".join(sections)


def on_page_markdown(markdown: str, page: Page, **_: object) -> str:
    """Drop the marks."""
    return MARK.sub(lambda match: match[2], markdown)
