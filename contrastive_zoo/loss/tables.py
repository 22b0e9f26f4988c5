"""Tables of losses: reading and loading them, and whether their layout is that of the processes of a step."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from contrastive_zoo.batch.options import Options
from contrastive_zoo.checks import check_index_range, check_integers
from contrastive_zoo.objectives.base import Objective
from contrastive_zoo.processes.gather import Handshake, group_size, joined_integers, shake_hands
from contrastive_zoo.registry import Card


def read_table(card: Card, objective: Objective, options: Options, index: Tensor | None) -> dict[str, Tensor]:
    """Tables of an objective as CPU tensors: those of all samples, or rows of the samples ``index``.

    Raises:
        TypeError: The objective keeps no state per sample, or ``index`` holds no integers.
        ValueError: All rows are wanted of tables that processes divide.
        IndexError: A position is outside the dataset.
    """
    read = _method(card, objective, "table", f"{card.name!r} keeps no state per sample, so it has no table.")
    tables: dict[str, Tensor]
    if index is None:
        if objective.divided_shapes():
            raise ValueError(
                f"the tables of {card.name!r} are sharded, and whole they would take {objective.divided_bytes():,} bytes on "
                "each process. Read rows with table(index), on all processes; or save state_dict() with "
                "torch.distributed.checkpoint, which any number of processes loads."
            )
        tables = read()
        return tables
    if not objective.divided_shapes():
        if not any(part.per_sample_tables() for part in objective.precise_parts()):
            raise TypeError(f"{card.name!r} keeps nothing per sample here, so its table has no positions: call table().")
        tables = read(beside_tables(objective, _checked(index, options)))
        return tables
    together, own = shake_hands(
        options.process_group, lambda handshake: joined_integers(_checked(index, options), "reading a table", handshake)
    )
    tables = read(beside_tables(objective, together))
    return {name: table[own] for name, table in tables.items()}


def _checked(index: Tensor, options: Options) -> Tensor:
    check_integers("index", index, index.numel() if isinstance(index, Tensor) else 0)
    if len(index):
        assert options.num_samples is not None
        check_index_range(int(index.min()), int(index.max()), options.num_samples)
    return index


def beside_tables(objective: Objective, index: Tensor) -> Tensor:
    """Positions on the device of the tables."""
    first = next(table for part in objective.precise_parts() for table in part.per_sample_tables())
    return index.to(first.device, torch.int64)


def load_table(card: Card, objective: Objective, tables: dict[str, Tensor]) -> None:
    """Load state in the form that `read_table` returns without an index; of divided tables, the rows of this process.

    Raises:
        TypeError: The objective keeps no state per sample, or a name is not one of its tables.
        ValueError: A table has another size.
    """
    missing = f"{card.name!r} keeps no state per sample, so there is no table to load."
    _method(card, objective, "load_table", missing)(**tables)


def _method(card: Card, objective: Objective, name: str, missing: str) -> Callable[..., Any]:
    method: Callable[..., Any] | None = getattr(objective, name, None)
    if method is None:
        raise TypeError(missing)
    return method


def refuse_other_layout(card: Card, objective: Objective, options: Options, handshake: Handshake | None) -> None:
    """Raise unless sharded tables are divided among the processes of this step.

    Raises:
        RuntimeError: The loss was made before the process group, or for another one.
    """
    # Compiled on a single process; where there are several, this is not compiled.
    if not card.stateful or torch.compiler.is_compiling():
        return
    layouts = {part.layout for part in objective.precise_parts() if part.per_sample_tables()}
    world = 1 if handshake is None else group_size(options.gather, options.process_group)
    group = "" if handshake is None or world == 1 else handshake.group.group_name
    if any((layout.world, layout.group) != (world, group) for layout in layouts):
        made = max(layout.world for layout in layouts)
        raise RuntimeError(
            f"the tables of {card.name!r} are sharded over {made} processes, and this step has {world}, or others. Make the "
            "loss after the process group, and load its state from a distributed checkpoint."
        )
