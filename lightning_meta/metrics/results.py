"""What a test measured, task by task and class by class: a table to read, and files to go on with."""

import csv
import io
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_meta.errors import ConfigurationError, DataError, MissingFileError
from lightning_meta.files import write_atomically
from lightning_meta.metrics.task_statistics import mean_and_ci95

SHOWN = ("query_success", "query_return", "query_accuracy", "query_loss")
"""What a test is judged by, the first that there is. Of these the table also has the values before adaptation."""


class ClassResult(NamedTuple):
    """How one class of one task was predicted.

    Attributes:
        task: The number of the task.
        name: The class.
        queries: How many query examples it has.
        accuracy: Of those examples.
        loss: Their mean cross-entropy.
    """

    task: int
    name: str
    queries: int
    accuracy: float
    loss: float


@dataclass
class RowResult:
    """The result of one row of a test: the tasks of one way and one shot.

    Attributes:
        name: Of the row, such as `5-way 1-shot`; empty where a test has only one.
        sizes: Its `way`, `shot` and `queries` of each class, in words; without classes its `support` and `queries`.
        normalization: Whose statistics batch normalization used; empty where there is none.
        values: For each metric the tasks' values, `(T,)`.
        seconds: The median time of a task, to adapt to it and to measure.
        task_classes: The classes of each task in the order of their labels, if they have names.
        classes: How each class of each task was predicted.
        confusion: How many query examples of a class were taken for another, or for what they are.
    """

    name: str
    sizes: dict[str, str]
    normalization: str
    values: dict[str, Tensor]
    seconds: float
    task_classes: list[list[str]] = field(default_factory=list)
    classes: list[ClassResult] = field(default_factory=list)
    confusion: Counter[tuple[str, str]] = field(default_factory=Counter)

    def summary(self) -> dict[str, Any]:
        """All of it that is not of single tasks or classes, in plain types."""
        metrics = {}
        for name, values in self.values.items():
            mean, ci95 = mean_and_ci95(values)
            metrics[name] = {"mean": mean.item(), "ci95": ci95.item()}
        return {
            "name": self.name,
            **self.sizes,
            "tasks": len(next(iter(self.values.values()))),
            "normalization": self.normalization,
            "seconds_per_task": self.seconds,
            "metrics": metrics,
        }


def results_table(rows: Sequence[RowResult]) -> str:
    """The results as text, a line for each row.

    Example:
        >>> values = {"query_accuracy": torch.tensor([0.8, 1.0]), "query_loss": torch.tensor([0.5, 0.3])}
        >>> print(results_table([RowResult("", {"way": "5", "shot": "1", "queries": "15"}, "", values, 0.02)]))
        way  shot  queries  tasks  query accuracy  query loss     ms a task
        5    1     15       2      90.0 ± 19.6 %   0.400 ± 0.196  20.0
    """
    lines = [_cells(row) for row in rows]
    titles = list(dict.fromkeys(title for line in lines for title in line))
    widths = {title: max(len(title), *(len(line.get(title, "")) for line in lines)) for title in titles}
    texts = [{title: title for title in titles}, *lines]
    return "\n".join("  ".join(text.get(t, "").ljust(widths[t]) for t in titles).rstrip() for text in texts)


def _cells(row: RowResult) -> dict[str, str]:
    of_tasks = [name for name in row.values if not name.endswith("_before") and name not in ("support_loss", *SHOWN)]
    shown = [name for name in (*SHOWN, *of_tasks) if name in row.values]
    cells = dict(row.sizes) if row.sizes else {"row": row.name} if row.name else {}
    cells["tasks"] = str(len(row.values[shown[0]]))
    for name in shown:
        title = name.replace("_", " ")
        cells[title] = _interval(name, row.values[name])
        before = row.values.get(f"{name}_before")
        if before is not None and name in SHOWN:
            cells[f"{title} before"] = _interval(name, before)
    cells["ms a task"] = f"{1000 * row.seconds:.1f}"
    if row.normalization:
        cells["batch statistics"] = row.normalization
    return cells


def _interval(name: str, values: Tensor) -> str:
    mean, ci95 = mean_and_ci95(values)
    return (
        f"{100 * mean:.1f} ± {100 * ci95:.1f} %"
        if "accuracy" in name or "success" in name
        else f"{mean:.3f} ± {ci95:.3f}"
    )


def save_results(rows: Sequence[RowResult], about: Mapping[str, Any], folder: Path) -> None:
    """Write `results.json`, `tasks.csv`, and where tasks have classes `classes.csv` and `confusion.csv`.

    Args:
        rows: The results.
        about: What was tested on what, in plain types.
        folder: Made if it is not there; files of the same names are replaced.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_json(rows, about, folder / "results.json")
    names = list(dict.fromkeys(name for row in rows for name in row.values))
    tasks = (
        [row.name, number, "|".join(row.task_classes[number]) if row.task_classes else ""]
        + [row.values[name][number].item() if name in row.values else "" for name in names]
        for row in rows
        for number in range(len(next(iter(row.values.values()))))
    )
    _write_csv(folder / "tasks.csv", ["row", "task", "classes", *names], tasks)
    if any(row.classes for row in rows):
        classes = ([row.name, *found] for row in rows for found in row.classes)
        _write_csv(folder / "classes.csv", ["row", "task", "class", "queries", "accuracy", "loss"], classes)
        pairs = ([row.name, *pair, count] for row in rows for pair, count in row.confusion.most_common())
        _write_csv(folder / "confusion.csv", ["row", "class", "predicted", "queries"], pairs)
    else:  # those of another test would not go with the rest
        for name in ("classes.csv", "confusion.csv"):
            (folder / name).unlink(missing_ok=True)


def write_json(rows: Sequence[RowResult], about: Mapping[str, Any], path: Path) -> None:
    """Write means and intervals of all rows, and what they are of; what is not finite (one task's interval) is null."""
    content = _finite({**about, "rows": [row.summary() for row in rows]})
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, (json.dumps(content, indent=2, allow_nan=False) + "\n").encode())


