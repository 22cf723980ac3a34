"""What comes on top of the meta-gradient in `lightning-meta fit`, and how long a second start takes.

`steps`: one training on Omniglot with data, logging and checkpoints, in turns with bare outer steps of a copy of its
module on tensors in memory. `learn2learn`: a training on Omniglot in turns with that library's loop and data. `start`:
the time from the command to its first outer step, beside that of importing Lightning and torchvision. `processes`: two
processes of one thread against one of two threads, for the cases of `scripts/benchmark`.
"""

import argparse
import copy
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from peers import learn2learn_training
from step_cases import CASES, Case

from lightning_meta import EpisodicDataModule, MAMLModule, OmniglotDataModule, Task
from lightning_meta.cli.main import main as lightning_meta
from lightning_meta.task import map_tensors

CONFIG = "configs/maml/omniglot_5way_1shot.yaml"
CASE = ["--config", CONFIG, "--data.n_way", "5", "--data.meta_batch_size", "16"]
CASE += ["--model.network.init_args.downsample", "stride"]


class Turns(pl.Callback):
    """Times blocks of a training's outer steps, and after each block asks what another step takes, in seconds."""

    def __init__(self, first: int, block: int, other: Callable[[MAMLModule, list[Task]], float]) -> None:
        self.first, self.block, self.other = first, block, other
        self.in_fit: list[float] = []
        self.others: list[float] = []
        self._batches: list[Task] = []
        self._start: float | None = None

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Task, batch_idx: int) -> None:
        """Between two blocks, make the other steps."""
        step = trainer.global_step
        if len(self._batches) < self.block:
            self._batches.append(map_tensors(torch.clone, batch))
        if step < self.first or (step - self.first) % self.block:
            return
        if self._start is not None:
            self.in_fit.append((time.perf_counter() - self._start) / self.block)
            self.others.append(self.other(pl_module, self._batches))
        self._start = time.perf_counter()

    def ratio(self) -> float:
        """How many times as long the other step takes; the median of the turns."""
        return statistics.median(other / fit for fit, other in zip(self.in_fit, self.others, strict=True))

    def milliseconds(self) -> tuple[float, float]:
        """The medians of a training's step and of the other one."""
        return 1e3 * statistics.median(self.in_fit), 1e3 * statistics.median(self.others)


def bare_steps(pl_module: MAMLModule, batches: list[Task]) -> float:
    """The seconds of an outer step of a copy of the module on tensors in memory."""
    network, inner_optimizer = copy.deepcopy((pl_module.network, pl_module.inner_optimizer))
    module = MAMLModule(network, inner_steps=pl_module.algorithm.inner_steps, inner_optimizer=inner_optimizer)
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-3)
    start = time.perf_counter()
    for batch in batches:
        optimizer.zero_grad()
        module.meta_loss(batch).backward()
        optimizer.step()
    return (time.perf_counter() - start) / len(batches)


class FirstStep(pl.Callback):
    """Leaves the training after its first outer step, and says when that was done."""

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        """Stop."""
        print(f"first step at {time.time()}", flush=True)
        os._exit(0)


def measure_steps(arguments: argparse.Namespace) -> None:
    """Print how fast a training is, beside bare outer steps."""
    turns = Turns(20, 30, bare_steps)
    with tempfile.TemporaryDirectory() as folder:
        from lightning_meta.cli.main import MetaCLI

        original = MetaCLI.instantiate_trainer

        def with_turns(self: Any, **kwargs: Any) -> Any:
            trainer = original(self, **kwargs)
            trainer.callbacks.append(turns)
            return trainer

        MetaCLI.instantiate_trainer = with_turns  # type: ignore[method-assign]
        lightning_meta(
            ["fit", *CASE, "--data.root", str(arguments.root), "--trainer.default_root_dir", folder,
             "--trainer.max_steps", str(arguments.steps + 21), "--checkpoint.every_n_steps", "100",
             "--trainer.enable_progress_bar", "false", "--data.n_query", str(arguments.n_query),
             "--data.meta_batch_size", "32"]
        )  # fmt: skip
    fit, bare = turns.milliseconds()
    print(
        f"{len(turns.in_fit)} blocks of {turns.block} outer steps: {fit:.1f} ms in fit, {bare:.1f} ms bare; "
        f"fit has {turns.ratio():.3f} of the speed"
    )


def measure_learn2learn(arguments: argparse.Namespace) -> None:
    """Print how long a step of a training takes, beside one of learn2learn's, each with its own data and optimizer."""
    case = CASES[arguments.case]
    their_step = learn2learn_training(case, arguments.root)
    their_step()

    def theirs(pl_module: MAMLModule, batches: list[Task]) -> float:
        count = len(batches) // 4
        start = time.perf_counter()
        for _ in range(count):
            their_step()
        return (time.perf_counter() - start) / count

    turns = Turns(20, 20, theirs)
    torch.manual_seed(0)
    module = MAMLModule(case.network(), case.inner_lr, case.inner_steps, compile=arguments.compile)
    data = OmniglotDataModule(
        arguments.root, n_way=case.n_way, k_shot=1, n_query=case.n_query, meta_batch_size=case.tasks
    )
    with tempfile.TemporaryDirectory() as folder:
        trainer = pl.Trainer(
            accelerator="cpu", max_steps=21 + 20 * arguments.turns, default_root_dir=folder, limit_val_batches=0,
            callbacks=[turns],
        )  # fmt: skip
        trainer.fit(module, data)
    ours, others = turns.milliseconds()
    print(
        f"{len(turns.in_fit)} turns of {arguments.case}: a training step takes {ours:.1f} ms, with learn2learn "
        f"{others:.1f} ms, {turns.ratio():.2f} times as long"
    )


