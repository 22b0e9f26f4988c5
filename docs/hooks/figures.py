"""MkDocs hook: SVG pictures become part of their page, so they follow its colours, and can be scrolled on a narrow screen."""

import html
import re
from pathlib import Path

from mkdocs.exceptions import PluginError
from mkdocs.structure.pages import Page

DOCS = Path(__file__).parents[1]
_IMAGE = re.compile(r'<img alt="([^"]*)" src="([^"]*\.svg)" ?/?>')
_PARAGRAPH = re.compile(r"<p>(<figure.*?</figure>)</p>", re.DOTALL)
# Matplotlib's colours of paper, ink and grid, in every notation that it uses.
_COLOURS = {
    r"fill: ?(?:#ffffff|white)": "fill: none",
    r"(fill|stroke): ?(?:#000000|#262626|#444444|black)": r"\1: currentColor",
    r"stroke: ?(?:#e6e6e6|#cccccc|#b0b0b0)": "stroke: currentColor; stroke-opacity: 0.2",
}


def figure(svg: str, alt: str, prefix: str) -> str:
    """A figure that holds the picture, with the colours of the page and ids of its own."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    for pattern, replacement in _COLOURS.items():
        svg = re.sub(pattern, replacement, svg)
    svg = re.sub(r'\bid="', f'id="{prefix}-', svg)
    svg = re.sub(r'(xlink:href="|url\()#', rf"\1#{prefix}-", svg)
    svg = re.sub(r"\s*\n\s*", " ", svg)  # Markdown is done, and lines within tags only cost bytes
    svg = svg.replace("<svg ", f'<svg role="img" aria-label="{alt}" ', 1)
    wide = " zoo-wide" if float(re.search(r'viewBox="0 0 ([\d.]+)', svg)[1]) > 450 else ""  # type: ignore[index]
    return f'<figure class="zoo-figure{wide}" tabindex="0">{svg}</figure>'


def on_page_content(content: str, page: Page, **_: object) -> str:
    """Put the SVG in the place of each image; fail on one without a text."""

    def inline(match: re.Match[str]) -> str:
        alt, source = match.groups()
        if not html.unescape(alt).strip():
            raise PluginError(f"{page.file.src_uri}: the picture {source} has no text: write ![what it shows]({source}).")
        path = DOCS / "images" / source.split("images/")[-1]
        return figure(path.read_text(), alt, path.stem)

    return _PARAGRAPH.sub(r"\1", _IMAGE.sub(inline, content))
