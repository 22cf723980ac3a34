"""Evaluation: each task once, with its own gradients, and the mean over all tasks and devices."""

from abc import ABC, abstractmethod
from typing import cast

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

from lightning_meta.functional.learner import Learner
from lightning_meta.functional.task_map import TaskMap
from lightning_meta.metrics import TaskStatistics
from lightning_meta.modules.checkpoints import CheckpointedModule
from lightning_meta.modules.outcome import Outcome, joined, with_gradients
from lightning_meta.task import Task


class EvaluatedModule(CheckpointedModule, ABC):
    """What modules do in validation, test and prediction."""

    def __init__(self) -> None:
        super().__init__()
        self.statistics = nn.ModuleDict({"val": TaskStatistics(), "test": TaskStatistics()})

    @property
    @abstractmethod
    def task_map(self) -> TaskMap:
        """Runs functions over the tasks of a batch."""

    @abstractmethod
    def evaluate(self, learner: Learner, tasks: Task) -> Outcome:
        """Adapt to a batch of tasks and measure; nothing is differentiated afterwards."""

    @abstractmethod
    def predict(self, learner: Learner, tasks: Task) -> Tensor:
        """Adapt to a batch of tasks and predict their query sets: `(B, queries, ...)`."""

    def validation_step(self, batch: Task, batch_idx: int) -> None:
        """Adapt to a batch of validation tasks and measure."""
        self._evaluation_step("val", batch)

    def test_step(self, batch: Task, batch_idx: int) -> None:
        """Adapt to a batch of test tasks and measure."""
        self._evaluation_step("test", batch)

    def predict_step(self, batch: Task, batch_idx: int) -> Tensor:
        """Predictions for the query sets of a batch of tasks: `(B, queries, ...)`."""
        with with_gradients(batch) as tasks:
            return torch.cat(list(self.task_map(self.predict, tasks))).detach()

    def _evaluation_step(self, stage: str, batch: Task) -> None:
        with with_gradients(batch) as tasks:
            outcome = joined(list(self.task_map(self.evaluate, tasks)))
        # Outside of the block, since the metric's state was reset under the grad mode that holds here.
        self._statistics(stage).update({"query_loss": outcome.losses, **outcome.metrics})

    def on_validation_epoch_start(self) -> None:
        """Forget what an interrupted validation may have left."""
        self._statistics("val").reset()

    def on_test_epoch_start(self) -> None:
        """Forget what an interrupted test may have left."""
        self._statistics("test").reset()

    def on_validation_epoch_end(self) -> None:
        """Log the means over all validation tasks."""
        self._log_statistics("val")
        scheduler = (
            self.lr_schedulers() if self.trainer.state.fn == "fit" and not self.trainer.sanity_checking else None
        )
        if isinstance(scheduler, ReduceLROnPlateau):
            scheduler.step(self.trainer.callback_metrics["val/query_loss"])

    def on_test_epoch_end(self) -> None:
        """Log the means over all test tasks."""
        self._log_statistics("test")

    def _statistics(self, stage: str) -> TaskStatistics:
        return cast(TaskStatistics, self.statistics[stage])

    def _log_statistics(self, stage: str) -> None:
        for name, (mean, ci95) in self._statistics(stage).compute().items():
            self.log_values(stage, {name: mean.float()})
            if name.startswith("query_") and not name.endswith("_before"):
                self.log_values(stage, {f"{name}_ci95": ci95.float()})

    def log_values(self, stage: str, values: dict[str, Tensor], tasks: int | None = None) -> None:
        """Log values as `{stage}/{name}`.

        Args:
            stage: `"train"`, `"val"` or `"test"`.
            values: Scalars, in evaluation the same on every device.
            tasks: How many tasks they are of.
        """
        for name, value in values.items():
            shown = name in ("query_loss", "query_accuracy")
            # Statistics are the same on every device already; to synchronize them is a formality.
            self.log(f"{stage}/{name}", value, prog_bar=shown, batch_size=tasks, sync_dist=stage != "train")
