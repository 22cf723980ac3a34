"""Meta-learning on PyTorch Lightning."""

from lightning_meta.__about__ import __version__
from lightning_meta.callbacks import RunCheckpoint
from lightning_meta.datamodules import EpisodicDataModule, GlyphsDataModule, OmniglotDataModule, SinusoidDataModule
from lightning_meta.inner import LSLR, SGD, Adam, InnerOptimizer, LSTMOptimizer, MetaSGD
from lightning_meta.models import MLP, Conv4
from lightning_meta.modules import (
    GradientBasedModule,
    IMAMLModule,
    MAMLModule,
    MetaLSTMModule,
    MetaModule,
    ProtoMAMLModule,
    ProtoNetModule,
    ReptileModule,
)
from lightning_meta.task import Examples, Task, TaskDistribution

__all__ = [
    "LSLR",
    "MLP",
    "SGD",
    "Adam",
    "Conv4",
    "EpisodicDataModule",
    "Examples",
    "GlyphsDataModule",
    "GradientBasedModule",
    "IMAMLModule",
    "InnerOptimizer",
    "LSTMOptimizer",
    "MAMLModule",
    "MetaLSTMModule",
    "MetaModule",
    "MetaSGD",
    "OmniglotDataModule",
    "ProtoMAMLModule",
    "ProtoNetModule",
    "ReptileModule",
    "RunCheckpoint",
    "SinusoidDataModule",
    "Task",
    "TaskDistribution",
    "__version__",
]
