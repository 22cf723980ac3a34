"""Meta-train MAML on embedded data, and show what it buys over the same network without meta-training."""

import argparse
import logging
import os
import time
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch

from lightning_meta import Conv4, GlyphsDataModule, MAMLModule
from lightning_meta.callbacks import plot_adaptation, plot_episode
from lightning_meta.cli.main import main
from lightning_meta.task import Task, map_tensors, number_of_tasks

CONFIG = Path(__file__).parents[1] / "configs/maml/glyphs_5way_1shot.yaml"
RATES = [0.03, 0.1, 0.3, 1.0, 3.0]
STEPS = [1, 5, 20]
SELECTION_TASKS = 64
FIGURE_TASKS = 64


def first_batches(loader: Iterable[Task], tasks: int) -> list[Task]:
    """The first batches of a loader, until they hold so many tasks."""
    batches: list[Task] = []
    for batch in loader:
        if sum(map(number_of_tasks, batches)) >= tasks:
            break
        batches.append(batch)
    return batches


def accuracy_curves(module: MAMLModule, batches: list[Task], steps: int) -> torch.Tensor:
    """Query accuracy of each task after each inner step: `(tasks, steps + 1)`."""
    return torch.cat([module.adaptation_curve(batch, steps)["query_accuracy"] for batch in batches])


def without_meta_training(hidden: int, data: GlyphsDataModule) -> MAMLModule:
    """The untrained network with the rate and the number of steps that are best on validation tasks."""
    torch.manual_seed(0)
    network = Conv4(data.n_way, hidden=hidden)
    batches = first_batches(data.val_dataloader(), SELECTION_TASKS)
    found = {}
    for rate in RATES:
        curve = accuracy_curves(MAMLModule(network, inner_lr=rate), batches, max(STEPS)).mean(0)
        found |= {(rate, steps): curve[steps].item() for steps in STEPS}
    rate, steps = max(found, key=found.__getitem__)
    return MAMLModule(network, inner_lr=rate, inner_steps=steps)


def percent(metrics: Mapping[str, Any]) -> str:
    """The test accuracy and its 95 % interval, in percent."""
    return f"{100 * metrics['test/query_accuracy']:.1f} ± {100 * metrics['test/query_accuracy_ci95']:.1f} %"


def quickstart() -> None:
    """Train, test, compare, draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", default="runs/quickstart", help="the folder of the run")
    parser.add_argument("--epochs", type=int, default=3, help="epochs of 500 outer steps")
    options = parser.parse_args()
    start = time.perf_counter()
    folder = Path(options.folder)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    torch.set_num_threads(os.cpu_count() or 1)

    run = [
        "--config",
        str(CONFIG),
        "--trainer.default_root_dir",
        str(folder),
        "--trainer.enable_model_summary",
        "false",
    ]
    schedule = ["--trainer.max_epochs", str(options.epochs), "--model.lr_scheduler.T_max", str(500 * options.epochs)]
    fit = ["fit", *run, *schedule]
    print(f"Meta-training with: lightning-meta {' '.join(fit)}", flush=True)
    main(fit)
    tested = main(["test", *run, "--ckpt_path", "best", "--trainer.enable_progress_bar", "false"])
    module, data = tested.model, tested.datamodule
    assert isinstance(module, MAMLModule)
    assert isinstance(data, GlyphsDataModule)

    print("Adapting the same network without meta-training, at five inner rates ...", flush=True)
    untrained = without_meta_training(module.network.head.in_features, data)
    trainer = pl.Trainer(logger=False, enable_progress_bar=False, enable_checkpointing=False, default_root_dir=folder)
    compared = trainer.test(untrained, data, verbose=False)[0]
    own_steps = module.algorithm.val_inner_steps
    rate, steps = untrained.inner_optimizer.lr, untrained.algorithm.inner_steps

    figures = folder / "figures"
    figures.mkdir(exist_ok=True)
    batches = first_batches(data.test_dataloader(), FIGURE_TASKS)
    first = map_tensors(lambda t: t[0], batches[0])
    adapted = module.adapt_to(*first.support[:2], transductive=True)
    plot_episode(first, figures / "episode.png", adapted(first.query.inputs))
    curves = {
        f"meta-trained, rate {module.inner_optimizer.lr}": accuracy_curves(module, batches, max(steps, 5)),
        f"not meta-trained, rate {rate}": accuracy_curves(untrained, batches, max(steps, 5)),
    }
    plot_adaptation(curves, figures / "adaptation.png")

    classes, queries = data.test_n_way, data.test_n_query
    print(
        f"""
Glyphs, {classes}-way {data.test_k_shot}-shot: accuracy on {data.test_tasks} test tasks of classes never trained on,
{queries} queries per class, batch normalization transductive, mean and 95 % interval
  adapted from the meta-trained network   {percent(tested.trainer.callback_metrics)}   ({own_steps} steps)
  adapted without meta-training           {percent(compared)}   ({steps} steps at rate {rate}, the best of \
{len(RATES)} rates x {STEPS} steps)

Checkpoint   {folder / "checkpoints/best.ckpt"}
Log          {folder / "logs/fit/metrics.csv"}
Figures      {figures / "episode.png"}, {figures / "adaptation.png"}
Took {(time.perf_counter() - start) / 60:.1f} minutes. Next: docs/first_run.md."""
    )


if __name__ == "__main__":
    quickstart()
