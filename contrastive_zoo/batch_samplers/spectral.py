"""Balanced spectral clustering of the loss graph, on blocks of k batches.

Cho et al., "Mini-Batch Optimization of Contrastive Loss", 2023. arXiv:2307.05906
"""

import warnings
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import one_hot

from contrastive_zoo.batch_samplers.assignment import Labels, Matrix, balanced_assignment
from contrastive_zoo.batch_samplers.base import Positions
from contrastive_zoo.batch_samplers.graph import affinity
from contrastive_zoo.batch_samplers.selection import SelectedPartition
from contrastive_zoo.checks import check_at_most, check_count, check_number
from contrastive_zoo.pairwise.kernels import LOG2_E
from contrastive_zoo.registry import batch_samplers

BLOCK = 40
# Blocks in the Krylov basis, each half as wide as the number of eigenvectors; more accuracy does not improve the clusters.
KRYLOV_DEPTH = 11

# Maximum rounds of kernel k-means, and the relative gain per round below which iteration stops.
ROUNDS, GAIN = 4, 0.01

# Largest logarithm of weights whose sums do not overflow in float32.
LOG_WEIGHT_LIMIT = 60.0


def spectral_partition(z1: Tensor, z2: Tensor, *, batch_size: int, temperature: float = 0.1, seed: int = 0) -> Positions:
    """Split rows into batches that cut few heavy edges of the loss graph.

    The leading eigenvectors of the normalised adjacency matrix, one per batch, map every sample to a point. k-means clusters
    the directions of these points, and samples are assigned to the centres in equal numbers. Kernel k-means follows: it moves
    samples to the batch to which they have the heaviest edges, while this raises the sum of `loss_graph` within batches by more
    than 1% per round.

    Args:
        z1: (n, D) rows of length 1, n a multiple of batch_size.
        z2: (n, D) rows of length 1.
        batch_size: Samples in a batch.
        temperature: Divides the similarities; use the temperature of the loss.
        seed: Random seed of the starts of both iterations.

    Returns:
        (n / batch_size, batch_size).

    Raises:
        ImportError: scikit-learn is not installed.
        TypeError: A number has the wrong type.
        ValueError: A number is out of range.
    """
    size, seed = check_count("batch_size", batch_size), check_count("seed", seed, low=0)
    divisor = check_number("temperature", temperature, low=0, open_low=True)
    clusters = len(z1) // size
    if clusters == 1 or size == 1:
        return np.arange(len(z1)).reshape(clusters, size)
    graph = affinity(z1, z2, size, divisor)
    points = _embedding(_normalised_adjacency(graph), clusters, seed)
    batch = _refined(graph, balanced_assignment(_squared_distances(points, clusters, seed)), clusters)
    return np.argsort(batch, kind="stable").reshape(clusters, size)


def _normalised_adjacency(graph: Tensor) -> Tensor:
    """D^-1/2 W D^-1/2 of the weights W = exp(graph) without self-loops; in log space if weights may overflow."""
    if float(graph.max()) < LOG_WEIGHT_LIMIT:
        weights = graph.mul(LOG2_E).exp2_().fill_diagonal_(0)
        scale = weights.sum(1).rsqrt_()
        return weights.mul_(scale[:, None]).mul_(scale)
    log_weights = graph.clone().fill_diagonal_(-torch.inf)
    half = log_weights.logsumexp(1) / 2
    return log_weights.sub_(half[:, None]).sub_(half).mul_(LOG2_E).exp2_()


def _embedding(adjacency: Tensor, dimensions: int, seed: int) -> Matrix:
    """Directions (n, dimensions) of the samples in the space of the leading eigenvectors."""
    vectors = _leading_eigenvectors(adjacency, dimensions, seed).double().numpy()
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.maximum(length, np.finfo(vectors.dtype).tiny)


