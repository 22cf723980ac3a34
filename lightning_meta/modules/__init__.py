"""The algorithms: one LightningModule each."""

from lightning_meta.modules.base import MetaModule
from lightning_meta.modules.gradient_based import GradientBasedModule
from lightning_meta.modules.imaml import IMAMLModule
from lightning_meta.modules.maml import MAMLModule
from lightning_meta.modules.meta_lstm import MetaLSTMModule
from lightning_meta.modules.outcome import Outcome
from lightning_meta.modules.protomaml import ProtoMAMLModule
from lightning_meta.modules.protonet import ProtoNetModule
from lightning_meta.modules.reptile import ReptileModule

__all__ = [
    "GradientBasedModule",
    "IMAMLModule",
    "MAMLModule",
    "MetaLSTMModule",
    "MetaModule",
    "Outcome",
    "ProtoMAMLModule",
    "ProtoNetModule",
    "ReptileModule",
]
