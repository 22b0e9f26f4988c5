"""What holds for all metrics alike."""

import doctest
import importlib
import pkgutil

import pytest
import torch
from accelerator import DEVICE, accelerator
from torch.utils._python_dispatch import TorchDispatchMode

from contrastive_zoo import metrics
from contrastive_zoo.metrics import tiles

ROWS, FEATURES = 90, 6
generator = torch.Generator().manual_seed(0)
LABELS = torch.randint(0, 4, (ROWS,), generator=generator)
Z1 = torch.randn(ROWS, FEATURES, generator=generator) + torch.randn(4, FEATURES, generator=generator)[LABELS]
Z2 = Z1 + torch.randn(ROWS, FEATURES, generator=generator)

CALLS = {
    "alignment": lambda z1, z2, y: metrics.alignment(z1, z2),
    "uniformity": lambda z1, z2, y: metrics.uniformity(z1),
    "wasserstein_uniformity": lambda z1, z2, y: metrics.wasserstein_uniformity(z1),
    "spectrum": lambda z1, z2, y: metrics.spectrum(z1).cpu().tolist(),
    "rank": lambda z1, z2, y: metrics.rank(z1),
    "effective_rank": lambda z1, z2, y: metrics.effective_rank(z1),
    "rankme": lambda z1, z2, y: metrics.rankme(z1),
    "alpha_req": lambda z1, z2, y: metrics.alpha_req(z1, first=1),
    "cosine_density": lambda z1, z2, y: metrics.cosine_density(z1, bins=8).density.tolist(),
    "neural_collapse": lambda z1, z2, y: list(metrics.neural_collapse(z1, y)),
    "within_class_distance": lambda z1, z2, y: metrics.within_class_distance(z1, y),
    "nearest_class_mean": lambda z1, z2, y: metrics.nearest_class_mean(z1, y, z2, y),
    "knn_accuracy": lambda z1, z2, y: metrics.knn_accuracy(z1, y, z2, y),
    "linear_probe": lambda z1, z2, y: metrics.linear_probe(z1, y, z2, y),
    "few_label_probe": lambda z1, z2, y: list(metrics.few_label_probe(z1, y, z2, y, fraction=1.0, draws=2)),
    "global_contrastive_loss": lambda z1, z2, y: metrics.global_contrastive_loss(z1, z2, temperature=0.5),
    "retrieval_accuracy": lambda z1, z2, y: [*metrics.retrieval_accuracy(z1, z2).z1_to_z2.values()],
}
every_metric = pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)


def test_every_public_function_is_here():
    functions = {name for name in metrics.__all__ if name[0].islower()}
    assert functions == set(CALLS) | {"gradient_error"}  # which is about a loss, and has tests of its own
    assert all(hasattr(metrics, name) for name in metrics.__all__)


@pytest.mark.parametrize("module", [module.name for module in pkgutil.iter_modules(metrics.__path__)])
def test_docstring_examples(module):
    module = importlib.import_module(f"contrastive_zoo.metrics.{module}")
    assert doctest.testmod(module, extraglobs={"torch": torch}).failed == 0


@every_metric
def test_order_of_rows_does_not_matter(call):
    order = torch.randperm(ROWS, generator=torch.Generator().manual_seed(1))
    assert call(Z1[order], Z2[order], LABELS[order]) == pytest.approx(call(Z1, Z2, LABELS), rel=1e-6)


@pytest.mark.parametrize("name", sorted(set(CALLS) - {"linear_probe", "few_label_probe"}))  # they standardise each feature
def test_rotation_does_not_matter(name):
    call = CALLS[name]
    rotation = torch.linalg.qr(torch.randn(FEATURES, FEATURES, dtype=torch.float64, generator=generator)).Q
    expected = call(Z1.double(), Z2.double(), LABELS)
    assert call(Z1.double() @ rotation, Z2.double() @ rotation, LABELS) == pytest.approx(expected, rel=1e-9)


@every_metric
def test_size_of_tiles_does_not_matter(call, monkeypatch):
    expected = call(Z1, Z2, LABELS)
    for size in (1, 13, 45, 89):
        monkeypatch.setattr(tiles, "TILE", size)
        assert call(Z1, Z2, LABELS) == pytest.approx(expected, rel=1e-6), size


@every_metric
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(call, dtype):
    z1, z2 = Z1.to(dtype), Z2.to(dtype)
    expected = call(z1.float(), z2.float(), LABELS)
    assert call(z1, z2, LABELS) == expected
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert call(z1, z2, LABELS) == expected


@every_metric
def test_float32_and_float64_agree(call):
    assert call(Z1, Z2, LABELS) == pytest.approx(call(Z1.double(), Z2.double(), LABELS), rel=1e-5)
    assert call(Z1, Z2.double(), LABELS) == pytest.approx(call(Z1, Z2, LABELS), rel=1e-5)


@every_metric
def test_result_is_plain_and_inputs_stay(call):
    z1, z2, labels = Z1.clone().requires_grad_(), Z2.clone().requires_grad_(), LABELS.clone().to(torch.int32)
    result = call(z1, z2, labels)
    values = result if isinstance(result, list) else [result]
    assert all(isinstance(value, (float, int)) for value in values)
    assert torch.equal(z1, Z1)
    assert torch.equal(z2, Z2)
    assert torch.equal(labels, LABELS.int())


