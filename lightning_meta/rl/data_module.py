"""The base of the data modules of reinforcement learning."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from lightning_meta.datamodules import TaskDataModule
from lightning_meta.datamodules.arguments import check_number
from lightning_meta.errors import ConfigurationError
from lightning_meta.rl.environment import PolicySpaces, TaskSuite
from lightning_meta.task import Examples, Task, TaskDistribution

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class NumberedTasks:
    """Batches that say of which split and which numbers their tasks are: what happens in them is found by acting.

    Attributes:
        split: `"train"`, `"val"` or `"test"`.
    """

    split: str

    def tasks(self, numbers: Sequence[int]) -> Task:
        """Inputs and targets `(B, 1)`: the split's place in `SPLITS`, and the task's number."""
        number = torch.tensor(list(numbers), dtype=torch.long).unsqueeze(1)
        examples = Examples(torch.full_like(number, SPLITS.index(self.split)), number)
        return Task(examples, examples)


class RLDataModule(TaskDataModule):
    """Feeds a module of reinforcement learning with tasks to act in: override `configure_suite`.

    A subclass gives the tasks of a split as a `TaskSuite`: see `lightning_meta.rl.environment`. A batch holds the
    numbers of its tasks alone; the module acts in their environments, before each inner step and after the last one.

    Suites are closed when the Trainer is done. The worker processes of environments are no worker processes of a
    loader: a subclass that has some takes `num_workers` for itself, and does not hand it on to this class.

    Args:
        episodes: Episodes of a task before each inner step.
        query_episodes: Episodes of a task with the adapted policy; `episodes` if `None`.
        val_episodes: The first of these in validation; `episodes` if `None`, and so on below.
        test_episodes: The first of these in test.
        val_query_episodes: The second of these in validation; `query_episodes` if `None`.
        test_query_episodes: The second of these in test.
        meta_batch_size: Tasks in an outer step, over all devices together.
        steps_per_epoch: Batches of tasks in an epoch.
        val_tasks: Number of validation tasks.
        test_tasks: Number of test tasks.
        eval_batch_size: Tasks in a batch of evaluation, on each device.
        seed: Which streams of tasks.

    Raises:
        ArgumentTypeError: At construction, a value is of another kind.
        ConfigurationError: At construction, a number is out of its range. In `setup`, the devices do not divide the
            meta-batch.
    """

    monitor = "val/query_return"
    """By what the best checkpoint is chosen; `"val/query_success"` where environments know of success."""
    _remedy = 'configure_suite("{split}") returned None'

    def __init__(
        self,
        episodes: int = 20,
        query_episodes: int | None = None,
        val_episodes: int | None = None,
        test_episodes: int | None = None,
        val_query_episodes: int | None = None,
        test_query_episodes: int | None = None,
        meta_batch_size: int = 20,
        steps_per_epoch: int = 100,
        val_tasks: int = 40,
        test_tasks: int = 100,
        eval_batch_size: int = 20,
        seed: int = 0,
    ) -> None:
        super().__init__(
            meta_batch_size=meta_batch_size,
            steps_per_epoch=steps_per_epoch,
            val_tasks=val_tasks,
            test_tasks=test_tasks,
            eval_batch_size=eval_batch_size,
            seed=seed,
        )
        query = episodes if query_episodes is None else query_episodes
        self.episodes = {
            "train": (episodes, query),
            "val": (_or(val_episodes, episodes), _or(val_query_episodes, query)),
            "test": (_or(test_episodes, episodes), _or(test_query_episodes, query)),
        }
        """Of each split, the episodes of a task before each inner step and with the adapted policy."""
        for split, numbers in self.episodes.items():
            for name, number in zip(("episodes", "query_episodes"), numbers, strict=True):
                check_number(name if split == "train" else f"{split}_{name}", number)
        self.suites: dict[str, TaskSuite] = {}
        """The tasks to act in of each split, once `setup` has run."""

    @abstractmethod
    def configure_suite(self, split: str) -> TaskSuite | None:
        """The tasks of `"train"`, `"val"` or `"test"`; `None` if there are none. Called by `setup`."""

    def configure_tasks(self, split: str) -> TaskDistribution | None:
        """The numbers of the tasks of a split."""
        suite = self.configure_suite(split)
        if suite is None:
            return None
        self.suites[split] = suite
        return NumberedTasks(split)

    @property
    def spaces(self) -> PolicySpaces:
        """What a policy sees and does, the same in all splits.

        Raises:
            ConfigurationError: `setup` has not run, or splits differ.
        """
        found = {suite.spaces for suite in self.suites.values()}
        if len(found) != 1:
            raise ConfigurationError(
                "There are no tasks yet: call setup()."
                if not found
                else f"The splits' observations and actions differ: {found}. One policy has to act in all of them."
            )
        return found.pop()

    @property
    def of_test_tasks(self) -> dict[str, int | None]:
        """The options that say what a test is of, as they are meant: whatever training has, they tell tests apart."""
        others = [f"{split}_{name}" for split in ("val", "test") for name in ("episodes", "query_episodes")]
        first, second = self.episodes["test"]
        return {"episodes": first, "query_episodes": second} | dict.fromkeys(others)

    def teardown(self, stage: str) -> None:
        """End what the suites keep."""
        for suite in self.suites.values():
            suite.close()


def _or(value: int | None, default: int) -> int:
    return default if value is None else value
