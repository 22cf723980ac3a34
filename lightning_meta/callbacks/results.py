"""Keeps what a test measures of each task and class, shows it as one table, and writes it to files."""

import math
import statistics
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

from lightning_meta.errors import ConfigurationError
from lightning_meta.metrics import ClassResult, RowResult, results_table, save_results
from lightning_meta.metrics.results import write_json
from lightning_meta.task import Task, are_classes, number_of_examples

_NOT_OF_TEST_TASKS = ("meta_batch_size", "steps_per_epoch", "val_tasks", "test_tasks", "eval_batch_size", "num_workers")
"""Options of a data module on which its test tasks do not depend, or only their number does."""


@runtime_checkable
class _Classes(Protocol):
    """A task distribution whose tasks have classes with names."""

    n_way: Any
    k_shot: Any
    n_query: int

    def class_names(self, numbers: Sequence[int]) -> list[list[str]]: ...


@dataclass
class _Row:
    """What was seen of one row of a test on this device."""

    values: list[dict[str, Tensor]] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    sizes: dict[str, str] = field(default_factory=dict)
    task_classes: list[list[str]] = field(default_factory=list)
    classes: list[ClassResult] = field(default_factory=list)
    confusion: Counter[tuple[str, str]] = field(default_factory=Counter)


class TaskResults(pl.Callback):
    """Shows the result of a test as one table, and keeps it task by task in files.

    Into the folder it writes `results.json` (means, intervals, and what they are of) and `tasks.csv` (a row for each
    task); of classification also `classes.csv` (for each class of each task its accuracy and loss) and `confusion.csv`
    (which class was taken for which). The command `test` has this callback; in a script, give it to the Trainer.

    Args:
        folder: Where to write; `results/<checkpoint>` in the Trainer's `default_root_dir` if `None`.
        json: Another file for means and intervals.
        name: What stands for `<checkpoint>` where none is given.

    Attributes:
        rows: The results of the last test, on the first device.
        written: The folder that they were written to.
    """

    def __init__(self, folder: str | None = None, json: str | None = None, name: str = "current") -> None:
        self.folder = folder
        self.json = json
        self.name = name
        self.rows: list[RowResult] = []
        self.written: Path | None = None
        self._seen: dict[int, _Row] = {}
        self._began = math.nan

    def on_test_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Ask for predictions where tasks have classes."""
        self._seen = {}
        if self.json is not None and Path(self.json).is_dir():
            raise ConfigurationError(f"The results are to be written to {self.json}, which is a folder. Give a file.")
        sources = [self._source(trainer, loader) for loader in range(len(_loaders(trainer)))]
        pl_module.evaluation.wants_predictions = any(source is not None for source in sources)

    def on_test_batch_start(
        self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Start the clock."""
        self._began = time.perf_counter()

    def on_test_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Task, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Keep the values of each task."""
        if not _are_of_tasks(outputs):
            return  # a test_step of the user's own
        row = self._seen.setdefault(dataloader_idx, _Row())
        judged = {name: outputs.pop(name, None) for name in ("predictions", "targets", "mask")}
        values = {name: value.double().cpu() for name, value in outputs.items()}
        tasks = _number(values)
        row.seconds.append((time.perf_counter() - self._began) / tasks)
        before = sum(map(_number, row.values))
        row.values.append(values)
        source = self._source(trainer, dataloader_idx)
        if batch.query.mask is None and "query_return" not in values:  # data that is collected is not in the batch
            row.sizes = _sizes(batch)
        if source is not None:
            row.sizes = {"way": _size(source.n_way), "shot": _size(source.k_shot), "queries": _size(source.n_query)}
            numbers = _loaders(trainer)[dataloader_idx].batches.numbers(batch_idx)
            names = source.class_names(numbers)
            row.task_classes += names
            if _is_classification(judged["predictions"], judged["targets"]):
                self._of_classes(row, judged, names, before)

    def _of_classes(self, row: _Row, judged: dict[str, Any], names: list[list[str]], first: int) -> None:
        predictions, targets = judged["predictions"].float().cpu(), judged["targets"].cpu()
        mask = torch.ones_like(targets, dtype=torch.bool) if judged["mask"] is None else judged["mask"].cpu()
        losses = F.cross_entropy(predictions.transpose(1, 2), targets.clamp(min=0), reduction="none")
        chosen = predictions.argmax(-1)
        for i, classes in enumerate(names):
            for label, name in enumerate(classes):
                mine = (targets[i] == label) & mask[i]
                count = int(mine.sum())
                if not count:
                    continue
                taken = chosen[i][mine]
                accuracy, loss = (taken == label).float().mean().item(), losses[i][mine].mean().item()
                row.classes.append(ClassResult(first + i, name, count, accuracy, loss))
                for other, times in Counter(taken.tolist()).items():
                    # A network may have more outputs than the task has classes.
                    wrong = classes[other] if other < len(classes) else f"output {other}"
                    row.confusion[name, wrong] += times

    def on_exception(self, trainer: pl.Trainer, pl_module: Any, exception: BaseException) -> None:
        """Ask for predictions no longer."""
        pl_module.evaluation.wants_predictions = False

    def on_test_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Put together what all devices saw; print the table and write the files."""
        pl_module.evaluation.wants_predictions = False
        parts = _from_all_devices(trainer, self._seen)
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return  # a few tasks, which are no result
        if not trainer.is_global_zero or not any(parts):
            return
        self.rows = [self._row(trainer, pl_module, loader, parts) for loader in sorted(parts[0])]
        about = self._about(trainer, pl_module)
        name = _name_of(trainer) if trainer.ckpt_path else self.name
        folder = self.written = Path(self.folder or Path(trainer.default_root_dir) / "results" / name)
        save_results(self.rows, about, folder)
        _say(f"{about['module']} on {about['data']}, mean over tasks and 95 % interval:\n{results_table(self.rows)}")
        _say(f"Each task and class: {folder}")
        if self.json is not None:
            write_json(self.rows, about, Path(self.json))

    def _row(self, trainer: pl.Trainer, module: Any, loader: int, parts: list[dict[int, _Row]]) -> RowResult:
        of_devices = [part[loader] for part in parts if loader in part]
        batches = [values for row in of_devices for values in row.values]
        names: list[str] = getattr(getattr(trainer, "datamodule", None), "test_rows", [])
        normalized = any(isinstance(layer, torch.nn.modules.batchnorm._BatchNorm) for layer in module.network.modules())
        classes: list[ClassResult] = []
        before = 0
        for row in of_devices:
            classes += [found._replace(task=found.task + before) for found in row.classes]
            before += sum(map(_number, row.values))
        return RowResult(
            name=names[loader] if loader < len(names) else f"loader_{loader}" if len(parts[0]) > 1 else "",
            sizes=of_devices[0].sizes,
            normalization=module.algorithm.statistics if normalized else "",
            values={name: torch.cat([values[name] for values in batches]) for name in batches[0]},
            seconds=statistics.median(second for row in of_devices for second in row.seconds),
            task_classes=[names for row in of_devices for names in row.task_classes],
            classes=classes,
            confusion=sum((row.confusion for row in of_devices), Counter()),
        )

    def _about(self, trainer: pl.Trainer, module: Any) -> dict[str, Any]:
        data: Any = getattr(trainer, "datamodule", None)
        settings = {} if data is None else data.hparams | getattr(data, "of_test_tasks", {})
        if any(row.task_classes for row in self.rows):  # which tell the tasks; the rest is where data lies
            settings = {"seed": settings.get("seed"), "rows": [row.sizes for row in self.rows]}
        settings = {name: value for name, value in settings.items() if name not in _NOT_OF_TEST_TASKS}
        return {
            "module": type(module).__name__,
            "data": "data loaders" if data is None else type(data).__name__,
            "checkpoint": str(trainer.ckpt_path) if trainer.ckpt_path else None,
            "tasks_of": settings,
        }

    @staticmethod
    def _source(trainer: pl.Trainer, loader: int) -> _Classes | None:
        """The tasks of one loader, if they have classes with names."""
        data: Any = getattr(trainer, "datamodule", None)
        loaders = _loaders(trainer)
        if data is None or loader >= len(loaders) or not hasattr(loaders[loader], "batches"):
            return None
        found = loaders[loader].batches.distribution
        return found if isinstance(found, _Classes) else None


