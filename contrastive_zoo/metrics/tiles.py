"""Values of pairs of rows, one tile of the N x N matrix at a time."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from contrastive_zoo.operators import without_autocast

TILE = 1024


def blocks(rows: Tensor, size: int = 0) -> tuple[Tensor, ...]:
    """Consecutive rows in pieces of `TILE` rows, or of `size` rows if `size` is larger."""
    return torch.split(rows, max(TILE, size))


def unit_rows(z: Tensor) -> Tensor:
    """Rows scaled to length 1, whatever their magnitude; a zero row stays zero."""
    largest = z.abs().amax(dim=1, keepdim=True)
    return torch.nn.functional.normalize(z / largest.clamp_min(torch.finfo(z.dtype).tiny), dim=1)


def inner_products(x: Tensor, y: Tensor) -> Tensor:
    """`<x_i, y_j>` (N, M) of rows (N, D) and (M, D), in the precision of the rows even under autocast."""
    with without_autocast(x):
        return x @ y.T


def squared_distances(x: Tensor, y: Tensor) -> Tensor:
    """`|x_i - y_j|^2` (N, M) of rows (N, D) and (M, D), which must be float64: the formula subtracts near-equal numbers."""
    squares = x.square().sum(dim=1)[:, None] + y.square().sum(dim=1)
    return (squares - 2 * inner_products(x, y)).clamp_min_(0)


def pair_values(rows: Tensor, function: Callable[[Tensor, Tensor], Tensor]) -> Iterator[Tensor]:
    """The values of a symmetric `function` for all pairs of rows i < j, flat, tile by tile."""
    pieces = blocks(rows)
    for i, piece in enumerate(pieces):
        if len(piece) > 1:
            # Indices, since a mask would make the host wait for the number of its entries.
            row, column = torch.triu_indices(len(piece), len(piece), 1, device=rows.device)
            yield function(piece, piece)[row, column]
        for other in pieces[i + 1 :]:
            yield function(piece, other).flatten()
