"""Draw how several trainings adapt: a metric after each inner step, the mean over the test tasks and its interval.

    python scripts/adaptation.py FIGURE.png STEPS ROW [ROW ...] [options of the command line]

ROW is a configuration that `./scripts/reproduce` has trained (`rl/maml/ml1_reach`); STEPS is how many inner steps to
make. What is drawn is printed as a table, too.
"""

import sys
from pathlib import Path

import torch
from reproduce import ROOT, runs_folder
from torch import Tensor

from lightning_meta.callbacks.figures import plot_adaptation
from lightning_meta.cli.main import main
from lightning_meta.metrics import mean_and_ci95

FIRST = ("query_success", "query_accuracy", "query_return", "query_loss")
"""Which metric is drawn: the first of these that there is."""


def curve(row: str, steps: int, options: list[str]) -> tuple[str, Tensor]:
    """The metric's name, and its values on each test task after each inner step, `(tasks, steps + 1)`."""
    folder = str(runs_folder() / row)
    config = ["--config", str(ROOT / "configs" / f"{row}.yaml"), "--trainer.default_root_dir", folder]
    cli = main(["test", *config, "--trainer.enable_progress_bar", "false", "--ckpt_path", "best", *options])
    module = cli.model.eval()
    found = [module.adaptation_curve(tasks, steps) for tasks in cli.datamodule.test_dataloader()]
    metric = next(name for name in FIRST if name in found[0])
    return metric, torch.cat([values[metric].detach() for values in found])


def draw(figure: Path, steps: int, rows: list[str], options: list[str]) -> None:
    """Draw the curves of rows, and print them."""
    curves, metric = {}, ""
    for row in rows:
        metric, curves[row] = curve(row, steps, options)
    scale = 100 if metric in FIRST[:2] else 1
    curves = {row: scale * values for row, values in curves.items()}
    for row, values in curves.items():
        mean, ci95 = mean_and_ci95(values)
        cells = (f"{m:.1f} ± {c:.1f}" for m, c in zip(mean.tolist(), ci95.tolist(), strict=True))
        print(f"| `{row}` | {' | '.join(cells)} |")
    figure.parent.mkdir(parents=True, exist_ok=True)
    plot_adaptation(curves, figure, metric.replace("_", " ") + (", %" if scale == 100 else ""))


if __name__ == "__main__":
    rows = [argument for argument in sys.argv[3:] if (ROOT / "configs" / f"{argument}.yaml").is_file()]
    draw(Path(sys.argv[1]), int(sys.argv[2]), rows, [argument for argument in sys.argv[3:] if argument not in rows])
