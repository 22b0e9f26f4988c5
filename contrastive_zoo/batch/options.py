"""Options of every loss, in addition to the parameters of its objective."""

from dataclasses import dataclass, fields

import torch
import torch.distributed as dist

from contrastive_zoo.checks import check_bool, check_choice, check_count
from contrastive_zoo.pairwise.backends import any_derivative, check_backend, named
from contrastive_zoo.processes.gather import check_group

# Whether DTensor and distributed checkpoints are as sharded tables need them.
SHARDING = tuple(int(number) for number in torch.__version__.split(".")[:2]) >= (2, 6)


@dataclass(frozen=True, eq=False)
class Options:
    """The parameters that all losses share; `get_loss` says what each means.

    Raises:
        TypeError: A number is not whole.
        ValueError: A value is out of range or not among the choices.
    """

    num_samples: int | None = None
    normalize: str | bool = "sphere"
    reduction: str = "mean"
    backend: str = "auto"
    gather: str | bool = "auto"
    gather_negatives: bool = False
    process_group: dist.ProcessGroup | None = None
    tables: str = "replicated"
    embedding_dim: int | None = None
    seed: int = 0
    validate: bool = False
    on_empty: str = "warn"

    def __post_init__(self) -> None:
        """Check the values and bring each into a canonical form."""
        gather = check_choice("gather", self.gather, ("auto", "ring", True, False))
        normalize = check_choice("normalize", self.normalize, (True, False, "sphere", "ball", "none"))
        one_form: dict[str, object] = {
            "normalize": normalize if isinstance(normalize, str) else "sphere" if normalize else "none",
            "reduction": check_choice("reduction", self.reduction, ("mean", "sum", "none")),
            "gather": "auto" if gather is True else gather,
            "tables": check_choice("tables", self.tables, ("replicated", "sharded")),
            "gather_negatives": check_bool("gather_negatives", self.gather_negatives),
            "validate": check_bool("validate", self.validate),
            "on_empty": check_choice("on_empty", self.on_empty, ("warn", "error")),
            "seed": check_count("seed", self.seed, low=0, high=2**63 - 1),
        }
        if one_form["gather_negatives"] and one_form["gather"] != "auto":
            reason = "keeps processes apart" if gather is False else "leaves rows with their process"
            raise ValueError(
                f"gather_negatives=True gives the negatives of each process to all, but gather={gather!r} {reason}. "
                "Use gather='auto', or leave gather_negatives out."
            )
        check_backend(self.backend)
        check_group(self.process_group)
        for name in ("num_samples", "embedding_dim"):
            value = getattr(self, name)
            one_form[name] = None if value is None else check_count(name, value)
        for name, value in one_form.items():
            object.__setattr__(self, name, value)
        if self.tables == "sharded":
            self._check_sharded()

    def _check_sharded(self) -> None:
        """Raise unless tables can be sharded."""
        if self.gather != "auto":
            raise ValueError(
                f"tables='sharded' needs gather='auto', got gather={self.gather!r}: all processes read the rows of one batch. "
                "Use tables='replicated'."
            )
        if not SHARDING:
            raise ValueError(f"tables='sharded' needs PyTorch 2.6 or newer, got {torch.__version__}. Use tables='replicated'.")

    @property
    def second_order(self) -> bool:
        """Whether the backend is plain autograd, which can be differentiated any number of times."""
        return any_derivative(self.backend)

    @property
    def divided(self) -> bool:
        """Whether processes can share sums over pairs: the backend computes parts of them."""
        return any(backend.parts for backend in named(self.backend))

    @property
    def norm_bound(self) -> float:
        """A bound on the length of all rows."""
        return float("inf") if self.normalize == "none" else 1.01  # half-precision rows may be a little longer than 1


OPTIONS = tuple(field.name for field in fields(Options))
