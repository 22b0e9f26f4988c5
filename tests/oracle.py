"""Sums over pairs and objectives as double loops in float64, straight from the papers.

Shares no code with the package; gradients come from autograd through the loops. Objectives return the loss of each anchor,
(B, anchors per sample), with -inf where an anchor has nothing to be contrasted with; `mean` averages the rest.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Ids = Sequence[int]


def number(value: float | Tensor) -> float:
    return float(value.detach()) if isinstance(value, Tensor) else value


def log_sum_exp(logits: list[Tensor], like: Tensor) -> Tensor:
    """Of no logits -inf, attached to the graph of `like` with zero gradient."""
    if not logits:
        return like.sum() * 0 - math.inf
    largest = max(number(logit) for logit in logits)
    return sum((logit - largest).exp() for logit in logits).log() + largest


def logsumexp(x: Tensor, keys: Tensor, scale: float | Tensor, ids: Ids | None = None, key_ids: Ids | None = None) -> Tensor:
    """(N,) log-sum-exp over the keys with another id; `scale` is one number or one per row."""
    scale = torch.as_tensor(scale, dtype=torch.float64)
    scales = scale.unbind() if scale.dim() else [scale] * len(x)
    key_rows = keys.unbind()
    sums = []
    for i, row in enumerate(x.unbind()):
        counted = [j for j in range(len(key_rows)) if ids is None or key_ids is None or ids[i] != key_ids[j]]
        sums.append(log_sum_exp([scales[i] * (row @ key_rows[j]) for j in counted], row))
    return torch.stack(sums)


def kernel_value(name: str, squared_distance: Tensor, t: float) -> Tensor:
    """The kernels of Koromilas et al., 2024, and the logarithmic and inverse multiquadric ones."""
    d2 = squared_distance
    if name == "gaussian":
        return (-t * d2).exp()
    if name == "log":
        return -(1 + t * d2).log()
    if name == "imq":
        return t / (t**2 + d2).sqrt()
    assert name == "riesz"
    return d2 ** (-t / 2) if t > 0 else -(d2 ** (-t / 2))


def kernel_of(name: str, a: Tensor, b: Tensor, t: float, eps: float = torch.finfo(torch.float64).eps) -> Tensor:
    """Kernel of the distance between two rows; squared distances of riesz below the floor are the floor, a constant."""
    d2 = (a - b).square().sum()
    floor = (len(a) + 32) * eps * (a.square().sum() + b.square().sum()).detach() / 2 + eps**2
    return kernel_value(name, floor if name == "riesz" and number(d2) < number(floor) else d2, t)


def kernel_sum(x: Tensor, name: str, t: float, ids: Ids, eps: float = torch.finfo(torch.float64).eps) -> Tensor:
    """(N,) sums of a kernel over the rows with another id, as in a precision of that resolution."""
    rows = x.unbind()
    sums = []
    for i, row in enumerate(rows):
        total = row.sum() * 0
        for j, other in enumerate(rows):
            if ids[i] != ids[j]:
                total = total + kernel_of(name, row, other, t, eps)
        sums.append(total)
    return torch.stack(sums)


def softmax_mean(x: Tensor, keys: Tensor, scale: Tensor, ids: Ids | None = None, key_ids: Ids | None = None) -> Tensor:
    """(N,) mean similarity to the keys with another id, weighted by exp(scale * similarity); 0 without keys."""
    means = []
    for i, row in enumerate(x.unbind()):
        counted = [j for j in range(len(keys)) if ids is None or key_ids is None or ids[i] != key_ids[j]]
        similarities = [number(row @ keys[j]) for j in counted]
        largest = max((number(scale[i]) * s for s in similarities), default=0.0)
        weights = [math.exp(number(scale[i]) * s - largest) for s in similarities]
        means.append(sum(w * s for w, s in zip(weights, similarities, strict=True)) / sum(weights) if weights else 0.0)
    return torch.tensor(means, dtype=torch.float64)


def square_sum(x: Tensor, keys: Tensor, ids: Ids) -> Tensor:
    """(N,) sums of the squared similarity to the keys with another id."""
    sums = []
    for i, row in enumerate(x.unbind()):
        sums.append(row.sum() * 0 + sum((row @ key) ** 2 for j, key in enumerate(keys.unbind()) if ids[i] != ids[j]))
    return torch.stack(sums)


def softplus(z: Tensor) -> Tensor:
    return z + (-z).exp().log1p() if number(z) > 0 else z.exp().log1p()


def softplus_sum(
    x: Tensor,
    keys: Tensor,
    scale: float | Tensor,
    bias: Sequence[Tensor],
    counts: Callable[[int, int], bool],
) -> Tensor:
    """(N,) sums of the softplus of scale times similarity plus the row's bias, over the pairs that count."""
    sums = []
    for i, row in enumerate(x.unbind()):
        terms = [softplus(scale * (row @ key) + bias[i]) for j, key in enumerate(keys.unbind()) if counts(i, j)]
        sums.append(sum(terms, row.sum() * 0))
    return torch.stack(sums)


