"""MkDocs hook: pages that hold a file of the repository, and a page for dead links that works in any folder."""

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
_FILE = re.compile(r"<!-- file: (\S+) -->.*?<!-- /file -->", re.DOTALL)
_CODE = re.compile(r"(<!-- (code|results): (\S+) -->\n)(.*?)(<!-- /\2 -->)", re.DOTALL)
_LANGUAGES = {".py": "py", ".bib": "bibtex"}
_GUIDANCE = (
    '<p>There is no page at this address. Search for it above, or begin at <a href="./index.html">Home</a> or at '
    '<a href="./choosing.html">Which objective?</a></p>'
)


def with_code(markdown: str) -> str:
    """The page with each file of code or results between its marks; `python docs/write.py` writes these pages."""

    def block(match: re.Match[str]) -> str:
        path = ROOT / match[3]
        text = path.read_text()
        shown = f"\n{text}\n" if match[2] == "results" else f"```{_LANGUAGES[path.suffix]}\n{text}```\n"
        return f"{match[1]}{shown}{match[5]}"

    return _CODE.sub(block, markdown)


def on_page_markdown(markdown: str, page: Page, **_: object) -> str:
    """Put the text of each file in the place of the link to it, which serves readers of the Markdown; drop other marks."""
    markdown = _CODE.sub(lambda match: match[4], markdown)
    return _FILE.sub(lambda match: (ROOT / match[1]).read_text(), markdown)


def on_post_build(config: MkDocsConfig) -> None:
    """Make the addresses of 404.html relative, as the site may lie in any folder, and say where to go from there."""
    page = Path(config.site_dir) / "404.html"
    page.write_text(relative(page.read_text()).replace("404 - Not found</h1>", f"404 - Not found</h1>\n{_GUIDANCE}"))


def relative(text: str) -> str:
    """The page with addresses that begin where it lies."""
    text = re.sub(r'(href|src)="/(?!/)', r'\1="./', text)
    return re.sub(r'"base": ?"/"', '"base": "."', text)
