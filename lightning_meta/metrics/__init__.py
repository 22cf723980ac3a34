"""Metrics of tasks, and the results of a test."""

from lightning_meta.metrics.results import (
    ClassResult,
    Difference,
    RowResult,
    compare_tasks,
    read_tasks,
    results_table,
    save_results,
)
from lightning_meta.metrics.task_statistics import TaskStatistics, mean_and_ci95

__all__ = [
    "ClassResult",
    "Difference",
    "RowResult",
    "TaskStatistics",
    "compare_tasks",
    "mean_and_ci95",
    "read_tasks",
    "results_table",
    "save_results",
]
