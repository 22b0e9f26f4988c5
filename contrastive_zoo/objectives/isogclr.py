r"""iSogCLR: SogCLR with a learned temperature for each sample.

    l_a = ( tau_i (log u_a + rho) - s_ap ) / tau_0,    u_a = (1 - gamma) u[i] + gamma mean_{n in N_a} exp(s_an/tau_i)
    tau_i <- clamp(tau_i - eta m_i),    m_i <- momentum m_i + (1 - momentum) g_i,    g_a = log u_a + rho - sum_n q_an s_an/tau_i

where q_an = exp(s_an/tau_i) / (|N_a| u_a). g is the derivative of tau_i (log u_a + rho): a temperature moves until the
softmax over its sample's negatives has divergence rho from the uniform distribution.

Qiu et al., "Not All Semantics are Created Equal: Contrastive Self-supervised Learning with Automatic Temperature
Individualization", ICML 2023, algorithm 1. arXiv:2305.11965
"""

import torch
from torch import Tensor

from contrastive_zoo.batch.batch import Batch
from contrastive_zoo.checks import check_at_most
from contrastive_zoo.objectives.averages import (
    Schedule,
    Weight,
    chosen_tables,
    estimator,
    log_count,
    log_mean,
    table_names,
)
from contrastive_zoo.objectives.base import Objective
from contrastive_zoo.registry import POSITIVE, Range, losses
from contrastive_zoo.state.counters import StepCounter
from contrastive_zoo.state.tables import Averages, LogAverage, Temperatures, check_natural


def _check(*, temperature_min: float, temperature_max: float, **_: object) -> None:
    """Raise if the range of temperatures is empty."""
    check_at_most("temperature_min", temperature_min, "temperature_max", temperature_max)