def _are_of_tasks(outputs: Any) -> bool:
    """Whether a step returned values of each task, and what they are of."""
    if not isinstance(outputs, dict) or not outputs:
        return False
    values = [value for name, value in outputs.items() if name not in ("predictions", "targets", "mask")]
    return all(isinstance(value, Tensor) and value.dim() == 1 for value in values) and bool(values)


def _name_of(trainer: pl.Trainer) -> str:
    """The name of a checkpoint; of one of another run with the name of that run, so that results stay apart."""
    path = Path(str(trainer.ckpt_path))
    own = Path(trainer.default_root_dir) / "checkpoints"
    if path.parent.resolve() == own.resolve() or path.parent.name != "checkpoints":
        return path.stem
    return f"{path.parent.parent.name}-{path.stem}"


def _number(values: dict[str, Tensor]) -> int:
    """How many tasks they are of."""
    return len(next(iter(values.values())))


def _is_classification(predictions: Any, targets: Any) -> bool:
    return are_classes(targets) and isinstance(predictions, Tensor) and predictions.dim() == 3


def _loaders(trainer: pl.Trainer) -> list[Any]:
    loaders: Any = trainer.test_dataloaders
    return loaders if isinstance(loaders, list) else [loaders]


def _size(size: int | tuple[int, int]) -> str:
    return "-".join(map(str, size)) if isinstance(size, tuple | list) else str(size)


def _sizes(batch: Task) -> dict[str, str]:
    """How many examples the tasks of a batch have."""
    return {"support": str(number_of_examples(batch.support)), "queries": str(number_of_examples(batch.query))}


def _from_all_devices(trainer: pl.Trainer, seen: dict[int, _Row]) -> list[dict[int, _Row]]:
    """What each device saw, in the order of the tasks."""
    if trainer.world_size == 1:
        return [seen]
    found: list[Any] = [None] * trainer.world_size
    torch.distributed.all_gather_object(found, seen)
    return found


@rank_zero_only
def _say(text: str) -> None:
    print(text)
