"""One LightningModule for each algorithm, final, and what they all have: `MetaModule` and its parts."""

from lightning_meta.modules.cavia import CAVIAModule
from lightning_meta.modules.imaml import IMAMLModule
from lightning_meta.modules.maml import MAMLModule
from lightning_meta.modules.meta_lstm import MetaLSTMModule
from lightning_meta.modules.meta_module import MetaModule
from lightning_meta.modules.metaoptnet import MetaOptNetModule
from lightning_meta.modules.nearest_centroid import NearestCentroidModule
from lightning_meta.modules.protomaml import ProtoMAMLModule
from lightning_meta.modules.protonet import ProtoNetModule
from lightning_meta.modules.r2d2 import R2D2Module
from lightning_meta.modules.reptile import ReptileModule

__all__ = [
    "CAVIAModule",
    "IMAMLModule",
    "MAMLModule",
    "MetaLSTMModule",
    "MetaModule",
    "MetaOptNetModule",
    "NearestCentroidModule",
    "ProtoMAMLModule",
    "ProtoNetModule",
    "R2D2Module",
    "ReptileModule",
]
