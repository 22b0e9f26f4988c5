"""Choosing batches: spectral clustering beside the authors' procedure, and what the near-linear way gives up.

    python benchmarks/batch_selection.py             # a few minutes
    python benchmarks/batch_selection.py --million   # also a million samples: some minutes more, 3 GB

One thread, seconds of the processor. Quality is the mean InfoNCE loss of a batch, both directions added: the higher the better;
as good means not below by more than two standard errors over seeds.
"""

import argparse
import math
import statistics
import time
from collections.abc import Callable
from typing import Any

import harness
import numpy as np
import torch
from harness import number
from torch import Tensor

BATCH, BLOCK, BAR, REPEATS = 32, 40, 5.0, 7
# Clusters, and the noise of a view against what its sample has in common with no other.
FEATURES = {"50 clusters": (50, 0.5), "no clusters": (1, 0.5), "200 clusters, noisy": (200, 1.0)}
TEMPERATURES = (0.1, 0.5, 1.0)
Batches = np.ndarray[Any, np.dtype[np.int64]]


def features(n: int, clusters: int, noise: float, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Two views (n, 128) of samples around cluster centres, as rows of length 1."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(clusters, harness.DIMENSION, generator=generator)
    x = centres[torch.randint(clusters, (n,), generator=generator)] + torch.randn(n, harness.DIMENSION, generator=generator)
    views = (x + noise * torch.randn(n, harness.DIMENSION, generator=generator) for _ in range(2))
    z1, z2 = (torch.nn.functional.normalize(view, dim=1) for view in views)
    return z1, z2


def authors_way(z1: Tensor, z2: Tensor, temperature: float, seed: int) -> Batches:
    """Spectral embedding, k-means from ten starts, linear assignment to copies of the centres; the graph is the zoo's."""
    from scipy.optimize import linear_sum_assignment
    from sklearn.cluster import KMeans
    from sklearn.manifold import spectral_embedding

    from contrastive_zoo.batch_samplers import loss_graph

    clusters = len(z1) // BATCH
    weights = loss_graph(z1, z2, batch_size=BATCH, temperature=temperature).exp().numpy()
    points = spectral_embedding(weights, n_components=clusters, drop_first=False, random_state=seed)
    centres = KMeans(clusters, n_init=10, random_state=seed).fit(points).cluster_centers_
    copies = np.repeat(centres, BATCH, axis=0)
    squared = (points**2).sum(1)[:, None] - 2 * points @ copies.T + (copies**2).sum(1)
    _, columns = linear_sum_assignment(squared)
    return np.argsort(columns // BATCH, kind="stable").reshape(clusters, BATCH)


def zoo_way(z1: Tensor, z2: Tensor, temperature: float, seed: int) -> Batches:
    from contrastive_zoo.batch_samplers import spectral_partition

    return spectral_partition(z1, z2, batch_size=BATCH, temperature=temperature, seed=seed)


def mean_loss(batches: Any, z1: Tensor, z2: Tensor, temperature: float, most: int = 400) -> float:
    """Over the first 400 batches."""
    chosen = torch.as_tensor(np.asarray(batches)[:most])
    similarity = z1[chosen] @ z2[chosen].mT / temperature
    positive = similarity.diagonal(dim1=1, dim2=2)
    return float((similarity.logsumexp(2) + similarity.logsumexp(1) - 2 * positive).mean())


def measure(work: Callable[[int], Batches], quality: Callable[[Batches], float]) -> tuple[float, list[float]]:
    """Median seconds, and the quality of each seed; the first run is not counted."""
    work(0)
    seconds, found = [], []
    for seed in range(REPEATS):
        start = time.process_time()
        batches = work(seed)
        seconds.append(time.process_time() - start)
        found.append(quality(batches))
    return statistics.median(seconds), found


def one_block(name: str, temperature: float) -> dict[str, Any]:
    """Both ways on 40 batches of 32."""
    z1, z2 = features(BLOCK * BATCH, *FEATURES[name])

    def quality(batches: Batches) -> float:
        return mean_loss(batches, z1, z2, temperature)

    theirs, their_losses = measure(lambda seed: authors_way(z1, z2, temperature, seed), quality)
    ours, our_losses = measure(lambda seed: zoo_way(z1, z2, temperature, seed), quality)
    random = [quality(np.random.default_rng(seed).permutation(len(z1)).reshape(-1, BATCH)) for seed in range(REPEATS)]
    error = math.sqrt((statistics.variance(their_losses) + statistics.variance(our_losses)) / REPEATS)
    losses = {"random": statistics.mean(random), "authors": statistics.mean(their_losses), "zoo": statistics.mean(our_losses)}
    as_good = losses["zoo"] >= losses["authors"] - 2 * error
    return {"features": name, "temperature": temperature, "authors": theirs, "zoo": ours, "losses": losses, "as_good": as_good}


def beside_authors() -> tuple[list[dict[str, Any]], str]:
    """A row for each kind of features and temperature."""
    data = [one_block(name, temperature) for name in FEATURES for temperature in TEMPERATURES]
    cells = []
    for row in data:
        times_faster = row["authors"] / row["zoo"]
        losses = [f"{row['losses'][who]:.4f}" for who in ("random", "authors", "zoo")]
        verdicts = ("met" if times_faster >= BAR else "MISSED", "yes" if row["as_good"] else "NO")
        times = (number(1e3 * row["authors"]), number(1e3 * row["zoo"]), number(times_faster))
        cells.append((row["features"], row["temperature"], *times, verdicts[0], *losses, verdicts[1]))
    header = ("features", "t", "authors' ms", "zoo ms", "times faster", "bar 5", "loss, random", "authors", "zoo", "as good")
    return data, harness.table(header, cells)


def at_scale(sizes: dict[int, dict[str, tuple[str, int | None]]]) -> tuple[list[dict[str, Any]], str]:
    """Random blocks, blocks of neighbours, and where it is possible one block of everything."""
    from contrastive_zoo.batch_samplers import get_batch_sampler

    data, cells = [], []
    for n, ways in sizes.items():
        z1, z2 = features(n, 1000, 0.5)
        for label, (name, k) in ways.items():
            params = {"temperature": 0.1, "k": k} if name != "shuffle" else {}
            sampler = get_batch_sampler(name, num_samples=n, batch_size=BATCH, **params)
            start = time.process_time()
            sampler.refresh(z1, z2, torch.arange(n))
            seconds = time.process_time() - start
            loss = mean_loss(list(sampler), z1, z2, 0.1, most=2000)
            data.append({"samples": n, "batches": label, "seconds": seconds, "loss": loss})
            cells.append((f"{n:,}", label, number(seconds), f"{loss:.4f}"))
    return data, harness.table(("samples", "batches", "seconds", "loss of a batch"), cells)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--million", action="store_true", help="also choose among a million samples")
    torch.set_num_threads(1)
    about = harness.machine()
    print(harness.heading(about), flush=True)
    blocks = {"shuffle": ("shuffle", None), "spectral, blocks of 40": ("spectral", BLOCK), "bisection": ("bisection", BLOCK)}
    whole = {"spectral, one block": ("spectral", 5120 // BATCH)}
    sizes = {5120: {**blocks, **whole}, 102_400: blocks}
    if parser.parse_args().million:
        sizes[1_000_000] = blocks
    first, beside = beside_authors()
    print(beside, flush=True)
    second, scale = at_scale(sizes)
    print(scale)
    harness.save("batch_selection", about, {"beside_authors": first, "at_scale": second}, f"{beside}\n\n{scale}")


if __name__ == "__main__":
    main()
