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
    """A row for each claim of each page of experiments, as Markdown."""
    lines = ["| experiment | claim | verdict | figures |", "|---|---|---|---|"]
    for path in sorted(RESULTS.glob("*.json")):
        title = (ROOT / "docs" / "reproduce" / f"{path.stem}.md").read_text().splitlines()[0].removeprefix("# ")
        for claim in json.loads(path.read_text())["claims"]:
            lines.append(f"| [{title}]({path.stem}.md) | {claim['text']} | **{claim['verdict']}** | {claim['evidence']} |")
    return "\n".join(lines)


def on_page_markdown(markdown: str, page: Page, **_: object) -> str:
    """Drop the marks."""
    return MARK.sub(lambda match: match[2], markdown)
