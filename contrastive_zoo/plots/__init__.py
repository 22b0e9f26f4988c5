"""Pictures of objectives and of features; drawing needs Matplotlib, ``pip install 'contrastive-zoo[plots]'``.

The functions that begin with ``plot`` return a ``matplotlib.figure.Figure``, to save, to log or to change.
"""

from contrastive_zoo.plots.features import plot_class_means, plot_embedding, plot_similarity, plot_spectrum
from contrastive_zoo.plots.gradients import GradientWeights, gradient_weights, plot_gradient_weights

__all__ = [
    "GradientWeights",
    "gradient_weights",
    "plot_class_means",
    "plot_embedding",
    "plot_gradient_weights",
    "plot_similarity",
    "plot_spectrum",
]
