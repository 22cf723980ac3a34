"""Compare two models on the same test tasks, in pairs: the interval of the difference is narrower than either's own.

    ./scripts/compare CONFIG [OTHER_CONFIG] [options of the command line, such as --data.root DATA]

CONFIG is the file of a run, whose best checkpoint is tested, or its network as it is initialized where there is none
yet. Without another one, it is compared with the nearest centroid of the inputs (NearestCentroidModule). Options are
for both. The values of each task are written to compare.csv in the folder of CONFIG's run.
"""

import csv
import sys
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import yaml
from torch import Tensor

from lightning_meta import NearestCentroidModule
from lightning_meta.cli.main import MetaCLI, main
from lightning_meta.metrics.task_statistics import mean_and_ci95
from lightning_meta.modules import MetaModule


def values(module: MetaModule, data: Any) -> dict[str, Tensor]:
    """The accuracy of each test task in percent, by row of the test."""
    rows = getattr(data, "test_rows", None) or [""]
    return {
        row: 100 * module.evaluation.of("test", loader).per_task()["query_accuracy"].double()
        for loader, row in enumerate(rows)
    }


def tested(config: str, options: list[str]) -> MetaCLI:
    """Test the best checkpoint of a configuration's run, if there is one."""
    folder = yaml.safe_load(Path(config).read_text())["trainer"]["default_root_dir"]
    if "--trainer.default_root_dir" in options:
        folder = options[options.index("--trainer.default_root_dir") + 1]
    trained = (Path(folder) / "checkpoints" / "best.ckpt").is_file()
    return main(["test", "--config", config, *options, *(["--ckpt_path", "best"] if trained else [])])


def compare(arguments: list[str]) -> list[str]:
    """Test both, and say how they compare: for each row of the test a line for each, and one for the difference."""
    configs = []
    while arguments and not arguments[0].startswith("--"):
        config, *arguments = arguments
        configs.append(config)
    if not 1 <= len(configs) <= 2:
        sys.exit(f"Give one configuration, or two, got {len(configs)}.\n{__doc__}")
    first = tested(configs[0], arguments)
    ours = values(first.model, first.datamodule)
    if len(configs) == 2:
        name, other = configs[1], tested(configs[1], arguments)
        theirs = values(other.model, other.datamodule)
    else:
        name, centroid = "nearest centroid", NearestCentroidModule()
        quiet = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False}
        trainer = pl.Trainer(accelerator=first.trainer.accelerator, devices=1, **quiet)
        trainer.test(centroid, first.datamodule, verbose=False)
        theirs = values(centroid, first.datamodule)
    lines = []
    for row in ours:
        for which, found in ((configs[0], ours[row]), (name, theirs[row]), ("difference", ours[row] - theirs[row])):
            mean, ci95 = mean_and_ci95(found)
            sign = "+" if which == "difference" else ""
            lines.append(f"{f'{row}: ' if row else ''}{which}: {mean:{sign}.2f} ± {ci95:.2f}, {len(found)} tasks")
    folder = Path(first.trainer.default_root_dir)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "compare.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["row", "task", configs[0], name])
        for row in ours:
            pairs = zip(ours[row].tolist(), theirs[row].tolist(), strict=True)
            writer.writerows([row, i, *pair] for i, pair in enumerate(pairs))
    return lines


if __name__ == "__main__":
    print("\n".join(compare(sys.argv[1:])))
