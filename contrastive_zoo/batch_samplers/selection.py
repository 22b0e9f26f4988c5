"""Batches chosen by features: selection on the first process, random batches before the first features, and saved state."""

from abc import abstractmethod
from typing import Any

import numpy as np
import torch
from torch import Tensor

from contrastive_zoo.batch_samplers.base import BatchSampler, Positions
from contrastive_zoo.batch_samplers.cuts import CutBatches, Partition
from contrastive_zoo.batch_samplers.graph import unit_rows
from contrastive_zoo.batch_samplers.passes import several_processes
from contrastive_zoo.checks import INTEGERS, check_finite, check_index_range, check_integers, check_pair, shape
from contrastive_zoo.processes.gather import decided_by_first

Given = tuple[Tensor, Tensor, Tensor]


class SelectedBatches(CutBatches):
    """Batches chosen by the features passed to `refresh`; subclasses choose in `select`.

    A selection is used from the next pass until the next `refresh`; only the order of batches changes between epochs. The first
    epoch may come before the first `refresh`: its batches are then random.
    """

    needs_features = True
    state_names = (*BatchSampler.state_names, "selected", "coming")
    _newest: Tensor | None = None
    _selected_alone = False

    @abstractmethod
    def select(self, z1: Tensor, z2: Tensor, generator: "np.random.Generator") -> Positions:
        """Samples of all batches, batch after batch, given finite features (num_samples, D) in the order of the dataset."""

    @abstractmethod
    def selection_size(self) -> int:
        """Number of samples that `select` returns."""

    def refresh(self, z1: Tensor, z2: Tensor, index: Tensor) -> None:
        """Select batches for the following passes.

        With several processes, every process calls `refresh` with its own features; together they must cover all samples. The
        first process selects, the other processes receive its selection, and an error is raised on all processes.

        Args:
            z1: (n, D) features of the first view or modality.
            z2: (n, D) features of the second.
            index: (n,) positions of these samples in the dataset; if a position occurs twice, its first features are used.

        Raises:
            TypeError: An argument is no tensor or has the wrong dtype.
            ValueError: Shapes or devices do not fit, a feature is not finite, or samples are missing.
            IndexError: A position outside the dataset.
        """
        given = tuple(value.detach() if isinstance(value, Tensor) else value for value in (z1, z2, index))
        self._newest = torch.from_numpy(decided_by_first(self._decide, given))
        self._selected_alone = not several_processes()

    def _decide(self, parts: list[Any]) -> Positions:
        generator = np.random.default_rng([self.seed, self._passes.coming_epoch(), 1])
        for z1, z2, index in parts:
            check_pair("z1", z1, "z2", z2)
            check_integers("index", index, len(z1))
            check_index_range(int(index.min()), int(index.max()), self.num_samples)
        z1, z2 = self._in_order(parts)
        check_finite("z1", z1, one="sample")
        check_finite("z2", z2, one="sample")
        return self.select(z1, z2, generator)

    def _in_order(self, parts: list[Given]) -> tuple[Tensor, Tensor]:
        """Features of all samples in the order of the dataset; raises if some are missing."""
        first, second, index = (torch.cat([part[k].cpu() for part in parts]) for k in range(3))
        row = np.full(self.num_samples, -1)
        row[index.numpy()[::-1]] = np.arange(len(index))[::-1]
        missing = np.flatnonzero(row < 0)
        if len(missing):
            raise ValueError(
                f"index lacks {len(missing)} of {self.num_samples} samples, first {missing[0]}. "
                "Encode the whole dataset: a loader with drop_last=False."
            )
        rows = torch.from_numpy(row)
        return first[rows], second[rows]

    def order(self) -> Positions:
        """See `CutBatches.order`."""
        if self._newest is not None and self._selected_alone and self.num_replicas > 1 and several_processes():
            raise RuntimeError(
                "refresh was called before the process group was initialised, so each process selected batches from its own "
                "features. Call refresh after torch.distributed.init_process_group, on all processes."
            )
        current = self._passes.current
        # A resumed epoch keeps the selection that it began with.
        if not current.resumed:
            current.selected = self._newest
        generator = self.generator()
        if current.selected is None:
            return self._random(generator)
        selected = current.selected.numpy()
        whole = len(selected) // self.batch_size * self.batch_size
        visited = generator.permutation(selected[:whole].reshape(-1, self.batch_size)).reshape(-1)
        return np.concatenate([visited, selected[whole:]])

    def _random(self, generator: "np.random.Generator") -> Positions:
        if self.epoch > 0:
            raise RuntimeError(
                f"{type(self).__name__} has had no features before epoch {self.epoch}; only the first epoch can do without. "
                "Call sampler.refresh(z1, z2, index) before each epoch, with features that batch_samplers.encode makes."
            )
        return generator.permutation(self.num_samples)

    def __getstate__(self) -> dict[str, Any]:
        # Spawned processes that receive a pickled sampler share one selection.
        return {**super().__getstate__(), "_selected_alone": False}

    def state_dict(self, batches_seen: int | None = None, epoch: int | None = None) -> dict[str, Any]:
        """See `BatchSampler.state_dict`; also holds the selections of this epoch and of the next."""
        current = self._passes.described()
        selected = current.selected if current.begun or current.resumed else self._newest
        return {**super().state_dict(batches_seen, epoch), "selected": selected, "coming": self._newest}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See `BatchSampler.load_state_dict`."""
        self._check_state(state)
        state = {**state, **{name: self._check_selection(name, state[name]) for name in ("selected", "coming")}}
        super().load_state_dict(state)
        self._newest = state["selected"] if state["coming"] is None else state["coming"]
        self._selected_alone = False

    def _check_selection(self, name: str, selection: object) -> Tensor | None:
        """A copy of a selection in a state; raises unless it consists of different samples, as many as `select` returns."""
        if selection is None:
            return None
        if not isinstance(selection, Tensor) or selection.dtype not in INTEGERS or selection.dim() != 1:
            given = f"{shape(selection)} {selection.dtype}" if isinstance(selection, Tensor) else type(selection).__name__
            raise TypeError(f"{name} of the state must be None or positions in the dataset, one integer each, got {given}.")
        if len(selection) != self.selection_size():
            raise ValueError(
                f"{name}: the state selects {len(selection)} samples, this sampler {self.selection_size()}. Make k and q equal."
            )
        ordered = selection.detach().to("cpu", torch.int64, copy=True).sort().values
        if int(ordered[0]) < 0 or int(ordered[-1]) >= self.num_samples or bool((ordered[1:] == ordered[:-1]).any()):
            raise ValueError(f"{name} of the state must hold different positions from 0 to {self.num_samples - 1}.")
        return selection.detach().to("cpu", torch.int64, copy=True)


class SelectedPartition(SelectedBatches, Partition):
    """Disjoint batches chosen by features; see `Partition` for the arguments.

    Samples that do not fill a batch are drawn at random.
    """

    @abstractmethod
    def part(self, z1: Tensor, z2: Tensor, positions: Positions, generator: "np.random.Generator") -> Positions:
        """Order the given positions, a multiple of batch_size, batch after batch; z1 and z2 are rows of length 1."""

    def selection_size(self) -> int:
        """See `SelectedBatches.selection_size`."""
        return self.num_samples

    def select(self, z1: Tensor, z2: Tensor, generator: "np.random.Generator") -> Positions:
        """See `SelectedBatches.select`."""
        positions = generator.permutation(self.num_samples)
        whole = self.num_samples // self.batch_size * self.batch_size
        parted = self.part(unit_rows(z1, "z1"), unit_rows(z2, "z2"), positions[:whole], generator)
        return np.concatenate([parted, positions[whole:]])
