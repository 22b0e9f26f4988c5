"""Features of a whole dataset, for `refresh`."""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from contrastive_zoo.checks import FLOATING, check_features, check_integers, check_same, shape

Encoder = Callable[[Any], Tensor]
PASS_VIEWS = "Pass views=lambda batch: (x1, x2, index)."


@torch.no_grad()
def encode(
    encoder: Encoder | tuple[Encoder, Encoder],
    loader: Iterable[Any],
    *,
    views: Callable[[Any], tuple[Any, Any, Tensor]] | None = None,
    device: torch.device | str | None = None,
    amp: torch.dtype | None = None,
    progress: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Run an encoder over a loader: no gradients, evaluation mode, features on the CPU in float32 at least.

    Args:
        encoder: Maps inputs to (B, D) features; a pair of encoders for two modalities. The training mode of modules is
            restored.
        loader: Yields every sample once, e.g. ``DataLoader(zoo.IndexedDataset(dataset), batch_size=256)``; with several
            processes, the loaders together must yield every sample at least once.
        views: Maps a batch of the loader to (x1, x2, index). By default the index comes last, as in `IndexedDataset`, and two
            views first: ``(x1, x2, ..., index)`` or ``((x1, x2), ..., index)``. A second view that may be labels or a mask
            raises an error.
        device: Device of the inputs; by default the device of the encoder's parameters.
        amp: torch.float16 or torch.bfloat16 to enable autocast in this precision.
        progress: Whether to show a progress bar, which needs tqdm.

    Returns:
        z1 (N, D), z2 (N, D) and index (N,), ready for `BatchSampler.refresh`.

    Raises:
        ImportError: ``progress`` is set and tqdm is not installed.
        TypeError: Views and index cannot be distinguished, or index or features have the wrong type.
        ValueError: The loader yields no batch, or features and index do not have one row per sample.

    Examples:
        >>> import torch
        >>> import contrastive_zoo as zoo
        >>> dataset = torch.utils.data.TensorDataset(torch.randn(6, 3), torch.randn(6, 3))
        >>> loader = torch.utils.data.DataLoader(zoo.IndexedDataset(dataset), batch_size=4)
        >>> z1, z2, index = zoo.batch_samplers.encode(torch.nn.Linear(3, 2), loader)
        >>> z1.shape, index
        (torch.Size([6, 2]), tensor([0, 1, 2, 3, 4, 5]))
    """
    first, second = encoder if isinstance(encoder, tuple) else (encoder, encoder)
    where = torch.device(device) if device is not None else _device_of(first)
    rows: list[tuple[Tensor, Tensor, Tensor]] = []
    with _evaluation(first, second), torch.autocast(where.type, amp, enabled=amp is not None):
        for batch in _with_progress(loader) if progress else loader:
            x1, x2, index = views(batch) if views is not None else _views(batch, one_encoder=first is second)
            z1, z2 = _features("x1", x1, first, where), _features("x2", x2, second, where)
            check_same("encoder(x1)", z1, "encoder(x2)", z2)
            rows.append((z1, z2, _positions(index, len(z1))))
    if not rows:
        raise ValueError("loader gives no batch: is the dataset empty, or smaller than a batch with drop_last=True?")
    z1, z2, index = (torch.cat(parts) for parts in zip(*rows, strict=True))
    return z1, z2, index


def _features(name: str, x: Any, encoder: Encoder, device: torch.device) -> Tensor:
    if not hasattr(x, "to"):
        raise TypeError(
            f"{name} must be a tensor, or have a method to(device), got {type(x).__name__}. Make tensors in the collate_fn of "
            "the loader, or in views."
        )
    z = encoder(x.to(device))
    check_features(f"encoder({name})", z, (2,))
    return z.cpu() if z.dtype == torch.float64 else z.cpu().float()


def _positions(index: Any, size: int) -> Tensor:
    try:
        positions = torch.as_tensor(index).cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"index must hold integers, got {type(index).__name__}: {error}. {PASS_VIEWS}") from error
    check_integers("index", positions, size)
    return positions


def _device_of(encoder: Encoder) -> torch.device:
    parameters = encoder.parameters() if isinstance(encoder, nn.Module) else iter(())
    return next((parameter.device for parameter in parameters), torch.device("cpu"))


def _views(batch: Any, one_encoder: bool) -> tuple[Any, Any, Any]:
    if isinstance(batch, Mapping):
        keys = ", ".join(map(repr, batch))
        raise TypeError(
            f"loader gives a {type(batch).__name__} with keys {keys}, so views and index cannot be told apart. "
            'Pass views, e.g. views=lambda batch: (batch["x1"], batch["x2"], batch["index"]).'
        )
    if isinstance(batch, (tuple, list)) and len(batch) >= 2:
        views = batch[0] if isinstance(batch[0], (tuple, list)) else batch[:-1]
        if len(views) >= 2:
            _check_second(views[0], views[1], one_encoder)
            return views[0], views[1], batch[-1]
    raise TypeError(
        "loader gives neither (x1, x2, ..., index) nor ((x1, x2), ..., index), so views and index cannot be told apart. "
        f"{PASS_VIEWS}"
    )


def _check_second(x1: Any, x2: Any, one_encoder: bool) -> None:
    """Raise if the second element of a batch may not be a view."""
    found = _not_a_view(x1, x2) or (one_encoder and _unlike(x1, x2))
    if found:
        raise TypeError(f"loader gives a second view that {found}, so it may be no view. {PASS_VIEWS}")


def _not_a_view(x1: Any, x2: Any) -> str | None:
    """Why a tensor looks like labels or a mask; None if it does not."""
    if not isinstance(x2, Tensor):
        return None
    if x2.dim() < 2:
        return f"has shape {shape(x2)}, as labels have"
    if x2.dtype in FLOATING or x2.dtype.is_complex:
        return None
    if x2[:1].numel() == 1:
        return f"is of {x2.dtype} and shape {shape(x2)}, as labels may be"
    if isinstance(x1, Tensor) and x1.dtype not in FLOATING and _binary(x2) and not _binary(x1):
        return "holds only 0 and 1 where the first holds other integers, as a mask does"
    return None


def _unlike(x1: Any, x2: Any) -> str | None:
    """Why two views cannot share one encoder; None if they can."""
    if isinstance(x1, Tensor) and isinstance(x2, Tensor):
        if x1.dtype != x2.dtype:
            return f"is of {x2.dtype} where the first is of {x1.dtype}"
        return f"has shape {shape(x2)} where the first has {shape(x1)}" if x1.dim() != x2.dim() else None
    return None if type(x1) is type(x2) else f"is a {type(x2).__name__} where the first is a {type(x1).__name__}"


def _binary(x: Tensor) -> bool:
    return bool(((x == 0) | (x == 1)).all())


@contextlib.contextmanager
def _evaluation(*encoders: Encoder) -> Iterator[None]:
    """Put modules in evaluation mode; the mode of each submodule is restored on exit."""
    modules = [part for encoder in encoders if isinstance(encoder, nn.Module) for part in encoder.modules()]
    modes = [part.training for part in modules]
    for part in modules:
        part.training = False
    try:
        yield
    finally:
        for part, mode in zip(modules, modes, strict=True):
            part.training = mode


def _with_progress(loader: Iterable[Any]) -> Iterable[Any]:
    try:
        from tqdm.auto import tqdm
    except ImportError as error:
        raise ImportError("progress=True needs tqdm: pip install 'contrastive-zoo[selection]'.") from error
    bar: Iterable[Any] = tqdm(loader, desc="features", unit="batch")
    return bar
