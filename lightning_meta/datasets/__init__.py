"""Data sets: examples by class, and distributions of regression tasks. No episodes here."""

from lightning_meta.datasets.class_dataset import ClassDataset, image_scale
from lightning_meta.datasets.features import encode_images
from lightning_meta.datasets.glyphs import glyphs
from lightning_meta.datasets.omniglot import load_omniglot
from lightning_meta.datasets.sinusoid import SinusoidTasks

__all__ = ["ClassDataset", "SinusoidTasks", "encode_images", "glyphs", "image_scale", "load_omniglot"]
