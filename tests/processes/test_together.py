"""Processes share the work, and fail together."""

import pytest
from group import FOUND, ROWS_PER_PROCESS

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
SWEEPS = {"ntxent": (2, 2, True), "infonce": (2, 1, False), "dhel": (4, 1, True), "kcl": (4, 1, True), "hcl": (2, 2, True)}


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


@pytest.mark.parametrize("name", SWEEPS)
def test_each_process_visits_its_share_of_the_pairs(name: str, found: list[FOUND], world: int) -> None:
    """All pairs are visited once by somebody, where a pair is itself by half: tiles on the diagonal are visited whole."""
    sweeps, rows_per_sample, symmetric = SWEEPS[name]
    rows = world * ROWS_PER_PROCESS * rows_per_sample
    strip = rows // (2 * world)
    entries = rows * (rows + strip) // 2 if symmetric else rows * rows
    for of_rank in found:
        assert of_rank["entries"][name] == sweeps * entries // world
