"""``python -m contrastive_zoo``."""

import subprocess
import sys

import pytest

import contrastive_zoo as zoo
from contrastive_zoo.__main__ import main


def test_every_name_has_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    main([])
    lines = capsys.readouterr().out.splitlines()
    names = [line.split()[0] for line in lines if line.startswith("  ")]
    expected = [*zoo.list_losses(), *zoo.list_samplers(), *zoo.list_batch_samplers()]
    assert [name for name in names if name != "name"] == expected
    (sogclr,) = (line for line in lines if line.startswith("  sogclr"))
    assert sogclr.split()[1] == "index"
    assert sogclr.endswith(zoo.describe_loss("sogclr").summary)


@pytest.mark.parametrize(
    ("name", "meant"), [("emc2", "emc2"), ("simclr", "ntxent"), ("topk", "topk"), ("spectral", "spectral")]
)
def test_a_name_is_described(name: str, meant: str, capsys: pytest.CaptureFixture[str]) -> None:
    main([name])
    printed = capsys.readouterr().out
    assert printed.startswith(f"{meant}:") or printed.startswith(f"{meant} (also")
    assert "  parameters  " in printed


def test_an_unknown_name_is_answered(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["ntxnet"])
    assert caught.value.code == 2
    assert "Did you mean 'ntxent'" in capsys.readouterr().err


def test_it_is_a_module_to_run() -> None:
    command = [sys.executable, "-m", "contrastive_zoo"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert printed.startswith("Objectives, zoo.get_loss(name)\n")


def test_a_reader_may_leave_early() -> None:
    """As `head` does; the list is longer than what the reader takes."""
    process = subprocess.Popen(
        [sys.executable, "-m", "contrastive_zoo"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait() == 0
    process.stderr.close()
