"""Meta-World here and as it is: steps a second, resets, and that the numbers are equal.

Run `python benchmarks/meta_world.py`; it needs the extra `rl`. Times are CPU seconds of one process, the best of
several in turn, so that other work on the machine matters little; those with workers are seconds.
"""

import argparse
import time
from collections.abc import Callable, Mapping

import metaworld
import numpy as np
import torch

from lightning_meta.rl import MetaWorldDataModule


def best(functions: Mapping[str, Callable[[], object]], clock: Callable[[], float], repeats: int) -> dict[str, float]:
    """The shortest time of each function, called in turn."""
    found = dict.fromkeys(functions, float("inf"))
    for _ in range(repeats):
        for name, function in functions.items():
            start = clock()
            function()
            found[name] = min(found[name], clock() - start)
    return found


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--environment", default="reach-v3")
    parser.add_argument("--tasks", type=int, default=10)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(1)
    data = MetaWorldDataModule("ML1", options.environment, scaled=False)
    data.setup()
    suite = data.suites["train"]
    ours = suite.environments(range(options.tasks), 1)
    theirs = metaworld.make_ml_envs(options.environment, seed=data.goal_seed, meta_batch_size=options.tasks)
    actions = np.random.default_rng(0).uniform(-1, 1, (options.steps, options.tasks, 4)).astype(np.float32)
    seeds = np.zeros((options.tasks, 1), np.uint64)

    def steps_of_ours() -> None:
        for action in actions:
            ours.step(torch.from_numpy(action[:, None]))

    def steps_of_theirs() -> None:
        for action in actions:
            theirs.step(action)

    theirs.call("toggle_sample_tasks_on_reset", False)
    for environment, goal in zip(theirs.envs, map(suite.task, range(options.tasks)), strict=True):
        environment.unwrapped.set_task(goal.task)
        environment.reset()
    started, _ = theirs.reset()
    assert np.array_equal(ours.reset(seeds)[:, 0].numpy(), started.astype(np.float32))
    for action in actions:
        transition = ours.step(torch.from_numpy(action[:, None]))
        seen, rewards, *_ = theirs.step(action)
        assert np.array_equal(transition.observations[:, 0].numpy(), seen.astype(np.float32))
        assert np.array_equal(transition.rewards[:, 0].numpy(), rewards.astype(np.float32))
    print(f"{options.environment}: the same numbers in {options.steps} steps of {options.tasks} goals")
    begin: dict[str, Callable[[], object]] = {"ours": lambda: ours.reset(seeds), "theirs": theirs.reset}
    resets = best(begin, time.process_time, options.repeats)
    ours.reset(seeds)
    times = best({"ours": steps_of_ours, "theirs": steps_of_theirs}, time.process_time, min(options.repeats, 7))
    count = options.steps * options.tasks
    rates = {name: count / seconds for name, seconds in times.items()}
    print(f"steps a CPU second: {rates['ours']:,.0f}, Meta-World's {rates['theirs']:,.0f} "
          f"({rates['ours'] / rates['theirs']:.2f} x)")  # fmt: skip
    each = {name: 1e3 * seconds / options.tasks for name, seconds in resets.items()}
    print(f"a reset: {each['ours']:.3f} ms of CPU time, Meta-World's {each['theirs']:.2f} ms")
    theirs.close()
    if options.workers:
        workers(options)


def workers(options: argparse.Namespace) -> None:
    """How much sooner a batch of 20 tasks, 10 episodes each, is stepped by workers."""
    times = {}
    actions = torch.rand(options.steps, 20, 10, 4, generator=torch.Generator().manual_seed(0)) * 2 - 1
    for count in (0, options.workers):
        data = MetaWorldDataModule("ML1", options.environment, num_workers=count)
        data.setup()
        environments = data.suites["train"].environments(range(20), 10)

        def episode(environments=environments) -> None:  # noqa: ANN001
            environments.reset(np.zeros((20, 10), np.uint64))
            for action in actions:
                environments.step(action)

        times[count] = best({"": episode}, time.perf_counter, 3)[""]
        data.teardown("fit")
    rates = ", ".join(f"{actions[..., 0].numel() / t:,.0f} with {count}" for count, t in times.items())
    print(f"steps a second of 20 x 10 environments, by number of workers: {rates}")


if __name__ == "__main__":
    main()
