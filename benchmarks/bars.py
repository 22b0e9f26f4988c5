"""What was measured and what was wanted, as rows, bars and Markdown tables."""

from dataclasses import dataclass

from harness import DIMENSION, number, table

SWEEP = "bare sweep"
TILE_MEGABYTES = 18.0

# Batch size -> times faster that is wanted (and the stretch).
FASTEST_PEER = {256: (1.1, 2.0), 1024: (2.5, 3.5), 4096: (3.5, 4.5)}
PUBLISHED_PEER = {1024: 2.0, 4096: 4.0}
CLIP_COMPILED = {1024: 1.0, 4096: 1.5}


@dataclass(frozen=True)
class Row:
    """One contestant at one batch size; `ratio` is its time over the zoo's, `others` the load by other processes."""

    objective: str
    batch_size: int
    contestant: str
    kind: str
    milliseconds: float
    quartiles: tuple[float, float]
    fastest: float
    ratio: float
    megabytes: float | None
    others: float


@dataclass(frozen=True)
class Bar:
    """A number to meet. `measured` must be at least `wanted`, or at most where `at_most`; so for the stretch."""

    objective: str
    batch_size: int
    what: str
    measured: float
    wanted: float | None
    stretch: float | None = None
    at_most: bool = False

    @property
    def verdict(self) -> str:
        """Whether the bar, or the stretch where that is all there is, was met."""
        if self._reaches(self.stretch):
            return "met, stretch too"
        if self.wanted is None:
            return "stretch missed"
        return "met" if self._reaches(self.wanted) else "MISSED"

    def _reaches(self, limit: float | None) -> bool:
        if limit is None:
            return False
        return self.measured <= limit if self.at_most else self.measured >= limit


def bars(rows: list[Row]) -> list[Bar]:
    """The numbers to meet, for the rows of one objective at one batch size."""
    title, batch_size = rows[0].objective, rows[0].batch_size
    found = []

    def against(what: str, kinds: tuple[str, ...], wanted: float | None, stretch: float | None = None) -> None:
        peers = [row for row in rows if row.kind in kinds]
        if wanted is not None and peers:
            best = min(peers, key=lambda row: row.ratio)
            what = f"times faster than {what} ({best.contestant})"
            found.append(Bar(title, batch_size, what, best.ratio, wanted, stretch))

    if title == "ntxent":
        kinds = ("bare", "compiled", "package")
        against("the fastest peer", kinds, *FASTEST_PEER.get(batch_size, (None, None)))
    elif title == "clip":
        against("compiled torch", ("compiled",), CLIP_COMPILED.get(batch_size))
    else:
        against("the best published code", ("package", "authors"), PUBLISHED_PEER.get(batch_size))
    return [*found, *_against_sweep(rows), *_memory(rows)]


def _against_sweep(rows: list[Row]) -> list[Bar]:
    sweep = [row for row in rows if row.contestant == SWEEP and row.batch_size >= 1024]
    limits = (1.4, 1.15) if rows[0].objective == "ntxent" else (None, 1.3)
    what = "time over the bare sweep"
    return [Bar(row.objective, row.batch_size, what, 1 / row.ratio, *limits, at_most=True) for row in sweep]


def _memory(rows: list[Row]) -> list[Bar]:
    """Three times the bytes of the features of two views, and the tiles."""
    limit = 3 * 2 * rows[0].batch_size * DIMENSION * 4 / 1e6 + TILE_MEGABYTES
    zoo = [row for row in rows if row.kind == "zoo" and row.megabytes is not None]
    return [Bar(row.objective, row.batch_size, "extra peak MB", row.megabytes, limit, at_most=True) for row in zoo]


def render_rows(rows: list[Row]) -> str:
    header = ("objective", "B", "contestant", "ms", "quartiles", "over the zoo", "extra MB", "other load")
    cells = []
    for row in rows:
        spread = " - ".join(map(number, row.quartiles))
        measured = number(row.milliseconds), spread, f"{row.ratio:.2f}", number(row.megabytes), f"{row.others:.0%}"
        cells.append((row.objective, row.batch_size, row.contestant, *measured))
    return table(header, cells)


def render_bars(found: list[Bar]) -> str:
    header = ("objective", "B", "what", "measured", "bar", "stretch", "")
    cells = []
    for bar in found:
        numbers = map(number, (bar.measured, bar.wanted, bar.stretch))
        cells.append((bar.objective, bar.batch_size, bar.what, *numbers, bar.verdict))
    return table(header, cells)
