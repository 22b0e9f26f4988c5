"""Measures of a trained representation, computed from its features.

Similarities are computed one tile at a time, so memory grows linearly with the number of rows, and the host does not wait for
an accelerator in between. Metrics are not differentiable: they return plain Python numbers (`spectrum` and `cosine_density`
tensors), for features on any device. Half precision is
computed in float32 or better, regardless of autocast.

Alignment, uniformity, the spectra and the neural-collapse measures do not normalise their input: normalise first if the
model does. Metrics based on cosine similarity (`wasserstein_uniformity`, `cosine_density`, `knn_accuracy`,
`retrieval_accuracy`, `global_contrastive_loss`) normalise their input; the cosine with a zero row is zero. `gradient_error`
measures a loss rather than features: how close its mean gradient over small batches is to the gradient of
`global_contrastive_loss`.
"""

from contrastive_zoo.metrics.classification import (
    FewLabelAccuracy,
    few_label_probe,
    knn_accuracy,
    linear_probe,
    nearest_class_mean,
)
from contrastive_zoo.metrics.collapse import NeuralCollapse, neural_collapse, within_class_distance
from contrastive_zoo.metrics.contrast import GradientError, global_contrastive_loss, gradient_error
from contrastive_zoo.metrics.dimensionality import alpha_req, effective_rank, rank, rankme, spectrum
from contrastive_zoo.metrics.hypersphere import CosineDensity, alignment, cosine_density, uniformity, wasserstein_uniformity
from contrastive_zoo.metrics.retrieval import RetrievalAccuracy, retrieval_accuracy

__all__ = [
    "CosineDensity",
    "FewLabelAccuracy",
    "GradientError",
    "NeuralCollapse",
    "RetrievalAccuracy",
    "alignment",
    "alpha_req",
    "cosine_density",
    "effective_rank",
    "few_label_probe",
    "global_contrastive_loss",
    "gradient_error",
    "knn_accuracy",
    "linear_probe",
    "nearest_class_mean",
    "neural_collapse",
    "rank",
    "rankme",
    "retrieval_accuracy",
    "spectrum",
    "uniformity",
    "wasserstein_uniformity",
    "within_class_distance",
]