def unit(z: Tensor) -> list[Tensor]:
    """Rows scaled to length 1."""
    return [row / row.square().sum().sqrt() for row in z.unbind()]


def mean(anchors: Tensor) -> Tensor:
    """Mean over the anchors that have a loss."""
    return anchors[anchors != -math.inf].mean()


def _default(ids: Ids | None, z: Tensor) -> Ids:
    return range(len(z)) if ids is None else ids


def _per_anchor(z1: Tensor, z2: Tensor, value: Callable[[int, int, list[list[Tensor]]], Tensor]) -> Tensor:
    """(B, 2) values of a function of sample, view, and the unit rows by view and sample."""
    rows = [unit(z1), unit(z2)]
    return torch.stack([torch.stack([value(i, view, rows) for view in range(2)]) for i in range(len(z1))])


def similarities(i: int, view: int, rows: list[list[Tensor]], ids: Ids, views: Sequence[int] = (0, 1)) -> list[Tensor]:
    """Similarities of an anchor to the rows of samples with another id, in batch order."""
    anchor = rows[view][i]
    return [anchor @ rows[other][j] for j in range(len(ids)) if ids[j] != ids[i] for other in views]


def _extra(i: int, anchor: Tensor, negatives: Tensor | None, negatives_ids: Tensor | None, ids: Ids) -> list[Tensor]:
    """Similarities to the extra keys: (M, D) for all anchors or (B, M, D) for each."""
    if negatives is None:
        return []
    mine = negatives if negatives.dim() == 2 else negatives[i]
    owner = None if negatives_ids is None else (negatives_ids if negatives_ids.dim() == 1 else negatives_ids[i]).tolist()
    return [anchor @ key for m, key in enumerate(unit(mine)) if owner is None or owner[m] != ids[i]]


def ntxent(
    z1: Tensor,
    z2: Tensor,
    *,
    temperature: float | Tensor,
    ids: Ids | None = None,
    negatives: Tensor | None = None,
    negatives_ids: Tensor | None = None,
) -> Tensor:
    """Chen et al., 2020, eq. 1."""
    ids = _default(ids, z1)

    def value(i: int, view: int, rows: list[list[Tensor]]) -> Tensor:
        anchor = rows[view][i]
        positive = anchor @ rows[1 - view][i] / temperature
        others = similarities(i, view, rows, ids) + _extra(i, anchor, negatives, negatives_ids, ids)
        if not others:
            return log_sum_exp([], anchor)
        return log_sum_exp([positive, *(s / temperature for s in others)], anchor) - positive

    return _per_anchor(z1, z2, value)


