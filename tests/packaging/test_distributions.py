"""The wheel and the sdist: checked, installed into an empty environment beside this one's dependencies, and used there."""

import os
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest

import contrastive_zoo as zoo

ROOT = Path(__file__).parents[2]


def run(*command: str | Path, cwd: Path) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    finished = subprocess.run(list(map(str, command)), capture_output=True, text=True, cwd=cwd, env=environment, check=False)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return finished.stdout


@pytest.fixture(scope="module")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The wheel, built from the sdist, and the sdist."""
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, ROOT, cwd=folder)
    return sorted(folder.iterdir(), key=lambda path: path.suffix, reverse=True)


@pytest.fixture(scope="module")
def python(distributions: Sequence[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Python of an environment that holds the wheel, and finds torch and the extra `examples` in this one."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False)
    found = folder / ("Scripts" if sys.platform == "win32" else "bin") / "python"
    wheel = distributions[0]
    run(sys.executable, "-m", "pip", "--python", found, "install", "--no-deps", "--no-index", wheel, cwd=folder)
    site = run(found, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder).strip()
    Path(site, "dependencies.pth").write_text(sysconfig.get_path("purelib"))  # after the wheel, so the wheel comes first
    return found


def test_metadata_is_in_order(distributions: Sequence[Path]) -> None:
    wheel, sdist = distributions
    assert wheel.name == f"contrastive_zoo-{zoo.__version__}-py3-none-any.whl"
    assert sdist.name == f"contrastive_zoo-{zoo.__version__}.tar.gz"
    printed = run(sys.executable, "-m", "twine", "check", "--strict", wheel, sdist, cwd=ROOT)
    assert printed.count("PASSED") == 2


def test_contents(distributions: Sequence[Path]) -> None:
    wheel, sdist = distributions
    inside = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in inside}
    assert tops == {"contrastive_zoo", f"contrastive_zoo-{zoo.__version__}.dist-info"}
    assert {"contrastive_zoo/py.typed", "contrastive_zoo/loss/signatures.pyi", "contrastive_zoo/__main__.py"} <= set(inside)
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    wanted = {"CITATION.cff", "SECURITY.md", "CHANGELOG.md", "LICENSE", "tools/write_signatures.py", "examples/moco.py"}
    assert wanted <= names
    assert not [name for name in names if name.startswith((".venv", "runs", "site", "dist"))]


def test_the_wheel_is_what_is_imported(python: Path, tmp_path: Path) -> None:
    assert ROOT not in Path(run(python, "-c", "import contrastive_zoo; print(contrastive_zoo.__file__)", cwd=tmp_path)).parents
    names = run(python, "-m", "contrastive_zoo", cwd=tmp_path)
    assert all(f"\n  {name} " in names for name in zoo.list_losses())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sogclr"])
def test_the_script_of_the_tutorial(name: str, python: Path, tmp_path: Path) -> None:
    """Copied out of the repository, as a reader does."""
    script = tmp_path / "timm_pretraining.py"
    script.write_text((ROOT / "examples" / "timm_pretraining.py").read_text())
    printed = run(python, script, "--epochs", "1", "--loss", name, cwd=tmp_path)
    assert printed.startswith("epoch 1: loss ")
    assert {path.name for path in tmp_path.iterdir()} == {script.name, "encoder.pt", "curves.svg"}


def test_the_script_of_moco_learns(python: Path, tmp_path: Path) -> None:
    lines = run(python, ROOT / "examples" / "moco.py", cwd=tmp_path).splitlines()
    losses = [float(line.split("loss ")[1].split(",")[0]) for line in lines]
    assert len(losses) == 10
    assert losses[-1] < losses[0]
    assert lines[-1].endswith("256 keys in the queue")
