"""Processes share the work, and fail together."""

import pytest
import torch
from group import DRAWING, ENCODED, FOUND, ROWS_PER_PROCESS

from contrastive_zoo.samplers.randomness import PANEL

# What the process that makes the mistake raises, and what the others do.
MISTAKES = {
    "nan": ("ValueError: z2 holds NaN or infinite values, first in row 0", "rank {last} raised ValueError: z2 holds NaN"),
    "nan in negatives": ("ValueError: negatives holds NaN", "rank {last} raised ValueError: negatives holds NaN"),
    "shape": ("ValueError: z1 and z2 must have the same shape", "rank {last} raised ValueError: z1 and z2 must have"),
    "no index": ("ValueError: 'sogclr' needs index", "rank {last} raised ValueError: 'sogclr' needs index"),
    "index that others lack": ("whether index is given is False on rank 0", "whether index is given is False on rank 0"),
    "width": ("the number of features per row is 5 on rank 0", "3 on rank {last}"),
    "another loss": ("the name of the loss is sogclr on rank 0", "ntxent on rank {last}"),
    "index out of range": ("IndexError: index holds", "IndexError: index holds"),
}
# How many sweeps a step takes, forward and backward, of how many rows a sample has, and whether pairs are visited once.
SWEEPS = {
    "ntxent": (2, 2, True),
    "infonce": (2, 1, False),
    "dhel": (4, 1, True),
    "kcl": (4, 1, True),
    "hcl": (2, 2, True),
    "siglip": (1, 1, False),
    "isogclr": (2, 2, True),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_of_one_process_is_an_error_of_all(mistake: str, found: list[FOUND]) -> None:
    own, others = (text.format(last=len(found) - 1) for text in MISTAKES[mistake])
    *healthy, failing = (of_rank["errors"][mistake] for of_rank in found)
    assert own in failing
    for heard in healthy:
        assert others in heard


def test_errors_leave_the_group_in_step_and_tables_alone(found: list[FOUND]) -> None:
    heard = [of_rank["errors"] for of_rank in found]
    assert {of_rank["nothing wrong"] for of_rank in heard} == {heard[0]["nothing wrong"]}
    assert heard[0]["nothing wrong"].startswith("a loss of ")
    assert {of_rank["table"] for of_rank in heard} == {"as before"}


# What each process hears where the last one has another setting, and a part of both values.
SETTINGS = {
    "backend": "backend is tiled on rank 0, ... dense on rank {last}",
    "temperature": "temperature is 0.1 on rank 0, ... 0.2 on rank {last}",
    "learned temperature": "temperature is 0.1 on rank 0, ... a parameter on rank {last}",
    "normalize": "normalize is sphere on rank 0, ... ball on rank {last}",
    "reduction": "reduction is mean on rank 0, ... sum on rank {last}",
    "gather": "gather is auto on rank 0, ... ring on rank {last}",
    "on_empty": "on_empty is warn on rank 0, ... error on rank {last}",
    "num_samples": "num_samples is 40 on rank 0, ... 41 on rank {last}",
    "seed": "seed is [0] on rank 0, ... [1] on rank {last}",
    "beta": "beta is 1.0 on rank 0, ... 2.0 on rank {last}",
    "kernel": "kernel is gaussian on rank 0, ... log on rank {last}",
    "sampler": "sampler is uniform on rank 0, ... topk on rank {last}",
    "made sampler": "num_negatives=3, ... num_negatives=5, ",
    "schedule": "gamma is CosineSchedule(end=0.2, start=1.0, steps=3) ... steps=5) on rank {last}",
    "function": "gamma in this step is 0.5 on rank 0, ... 0.6 on rank {last}",
    "broken schedule": "ZeroDivisionError: no epochs",
    "queue": "the shape of sampler.queue.owner is [16] on rank 0, ... [17] on rank {last}",
    "encoder of a sampler": "encode=None, ... encode='encoded_at_random'",
    "what is learned": "what is learned is ['logit_scale', 'logit_bias'] on rank 0, ... ['logit_bias'] on rank {last}",
    "embedding_dim": "the shape of sampler.embeddings.rows is [40, 2, 5] on rank 0, ... [40, 2, 6] on rank {last}",
    "rounded table": "is in torch.bfloat16, too coarse",
    "a set": "a set is [\"'a'\", \"'b'\"] on rank 0, ... [\"'a'\", \"'c'\"] on rank {last}",
    "steps": "the number of steps so far is [1] on rank 0, ... [0] on rank {last}",
}


@pytest.mark.parametrize("setting", SETTINGS)
def test_another_setting_on_one_process_is_an_error_of_all(setting: str, found: list[FOUND]) -> None:
    parts = SETTINGS[setting].format(last=len(found) - 1).split(" ... ")
    for of_rank in found:
        assert all(part in of_rank["settings"][setting] for part in parts), of_rank["settings"][setting]


def test_every_setting_is_tried(found: list[FOUND]) -> None:
    assert set(found[0]["settings"]) == set(SETTINGS)


@pytest.mark.parametrize("name", ENCODED)
def test_an_encoder_that_raises_on_one_process_raises_on_all(name: str, found: list[FOUND]) -> None:
    *healthy, failing = (of_rank["encode that fails"][name] for of_rank in found)
    assert failing["heard"] == "OSError: the disk is gone"
    for of_rank in healthy:
        assert f"rank {len(found) - 1} raised OSError: the disk is gone" in of_rank["heard"]
    assert all(of_rank["unchanged"] for of_rank in (*healthy, failing))


@pytest.mark.parametrize("name", ENCODED)
def test_a_random_encoder_makes_the_same_tables_on_all_processes(name: str, found: list[FOUND]) -> None:
    first, *others = (of_rank["encode that fails"][name] for of_rank in found)
    for of_rank in others:
        assert torch.equal(of_rank["value"], first["value"])
        assert all(torch.equal(tensor, first["state"][key]) for key, tensor in of_rank["state"].items())


def test_a_schedule_is_called_once_a_step_with_a_copy_of_the_count(found: list[FOUND]) -> None:
    for of_rank in found:
        assert of_rank["schedule"]["steps"] == [0, 1]
        assert of_rank["schedule"]["value"].startswith("a loss of")


def test_chains_that_differ_are_an_error_of_all(found: list[FOUND]) -> None:
    for of_rank in found:
        assert f"0 on rank {len(found) - 1}" in of_rank["chains"]
        assert "the number of samples to encode is" in of_rank["chains"]


def test_processes_that_bring_the_same_samples_are_warned_once(found: list[FOUND], world: int) -> None:
    ranks = " and ".join(map(str, range(world)))
    for of_rank in found:
        (message,) = of_rank["same samples"]
        assert message.startswith(f"ranks {ranks} brought the same samples, by index, to 'dcl'")


@pytest.mark.parametrize("name", SWEEPS)
def test_each_process_visits_its_share_of_the_pairs(name: str, found: list[FOUND], world: int) -> None:
    """All pairs are visited once by somebody, where a pair is itself by half: tiles on the diagonal are visited whole."""
    sweeps, rows_per_sample, symmetric = SWEEPS[name]
    rows = world * ROWS_PER_PROCESS * rows_per_sample
    strip = rows // (2 * world)
    entries = rows * (rows + strip) // 2 if symmetric else rows * rows
    for of_rank in found:
        assert of_rank["entries"][name] == sweeps * entries // world


@pytest.mark.parametrize("name", DRAWING)
def test_each_process_draws_for_a_part_of_the_anchors(name: str, found: list[FOUND], world: int) -> None:
    rows = world * ROWS_PER_PROCESS * 2
    columns = DRAWING[name].get("num_negatives", rows)
    order = -(-rows // PANEL) * PANEL if name == "emc2" else 0  # drawn by all
    assert sum(of_rank["draws"][name] - order for of_rank in found) == rows * columns
    for of_rank in found:
        assert of_rank["draws"][name] - order == rows * columns // world
