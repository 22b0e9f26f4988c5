"""The model: any timm backbone and a projection head, with the normalisation and the stem that the settings say."""

import difflib
from argparse import Namespace

import timm
import torch
from errors import SettingError
from images import Images
from torch import Tensor, nn


class Model(nn.Module):
    """Backbone and projection head: the loss sees what comes out of the head, evaluations what goes in."""

    def __init__(self, encoder: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.encoder, self.head = encoder, head

    def forward(self, images: Tensor) -> Tensor:
        """Projections (B, D) of images (B, C, H, W)."""
        return self.head(self.encoder(images))


def build_model(args: Namespace, channels: int, size: int) -> Model:
    """The model of the settings, randomly initialised by the seed.

    Raises:
        SettingError: timm has no such model, or the model has no such stem or normalisation.
    """
    torch.manual_seed(args.seed)
    encoder = create(args.backbone, channels, size, group_norm=args.norm == "group")
    if args.small_stem:
        encoder = small_stem(encoder, args.backbone)
    head = projection(width_of(encoder, channels, size), args.dim, args.hidden, group_norm=args.norm == "group")
    model = Model(encoder, head)
    return nn.SyncBatchNorm.convert_sync_batchnorm(model) if args.norm == "sync" else model


def create(name: str, channels: int, size: int, group_norm: bool = False) -> nn.Module:
    """A timm model without its classifier, randomly initialised.

    Raises:
        SettingError: timm has no model by that name, or not with group normalisation.
    """
    if not timm.is_model(name):
        close = difflib.get_close_matches(name, timm.list_models(), n=5, cutoff=0.3)
        raise SettingError(f"timm has no model {name!r}. Closest: {', '.join(close)}. timm.list_models() gives all names.")
    # Transformers are built for one size of images; convolutional networks take any, and refuse to be told.
    fixed = timm.get_pretrained_cfg_value(name, "fixed_input_size")
    options = {"img_size": size} if fixed else {}
    model = timm.create_model(name, pretrained=False, num_classes=0, in_chans=channels, **options)
    if not group_norm or not _batch_norms(model):
        return model
    try:
        model = timm.create_model(name, pretrained=False, num_classes=0, in_chans=channels, norm_layer="groupnorm1", **options)
    except (TypeError, AssertionError, ValueError, AttributeError) as error:
        raise SettingError(f"--norm group: {name} cannot be built with it ({error}).") from error
    if _batch_norms(model):
        raise SettingError(f"--norm group: {name} keeps {_batch_norms(model)} layers of batch normalisation.")
    return model


def _batch_norms(model: nn.Module) -> int:
    return sum(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules())


def small_stem(encoder: nn.Module, name: str) -> nn.Module:
    """A ResNet for images of 32 pixels, as papers on CIFAR have it: first a 3x3 convolution of stride 1, no pooling.

    Raises:
        SettingError: The model has no stem of a convolution and a pooling layer.
    """
    conv = getattr(encoder, "conv1", None)
    if not isinstance(conv, nn.Conv2d) or not hasattr(encoder, "maxpool"):
        raise SettingError(f"--small-stem: {name} has no conv1 and maxpool to replace, as resnet18 or resnet50 have.")
    encoder.conv1 = nn.Conv2d(conv.in_channels, conv.out_channels, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(encoder.conv1.weight, mode="fan_out", nonlinearity="relu")
    encoder.maxpool = nn.Identity()
    return encoder


def width_of(encoder: nn.Module, channels: int, size: int) -> int:
    """Number of features that an encoder gives."""
    with torch.no_grad():
        return encoder.eval()(torch.zeros(1, channels, size, size)).shape[1]


def projection(width: int, dim: int, hidden: int | None = None, group_norm: bool = False) -> nn.Sequential:
    """The projection head; a linear one if there is to be nothing inside."""
    if hidden == 0:
        return nn.Sequential(nn.Linear(width, dim))
    hidden = hidden or width
    norm = nn.LayerNorm(hidden) if group_norm else nn.BatchNorm1d(hidden)
    return nn.Sequential(nn.Linear(width, hidden, bias=False), norm, nn.ReLU(), nn.Linear(hidden, dim))


def build_encoder(name: str, images: Images) -> nn.Module:
    """A timm model for these images; see `create`."""
    return create(name, images.channels, images.size)


def build_head(encoder: nn.Module, images: Images, dim: int) -> nn.Module:
    """A projection head for the features of an encoder of these images."""
    return projection(width_of(encoder, images.channels, images.size), dim)
