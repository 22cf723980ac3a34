"""Networks, each with a body and a head."""

from lightning_meta.models.context import ContextMLP
from lightning_meta.models.conv4 import Conv4
from lightning_meta.models.mlp import MLP

__all__ = ["MLP", "ContextMLP", "Conv4"]
