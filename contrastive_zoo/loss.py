"""The one module around every objective: checks, normalisation, other processes, reduction, diagnostics."""

import math
import warnings
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from contrastive_zoo.batch.batch import Batch
from contrastive_zoo.batch.encoder import Outside
from contrastive_zoo.batch.features import HALF, stack_views
from contrastive_zoo.batch.pairs import Pairs
from contrastive_zoo.checks import (
    INTEGERS,
    check_bool,
    check_choice,
    check_count,
    check_device,
    check_features,
    check_integers,
    check_same,
    comparable,
    shape,
)
from contrastive_zoo.objectives.base import FunctionObjective, Objective
from contrastive_zoo.operators import uncompiled, without_autocast
from contrastive_zoo.pairwise.backends import check_backend
from contrastive_zoo.processes.gather import Meeting, gather_features, gather_integers, group_size, meet
from contrastive_zoo.processes.shares import Share
from contrastive_zoo.registry import Card, keyword_parameters, losses
from contrastive_zoo.sample_ids import all_differ, checksum, regular_ids, sample_ids
from contrastive_zoo.state.modules import Seed, StepCounter
from contrastive_zoo.state.temperature import Temperature

COMMON = (
    "num_samples",
    "normalize",
    "reduction",
    "backend",
    "gather",
    "process_group",
    "embedding_dim",
    "seed",
    "validate",
    "on_empty",
)
# Attributes of the objective that are read and set through the loss.
OF_OBJECTIVE = ("seed", "logit_scale", "logit_bias")


