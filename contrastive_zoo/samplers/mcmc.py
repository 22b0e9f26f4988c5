r"""The sampler "mcmc": a Metropolis-Hastings chain per sample and view, which keeps its state between visits.

    accept row j if log u_j < (s_aj - s_a,state) / t

The target of the chain of anchor (i, v) is softmax(s_a / t) over all rows (j, v') of other samples in the dataset. At each
visit every row of the batch is proposed to the chain once, in a new random order.

Yau et al., "EMC2: Efficient MCMC Negative Sampling for Contrastive Learning with Global Convergence", ICML 2024,
algorithm 1. arXiv:2404.10575
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from contrastive_zoo.batch.batch import Batch
from contrastive_zoo.checks import check_count, check_number, shape
from contrastive_zoo.registry import Range, samplers
from contrastive_zoo.samplers.base import (
    Encode,
    Negatives,
    NegativeSampler,
    WeightedNegatives,
    check_encode,
    check_out_of_batch,
    data_rows,
    encode_rows,
)
from contrastive_zoo.samplers.randomness import column_order, inverse, step_seed
from contrastive_zoo.samplers.walk import Chains, KeptStates, kept_shares, walk_batch
from contrastive_zoo.samplers.walk_fused import walks
from contrastive_zoo.state.counters import StepCounter
from contrastive_zoo.state.saved import NOBODY, check_chains, check_table
from contrastive_zoo.state.tables import Averages, EmbeddingTable, LogAverage, check_natural

# Weight of the newest value in the running mean of the reported value, as in SogCLR.
VALUE_WEIGHT = 0.9


@samplers.register(
    "mcmc",
    title="Metropolis-Hastings chains",
    summary="A chain per sample and view whose law tends to softmax(s / temperature) over the dataset.",
    paper="Yau et al., ICML 2024, algorithm 1. arXiv:2404.10575",
    equation=r"\text{accept row } j \text{ if } \log u_j < (s_{aj} - s_{a,\mathrm{state}})/\tau",
    needs={"index"},
    stateful=True,
    draws=True,
    ranges={"burn_in": Range(0, 1, open_high=True)},
    check=check_out_of_batch,
)
class ChainSampler(NegativeSampler):
    r"""A Metropolis-Hastings chain per sample and view, with target softmax(s / temperature) over the rows of other samples.

    A chain continues from its state at the last visit, scored again for the current anchor. Of the nb rows of other samples in
    the batch the first k = int(burn_in nb) are burn-in; the states after each of the other nb - k rows have weight
    1 / (nb - k) each. `log_mean` is the logarithm of a running mean per sample of the batch's mean of $e^{s/\tau}$.

    Rows are proposed in a new random order at every step, the same for all anchors. A single random proposal leaves the softmax
    invariant; proposals without replacement do so approximately, if the batch is a small part of the dataset.

    Args:
        num_samples: Size of the dataset.
        burn_in: Fraction of each batch's rows whose states are not kept, in [0, 1).
        out_of_batch: How to treat a state carried from an earlier batch. "cache": the state is scored by its last embedding, a
            constant, and contributes to the gradient of the anchor while it is kept; the cache holds an embedding per sample
            and view. "encode": the state is encoded again, and both the state and the anchor get a gradient. "skip": the state
            keeps the score that it was accepted with, and contributes no gradient.
        encode: For "encode": maps (n,) positions in the dataset and (n,) views, 0 or 1, both int64, to features (n, D), which
            are normalised like the batch. Called once per step with all carried states, each once.
        embedding_dim: For "cache": features per embedding; by default taken from the first batch, or from a checkpoint.
        seed: Random seed.

    Raises:
        ValueError: A parameter is out of range or unknown, or `encode` is missing or never called.
        TypeError: `encode` cannot be called.

    Examples:
        >>> import contrastive_zoo as zoo
        >>> sampler = zoo.get_sampler("mcmc", num_samples=100, burn_in=0.25)
        >>> sampler.law
        'softmax(s / temperature) over all rows of other samples'
    """

    law = "softmax(s / temperature) over all rows of other samples"

    divisible = True

    chain: Tensor
    log_score: Tensor

    def __init__(
        self,
        *,
        num_samples: int,
        burn_in: float = 0.5,
        out_of_batch: str = "cache",
        encode: Encode | None = None,
        embedding_dim: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        check_out_of_batch(out_of_batch=out_of_batch, encode=encode)
        self.num_samples = check_count("num_samples", num_samples)
        self.burn_in = check_number("burn_in", burn_in, low=0, high=1, open_high=True)
        self.out_of_batch, self.encode = out_of_batch, check_encode(encode)
        self.seed, self.step = seed, StepCounter()
        self.averages = LogAverage(num_samples)
        # State of each chain as 2 * sample + view, `NOBODY` before its first move.
        self.register_table("chain", num_samples, 2, fill=NOBODY, per_sample=True)
        if out_of_batch == "cache":
            self.embeddings = EmbeddingTable(num_samples, 2, width=embedding_dim)
        elif out_of_batch == "skip":
            self.register_table("log_score", num_samples, 2, fill=0.0, per_sample=True)

    def sample(self, batch: Batch, scale: Tensor) -> Negatives:
        """See `NegativeSampler.sample`."""
        assert batch.index is not None
        fused = walks(batch.x, batch.pairs.backend)
        if batch.alone:
            self.step.place(batch.x)
        index = batch.placed(batch.index)
        chain, averages, scores = self._read(index)
        state = chain.flatten()
        similarity, score = self._carried(batch, state, scores, scale.detach())
        carried = torch.where(state >= 0, score, -torch.inf)
        proposed = self._proposed(batch, scale.detach(), carried, fused)
        kept = self._walk(batch, *proposed)
        surrogate = (kept.similarity + kept.carried_share * similarity) * scale
        listing = self._listing(batch, *proposed, state)
        log_u = self._remember(batch, index, state, averages, kept)
        diagnostics = {"acceptance_rate": kept.acceptance.mean(), "carried_share": kept.carried_share.mean()}
        return Negatives(surrogate, log_u.flatten(), listing, diagnostics)

    def _read(self, index: Tensor) -> tuple[Tensor, Averages, list[Tensor]]:
        """Chains and averages of samples, and with "skip" the log scores of the chains: one read of all tables."""
        scores = [self.log_score] if self.out_of_batch == "skip" else []
        held = self.layout.read(index, self.chain, self.averages.log_value, self.averages.visited, *scores)
        return held[0], Averages(*held[1:3]), list(held[3:])

    def _carried(self, batch: Batch, state: Tensor, scores: list[Tensor], scale: Tensor) -> tuple[Tensor, Tensor]:
        """(2B,) similarity of each anchor to its carried state, 0 if the state gives no gradient, and the state's log score."""
        x = batch.x
        if self.out_of_batch == "skip":
            return torch.zeros_like(x[:, 0]), scores[0].flatten().to(x.dtype)
        if self.out_of_batch == "cache":
            self.embeddings.fit(x.shape[1])
            embeddings = self.embeddings.rows.flatten(0, 1)
            (found,) = self.layout.read(state.clamp_min(0), embeddings, views=2)
            found = found.to(x.dtype)
        else:
            assert self.encode is not None
            features, place = encode_rows(batch, self.encode, state)
            found = features[place]
        similarity = torch.linalg.vecdot(x, found)
        return similarity, similarity.detach() * scale

    def _proposed(self, batch: Batch, scale: Tensor, carried: Tensor, fused: bool) -> tuple[Chains, Tensor]:
        """The chains of all rows, which meet the rows in random order; and the order."""
        seed = step_seed(self.seed, self.step.value)
        order = batch.placed(column_order(batch.x.shape[0], seed))
        chains = Chains(
            batch.x.index_select(0, order),
            scale,
            batch.placed(batch.ids)[order],
            carried[order],
            seed,
            burn_in=self.burn_in,
            uniform=batch.uniform,
            fused=fused,
            operand=batch.pairs.operand,
        )
        return chains, order

    def _walk(self, batch: Batch, chains: Chains, order: Tensor) -> KeptStates:
        """The walk; results refer to the rows in batch order."""

        def walk(x: Tensor, anchors: slice) -> KeptStates:
            return walk_batch(chains._replace(x=x, carried=chains.carried[anchors], first=anchors.start))

        kept = KeptStates(*batch.pairs.on_rows(walk, chains.x))
        back = inverse(order)
        similarity, state = kept.similarity[back], torch.where(kept.state >= 0, order[kept.state.clamp_min(0)], -1)[back]
        share, *others = torch.stack([kept.carried_share, *kept[3:]])[:, back].unbind()
        return KeptStates(similarity, share, state, *others)

    def _listing(self, batch: Batch, chains: Chains, order: Tensor, state: Tensor) -> Callable[[], WeightedNegatives]:
        chains = chains._replace(x=chains.x.detach())

        def listing() -> WeightedNegatives:
            shares, of_carried = kept_shares(chains)
            back = inverse(order)
            rows = torch.cat([data_rows(batch).expand(len(order), -1), state[:, None]], 1)
            weights = torch.cat([shares[back][:, back], of_carried[back][:, None]], 1)
            in_batch = torch.arange(len(order) + 1, device=order.device) < len(order)
            return WeightedNegatives(torch.where(weights > 0, rows, NOBODY), weights, in_batch.expand_as(weights))

        return listing

    @torch.no_grad()
    def _remember(self, batch: Batch, index: Tensor, state: Tensor, averages: Averages, kept: KeptStates) -> Tensor:
        """Update chains, their scores or embeddings, running means and the step; return log u, (B, 2)."""
        first = batch.placed(batch.sample_ids)
        moved = batch.per_view(kept.state >= 0)[first]
        self.layout.write(self.chain, index, batch.per_view(data_rows(batch)[kept.state.clamp_min(0)])[first], moved)
        sound = torch.isfinite(batch.per_view(kept.log_mean))[first]
        if self.out_of_batch == "cache":
            new = batch.x.detach().view(batch.size, 2, -1)[first].to(self.embeddings.rows)
            self.layout.write(self.embeddings.rows, index, new, sound[:, :, None])
        elif self.out_of_batch == "skip":
            score = batch.per_view(kept.log_score)[first].to(self.log_score)
            self.layout.write(self.log_score, index, score, sound)
        log_u = self.averages.blend(averages, batch.per_view(kept.log_mean), VALUE_WEIGHT)
        self.averages.write(index, log_u.logsumexp(1, keepdim=True) - math.log(2), first)
        self.step.advance()
        return log_u

    def table(self, index: Tensor | None = None) -> dict[str, Tensor]:
        """State of the chains and of the running means, as CPU tensors.

        ``chain`` (num_samples, 2) holds the state of each chain as 2 * sample + view, or -1; ``u`` and ``visited`` are
        (num_samples,). With "cache" the table also has ``embeddings`` (num_samples, 2, D), with "skip" ``log_score``
        (num_samples, 2).
        """
        (u,) = self.averages.natural(self.averages.held(index))
        tables = {"chain": self.chain, "visited": self.averages.visited} | self._scores()
        held = self.layout.held(index, *tables.values())
        return {name: tensor.cpu().clone() for name, tensor in zip(tables, held, strict=True)} | {"u": u}

    def load_table(
        self,
        *,
        chain: Tensor,
        u: Tensor,
        visited: Tensor,
        embeddings: Tensor | None = None,
        log_score: Tensor | None = None,
    ) -> None:
        """Load the result of `table`.

        Raises:
            TypeError: ``embeddings`` or ``log_score`` is missing, or given to a sampler that has no such table.
            ValueError: A size does not fit; a state is no row of the dataset or, with "cache", belongs to a sample that was not
                visited; an average is not positive; or an embedding or a score is not finite.
        """
        size = self.layout.size
        if check_table("chain", chain, self.chain).shape != (size, 2):
            raise ValueError(f"chain must be ({size}, 2), got {shape(chain)}.")
        check_natural(visited, {"u": u}, size, positive=True)
        given = {"embeddings": embeddings, "log_score": log_score}
        self._check_scores(chain, visited, {name: table for name, table in given.items() if table is not None})
        self.averages.load_natural(visited, u=u)
        self.chain.copy_(self.layout.own(chain))
        if embeddings is not None:
            self.embeddings.load(embeddings)
        if log_score is not None:
            self.log_score.copy_(self.layout.own(log_score))

    def _scores(self) -> dict[str, Tensor]:
        """The tables that hold the scores or embeddings of carried states."""
        if self.out_of_batch == "cache":
            return {"embeddings": self.embeddings.rows}
        return {"log_score": self.log_score} if self.out_of_batch == "skip" else {}

    def _check_scores(self, chain: Tensor, visited: Tensor, scores: dict[str, Tensor]) -> None:
        """Raise unless every state can be scored: a state without an embedding would have the score of a zero vector."""
        wanted = self._scores()
        if scores.keys() != wanted.keys():
            raise TypeError(
                f"out_of_batch={self.out_of_batch!r} wants the tables {', '.join(['chain', 'u', 'visited', *wanted])}; got "
                f"{', '.join(['chain', 'u', 'visited', *scores])}. Pass all that table() returned."
            )
        for name, table in scores.items():
            check_table(name, table, wanted[name])
            if table.dim() != wanted[name].dim() or table.shape[:2] != chain.shape:
                raise ValueError(f"{name} must have a shape that begins with {shape(chain)}, got {shape(table)}.")
        check_chains(chain, self.layout.size, visited if self.out_of_batch == "cache" else None)

    def check_saved(self, saved: dict[str, Tensor]) -> None:
        """See `PreciseModule.check_saved`."""
        super().check_saved(saved)
        chain, visited = saved.get("chain"), saved.get("averages.visited")
        if chain is not None:
            # Where processes divide the tables, the embeddings of states may be elsewhere.
            whole = self.out_of_batch == "cache" and not self.layout.divided
            fits = whole and visited is not None and visited.shape == (len(self.chain),)
            check_chains(chain, self.layout.size, visited if fits else None)
