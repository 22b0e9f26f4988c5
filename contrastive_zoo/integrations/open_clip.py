"""open_clip: losses of the zoo with the call signature of open_clip's `ClipLoss` and `SigLipLoss`."""

import torch
from torch import Tensor, nn
from torch.func import functional_call

from contrastive_zoo.loss import Loss
from contrastive_zoo.loss.get import check_loss

__all__ = ["OpenClipLoss"]

LEARNED = ("clip", "siglip")  # objectives with a scale
DIVIDED = ("infonce", "sogclr", "isogclr")  # objectives with a temperature


class OpenClipLoss(nn.Module):
    """A loss of two towers that takes its scale, and its bias if it has one, from the model in each call, as open_clip does.

    ``OpenClipLoss(zoo.get_loss("clip"))`` equals ``open_clip.loss.ClipLoss()``, and ``OpenClipLoss(zoo.get_loss("siglip"))``
    equals ``open_clip.loss.SigLipLoss()``, in value and gradient. On several processes the gradients are equal once
    `DistributedDataParallel` has averaged them; no ``rank``, ``world_size`` or ``local_loss`` is needed, because the zoo
    contrasts with the batches of all processes.

    `clip` and `siglip` use the scale of the call in place of their own parameters, which are frozen here. `infonce` and
    `sogclr` use 1 / scale as their temperature, and the scale gets its gradient. `isogclr` learns a temperature for each
    sample; it starts at 1 / scale and divides the loss by 1 / scale, and the scale gets a gradient of zero.

    `clip` clamps the scale to [1, ``max_scale``], `siglip` to at most ``max_scale``, 100 by default; `infonce` and `sogclr`
    clamp a scale that is learned to [0.1, 1000].

    Args:
        loss_fn: `clip`, `siglip`, `infonce`, or `sogclr` or `isogclr` with ``intra_view=False``.

    Raises:
        TypeError: ``loss_fn`` is no loss of the zoo.
        ValueError: ``loss_fn`` is another objective, or contrasts rows of one tower with each other.

    Examples:
        >>> import torch
        >>> import contrastive_zoo as zoo
        >>> from contrastive_zoo.integrations.open_clip import OpenClipLoss
        >>> loss_fn = OpenClipLoss(zoo.get_loss("clip"))
        >>> image_features = text_features = torch.eye(4)
        >>> loss_fn(image_features, text_features, logit_scale=torch.tensor(1.0), output_dict=True)
        {'contrastive_loss': tensor(0.7437)}
    """

    def __init__(self, loss_fn: Loss) -> None:
        super().__init__()
        self.loss_fn = check_loss(loss_fn)
        name = loss_fn.card.name
        if name not in LEARNED + DIVIDED:
            raise ValueError(f"loss_fn must be one of {', '.join(LEARNED + DIVIDED)}, got {name!r}. Make one of these.")
        if loss_fn.settings.get("intra_view", False):
            raise ValueError(
                f"loss_fn contrasts images with images and texts with texts. Pass zoo.get_loss({name!r}, intra_view=False)."
            )
        self.requires_grad_(False)

    def forward(
        self,
        image_features: Tensor,
        text_features: Tensor,
        logit_scale: Tensor,
        logit_bias: Tensor | None = None,
        output_dict: bool = False,
        index: Tensor | None = None,
    ) -> Tensor | dict[str, Tensor]:
        """The loss of a batch.

        Args:
            image_features: (B, D).
            text_features: (B, D).
            logit_scale: What open_clip's models return: the inverse temperature, not its logarithm.
            logit_bias: The bias of `siglip`; the other losses do not depend on a bias.
            output_dict: Whether to return ``{"contrastive_loss": loss}``.
            index: (B,) positions in the dataset, for `sogclr` and `isogclr`.
        """
        loss = self._at_scale(image_features, text_features, logit_scale, logit_bias, index)
        for given in (logit_scale, logit_bias):
            if given is not None:
                loss = loss + 0 * given.sum()  # DistributedDataParallel needs a gradient for every parameter in every step
        return {"contrastive_loss": loss} if output_dict else loss

    def _at_scale(self, x: Tensor, y: Tensor, scale: Tensor, bias: Tensor | None, index: Tensor | None) -> Tensor:
        if self.loss_fn.card.name in LEARNED:
            own = {
                "objective.logit_scale": scale.log(),
                "objective.logit_bias": torch.zeros_like(scale) if bias is None else bias,
            }
            known = {name: own[name] for name, _ in self.loss_fn.named_parameters()}
            loss: Tensor = functional_call(self.loss_fn, known, (x, y), {"index": index})
            return loss
        temperature = 1 / (scale.detach() if self.loss_fn.card.name == "isogclr" else scale)
        self.loss_fn.objective.held_temperature.set(temperature)
        return self.loss_fn(x, y, index=index)
