"""Run a row of docs/results.md or docs/text.md again: train, test, and compare with what is recorded there.

    ./scripts/reproduce ROW [options of the command line, such as --data.root DATA]

ROW is the name in the first column, which is that of its configuration. The run is kept in runs/reproduce/ROW. The exit
status is 0 if the two results are no further apart than their intervals say, 1 otherwise.
"""

import re
import sys
from pathlib import Path
from typing import NamedTuple

import yaml

from lightning_meta.cli.main import main

ROOT = Path(__file__).parents[1]
ROOTS = {"omniglot": "omniglot-py/", "banking77": "banking77.jsonl.gz", "clinc150": "clinc150.jsonl.gz"}
LINE = re.compile(r"^\| `(?P<name>[\w/]+)` \| (?P<mean>[\d.]+) ± (?P<ci95>[\d.]+) (?P<unit>%|mse) \|")


class Result(NamedTuple):
    """A mean over tasks and the half-width of its 95 % interval, in percent or as a squared error."""

    mean: float
    ci95: float
    unit: str

    def __str__(self) -> str:
        return f"{self.mean:.3g} ± {self.ci95:.2g}" if self.unit == "mse" else f"{self.mean:.2f} ± {self.ci95:.2f} %"


def runs_folder() -> Path:
    """Where runs are kept."""
    return ROOT / "runs" / "reproduce"


def recorded(document: str) -> dict[str, Result]:
    """The results in the table, by row."""
    found = filter(None, map(LINE.match, document.splitlines()))
    return {m["name"]: Result(float(m["mean"]), float(m["ci95"]), m["unit"]) for m in found}


def measure(row: str, unit: str, options: list[str]) -> Result:
    """Train (unless the configuration says for no epoch) and test."""
    path = ROOT / "configs" / f"{row}.yaml"
    config = ["--config", str(path)]
    config += ["--trainer.default_root_dir", str(runs_folder() / row), *options]
    if yaml.safe_load(path.read_text())["trainer"]["max_epochs"] == 0:
        tested = main(["test", *config])
    else:
        main(["fit", *config])
        tested = main(["test", *config, "--ckpt_path", "best"])
    metrics = tested.trainer.callback_metrics
    name, scale = ("query_loss", 1) if unit == "mse" else ("query_accuracy", 100)
    return Result(scale * float(metrics[f"test/{name}"]), scale * float(metrics[f"test/{name}_ci95"]), unit)


def reproduce(arguments: list[str]) -> int:
    """Run one row and say how it compares."""
    rows = recorded("".join((ROOT / "docs" / f"{name}.md").read_text() for name in ("results", "text")))
    if not arguments or arguments[0] not in rows:
        given = f"There is no row {arguments[0]!r}. " if arguments else "Which row? "
        print(f"{given}The rows of docs/results.md and docs/text.md are:\n  " + "\n  ".join(rows), file=sys.stderr)
        return 2
    row, *options = arguments
    needed = next((folder for data, folder in ROOTS.items() if f"/{data}" in row), None)
    if needed and not any(option.startswith("--data.root") for option in options):
        print(f"This row needs --data.root, the folder that holds {needed}.", file=sys.stderr)
        return 2
    old, new = rows[row], measure(row, rows[row].unit, options)
    tolerance = (old.ci95**2 + new.ci95**2) ** 0.5
    agree = abs(old.mean - new.mean) <= tolerance
    verdict = "within" if agree else "NOT within"
    print(f"{row}: measured {new}, recorded {old}: {verdict} the interval of the difference, ±{tolerance:.2g}")
    return 0 if agree else 1


if __name__ == "__main__":
    sys.exit(reproduce(sys.argv[1:]))
