"""What the learned update rule of a trained Meta-LSTM does: compared with gradient descent, and its gates drawn.

    python scripts/meta_lstm_rule.py configs/meta_lstm/omniglot_5way_1shot.yaml RUN FIGURE.png --data.root DATA

RUN is the folder of the training, FIGURE.png is written. With `--label_noise 0.2` a fifth of the support examples, on
average, is labelled as one of the other classes. Further options go to the command line as they are: with
`--model.val_inner_steps 1` both rules take one step, with `--data.test_k_shot 1` they see one example of each class.
"""

import argparse
import sys
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor

from lightning_meta import MetaLSTMModule
from lightning_meta.cli.main import MetaCLI, main
from lightning_meta.functional.task_map import joined
from lightning_meta.inner import SGD, LSTMOptimizer
from lightning_meta.metrics import mean_and_ci95
from lightning_meta.modules.evaluation import with_gradients
from lightning_meta.task import Task, map_tensors

RATES = (0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.8)


def mislabelled(tasks: Task, share: float, generator: torch.Generator) -> Task:
    """The tasks with this share of the support labels changed to another class."""
    labels = tasks.support.targets
    n_way = int(labels.max()) + 1
    others = torch.randint(1, n_way, labels.shape, generator=generator)
    wrong = torch.rand(labels.shape, generator=generator) < share
    targets = torch.where(wrong, (labels + others) % n_way, labels)
    return tasks._replace(support=tasks.support._replace(targets=targets))


def measured(cli: MetaCLI, label_noise: float = 0.0) -> tuple[Tensor, Tensor]:
    """The accuracy, in percent, and the loss on each test task; labels are wrong in the same places at every call."""
    found, generator = [], torch.Generator().manual_seed(0)
    for tasks in cli.datamodule.test_dataloader():
        with with_gradients(mislabelled(tasks, label_noise, generator)) as batch:
            outcome = joined(list(cli.model.task_map(cli.model.algorithm.evaluate, cli.model.problem(batch))))
        found.append((100 * outcome.metrics["query_accuracy"], outcome.losses))
    accuracies, losses = zip(*found, strict=True)
    return torch.cat(accuracies), torch.cat(losses)


def interval(values: Tensor) -> str:
    """The mean over tasks, and the half-width of its 95 % interval."""
    mean, ci95 = mean_and_ci95(values)
    return f"{mean:.3f} ± {ci95:.3f}"


def gates(module: MetaLSTMModule, tasks: Task) -> dict[str, Tensor]:
    """The input and the forget gate after each inner step: `(B, steps, coordinates)` each."""

    def run(problem):  # noqa: ANN001, ANN202
        algorithm, steps = module.algorithm, []
        algorithm.adapt(
            problem, algorithm.val_inner_steps, order=0, on_step=lambda i, params, buffers, state: steps.append(state)
        )
        return {name: torch.stack([state[name] for state in steps[1:]], 1) for name in ("input_gate", "forget_gate")}

    with with_gradients(tasks) as batch:
        return map_tensors(lambda *parts: torch.cat(parts).detach(), *module.task_map(run, module.problem(batch)))


def draw(module: MetaLSTMModule, found: dict[str, Tensor], path: Path) -> None:
    """Draw the gates of each weight tensor by inner step: the median of its coordinates, and their middle 80 %."""
    own = dict(module.network.named_parameters())
    sizes = [own[name].numel() for name in module.task_map.names]
    shown = [i for i, name in enumerate(module.task_map.names) if name.endswith("weight") and own[name].dim() > 1]
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    axes = figure.subplots(1, 2)
    titles = {"input_gate": "input gate (the rate)", "forget_gate": "forget gate (what is kept)"}
    for ax, (gate, title) in zip(axes, titles.items(), strict=True):
        pieces = found[gate].split(sizes, dim=2)
        for color, i in enumerate(shown):
            values = pieces[i].transpose(0, 1).flatten(1).double()
            low, middle, high = torch.quantile(
                values[:, :: max(1, values.shape[1] // 100_000)],
                torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64),
                dim=1,
            )
            steps = range(1, len(middle) + 1)
            ax.plot(steps, middle, marker="o", color=f"C{color}", label=module.task_map.names[i])
            ax.fill_between(steps, low, high, color=f"C{color}", alpha=0.15, linewidth=0)
        ax.set(title=title, xlabel="inner step", xticks=list(steps))
        ax.grid(alpha=0.3)
    axes[0].legend(fontsize=7)
    figure.savefig(path, dpi=150)


def compare(config: str, run: Path, figure: Path, arguments: list[str]) -> None:
    """Print the comparison, and write the figure."""
    parser = argparse.ArgumentParser(prog="meta_lstm_rule", allow_abbrev=False)
    parser.add_argument("--label_noise", type=float, default=0.0)
    own, arguments = parser.parse_known_args(arguments)
    quiet = ["--trainer.enable_progress_bar", "false", "--trainer.default_root_dir", str(run)]
    cli = main(["test", "--config", config, "--ckpt_path", "best", *quiet, *arguments])
    module = cli.model.eval()
    assert isinstance(module, MetaLSTMModule)
    assert isinstance(module.inner_optimizer, LSTMOptimizer)
    draw(module, gates(module, next(iter(cli.datamodule.test_dataloader()))), figure)
    accuracy, loss = measured(cli, own.label_noise)
    print(f"learned rule: accuracy {interval(accuracy)} %, loss {interval(loss)}, on {len(loss)} tasks")
    for rate in RATES:
        module.algorithm.inner_optimizer = SGD(rate)
        plain_accuracy, plain_loss = measured(cli, own.label_noise)
        gains = f"{interval(accuracy - plain_accuracy)} %, {interval(loss - plain_loss)}"
        print(
            f"gradient descent at {rate}: accuracy {interval(plain_accuracy)} %, loss {interval(plain_loss)}; "
            f"learned rule minus this, task by task: {gains}"
        )


if __name__ == "__main__":
    compare(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4:])
