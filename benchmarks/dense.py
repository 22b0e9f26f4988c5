"""The objectives as people write them: whole similarity matrices, masks and autograd.

The names ending in `_authors`, `generalised` and `EMC2` compute in the way of the papers' own repositories. All others take
the shortest way in plain torch; in float64 they are the reference that everything else is compared with. All take raw features
(B, D) of two views.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def _unit(z1: Tensor, z2: Tensor) -> Tensor:
    return F.normalize(torch.cat([z1, z2]), dim=1)


def _own(batch_size: int) -> Tensor:
    """Mask (2B, 2B) of the pairs of rows of one sample."""
    return torch.eye(batch_size, dtype=torch.bool).repeat(2, 2)


def masked_logits(z1: Tensor, z2: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Logits (2B, 2B), -inf where both rows are of one sample, and those of the positives (2B,)."""
    z = _unit(z1, z2)
    logits = z @ z.T / temperature
    return logits.masked_fill(_own(len(z1)), -torch.inf), logits.diagonal(len(z1)).repeat(2)


def ntxent(z1: Tensor, z2: Tensor, temperature: float = 0.1) -> Tensor:
    z, b = _unit(z1, z2), len(z1)
    logits = (z @ z.T / temperature).masked_fill(torch.eye(2 * b, dtype=torch.bool), -torch.inf)
    return F.cross_entropy(logits, torch.arange(2 * b).roll(b))


def infonce(z1: Tensor, z2: Tensor, temperature: float = 0.1, symmetric: bool = True) -> Tensor:
    logits = F.normalize(z1, dim=1) @ F.normalize(z2, dim=1).T / temperature
    positives = torch.arange(len(z1))
    forwards = F.cross_entropy(logits, positives)
    return (forwards + F.cross_entropy(logits.T, positives)) / 2 if symmetric else forwards


class CLIP:
    """`infonce` with the logarithm of the inverse temperature as a leaf that wants a gradient."""

    def __init__(self, init_scale: float = 10.0) -> None:
        self.logit_scale = torch.tensor(math.log(init_scale), requires_grad=True)

    def __call__(self, z1: Tensor, z2: Tensor) -> Tensor:
        """Loss of a batch."""
        logits = self.logit_scale.exp() * F.normalize(z1, dim=1) @ F.normalize(z2, dim=1).T
        positives = torch.arange(len(z1))
        return (F.cross_entropy(logits, positives) + F.cross_entropy(logits.T, positives)) / 2


def dcl(z1: Tensor, z2: Tensor, temperature: float = 0.1) -> Tensor:
    logits, positive = masked_logits(z1, z2, temperature)
    return (logits.logsumexp(1) - positive).mean()


def dclw(z1: Tensor, z2: Tensor, temperature: float = 0.1, sigma: float = 0.5) -> Tensor:
    logits, positive = masked_logits(z1, z2, temperature)
    weight = 2 - len(logits) * (temperature * positive.detach() / sigma).softmax(0)
    return (logits.logsumexp(1) - weight * positive).mean()


def debiased(z1: Tensor, z2: Tensor, temperature: float = 0.5, tau_plus: float = 0.1) -> Tensor:
    logits, positive = masked_logits(z1, z2, temperature)
    negative = _debias(logits.exp().sum(1), positive.exp(), temperature, tau_plus)
    return F.softplus(negative.log() - positive).mean()


def hcl(z1: Tensor, z2: Tensor, temperature: float = 0.5, tau_plus: float = 0.1, beta: float = 1.0) -> Tensor:
    logits, positive = masked_logits(z1, z2, temperature)
    weighted_mean = (((1 + beta) * logits).logsumexp(1) - (beta * logits).logsumexp(1)).exp()
    negative = _debias((2 * len(z1) - 2) * weighted_mean, positive.exp(), temperature, tau_plus)
    return F.softplus(negative.log() - positive).mean()


def _debias(total: Tensor, positive: Tensor, temperature: float, tau_plus: float) -> Tensor:
    n = len(total) - 2
    return ((total - tau_plus * n * positive) / (1 - tau_plus)).clamp(min=n * math.exp(-1 / temperature))


