"""The module around every objective, and how to get one by name."""

from contrastive_zoo.loss.get import describe_loss, get_loss, list_losses, register_loss
from contrastive_zoo.loss.module import Loss

__all__ = ["Loss", "describe_loss", "get_loss", "list_losses", "register_loss"]
