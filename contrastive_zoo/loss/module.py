"""`Loss` wraps every objective and handles checks, normalisation, multi-process gathering, reduction and diagnostics."""

import warnings
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from contrastive_zoo.batch.batch import Batch
from contrastive_zoo.batch.call import Call
from contrastive_zoo.batch.make import BatchMaker
from contrastive_zoo.batch.options import OPTIONS, Options
from contrastive_zoo.checks import check_count, comparable
from contrastive_zoo.loss.diagnostics import LastBatch
from contrastive_zoo.loss.guards import refuse_broken_state, refuse_options, refuse_recomputation, refuse_transforms, state_of
from contrastive_zoo.loss.reduction import all_anchors_have_losses, nothing_to_contrast, reduced
from contrastive_zoo.loss.tables import load_table, read_table, refuse_other_layout
from contrastive_zoo.objectives.base import Objective
from contrastive_zoo.operators import uncompiled, without_autocast
from contrastive_zoo.processes.gather import Handshake, group_size, shake_hands
from contrastive_zoo.registry import Card
from contrastive_zoo.state.modules import AllOrNothing
from contrastive_zoo.state.temperature import Temperature

# Attributes of the objective that are read and set through the loss.
OF_OBJECTIVE = ("seed", "logit_scale", "logit_bias")
# Attributes that `Loss.__getattr__` finds elsewhere.
NOT_IN_MODULE = frozenset(("temperature", *OF_OBJECTIVE, *OPTIONS))
# Options that must be equal on all processes.
COMPARED = ("num_samples", "normalize", "reduction", "backend", "gather", "gather_negatives", "tables", "on_empty")


