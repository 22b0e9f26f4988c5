"""MkDocs hook: pages that hold a file of the repository, and a page for dead links that works in any folder."""

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
_FILE = re.compile(r"<!-- file: (\S+) -->.*?<!-- /file -->", re.DOTALL)


def on_page_markdown(markdown: str, page: Page, **_: object) -> str:
    """Put the text of each file in the place of the link to it, which serves those who read the Markdown."""
    return _FILE.sub(lambda match: (ROOT / match[1]).read_text(), markdown)


def on_post_build(config: MkDocsConfig) -> None:
    """Make the addresses of 404.html relative: the site may lie in any folder."""
    page = Path(config.site_dir) / "404.html"
    page.write_text(relative(page.read_text()))


def relative(text: str) -> str:
    """The page with addresses that begin where it lies."""
    text = re.sub(r'(href|src)="/(?!/)', r'\1="./', text)
    return re.sub(r'"base": ?"/"', '"base": "."', text)
