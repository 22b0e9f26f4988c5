"""Makes figures, or says what to install."""

from typing import Any


def panels(number: int, width: float = 2.9, height: float = 2.6) -> tuple[Any, Any]:
    """A ``matplotlib.figure.Figure`` of panels beside each other, and its axes (one, or an array).

    Raises:
        ImportError: Matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("plots need Matplotlib: pip install 'contrastive-zoo[plots]'.") from error
    figure = Figure(figsize=(number * width, height), layout="constrained")
    return figure, figure.subplots(1, number)