def _finite(value: Any) -> Any:
    """Plain types with `None` in place of numbers that JSON does not have."""
    if isinstance(value, Mapping):
        return {key: _finite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _write_csv(path: Path, header: Sequence[str], rows: Any) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    write_atomically(path, text.getvalue().encode())


class TaskTable(NamedTuple):
    """What `tasks.csv` says of one run.

    Attributes:
        tasks: Which tasks there are: row, number and classes of each.
        values: For each metric the tasks' values, `(T,)`.
        about: What was tested on what, of `results.json`.
    """

    tasks: list[tuple[str, str, str]]
    values: dict[str, Tensor]
    about: dict[str, Any]


def read_tasks(folder: Path) -> TaskTable:
    """Read the results of a test.

    Args:
        folder: Holds `tasks.csv` and `results.json`, as `save_results` writes them.

    Raises:
        MissingFileError: They are not there.
        DataError: They cannot be read.
    """
    path = folder / "tasks.csv"
    if not path.is_file():
        raise MissingFileError(f"There is no file {path}. `lightning-meta test` writes it into the run's folder.")
    try:
        about = json.loads((folder / "results.json").read_text())
        with path.open(newline="", encoding="utf-8") as file:
            lines = list(csv.DictReader(file))
        names = [name for name in lines[0] if name not in ("row", "task", "classes")]
        values = {
            name: torch.tensor([float(line[name]) for line in lines], dtype=torch.float64)
            for name in names
            if all(line[name] for line in lines)
        }
        tasks = [(line["row"], line["task"], line["classes"]) for line in lines]
    except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
        raise DataError(f"{folder} holds no results that `lightning-meta test` wrote: {error!r}.") from error
    return TaskTable(tasks, values, about)


class Difference(NamedTuple):
    """How two runs compare on the same tasks.

    Attributes:
        row: The row of the test.
        metric: What is compared.
        first: Mean and half-width of the 95 % interval of the first run.
        second: Those of the second.
        difference: Those of second minus first, task by task: means that differ for chance alone have an interval that
            holds 0 in 95 of 100 cases.
    """

    row: str
    metric: str
    first: tuple[float, float]
    second: tuple[float, float]
    difference: tuple[float, float]


def compare_tasks(first: TaskTable, second: TaskTable, metric: str | None = None) -> list[Difference]:
    """Compare two runs on the tasks that both were tested on, pairing them.

    Args:
        first: What to compare with.
        second: What to compare.
        metric: A column of `tasks.csv`; the first of `SHOWN` that both have if `None`.

    Raises:
        ConfigurationError: They were not tested on the same tasks, or one lacks the metric.

    Example:
        >>> tasks = [("", str(i), "") for i in range(3)]
        >>> runs = [TaskTable(tasks, {"query_loss": torch.tensor(loss)}, {}) for loss in ([1.0, 2, 3], [0.9, 1.9, 2.9])]
        >>> mean, ci95 = compare_tasks(*runs)[0].difference
        >>> round(mean, 3), round(ci95, 3)
        (-0.1, 0.0)
    """
    _check_same_tasks(first, second)
    if metric is None:
        metric = next((name for name in SHOWN if name in first.values and name in second.values), SHOWN[-1])
    for table in (first, second):
        if metric not in table.values:
            raise ConfigurationError(
                f"A run has no {metric} for each task; it has {', '.join(table.values)}. Choose one by --metric."
            )
    found = []
    for row in dict.fromkeys(task[0] for task in first.tasks):
        mine = torch.tensor([task[0] == row for task in first.tasks])
        a, b = first.values[metric][mine], second.values[metric][mine]
        found.append(Difference(row, metric, *(_plain(values) for values in (a, b, b - a))))
    return found


def _plain(values: Tensor) -> tuple[float, float]:
    mean, ci95 = mean_and_ci95(values)
    return mean.item(), ci95.item()


def _check_same_tasks(first: TaskTable, second: TaskTable) -> None:
    settings = [{name: table.about.get(name) for name in ("data", "tasks_of")} for table in (first, second)]
    different = next((pair for pair in zip(first.tasks, second.tasks, strict=False) if pair[0] != pair[1]), None)
    if len(first.tasks) != len(second.tasks):
        reason = f"one has {len(first.tasks)} tasks, the other {len(second.tasks)}"
    elif different is not None:
        reason = f"task {different[0][1]} is {different[0]} in one and {different[1]} in the other"
    elif settings[0] != settings[1]:
        reason = f"one is of {settings[0]}, the other of {settings[1]}"
    else:
        return
    raise ConfigurationError(
        f"Only runs that were tested on the same tasks can be compared task by task, but {reason}. Test both with the "
        "same data, seed, way, shot and queries."
    )