class LargestTensor(TorchDispatchMode):
    """Remembers the number of entries of the largest tensor that any operation returned."""

    entries = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(value, torch.Tensor):
                self.entries = max(self.entries, value.numel())
        return result


@every_metric
def test_no_matrix_of_all_pairs(call, monkeypatch):
    monkeypatch.setattr(tiles, "TILE", 64)
    z = torch.randn(3000, 4, generator=torch.Generator().manual_seed(2))  # a tile of the pairwise engine has 2^18 entries
    labels = torch.arange(3000) % 10
    with LargestTensor() as largest:
        call(z, z, labels)
    assert z.numel() <= largest.entries < 3000 * 3000 / 20


@pytest.mark.parametrize("name", sorted(set(CALLS) - {"linear_probe", "few_label_probe"}))  # scikit-learn's, on the CPU
def test_the_host_waits_for_no_tile(name, monkeypatch):
    def waits(size):
        monkeypatch.setattr(tiles, "TILE", size)
        with accelerator() as device:
            z1, z2, labels = (t.to(DEVICE) for t in (Z1.double(), Z2.double(), LABELS))
            device.forget()
            CALLS[name](z1, z2, labels)
            return len(device.waits)

    assert waits(7) == waits(90)


def test_no_matrix_of_all_classes(monkeypatch):
    monkeypatch.setattr(tiles, "TILE", 64)
    z = torch.randn(1500, 4, generator=torch.Generator().manual_seed(2))
    with LargestTensor() as largest:
        metrics.neural_collapse(z, torch.arange(1500))
    assert z.numel() <= largest.entries < 1500 * 1500 / 20


def test_largest_tensor_sees_a_matrix_of_all_pairs():
    z = torch.randn(300, 4)
    with LargestTensor() as largest:
        (z @ z.T).sum()
    assert largest.entries == 300 * 300


@every_metric
@pytest.mark.parametrize(
    ("spoil", "error", "message"),
    [
        (lambda z: z.long(), TypeError, r"hold floating-point features, got torch.int64.*\.float\(\)"),
        (lambda z: z.to(torch.complex64), TypeError, "got torch.complex64"),
        (lambda z: z.numpy(), TypeError, r"be a tensor of shape \(rows, features\), got ndarray"),
        (lambda z: z[:, 0], ValueError, r"be \(rows, features\), got shape \(90,\)"),
        (lambda z: z[:, :0], ValueError, r"shape \(90, 0\)"),
        (lambda z: z[None], ValueError, r"shape \(1, 90, 6\)"),
        (lambda z: z[:0], ValueError, r"empty: shape \(0, 6\)"),
        (lambda z: z.index_fill(0, torch.tensor([2, 5]), torch.nan), ValueError, "in 2 of 90 rows, first in row 2"),
        (lambda z: z.index_fill(0, torch.tensor([7]), torch.inf), ValueError, "in 1 of 90 rows"),
    ],
)
def test_bad_features_are_named(call, spoil, error, message):
    with pytest.raises(error, match=rf"^(z|z1|features|train|train_z) (must|is|holds) .*{message}"):
        call(spoil(Z1), Z2, LABELS)


@pytest.mark.parametrize(
    "name", ["uniformity", "wasserstein_uniformity", "cosine_density", "spectrum", "alpha_req", "rank", "neural_collapse"]
)
def test_one_row_has_no_pair_and_no_covariance(name):
    with pytest.raises(ValueError, match=r"must have at least 2 rows, got shape \(1, 6\)"):
        CALLS[name](Z1[:1], Z2[:1], LABELS[:1])


@pytest.mark.parametrize("name", ["alignment", "retrieval_accuracy", "global_contrastive_loss"])
def test_pairs_must_fit(name):
    with pytest.raises(ValueError, match=r"same shape, got \(90, 6\) and \(89, 6\)"):
        CALLS[name](Z1, Z2[:-1], LABELS)
    with pytest.raises(ValueError, match=r"same shape, got \(90, 6\) and \(90, 5\)"):
        CALLS[name](Z1, Z2[:, :-1], LABELS)


LABELLED = ["neural_collapse", "within_class_distance", "nearest_class_mean", "knn_accuracy", "linear_probe", "few_label_probe"]


@pytest.mark.parametrize("name", LABELLED)
@pytest.mark.parametrize(
    ("labels", "error", "message"),
    [
        (LABELS.float(), TypeError, r"hold integers \(torch.int64\), got torch.float32"),
        (LABELS > 1, TypeError, "got torch.bool"),
        (LABELS.tolist(), TypeError, r"be an integer tensor of shape \(90,\), got list"),
        (LABELS[:-1], ValueError, r"have shape \(90,\), one entry per sample, got \(89,\)"),
        (LABELS[:, None], ValueError, r"got \(90, 1\)"),
    ],
)
def test_bad_labels_are_named(name, labels, error, message):
    with pytest.raises(error, match=rf"^(labels|train_labels|train_y) must .*{message}"):
        CALLS[name](Z1, Z2, labels)
