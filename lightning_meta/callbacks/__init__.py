"""Callbacks for Lightning's Trainer."""

from lightning_meta.callbacks.checkpoint import RunCheckpoint
from lightning_meta.callbacks.figures import plot_adaptation, plot_episode
from lightning_meta.callbacks.page import TaskFigures
from lightning_meta.callbacks.results import TaskResults

__all__ = ["RunCheckpoint", "TaskFigures", "TaskResults", "plot_adaptation", "plot_episode"]
