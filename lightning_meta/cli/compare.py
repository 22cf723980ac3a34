"""The command `compare`: runs that were tested on the same tasks, task by task."""

import argparse
from pathlib import Path

from lightning_meta.errors import ConfigurationError, MissingFileError
from lightning_meta.metrics.results import SHOWN, Difference, TaskTable, compare_tasks, read_tasks


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument("runs", nargs="+", metavar="RUN", help="A run's folder, or a folder of results in one.")
    parser.add_argument("--metric", help="A column of tasks.csv. Default: accuracy, return, or else the loss.")


def run(options: argparse.Namespace) -> None:
    """Print how each run compares with the first.

    Raises:
        ConfigurationError: There is one run only, or they were not tested on the same tasks.
        MissingFileError: A run has not been tested.
    """
    folders = [results_folder(Path(given)) for given in options.runs]
    if len(folders) < 2:
        raise ConfigurationError("compare needs two runs or more.")
    tables = [read_tasks(folder) for folder in folders]
    print(comparison([_name(folder) for folder in folders], tables, options.metric))


def results_folder(given: Path) -> Path:
    """The results that a folder means: its own, those of `best`, or the only ones.

    Raises:
        MissingFileError: There are none.
        ConfigurationError: There are several, none of them of `best`.
    """
    if (given / "tasks.csv").is_file():
        return given
    found = sorted(path.parent for path in (given / "results").glob("*/tasks.csv"))
    best = given / "results" / "best"
    if best in found:
        return best
    if not found:
        raise MissingFileError(
            f"{given} holds no results. `lightning-meta test --config {given}/config.yaml --ckpt_path best` makes them."
        )
    if len(found) > 1:
        raise ConfigurationError(f"{given} holds several results; give one of {', '.join(map(str, found))}.")
    return found[0]


def comparison(names: list[str], tables: list[TaskTable], metric: str | None) -> str:
    """A table with a line for each run and each row of the test.

    Args:
        names: Of the runs.
        tables: What `tasks.csv` says of each.
        metric: What to compare; see `compare_tasks`.
    """
    shared = [name for name in SHOWN if all(name in table.values for table in tables)]
    metric = metric or (shared[0] if shared else None)
    each = [compare_tasks(tables[0], table, metric) for table in tables]
    shown = each[0][0].metric
    lines = [["run", "row", shown.replace("_", " "), f"difference to {names[0]}"]]
    for name, found in zip(names, each, strict=True):
        for difference in found:
            lines.append([name, difference.row, *_cells(difference, first=name == names[0])])
    used = [column for column in zip(*lines, strict=True) if any(column[1:])]
    widths = [max(map(len, column)) for column in used]
    rows = zip(*used, strict=True)
    text = "\n".join("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows)
    note = "\n* The interval of the difference leaves out 0." if " *" in text else ""
    return f"{len(tables[0].tasks)} tasks, mean and 95 % interval, paired task by task\n{text}{note}"


def _cells(difference: Difference, *, first: bool) -> list[str]:
    percent = difference.metric.endswith(("accuracy", "success"))
    scale, digits, unit = (100, 2, " %") if percent else (1, 4, "")
    mean, ci95 = (scale * value for value in difference.second)
    cells = [f"{mean:.{digits}f} ± {ci95:.{digits}f}{unit}"]
    if first:
        return [*cells, ""]
    mean, ci95 = (scale * value for value in difference.difference)
    sure = " *" if abs(mean) > ci95 else ""  # nothing is sure of a single task, or of a loss that is not finite
    return [*cells, f"{mean:+.{digits}f} ± {ci95:.{digits}f}{' points' if percent else ''}{sure}"]


def _name(folder: Path) -> str:
    return str(folder.parent.parent) if folder.parent.name == "results" and folder.name == "best" else str(folder)
