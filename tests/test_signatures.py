"""What editors and type checkers see of `get_loss` is what the registry holds."""

import runpy
import subprocess
import sys
from pathlib import Path

import pytest

import contrastive_zoo as zoo

ROOT = Path(__file__).parent.parent
WRITER = runpy.run_path(str(ROOT / "tools" / "write_signatures.py"))


def test_signatures_are_current() -> None:
    assert WRITER["TARGET"].read_text() == WRITER["text"](), "run python tools/write_signatures.py"


@pytest.mark.parametrize("name", zoo.list_losses())
def test_every_parameter_is_in_the_signature(name: str) -> None:
    text = WRITER["overload"](zoo.describe_loss(name))
    assert f'name: Literal["{name}"' in text
    assert all(f"    {parameter}: " in text for parameter in zoo.describe_loss(name).parameters)


def test_a_type_checker_reads_them(tmp_path: Path) -> None:
    """It tells the type of a result, refuses a wrong type where nothing else fits, and accepts any name of a variable."""
    script = tmp_path / "script.py"
    script.write_text(
        "import contrastive_zoo as zoo\n"
        'reveal_type(zoo.get_loss("ntxent", temperature=0.2))\n'
        "def build(name: str) -> zoo.Loss:\n"
        "    return zoo.get_loss(name, anything=1)\n"
        "reveal_type(zoo.get_loss)\n"
    )
    command = [
        sys.executable,
        "-m",
        "mypy",
        "--strict",
        "--no-incremental",
        "--cache-dir",
        str(tmp_path / "cache"),
        str(script),
    ]
    found = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert found.returncode == 0, found.stdout
    assert 'Revealed type is "contrastive_zoo.loss.module.Loss"' in found.stdout
    assert "burn_in: float" in found.stdout
    assert "Literal['ntxent', 'simclr']" in found.stdout or "Literal['ntxent']" in found.stdout
