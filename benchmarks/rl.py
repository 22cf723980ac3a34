"""Time acting and learning in 2-D navigation, and compare with one task after another.

Run `python benchmarks/rl.py`. Times are CPU seconds of one process with one thread, the best of several in turn, so
that other work on the machine matters little. `--meta-world` adds `benchmarks/meta_world.py`, which needs the extra
`rl`.
"""

import argparse
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from lightning_meta.algorithms import Actor
from lightning_meta.rl import GaussianPolicy, MAMLRLModule, NavigationDataModule, PolicyGradient
from lightning_meta.rl.rollout import chance, rollout
from lightning_meta.task import Task

PPO_STEPS = 5


def made(data: NavigationDataModule, **options: Any) -> tuple[MAMLRLModule, torch.optim.Optimizer]:
    """A module that acts without a Trainer, and its outer optimizer."""
    torch.manual_seed(0)
    module = MAMLRLModule(GaussianPolicy(2, 2), inner_lr=0.1, **options)
    module.sampler.data = data
    return module, torch.optim.Adam(module.parameters(), lr=1e-3)


def collected(module: MAMLRLModule, numbers: range) -> Task:
    """What acting in tasks leaves: before the inner step, and after it."""
    assert module.sampler.data is not None
    tasks = module.sampler.data.tasks["train"].tasks(numbers)
    act = Actor(module.algorithm, module.task_map, lambda: module.problem(tasks), training=True)
    found: Task = module.collect(tasks, act)
    return found


def outer_step(module: MAMLRLModule, optimizer: torch.optim.Optimizer, numbers: range, steps: int) -> None:
    """Act, and make outer steps on what was stored."""
    batch = collected(module, numbers)
    for _ in range(steps):
        optimizer.zero_grad()
        module.meta_loss(batch).backward()
        optimizer.step()


def in_turn(module: MAMLRLModule, optimizer: torch.optim.Optimizer, numbers: range) -> None:
    """The same A2C outer step with the same samples, one task after another, as learn2learn's examples do it."""
    optimizer.zero_grad()
    for number in numbers:
        batch = collected(module, range(number, number + 1))
        (module.meta_loss(batch) / len(numbers)).backward()
    optimizer.step()


def best(functions: dict[str, Callable[[], None]], repeats: int) -> dict[str, float]:
    """The shortest CPU time of each, in turn, after one that does not count."""
    found = dict.fromkeys(functions, float("inf"))
    for repeat in range(repeats + 1):
        for name, function in functions.items():
            start = time.process_time()
            function()
            if repeat:
                found[name] = min(found[name], time.process_time() - start)
    return found


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", type=int, default=20)
    parser.add_argument("--episodes", type=int, default=20)
    parser.add_argument("--horizon", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--meta-world", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    data = NavigationDataModule(options.horizon, options.episodes, meta_batch_size=options.tasks)
    data.setup()
    numbers = range(options.tasks)
    module, optimizer = made(data)
    clipped, clipped_optimizer = made(data, loss=PolicyGradient(clip=0.2))
    together = collected(module, numbers)
    apart = torch.cat([collected(module, range(i, i + 1)).query.inputs for i in numbers])
    difference = (together.query.inputs - apart).abs().max().item()
    suite = data.suites["train"]
    act = Actor(module.algorithm, module.task_map, lambda: module.problem(together), training=True)
    random = chance(0, "train", numbers, 0, options.episodes, suite.spaces, options.horizon)

    def one_rollout() -> None:
        rollout(suite.environments(numbers, options.episodes), act, random, torch.zeros(1), numbers)

    times = best(
        {
            "rollout": one_rollout,
            "A2C outer step": lambda: outer_step(module, optimizer, numbers, 1),
            f"PPO outer step ({PPO_STEPS} on each batch)": lambda: outer_step(
                clipped, clipped_optimizer, numbers, PPO_STEPS
            ),
            "A2C, one task after another": lambda: in_turn(module, optimizer, numbers),
        },
        options.repeats,
    )
    steps = options.tasks * options.episodes * options.horizon
    print(f"{options.tasks} tasks, {options.episodes} episodes, {options.horizon} steps; CPU seconds")
    for name, seconds in times.items():
        print(f"{name:36} {seconds:8.3f}")
    print(f"{steps / times['rollout']:,.0f} environment steps a CPU second in a rollout")
    ratio = times["A2C, one task after another"] / times["A2C outer step"]
    print(f"one task after another takes {ratio:.1f} times as long; its samples differ by at most {difference:.1e}")
    if options.meta_world:
        subprocess.run([sys.executable, str(Path(__file__).with_name("meta_world.py"))], check=True)


if __name__ == "__main__":
    main()
