"""`Loss`, the module that wraps every objective, and functions that make losses by name."""

from typing import TYPE_CHECKING

from contrastive_zoo.loss.get import describe_loss, list_losses, register_loss
from contrastive_zoo.loss.module import Loss

if TYPE_CHECKING:  # editors see the parameters of each name
    from contrastive_zoo.loss.signatures import get_loss
else:
    from contrastive_zoo.loss.get import get_loss

__all__ = ["Loss", "describe_loss", "get_loss", "list_losses", "register_loss"]
