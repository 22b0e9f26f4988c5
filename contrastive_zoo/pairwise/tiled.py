r"""The pairwise log-sum-exp by tiles: never more than a few tiles in memory, gradient by hand.

A sweep is *bounded* when one scale serves all rows and all logits are known to be so small that $e^{s_{ij}}$ neither
overflows nor underflows: then no maximum is needed and one exponential serves rows and columns. Any other sweep (tiny
temperatures, a scale per row) is *shifted*: rows and columns keep a running maximum each.

Shapes: N rows of `x`, M rows of `keys`, D features, K scales. `README.md` beside this file derives the formulas.
"""

import torch
from torch import Tensor

from contrastive_zoo.pairwise.kernels import LOG2_E
from contrastive_zoo.pairwise.tiles import Tiles

# Largest |logit| for which exponentials, sums of 2^18 of them, and their inverses times 1e-10 are normal numbers.
LOGIT_LIMIT = {torch.float32: 60.0, torch.float64: 600.0}


def logsumexp_forward(
    x: Tensor,
    keys: Tensor | None,
    scale: Tensor,
    ids: Tensor | None,
    key_ids: Tensor | None,
    both: bool,
    norm_bound: float,
    kept: Tensor | None,
    part: tuple[int, int],
) -> tuple[Tensor, Tensor]:
    """Rows (K, N) and, if ``both``, columns (K, M); leaves the tiles in ``kept`` if there is room for them."""
    tiles = Tiles(x, keys, ids, key_ids, part)
    if scales := _bounded_scales(tiles, scale, norm_bound):
        return _bounded_forward(tiles, scales, both, kept)
    return _shifted_forward(tiles, scale.to(x), both, kept)


def logsumexp_backward(
    grad_rows: Tensor,
    grad_columns: Tensor,
    rows: Tensor,
    columns: Tensor,
    x: Tensor,
    keys: Tensor | None,
    scale: Tensor,
    ids: Tensor | None,
    key_ids: Tensor | None,
    both: bool,
    norm_bound: float,
    kept: Tensor | None,
    needs_keys: bool,
    needs_scale: bool,
    part: tuple[int, int],
    grad_x: Tensor,
) -> tuple[Tensor, Tensor]:
    """Adds the gradient of x to grad_x; returns those of keys, empty, and scale, zero, where they are not needed."""
    tiles = Tiles(x, keys, ids, key_ids, part)
    if tiles.symmetric:
        columns, grad_columns = rows, grad_rows
    grad_keys = grad_x if tiles.symmetric else torch.zeros_like(tiles.keys) if needs_keys else None
    on_rows, on_columns = (grad_rows, rows), (grad_columns, columns)
    if scales := _bounded_scales(tiles, scale, norm_bound):
        grad_scale = _bounded_backward(tiles, scales, both, on_rows, on_columns, grad_x, grad_keys, kept, needs_scale)
    else:
        grad_scale = _shifted_backward(tiles, scale.to(x), both, on_rows, on_columns, grad_x, grad_keys, kept, needs_scale)
    if not needs_scale:
        grad_scale = torch.zeros_like(scale)
    elif scale.shape[1] == 1:
        grad_scale = grad_scale.sum(1, keepdim=True)
    return x.new_empty(0) if tiles.symmetric or grad_keys is None else grad_keys, grad_scale


def _bounded_scales(tiles: Tiles, scale: Tensor, norm_bound: float) -> list[float]:
    """The scales as numbers if all logits are known, without waiting for an accelerator, to be far from overflow; else none."""
    if scale.shape[1] != 1 or not scale.is_cpu:
        return []
    scales: list[float] = scale.flatten().tolist()
    bound = norm_bound * norm_bound
    if norm_bound == torch.inf and tiles.x.is_cpu:
        bound = float(tiles.x.norm(dim=1).max()) * float(tiles.keys.norm(dim=1).max())
    return scales if max(map(abs, scales)) * bound <= LOGIT_LIMIT[tiles.x.dtype] else []