def measure_start(arguments: argparse.Namespace) -> None:
    """Print how long it takes from the command to the first outer step."""
    totals, imports = [], []
    for _ in range(arguments.turns):
        with tempfile.TemporaryDirectory() as folder:
            start = time.time()
            command = [
                sys.executable, "-m", "lightning_meta", "fit", *CASE, "--data.root", str(arguments.root),
                "--trainer.default_root_dir", folder, "--trainer.callbacks+", "fit.FirstStep",
            ]  # fmt: skip
            environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent)}
            done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
            line = next(line for line in done.stdout.splitlines() if "first step at" in line)
            totals.append(float(line.split("first step at ")[1]) - start)
        start = time.time()
        code = "import lightning.pytorch, lightning.pytorch.cli, torchvision"
        subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
        imports.append(time.time() - start)
    total, libraries = statistics.median(totals), statistics.median(imports)
    print(
        f"from the command to the end of the first outer step {total:.1f} s, of which {libraries:.1f} s are a process "
        f"that imports Lightning and torchvision: {total - libraries:.1f} s are left"
    )


class _Repeated:
    def __init__(self, batch: Task) -> None:
        self.batch = batch

    def tasks(self, numbers: Any) -> Task:
        """The same tasks in every outer step."""
        count = len(self.batch.support.targets)
        places = torch.tensor([number % count for number in numbers])
        return map_tensors(lambda t: t[places], self.batch)


class _CaseDataModule(EpisodicDataModule):
    def __init__(self, case: Case, **kwargs: Any) -> None:
        super().__init__(meta_batch_size=case.tasks + case.tasks % 2, **kwargs)
        self.batch = case.make_tasks(torch.float32, "cpu")

    def configure_tasks(self, split: str) -> _Repeated:
        """The case's tasks."""
        return _Repeated(self.batch)


class _Timer(pl.Callback):
    def __init__(self) -> None:
        self.times: list[float] = []

    def on_train_batch_start(self, *_: Any) -> None:
        """Start."""
        self._start = time.perf_counter()

    def on_train_batch_end(self, *_: Any) -> None:
        """Stop."""
        self.times.append(time.perf_counter() - self._start)


def train_case(name: str, steps: int, devices: int) -> None:
    """Print the milliseconds of an outer step of a case; run by `measure_processes` with a number of threads."""
    torch.set_num_threads(2 // devices)
    case, timer = CASES[name], _Timer()
    torch.manual_seed(0)
    network = case.network()
    n_way = {} if case.regression else {"n_way": case.n_way}
    trainer = pl.Trainer(
        accelerator="cpu", devices=devices, strategy="ddp" if devices > 1 else "auto", max_steps=steps, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, limit_val_batches=0,
        callbacks=[timer],
    )  # fmt: skip
    module = MAMLModule(network, case.inner_lr, case.inner_steps, loss=case.loss)
    trainer.fit(module, _CaseDataModule(case, **n_way))
    if trainer.is_global_zero:
        print(json.dumps({"ms": 1e3 * statistics.median(timer.times[2:])}), flush=True)


def measure_processes(arguments: argparse.Namespace) -> None:
    """Print two processes of one thread beside one process of two threads."""
    print("| case | one process, 2 threads | two processes, 1 thread | speedup |\n|---|---|---|---|")
    for name in CASES:
        if arguments.cases.lower() not in name.lower():
            continue
        times: dict[int, list[float]] = {1: [], 2: []}
        steps = 60 if CASES[name].regression else 10
        for _ in range(arguments.turns):
            for devices, found in times.items():
                command = [
                    sys.executable,
                    __file__,
                    "case",
                    "--name",
                    name,
                    "--steps",
                    str(steps),
                    "--devices",
                    str(devices),
                ]
                environment = os.environ | {"OMP_NUM_THREADS": str(2 // devices)}
                done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
                found.append(
                    json.loads(next(line for line in done.stdout.splitlines() if line.startswith('{"ms"')))["ms"]
                )
        one, two = (statistics.median(found) for found in times.values())
        print(f"| {name} | {one:.3g} | {two:.3g} | {one / two:.2f} |", flush=True)


def main() -> None:
    """Measure what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("steps", "start"):
        command = commands.add_parser(name)
        command.add_argument("--root", type=Path, required=True, help="the folder that holds omniglot-py")
        command.add_argument("--steps", type=int, default=300)
        command.add_argument("--n-query", type=int, default=1)
        command.add_argument("--turns", type=int, default=3)
    command = commands.add_parser("learn2learn")
    command.add_argument("--root", type=Path, required=True, help="the folder that holds omniglot-py")
    command.add_argument("--case", choices=[name for name in CASES if "1 query" in name], default=next(iter(CASES)))
    command.add_argument("--compile", action="store_true", help="this package's steps with compile=True")
    command.add_argument("--turns", type=int, default=12)
    command = commands.add_parser("processes")
    command.add_argument("--cases", default="")
    command.add_argument("--turns", type=int, default=3)
    command = commands.add_parser("case")
    command.add_argument("--name", choices=list(CASES), required=True)
    command.add_argument("--steps", type=int, required=True)
    command.add_argument("--devices", type=int, required=True)
    arguments = parser.parse_args()
    if arguments.command == "steps":
        measure_steps(arguments)
    elif arguments.command == "learn2learn":
        measure_learn2learn(arguments)
    elif arguments.command == "start":
        measure_start(arguments)
    elif arguments.command == "processes":
        measure_processes(arguments)
    else:
        train_case(arguments.name, arguments.steps, arguments.devices)


if __name__ == "__main__":
    main()
