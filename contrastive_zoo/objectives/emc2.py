r"""EMC2: the contrastive loss over the whole data set, with negatives drawn by a Markov chain per sample and view.

    grad l_a = -grad s_ap/t + E_{n ~ softmax(s_a./t)} grad s_an/t

The expectation is over all rows of other samples in the data set. A Metropolis-Hastings chain per (sample, view) has it as
target: it walks over the rows of each batch that holds the sample, and rests at its state until the next visit.

Yau et al., "EMC2: Efficient MCMC Negative Sampling for Contrastive Learning with Global Convergence", ICML 2024,
algorithm 1. arXiv:2404.10575
"""

import math
from typing import Any

import torch
from torch import Tensor

from contrastive_zoo.batch import Batch
from contrastive_zoo.checks import check_choice
from contrastive_zoo.objective import Objective, StepCounter
from contrastive_zoo.registry import Range, losses
from contrastive_zoo.samplers.mcmc import ChainSampler, SampledNegatives
from contrastive_zoo.tables import LogAverage

# Weight of the newest value in the running mean that is reported, as in SogCLR.
VALUE_WEIGHT = 0.9


@losses.register(
    "emc2",
    title="EMC2, efficient MCMC negative sampling",
    summary="Contrasts with the whole data set through negatives from a Markov chain per sample and view.",
    paper="Yau et al., ICML 2024, algorithm 1. arXiv:2404.10575",
    equation=r"-\frac{s_{ap}}{\tau} + \log \frac{1}{|\mathcal{N}_a|} \sum_{n \in \mathcal{N}_a} e^{s_{an}/\tau},\quad"
    r"\text{gradient with } n \sim \mathrm{softmax}(s_{a\cdot}/\tau)",
    needs={"index"},
    stateful=True,
    draws=True,
    ranges={"burn_in": Range(0, 1, open_high=True)},
    scale="Authors' gradient times 1, up to their burn-in of one column more.",
    differences=(
        "A chain per sample and view; the authors hand one chain from view 1 on to view 2.",
        "The carried state is scored anew for the present anchor, from a cache of last embeddings; theirs keeps"
        " its old score (out_of_batch='skip' does too).",
        "Exactly nb - k of the nb valid columns are kept; theirs loses one more and divides carried ones by nb.",
        "Scores are compared in log space; columns of the own sample, duplicates included, are never accepted.",
        "A carried state that is kept pulls on the anchor only, its cached embedding being a constant.",
        "The value is an estimate of the global objective; theirs is a surrogate for the gradient alone.",
    ),
)
class EMC2(Objective):
    r"""Loss of each anchor, (B, 2); value and gradient are different estimates, joined.

    The gradient of anchor a is $-\nabla s_{ap}/\tau$ plus the mean of $\nabla s_{an}/\tau$ over the kept states n of its
    chain. The value is $-s_{ap}/\tau + \log u$, u a running mean per sample of the batch's mean of $e^{s/\tau}$.

    As in the authors' code, a chain is offered each row of the batch once, in batch order. One such offer leaves softmax as it
    is if the row is drawn at random; a batch that holds most of the data set offers without replacement, and there the chain
    favours other states than softmax does.

    In `eval()` the batch's own mean takes the place of u; no table is read or written and nothing is drawn.

    Args:
        num_samples: Size of the data set.
        temperature: Divides the similarities.
        burn_in: Share of each batch's valid columns whose states are not kept, in [0, 1).
        out_of_batch: What becomes of a state carried from an earlier batch. "cache": it is scored for the present anchor by
            the embedding it had when last seen, and pulls on the anchor as long as it is kept; this holds an embedding per
            sample and view. "skip": it keeps the score that it was accepted with, and pulls on nothing; no embedding is held.
        seed: Seed of the draws.

    Raises:
        ValueError: A parameter is out of range or unknown.

    Examples:
        >>> import torch
        >>> import contrastive_zoo as zoo
        >>> loss_fn = zoo.get_loss("emc2", num_samples=100, temperature=0.5)
        >>> z1, z2 = torch.randn(2, 8, 4)
        >>> loss = loss_fn(z1, z2, index=torch.arange(8))
        >>> 0 <= float(loss_fn.diagnostics["acceptance_rate"]) <= 1
        True
    """

    chain: Tensor
    embeddings: Tensor
    log_score: Tensor

    def __init__(
        self,
        *,
        num_samples: int,
        temperature: float | Tensor = 0.1,
        burn_in: float = 0.5,
        out_of_batch: str = "cache",
        seed: int = 0,
    ) -> None:
        super().__init__(temperature)
        check_choice("out_of_batch", out_of_batch, ("cache", "skip"))
        self.out_of_batch = out_of_batch
        self.sampler = ChainSampler(burn_in=burn_in, seed=seed)
        self.step = StepCounter()
        self.averages = LogAverage(num_samples)
        # State of each chain as 2 * sample + view, -1 before its first move.
        self.register_buffer("chain", torch.full((num_samples, 2), -1, dtype=torch.int64))
        if out_of_batch == "cache":
            # Last embedding of each sample and view; the width is known from the first batch on.
            self.register_buffer("embeddings", torch.zeros(num_samples, 2, 0))
        else:
            self.register_buffer("log_score", torch.zeros(num_samples, 2))

    def forward(self, batch: Batch) -> Tensor:
        """See `Objective.forward`."""
        scale = 1 / self.temperature
        positive = batch.positive_similarity() * scale
        if not self.training:
            return batch.logsumexp(scale) - batch.negatives_count().clamp_min(1).to(batch.x).log() - positive
        assert batch.index is not None
        index = batch.index.to(batch.x.device)
        similarity, score = self._carried(index, batch.x, scale.detach())
        sampled = self.sampler(
            batch.x,
            scale=scale,
            ids=batch.ids,
            step=self.step.value,
            carried=torch.where(self.chain[index].flatten() >= 0, score, -torch.inf),
            uniform=batch.uniform,
        )
        surrogate = batch.per_view(sampled.similarity + sampled.carried_share * similarity) * scale
        log_u = self._remember(batch, index, sampled)
        batch.diagnostics["acceptance_rate"] = sampled.acceptance.mean()
        batch.diagnostics["carried_share"] = sampled.carried_share.mean()
        return log_u + (surrogate - surrogate.detach()) - positive

    def _carried(self, index: Tensor, x: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        """(2B,) similarity of each anchor to its carried state, as far as it pulls on it, and the state's log score."""
        if self.out_of_batch == "skip":
            return torch.zeros_like(x[:, 0]), self.log_score[index].flatten().to(x.dtype)
        if self.embeddings.shape[2] == 0:
            self.embeddings = self.embeddings.new_zeros(*self.embeddings.shape[:2], x.shape[1])
        if self.embeddings.shape[2] != x.shape[1]:
            raise ValueError(
                f"z1 has {x.shape[1]} features per row but earlier batches had {self.embeddings.shape[2]}. "
                "One loss serves one encoder: make a new loss for another width."
            )
        found = self.embeddings.flatten(0, 1)[self.chain[index].flatten().clamp_min(0)].to(x.dtype)
        similarity = torch.linalg.vecdot(x, found)
        return similarity, similarity.detach() * scale

    @torch.no_grad()
    def _remember(self, batch: Batch, index: Tensor, sampled: SampledNegatives) -> Tensor:
        """Moves chains, their scores or embeddings, running means and the step on; returns log u, (B, 2)."""
        first = batch.sample_ids.to(index.device)
        rows = (2 * index[:, None] + torch.arange(2, device=index.device)).flatten()
        state = torch.where(sampled.state >= 0, rows[sampled.state.clamp_min(0)], self.chain[index].flatten())
        self.chain[index] = state.view(-1, 2)[first]
        last = self.embeddings if self.out_of_batch == "cache" else self.log_score
        new = batch.x.detach().view(batch.size, 2, -1) if self.out_of_batch == "cache" else batch.per_view(sampled.log_score)
        sound = torch.isfinite(batch.per_view(sampled.log_mean))
        sound = sound[:, :, None] if last.dim() == 3 else sound
        last[index] = torch.where(sound[first], new[first].to(last), last[index])
        log_u = self.averages.blend(index, batch.per_view(sampled.log_mean), VALUE_WEIGHT)
        self.averages.write(index, log_u.logsumexp(1, keepdim=True) - math.log(2), first)
        self.step.advance()
        return log_u

    def table(self) -> dict[str, Tensor]:
        """``chain`` (num_samples, 2), state of each chain as 2 * sample + view or -1; ``u`` and ``visited`` (num_samples,)."""
        (u,) = self.averages.natural()
        return {"chain": self.chain.cpu().clone(), "u": u, "visited": self.averages.visited.cpu().clone()}

    def load_table(self, *, chain: Tensor, u: Tensor, visited: Tensor) -> None:
        """Take over what `table` returned; the cache of embeddings is part of `state_dict` only.

        Raises:
            ValueError: A size does not fit, a state is no row of the data set, or an average is not positive.
        """
        if chain.shape != self.chain.shape or not bool(((chain >= -1) & (chain < self.chain.numel())).all()):
            raise ValueError(f"chain must be {tuple(self.chain.shape)} with entries from -1 to {self.chain.numel() - 1}.")
        self.averages.load_natural(visited, u=u)
        self.chain.copy_(chain)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        saved = state_dict.get(f"{prefix}embeddings")
        if self.out_of_batch == "cache" and isinstance(saved, Tensor) and saved.shape[:2] == self.embeddings.shape[:2]:
            self.embeddings = self.embeddings.new_zeros(saved.shape)
        super()._load_from_state_dict(state_dict, prefix, *args)
