"""Draw what trainings reached in validation over the minutes that they took.

    python scripts/learning_curves.py FIGURE.png ROW [ROW ...]

ROW is a configuration that `./scripts/reproduce` has trained (`maml/omniglot_5way_1shot`). Minutes are those of the
whole training with its validations, by the clock in its last checkpoint, divided evenly over its outer steps. The end
of each curve is printed.
"""

import csv
import sys
from pathlib import Path
from typing import NamedTuple

import torch
from matplotlib.figure import Figure
from reproduce import runs_folder

METRIC = "val/query_accuracy"


class Curve(NamedTuple):
    """Validation accuracies in per cent, and the minutes of training after which they were measured."""

    minutes: list[float]
    accuracies: list[float]


def curve(row: str) -> Curve:
    """The curve of a folder's last training, from the logs of all its parts where it went on from a checkpoint."""
    folder = runs_folder() / row
    measured: dict[int, float] = {}
    for path in sorted(folder.glob("logs/fit/metrics*.csv"), key=lambda path: path.stat().st_mtime):
        with path.open(newline="") as file:
            lines = list(csv.DictReader(file))
        kept = {} if lines and lines[0]["epoch"] == "0" else measured  # none, where the training began anew
        measured = kept | {int(line["step"]) + 1: float(line[METRIC]) for line in lines if line.get(METRIC)}
    checkpoint = torch.load(folder / "checkpoints" / "last.ckpt", map_location="cpu", weights_only=True)
    minutes = checkpoint["callbacks"]["Timer"]["time_elapsed"]["train"] / 60 / checkpoint["global_step"]
    steps = sorted(measured)
    return Curve([minutes * step for step in steps], [100 * measured[step] for step in steps])


def draw(figure: Path, rows: list[str]) -> None:
    """Draw the curves of rows, and print where they end."""
    drawing = Figure(figsize=(7, 4), layout="constrained")
    axes = drawing.subplots()
    for row in rows:
        found = curve(row)
        axes.plot(found.minutes, found.accuracies, marker="o", markersize=2.5, label=row)
        print(f"{row}: {found.accuracies[-1]:.2f} % in validation after {found.minutes[-1]:.1f} minutes")
    axes.set(xlabel="minutes of training", ylabel="validation accuracy, %")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.parent.mkdir(parents=True, exist_ok=True)
    drawing.savefig(figure, dpi=150)


if __name__ == "__main__":
    draw(Path(sys.argv[1]), sys.argv[2:])
