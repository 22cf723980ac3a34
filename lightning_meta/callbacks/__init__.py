"""Callbacks for Lightning's Trainer."""

from lightning_meta.callbacks.checkpoint import RunCheckpoint
from lightning_meta.callbacks.figures import TaskFigures, plot_adaptation, plot_episode

__all__ = ["RunCheckpoint", "TaskFigures", "plot_adaptation", "plot_episode"]
