"""Data modules: streams of numbered tasks, and one class for each data set."""

from lightning_meta.datamodules.base import TaskDataModule
from lightning_meta.datamodules.cifar import CIFARFSDataModule, FC100DataModule
from lightning_meta.datamodules.class_tasks import ClassTasks
from lightning_meta.datamodules.episodic import EpisodicDataModule
from lightning_meta.datamodules.fine_grained import FineGrainedDataModule
from lightning_meta.datamodules.glyphs import GlyphsDataModule
from lightning_meta.datamodules.image_folder import ImageFolderDataModule
from lightning_meta.datamodules.imagenet import MiniImageNetDataModule, TieredImageNetDataModule
from lightning_meta.datamodules.omniglot import OmniglotDataModule
from lightning_meta.datamodules.sinusoid import SinusoidDataModule
from lightning_meta.datamodules.splits import class_split

__all__ = [
    "CIFARFSDataModule",
    "ClassTasks",
    "EpisodicDataModule",
    "FC100DataModule",
    "FineGrainedDataModule",
    "GlyphsDataModule",
    "ImageFolderDataModule",
    "MiniImageNetDataModule",
    "OmniglotDataModule",
    "SinusoidDataModule",
    "TaskDataModule",
    "TieredImageNetDataModule",
    "class_split",
]
