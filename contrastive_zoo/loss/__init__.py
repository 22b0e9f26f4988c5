"""`Loss`, the module that wraps every objective, and functions that make losses by name."""

from contrastive_zoo.loss.get import describe_loss, get_loss, list_losses, register_loss
from contrastive_zoo.loss.module import Loss

__all__ = ["Loss", "describe_loss", "get_loss", "list_losses", "register_loss"]