def _negatives_and_positive(z1: Tensor, z2: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Exponentials of the negatives gathered into (2B, 2B - 2), and of the positives (2B,)."""
    z = _unit(z1, z2)
    negatives = (z @ z.T / temperature).exp().masked_select(~_own(len(z1))).view(len(z), -1)
    positive = ((z[: len(z1)] * z[len(z1) :]).sum(1) / temperature).exp()
    return negatives, positive.repeat(2)


def debiased_authors(z1: Tensor, z2: Tensor, temperature: float = 0.5, tau_plus: float = 0.1) -> Tensor:
    negatives, positive = _negatives_and_positive(z1, z2, temperature)
    negative = _debias(negatives.sum(1), positive, temperature, tau_plus)
    return -(positive / (positive + negative)).log().mean()


def hcl_authors(z1: Tensor, z2: Tensor, temperature: float = 0.5, tau_plus: float = 0.1, beta: float = 1.0) -> Tensor:
    negatives, positive = _negatives_and_positive(z1, z2, temperature)
    importance = (beta * negatives.log()).exp()
    total = (importance * negatives).sum(1) / importance.mean(1)
    negative = _debias(total, positive, temperature, tau_plus)
    return -(positive / (positive + negative)).log().mean()


def dhel(z1: Tensor, z2: Tensor, temperature: float = 0.3) -> Tensor:
    a, b = F.normalize(z1, dim=1), F.normalize(z2, dim=1)
    diagonal = torch.eye(len(a), dtype=torch.bool)
    energies = [(z @ z.T / temperature).masked_fill(diagonal, -torch.inf).logsumexp(1) for z in (a, b)]
    return (energies[0] + energies[1] - (a * b).sum(1) / temperature).mean()


def dhel_authors(z1: Tensor, z2: Tensor, temperature: float = 0.3) -> Tensor:
    a, b = F.normalize(z1, dim=1), F.normalize(z2, dim=1)
    diagonal = torch.eye(len(a), dtype=torch.bool)
    sums = [(z @ z.T / temperature).exp().masked_fill(diagonal, 0).sum(1) for z in (a, b)]
    return -(((a * b).sum(1) / temperature).exp() / (sums[0] * sums[1])).log().mean()


def kcl(z1: Tensor, z2: Tensor, t: float = 2.0, gamma: float = 16.0) -> Tensor:
    a, b = F.normalize(z1, dim=1), F.normalize(z2, dim=1)
    diagonal = torch.eye(len(a), dtype=torch.bool)
    energies = [(2 * t * (z @ z.T - 1)).exp().masked_fill(diagonal, 0).sum() for z in (a, b)]
    alignment = (2 * t * ((a * b).sum(1) - 1)).exp().mean()
    return gamma * (energies[0] + energies[1]) / (len(a) * (len(a) - 1)) - 2 * alignment


def kcl_authors(z1: Tensor, z2: Tensor, t: float = 2.0, gamma: float = 16.0) -> Tensor:
    a, b = F.normalize(z1, dim=1), F.normalize(z2, dim=1)
    energies = [(-t * torch.pdist(z) ** 2).exp().mean() for z in (a, b)]
    alignment = (-t * (a - b).norm(dim=1) ** 2).exp().mean()
    return gamma * (energies[0] + energies[1]) - 2 * alignment


def alignment_uniformity(z1: Tensor, z2: Tensor, t: float = 2.0) -> Tensor:
    a, b = F.normalize(z1, dim=1), F.normalize(z2, dim=1)
    diagonal = torch.eye(len(a), dtype=torch.bool)
    potentials = [(2 * t * (z @ z.T - 1)).masked_fill(diagonal, -torch.inf).logsumexp((0, 1)) for z in (a, b)]
    uniformity = (potentials[0] + potentials[1]) / 2 - math.log(len(a) * (len(a) - 1))
    return (a - b).square().sum(1).mean() + uniformity


def alignment_uniformity_authors(z1: Tensor, z2: Tensor, t: float = 2.0) -> Tensor:
    a, b = F.normalize(z1, dim=1), F.normalize(z2, dim=1)
    potentials = [torch.pdist(z).pow(2).mul(-t).exp().mean().log() for z in (a, b)]
    return (a - b).norm(dim=1).pow(2).mean() + (potentials[0] + potentials[1]) / 2


def spectral_contrastive(z1: Tensor, z2: Tensor) -> Tensor:
    a, b = F.normalize(z1, dim=1), F.normalize(z2, dim=1)
    squares = (a @ b.T).square().masked_fill(torch.eye(len(a), dtype=torch.bool), 0)
    return squares.sum() / (len(a) * (len(a) - 1)) - 2 * (a * b).sum(1).mean()


def spectral_contrastive_authors(z1: Tensor, z2: Tensor) -> Tensor:
    a, b = F.normalize(z1, dim=1), F.normalize(z2, dim=1)
    squares = (a @ b.T) ** 2
    off_diagonal = squares.triu(1) + squares.tril(-1)
    return off_diagonal.mean() * len(a) / (len(a) - 1) - 2 * (a * b).mean() * a.shape[1]


def supcon(z1: Tensor, z2: Tensor, labels: Tensor, temperature: float = 0.1) -> Tensor:
    z, labels = _unit(z1, z2), labels.repeat(2)
    own = torch.eye(len(z), dtype=torch.bool)
    logits, positives = z @ z.T / temperature, (labels[:, None] == labels) & ~own
    log_probabilities = logits - logits.masked_fill(own, -torch.inf).logsumexp(1, keepdim=True)
    return -((log_probabilities * positives).sum(1) / positives.sum(1)).mean()


def siglip(z1: Tensor, z2: Tensor, scale: float = 10.0, bias: float = -10.0) -> Tensor:
    logits = scale * F.normalize(z1, dim=1) @ F.normalize(z2, dim=1).T + bias
    return F.softplus(logits * (1 - 2 * torch.eye(len(z1))), threshold=40).sum() / len(z1)


def generalised(z1: Tensor, z2: Tensor, labels: Tensor | None = None, beta: float = 0.0) -> Tensor:
    """UCL and HUCL, or SCL and HSCL with labels: the authors' way, with the expectation in place of draws."""
    z = _unit(z1, z2)
    classes = (torch.arange(len(z1)) if labels is None else labels).repeat(2)
    positive, similarity = classes[:, None] == classes[None, :], z @ z.T
    hardness = beta * similarity.detach()
    weights = (hardness if labels is None else hardness.masked_fill(positive, -torch.inf)).softmax(1)
    mean = (weights * similarity.exp()).sum(1, keepdim=True)
    return (1 + mean / similarity.exp()).log()[positive].mean()


class SogCLR:
    """A moving average u of mean exp(s/tau) per sample; the value is that of log u, the gradient that of g/u."""

    def __init__(self, num_samples: int, temperature: float = 0.1, gamma: float = 0.9) -> None:
        self.u = torch.zeros(num_samples, dtype=torch.float64)
        self.temperature, self.gamma = temperature, gamma

    def __call__(self, z1: Tensor, z2: Tensor, index: Tensor) -> Tensor:
        """Loss of a batch; moves the table."""
        logits, positive = masked_logits(z1, z2, self.temperature)
        g = logits.exp().sum(1) / (2 * len(z1) - 2)
        old, new = self.u[index].to(g.dtype).repeat(2), g.detach()
        u = torch.where(old > 0, (1 - self.gamma) * old + self.gamma * new, new)
        self.u[index] = u.view(2, -1).mean(0).double()
        return (u.log() + (g - new) / u - positive).mean()


class ISogCLR:
    """`SogCLR` with a temperature per sample, which follows its gradient with momentum."""

    def __init__(self, num_samples: int, temperature: float = 0.1, gamma: float = 0.9) -> None:
        self.u, self.gradient = torch.zeros(2, num_samples, dtype=torch.float64)
        self.temperatures = torch.full((num_samples,), temperature, dtype=torch.float64)
        self.temperature, self.gamma = temperature, gamma

    def __call__(
        self, z1: Tensor, z2: Tensor, index: Tensor, rho: float = 0.3, eta: float = 0.01, momentum: float = 0.1
    ) -> Tensor:
        """Loss of a batch; moves the tables."""
        similarities, positive = masked_logits(z1, z2, 1.0)
        tau = self.temperatures[index].to(z1.dtype).repeat(2)
        exponentials = (similarities / tau[:, None]).exp()
        g = exponentials.sum(1) / (2 * len(z1) - 2)
        old, new = self.u[index].to(g.dtype).repeat(2), g.detach()
        u = torch.where(old > 0, (1 - self.gamma) * old + self.gamma * new, new)
        self.u[index] = u.view(2, -1).mean(0).double()
        pull = (exponentials * similarities.masked_fill(exponentials == 0, 0)).detach().sum(1) / (u * tau * (2 * len(z1) - 2))
        derivative = (u.log() + rho - pull).view(2, -1).mean(0).double()
        self.gradient[index] = momentum * self.gradient[index] + (1 - momentum) * derivative
        self.temperatures[index] = (self.temperatures[index] - eta * self.gradient[index]).clamp(0.05, 0.7)
        return (tau * (u.log() + rho + (g - new) / u) - positive).mean() / self.temperature


def emc2_expected(z1: Tensor, z2: Tensor, order: Tensor, temperature: float = 0.1, burn_in: float = 0.5) -> Tensor:
    """What EMC2 with a chain per row estimates on a first batch: the expectation over its draws, enumerated.

    The rows of a sample are neighbours, and are met in the given order. Row a's chain has probability p_ab of being at row b;
    meeting row j it moves there with probability min(1, exp(l_aj - l_ab)). Value and gradient are joined: that of log mean exp,
    and of the kept pairs.
    """
    views = F.normalize(torch.stack([z1, z2], 1), dim=2)
    z, sample = views.flatten(0, 1)[order], order // 2
    rows, own = len(z), sample[:, None] == sample
    logits = z @ z.T / temperature
    valid, burned = rows - 2, int(burn_in * (rows - 2))
    with torch.no_grad():
        at, shares = torch.zeros_like(logits), torch.zeros_like(logits)
        seen = torch.zeros(rows)
        for j in range(rows):
            meets = ~own[:, j]
            leaves = at * (logits[:, j : j + 1] - logits).exp().clamp(max=1) * meets[:, None]
            arrives = torch.where(meets & (seen > 0), leaves.sum(1), meets.to(at))
            at = at - leaves
            at[:, j] += arrives
            seen += meets
            shares += at * ((seen > burned) & meets)[:, None] / (valid - burned)
    pairs = (shares * logits).sum(1)
    value = logits.detach().masked_fill(own, -torch.inf).logsumexp(1) - math.log(valid)
    return (value + pairs - pairs.detach()).mean() - (views[:, 0] * views[:, 1]).sum(1).mean() / temperature


class EMC2:
    """One Metropolis-Hastings chain per sample that both views continue, scanned column by column.

    The value is a surrogate: only its gradient, that of the retained pairs and the positives, means something. Pairs
    with a carried state need the encoder and are left out.
    """

    def __init__(self, num_samples: int, temperature: float = 0.1, burn_in: float = 0.5) -> None:
        self.score = torch.full((num_samples,), torch.finfo(torch.float32).smallest_normal)
        self.state = torch.full((num_samples,), -1)
        self.temperature, self.burn_in = temperature, burn_in

    def __call__(self, z1: Tensor, z2: Tensor, index: Tensor) -> Tensor:
        """Surrogate loss of a batch; moves the chains."""
        z, b = _unit(z1, z2), len(z1)
        similarities = z @ z.T
        nb = 2 * b - 2
        burned = int(self.burn_in * nb)
        with torch.no_grad():
            scores = (similarities / self.temperature).exp().masked_fill(_own(b), 0)
            pairs, score, state = sample(scores, self.score[index], burned)
            self.score[index] = score
            moved = state >= 0
            self.state[index[moved]] = index.repeat(2)[state[moved]]
        anchors, columns = pairs[:, pairs[1] >= 0]
        negative = similarities[anchors, columns].sum() / (nb - burned) / 2
        return (negative - (z[:b] * z[b:]).sum()) / (b * self.temperature)


def sample(scores: Tensor, score: Tensor, burned: int) -> tuple[Tensor, Tensor, Tensor]:
    """Scans the columns of `scores` (2B, 2B) for view 1, then for view 2, a fresh uniform per anchor and column.

    Returns the retained pairs (2, R), with column -1 where the state is still the carried one, and the last score and
    state (B,).
    """
    batch_size = len(score)
    state = torch.full((batch_size,), -1)
    uniform, retained = torch.empty(batch_size), []
    for view in (0, batch_size):
        anchors = torch.arange(view, view + batch_size)
        for j in range(scores.shape[1]):
            proposal = scores[view : view + batch_size, j]
            accepted = uniform.uniform_() < proposal / score
            score[accepted] = proposal[accepted]
            state[accepted] = j
            if j > burned:
                retained.append(torch.stack([anchors, state])[:, proposal > 0])
    return torch.cat(retained, 1), score, state
