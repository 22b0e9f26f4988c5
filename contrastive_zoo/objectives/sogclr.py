r"""SogCLR: the contrastive loss over the whole dataset, from batches of any size.

    l_a = -s_ap/tau + log u_a,    u_a = (1 - gamma) u[i] + gamma mean_{n in N_a} exp(s_an/tau)

u[i] is a moving average per sample i. The gradient is the gradient of -s_ap/tau + exp(lse_a - log |N_a| - log u_a) with u_a
constant: the batch's softmax, with its normaliser replaced by the moving average.

Yuan et al., "Provable Stochastic Optimization for Global Contrastive Learning: Small Batch Does Not Harm Performance",
ICML 2022, algorithm 1. arXiv:2202.12387
"""

from torch import Tensor

from contrastive_zoo.batch.batch import Batch
from contrastive_zoo.objectives.averages import Schedule, Weight, chosen_tables, estimator, log_mean, moved, table_names
from contrastive_zoo.objectives.base import Objective
from contrastive_zoo.registry import Range, losses
from contrastive_zoo.state.counters import StepCounter
from contrastive_zoo.state.tables import LogAverage


@losses.register(
    "sogclr",
    title="SogCLR, stochastic optimisation of the global contrastive loss",
    summary="Contrasts with the whole dataset through a moving average per sample; works with small batches.",
    paper="Yuan et al., ICML 2022, algorithm 1. arXiv:2202.12387",
    equation=r"\ell_a = -\frac{s_{ap}}{\tau} + \log u_a, "
    r"\quad u_a = (1-\gamma)\,u_i + \frac{\gamma}{|\mathcal{N}_a|} \sum_{n \in \mathcal{N}_a} e^{s_{an}/\tau}",
    needs={"index"},
    uses={"views"},
    stateful=True,
    ring=True,
    ranges={"gamma": Range(0, 1, open_low=True, schedule=True)},
    scale="Authors' gradient (LibAUC) = 2 tau times ours; with two modalities (B - 1) tau times ours.",
    differences=(
        "A sample visited for the first time takes its batch average as u, regardless of gamma and of the rest of the batch.",
        "u is kept in log space, without the authors' floors.",
        "The value uses log u, an estimate of the global objective; the authors return a surrogate that is only useful for its "
        "gradient.",
        "With two modalities u averages exp(s/tau); the authors average exp((s_ij - s_ii)/tau).",
    ),
)
class SogCLR(Objective):
    r"""Loss of each anchor, (B, V); value and gradient are different estimates, joined.

    $$\ell_a = -\frac{s_{ap}}{\tau} + \log u_a,
      \quad u_a = (1-\gamma)\,u_i + \frac{\gamma}{|\mathcal{N}_a|} \sum_{n \in \mathcal{N}_a} e^{s_{an}/\tau}$$

    The gradient is the batch's softmax, with its normaliser replaced by the moving average:

    $$\nabla \ell_a = -\frac{\nabla s_{ap}}{\tau}
      + \frac{1}{|\mathcal{N}_a|\, u_a} \sum_{n \in \mathcal{N}_a} e^{s_{an}/\tau}\, \frac{\nabla s_{an}}{\tau}$$

    In `eval()` the batch's own mean replaces u; no table is read or written.

    Args:
        num_samples: Size of the dataset.
        temperature: Divides the similarities.
        gamma: Weight of the new value in the moving average, in (0, 1]; or a schedule, a callable that maps the number of steps
            so far (0-dim tensor, on the device of the features) to the weight, such as `CosineSchedule(1.0, 0.2, steps)`.
        intra_view: Whether all views are of one modality: each row contrasts with the other samples' rows of all views, and a
            sample has one average. If not, each row contrasts with the other modality only, and each row has its own average.

    Raises:
        ValueError: A parameter is out of range; at a call, the value of the schedule is.

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
        self.intra_view = intra_view
        self.step = StepCounter()
        self.averages = LogAverage(num_samples, sides=1 if intra_view else 2)
        self._weight = Weight()

    def forward(self, batch: Batch) -> Tensor:
        """See `Objective.forward`."""
        if batch.views > 2 and not self.intra_view:
            raise ValueError(f"intra_view=False contrasts two modalities, z1 holds {batch.views} views. Give it two.")
        scale = 1 / self.held_temperature.in_formulas()
        negatives = log_mean(batch, scale, self.intra_view)
        if self.training:
            negatives = self._against_averages(batch, negatives)
        return negatives - batch.positive_similarity() * scale

    def _against_averages(self, batch: Batch, log_new: Tensor) -> Tensor:
        """The value log u, with the gradient of the batch mean divided by u; updates the averages."""
        log_u = moved(self.averages, batch, log_new, self._weight.take(self.gamma, self.step, log_new))
        self.step.advance()
        ratio = estimator(log_new, log_u)
        return log_u + (ratio - ratio.detach())  # ratio - ratio.detach() is 0 and adds only the gradient

    def agreement(self) -> dict[str, object]:
        """See `Objective.agreement`."""
        return self._weight.agreement(self.gamma, self.step)

    def table(self, index: Tensor | None = None) -> dict[str, Tensor]:
        """``u`` (num_samples,) in natural (not log) scale and ``visited``; with two modalities ``u1``, ``u2``, ``visited``."""
        held = self.averages.held(index)
        averages = zip(table_names("u", self.intra_view), self.averages.natural(held), strict=True)
        return dict(averages) | {"visited": held.visited.cpu().clone()}

    def load_table(self, *, visited: Tensor, **tables: Tensor) -> None:
        """Load the result of `table`.

        Raises:
            TypeError: The tables are for a different number of modalities.
            ValueError: A size does not fit, or an average is not positive.
        """
        (averages,) = chosen_tables(tables, ("u",), self.intra_view)
        self.averages.load_natural(visited, **averages)