class Loss(AllOrNothing):
    """A contrastive objective as a module of two feature batches; made by `get_loss`.

    Attributes:
        card: The summary that `describe_loss` returns.
        needs: Arguments that a call must pass, a subset of {"index", "labels"}.
        objective: The mathematics, with its parameters and state.
        settings: Parameters that the objective was made with.
        options: Parameters that all losses share. Each is also an attribute of the loss; all can be set but num_samples and
            embedding_dim.

    Raises:
        ValueError: The reduction has no meaning for the objective, or the objective cannot be computed in a ring.
    """

    def __init__(self, card: Card, objective: Objective, settings: dict[str, Any], options: Options) -> None:
        super().__init__()
        self.card = card
        self.objective = objective
        self.settings = settings
        self._set_options(options)
        self._parts = list(objective.modules())
        self._tables = [(part, name) for part in self._parts for name, _ in part.named_buffers(recurse=False)]
        self._last = LastBatch()
        self._warned_of_same_samples = False
        self._temperatures = [part for part in self._parts if isinstance(part, Temperature)]

    def _set_options(self, options: Options) -> None:
        refuse_options(self.card, options)
        self.options = options
        self._maker = BatchMaker(options, "index" in self.card.needs)

    @property
    def needs(self) -> frozenset[str]:
        """Arguments that a call must pass, a subset of {"index", "labels"}."""
        return self.card.needs

    @property
    def temperature(self) -> Tensor:
        """The temperature as a tensor of one entry, or the parameter that was given.

        Assign a number, a tensor or a parameter between steps to change the temperature; a number triggers no recompilation. A
        learned temperature is a parameter, ``temperature=torch.nn.Parameter(torch.tensor(0.1))``, clamped to [0.001, 10] where
        it is used. A tensor with an autograd graph, such as ``1 / logit_scale.exp()``, is used until the next assignment and
        is not saved.
        """
        return self.objective.held_temperature.value

    @property
    def seed(self) -> int:
        """Random seed of objectives that use randomness; part of the state."""
        return self.objective.seed

    @property
    def logit_scale(self) -> nn.Parameter:
        """Logarithm of the learned inverse temperature, for objectives that learn one; shape () or (1,)."""
        return self.objective.get_parameter("logit_scale")

    @property
    def logit_bias(self) -> nn.Parameter:
        """Learned bias of the logits, for objectives that learn one; shape () or (1,)."""
        return self.objective.get_parameter("logit_bias")

    def __getattr__(self, name: str) -> Any:
        if name not in NOT_IN_MODULE:
            return super().__getattr__(name)
        if name == "temperature" or name in OF_OBJECTIVE:
            scale = name == "temperature" and "logit_scale" in self.objective._parameters
            instead = " It learns loss_fn.logit_scale, the logarithm of an inverse temperature, instead." if scale else ""
            raise AttributeError(f"{self.card.name!r} has no {name}.{instead}")
        return getattr(self.options, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "temperature":
            getattr(self, name)  # raises if the objective has no temperature
            self.objective.held_temperature.set(value)
        elif name in OF_OBJECTIVE:
            getattr(self, name)
            setattr(self.objective, name, value)
        elif name == "num_samples":
            raise AttributeError(f"num_samples changes with the tables: loss_fn.resize({value!r}) keeps what they hold.")
        elif name in ("embedding_dim", "tables"):
            raise AttributeError(f"{name} is fixed once a loss is made: make a new one, get_loss(..., {name}={value!r}).")
        elif name in OPTIONS:
            self._set_options(replace(self.options, **{name: value}))
        else:
            super().__setattr__(name, value)

    def reset_parameters(self) -> None:
        """Restore the initial tables, counters, seed, temperature and learned scales.

        Call this, or load a state, after ``to_empty``, which leaves the memory of a module made on the meta device
        uninitialised.

        Raises:
            RuntimeError: The temperature is a parameter that was made on the meta device, so its first value is not known.
        """
        for module in self.objective.modules():
            reset = getattr(module, "reset_parameters", None)
            if reset is not None:
                reset()

    def resize(self, num_samples: int) -> None:
        """Make room for a dataset that has grown: new samples have not been visited, all others keep their state.

        Buffers are replaced, so call this before `DistributedDataParallel` wraps the loss, and on all processes.

        Args:
            num_samples: New size of the dataset, not below the present one.

        Raises:
            TypeError: The objective keeps no state per sample.
            ValueError: The new size is below the present one.

        Examples:
            >>> import contrastive_zoo as zoo
            >>> loss_fn = zoo.get_loss("sogclr", num_samples=100)
            >>> loss_fn.resize(150)
            >>> loss_fn.num_samples, loss_fn.table()["u"].shape
            (150, torch.Size([150]))
        """
        if not self.card.stateful:
            raise TypeError(f"{self.card.name!r} keeps no state per sample, so it has nothing to resize.")
        num_samples = check_count("num_samples", num_samples, low=self.num_samples)
        self._set_options(replace(self.options, num_samples=num_samples))
        self.objective.resize(num_samples)

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
            z1: (B, D) features of the first view or modality; any float dtype, not normalised. Or, without z2, (V, B, D)
                features of V views; some objectives accept more than two. Or, without z2, (B, D) features of a single view, for
                objectives whose positives come from labels: supcon, scl, hscl.
            z2: (B, D) features of the second view or modality.
            index: (B,) integers, positions in the dataset. Two rows of one sample are not negatives of each other.
            labels: (B,) integers.
            negatives: (M, D) extra negatives shared by all anchors, or (B, M, D) separate extra negatives for each sample.
            negatives_index: (M,) or (B, M) positions of the extra negatives in the dataset: an extra negative of the anchor's
                own sample is ignored.

        Returns:
            One number; (B,) for ``reduction="none"``, on each of several processes the values of its own samples.

        Raises:
            TypeError: An argument is no tensor or has the wrong dtype, ``negatives`` were given to an objective that takes
                none, or a table was converted to half precision.
            ValueError: Shapes or devices do not fit, a required argument is missing, features are NaN or infinite, or there is
                nothing to contrast and ``on_empty="error"``.
            IndexError: A position outside the dataset.
            RuntimeError: A loss with state is called by a backward pass, as activation checkpointing would do.
        """
        call, group = Call(z1, z2, index, labels, negatives, negatives_index), self.options.process_group
        if self.training and group_size(self.options.gather, group) > 1:
            batch = uncompiled(shake_hands, group, partial(self._batch, call))
        else:
            batch = self._batch(call, None)
        for temperature in self._temperatures:
            temperature.follow(batch.x)
        with without_autocast(batch.x):
            reason = nothing_to_contrast(batch)
            if reason:
                return self._empty(batch, reason)
            values = self.objective(batch)
            self._last.keep(batch)
            whole = all_anchors_have_losses(self.card, batch)
            loss = reduced(values, batch, self.options.reduction, whole=whole)
            return self._empty(batch, "no anchor has both a positive and a negative") if loss is None else loss

    def _batch(self, call: Call, handshake: Handshake | None) -> Batch:
        """Check a call, and make its batch, or the joint batch of the calls of all processes."""
        refuse_broken_state(self.card, self._parts, self._tables if self.card.stateful and self.training else [])
        if self.training and (self.card.stateful or self.card.draws):
            refuse_recomputation(self.card)
        if self.training:
            refuse_transforms(self.card, self._parts, handshake is not None)
            if self.options.tables == "sharded":
                refuse_other_layout(self.card, self.objective, self.options, handshake)
        call.check(self.card, self.training)
        batch = self._maker.make(call, self.training, handshake, self._agreement)
        if handshake is not None and handshake.same and not self._warned_of_same_samples:
            self._warned_of_same_samples = True
            warnings.warn(
                f"ranks {' and '.join(map(str, handshake.same))} brought the same samples, by index, to {self.card.name!r}, "
                "and repeat each other's work. Give each rank its own share of the dataset, with a batch sampler of the zoo "
                "or a DistributedSampler.",
                stacklevel=2,
            )
        return batch

    def _agreement(self) -> dict[str, object]:
        """Values that must be equal on all processes, as far as the host knows them; an error here is raised on all of them."""
        common = {name: getattr(self, name) for name in COMPARED}
        given = {name: comparable(value) for name, value in self.settings.items() if name != "temperature"}
        return {"the name of the loss": self.card.name, **given, **common, **state_of(self.objective)}

    def _empty(self, batch: Batch, reason: str) -> Tensor:
        message = f"{self.card.name!r} has nothing to contrast: {reason}. The loss is 0 and no table was changed."
        if self.options.on_empty == "error":
            raise ValueError(message.replace("The loss is 0 and no", "No") + " Drop such batches, e.g. drop_last=True.")
        if not torch.compiler.is_compiling():
            warnings.warn(message, stacklevel=5)  # blame the caller's line, not forward or torch's own calls
        zero = batch.of_all(batch.x.unflatten(0, (-1, batch.views)).sum((1, 2)) * 0)
        for leaf in (*self.objective.parameters(), *([] if batch.negatives is None else [batch.negatives])):
            zero = zero + 0 * leaf.sum().to(zero)  # DDP needs a gradient for every parameter in every step
        return batch.pairs.share.own_values(zero) if self.options.reduction == "none" else zero.sum()

    @property
    def diagnostics(self) -> dict[str, Tensor]:
        """Detached statistics of the last step, including the objective's own statistics.

        "positive_similarity" is the mean similarity over pairs of views of one sample, "negative_similarity" the mean
        similarity over pairs of rows of different samples. Objectives that need labels use classes in place of samples: pairs
        of different rows of one class, and pairs of rows of different classes. Either mean is 0 if there is no such pair.
        "dropped_anchors" is the fraction of anchors that the loss leaves out. With ``gather="ring"`` similarities are those of
        this process's rows.
        """
        return self._last.figures(self._maker.pairs, by_class="labels" in self.needs)

    def table(self, index: Tensor | None = None) -> dict[str, Tensor]:
        """State per sample as CPU tensors in natural units; the objective's documentation explains each tensor.

        Args:
            index: (n,) positions of samples to read; by default all. With ``tables="sharded"`` an index is required, and all
                processes must call this, each with the positions that it wants.

        Raises:
            TypeError: The objective keeps no state per sample.
            ValueError: All rows are wanted of sharded tables; the message says how large they are.
            IndexError: A position is outside the dataset.
        """
        return read_table(self.card, self.objective, self.options, index)

    def load_table(self, **tables: Tensor) -> None:
        """Load state in the form that `table` returns; of sharded tables each process keeps its rows.

        Raises:
            TypeError: The objective keeps no state per sample, or a name is not one of its tables.
            ValueError: A table has another size.
        """
        load_table(self.card, self.objective, tables)

    def extra_repr(self) -> str:
        """Name and common arguments, for `print`."""
        shown = (f"{name}={getattr(self, name)!r}" for name in ("normalize", "reduction", "backend"))
        return ", ".join([repr(self.card.name), *shown])

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Refuse a loss that another version pickled, which would fail at its first call."""
        if not state.keys() >= {"card", "options", "_maker", "_parts", "_temperatures", "_last"}:
            raise RuntimeError("this loss was pickled by another version. Load its state_dict() into get_loss(...) instead.")
        super().__setstate__(state)  # type: ignore[no-untyped-call]
