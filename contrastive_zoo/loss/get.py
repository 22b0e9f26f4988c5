"""Losses by name."""

from typing import Any

from contrastive_zoo.batch.options import OPTIONS, Options
from contrastive_zoo.loss.module import Loss
from contrastive_zoo.objectives.base import FunctionObjective, Objective
from contrastive_zoo.processes.gather import group_size
from contrastive_zoo.registry import Card, keyword_parameters, losses
from contrastive_zoo.state.layout import Layout, dividing

NO_NEGATIVES = "This method contrasts no negatives, and the zoo holds contrastive objectives only."
losses.absent = {
    "moco": "Momentum contrast is 'infonce' with a queue of keys: get_loss('infonce', symmetric=False, in_batch=False), called "
    "as loss_fn(queries, keys, negatives=queue.negatives) with a zoo.samplers.FeatureQueue.",
    "supervised": "The supervised contrastive loss is 'supcon'.",
    "triplet": "The nearest is 'infonce', which compares a positive with all negatives at once.",
    **dict.fromkeys(("vicreg", "barlow", "byol", "simsiam", "swav", "dino", "w-mse", "wmse"), NO_NEGATIVES),
}


def get_loss(name: str, **params: Any) -> Loss:
    """Make a loss by name.

    Args:
        name: One of `list_losses()`, or an alias.
        **params: Parameters of the objective (see `describe_loss(name)`) and parameters common to all losses:
            num_samples (size of the dataset; ignored by losses without state),
            normalize ("sphere" = True, "ball", or "none" = False),
            reduction ("mean", "sum" or "none"),
            backend ("auto", "tiled", "dense", or "fused" on NVIDIA GPUs),
            gather ("auto" = True: contrast with the batches of all processes; "ring": the same, but each process holds its own
            features and one visiting block; False: only with this process's batch),
            gather_negatives (True: the samples of all processes meet the extra ``negatives`` (M, D) of all; False: each
            process's samples meet its own),
            process_group (None: the default group),
            tables ("replicated": each process holds all tables; "sharded": each holds a share of the rows, which needs an
            initialised process group and PyTorch 2.6; ignored by losses without state),
            embedding_dim (features per embedding, for losses that keep embeddings; by default taken from the first batch or
            checkpoint, which is too late for distributed checkpoints and model averaging),
            seed (for losses that use randomness),
            validate (True: also check values on accelerators, which forces a synchronisation),
            on_empty ("warn" or "error": what to do if a batch has nothing to contrast).

    Returns:
        A module to call as ``loss_fn(z1, z2, index=..., labels=...)``. Its ``state_dict()`` holds its tables, random state and
        temperature. A trainer, such as Lightning's or Hugging Face's, saves this state only if the loss is a submodule of the
        model that it trains.

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
    given = losses.parameters(card, params, OPTIONS)
    options = Options(**{key: value for key, value in params.items() if key in OPTIONS})
    return Loss(card, _build(card, given, options), given, options)


def _build(card: Card, given: dict[str, Any], options: Options) -> Objective:
    if not isinstance(card.build, type):
        return FunctionObjective(card.build, given)
    if card.stateful and options.num_samples is None:
        raise ValueError(f"{card.name!r} keeps state per sample: pass num_samples=len(dataset).")
    keeps_embeddings = "embedding_dim" in keyword_parameters(card.build)
    wanted = {"num_samples": card.stateful, "seed": card.draws, "embedding_dim": keeps_embeddings}
    layout = _layout(options) if card.stateful else Layout(0)
    with dividing(layout):
        objective = card.build(**given, **{name: getattr(options, name) for name, takes in wanted.items() if takes})
    if not isinstance(objective, Objective):
        raise TypeError(f"{card.name!r} is registered with {card.build!r}, which is no contrastive_zoo.Objective.")
    if layout.divided:
        objective.divide(layout)  # what was made before, such as a sampler
        if not objective.divided_shapes():
            raise ValueError(f"{card.name!r} keeps nothing per sample here, so it has no tables='sharded'. Use 'replicated'.")
    return objective


def _layout(options: Options) -> Layout:
    """The rows of tables per sample that this process holds."""
    assert options.num_samples is not None
    if options.tables == "sharded" and group_size(options.gather, options.process_group) > 1:
        return Layout.over(options.num_samples, options.process_group)
    return Layout(options.num_samples)


def list_losses() -> list[str]:
    """Names of all objectives, plugins included.

    Examples:
        >>> import contrastive_zoo as zoo
        >>> "ntxent" in zoo.list_losses()
        True
    """
    return losses.names()


def describe_loss(name: str) -> Card:
    """Summary of an objective: paper, equation, required arguments, parameters, scale, differences from the authors' code.

    Raises:
        ValueError: Unknown name.

    Examples:
        >>> import contrastive_zoo as zoo
        >>> zoo.describe_loss("simclr").name
        'ntxent'
    """
    return losses.card(name)


register_loss = losses.register


def check_loss(loss_fn: object) -> Loss:
    """Return ``loss_fn``; raise unless it is a loss of the zoo.

    Raises:
        TypeError: ``loss_fn`` is no loss of the zoo.
    """
    if not isinstance(loss_fn, Loss):
        raise TypeError(
            f"loss_fn must be a loss of the zoo, got {type(loss_fn).__name__}. Pass zoo.get_loss(name, ...), or the .module of "
            "a wrapper around it."
        )
    return loss_fn