def _bounded_forward(tiles: Tiles, scales: list[float], both: bool, kept: Tensor | None) -> tuple[Tensor, Tensor]:
    rows = tiles.x.new_zeros(len(scales), tiles.x.shape[0])
    columns = rows if tiles.symmetric else rows.new_zeros(len(scales), tiles.keys.shape[0] if both else 0)
    for i, j in tiles:
        products = tiles.products(i, j, kept, _before_exponential(scales))
        for k in range(len(scales)):
            e = _exponential(tiles, products, scales, k, i, j)
            rows[k, i] += e.sum(1)
            if both or tiles.mirrored(i, j):
                columns[k, j] += e.sum(0)
    return rows.log_(), rows.new_empty(0) if tiles.symmetric else columns.log_()


def _before_exponential(scales: list[float]) -> float:
    """What similarities are multiplied by in their product: a single scale costs nothing there."""
    return scales[0] * LOG2_E if len(scales) == 1 else 1.0


def _exponential(tiles: Tiles, products: Tensor, scales: list[float], k: int, i: slice, j: slice) -> Tensor:
    """Exponentials of a tile at scale k, 0 at pairs that do not count; a single scale is already in the products."""
    if len(scales) > 1:
        products = torch.mul(products, scales[k] * LOG2_E, out=tiles.scratch(2, *products.shape))
    return tiles.exclude(products.exp2_(), i, j, 0)


def _bounded_backward(
    tiles: Tiles,
    scales: list[float],
    both: bool,
    on_rows: tuple[Tensor, Tensor],
    on_columns: tuple[Tensor, Tensor],
    grad_x: Tensor,
    grad_keys: Tensor | None,
    kept: Tensor | None,
    needs_scale: bool,
) -> Tensor:
    """Adds to grad_x and grad_keys; returns the gradient of the scale, (K, 1)."""
    two_sided = both or tiles.symmetric
    row_weight = _inverse_sum(*on_rows)
    column_weight = _inverse_sum(*on_columns) if both and not tiles.symmetric else row_weight
    single = len(scales) == 1
    # The sums depend on scale and x through scale * x only: the gradient of the scale follows from the one of scale * x.
    factor = scales[0] if single and not needs_scale else 1.0
    grad_scale = grad_x.new_zeros(len(scales), 1)
    for i, j in tiles:
        products = tiles.products(i, j, None, _before_exponential(scales)) if kept is None else tiles.room(kept, i, j)
        total = tiles.scratch(1, *products.shape)
        for k, scale in enumerate(scales):
            e = products if single and kept is not None else _exponential(tiles, products, scales, k, i, j)
            term = total if single else tiles.scratch(3, *products.shape)
            if two_sided:
                torch.add(row_weight[k, i, None], column_weight[k, None, j], out=term).mul_(e)
            else:
                torch.mul(e, row_weight[k, i, None], out=term)
            if not single:
                if needs_scale:
                    half = 0.5 if tiles.symmetric and not tiles.mirrored(i, j) else 1.0
                    grad_scale[k] += half * torch.dot(term.flatten(), products.flatten())
                total = torch.mul(term, scale, out=total) if k == 0 else total.add_(term, alpha=scale)
        _spread(tiles, i, j, total, grad_x, grad_keys, factor)
    if single and needs_scale:
        grad_scale += (grad_x * tiles.x).sum() / (2 if tiles.symmetric else 1)
        grad_x *= scales[0]
        if grad_keys is not None and grad_keys is not grad_x:
            grad_keys *= scales[0]
    return grad_scale


def _inverse_sum(grad: Tensor, logsumexp: Tensor) -> Tensor:
    """Upstream gradient over the sum of exponentials; 0 for a row without keys."""
    return logsumexp.neg().exp_().mul_(grad).masked_fill_(logsumexp == -torch.inf, 0)


def _spread(
    tiles: Tiles, i: slice, j: slice, weight: Tensor, grad_x: Tensor, grad_keys: Tensor | None, factor: float = 1.0
) -> None:
    """Adds a tile of derivatives, in the similarities, to the gradients of both sides."""
    grad_x[i].addmm_(weight, tiles.keys[j], alpha=factor)
    if grad_keys is not None and (not tiles.symmetric or tiles.mirrored(i, j)):
        grad_keys[j].addmm_(weight.T, tiles.x[i], alpha=factor)


