"""Callbacks for Lightning's Trainer."""

from lightning_meta.callbacks.figures import TaskFigures, plot_adaptation, plot_episode

__all__ = ["TaskFigures", "plot_adaptation", "plot_episode"]