def _leading_eigenvectors(matrix: Tensor, count: int, seed: int) -> Tensor:
    """Approximate eigenvectors (n, count) of the largest eigenvalues, by block Lanczos from a random start.

    They are the Ritz vectors of the Krylov space of the start, whose basis is kept orthonormal.
    """
    width = max(2, count // 2)
    if 2 * KRYLOV_DEPTH * width >= len(matrix):
        return torch.linalg.eigh(matrix).eigenvectors[:, -count:]
    start = torch.from_numpy(np.random.default_rng(seed).standard_normal((len(matrix), width)))
    basis, projected = matrix.new_zeros(len(matrix), 0), matrix.new_zeros(KRYLOV_DEPTH * width, KRYLOV_DEPTH * width)
    images = start.to(matrix)
    for step in range(KRYLOV_DEPTH):
        block = _orthonormal(images, basis)
        basis = torch.cat([basis, block], 1)
        images = matrix @ block
        # Upper triangle of blocks; the lower triangle is its transpose.
        projected[: basis.shape[1], step * width : (step + 1) * width] = basis.T @ images
    return basis @ torch.linalg.eigh(projected, UPLO="U").eigenvectors[:, -count:]


def _orthonormal(columns: Tensor, basis: Tensor) -> Tensor:
    """Orthonormal columns, orthogonal to the basis; the second iteration removes rounding errors of the first."""
    for _ in range(2):
        columns = columns - basis @ (basis.T @ columns)
    return torch.linalg.qr(columns).Q


def _squared_distances(points: Matrix, clusters: int, seed: int) -> Matrix:
    """Squared distances from each point to each centre of k-means, (n, clusters)."""
    try:
        from sklearn.cluster import KMeans
        from sklearn.exceptions import ConvergenceWarning
    except ImportError as error:
        raise _missing() from error
    restarts = min(10, max(1, 2048 // len(points)))  # small problems have bad local optima, and take no time
    with warnings.catch_warnings():
        # Equal features can give fewer distinct points than centres; the balanced assignment handles this case.
        warnings.simplefilter("ignore", ConvergenceWarning)
        kmeans = KMeans(clusters, n_init=restarts, random_state=seed).fit(points)
    return np.square(kmeans.transform(points))


def _refined(graph: Tensor, batch: Labels, clusters: int) -> Labels:
    """The batches after kernel k-means with equal sizes; the weight within batches does not decrease."""
    weight = _weight_to_batches(graph, batch, clusters)
    total = _own(weight, batch).sum()
    for _ in range(ROUNDS):
        moved = balanced_assignment(weight.max() - weight)
        weight = _weight_to_batches(graph, moved, clusters)
        gained = _own(weight, moved).sum() - total
        if gained > 0:
            batch, total = moved, total + gained
        if gained <= GAIN * total:
            break
    return batch


def _weight_to_batches(graph: Tensor, batch: Labels, clusters: int) -> Matrix:
    """Sum of the graph from each sample to the members of each batch, (n, clusters)."""
    return (graph @ one_hot(torch.from_numpy(batch), clusters).to(graph)).double().numpy()


def _own(weight: Matrix, batch: Labels) -> Matrix:
    return np.take_along_axis(weight, batch[:, None], 1)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Use a single thread: for small blocks, threads of PyTorch and scikit-learn wait much longer than they work."""
    try:
        from threadpoolctl import threadpool_limits  # comes with scikit-learn
    except ImportError as error:
        raise _missing() from error
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # also for MKL, which threadpool_limits does not cover
    try:
        with threadpool_limits(1):
            yield
    finally:
        torch.set_num_threads(threads)


def _missing() -> ImportError:
    return ImportError("clustering of batches needs scikit-learn: pip install 'contrastive-zoo[selection]'.")


class BlockBatches(SelectedPartition):
    """Blocks of k batches, each split by `spectral_partition`; subclasses choose the samples of each block.

    Args:
        num_samples: Size of the dataset.
        batch_size: Samples in a global batch.
        k: Maximum number of batches in a block; by default 40, or all batches if there are fewer.
        temperature: Divides the similarities; use the temperature of the loss.
        seed: Random seed.
        drop_last: Whether to drop a last batch that is smaller than the batch size.
        num_replicas: Number of processes; by default the size of the process group when a pass begins, or 1 without a group.
        rank: Rank of this process; by default its rank in the process group when a pass begins, or 0 without a group.

    Raises:
        TypeError: A value is of the wrong type.
        ValueError: k exceeds the number of batches, or a value is out of range.
    """

    def __init__(
        self,
        *,
        num_samples: int,
        batch_size: int,
        k: int | None = None,
        temperature: float = 0.1,
        seed: int = 0,
        drop_last: bool = True,
        num_replicas: int | None = None,
        rank: int | None = None,
    ) -> None:
        super().__init__(
            num_samples=num_samples,
            batch_size=batch_size,
            seed=seed,
            drop_last=drop_last,
            num_replicas=num_replicas,
            rank=rank,
        )
        batches = self.num_samples // self.batch_size
        self.k = check_count("k", min(BLOCK, batches) if k is None else k)
        check_at_most("k", self.k, "the number of whole batches", batches)
        self.temperature = check_number("temperature", temperature, low=0, open_low=True)

    @abstractmethod
    def blocks(self, z1: Tensor, z2: Tensor, positions: Positions, generator: "np.random.Generator") -> list[Positions]:
        """Split the positions into blocks of at most k whole batches."""

    def part(self, z1: Tensor, z2: Tensor, positions: Positions, generator: "np.random.Generator") -> Positions:
        """See `SelectedPartition.part`."""
        blocks = self.blocks(z1, z2, positions, generator)
        with _one_thread():
            return np.concatenate([self._batches(z1, z2, block, int(generator.integers(2**31))) for block in blocks])

    def _batches(self, z1: Tensor, z2: Tensor, block: Positions, seed: int) -> Positions:
        rows = torch.from_numpy(block)
        batches = spectral_partition(z1[rows], z2[rows], batch_size=self.batch_size, temperature=self.temperature, seed=seed)
        return block[batches].reshape(-1)


@batch_samplers.register(
    "spectral",
    title="Balanced spectral clustering",
    summary="Splits random blocks of k batches so that samples that are hard for each other share a batch.",
    paper="Cho et al., 2023. arXiv:2307.05906",
    draws=True,
    scale="The graph equals the authors' graph; the batches have at least the loss of the authors' batches.",
    differences=(
        "Points are scaled to length 1 (Ng, Jordan and Weiss, 2002) before they are clustered.",
        "Batches are refined by kernel k-means.",
        "Leading eigenvectors are approximate, and for large blocks k-means has a single start.",
    ),
)
class SpectralBatches(BlockBatches):
    """Random blocks of k batches, each split by balanced spectral clustering; see `BlockBatches` for the arguments.

    Call `refresh` before every epoch. Needs scikit-learn: ``pip install 'contrastive-zoo[selection]'``. A block takes
    O((k * batch_size)^2 * k) time. Samples that do not fill a batch are drawn at random.

    Examples:
        >>> import torch
        >>> import contrastive_zoo as zoo
        >>> z = torch.eye(2).repeat(4, 1)
        >>> sampler = zoo.get_batch_sampler("spectral", num_samples=8, batch_size=4)
        >>> sampler.refresh(z, z, torch.arange(8))
        >>> sorted(sorted(batch) for batch in sampler)
        [[0, 2, 4, 6], [1, 3, 5, 7]]
    """

    def blocks(self, z1: Tensor, z2: Tensor, positions: Positions, generator: "np.random.Generator") -> list[Positions]:
        """See `BlockBatches.blocks`."""
        size = self.k * self.batch_size
        return np.split(positions, list(range(size, len(positions), size)))