def _shifted_forward(tiles: Tiles, scale: Tensor, both: bool, kept: Tensor | None) -> tuple[Tensor, Tensor]:
    rows = _RunningSum(tiles, scale.shape[0], tiles.x.shape[0])
    columns = rows if tiles.symmetric else _RunningSum(tiles, scale.shape[0], tiles.keys.shape[0] if both else 0)
    for i, j in tiles:
        products = tiles.products(i, j, kept)
        for k in range(scale.shape[0]):
            logits = tiles.exclude(
                torch.mul(products, _at(scale, k, i), out=tiles.scratch(2, *products.shape)), i, j, -torch.inf
            )
            rows.add(k, i, logits)
            if both or tiles.mirrored(i, j):
                torch.mul(products, _at(scale, k, j).T, out=logits)
                columns.add(k, j, tiles.exclude(logits, i, j, -torch.inf).T)
    return rows.result(), rows.total.new_empty(0) if tiles.symmetric else columns.result()


def _at(scale: Tensor, k: int, rows: slice) -> Tensor:
    """Scale of some rows, (rows, 1) or (1, 1)."""
    return scale[k, rows if scale.shape[1] > 1 else slice(None), None]


class _RunningSum:
    """Sum of exponentials of rows that arrive in parts, relative to the largest logit so far."""

    def __init__(self, tiles: Tiles, scales: int, size: int) -> None:
        self.largest = tiles.x.new_full((scales, size), -torch.inf)
        self.total = tiles.x.new_zeros(scales, size)

    def add(self, k: int, rows: slice, logits: Tensor) -> None:
        """Adds a part, and uses it up."""
        largest = torch.maximum(self.largest[k, rows], logits.amax(1))
        shift = torch.where(largest == -torch.inf, 0, largest)
        part = logits.sub_(shift[:, None]).exp_().sum(1)
        self.total[k, rows] = self.total[k, rows] * (self.largest[k, rows] - shift).exp() + part
        self.largest[k, rows] = largest

    def result(self) -> Tensor:
        return torch.where(self.largest == -torch.inf, -torch.inf, self.total.log() + self.largest)


def _shifted_backward(
    tiles: Tiles,
    scale: Tensor,
    both: bool,
    on_rows: tuple[Tensor, Tensor],
    on_columns: tuple[Tensor, Tensor],
    grad_x: Tensor,
    grad_keys: Tensor | None,
    kept: Tensor | None,
    needs_scale: bool,
) -> Tensor:
    """Adds to grad_x and grad_keys; returns the gradient of the scale, (K, N) or (K, 1 or more columns to be summed)."""
    grad_scale = tiles.x.new_zeros(scale.shape[0], tiles.x.shape[0])
    for i, j in tiles:
        products = tiles.products(i, j, None) if kept is None else tiles.room(kept, i, j)
        total = tiles.scratch(1, *products.shape).zero_()
        for k in range(scale.shape[0]):
            p = torch.mul(products, _at(scale, k, i), out=tiles.scratch(2, *products.shape))
            tiles.exclude(_to_probabilities(p, on_rows, k, i), i, j, 0)
            total.addcmul_(p, _at(scale, k, i))
            if needs_scale:
                grad_scale[k, i] += p.mul_(products).sum(1)
            if both or tiles.symmetric:
                torch.mul(products, _at(scale, k, j).T, out=p)
                _to_probabilities(p.T, on_columns, k, j)
                total.addcmul_(tiles.exclude(p, i, j, 0), _at(scale, k, j).T)
                if needs_scale and both:
                    grad_scale[k, 0] += p.mul_(products).sum()
                elif needs_scale and tiles.mirrored(i, j):
                    grad_scale[k, j] += p.mul_(products).sum(0)
        _spread(tiles, i, j, total, grad_x, grad_keys)
    return grad_scale


def _to_probabilities(logits: Tensor, on_rows: tuple[Tensor, Tensor], k: int, i: slice) -> Tensor:
    """Turns logits into softmax times upstream gradient, in place; 0 for a row without keys."""
    grad, logsumexp = on_rows[0][k, i], on_rows[1][k, i]
    empty = logsumexp == -torch.inf
    logits.sub_(torch.where(empty, torch.inf, logsumexp)[:, None]).exp_()
    return logits.mul_(torch.where(empty, 0, grad)[:, None])
