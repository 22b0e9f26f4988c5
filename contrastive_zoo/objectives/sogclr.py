r"""SogCLR: the contrastive loss over the whole data set, from batches of any size.

    l_a = -s_ap/t + log u_a,    u_a = (1 - gamma) u[i] + gamma mean_{b : id_b != id_a} exp(s_ab/t)

u[i] is a moving average per sample i. The gradient is that of -s_ap/t + exp(lse_a - log n - log u_a) with u_a constant: the
batch's softmax, its normaliser replaced by the long-run one.

Yuan et al., "Provable Stochastic Optimization for Global Contrastive Learning: Small Batch Does Not Harm Performance",
ICML 2022, algorithm 1. arXiv:2202.12387
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from contrastive_zoo.batch.batch import Batch
from contrastive_zoo.checks import check_number
from contrastive_zoo.objectives.base import Objective
from contrastive_zoo.registry import Range, losses
from contrastive_zoo.schedules import scheduled_weight
from contrastive_zoo.state.modules import StepCounter
from contrastive_zoo.state.tables import LogAverage

Schedule = Callable[[Tensor], "Tensor | float"]


@losses.register(
    "sogclr",
    title="SogCLR, stochastic optimisation of the global contrastive loss",
    summary="Contrasts with the whole data set through a moving average per sample; small batches do no harm.",
    paper="Yuan et al., ICML 2022, algorithm 1. arXiv:2202.12387",
    equation=r"-\frac{s_{ap}}{\tau} + \log u_a,\quad "
    r"u_a = (1-\gamma)\,u[i] + \gamma\,\frac{1}{n}\sum_{b:\,\mathrm{id}_b\ne\mathrm{id}_a} e^{s_{ab}/\tau}",
    needs={"index"},
    uses={"views"},
    stateful=True,
    ranges={"gamma": Range(0, 1, open_low=True, schedule=True)},
    scale="Authors' gradient (LibAUC) = 2 tau times ours; with two modalities (B - 1) tau times ours.",
    differences=(
        "A sample visited for the first time takes its batch average as u, whatever gamma and whoever else is in the batch.",
        "u is kept in log space, without the authors' floors.",
        "The value is log u, an estimate of the global objective; the authors return a surrogate for the gradient alone.",
        "With two modalities u averages exp(s/tau); the authors average exp((s_ij - s_ii)/tau).",
    ),
)
class SogCLR(Objective):
    r"""Loss of each anchor, (B, V); value and gradient are different estimates, joined.

    $$\ell_a = -s_{ap}/\tau + \log u_a, \qquad
      \nabla \ell_a = -\frac{\nabla s_{ap}}{\tau}
      + \frac{1}{n u_a} \sum_{b : \mathrm{id}_b \ne \mathrm{id}_a} e^{s_{ab}/\tau}\, \frac{\nabla s_{ab}}{\tau}$$

    In `eval()` the batch's own mean takes the place of u; no table is read or written.

    Args:
        num_samples: Size of the data set.
        temperature: Divides the similarities.
        gamma: Weight of the new value in the moving average, in (0, 1]; or a schedule, a callable from the number of steps so
            far (0-dim tensor) to the weight, such as `CosineSchedule(1.0, 0.2, steps)`.
        intra_view: Whether all views are of one modality, so that each row contrasts with the other samples' rows of all
            views and a sample has one average; if not, each row contrasts with the other modality only, and has its own.

    Raises:
        ValueError: A parameter is out of range; at a call, what the schedule returned is.

    Examples:
        >>> import torch
        >>> import contrastive_zoo as zoo
        >>> loss_fn = zoo.get_loss("sogclr", num_samples=100, temperature=0.5, gamma=zoo.CosineSchedule(1.0, 0.2, steps=1000))
        >>> z1, z2 = torch.randn(2, 8, 4)
        >>> loss = loss_fn(z1, z2, index=torch.arange(8))
        >>> int(loss_fn.table()["visited"].sum())
        8
    """

    def __init__(
        self,
        *,
        num_samples: int,
        temperature: float | Tensor = 0.1,
        gamma: float | Schedule = 0.9,
        intra_view: bool = True,
    ) -> None:
        super().__init__(temperature)
        self.gamma = gamma
        self._agreed_weight: float | Tensor | None = None
        self.intra_view = intra_view
        self.step = StepCounter()
        self.averages = LogAverage(num_samples, sides=1 if intra_view else 2)

    def forward(self, batch: Batch) -> Tensor:
        """See `Objective.forward`."""
        if batch.views > 2 and not self.intra_view:
            raise ValueError(f"intra_view=False contrasts two modalities, z1 holds {batch.views} views. Give it two.")
        scale = 1 / self.temperature
        negatives = batch.logsumexp(scale) if self.intra_view else self._across_modalities(batch, scale)
        log_mean = negatives - self._log_count(batch)
        if self.training:
            log_mean = self._against_averages(batch, log_mean)
        return log_mean - batch.positive_similarity() * scale

    def _log_count(self, batch: Batch) -> Tensor:
        """Logarithm of the number of negatives of each sample, (B, 1)."""
        count = batch.negatives_count(views=batch.views if self.intra_view else 1)
        return count.clamp_min(1).to(batch.x.dtype).log()

    @staticmethod
    def _across_modalities(batch: Batch, scale: Tensor) -> Tensor:
        """Log-sum-exp of each row over the other samples' rows of the other modality, (B, 2)."""
        (x, y), ids = batch.each_view(), batch.sample_ids
        return torch.stack(batch.pairs.logsumexp_both(x, y, scale=scale, ids=ids, key_ids=ids), 1)

    def _against_averages(self, batch: Batch, log_mean: Tensor) -> Tensor:
        """The value log u, with the gradient of the batch mean over u; moves the averages on."""
        log_u = self._move_averages(batch, log_mean)
        # exp(log_mean - log_u) has the gradient of the estimator; subtracted from itself it leaves the value to log_u.
        ratio = (log_mean - torch.where(torch.isfinite(log_u), log_u, 0)).exp()
        return log_u + (ratio - ratio.detach())

    def _move_averages(self, batch: Batch, log_mean: Tensor) -> Tensor:
        """Logarithm of the average u of each anchor with its batch mean blended in, (B, 2), -inf without negatives."""
        assert batch.index is not None
        index = batch.index.to(log_mean.device)
        log_u = self.averages.blend(index, log_mean.detach(), self._weight())
        moved = torch.logsumexp(log_u, 1, keepdim=True) - math.log(batch.views) if self.intra_view else log_u
        self.averages.write(index, moved, batch.sample_ids.to(index.device))
        self.step.advance()
        return log_u

    def _weight(self) -> float | Tensor:
        """Weight of the new value in this step; a schedule is called once per step."""
        agreed, self._agreed_weight = self._agreed_weight, None
        return self._scheduled() if agreed is None else agreed

    def _scheduled(self) -> float | Tensor:
        if not callable(self.gamma):
            return self.gamma
        weight = self.gamma(self.step.value.clone())
        if not isinstance(weight, Tensor):
            weight = torch.as_tensor(check_number("gamma", weight, low=0, high=1, open_low=True), dtype=torch.float64)
        return scheduled_weight(weight.detach().to(torch.float64))

    def agreement(self) -> dict[str, object]:
        """See `Objective.agreement`."""
        weight = self._agreed_weight = self._scheduled()
        on_host = not isinstance(weight, Tensor) or weight.is_cpu
        return {"gamma in this step": float(weight) if on_host else "not compared"}

    def table(self) -> dict[str, Tensor]:
        """``u`` (num_samples,) in natural scale and ``visited``; with two modalities ``u1``, ``u2`` and ``visited``."""
        return dict(zip(self._names("u"), self.averages.natural(), strict=True)) | {
            "visited": self.averages.visited.cpu().clone()
        }

    def load_table(self, *, visited: Tensor, **tables: Tensor) -> None:
        """Take over what `table` returned.

        Raises:
            TypeError: The tables of the other form (one or two modalities) were given.
            ValueError: A size does not fit, or an average is not positive.
        """
        self.averages.load_natural(visited, **self._chosen(tables, "u"))

    def _names(self, name: str) -> list[str]:
        """Names of a table: one, or one for each modality."""
        return [name] if self.intra_view else [f"{name}1", f"{name}2"]

    def _chosen(self, given: dict[str, Tensor], *names: str) -> dict[str, Tensor]:
        """The tables given, in order; raises unless they are those of these names."""
        wanted = [table for name in names for table in self._names(name)]
        if set(given) != set(wanted):
            raise TypeError(f"load_table wants {' and '.join(wanted)} besides visited, got {', '.join(given) or 'none'}.")
        return {table: given[table] for table in wanted}
