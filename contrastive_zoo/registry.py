"""Registries of objectives and samplers by name, with a summary (`Card`) of each."""

import importlib.metadata
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

from torch import Tensor

from contrastive_zoo.checks import as_scalar, check_bool, check_magnitude, check_name, check_number, check_parameters

REQUIRED = inspect.Parameter.empty
STATE_PARAMETERS = ("num_samples", "embedding_dim", "seed")  # of constructors, not of cards

T = TypeVar("T", bound=Callable[..., Any])


@dataclass(frozen=True)
class Range:
    """The interval that a number must lie in.

    Attributes:
        low: Lower end.
        high: Upper end.
        open_low: Whether the lower end is excluded.
        open_high: Whether the upper end is excluded.
        schedule: Whether a callable of the number of steps is accepted in place of the number.
    """

    low: float = float("-inf")
    high: float = float("inf")
    open_low: bool = False
    open_high: bool = False
    schedule: bool = False


POSITIVE = Range(0, open_low=True)


@dataclass(frozen=True)
class Card:
    r"""Summary of a registered method.

    Attributes:
        name: Registered name.
        build: The function of a batch, or the class, that implements the method.
        title: Full name of the method.
        summary: One line.
        paper: Reference.
        equation: The formula, in LaTeX.
        aliases: Alternative names.
        needs: Required arguments of a call, a subset of {"index", "labels"}.
        uses: Arguments that a call uses if given, a subset of {"index", "labels", "negatives", "views", "one_view"}; "views"
            means more than two views, "one_view" a single view.
        stateful: Whether the method keeps state between steps.
        draws: Whether the method uses randomness.
        per_sample: Whether the method has a value per sample, so reductions other than "mean" are meaningful.
        ring: Whether log-sum-exps, sums of softplus and of classes are all that is needed of the rows of other processes.
        parameters: Names and defaults; a parameter without a default must be given.
        ranges: Intervals of numeric parameters.
        check: Called with all parameters before the method is built; raises if the parameters are inconsistent.
        scale: How value and gradient relate to the authors' code; empty if nothing was compared.
        differences: Differences from the authors' code, with reasons.
    """

    name: str
    build: Callable[..., Any]
    title: str = ""
    summary: str = ""
    paper: str = ""
    equation: str = ""
    aliases: tuple[str, ...] = ()
    needs: frozenset[str] = frozenset()
    uses: frozenset[str] = frozenset({"index"})
    stateful: bool = False
    draws: bool = False
    per_sample: bool = True
    ring: bool = False
    parameters: dict[str, Any] = field(default_factory=dict)
    ranges: dict[str, Range] = field(default_factory=dict)
    check: Callable[..., None] | None = None
    scale: str = ""
    differences: tuple[str, ...] = ()

    def __str__(self) -> str:
        also = f" (also {', '.join(self.aliases)})" if self.aliases else ""
        rows = [f"{self.name}{also}: {self.title}", self.summary]
        rows += [f"  paper       {self.paper}", f"  equation    {self.equation}"]
        rows += [f"  needs       {', '.join(sorted(self.needs)) or 'nothing but features'}"]
        rows += [f"  uses        {', '.join(sorted(self.uses)) or 'nothing else'}"]
        rows += [f"  state       {'kept between steps' if self.stateful else 'none'}"]
        rows += [f"  randomness  {'draws, seeded' if self.draws else 'none'}"]
        shown = [f"{name} (required)" if value is REQUIRED else f"{name}={value!r}" for name, value in self.parameters.items()]
        rows += [f"  processes   {'gathered, or in a ring' if self.ring else 'gathered'}"]
        rows += [f"  parameters  {', '.join(shown) or 'none'}"]
        rows += [f"  scale       {self.scale}"] if self.scale else []
        rows += [f"  difference  {difference}" for difference in self.differences]
        return "\n".join(rows)

    def complete(self, given: dict[str, Any]) -> dict[str, Any]:
        """All parameters, with defaults filled in.

        Raises:
            TypeError: A parameter without a default is missing, or a parameter has the wrong type.
            ValueError: A parameter lies outside its interval, or the parameters are inconsistent.
        """
        parameters = {**self.parameters, **{name: value for name, value in given.items() if name in self.parameters}}
        missing = [name for name, value in parameters.items() if value is REQUIRED]
        if missing:
            raise TypeError(
                f"{self.name!r} needs {' and '.join(missing)}: pass {', '.join(f'{name}=...' for name in missing)}."
            )
        parameters = {name: self._checked(name, value) for name, value in parameters.items()}
        if self.check is not None:
            self.check(**parameters)
        return parameters

    def _checked(self, name: str, value: object) -> object:
        """A numeric or boolean value as a Python number or bool, other values unchanged; raises if out of range."""
        limits, default = self.ranges.get(name), self.parameters[name]
        if isinstance(default, bool):
            return check_bool(f"{name} of {self.name!r}", value)
        learned = name == "temperature" and isinstance(value, Tensor)
        if limits is None or learned or (limits.schedule and callable(value)) or (value is None and default is None):
            return value
        number = check_number(
            name, value, low=limits.low, high=limits.high, open_low=limits.open_low, open_high=limits.open_high
        )
        check_magnitude(name, number, divisor=limits.open_low and limits.low == 0)  # what must not be 0 is a divisor
        scalar = as_scalar(name, value)
        return scalar if isinstance(scalar, int) else number


