"""MkDocs hook: fail on a page that still shows what should have been rendered: LaTeX, marks of other hooks, snippets."""

import html
import re

from mkdocs.exceptions import PluginError
from mkdocs.structure.pages import Page

_CODE = re.compile(r"<(pre|code|svg|script|style)\b.*?</\1>", re.DOTALL)
_LEFT = re.compile(r"<!-- .*?-->|-{2}8<-{2}|\$\$|\\\(|\\\[|\\[a-z]{2,}")


def on_page_content(content: str, page: Page, **_: object) -> str:
    """Raise if something is left in the text of a page."""
    left = _LEFT.search(html.unescape(_CODE.sub("", content)))
    if left:
        raise PluginError(f"{page.file.src_uri} shows {left[0]!r}, which was to be rendered.")
    return content
