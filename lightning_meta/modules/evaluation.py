"""Evaluation: each task once, with its own gradients, and the mean over all tasks and devices."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torchmetrics import Metric, MetricCollection

from lightning_meta.algorithms.acting import Actor
from lightning_meta.errors import ArgumentTypeError
from lightning_meta.functional.masks import real_parts
from lightning_meta.functional.task_map import joined
from lightning_meta.metrics import TaskStatistics
from lightning_meta.modules.optimizers import step_schedulers
from lightning_meta.modules.trainer_checks import check_batch
from lightning_meta.task import Task, map_tensors

if TYPE_CHECKING:
    from lightning_meta.modules.meta_module import MetaModule

Metrics = Metric | MetricCollection
_SHOWN = ("query_loss", "query_accuracy", "query_return", "query_success", "env_steps_per_second")
"""What the progress bar shows."""
_LONGEST = 100
"""Of a metric that is a vector, such as an accuracy for each class, no more values than these are logged."""


@contextmanager
def with_gradients(batch: Task) -> Iterator[Task]:
    """Make a batch differentiable in evaluation too, where Lightning turns gradients off."""
    with torch.inference_mode(False), torch.enable_grad():
        yield map_tensors(lambda t: t.clone() if t.is_inference() else t, batch)


def collected(module: "MetaModule", tasks: Task, *, training: bool) -> Task:
    """The batch that `MetaModule.collect` makes, with as many inner steps as in meta-training or in evaluation."""
    return module.collect(
        tasks, Actor(module.algorithm, module.task_map, lambda: module.problem(tasks), training=training)
    )


class Evaluation:
    """What a module measures in validation and test: the values of every task, for each of several loaders.

    Args:
        metrics: What else to measure, over the query examples of all tasks together.

    Raises:
        ArgumentTypeError: `metrics` are none of torchmetrics.
    """

    def __init__(self, metrics: Metrics | None = None) -> None:
        if not isinstance(metrics, Metrics | None):
            raise ArgumentTypeError(
                f"metrics must be a Metric or a MetricCollection of torchmetrics, got {metrics!r}. Functions of your "
                "own belong into task_metrics."
            )
        self.metrics = metrics
        self.wants_predictions = False
        """Whether a callback wants the predictions of each batch."""
        self.statistics: dict[tuple[str, int], TaskStatistics] = {}
        self.measured: dict[tuple[str, int], Metrics] = {}
        self.results: dict[str, dict[str, Tensor]] = {}
        """What `metrics` came to in the last `"val"` and `"test"`, matrices included; of further loaders under
        `"test/<name>"`."""

    def of(self, stage: str, loader: int = 0) -> TaskStatistics:
        """What was measured on the tasks of one loader."""
        return self.statistics.setdefault((stage, loader), TaskStatistics())

    def __call__(self, module: "MetaModule", stage: str, batch: Task, loader: int) -> dict[str, Any]:
        """Adapt to a batch of tasks and measure.

        Returns:
            For callbacks the values of each task, `(B,)` each; where `wants_predictions`, also `predictions`, `targets`
            and `mask` `(B, queries, ...)`.
        """
        check_batch(batch)
        with with_gradients(batch) as tasks:
            tasks = collected(module, tasks, training=False)
            outcomes = list(module.task_map(module.algorithm.evaluate, module.problem(tasks)))
            if (
                self.metrics is None and not self.wants_predictions
            ):  # nothing asks for predictions, which need not be of one shape
                outcomes = [outcome._replace(judged=()) for outcome in outcomes]
            outcome = joined(outcomes)
        # Outside of the block, since the metric's state was reset under the grad mode that holds here.
        found: dict[str, Any] = module.measured(tasks, {"query_loss": outcome.losses, **outcome.metrics})
        self.of(stage, loader).update(found)
        predictions, targets, mask = outcome.judged or (None, None, None)
        if self.metrics is not None:
            if (stage, loader) not in self.measured:
                self.measured[stage, loader] = self.metrics.clone()
            together = map_tensors(lambda t: t.flatten(0, 1) if mask is None else t[mask], (predictions, targets))
            self.measured[stage, loader].to(module.device).update(*together)
        return found | ({"predictions": predictions, "targets": targets, "mask": mask} if outcome.judged else {})

    def predictions(self, module: "MetaModule", batch: Task) -> Any:
        """Predictions for the query sets, `(B, queries, ...)`; a list of each task's own where those are masked."""
        check_batch(batch)
        with with_gradients(batch) as tasks:
            tasks = collected(module, tasks, training=False)
            found = joined(list(module.task_map(module.algorithm.predict, module.problem(tasks))))
        if tasks.query.mask is None:
            return found
        return [part for (part,) in real_parts(tasks.query.mask, found)]

    def start(self, stage: str) -> None:
        """Forget what an interrupted evaluation may have left."""
        for (of_stage, _), statistics in (*self.statistics.items(), *self.measured.items()):
            if of_stage == stage:
                statistics.reset()

    def finish(self, module: "MetaModule", stage: str) -> None:
        """Log the means over all tasks, for each loader, and tell a scheduler that waits for them."""
        trainer: Any = module.trainer
        rows = {loader: found for (of_stage, loader), found in self.statistics.items() if of_stage == stage}
        rows = {loader: found for loader, found in sorted(rows.items()) if found.update_called}
        names = getattr(getattr(trainer, "datamodule", None), f"{stage}_rows", None) or []
        for loader, found in rows.items():
            name = names[loader] if loader < len(names) else f"loader_{loader}"
            suffix = f"/{name}" if len(rows) > 1 or names else ""
            for key, (mean, ci95) in found.to(module.device).compute().items():
                values = {key: mean.float()}
                if not key.startswith("support_") and not key.endswith("_before"):
                    values[f"{key}_ci95"] = ci95.float()
                self.log(module, stage, values, suffix)
            if self.metrics is not None:
                self.results[f"{stage}{suffix}"] = values = _computed(self.measured[stage, loader])
                self.log(module, stage, _scalars(values), suffix)
        if stage == "val" and trainer.state.fn == "fit" and not trainer.sanity_checking:
            step_schedulers(module, validated=True)

    def log(
        self, module: "MetaModule", stage: str, values: Mapping[str, Tensor], suffix: str = "", tasks: int | None = None
    ) -> None:
        """Log values as `{stage}/{name}{suffix}`.

        Args:
            module: Logs them.
            stage: `"train"`, `"val"` or `"test"`.
            values: Scalars, in evaluation the same on every device.
            suffix: Says of which loader they are.
            tasks: How many tasks they are of.
        """
        for name, value in values.items():
            shown = name in _SHOWN
            # Statistics are the same on every device already; to synchronize them is a formality.
            module.log(f"{stage}/{name}{suffix}", value, prog_bar=shown, batch_size=tasks, sync_dist=stage != "train")


def _computed(metrics: Metrics) -> dict[str, Tensor]:
    """The values of metrics by name."""
    values = metrics.compute()
    if isinstance(metrics, Metric):
        values = values if isinstance(values, dict) else {type(metrics).__name__: values}
    return {name: value for name, value in values.items() if isinstance(value, Tensor)}


def _scalars(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What of values can be logged: numbers, and those of short vectors."""
    found = {name: value.float() for name, value in values.items() if value.dim() == 0}
    for name, value in values.items():
        if value.dim() == 1 and len(value) <= _LONGEST:
            found |= {f"{name}_{i}": each.float() for i, each in enumerate(value)}
    return found
