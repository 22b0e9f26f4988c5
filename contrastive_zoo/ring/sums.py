"""Sums over the pairs of the rows of all processes, each of which holds its own."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from contrastive_zoo.devices import beside, readable
from contrastive_zoo.pairwise.sweep import Sweep, unrounded
from contrastive_zoo.pairwise.terms import KernelSum, LogSumExp, Softplus, Squares, Sums, Term
from contrastive_zoo.ring.operator_ import compute


def total(sweep: Sweep, term: Term, backend: str, group: str, rows: Sequence[int], rounds: int | None = None) -> Sums:
    """The sums over the pairs that this process visits, which are its part, for the rows and keys of all processes.

    Args:
        sweep: The rows and keys of this process, with the ids of the rows and keys of all, in the order of ranks.
        term: What is summed, with scales and biases for the rows of all.
        backend: Name of the backend.
        group: Name of the group of processes.
        rows: Number of rows of each process.
        rounds: How many processes a block visits; by default as many as it takes to meet all.

    Raises:
        ValueError: The term cannot be summed up block by block.
    """
    if not isinstance(term, LogSumExp | Softplus):
        other = {KernelSum: "kernels of a distance", Squares: "squares"}.get(type(term), type(term).__name__)
        raise ValueError(
            f"this objective sums up {other}, but gather='ring' holds no rows of other processes but a visiting "
            "block, and sums up exponentials and softplus only. Use gather='auto'."
        )
    if isinstance(term, Softplus):
        term = replace(term, uniform=False)
    if rounds is None:
        rounds = len(rows) // 2 if sweep.keys is None else len(rows) - 1
    return compute(sweep, term, backend, group, rows, rounds)


def sum_within(sweep: Sweep, term: Softplus, backend: str, group: str, rows: Sequence[int]) -> Tensor:
    """Sums of softplus over the other rows with the same id; see `contrastive_zoo.pairwise.softplus_sum_within`.

    Each process sorts its rows by id, so tiles without pairs are left out where the ids are on the host.
    """
    assert sweep.ids is not None
    blocks = sweep.ids.split(list(rows))
    starts = torch.tensor([0, *rows], device=sweep.ids.device).cumsum(0)
    order = torch.cat([block.argsort(stable=True) + start for block, start in zip(blocks, starts[:-1], strict=True)])
    own, there = (beside(each, sweep.x) for each in (blocks[sweep.part[0]].argsort(stable=True), order))
    # A copy in half precision is of the rows as they were.
    ordered = replace(unrounded(sweep), x=sweep.x.index_select(0, own), ids=sweep.ids[order], ordered=True)
    alone = readable(sweep.ids) and sum(len(block.unique()) for block in blocks) == len(sweep.ids.unique())
    found = total(
        ordered, Softplus(term.scale, term.bias.index_select(0, there)), backend, group, rows, rounds=0 if alone else None
    )
    return found.rows.index_select(0, there.argsort())
