"""Workflows run what the metadata promises, and a release holds no secret."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
METADATA = (ROOT / "pyproject.toml").read_text()


def jobs(name: str) -> dict[str, Any]:
    return yaml.safe_load((ROOT / ".github" / "workflows" / f"{name}.yml").read_text())["jobs"]


def test_tests_run_on_the_oldest_and_the_newest() -> None:
    versions = re.findall(r"Python :: (3\.\d+)", METADATA)
    oldest, newest = jobs("tests")["test"]["strategy"]["matrix"]["include"]
    assert (oldest["python"], newest["python"]) == (versions[0], versions[-1])
    (torch,) = re.findall(r'"torch>=([\d.]+)"', METADATA)
    assert oldest["torch"] == f"{torch}.*"
    assert "torch" not in newest


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_may_only_read_and_stores_no_secret(path: Path) -> None:
    text = path.read_text()
    assert yaml.safe_load(text)["permissions"] == {"contents": "read"}
    assert "secrets." not in text
    assert "password" not in text


def test_only_the_job_that_publishes_gets_an_identity() -> None:
    release = jobs("release")
    assert release["publish"]["permissions"] == {"id-token": "write"}
    assert "permissions" not in release["build"]
    assert release["publish"]["needs"] == "build"


@pytest.mark.parametrize("name", ["tests", "docs"])
def test_targets_and_files_exist(name: str) -> None:
    makefile = (ROOT / "Makefile").read_text()
    for job in jobs(name).values():
        for step in job["steps"]:
            command = step.get("run", "")
            assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in re.findall(r"^make (\S+)", command))
            assert all((ROOT / script).exists() for script in re.findall(r"examples/\w+\.py", command))
