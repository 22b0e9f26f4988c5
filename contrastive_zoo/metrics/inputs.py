"""Checks of the inputs of metrics, and conversion to the working dtype."""

import torch
from torch import Tensor

from contrastive_zoo import checks


def check_features(z: object, name: str, min_rows: int = 2) -> Tensor:
    """Check that `z` (N, D) is finite with at least `min_rows` rows; return `z` detached, in float32 or float64."""
    checks.check_features(name, z, (2,))
    assert isinstance(z, Tensor)
    checks.check_rows(name, z, min_rows)
    if z.device.type == "mps":  # MPS has no float64, which the sums need
        z = z.cpu()
    z = z.detach() if z.dtype == torch.float64 else z.detach().float()
    checks.check_finite(name, z)
    return z


def check_pair(z1: object, z2: object, min_rows: int = 1) -> tuple[Tensor, Tensor]:
    """Two checked feature matrices of one shape, on one device, in the wider of their dtypes."""
    x, y = check_features(z1, "z1", min_rows), check_features(z2, "z2", min_rows)
    checks.check_same("z1", x, "z2", y)
    return _in_one_dtype(x, y)


def check_labels(labels: object, features: Tensor, name: str) -> Tensor:
    """Check that `labels` (N,) holds one integer per row; return `labels` as int64 on the device of `features` (N, D)."""
    checks.check_integers(name, labels, len(features))
    assert isinstance(labels, Tensor)
    return labels.detach().to(features.device, torch.int64)


def number_classes(labels: Tensor) -> tuple[Tensor, Tensor]:
    """The different labels (C,), ascending, and for each row the position of its label among them (N,)."""
    values, classes = torch.unique(labels, return_inverse=True)
    return values, classes


def check_split(
    train: object, train_labels: object, test: object, test_labels: object, names: tuple[str, str, str, str]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Labelled training and test features of one width, on one device; `names` are the caller's argument names."""
    x, y = check_features(train, names[0], min_rows=1), check_features(test, names[2], min_rows=1)
    checks.check_width(names[0], x, names[2], y)
    x, y = _in_one_dtype(x, y)
    return x, check_labels(train_labels, x, names[1]), y, check_labels(test_labels, y, names[3])


def _in_one_dtype(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    dtype = torch.promote_types(x.dtype, y.dtype)
    return x.to(dtype), y.to(dtype)
