"""Small messages travel through a group that sends from the host."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from group import started

from contrastive_zoo.processes import gather as processes


@pytest.fixture
def _group_of_one(tmp_path: Path) -> Iterator[None]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("_group_of_one")
def test_a_group_that_sends_from_the_host_is_used_itself() -> None:
    assert processes.host_group(dist.group.WORLD) is dist.group.WORLD


@pytest.mark.usefixtures("_group_of_one")
def test_a_group_of_accelerators_gets_one_host_group(monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as one of NCCL alone, from which every message would be waited for."""
    of_group = processes.device_of_group
    accelerators = dist.new_group([0])
    monkeypatch.setattr(
        processes, "device_of_group", lambda group: torch.device("cuda") if group is accelerators else of_group(group)
    )
    made = processes.host_group(accelerators)
    assert made is not accelerators
    assert dist.get_backend(made) == "gloo"
    assert processes.host_group(accelerators) is made
    assert processes.shake_hands(accelerators, lambda handshake: handshake.sizes(3, {})) == [3]


@pytest.mark.usefixtures("_group_of_one")
def test_integers_on_the_host_are_sent_from_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """No copy to an accelerator and back: on the device "meta" the integers would be lost."""
    of_group = processes.device_of_group
    accelerators = dist.new_group([0])
    monkeypatch.setattr(
        processes, "device_of_group", lambda group: torch.device("cuda") if group is accelerators else of_group(group)
    )
    index = torch.tensor([5, 3, 8], dtype=torch.int32, device="cpu")
    found = processes.gather_integers([index, None], [3], torch.device("meta"), accelerators)
    assert found[1] is None
    assert found[0] is not None
    assert found[0].tolist() == [5, 3, 8]


@pytest.mark.parametrize(("device", "reason"), [("cuda", "32 processes need a GPU each"), ("stand-in", "not between devices")])
def test_without_a_gpu_for_each_process_tests_are_skipped(device: str, reason: str, tmp_path: Path) -> None:
    with pytest.raises(pytest.skip.Exception, match=reason):
        started(lambda rank, folder, device: None, 32, tmp_path, device=device)
