"""Networks, each with a body and a head."""

from lightning_meta.models.backbone import Backbone
from lightning_meta.models.body_and_head import BodyAndHead
from lightning_meta.models.context import ContextMLP
from lightning_meta.models.conv4 import Conv4
from lightning_meta.models.mlp import MLP
from lightning_meta.models.normalize import Normalize
from lightning_meta.models.r2d2_net import R2D2Net
from lightning_meta.models.resnet12 import ResNet12
from lightning_meta.models.vectors import Adapter, Projection
from lightning_meta.models.wide_resnet import WRN28_10

__all__ = [
    "MLP",
    "WRN28_10",
    "Adapter",
    "Backbone",
    "BodyAndHead",
    "ContextMLP",
    "Conv4",
    "Normalize",
    "Projection",
    "R2D2Net",
    "ResNet12",
]