@losses.register(
    "isogclr",
    title="iSogCLR, SogCLR with individual temperatures",
    summary="SogCLR with a separate learned temperature for each sample.",
    paper="Qiu et al., ICML 2023, algorithm 1. arXiv:2305.11965",
    equation=r"\ell_a = \frac{\tau_i (\log u_a + \rho) - s_{ap}}{\tau_0}, "
    r"\quad u_a = (1-\gamma)\,u_i + \frac{\gamma}{|\mathcal{N}_a|} \sum_{n \in \mathcal{N}_a} e^{s_{an}/\tau_i}",
    needs={"index"},
    stateful=True,
    ring=True,
    ranges={
        "gamma": Range(0, 1, open_low=True, schedule=True),
        "rho": Range(0),
        "eta": Range(0),
        "temperature_min": POSITIVE,
        "temperature_max": POSITIVE,
        "momentum": Range(0, 1, open_high=True),
    },
    check=_check,
    scale="Authors' gradient (LibAUC) = 2 tau_0 times ours; with two modalities (B - 1) tau_0 times ours.",
    differences=(
        "A sample visited for the first time takes its batch average as u, regardless of gamma and of the rest of the batch.",
        "u is kept in log space, without the authors' floors.",
        "The value is the objective divided by tau_0; the authors return a surrogate that is only useful for its gradient.",
        "With two modalities u averages exp(s/tau); the authors average exp((s_ij - s_ii)/tau).",
        "momentum is the fraction of the old gradient that is kept, 1 minus the authors' beta.",
    ),
)
class ISogCLR(Objective):
    r"""Loss of each anchor, (B, 2); value and gradient are different estimates, joined.

    $$\ell_a = \frac{\tau_i (\log u_a + \rho) - s_{ap}}{\tau_0},
      \quad u_a = (1-\gamma)\,u_i + \frac{\gamma}{|\mathcal{N}_a|} \sum_{n \in \mathcal{N}_a} e^{s_{an}/\tau_i}$$

    The gradient is the batch's softmax, with its normaliser replaced by the moving average:

    $$\nabla \ell_a = \frac{\tau_i}{\tau_0} \Big({-\frac{\nabla s_{ap}}{\tau_i}}
      + \frac{1}{|\mathcal{N}_a|\, u_a} \sum_{n \in \mathcal{N}_a} e^{s_{an}/\tau_i}\, \frac{\nabla s_{an}}{\tau_i}\Big)$$

    Each step also updates the temperatures of the batch's samples by their gradient
    $g_a = \log u_a + \rho - \frac{1}{|\mathcal{N}_a|\, u_a} \sum_{n \in \mathcal{N}_a} e^{s_{an}/\tau_i} s_{an}/\tau_i$,
    averaged over the two views.

    In `eval()` the batch's own mean replaces u, and $\tau_0$ replaces all temperatures; no table is read or written.

    Args:
        num_samples: Size of the dataset.
        temperature: Initial temperature $\tau_0$ of every sample; the loss is divided by $\tau_0$.
        gamma: Weight of the new value in the moving average, in (0, 1], or a schedule, as in `SogCLR`.
        intra_view: Whether both views are of one modality and a sample has one temperature; if not, each row contrasts with
            the other modality only, and each row has its own temperature.
        rho: Target Kullback-Leibler divergence between the softmax over a sample's negatives and the uniform distribution;
            larger values lead to lower temperatures.
        eta: Step size of the temperatures.
        temperature_min: Lowest temperature.
        temperature_max: Highest temperature.
        momentum: Fraction of the old gradient of a temperature that is kept.

    Raises:
        ValueError: A parameter is out of range; at a call, the value of the schedule is.

    Examples:
        >>> import torch
        >>> import contrastive_zoo as zoo
        >>> loss_fn = zoo.get_loss("isogclr", num_samples=100, temperature=0.2)
        >>> z1, z2 = torch.randn(2, 8, 4)
        >>> loss = loss_fn(z1, z2, index=torch.arange(8))
        >>> temperature = loss_fn.table()["temperature"]
        >>> bool((temperature[:8] != 0.2).all()), bool((temperature[8:] == 0.2).all())
        (True, True)
    """

    def __init__(
        self,
        *,
        num_samples: int,
        temperature: float | Tensor = 0.1,
        gamma: float | Schedule = 0.9,
        intra_view: bool = True,
        rho: float = 0.3,
        eta: float = 0.01,
        temperature_min: float = 0.05,
        temperature_max: float = 0.7,
        momentum: float = 0.1,
    ) -> None:
        super().__init__(temperature)
        self.gamma, self.rho = gamma, rho
        self.intra_view = intra_view
        sides = 1 if intra_view else 2
        self.step = StepCounter()
        self.averages = LogAverage(num_samples, sides)
        limits = {"lowest": temperature_min, "highest": temperature_max}
        self.temperatures = Temperatures(num_samples, sides, rate=eta, momentum=momentum, **limits)
        self._weight = Weight()

    def forward(self, batch: Batch) -> Tensor:
        """See `Objective.forward`."""
        if self.training:
            return self._individual(batch)
        scale = 1 / self.temperature
        return log_mean(batch, scale, self.intra_view) - batch.positive_similarity() * scale + self.rho

    def _individual(self, batch: Batch) -> Tensor:
        """Loss at the temperatures of the samples; updates the averages and the temperatures."""
        assert batch.index is not None
        index = batch.placed(batch.index)
        first, averages, own = batch.placed(batch.sample_ids), self.averages, self.temperatures
        # One read of all tables: if several processes hold them, it is one message.
        *old, value, slope = averages.layout.read(index, averages.log_value, averages.visited, own.value, own.gradient)
        held = Averages(*old)
        temperature = own.current(value, held.visited, self.temperature, batch.x.dtype)
        log_new, similarity = self._softmax(batch, 1 / temperature)
        weight = self._weight.take(self.gamma, self.step, log_new)
        log_u = averages.move(index, held, log_new.detach(), weight, first)
        self.step.advance()
        ratio = estimator(log_new, log_u)
        gradient = log_u + self.rho - ratio.detach() * similarity / temperature.detach()
        if self.intra_view:
            gradient = gradient.mean(1, keepdim=True)
        own.descend(index, temperature, slope, gradient, first)
        batch.diagnostics["temperature"] = temperature.detach().mean()
        found = torch.isfinite(log_u)
        # ratio - ratio.detach() is 0 and adds only the gradient of the ratio.
        partition = torch.where(found, log_u, 0) + self.rho + (ratio - ratio.detach())
        return torch.where(found, (temperature * partition - batch.positive_similarity()) / self.temperature, -torch.inf)

    def _softmax(self, batch: Batch, scale: Tensor) -> tuple[Tensor, Tensor]:
        """Logarithm of the mean of exp(scale s) over the negatives of each anchor, and mean of s under it, (B, 2) each."""
        if self.intra_view:
            scales = scale.expand(-1, batch.views).flatten()
            sums, means = batch.pairs.logsumexp_with_mean(batch.x, scale=scales, ids=batch.ids)
            return batch.per_view(sums) - log_count(batch, True), batch.per_view(means)
        ids, (x, y) = batch.sample_ids, batch.each_view()
        sides = [
            batch.pairs.logsumexp_with_mean(rows, keys, scale=scale[:, side], ids=ids, key_ids=ids)
            for side, (rows, keys) in enumerate([(x, y), (y, x)])
        ]
        log_sums, means = (torch.stack(parts, 1) for parts in zip(*sides, strict=True))
        return log_sums - log_count(batch, False), means

    def agreement(self) -> dict[str, object]:
        """See `Objective.agreement`."""
        return self._weight.agreement(self.gamma, self.step)

    def table(self, index: Tensor | None = None) -> dict[str, Tensor]:
        """As `SogCLR.table`, plus ``temperature`` and ``temperature_gradient``; with two modalities with suffixes 1 and 2."""
        held, start = self.averages.held(index), float(self.temperature.detach())
        tables = dict(zip(table_names("u", self.intra_view), self.averages.natural(held), strict=True))
        tables["visited"] = held.visited.cpu().clone()
        natural = self.temperatures.natural(index, held.visited, start)
        for name, sides in zip(("temperature", "temperature_gradient"), natural, strict=True):
            tables |= dict(zip(table_names(name, self.intra_view), sides, strict=True))
        return tables

    def load_table(self, *, visited: Tensor, **tables: Tensor) -> None:
        """Load the result of `table`.

        Raises:
            TypeError: A table is missing, or the tables are for a different number of modalities.
            ValueError: A size does not fit, or an average or a temperature is not positive.
        """
        names = ("u", "temperature", "temperature_gradient")
        averages, temperatures, gradients = chosen_tables(tables, names, self.intra_view)
        check_natural(visited, averages, self.averages.layout.size, positive=True)  # before anything is written
        self.temperatures.load_natural(visited, temperatures, gradients)
        self.averages.load_natural(visited, **averages)
