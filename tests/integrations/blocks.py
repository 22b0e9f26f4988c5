"""Code blocks and scripts of the documentation that need packages which the tests of the core do without."""

import re
import runpy
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
SCRIPTS = ROOT / "examples" / "integrations"


def run_block(page: str, first: str, names: dict[str, Any]) -> dict[str, Any]:
    """Run the ``py`` block of a page that contains a text, with the given names at hand; returns all names afterwards.

    Whole scripts, which pages show too, have tests of their own.
    """
    text = re.sub(r"<!-- code: .*?<!-- /code -->", "", (ROOT / "docs" / page).read_text(), flags=re.DOTALL)
    blocks = re.findall(r"^```py\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    (block,) = (block for block in blocks if first in block)
    exec(compile(block, page, "exec"), names)
    return names


def names_of(script: str) -> dict[str, Any]:
    """What a script of examples/integrations defines."""
    return runpy.run_path(str(SCRIPTS / f"train_{script}.py"))
