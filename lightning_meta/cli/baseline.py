"""What learns nothing, beside what was trained: the nearest centroid on the same tasks."""

from pathlib import Path
from typing import Any

from lightning_meta.callbacks import TaskResults
from lightning_meta.cli.compare import comparison
from lightning_meta.errors import ConfigurationError
from lightning_meta.metrics import read_tasks
from lightning_meta.modules import NearestCentroidModule


def tested_baseline(trainer: Any, datamodule: Any) -> Path | None:
    """Test the nearest centroid of the inputs; returns the folder of its results.

    Raises:
        ConfigurationError: The tasks have no classes.
    """
    if not hasattr(datamodule, "largest_way"):
        raise ConfigurationError("--baseline is the nearest centroid, which is for tasks of classes.")
    results = results_of(trainer)
    kept, results.json, results.name = (results.json, results.name), None, "nearest_centroid"
    trainer.test(NearestCentroidModule(), datamodule=datamodule, verbose=False)
    results.json, results.name = kept
    return results.written


def compared(name: str, baseline: Path | None, trainer: Any) -> str | None:
    """How the module that was tested last compares with the baseline, task by task; `None` where nothing is written.

    Args:
        name: Of the module.
        baseline: What `tested_baseline` returned.
        trainer: Tested both.
    """
    ours = results_of(trainer).written
    if baseline is None or ours is None or not trainer.is_global_zero:
        return None
    return comparison(["nearest centroid", name], [read_tasks(folder) for folder in (baseline, ours)], None)


def results_of(trainer: Any) -> TaskResults:
    """The callback that keeps what a test measures."""
    return next(each for each in trainer.callbacks if isinstance(each, TaskResults))