def infonce(
    z1: Tensor,
    z2: Tensor,
    *,
    temperature: float | Tensor,
    symmetric: bool = True,
    in_batch: bool = True,
    ids: Ids | None = None,
    negatives: Tensor | None = None,
    negatives_ids: Tensor | None = None,
) -> Tensor:
    """van den Oord et al., 2018, eq. 4; extra keys are for the anchors of view 1."""
    ids = _default(ids, z1)

    def value(i: int, view: int, rows: list[list[Tensor]]) -> Tensor:
        anchor = rows[view][i]
        positive = anchor @ rows[1 - view][i] / temperature
        others = similarities(i, view, rows, ids, views=[1 - view]) if in_batch else []
        others += _extra(i, anchor, negatives, negatives_ids, ids) if view == 0 else []
        if not others:
            return log_sum_exp([], anchor)
        return log_sum_exp([positive, *(s / temperature for s in others)], anchor) - positive

    return _per_anchor(z1, z2, value)[:, : 2 if symmetric else 1]


def clip(z1: Tensor, z2: Tensor, *, init_scale: float, ids: Ids | None = None) -> Tensor:
    """Radford et al., 2021, figure 3; the logarithm of the scale is a parameter in the default precision."""
    logit_scale = float(torch.tensor(math.log(init_scale)))
    return infonce(z1, z2, temperature=math.exp(-logit_scale), ids=ids)


def dcl(
    z1: Tensor,
    z2: Tensor,
    *,
    temperature: float | Tensor,
    ids: Ids | None = None,
    negatives: Tensor | None = None,
    negatives_ids: Tensor | None = None,
) -> Tensor:
    """Yeh et al., 2022, eq. 6."""
    ids = _default(ids, z1)

    def value(i: int, view: int, rows: list[list[Tensor]]) -> Tensor:
        anchor = rows[view][i]
        others = similarities(i, view, rows, ids) + _extra(i, anchor, negatives, negatives_ids, ids)
        return log_sum_exp([s / temperature for s in others], anchor) - anchor @ rows[1 - view][i] / temperature

    return _per_anchor(z1, z2, value)


def dclw(
    z1: Tensor,
    z2: Tensor,
    *,
    temperature: float | Tensor,
    sigma: float,
    ids: Ids | None = None,
    negatives: Tensor | None = None,
    negatives_ids: Tensor | None = None,
) -> Tensor:
    """Yeh et al., 2022, section 3; the weights are constants."""
    decoupled = dcl(z1, z2, temperature=temperature, ids=ids, negatives=negatives, negatives_ids=negatives_ids)
    positives = torch.stack([a @ b for a, b in zip(unit(z1), unit(z2), strict=True)])
    exponentials = [math.exp(number(s) / sigma) for s in positives]
    weights = torch.tensor([2 - e / (sum(exponentials) / len(exponentials)) for e in exponentials], dtype=torch.float64)
    return decoupled + ((1 - weights) * positives / temperature)[:, None]


def supcon(*views: Tensor, temperature: float | Tensor, labels: Ids, ids: Ids | None = None) -> Tensor:
    """Khosla et al., 2020, eq. 2, (B, V); a row has the label of the first row of its sample."""
    ids = _default(ids, views[0])
    rows = [(labels[list(ids).index(ids[i])], row) for i in range(len(ids)) for row in (unit(z)[i] for z in views)]
    losses = []
    for a, (label, anchor) in enumerate(rows):
        others = [(other, anchor @ row / temperature) for b, (other, row) in enumerate(rows) if b != a]
        positives = [s for other, s in others if other == label]
        if positives:
            losses.append(log_sum_exp([s for _, s in others], anchor) - sum(positives) / len(positives))
        else:
            losses.append(log_sum_exp([], anchor))
    return torch.stack(losses).view(len(ids), len(views))


