"""What a step costs each process, as formulas; the tests count the same, and the documentation computes its tables from them.

A batch of B samples in two views of width D, on P processes together; N samples in the dataset, C classes in the batch, K
negatives drawn for each row. Rows and sums are float32, positions and labels int64. Products are counted where tiles are
computed again in the backward pass, as in every large batch.
"""

from typing import NamedTuple

FLOAT, INTEGER = 4, 8
# What a handshake sends: the size of the batch, and checksums of settings and of samples.
HANDSHAKE = 3


class Setting(NamedTuple):
    """Sizes of a step."""

    processes: int
    batch: int
    width: int
    dataset: int = 0
    draws: int = 0
    classes: int = 1
    integers: int = 1  # how many of index and labels are given


class Cost(NamedTuple):
    """Numbers that the formulas of a name are made of.

    Attributes:
        pairs: Matrix products of B x B pairs.
        within: The same over pairs of one class, of which there are C times fewer.
        table: Matrix products of B x N pairs of a row and a row of a table.
        drawn: Products of each of the 2 B rows with its K draws.
        squares: Products of B rows with a D x D matrix.
        sums: Floats per sample that are reduced forward.
        found: Integers per sample that are reduced forward.
        per_draw: Whether these are for each of K draws of each row, as many floats and integers.
        upstream: Floats per sample that are reduced backward, beside the gradients of rows.
        gradients: How often gradients of all rows are reduced.
        matrices: D x D matrices that are reduced.
        learned: Learned scales and biases.
    """

    pairs: float = 0
    within: float = 0
    table: float = 0
    drawn: float = 0
    squares: float = 0
    sums: int = 4
    found: int = 0
    per_draw: bool = False
    upstream: int = 0
    gradients: int = 1
    matrices: int = 0
    learned: int = 0

    def products(self, s: Setting) -> float:
        """Floating-point operations of all products of a step, of all processes together."""
        b, d = s.batch, s.width
        per_column = self.pairs * b * b + self.within * b * b / s.classes + self.table * b * s.dataset
        return 2 * d * (per_column + self.drawn * 2 * b * s.draws + self.squares * b * d)

    def reduced(self, s: Setting) -> int:
        """Bytes of all sums over processes in a step, forward and backward."""
        draws = 2 * s.draws * (FLOAT + INTEGER) if self.per_draw else 0
        per_sample = FLOAT * (self.sums + self.upstream + 2 * self.gradients * s.width) + INTEGER * self.found + draws
        return s.batch * per_sample + FLOAT * (self.matrices * s.width**2 + self.learned)

    def gathered(self, s: Setting) -> int:
        """Bytes that all processes together bring into gathers: rows, products of positives, positions and labels."""
        return s.batch * (FLOAT * (2 * s.width + 1) + INTEGER * s.integers) + INTEGER * HANDSHAKE * s.processes

    def sent(self, s: Setting) -> float:
        """Bytes that each process sends in a step, by ring algorithms: a gather passes on what others bring, a sum twice."""
        others = (s.processes - 1) / s.processes
        return others * (self.gathered(s) + 2 * self.reduced(s))


SYMMETRIC = Cost(pairs=8)  # all rows against all rows: each pair once, from both sides
TWO_TOWERS = Cost(pairs=4)  # rows of one view against rows of the other, both directions
EACH_VIEW = Cost(pairs=4)  # rows of each view against themselves
FROM_TABLE = {"sums": 4, "per_draw": True}
COSTS = {
    "alignment_uniformity": EACH_VIEW,
    "clip": TWO_TOWERS._replace(learned=1),
    "dcl": SYMMETRIC,
    "dclw": SYMMETRIC,
    "debiased": SYMMETRIC,
    "dhel": EACH_VIEW,
    "emc2": Cost(pairs=12, sums=10, found=2),
    "hcl": SYMMETRIC._replace(sums=8),
    "hscl": Cost(pairs=10, within=8, sums=10, upstream=2, gradients=2),
    "hucl": Cost(pairs=10, sums=10, upstream=2, gradients=2),
    "infonce": TWO_TOWERS,
    "isogclr": SYMMETRIC._replace(sums=6),
    "kcl": EACH_VIEW._replace(sums=2),
    "negative_cache": Cost(table=4, drawn=3, sums=4, per_draw=True),
    "ntxent": SYMMETRIC,
    "sampled": Cost(drawn=4, sums=4, per_draw=True),
    "scl": Cost(pairs=8, within=8, sums=6, upstream=2, gradients=2),
    "siglip": Cost(pairs=3, sums=1, learned=2),
    "sogclr": SYMMETRIC,
    "spectral_contrastive": Cost(squares=6, sums=1, matrices=2),
    "supcon": SYMMETRIC,
    "ucl": Cost(pairs=8, sums=6, upstream=2, gradients=2),
}
# Draws for each row by default.
DRAWS = {"negative_cache": 16, "sampled": 64}


def rows_gathered(s: Setting) -> int:
    """Bytes of the rows of all on a process, with a copy that sweeps read, and of their gradients, as many."""
    return 4 * 2 * s.batch * s.width * FLOAT


def rows_in_ring(s: Setting) -> int:
    """The same in a ring: own rows, a visiting block and the next one, each with a gradient."""
    return 6 * 2 * s.batch * s.width * FLOAT // s.processes


def sent_in_ring(s: Setting, towers: bool) -> float:
    """Bytes that a process sends in a ring, for one sum over pairs: blocks, and on the way back their gradients too."""
    block = 2 * s.batch * s.width * FLOAT / s.processes
    return 1.5 * (s.processes - 1) * block if towers else 3 * (s.processes // 2) * block


class Shards(NamedTuple):
    """What tables that are divided over processes add to a step.

    Attributes:
        rows: Bytes per sample of the batch's rows, which are added up over processes.
        embeddings: Whether embeddings of both views are added up too.
        found: Whether each process sends the K best of its shard, with scores and counts, to the processes of the anchors.
    """

    rows: int = 0
    embeddings: bool = False
    found: bool = False

    def sent(self, s: Setting) -> float:
        """Bytes that each process sends for them in a step."""
        added = s.batch * (self.rows + 2 * s.width * FLOAT * self.embeddings)
        swapped = 2 * s.batch * (16 * s.draws + 12) * self.found
        return (s.processes - 1) / s.processes * (2 * added + swapped)


SHARDS = {
    "sogclr": Shards(8),
    "isogclr": Shards(16),
    "emc2": Shards(24, embeddings=True),
    "negative_cache": Shards(embeddings=True, found=True),
    "sampled": Shards(16, embeddings=True),
}
