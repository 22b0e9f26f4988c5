"""Makes the batch of an objective from the arguments of a call."""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from contrastive_zoo.batch.batch import Batch
from contrastive_zoo.batch.call import Call
from contrastive_zoo.batch.encoder import UserEncoder
from contrastive_zoo.batch.features import HALF
from contrastive_zoo.batch.options import Options
from contrastive_zoo.batch.pairs import Pairs
from contrastive_zoo.batch.samples import OUTSIDE, all_differ, checksum, regular_ids, sample_ids
from contrastive_zoo.checks import shape
from contrastive_zoo.devices import batched, beside, readable
from contrastive_zoo.operators import NOTHING
from contrastive_zoo.processes.gather import Handshake, exchange, gather_features, gather_integers
from contrastive_zoo.processes.shares import ALONE, Share


class _Rows(NamedTuple):
    """Rows of samples, with positions and labels of the samples; of one process or of all processes.

    Attributes:
        x: (B * V, D) normalised rows.
        similarity: (B, 1) inner products of two views, or (B, 0).
        rounded: (B * V, D) copy of the rows in the half precision that they were rounded to, if there is one.
        positions: (B,) positions in the dataset.
        labels: (B,) labels.
        share: The part of the sums over all pairs that this process computes.
    """

    x: Tensor
    similarity: Tensor
    rounded: Tensor | None
    positions: Tensor | None
    labels: Tensor | None
    share: Share


class _Keys(NamedTuple):
    """Extra negatives of one process, or, if ``shared``, of all processes.

    Attributes:
        rows: (M, D) or (B, M, D) normalised extra negatives.
        positions: (M,) or (B, M) positions in the dataset.
        shared: Whether they are negatives of the samples of all processes.
    """

    rows: Tensor
    positions: Tensor | None
    shared: bool


