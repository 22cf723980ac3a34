"""Tasks in environments of Gymnasium."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from lightning_meta.datamodules.arguments import check_number
from lightning_meta.errors import ArgumentTypeError, ConfigurationError
from lightning_meta.rl.data_module import SPLITS, RLDataModule
from lightning_meta.rl.environment import TaskSuite
from lightning_meta.rl.gymnasium_source import GymnasiumSource
from lightning_meta.rl.imports import imported
from lightning_meta.rl.stepped import Stage, TaskList

Tasks: TypeAlias = Sequence[Any] | Callable[[np.random.Generator], Any]
"""A list of tasks, or a function that draws one."""


class GymnasiumDataModule(RLDataModule):
    """Tasks in an environment with the interface of `gymnasium.Env`: Gymnasium's own, or a class of yours.

    Tasks are keyword arguments of the environment, or whatever `set_task` is called with: then environments are made
    once, and change their task. Lists are run through; a function draws tasks without end. Episodes are of the seeds
    that `reset` is given, so an environment should take what is random in it from `self.np_random`. An episode ends
    where the environment says so (`terminated` or `truncated`), and is a success if `info["success"]` was true.

    Observations are float32: images of bytes as numbers from 0 to 1, whatever is no array as `gymnasium.spaces.flatten`
    makes it. Actions of a policy from -1 to 1 stand for the range of a `Box`.

    Args:
        environment: An identifier such as `"HalfCheetah-v5"`, or a class or function that makes an environment; in YAML
            by its full path.
        tasks: A list of tasks, or a function that draws one from a `numpy.random.Generator`; for all splits, or a
            dictionary of `"train"`, `"val"` and `"test"`.
        horizon: The most steps of an episode.
        set_task: Called as `set_task(environment, task)`, such as a method of the environment's class, or the name of
            that; `None` if tasks are keyword arguments.
        options: Further keyword arguments of every environment.
        episodes: Episodes of a task before each inner step.
        query_episodes: Episodes of a task with the adapted policy; `episodes` if `None`.
        val_episodes: The first of these in validation; `episodes` if `None`, and so on below.
        test_episodes: The first of these in test.
        val_query_episodes: The second of these in validation; `query_episodes` if `None`.
        test_query_episodes: The second of these in test.
        meta_batch_size: Tasks in an outer step, over all devices together.
        steps_per_epoch: Batches of tasks in an epoch.
        val_tasks: Number of validation tasks; those that are listed if `None`, 40 where they are drawn.
        test_tasks: Number of test tasks; those that are listed if `None`, 100 where they are drawn.
        eval_batch_size: Tasks in a batch of evaluation, on each device.
        seed: Which streams of tasks.
        num_workers: Worker processes that step environments, for each device; best as many as there are cores, and 0,
            this process, for what is faster than a message (some 20 µs a step of an environment). They can only be
            started by a script below `if __name__ == "__main__":`.

    Raises:
        ArgumentTypeError: At construction, a value is of another kind.
        ConfigurationError: At construction, a number is out of its range, or there are no tasks. In `setup`, devices do
            not divide the meta-batch, a library is missing, or no policy can see the observations or do the actions.
        DataError: In `setup`, an environment cannot be made. In training, one raises, returns what is not finite, or
            changes its spaces: the message names task and episode.

    Example:
        >>> data = GymnasiumDataModule("Pendulum-v1", tasks=[{"g": g} for g in (2.0, 5.0, 10.0)], horizon=50)
        >>> data.test_tasks
        3
    """

    def __init__(
        self,
        environment: Any,
        tasks: Any,
        horizon: int = 200,
        set_task: Any = None,
        options: dict[str, Any] | None = None,
        episodes: int = 20,
        query_episodes: int | None = None,
        val_episodes: int | None = None,
        test_episodes: int | None = None,
        val_query_episodes: int | None = None,
        test_query_episodes: int | None = None,
        meta_batch_size: int = 20,
        steps_per_epoch: int = 100,
        val_tasks: int | None = None,
        test_tasks: int | None = None,
        eval_batch_size: int = 20,
        seed: int = 0,
        num_workers: int = 0,
    ) -> None:
        self.task_lists = _by_split(tasks)
        super().__init__(
            episodes=episodes,
            query_episodes=query_episodes,
            val_episodes=val_episodes,
            test_episodes=test_episodes,
            val_query_episodes=val_query_episodes,
            test_query_episodes=test_query_episodes,
            meta_batch_size=meta_batch_size,
            steps_per_epoch=steps_per_epoch,
            val_tasks=_count(self.task_lists.get("val"), 40) if val_tasks is None else val_tasks,
            test_tasks=_count(self.task_lists.get("test"), 100) if test_tasks is None else test_tasks,
            eval_batch_size=eval_batch_size,
            seed=seed,
        )
        check_number("horizon", horizon)
        check_number("num_workers", num_workers, 0, 1024)
        if not (callable(environment) or isinstance(environment, str)):
            raise ArgumentTypeError(
                f"environment must be an identifier, or a class or function that makes an environment, got "
                f"{environment!r}. An environment itself cannot be shared by many tasks: give its class."
            )
        if not (set_task is None or callable(set_task) or isinstance(set_task, str)):
            raise ArgumentTypeError(f"set_task must be a function or the name of a method, got {set_task!r}.")
        self.environment, self.set_task, self.options = environment, set_task, options or {}
        self.horizon, self.environment_workers = horizon, num_workers
        self._stage: Stage | None = None

    def configure_suite(self, split: str) -> TaskSuite | None:
        """The tasks of a split, with the environments of all splits."""
        tasks = self.task_lists.get(split)
        if tasks is None:
            return None
        if self._stage is None:
            draw = np.random.default_rng(0)
            first = tasks(draw) if callable(tasks) else tasks[0]
            self._source = GymnasiumSource(imported(self.environment), imported(self.set_task), self.options, first)
            self._stage = Stage(self._source.name, self._source, self._source.spaces, self.environment_workers)
        return TaskList(self._stage, split, tasks if callable(tasks) else [tasks], self.horizon, self.seed)

    def environment_of(self, number: int, split: str = "test", render_mode: str | None = None) -> Any:
        """An environment of Gymnasium with the task of this number, to adapt to, or to record: see `record_video`.

        Args:
            number: Of the task.
            split: `"train"`, `"val"` or `"test"`.
            render_mode: `"rgb_array"` to record it.
        """
        suite = self.suites[split]
        return self._source.shown(suite.task(number), self.horizon, render_mode)  # type: ignore[attr-defined]


def _by_split(tasks: Any) -> dict[str, Tasks]:
    splits = dict(tasks) if isinstance(tasks, Mapping) else dict.fromkeys(SPLITS, tasks)
    if not splits or not splits.keys() <= set(SPLITS):
        raise ConfigurationError(
            f"A dictionary of tasks has the keys {', '.join(SPLITS)} or some of them, got {sorted(splits)}. Tasks of "
            "keyword arguments are a list of dictionaries."
        )
    for split, part in splits.items():
        part = imported(part)
        if not callable(part) and (isinstance(part, str) or not isinstance(part, Sequence)):
            raise ArgumentTypeError(f"tasks must be a list, or a function that draws one, got {part!r}.")
        if not callable(part) and not part:
            raise ConfigurationError(f"There is no task for {split}.")
        splits[split] = part
    return splits


def _count(tasks: Tasks | None, default: int) -> int:
    return default if tasks is None or callable(tasks) else len(tasks)
