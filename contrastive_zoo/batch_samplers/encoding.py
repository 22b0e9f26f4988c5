"""Features of a whole data set, for `refresh`."""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

Encoder = Callable[[Tensor], Tensor]


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
        encoder: From inputs to (B, D) features; a pair of encoders for two modalities. Modules get their mode back.
        loader: Gives every sample once, e.g. ``DataLoader(zoo.IndexedDataset(dataset), batch_size=256)``; with several
            processes, all together give every sample at least once.
        views: From what the loader gives to (x1, x2, index). By default an index comes last, as `IndexedDataset` puts it, and
            two views first: ``(x1, x2, ..., index)`` or ``((x1, x2), ..., index)``.
        device: Where inputs go; by default where the parameters of the encoder are.
        amp: torch.float16 or torch.bfloat16 for autocast in that precision.
        progress: Whether to show a progress bar, which needs tqdm.

    Returns:
        z1 (N, D), z2 (N, D) and index (N,), ready for `BatchSampler.refresh`.

    Raises:
        ImportError: tqdm is not installed and a progress bar was asked for.
        TypeError: The loader gives something in which views and index cannot be told.
        ValueError: The loader gives nothing.

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
            x1, x2, index = (views or _views)(batch)
            z1, z2 = (_features(encode_view, x, where) for encode_view, x in ((first, x1), (second, x2)))
            rows.append((z1, z2, torch.as_tensor(index).cpu()))
    if not rows:
        raise ValueError("loader gives no batch: is the data set empty, or smaller than a batch with drop_last=True?")
    z1, z2, index = (torch.cat(parts) for parts in zip(*rows, strict=True))
    return z1, z2, index


def _features(encoder: Encoder, x: Any, device: torch.device) -> Tensor:
    z = encoder(x.to(device)).cpu()
    return z if z.dtype == torch.float64 else z.float()


def _device_of(encoder: Encoder) -> torch.device:
    parameters = encoder.parameters() if isinstance(encoder, nn.Module) else iter(())
    return next((parameter.device for parameter in parameters), torch.device("cpu"))


def _views(batch: Any) -> tuple[Any, Any, Tensor]:
    if isinstance(batch, (tuple, list)) and len(batch) >= 2:
        views = batch[0] if isinstance(batch[0], (tuple, list)) else batch[:-1]
        if len(views) >= 2:
            return views[0], views[1], batch[-1]
    raise TypeError(
        "loader gives neither (x1, x2, ..., index) nor ((x1, x2), ..., index), so views and index cannot be told. "
        "Pass views=lambda batch: (x1, x2, index)."
    )


@contextlib.contextmanager
def _evaluation(*encoders: Encoder) -> Iterator[None]:
    """Modules in evaluation mode; each part of them gets its own mode back."""
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
