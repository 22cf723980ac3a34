"""Episodic data modules."""

from lightning_meta.datamodules.base import EpisodicDataModule
from lightning_meta.datamodules.class_tasks import ClassTasks
from lightning_meta.datamodules.glyphs import GlyphsDataModule
from lightning_meta.datamodules.omniglot import OmniglotDataModule
from lightning_meta.datamodules.sinusoid import SinusoidDataModule

__all__ = ["ClassTasks", "EpisodicDataModule", "GlyphsDataModule", "OmniglotDataModule", "SinusoidDataModule"]
