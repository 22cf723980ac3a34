"""A point robot on a plane that has to find its task's goal."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_meta.datamodules.arguments import check_number
from lightning_meta.randomness import uniforms
from lightning_meta.rl.data_module import RLDataModule
from lightning_meta.rl.environment import Box, PolicySpaces, Transition

SPACES = PolicySpaces((2,), Box((-0.1, -0.1), (0.1, 0.1)))


class NavigationEnvironments:
    """A point that starts at the origin of a plane and moves by its actions: see `NavigationDataModule`.

    Args:
        goals: Of each task, `(B, 2)`.
        episodes: Of each task, `E`.
        horizon: The most steps of an episode.
    """

    spaces = SPACES

    def __init__(self, goals: Tensor, episodes: int, horizon: int) -> None:
        self.goals = goals.unsqueeze(1)
        self.episodes, self.horizon = episodes, horizon
        self.positions = self.ended = goals.new_zeros(0)

    def reset(self, seeds: NDArray[np.uint64]) -> Tensor:
        """All points at the origin; nothing is random."""
        self.positions = self.goals.new_zeros(len(self.goals), self.episodes, 2)
        self.ended = self.positions.new_zeros(self.positions.shape[:2], dtype=torch.bool)
        return self.positions

    def step(self, actions: Tensor) -> Transition:
        """Move those that have not arrived; the reward is minus the distance to the goal afterwards."""
        moved = self.positions + actions.to(self.positions)
        self.positions = torch.where(self.ended.unsqueeze(-1), self.positions, moved)
        away = self.positions - self.goals
        self.ended = self.ended | (away.abs() < 0.01).all(-1)
        return Transition(self.positions, -away.norm(dim=-1), self.ended, None)

    def close(self) -> None:
        """Nothing to end."""


@dataclass(frozen=True)
class NavigationSuite:
    """Goals drawn uniformly from the square of side 1 around the origin.

    Attributes:
        split: `"train"`, `"val"` or `"test"`.
        horizon: The most steps of an episode.
        seed: Which streams of tasks.
    """

    split: str
    horizon: int = 100
    seed: int = 0
    spaces: PolicySpaces = SPACES

    def goals(self, numbers: Sequence[int]) -> Tensor:
        """Of the tasks of these numbers, `(B, 2)`, float64."""
        return torch.from_numpy(uniforms(self.seed, self.split, numbers, 2)) - 0.5

    def environments(self, numbers: Sequence[int], episodes: int) -> NavigationEnvironments:
        """Points for the tasks of these numbers."""
        return NavigationEnvironments(self.goals(numbers), episodes, self.horizon)

    def close(self) -> None:
        """Nothing to end."""


class NavigationDataModule(RLDataModule):
    """A point robot on a plane has to find its task's goal, which it does not see.

    It observes its position, starts at the origin, and moves by at most 0.1 in each direction and step. The reward is
    minus its distance to the goal, which lies anywhere within -0.5 to 0.5 in both directions. An episode ends within
    0.01 of the goal in both directions, or after `horizon` steps. All points move together, as tensors.

    Paper: Finn, Abbeel, Levine 2017, arXiv:1703.03400, section 5.3; the reward is that of the published code, whose
    text has the squared distance.

    Args:
        horizon: The most steps of an episode.
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

    Example:
        >>> data = NavigationDataModule(horizon=50)
        >>> data.setup()
        >>> environments = data.suites["train"].environments([0, 1, 2], episodes=4)
        >>> environments.reset(np.zeros((3, 4), np.uint64)).shape
        torch.Size([3, 4, 2])
    """

    def __init__(
        self,
        horizon: int = 100,
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
            episodes=episodes,
            query_episodes=query_episodes,
            val_episodes=val_episodes,
            test_episodes=test_episodes,
            val_query_episodes=val_query_episodes,
            test_query_episodes=test_query_episodes,
            meta_batch_size=meta_batch_size,
            steps_per_epoch=steps_per_epoch,
            val_tasks=val_tasks,
            test_tasks=test_tasks,
            eval_batch_size=eval_batch_size,
            seed=seed,
        )
        check_number("horizon", horizon)
        self.horizon = horizon

    def configure_suite(self, split: str) -> NavigationSuite:
        """The goals of a split."""
        return NavigationSuite(split, self.horizon, self.seed)