class BatchMaker:
    """Makes the batches of one loss.

    Args:
        options: Options of the loss.
        needs_index: Whether the objective needs positions in the dataset.
    """

    def __init__(self, options: Options, needs_index: bool) -> None:
        self.options = options
        self.needs_index = needs_index
        # Exclusive upper bound of positions in the dataset; -1 if unknown.
        self.positions = options.num_samples if needs_index and options.num_samples is not None else -1
        self.second_order = options.second_order
        self.pairs = Pairs.unshared(options.backend, unit_rows=options.normalize == "sphere", norm_bound=options.norm_bound)

    def make(
        self, call: Call, training: bool, handshake: Handshake | None = None, agreement: Callable[[], dict[str, object]] = dict
    ) -> Batch:
        """The batch of a call, or of the calls of all processes.

        Args:
            call: Arguments of the call.
            training: Whether the loss is in training mode.
            handshake: Handshake with the processes whose batches are joined, if there are several processes.
            agreement: Returns the values that must be equal on all processes; called when they are exchanged.

        Raises:
            ValueError: A value is NaN or infinite, or the processes disagree.
            IndexError: A position is outside the dataset.
        """
        device_type = call.z1.device.type
        autocast = torch.get_autocast_dtype(device_type) if torch.is_autocast_enabled(device_type) else None
        group = None if handshake is None else handshake.group
        encoder = UserEncoder(device_type, autocast, call.operand(autocast), self.options, self.second_order, group)
        with NOTHING if autocast is None else torch.autocast(device_type, enabled=False):
            rows, extra = self._own_rows(call, encoder)
            if handshake is not None:
                rows = self._gathered(rows, extra, call, handshake, agreement())
                if extra is not None and self.options.gather_negatives:
                    extra = _gathered_keys(extra, handshake.group)
            return self._batch(rows, call, extra, encoder, training)

    def _own_rows(self, call: Call, encoder: UserEncoder) -> tuple[_Rows, _Keys | None]:
        """The rows and the extra negatives of this process."""
        if self.options.gather_negatives and call.negatives is not None and call.negatives.dim() == 3:
            raise ValueError(
                f"gather_negatives=True shares negatives of shape (M, D), got {shape(call.negatives)}: extra negatives of each "
                "sample stay with the sample. Flatten them to share them with all samples, or leave gather_negatives out."
            )
        stacked = encoder.normalized(call.z1, call.z2, call.names)
        rows = _Rows(*stacked, call.index, call.labels, ALONE)
        if call.negatives is None:
            return rows, None
        keys = encoder.normalized(call.negatives.flatten(0, -2), None, "negatives").rows
        return rows, _Keys(keys.to(stacked.rows.dtype).view(call.negatives.shape), call.negatives_index, shared=False)

    def _batch(self, rows: _Rows, call: Call, extra: _Keys | None, encoder: UserEncoder, training: bool) -> Batch:
        index = None if rows.positions is None else rows.positions.to(torch.int64)
        views = call.views
        size = rows.similarity.shape[0]
        distinct = self._all_differ(index)
        ids, row_ids = self._ids(index, size, views, distinct)
        operand = encoder.operand if encoder.operand in HALF else None
        copies = () if rows.x.is_cpu else self._copies(rows.x, index, ids, row_ids, distinct)
        rounded = None if rows.rounded is None else (rows.x, rows.rounded)
        known = ((row_ids, row_ids, views), (ids, ids, 1)) if distinct else tuple((*each, 0) for each in copies)
        return Batch(
            x=rows.x,
            ids=row_ids,
            sample_ids=ids,
            views=views,
            pair_similarity=rows.similarity,
            pairs=self.pairs.of_batch(rows.share, operand, rounded, known),
            index=index,
            labels=rows.labels,
            negatives=None if extra is None else extra.rows,
            negatives_ids=None if extra is None else _negatives_ids(extra.rows, extra.positions, index, ids),
            shared_negatives=extra is not None and extra.shared,
            training=training,
            encode=encoder,
            uniform=self.options.reduction != "none",
            complete=distinct and size > 1,
            copies=copies,
        )

    def _copies(
        self, x: Tensor, index: Tensor | None, ids: Tensor, row_ids: Tensor, distinct: bool
    ) -> tuple[tuple[Tensor, Tensor], ...]:
        """Integers on the host that a step needs beside the rows, each with its copy there; one transfer copies all of them."""
        needed = [index if self.needs_index else None, None if distinct else ids]
        on_host = [integers for integers in needed if integers is not None and integers.is_cpu]
        if not on_host:
            return ()
        moved = beside(torch.cat(on_host), x).split([len(integers) for integers in on_host])
        copies = tuple(zip(on_host, moved, strict=True))
        if on_host[-1] is ids:
            copies = *copies, (row_ids, moved[-1].repeat_interleave(row_ids.shape[0] // ids.shape[0]))
        return copies

    def _all_differ(self, index: Tensor | None) -> bool:
        """Whether all samples of the batch are known to differ without a synchronisation."""
        return index is None or (readable(index) and all_differ(index, self.positions))

    def _ids(self, index: Tensor | None, size: int, views: int, distinct: bool) -> tuple[Tensor, Tensor]:
        """Batch position of the first occurrence of the same sample: for samples (B,) and for rows (B * V,)."""
        if distinct and not torch.compiler.is_compiling():
            return regular_ids(size, 1), regular_ids(size * views, views)
        if index is None:
            ids = torch.arange(size, device="cpu")
        else:
            ids = sample_ids(index, self.positions, (index.is_cpu or self.options.validate) and not batched(index))
        return ids, ids.repeat_interleave(views)

    def _gathered(
        self, rows: _Rows, extra: _Keys | None, call: Call, handshake: Handshake, agreement: dict[str, object]
    ) -> _Rows:
        """The rows of all processes."""
        group, x = handshake.group, rows.x
        alike = agreement | {
            "the number of views": call.views,
            "the number of features per row": x.shape[1],
            "the precision of the features": x.dtype,
            "whether features want a gradient": torch.is_grad_enabled() and x.requires_grad,
            "whether index is given": rows.positions is not None,
            "whether labels are given": rows.labels is not None,
            "the device of index": _kind_of_device(rows.positions),
            "the device of labels": _kind_of_device(rows.labels),
            "whether negatives are given": extra is not None,
        }
        if extra is not None and self.options.gather_negatives:
            alike |= {
                "whether negatives want a gradient": torch.is_grad_enabled() and extra.rows.requires_grad,
                "whether negatives_index is given": extra.positions is not None,
                "the device of negatives_index": _kind_of_device(extra.positions),
            }
        sizes = handshake.sizes(x.shape[0] // call.views, alike, checksum(rows.positions))
        ring = self.options.gather == "ring"
        divided = self.options.divided or ring
        share = Share(tuple(sizes), dist.get_rank(group), group.group_name, x, divided=divided, ring=ring)
        if ring:
            similarity = _gathered_numbers(rows.similarity, sizes, group)
        else:
            x, similarity = gather_features([x, rows.similarity], sizes, group)
        index, labels = gather_integers([rows.positions, rows.labels], sizes, x.device, group)
        rounded = None if rows.rounded is None else x.detach().to(rows.rounded.dtype)
        return _Rows(x, similarity, rounded, index, labels, share)


def _gathered_numbers(values: Tensor, sizes: list[int], group: dist.ProcessGroup) -> Tensor:
    """Numbers of the samples of all processes, (B, K), from those of this process's samples."""
    if values.shape[1] == 0:
        return values.new_empty(sum(sizes), 0)
    (gathered,) = gather_features([values], sizes, group)
    return gathered


def _gathered_keys(extra: _Keys, group: dist.ProcessGroup) -> _Keys:
    """The extra negatives of all processes, whose numbers may differ."""
    (sizes,) = exchange([len(extra.rows)], group)
    (rows,) = gather_features([extra.rows], sizes, group)
    (positions,) = gather_integers([extra.positions], sizes, rows.device, group)
    return _Keys(rows, positions, shared=True)


def _kind_of_device(values: Tensor | None) -> str | None:
    return None if values is None else values.device.type


def _negatives_ids(negatives: Tensor, positions: Tensor | None, index: Tensor | None, ids: Tensor) -> Tensor:
    """Ids of the extra negatives in the numbering of the batch; `OUTSIDE` for samples outside the batch."""
    if positions is None or index is None:
        return torch.full(negatives.shape[:-1], OUTSIDE, dtype=torch.int64, device=negatives.device)
    if not (positions.is_cpu and index.is_cpu):
        positions, index, ids = (beside(each, negatives) for each in (positions, index, ids))
    wanted = positions.to(index)
    ordered, order = index.sort(stable=True)
    place = torch.searchsorted(ordered, wanted.contiguous()).clamp_max(len(ordered) - 1)
    return beside(torch.where(ordered[place] == wanted, ids[order[place]], OUTSIDE), negatives)
