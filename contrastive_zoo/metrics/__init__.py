"""Measures of a trained representation, computed from its features.

All of them stream: similarities are formed one tile at a time, so memory grows with the number of rows and never with
its square. Nothing here is differentiable: a metric returns plain Python numbers (`spectrum` a tensor), whatever the
device of the features. Half precision is computed in float32 or better, autocast or not.

Alignment, uniformity, the spectra and the neural-collapse measures take the rows as they are: normalise first where the
model does. Whatever speaks of cosines (`wasserstein_uniformity`, `knn_accuracy`, `retrieval_accuracy`,
`global_contrastive_loss`) normalises; the cosine with a zero row counts as zero. `gradient_error` is about a loss rather than
features: it measures how near its mean gradient over small batches comes to that of `global_contrastive_loss`.
"""

from contrastive_zoo.metrics.classification import knn_accuracy, linear_probe, nearest_class_mean
from contrastive_zoo.metrics.collapse import NeuralCollapse, neural_collapse, within_class_distance
from contrastive_zoo.metrics.contrast import GradientError, global_contrastive_loss, gradient_error
from contrastive_zoo.metrics.dimensionality import effective_rank, rank, spectrum
from contrastive_zoo.metrics.hypersphere import alignment, uniformity, wasserstein_uniformity
from contrastive_zoo.metrics.retrieval import RetrievalAccuracy, retrieval_accuracy

__all__ = [
    "GradientError",
    "NeuralCollapse",
    "RetrievalAccuracy",
    "alignment",
    "effective_rank",
    "global_contrastive_loss",
    "gradient_error",
    "knn_accuracy",
    "linear_probe",
    "nearest_class_mean",
    "neural_collapse",
    "rank",
    "retrieval_accuracy",
    "spectrum",
    "uniformity",
    "wasserstein_uniformity",
    "within_class_distance",
]