class Loss(nn.Module):
    """A contrastive objective as a module of two feature batches; made by `get_loss`.

    Attributes:
        card: What `describe_loss` shows.
        needs: What a call must be given, of {"index", "labels"}.
        objective: The mathematics, with its parameters and state.
        settings: Parameters that the objective was made with.
    """

    def __init__(
        self,
        card: Card,
        objective: Objective,
        *,
        settings: dict[str, Any] | None = None,
        num_samples: int | None = None,
        normalize: str | bool = "sphere",
        reduction: str = "mean",
        backend: str = "auto",
        gather: str | bool = "auto",
        process_group: dist.ProcessGroup | None = None,
        validate: bool = False,
        on_empty: str = "warn",
    ) -> None:
        super().__init__()
        normalize = check_choice("normalize", normalize, (True, False, "sphere", "ball"))
        reduction = check_choice("reduction", reduction, ("mean", "sum", "none"))
        gather = check_choice("gather", gather, ("auto", False))
        validate = check_bool("validate", validate)
        on_empty = check_choice("on_empty", on_empty, ("warn", "error"))
        if reduction != "mean" and not card.per_sample:
            raise ValueError(
                f"reduction={reduction!r} has no meaning for {card.name!r}, which has no value per sample. Use 'mean'."
            )
        self.card = card
        self.objective = objective
        self.settings = settings or {}
        self.num_samples = num_samples
        self.normalize = normalize if isinstance(normalize, str) else "sphere" if normalize else "none"
        self.reduction = reduction
        check_backend(backend)
        self.backend = backend
        self.gather = gather
        self.process_group = process_group
        self.validate = validate
        self.on_empty = on_empty
        bound = math.inf if self.normalize == "none" else 1.01  # half-precision rows may be a little longer than 1
        self._pairs = Pairs.unshared(backend, unit_rows=self.normalize == "sphere", norm_bound=bound)
        self._tables = [(module, name) for module in objective.modules() for name, _ in module.named_buffers(recurse=False)]
        self._seen: dict[str, Any] = {}
        self._warned_of_same_samples = False

    @property
    def needs(self) -> frozenset[str]:
        """What a call must be given, of {"index", "labels"}."""
        return self.card.needs

    @property
    def temperature(self) -> Tensor:
        """The temperature as a tensor of one entry, or the parameter that was given.

        Assign a number, a tensor or a parameter between steps to change it; a number compiles nothing anew. A learned
        temperature is a parameter, ``temperature=torch.nn.Parameter(torch.tensor(0.1))``, and counts as the nearest value in
        [0.001, 10]. A tensor that carries a graph, such as ``1 / logit_scale.exp()``, serves until the next assignment and is
        not saved.
        """
        return self.objective.held_temperature.value

    @property
    def seed(self) -> int:
        """Seed of the draws, of objectives that draw; part of the state."""
        return self.objective.seed

    @property
    def logit_scale(self) -> nn.Parameter:
        """Logarithm of the learned inverse temperature, of objectives that have one; of shape () or (1,)."""
        return self.objective.get_parameter("logit_scale")

    @property
    def logit_bias(self) -> nn.Parameter:
        """Learned bias of the logits, of objectives that have one; of shape () or (1,)."""
        return self.objective.get_parameter("logit_bias")

    def __getattr__(self, name: str) -> Any:
        if name == "temperature" or name in OF_OBJECTIVE:
            raise AttributeError(f"{self.card.name!r} has no {name}.")
        return super().__getattr__(name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "temperature":
            getattr(self, name)  # an objective without it says so
            self.objective.held_temperature.set(value)
        elif name in OF_OBJECTIVE:
            getattr(self, name)
            setattr(self.objective, name, value)
        else:
            super().__setattr__(name, value)

    def reset_parameters(self) -> None:
        """Restore what the constructor made: tables, counters, seed, temperature and learned scales.

        After ``to_empty``, which leaves the memory of a module made on the meta device unwritten, call this, or load a state.

        Raises:
            RuntimeError: The temperature is a parameter that was made on the meta device, so its first value is not known.
        """
        for module in self.objective.modules():
            reset = getattr(module, "reset_parameters", None)
            if reset is not None:
                reset()

    def forward(
        self,
        z1: Tensor,
        z2: Tensor | None = None,
        *,
        index: Tensor | None = None,
        labels: Tensor | None = None,
        negatives: Tensor | None = None,
        negatives_index: Tensor | None = None,
    ) -> Tensor:
        """The loss of a batch.

        Args:
            z1: (B, D) features of the first view or modality; any float dtype, not normalised. Or (V, B, D), without z2: the
                features of V views, more than two where the method allows it. Without z2, where labels make the positives,
                (B, D) is one view: supcon, scl, hscl.
            z2: (B, D) features of the second.
            index: (B,) integers, positions in the data set. Two rows of one sample are not negatives of each other.
            labels: (B,) integers.
            negatives: (M, D) extra keys for all anchors, or (B, M, D) extra keys for each.
            negatives_index: (M,) or (B, M) positions of the extra keys in the data set: none is a negative of itself.

        Returns:
            One number; (B,) for ``reduction="none"``.

        Raises:
            TypeError: An argument is no tensor or has the wrong dtype, or one that the method has no use for was given; or a
                table was converted to half precision.
            ValueError: Shapes or devices do not fit, something needed is missing, features are NaN or infinite, or there is
                nothing to contrast and ``on_empty="error"``.
            IndexError: A position outside the data set.
            RuntimeError: A loss with state is called by a backward pass, as activation checkpointing would do.
        """
        make = partial(self._checked_batch, z1, z2, index, labels, negatives, negatives_index)
        several = self.training and group_size(self.gather, self.process_group) > 1
        batch = uncompiled(meet, self.process_group, make) if several else make(None)
        with without_autocast(batch.x):
            reason = self._nothing_to_contrast(batch)
            if reason:
                return self._empty(batch, reason)
            values = self.objective(batch)
            self._seen = self._constants(batch)
            return self._reduce(values, batch)

    def _constants(self, batch: Batch) -> dict[str, Any]:
        """What diagnostics need of a batch, without the graph that its features came with."""
        for name, figure in batch.diagnostics.items():
            batch.diagnostics[name] = figure.detach()
        return {
            "x": batch.x.detach(),
            "pair_similarity": batch.pair_similarity.detach(),
            "ids": batch.ids,
            "sample_ids": batch.sample_ids,
            "views": batch.views,
            "labels": batch.labels,
            "diagnostics": batch.diagnostics,
        }

    def _refuse_broken_state(self) -> None:
        """A wrapper can write half precision to a buffer's ``data``, and an optimiser NaN to a parameter."""
        for name, parameter in () if torch.compiler.is_compiling() else self.objective.named_parameters():
            if parameter.is_cpu and parameter.numel() == 1 and math.isnan(parameter.item()):
                learned = name.removeprefix("_").removesuffix(".value")
                raise ValueError(f"the learned {learned} of {self.card.name!r} is NaN: training has diverged.")
        if not self.card.stateful or not self.training:
            return
        for module, name in self._tables:
            dtype = getattr(module, name).dtype
            if dtype in HALF:
                raise TypeError(
                    f"the table {name!r} of {self.card.name!r} is in {dtype}, too coarse for a moving average. "
                    "Something converted it: for FSDP, pass MixedPrecision(buffer_dtype=torch.float32)."
                )

    def _refuse_recomputation(self) -> None:
        """A forward pass that checkpointing repeats would move tables and draws on once more."""
        moves = self.training and (self.card.stateful or self.card.draws)
        if moves and not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1:
            raise RuntimeError(
                f"{self.card.name!r} keeps state, and a backward pass called it again, as activation checkpointing does: its "
                "tables would move twice in one step. Checkpoint the encoder only; the loss holds little more than features."
            )

    def _checked_batch(
        self,
        z1: Tensor,
        z2: Tensor | None,
        index: Tensor | None,
        labels: Tensor | None,
        negatives: Tensor | None,
        negatives_index: Tensor | None,
        meeting: Meeting | None,
    ) -> Batch:
        self._refuse_recomputation()
        self._refuse_broken_state()
        self._check(z1, z2, index, labels, negatives, negatives_index)
        group = None if meeting is None else meeting.group
        outside = self._outside(z1.device.type, self._operand_dtype(z1, z2), group)
        with without_autocast(z1):
            return self._batch(z1, z2, outside, index, labels, negatives, negatives_index, meeting)

    def _check(
        self,
        z1: Tensor,
        z2: Tensor | None,
        index: Tensor | None,
        labels: Tensor | None,
        negatives: Tensor | None,
        negatives_index: Tensor | None,
    ) -> None:
        check_features("z1", z1, (2, 3) if z2 is None else (2,))
        if z2 is None:
            self._check_views(z1)
        else:
            check_features("z2", z2, (2,))
            check_same("z1", z1, "z2", z2)
        size, width = z1.shape[-2:]
        for name, value in (("index", index), ("labels", labels)):
            if value is not None:
                check_integers(name, value, size)
            elif name in self.needs and (self.training or name == "labels"):
                hint = "zoo.IndexedDataset(dataset) adds it to any data set" if name == "index" else "one per sample"
                features = "z1" if z2 is None else "z1, z2"
                raise ValueError(f"{self.card.name!r} needs {name}: call loss_fn({features}, {name}={name}); {hint}.")
        if negatives is None:
            if negatives_index is not None:
                raise ValueError("negatives_index was given without negatives.")
            return
        if "negatives" not in self.card.uses:
            raise TypeError(f"{self.card.name!r} has no place for negatives. Call it without them.")
        check_features("negatives", negatives, (2, 3))
        check_device("z1", z1, "negatives", negatives)
        if negatives.shape[-1] != width or (negatives.dim() == 3 and len(negatives) != size):
            raise ValueError(f"negatives must have shape (M, {width}) or ({size}, M, {width}), got {shape(negatives)}.")
        if negatives_index is not None and (not isinstance(negatives_index, Tensor) or negatives_index.dtype not in INTEGERS):
            given = negatives_index.dtype if isinstance(negatives_index, Tensor) else type(negatives_index).__name__
            raise TypeError(f"negatives_index must hold integers (torch.int64), got {given}.")
        if negatives_index is not None and negatives_index.shape != negatives.shape[:-1]:
            raise ValueError(f"negatives_index must have shape {shape(negatives[..., 0])}, got {shape(negatives_index)}.")
        if negatives_index is not None and index is None:
            raise ValueError("negatives_index was given without index: a sample's own keys cannot be told. Give both.")

    def _check_views(self, z1: Tensor) -> None:
        views = _number_of_views(z1)
        if views == 1 and "one_view" not in self.card.uses:
            raise ValueError(
                f"z2 is missing: {self.card.name!r} needs two views, and z1 of shape {shape(z1)} holds one. Pass the second as "
                "loss_fn(z1, z2), or both as z1 of shape (2, B, D). With one view and labels, use 'supcon', 'scl' or 'hscl'."
            )
        if views > 2 and "views" not in self.card.uses:
            raise ValueError(f"{self.card.name!r} takes two views, z1 holds {views}: shape {shape(z1)}. Give it two of them.")

    def _operand_dtype(self, z1: Tensor, z2: Tensor | None) -> torch.dtype:
        """Half precision where the features or autocast say so, else the features' own."""
        dtype = z1.dtype if z2 is None else torch.promote_types(z1.dtype, z2.dtype)
        device_type = z1.device.type
        if dtype == torch.float32 and torch.is_autocast_enabled(device_type):
            autocast = torch.get_autocast_dtype(device_type)
            return autocast if autocast in HALF else dtype
        return dtype

    def _outside(self, device_type: str, operand: torch.dtype, group: dist.ProcessGroup | None) -> Outside:
        autocast = torch.get_autocast_dtype(device_type) if torch.is_autocast_enabled(device_type) else None
        return Outside(device_type, autocast, operand, self.normalize, self.validate, self.backend == "dense", group)

    def _rows(self, z1: Tensor, z2: Tensor | None, operand: torch.dtype, name: str) -> tuple[Tensor, Tensor]:
        second_order = self.backend == "dense"
        return stack_views(z1, z2, self.normalize, operand, name=name, validate=self.validate, second_order=second_order)

    def _batch(
        self,
        z1: Tensor,
        z2: Tensor | None,
        outside: Outside,
        index: Tensor | None,
        labels: Tensor | None,
        negatives: Tensor | None,
        negatives_index: Tensor | None,
        meeting: Meeting | None,
    ) -> Batch:
        views, operand = 2 if z2 is not None else _number_of_views(z1), outside.operand
        x, similarity = self._rows(z1, z2, operand, "z1" if z2 is None else "z1 or z2")
        if negatives is not None:
            rows, _ = self._rows(negatives.flatten(0, -2), None, operand, "negatives")
            negatives = rows.to(x.dtype).view(negatives.shape)
        rounding = torch.finfo(operand).eps if operand in HALF else 0.0
        share = self._pairs.share
        if meeting is not None:
            x, similarity, index, labels, share = self._gathered(x, similarity, views, index, labels, negatives, meeting)
        index = None if index is None else index.to(torch.int64)
        size = x.shape[0] // views
        distinct = self._all_differ(index)
        ids, row_ids = self._ids(index, size, views, distinct)
        extra_ids = None
        if negatives is not None:
            extra_ids = self._negatives_ids(negatives, negatives_index, index, ids)
        return Batch(
            x=x,
            ids=row_ids,
            sample_ids=ids,
            views=views,
            pair_similarity=similarity,
            pairs=self._pairs.with_share(share, rounding),
            index=index,
            labels=labels,
            negatives=negatives,
            negatives_ids=extra_ids,
            training=self.training,
            encode=outside,
            uniform=self.reduction != "none",
            complete=distinct and size > 1,
        )

    @property
    def _positions(self) -> int:
        """What positions in the data set must be less than; -1 if nobody knows."""
        return self.num_samples if "index" in self.needs and self.num_samples is not None else -1

    def _all_differ(self, index: Tensor | None) -> bool:
        """Whether all samples of the batch are known to differ, without waiting for an accelerator."""
        readable = index is not None and index.is_cpu and not torch.compiler.is_compiling()
        return index is None or (readable and all_differ(index, self._positions))

    def _ids(self, index: Tensor | None, size: int, views: int, distinct: bool) -> tuple[Tensor, Tensor]:
        """Batch position of the first row of the same sample: of samples (B,) and of rows (B * V,)."""
        if distinct and not torch.compiler.is_compiling():
            return regular_ids(size, 1), regular_ids(size * views, views)
        ids = torch.arange(size) if index is None else sample_ids(index, self._positions, index.is_cpu or self.validate)
        return ids, ids.repeat_interleave(views)

    @staticmethod
    def _negatives_ids(negatives: Tensor, negatives_index: Tensor | None, index: Tensor | None, ids: Tensor) -> Tensor:
        """Ids of the extra keys in the numbering of the batch; -1 for samples that are not in it."""
        if negatives_index is None or index is None:
            return torch.full(negatives.shape[:-1], -1, dtype=torch.int64)
        wanted = negatives_index.to(index)
        ordered, order = index.sort(stable=True)
        place = torch.searchsorted(ordered, wanted).clamp_max(len(ordered) - 1)
        return torch.where(ordered[place] == wanted, ids[order[place]], -1)

    def _gathered(
        self,
        x: Tensor,
        similarity: Tensor,
        views: int,
        index: Tensor | None,
        labels: Tensor | None,
        negatives: Tensor | None,
        meeting: Meeting,
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None, Share]:
        """The batches of all processes as one, and what this process has to do; negatives stay where they are."""
        group = meeting.group
        call = self._agreement() | {
            "the number of views": views,
            "the number of features per row": x.shape[1],
            "the precision of the features": x.dtype,
            "whether features want a gradient": torch.is_grad_enabled() and x.requires_grad,
            "whether index is given": index is not None,
            "whether labels are given": labels is not None,
            "whether negatives are given": negatives is not None,
        }
        sizes = meeting.sizes(x.shape[0] // views, call, checksum(index))
        if meeting.same and not self._warned_of_same_samples:
            self._warned_of_same_samples = True
            warnings.warn(
                f"ranks {' and '.join(map(str, meeting.same))} brought the same samples, by index, to {self.card.name!r}, and "
                "repeat each other's work. Give each rank its own share of the dataset, with a batch sampler of the zoo or a "
                "DistributedSampler.",
                stacklevel=2,
            )
        share = Share(tuple(sizes), dist.get_rank(group), group.group_name, x, divided=self.backend != "dense")
        x, similarity = gather_features([x, similarity], sizes, group)
        index, labels = gather_integers([index, labels], sizes, x.device, group)
        return x, similarity, index, labels, share

    def _agreement(self) -> dict[str, object]:
        """What all processes must have alike, as far as the host knows it; errors in here are raised on all of them."""
        parts = list(self.objective.modules())
        held = [part.agreed() for part in parts if isinstance(part, Temperature)]
        return {
            "the name of the loss": self.card.name,
            **{name: comparable(value) for name, value in self.settings.items() if name != "temperature"},
            **{name: getattr(self, name) for name in ("num_samples", "normalize", "reduction", "backend", "on_empty")},
            "temperature": held[0] if held else None,
            "what is learned": [name for name, parameter in self.objective.named_parameters() if parameter.requires_grad],
            **{f"the shape of {name}": list(buffer.shape) for name, buffer in self.objective.named_buffers()},
            "seed": [part.value for part in parts if isinstance(part, Seed)],
            "the number of steps so far": [part.value.item() for part in parts if isinstance(part, StepCounter)],
            **{name: comparable(value) for name, value in self.objective.agreement().items()},
        }

    def _nothing_to_contrast(self, batch: Batch) -> str:
        """Why no anchor has a negative, as far as that is known without waiting for an accelerator."""
        if batch.negatives is not None:
            return ""
        if batch.size == 1:
            return "the batch holds one sample, which has no negatives"
        if batch.complete or torch.compiler.is_compiling() or batch.index is None or batch.ids.device.type != "cpu":
            return ""
        return "" if bool(batch.sample_ids.any()) else "all rows of the batch are one sample, by index"

    def _empty(self, batch: Batch, reason: str) -> Tensor:
        message = f"{self.card.name!r} has nothing to contrast: {reason}. The loss is 0 and no table was changed."
        if self.on_empty == "error":
            raise ValueError(message.replace("The loss is 0 and no", "No") + " Drop such batches, e.g. drop_last=True.")
        if not torch.compiler.is_compiling():
            warnings.warn(message, stacklevel=5)  # the line that called this module, past forward and torch's own calls
        zero = batch.x.view(batch.size, -1).sum(1) * 0
        for leaf in (*self.objective.parameters(), *([] if batch.negatives is None else [batch.negatives])):
            zero = zero + 0 * leaf.sum().to(zero)  # all that learns gets a gradient in every step, as DDP wants it
        return zero if self.reduction == "none" else zero.sum()

    def _reduce(self, values: Tensor, batch: Batch) -> Tensor:
        """Mean over the anchors that have a loss; an anchor without one is marked -inf."""
        if values.dim() == 0:
            return values
        if values.dim() == 1:
            values = values[:, None]
        readable = values.is_cpu and not torch.compiler.is_compiling()
        mean = values.mean()
        if readable and float(mean.detach()) > -torch.inf:
            return mean if self.reduction == "mean" else self._total(values.mean(1))
        kept = values != -torch.inf
        count = kept.sum()
        batch.diagnostics["dropped_anchors"] = 1 - count / kept.numel()
        if readable and int(count) == 0:
            return self._empty(batch, "no anchor has both a positive and a negative")
        return self._total(torch.where(kept, values, 0).sum(1) * (batch.size / count.clamp_min(1).to(values.dtype)))

    def _total(self, per_sample: Tensor) -> Tensor:
        if self.reduction == "none":
            return per_sample
        return per_sample.sum() if self.reduction == "sum" else per_sample.mean()

    @property
    def diagnostics(self) -> dict[str, Tensor]:
        """Detached figures of the last step, and what the objective adds.

        "positive_similarity" is the mean over the pairs of views of a sample, "negative_similarity" that over the pairs of rows
        of two samples. Objectives that need labels go by class: over the pairs of different rows of one class, and over those
        of two classes. Both are 0 if there is no such pair. "dropped_anchors" is the share of anchors that the loss leaves out.
        """
        if not self._seen:
            return {}
        batch = Batch(**self._seen, pairs=self._pairs)
        x = batch.x
        by_class = "labels" in self.needs
        groups = (batch.class_ids().repeat_interleave(batch.views) if by_class else batch.ids).to(x.device)
        # Sums over pairs are squares of sums over rows.
        within = x.new_zeros(batch.size, x.shape[1]).index_add_(0, groups, x).square().sum()
        pairs = x.new_zeros(batch.size).index_add_(0, groups, torch.ones_like(x[:, 0])).square().sum()
        figures = {"negative_similarity": (x.sum(0).square().sum() - within) / (len(x) ** 2 - pairs).clamp_min(1)}
        if by_class:
            figures["positive_similarity"] = (within - x.square().sum()) / (pairs - len(x)).clamp_min(1)
        else:
            figures["positive_similarity"] = batch.positive_similarity().detach().mean()
        figures["dropped_anchors"] = x.new_zeros(())
        return figures | batch.diagnostics

    def table(self) -> dict[str, Tensor]:
        """State per sample as CPU tensors in natural units; what each means is in the objective's documentation.

        Raises:
            TypeError: The objective keeps no state per sample.
        """
        table = getattr(self.objective, "table", None)
        if table is None:
            raise TypeError(f"{self.card.name!r} keeps no state per sample, so it has no table.")
        tables: dict[str, Tensor] = table()
        return tables

    def load_table(self, **tables: Tensor) -> None:
        """Take over state in the form that `table` returns.

        Raises:
            TypeError: The objective keeps no state per sample, or a name is not one of its tables.
            ValueError: A table has another size.
        """
        load = getattr(self.objective, "load_table", None)
        if load is None:
            raise TypeError(f"{self.card.name!r} keeps no state per sample, so there is no table to load.")
        load(**tables)

    def extra_repr(self) -> str:
        """Name and common arguments, for `print`."""
        return f"{self.card.name!r}, normalize={self.normalize!r}, reduction={self.reduction!r}, backend={self.backend!r}"

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles leave the last batch behind."""
        return {**self.__dict__, "_seen": {}}


def _number_of_views(z1: Tensor) -> int:
    """Of features that came without z2."""
    return z1.shape[0] if z1.dim() == 3 else 1


def get_loss(name: str, **params: Any) -> Loss:
    """Make the loss behind a name.

    Args:
        name: One of `list_losses()`, or an alias.
        **params: Parameters of the objective (see `describe_loss(name)`) and those common to all:
            num_samples (size of the data set; ignored by losses without state),
            normalize ("sphere" = True, "ball" or False),
            reduction ("mean", "sum" or "none"),
            backend ("auto", "tiled" or "dense"),
            gather ("auto": contrast with the batches of all processes; False: only with the own),
            process_group (None: the default group),
            embedding_dim (features of an embedding, for losses that keep embeddings; by default those of the first batch or
            checkpoint, which is too late for distributed checkpoints and averages of models),
            seed (of methods that draw at random),
            validate (True: look for bad values on accelerators too, which waits for them),
            on_empty ("warn" or "error": what to do if a batch has nothing to contrast).

    Returns:
        A module to call as ``loss_fn(z1, z2, index=..., labels=...)``. What it remembers (tables, draws, temperature) is in its
        ``state_dict()``. A trainer, such as Lightning's or Hugging Face's, saves that if the loss is a submodule of the model
        that it trains, and else does not.

    Raises:
        ValueError: Unknown name, or a value out of range.
        TypeError: Unknown or missing parameter.

    Examples:
        >>> import torch
        >>> import contrastive_zoo as zoo
        >>> loss_fn = zoo.get_loss("ntxent", temperature=0.5)
        >>> z = torch.eye(4)
        >>> loss_fn(z, z)
        tensor(0.5944)
    """
    card = losses.card(name)
    given = losses.parameters(card, params, COMMON)
    common = {key: value for key, value in params.items() if key in COMMON}
    state: dict[str, int | None] = {"seed": check_count("seed", common.pop("seed", 0), low=0, high=2**63 - 1)}
    for name in ("num_samples", "embedding_dim"):
        value = common.get(name)
        state[name] = None if value is None else check_count(name, value)
    common.pop("embedding_dim", None)
    return Loss(card, _build(card, given, state), settings=given, **common | {"num_samples": state["num_samples"]})


def _build(card: Card, given: dict[str, Any], state: dict[str, int | None]) -> Objective:
    if not isinstance(card.build, type):
        return FunctionObjective(card.build, given)
    wanted = {
        "num_samples": card.stateful,
        "seed": card.draws,
        "embedding_dim": "embedding_dim" in keyword_parameters(card.build),
    }
    if card.stateful and state["num_samples"] is None:
        raise ValueError(f"{card.name!r} keeps state per sample: pass num_samples=len(dataset).")
    objective = card.build(**given, **{name: state[name] for name, takes in wanted.items() if takes})
    if not isinstance(objective, Objective):
        raise TypeError(f"{card.name!r} is registered with {card.build!r}, which is no contrastive_zoo.Objective.")
    return objective


def list_losses() -> list[str]:
    """Names of all objectives, plugins included.

    Examples:
        >>> import contrastive_zoo as zoo
        >>> "ntxent" in zoo.list_losses()
        True
    """
    return losses.names()


def describe_loss(name: str) -> Card:
    """What there is to know about an objective: paper, equation, needs, parameters, scale, differences.

    Raises:
        ValueError: Unknown name.

    Examples:
        >>> import contrastive_zoo as zoo
        >>> zoo.describe_loss("simclr").name
        'ntxent'
    """
    return losses.card(name)


register_loss = losses.register
