"""MkDocs hook: a page that links to a file of the repository, where Markdown is read, holds the file on the site."""

import re
from pathlib import Path

from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
_FILE = re.compile(r"<!-- file: (\S+) -->.*?<!-- /file -->", re.DOTALL)


def on_page_markdown(markdown: str, page: Page, **_: object) -> str:
    """Put the text of each file in the place of the link to it."""
    return _FILE.sub(lambda match: (ROOT / match[1]).read_text(), markdown)