def hcl(
    z1: Tensor,
    z2: Tensor,
    *,
    temperature: float | Tensor,
    tau_plus: float,
    beta: float,
    ids: Ids | None = None,
    negatives: Tensor | None = None,
    negatives_ids: Tensor | None = None,
) -> Tensor:
    """Robinson et al., 2021, eq. 4, with the floor of the authors' code: where it holds, Ng is a constant."""
    ids = _default(ids, z1)

    def value(i: int, view: int, rows: list[list[Tensor]]) -> Tensor:
        others = similarities(i, view, rows, ids) + _extra(i, rows[view][i], negatives, negatives_ids, ids)
        if not others:
            return log_sum_exp([], rows[view][i])
        count = len(others)
        scores = [s / temperature for s in others]
        shift = max(number(score) for score in scores)
        hardness = [(beta * (score - shift)).exp() for score in scores]
        reweighted = sum(w * (score - shift).exp() for w, score in zip(hardness, scores, strict=True)) / sum(hardness)
        positive = rows[view][i] @ rows[1 - view][i] / temperature
        # Everything below is divided by exp(shift), which the last line puts back.
        debiased = (count * reweighted - tau_plus * count * (positive - shift).exp()) / (1 - tau_plus)
        floor = count * math.exp(-1 / number(temperature) - shift)
        kept = debiased if number(debiased) > floor else torch.as_tensor(floor, dtype=torch.float64)
        return log_sum_exp([positive, kept.log() + shift], positive) - positive

    return _per_anchor(z1, z2, value)


def debiased(
    z1: Tensor,
    z2: Tensor,
    *,
    temperature: float | Tensor,
    tau_plus: float,
    ids: Ids | None = None,
    negatives: Tensor | None = None,
    negatives_ids: Tensor | None = None,
) -> Tensor:
    """Chuang et al., 2020, eq. 8: the negatives all weigh the same."""
    params = {"temperature": temperature, "tau_plus": tau_plus, "beta": 0.0}
    return hcl(z1, z2, **params, ids=ids, negatives=negatives, negatives_ids=negatives_ids)


def dhel(z1: Tensor, z2: Tensor, *, temperature: float | Tensor, both_views: bool = True, ids: Ids | None = None) -> Tensor:
    """Koromilas et al., 2024, eq. 7, (B, 1)."""
    ids = _default(ids, z1)
    rows = [unit(z1), unit(z2)]
    losses = []
    for i in range(len(z1)):
        loss = -(rows[0][i] @ rows[1][i]) / temperature
        for view in range(2 if both_views else 1):
            others = similarities(i, view, rows, ids, views=[view])
            loss = loss + log_sum_exp([s / temperature for s in others], rows[view][i])
        losses.append(loss)
    return torch.stack(losses)[:, None]


def alignment_uniformity(
    z1: Tensor, z2: Tensor, *, alpha: float = 2.0, t: float = 2.0, weight: float = 1.0, ids: Ids | None = None
) -> Tensor:
    """Wang and Isola, 2020, section 4, one number, the mean of the uniformity of both views."""
    ids, rows = _default(ids, z1), [unit(z1), unit(z2)]
    squares = [(a - b).square().sum() for a, b in zip(*rows, strict=True)]
    alignment = sum(d2 ** (alpha / 2) if number(d2) > 0 else d2 for d2 in squares) / len(ids)
    pairs = [(i, j) for i in range(len(ids)) for j in range(i) if ids[i] != ids[j]]
    logits = [[-t * (view[i] - view[j]).square().sum() for i, j in pairs] for view in rows]
    uniformities = [log_sum_exp(of_view, z1) - math.log(len(pairs)) for of_view in logits]
    return alignment + weight * sum(uniformities) / 2


def spectral_contrastive(z1: Tensor, z2: Tensor, *, radius: float = 1.0, ids: Ids | None = None) -> Tensor:
    """HaoChen et al., 2021, eq. 6, over the squared radius, one number."""
    ids = _default(ids, z1)
    rows = [[radius * row for row in unit(z)] for z in (z1, z2)]
    pull = sum(a @ b for a, b in zip(*rows, strict=True)) / len(ids)
    push = [(rows[0][i] @ rows[1][j]) ** 2 for i in range(len(ids)) for j in range(len(ids)) if ids[i] != ids[j]]
    return (sum(push) / len(push) - 2 * pull) / radius**2


