r"""KCL: alignment of the views and spread within each view, both measured by a kernel of the distance.

    loss = -2 mean k(d_ap) + gamma ( mean k(d_an) + mean k(d_pn) )

The first mean is over samples, with rows a in view 1 and p in view 2; the others are over pairs of samples within a view.

Koromilas et al., "Bridging Mini-Batch and Asymptotic Analysis in Contrastive Learning", ICML 2024, sec. 5. arXiv:2405.18045
"""

import torch
from torch import Tensor

from contrastive_zoo.batch.batch import Batch
from contrastive_zoo.checks import check_choice
from contrastive_zoo.pairwise.kernels import check_parameter, distance_floor, get_kernel
from contrastive_zoo.registry import Range, losses

# Kernel of the alignment, kernel of the energy, and the factor of the energy in the authors' code.
FORMS = {
    "gaussian": ("gaussian", "gaussian", 1.0),
    "log": ("log", "log", 0.5),
    "imq": ("imq", "imq", 1.0),
    "riesz": ("riesz", "riesz", 1.0),
    "gaussian_riesz": ("gaussian", "riesz", 1.0),
}


def _check(*, kernel: str, t: float, gamma: float) -> None:
    """Raise if the kernel is unknown or its parameter is out of range."""
    check_choice("kernel", kernel, tuple(FORMS))
    check_parameter(FORMS[kernel][1], t, kernel)


@losses.register(
    "kcl",
    title="Kernel contrastive loss",
    summary="Alignment and spread by a kernel; its expected value does not depend on the batch size.",
    paper="Koromilas et al., ICML 2024. arXiv:2405.18045",
    equation=r"\ell = -2\,\mathrm{mean}_a\,k(d_{ap}) + \gamma\,\mathrm{mean}_{a,\,n \in \mathcal{N}_a}\,k(d_{an})"
    r" + \gamma\,\mathrm{mean}_{a,\,n \in \mathcal{N}_p}\,k(d_{pn})",
    per_sample=False,
    ranges={"gamma": Range(0), "t": Range()},
    check=_check,
    scale="Equal to the authors' code, including the extra 1/2 in the energy of the log kernel.",
    differences=(
        "Squared distances of the riesz kernel are floored, with zero gradient below the floor: the kernel is infinite for "
        "equal rows, and rounding cannot distinguish closer rows from equal rows. The floor is (D + 32) eps times the mean "
        "of the squared lengths of the two rows: 1.9e-5 for unit rows of 128 features in float32, 3.6e-14 in float64. In half "
        "precision the factor is the square of the half-precision eps plus (D + 32) times the float32 eps.",
    ),
)
def kcl(batch: Batch, *, kernel: str = "gaussian", t: float = 2.0, gamma: float = 16.0) -> Tensor:
    r"""The loss of the batch, one number.

    $$\ell = -2\,\mathrm{mean}_a\,k(d_{ap}) + \gamma\,\mathrm{mean}_{a,\,n \in \mathcal{N}_a}\,k(d_{an})
      + \gamma\,\mathrm{mean}_{a,\,n \in \mathcal{N}_p}\,k(d_{pn})$$

    Args:
        batch: Rows of both views.
        kernel: "gaussian" $e^{-t d^2}$, "log" $-\log(1 + t d^2)$, "imq" $t/\sqrt{t^2 + d^2}$, "riesz" $\pm d^{-t}$, or
            "gaussian_riesz": riesz for the spread and the gaussian with t = 2 for the alignment.
        t: Parameter of the kernel; positive, or for riesz any number except 0.
        gamma: Weight of the spread.

    For riesz, the distance of equal rows counts as their rounding error, and equal rows do not repel each other.

    Raises:
        ValueError: Unknown kernel, or t outside its range.

    Examples:
        >>> import torch
        >>> import contrastive_zoo as zoo
        >>> z = torch.eye(3)
        >>> zoo.get_loss("kcl", kernel="riesz", t=-2.0, gamma=1.0)(z, z)
        tensor(-4.0000)
    """
    alignment_kernel, energy_kernel, factor = FORMS[kernel]
    alignment = _alignment(batch, alignment_kernel, 2.0 if kernel == "gaussian_riesz" else t)
    pairs = batch.negatives_count(views=1).sum()
    sums = batch.pairs.kernel_sum(batch.by_view(), kernel=energy_kernel, parameter=t, ids=batch.sample_ids)  # (2, B)
    energy = sums.sum() / pairs.clamp_min(1)
    batch.diagnostics["alignment"], batch.diagnostics["energy"] = alignment.detach(), energy.detach()
    return torch.where(pairs > 0, -2 * alignment + gamma * factor * energy, 0)


def _alignment(batch: Batch, kernel: str, t: float) -> Tensor:
    """Mean kernel of the distance between the views of a sample."""
    a, b = batch.each_view()
    distances = (a - b).square().sum(1)
    squared_norms = 1.0 if batch.pairs.unit_rows else (a.square().sum(1) + b.square().sum(1)).detach() / 2
    floor = distance_floor(kernel, a, batch.pairs.rounding, squared_norms)
    return get_kernel(kernel).floored(distances, floor, t).mean()
