"""What every loss promises, and for which names it does not hold and why; the tests and the documentation read it.

A test marked ``@guaranteed("key")`` runs for every registered name that the promise concerns. Where an exception is declared,
the test must fail, so that an exception that is none any more is noticed.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import contrastive_zoo as zoo
from contrastive_zoo import Card

Predicate = Callable[[Card, dict[str, Any]], bool]


class Except(NamedTuple):
    """Names that a promise does not hold for.

    Attributes:
        which: Called with the card and the parameters that are not defaults.
        reason: Why, and what to do instead; a sentence for users.
    """

    which: Predicate
    reason: str


class Guarantee(NamedTuple):
    """A promise.

    Attributes:
        theme: Table of the documentation that it stands in.
        column: Heading there.
        claim: What is promised, a sentence for users.
        concerns: Whether it means anything for a name.
        exceptions: For whom it does not hold.
    """

    theme: str
    column: str
    claim: str
    concerns: Callable[[Card], bool] = lambda card: True
    exceptions: tuple[Except, ...] = ()

    def exception(self, card: Card, params: dict[str, Any]) -> str:
        """Why the promise does not hold for a name with these parameters; empty if it does."""
        return next((exception.reason for exception in self.exceptions if exception.which(card, params)), "")


def stateful(card: Card, params: dict[str, Any] | None = None) -> bool:
    return card.stateful


def estimated(card: Card, params: dict[str, Any]) -> bool:
    """Whether value and gradient are different estimates; of samplers, those of a softmax over the dataset make them so."""
    return card.stateful and {"sampler": "mcmc", **card.parameters, **params}["sampler"] in ("mcmc", "gumbel")


def draws(card: Card, params: dict[str, Any]) -> bool:
    """Whether it draws with these parameters; not if its sampler does not, or without ``num_negatives``."""
    given = {"num_negatives": 1, **card.parameters, **params}
    if "sampler" in given:
        return zoo.describe_sampler(given["sampler"]).draws
    return card.draws and given["num_negatives"] is not None


def moves(card: Card, params: dict[str, Any]) -> bool:
    return card.stateful or card.draws


def reweighted(card: Card, params: dict[str, Any]) -> bool:
    return card.name == "dclw" or (card.name in ("hucl", "hscl") and not draws(card, params))


def without_samples(card: Card, params: dict[str, Any]) -> bool:
    return not card.per_sample


def has_temperature(card: Card) -> bool:
    return "temperature" in card.parameters


def lazy_table(card: Card, params: dict[str, Any]) -> bool:
    """Whether a table gets its width from the first batch."""
    return any(buffer.numel() == 0 for buffer in zoo.get_loss(card.name, num_samples=4, **params).buffers())


NUMBERS, COMPILED, STATE, TRAINING = "Numbers", "Compiled", "State", "Training loops"

GUARANTEES: dict[str, Guarantee] = {
    "derivative": Guarantee(
        NUMBERS,
        "derivative",
        "In float64 the gradient is the derivative of the value that is returned, by finite differences.",
        exceptions=(
            Except(
                estimated,
                "The value estimates the objective over the whole dataset, and the gradient is the method's own estimator of "
                "that objective's gradient; the tests hold it against the formula on the objective's page.",
            ),
            Except(
                reweighted,
                "The weights of the pairs are constants to the gradient, as in the code that the method is known by.",
            ),
        ),
    ),
    "backends": Guarantee(
        NUMBERS,
        "backends",
        'Value and gradients of `backend="tiled"` and `"dense"` are equal up to rounding, in `eval()` too.',
    ),
    "half": Guarantee(
        NUMBERS,
        "half",
        "Half-precision features and autocast, bfloat16 and float16, round the rows and nothing else; sums are float32.",
    ),
    "finite": Guarantee(
        NUMBERS,
        "finite",
        "Value, gradient and tables are finite for all finite features, from 1e-18 to 1e18, zero rows included, "
        "at all temperatures from 0.005 to 10.",
    ),
    "order": Guarantee(
        NUMBERS,
        "order",
        "The order of samples in a batch changes nothing.",
        exceptions=(Except(draws, "Draws go by the place in the batch: another order is another draw of the same law."),),
    ),
    "reductions": Guarantee(
        NUMBERS,
        "reductions",
        '`reduction="none"` gives a value per sample, and its mean and sum are those of `"mean"` and `"sum"`.',
        exceptions=(Except(without_samples, "The objective has no value per sample; asking for one is an error."),),
    ),
    "empty": Guarantee(
        NUMBERS, "empty", "A batch with nothing to contrast is a zero with a gradient of zeros, one warning, no table changed."
    ),
    "compile": Guarantee(
        COMPILED,
        "one graph",
        "`torch.compile(loss_fn, fullgraph=True)` makes one graph, with the numbers and tables of eager mode.",
    ),
    "compile with encoder": Guarantee(
        COMPILED,
        "with the encoder",
        "So does a module that holds encoder and loss; a smaller last batch compiles once more at most.",
    ),
    "recompile": Guarantee(
        COMPILED, "no recompilation", "Neither a new temperature nor a smaller last batch, after the first, compiles again."
    ),
    "resume": Guarantee(
        STATE, "resume", "`state_dict()` loads strictly, with `weights_only=True`, and the run goes on bit for bit."
    ),
    "copies": Guarantee(STATE, "copies", "`copy.deepcopy` and `pickle` make losses that go on by themselves, in the same way."),
    "spawn": Guarantee(STATE, "spawned process", "A loss that has been used can be sent to a spawned process."),
    "temperature": Guarantee(
        STATE,
        "temperature",
        "A temperature that was set or learned is in `state_dict()`, under one key for numbers and parameters.",
        concerns=has_temperature,
    ),
    "bounded": Guarantee(
        NUMBERS,
        "learned temperature",
        "A learned temperature counts as the nearest value in [0.001, 10], and gets only gradients that lead back into it.",
        concerns=has_temperature,
    ),
    "meta": Guarantee(
        STATE,
        "meta device",
        "A loss made on the meta device is complete after `to_empty` and `load_state_dict` or `reset_parameters()`.",
    ),
    "sharded checkpoint": Guarantee(
        STATE,
        "distributed checkpoint",
        "A fresh loss loads a checkpoint of `torch.distributed.checkpoint`, if `embedding_dim` is given.",
    ),
    "freed": Guarantee(
        TRAINING, "graph freed", "The graph of the encoder is freed together with the value of the loss, not at the next call."
    ),
    "tables": Guarantee(
        STATE,
        "precise tables",
        "Tables are in float32 at least, whatever `.half()`, `.bfloat16()`, the default dtype or a checkpoint say.",
        concerns=stateful,
    ),
    "eval": Guarantee(STATE, "eval", "`eval()` needs no index, reads and moves no table, and is repeatable."),
    "no_grad": Guarantee(
        STATE,
        "no_grad",
        "A training step under `torch.no_grad()` moves tables as any other does; for validation call `eval()`.",
        concerns=stateful,
    ),
    "averaged": Guarantee(
        STATE,
        "averages of models",
        "`AveragedModel` takes a module that holds the loss, from before the first step on, and copies its tables.",
        exceptions=(
            Except(
                lazy_table,
                "The table of embeddings gets its width from the first batch: give `embedding_dim`, make the average after the "
                "first step, or keep the loss out of what is averaged.",
            ),
        ),
    ),
    "accumulation": Guarantee(
        TRAINING, "accumulation", "Gradients of several calls add up in `.grad`; each call moves tables as a step of its own."
    ),
    "caching": Guarantee(
        TRAINING,
        "gradient caching",
        "`cached_backward` gives the gradients and tables of the whole batch, whatever the chunks.",
    ),
    "caching in processes": Guarantee(
        TRAINING, "caching with DDP", "So it does under `DistributedDataParallel`, with one reduction of gradients per step."
    ),
    "checkpointed encoder": Guarantee(
        TRAINING, "encoder checkpointed", "Activation checkpointing of the encoder changes neither gradients nor tables."
    ),
    "checkpointed loss": Guarantee(
        TRAINING,
        "loss checkpointed",
        "Nor does that of the loss, which saves nothing, as a loss holds little more than its features.",
        exceptions=(
            Except(
                moves,
                "The repeated forward pass would move tables or draws twice in one step, so it raises. Checkpoint the encoder "
                "only.",
            ),
        ),
    ),
    "skipped": Guarantee(
        TRAINING,
        "skipped AMP steps",
        "A step that `GradScaler` skips leaves parameters as they were. Tables have moved: they follow forward passes.",
    ),
    "learned": Guarantee(
        TRAINING,
        "learned parameters",
        "What the loss itself learns is in `parameter_groups(loss_fn)`, gets a gradient, and no weight decay.",
        concerns=lambda card: bool({"temperature", "init_scale"} & set(card.parameters)),
    ),
    "processes": Guarantee(
        TRAINING,
        "many processes",
        "2, 3 and 4 processes, with equal and unequal batches, have the value, gradients and tables of one with all samples.",
    ),
    "ring": Guarantee(
        TRAINING,
        "a ring of processes",
        '2, 3 and 4 processes do so with `gather="ring"` too, where none holds more rows than its own and a visiting block.',
        exceptions=(
            Except(
                lambda card, params: not card.ring,
                "It needs more of the rows of other processes than log-sum-exps and sums of softplus, and refuses.",
            ),
            Except(draws, "Draws from the rows of all processes are refused. Leave `num_negatives` out."),
        ),
    ),
}