def kcl(z1: Tensor, z2: Tensor, *, kernel: str, t: float, gamma: float, ids: Ids | None = None) -> Tensor:
    """Koromilas et al., 2024, section 5, one number; the energy of the log kernel has the factor 1/2 of the authors' code."""
    ids = _default(ids, z1)
    aligned, aligned_t = ("gaussian", 2.0) if kernel == "gaussian_riesz" else (kernel, t)
    spread = "riesz" if kernel == "gaussian_riesz" else kernel
    rows = [torch.stack(unit(z)) for z in (z1, z2)]
    alignment = sum(kernel_of(aligned, a, b, aligned_t) for a, b in zip(*rows, strict=True)) / len(z1)
    pairs = sum(a != b for a in ids for b in ids)
    energy = sum(kernel_sum(view, spread, t, ids).sum() for view in rows) / pairs
    return -2 * alignment + gamma * (0.5 if kernel == "log" else 1.0) * energy


def siglip(z1: Tensor, z2: Tensor, *, init_scale: float, init_bias: float, ids: Ids | None = None) -> Tensor:
    """Zhai et al., 2023, eq. 2, (B, 1): the sum over all pairs, by rows of view 1."""
    ids = _default(ids, z1)
    x, y = unit(z1), unit(z2)
    losses = []
    for i, row in enumerate(x):
        loss = softplus(-(init_scale * (row @ y[i]) + init_bias))
        others = [row @ y[j] for j in range(len(y)) if ids[j] != ids[i]]
        losses.append(sum((softplus(init_scale * s + init_bias) for s in others), loss))
    return torch.stack(losses)[:, None]


def _generalised(z1: Tensor, z2: Tensor, classes: Ids | None, beta: float, self_positive: bool, ids: Ids | None) -> Tensor:
    """Jiang et al., 2023, in the expectation, (B, 2), times the number of anchors over the number of pairs.

    Without classes the positives are the rows of the sample, and the negatives all rows or, if an anchor is no positive of
    itself, those of other samples. The weights of the negatives are constants.
    """
    ids = list(_default(ids, z1))
    of_sample = ids if classes is None else [classes[ids.index(sample)] for sample in ids]
    rows = [row for pair in zip(unit(z1), unit(z2), strict=True) for row in pair]
    groups = [group for group in of_sample for _ in range(2)]
    losses, pairs = [], 0
    for i, row in enumerate(rows):
        positives = [j for j in range(len(rows)) if groups[j] == groups[i] and (self_positive or j != i)]
        everyone = classes is None and self_positive
        negatives = [row @ rows[n] for n in range(len(rows)) if everyone or groups[n] != groups[i]]
        weights = [(beta * s.detach()).exp() for s in negatives]
        mean = sum(w * s.exp() for w, s in zip(weights, negatives, strict=True)) / sum(weights)
        losses.append(sum((1 + mean / (row @ rows[j]).exp()).log() for j in positives))
        pairs += len(positives)
    return torch.stack(losses).view(-1, 2) * (len(rows) / pairs)


def ucl(z1: Tensor, z2: Tensor, *, self_positive: bool = True, ids: Ids | None = None) -> Tensor:
    """All rows count alike."""
    return _generalised(z1, z2, None, 0.0, self_positive, ids)


def hucl(z1: Tensor, z2: Tensor, *, beta: float, self_positive: bool = True, ids: Ids | None = None) -> Tensor:
    """Similar rows count more."""
    return _generalised(z1, z2, None, beta, self_positive, ids)


def scl(z1: Tensor, z2: Tensor, *, labels: Tensor, self_positive: bool = True, ids: Ids | None = None) -> Tensor:
    """Rows of other classes count alike."""
    return _generalised(z1, z2, labels.tolist(), 0.0, self_positive, ids)


def hscl(z1: Tensor, z2: Tensor, *, labels: Tensor, beta: float, self_positive: bool = True, ids: Ids | None = None) -> Tensor:
    """Similar rows of other classes count more."""
    return _generalised(z1, z2, labels.tolist(), beta, self_positive, ids)