class Registry:
    """Cards by name, ignoring case; plugins from an entry-point group are loaded on first use.

    Args:
        kind: What the names are names of, for messages.
        group: The entry-point group.

    Attributes:
        absent: What to say of well-known names that are not there: the beginning of such a name, in lower case, and a sentence.
    """

    def __init__(self, kind: str, group: str) -> None:
        self.kind = kind
        self.group = group
        self.absent: dict[str, str] = {}
        self._cards: dict[str, Card] = {}
        self._aliases: dict[str, str] = {}  # registered name of each name and alias in lower case

    def add(self, card: Card) -> None:
        """Add a card.

        Raises:
            ValueError: The name or an alias is taken, perhaps in another case.
        """
        for name in (card.name, *card.aliases):
            if _folded(name) in self._aliases:
                raise ValueError(f"the {self.kind} name {name!r} is taken. Choose another one.")
        self._cards[card.name] = card
        self._aliases.update(dict.fromkeys(map(_folded, (card.name, *card.aliases)), card.name))

    def _plugins(self) -> dict[str, importlib.metadata.EntryPoint]:
        return {point.name: point for point in importlib.metadata.entry_points(group=self.group)}

    def names(self) -> list[str]:
        """All names, plugins included, without aliases."""
        return sorted({*self._cards, *(name for name in self._plugins() if _folded(name) not in self._aliases)})

    def card(self, name: str) -> Card:
        """The card behind a name or an alias, in any case.

        Raises:
            ValueError: The name is unknown; the message lists all names, closest match first.
            ImportError: The plugin of this name fails to load, or does not register the name.
        """
        folded = _folded(name)
        if folded not in self._aliases:
            points = self._plugins()
            plugins = {_folded(known): point for known, point in points.items()}
            if folded not in plugins:
                aliases = {alias for card in self._cards.values() for alias in card.aliases}
                absent = next((sentence for known, sentence in self.absent.items() if folded.startswith(known)), "")
                check_name(self.kind, name, {*self._cards, *aliases, *points}, absent or self._elsewhere(folded), not absent)
            self._load(plugins[folded])
        return self._cards[self._aliases[folded]]

    def _elsewhere(self, folded: str) -> str:
        """Of which other kind a name is; empty if of none."""
        found = [(other.kind, other._aliases[folded]) for other in REGISTRIES if folded in other._aliases]
        return "".join(f"There is a {kind} {name!r}." for kind, name in found)

    def _load(self, point: importlib.metadata.EntryPoint) -> None:
        before = [(registry, dict(registry._cards), dict(registry._aliases)) for registry in REGISTRIES]
        try:
            point.load()
        except BaseException as error:  # a plugin may call sys.exit
            for registry, cards, names in before:
                registry._cards, registry._aliases = cards, names
            if isinstance(error, KeyboardInterrupt):
                raise
            reason = f"it called sys.exit({error.code!r})" if isinstance(error, SystemExit) else error
            message = f"the plugin {point.value!r} behind the {self.kind} {point.name!r} failed to load: {reason}"
            raise ImportError(message) from error
        if _folded(point.name) not in self._aliases:
            message = f"the plugin {point.value!r} was loaded but registered no {self.kind} {point.name!r}. "
            raise ImportError(f"{message}Its module must use the register decorator with that name.")

    def cards(self) -> Iterator[Card]:
        """All cards, in the order of their names."""
        return (self.card(name) for name in self.names())

    def register(
        self,
        name: str,
        *,
        title: str = "",
        summary: str = "",
        paper: str = "",
        equation: str = "",
        aliases: tuple[str, ...] = (),
        needs: frozenset[str] | set[str] = frozenset(),
        uses: frozenset[str] | set[str] = frozenset({"index"}),
        stateful: bool = False,
        draws: bool = False,
        per_sample: bool = True,
        ring: bool = False,
        ranges: dict[str, Range] | None = None,
        check: Callable[..., None] | None = None,
        scale: str = "",
        differences: tuple[str, ...] = (),
    ) -> Callable[[T], T]:
        """Make a decorator that registers a function or class under a name; see `Card` for the arguments.

        Keyword-only parameters of the decorated function or class become the parameters of the card.
        """

        def decorate(build: T) -> T:
            first_line = (build.__doc__ or "").strip().split("\n")[0]
            parameters = {key: value for key, value in keyword_parameters(build).items() if key not in STATE_PARAMETERS}
            self.add(
                Card(
                    name=name,
                    build=build,
                    title=title or name,
                    summary=summary or first_line,
                    paper=paper,
                    equation=equation,
                    aliases=tuple(aliases),
                    needs=frozenset(needs),
                    uses=frozenset(uses) | frozenset(needs),
                    stateful=stateful,
                    draws=draws,
                    per_sample=per_sample,
                    ring=ring,
                    parameters=parameters,
                    ranges={"temperature": POSITIVE} | (ranges or {}) if "temperature" in parameters else ranges or {},
                    check=check,
                    scale=scale,
                    differences=tuple(differences),
                )
            )
            return build

        return decorate

    def parameters(self, card: Card, given: dict[str, Any], common: tuple[str, ...] = ()) -> dict[str, Any]:
        """The parameters of a card from the given arguments, with defaults filled in.

        Raises:
            TypeError: A parameter is unknown, missing, or of the wrong type.
            ValueError: A parameter is out of its range.
        """
        check_parameters(f"{self.kind} {card.name!r}", given, [*card.parameters, *common])
        return card.complete(given)


def _folded(name: object) -> str:
    return name.strip().lower() if isinstance(name, str) else ""


losses = Registry("loss", "contrastive_zoo.losses")
samplers = Registry("sampler", "contrastive_zoo.samplers")
batch_samplers = Registry("batch sampler", "contrastive_zoo.batch_samplers")
REGISTRIES = (losses, samplers, batch_samplers)


def keyword_parameters(build: Callable[..., Any]) -> dict[str, Any]:
    """Keyword-only parameters of a function or class with their defaults; `inspect.Parameter.empty` without."""
    try:
        signature = inspect.signature(build)
    except ValueError:  # classes written in C have no signature
        return {}
    return {
        name: parameter.default
        for name, parameter in signature.parameters.items()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    }
