"""Moves tensors between the host and an accelerator."""

from torch import Tensor


def beside(tensor: Tensor, other: Tensor) -> Tensor:
    """The tensor on the device of another; a copy from the host does not wait for the accelerator."""
    return tensor.to(other.device, non_blocking=tensor.is_cpu)
