"""MkDocs hook: LaTeX in pages and docstrings becomes MathML at build time; reading needs no script and no network."""

import html
import re
from xml.etree import ElementTree

from latex2mathml.converter import convert
from mkdocs.exceptions import PluginError
from mkdocs.structure.pages import Page

_MARKED = re.compile(r'(<(span|div) class="arithmatex">)\s*\\[(\[](.*?)\\[)\]]\s*(</\2>)', re.DOTALL)

# The converter leaves spacing to MathML's operator dictionary, which differs from what TeX does in these places.
_AS_TEX_SPACES = {
    r"<(mi|mo)>([A-Za-z]{2,})</\1>(?!<mo[^>]*>&#x00028;)": r'<mo lspace="0.167em" rspace="0.167em">\2</mo>',
    r"(<mo[^>]*>(?!&#x0(?:0029|005D|007D|2016|007C);)[^<]+</mo>)<mo>(?=&#x02212;)": r'\1<mo form="prefix">',
    r"<mo>(&#x02016;|&#x0007C;)</mo>": r'<mo stretchy="false">\1</mo>',
    r"<mo>(/|&#x0002F;)</mo>": r'<mo lspace="0" rspace="0">/</mo>',
}


def to_mathml(latex: str, display: str) -> str:
    """MathML of a formula; raises ValueError for LaTeX that the converter does not know.

    Args:
        latex: The formula without its dollars.
        display: ``"inline"`` or ``"block"``.
    """
    mathml = convert(latex, display=display)
    try:
        understood = "\\" not in "".join(ElementTree.fromstring(mathml).itertext())
    except ElementTree.ParseError:
        understood = False
    if not understood:
        raise ValueError(f"cannot turn this LaTeX into MathML, write it with simpler commands: {latex.strip()}")
    for pattern, replacement in _AS_TEX_SPACES.items():
        mathml = re.sub(pattern, replacement, mathml)
    return mathml


def on_page_content(content: str, page: Page, **_: object) -> str:
    """Render every formula that the Markdown extension `arithmatex` marked."""

    def render(match: re.Match[str]) -> str:
        opening, tag, latex, closing = match.groups()
        if tag == "div":  # the search would show a line of letters
            return opening.replace(">", " data-search-exclude>") + to_mathml(html.unescape(latex), "block") + closing
        return opening + to_mathml(html.unescape(latex), "inline") + closing

    try:
        return _MARKED.sub(render, content)
    except ValueError as error:
        raise PluginError(f"{page.file.src_uri}: {error}") from error
