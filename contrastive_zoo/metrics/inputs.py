"""What the metrics accept: every check of this package, and the dtype it computes in."""

import torch
from torch import Tensor


def check_features(z: object, name: str, min_rows: int = 2) -> Tensor:
    """`z` (N, D) detached, in float32 or float64, once it is known to be finite, with at least `min_rows` rows."""
    if not isinstance(z, Tensor):
        raise TypeError(f"{name} is a {type(z).__name__}; a torch.Tensor is wanted: pass torch.as_tensor({name}).")
    if not z.is_floating_point():
        raise TypeError(f"{name} has dtype {z.dtype}; features are floating point: pass {name}.float().")
    if z.dim() != 2 or z.shape[1] == 0:
        raise ValueError(f"{name} has shape {tuple(z.shape)}; (rows, features) is wanted: flatten or stack it first.")
    if len(z) < min_rows:
        raise ValueError(f"{name} has {len(z)} row(s); at least {min_rows} are needed: pass more samples.")
    if z.device.type == "mps":  # has no float64, in which the sums are kept
        z = z.cpu()
    z = z.detach() if z.dtype == torch.float64 else z.detach().float()
    if not z.isfinite().all():
        bad = int((~z.isfinite().all(dim=1)).sum())
        raise ValueError(f"{name} has NaN or infinite entries in {bad} of {len(z)} rows: drop or repair these rows.")
    return z


def check_pair(z1: object, z2: object, min_rows: int = 1) -> tuple[Tensor, Tensor]:
    """Two checked feature matrices of one shape, on one device, in the wider of their dtypes."""
    x, y = check_features(z1, "z1", min_rows), check_features(z2, "z2", min_rows)
    if x.shape != y.shape:
        raise ValueError(
            f"z1 has shape {tuple(x.shape)} and z2 {tuple(y.shape)}; they must be equal, "
            "because row i of z1 and row i of z2 belong together."
        )
    return _in_one_dtype(x, y, "z1", "z2")


def check_labels(labels: object, features: Tensor, name: str, of: str) -> Tensor:
    """`labels` (N,) as int64 on the device of `features` (N, D), once it is known to hold one integer per row."""
    if not isinstance(labels, Tensor):
        raise TypeError(f"{name} is a {type(labels).__name__}; a torch.Tensor is wanted: pass torch.as_tensor({name}).")
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise TypeError(f"{name} has dtype {labels.dtype}; class labels are integers: pass {name}.long().")
    if labels.shape != features.shape[:1]:
        raise ValueError(
            f"{name} has shape {tuple(labels.shape)}; {of} has {len(features)} rows, "
            f"so ({len(features)},) is wanted: one label per row."
        )
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
    if x.shape[1] != y.shape[1]:
        raise ValueError(
            f"{names[0]} has {x.shape[1]} features per row and {names[2]} {y.shape[1]}; "
            "they must be equal: take both from the same layer of the same model."
        )
    x, y = _in_one_dtype(x, y, names[0], names[2])
    return (
        x,
        check_labels(train_labels, x, names[1], of=names[0]),
        y,
        check_labels(test_labels, y, names[3], of=names[2]),
    )


def _in_one_dtype(x: Tensor, y: Tensor, x_name: str, y_name: str) -> tuple[Tensor, Tensor]:
    if x.device != y.device:
        raise ValueError(f"{x_name} is on {x.device} and {y_name} on {y.device}: move one to the device of the other.")
    dtype = torch.promote_types(x.dtype, y.dtype)
    return x.to(dtype), y.to(dtype)
