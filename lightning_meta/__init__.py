"""Meta-learning on PyTorch Lightning."""

from lightning_meta.__about__ import __version__
from lightning_meta.callbacks import RunCheckpoint
from lightning_meta.datamodules import (
    CIFARFSDataModule,
    EpisodicDataModule,
    FC100DataModule,
    FineGrainedDataModule,
    GlyphsDataModule,
    ImageFolderDataModule,
    MiniImageNetDataModule,
    OmniglotDataModule,
    SinusoidDataModule,
    TaskDataModule,
    TieredImageNetDataModule,
    class_split,
)
from lightning_meta.inner import LSLR, SGD, Adam, InnerOptimizer, LSTMOptimizer, MetaCurvature, MetaSGD
from lightning_meta.models import MLP, WRN28_10, Backbone, ContextMLP, Conv4, ResNet12
from lightning_meta.models.normalize import Normalize
from lightning_meta.modules import (
    CAVIAModule,
    IMAMLModule,
    MAMLModule,
    MetaLSTMModule,
    MetaModule,
    MetaOptNetModule,
    ProtoMAMLModule,
    ProtoNetModule,
    R2D2Module,
    ReptileModule,
)
from lightning_meta.task import Examples, Task, TaskDistribution, stack_tasks
from lightning_meta.text import TextDataModule

__all__ = [
    "LSLR",
    "MLP",
    "SGD",
    "WRN28_10",
    "Adam",
    "Backbone",
    "CAVIAModule",
    "CIFARFSDataModule",
    "ContextMLP",
    "Conv4",
    "EpisodicDataModule",
    "Examples",
    "FC100DataModule",
    "FineGrainedDataModule",
    "GlyphsDataModule",
    "IMAMLModule",
    "ImageFolderDataModule",
    "InnerOptimizer",
    "LSTMOptimizer",
    "MAMLModule",
    "MetaCurvature",
    "MetaLSTMModule",
    "MetaModule",
    "MetaOptNetModule",
    "MetaSGD",
    "MiniImageNetDataModule",
    "Normalize",
    "OmniglotDataModule",
    "ProtoMAMLModule",
    "ProtoNetModule",
    "R2D2Module",
    "ReptileModule",
    "ResNet12",
    "RunCheckpoint",
    "SinusoidDataModule",
    "Task",
    "TaskDataModule",
    "TaskDistribution",
    "TextDataModule",
    "TieredImageNetDataModule",
    "__version__",
    "class_split",
    "stack_tasks",
]
