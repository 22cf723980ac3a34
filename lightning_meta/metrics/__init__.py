"""Metrics over tasks."""

from lightning_meta.metrics.task_statistics import TaskStatistics, mean_and_ci95

__all__ = ["TaskStatistics", "mean_and_ci95"]
