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


def mypy(script: Path) -> subprocess.CompletedProcess[str]:
    options = ["--strict", "--no-incremental", "--cache-dir", str(script.parent / "cache")]
    command = [sys.executable, "-m", "mypy", *options, str(script)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)


def test_a_type_checker_refuses_wrong_parameters(tmp_path: Path) -> None:
    """A misspelt one, one of another name, one of another type, and a size that is missing: each where the loss is used."""
    calls = ["'ntxent', temprature=1", "'simclr', beta=1.0", "'dcl', temperature='low'", "'sogclr'"]
    script = tmp_path / "script.py"
    lines = [f"zoo.get_loss({call})(torch.ones(2, 3), torch.ones(2, 3))" for call in calls]
    script.write_text("\n".join(["import torch", "import contrastive_zoo as zoo", *lines]))
    found = mypy(script).stdout
    assert [f"script.py:{number}: error" in found for number in range(1, 7)] == [False] * 2 + [True] * 4, found
    assert found.count('"WrongParameters" not callable') == 4


def test_a_type_checker_reads_them(tmp_path: Path) -> None:
    """It tells the type of a result, and accepts any name of a variable, a name of a plugin, and parameters from elsewhere."""
    script = tmp_path / "script.py"
    script.write_text(
        "from typing import Any\nimport contrastive_zoo as zoo\n"
        'reveal_type(zoo.get_loss("ntxent", temperature=0.2))\n'
        "def build(name: str) -> zoo.Loss:\n"
        "    return zoo.get_loss(name, anything=1)\n"
        "plugin: zoo.Loss = zoo.get_loss('plugin', margin=1)\n"
        "settings: dict[str, Any] = {}\n"
        "configured: zoo.Loss = zoo.get_loss('ntxent', **settings)\n"
        "reveal_type(zoo.get_loss)\n"
    )
    found = mypy(script)
    assert found.returncode == 0, found.stdout
    assert 'Revealed type is "contrastive_zoo.loss.module.Loss"' in found.stdout
    assert "burn_in: float" in found.stdout
    assert "Literal['ntxent', 'simclr']" in found.stdout or "Literal['ntxent']" in found.stdout
