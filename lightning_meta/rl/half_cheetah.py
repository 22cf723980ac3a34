"""The half-cheetah of MuJoCo, whose task is a direction or a speed."""

from functools import cache
from typing import Any, Literal

import numpy as np

from lightning_meta.errors import ConfigurationError
from lightning_meta.rl.gymnasium_tasks import GymnasiumDataModule
from lightning_meta.rl.imports import required

DIRECTIONS = [{"forward_reward_weight": 1.0}, {"forward_reward_weight": -1.0}]


def draw_speed(generator: np.random.Generator) -> float:
    """A speed to run at, from 0 to 2 m/s."""
    return float(generator.uniform(0.0, 2.0))


def speed_environment(**options: Any) -> Any:
    """A half-cheetah that is paid for running at a speed, set by its method `set_speed`, in m/s.

    The reward is minus the distance of its speed to that one, minus the cost of its actions.

    Raises:
        ConfigurationError: Gymnasium is not installed.
    """
    gymnasium = required("gymnasium")
    return _wrapper()(gymnasium.make("HalfCheetah-v5", disable_env_checker=True, **options))


@cache
def _wrapper() -> Any:
    class Speed(required("gymnasium").Wrapper):  # type: ignore[misc]
        speed = 0.0

        def set_speed(self, speed: float) -> None:
            self.speed = speed

        def step(self, action: Any) -> Any:
            observation, _, terminated, truncated, info = self.env.step(action)
            reward = info["reward_ctrl"] - abs(info["x_velocity"] - self.speed)
            return observation, reward, terminated, truncated, info

    return Speed


class HalfCheetahDataModule(GymnasiumDataModule):
    """Run forward or backward, two tasks that are those of evaluation, too; or at a speed from 0 to 2 m/s.

    Paper: Finn, Abbeel, Levine 2017, arXiv:1703.03400, section 5.3, whose cost of actions is 0.05 Σ a².

    Args:
        goal: `"direction"` or `"speed"`.
        horizon: The most steps of an episode.
        control_cost: The reward lost by actions is this times Σ a².
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
        num_workers: Worker processes that step environments, for each device; best as many as there are cores.

    Raises:
        ArgumentTypeError: At construction, a value is of another kind.
        ConfigurationError: At construction, a number is out of its range. In `setup`, the devices do not divide the
            meta-batch, or Gymnasium is not installed.
        DataError: In `setup`, MuJoCo is not installed.
    """

    def __init__(
        self,
        goal: Literal["direction", "speed"] = "direction",
        horizon: int = 200,
        control_cost: float = 0.05,
        episodes: int = 20,
        query_episodes: int | None = None,
        val_episodes: int | None = None,
        test_episodes: int | None = None,
        val_query_episodes: int | None = None,
        test_query_episodes: int | None = None,
        meta_batch_size: int = 40,
        steps_per_epoch: int = 100,
        val_tasks: int = 40,
        test_tasks: int = 100,
        eval_batch_size: int = 20,
        seed: int = 0,
        num_workers: int = 0,
    ) -> None:
        if goal not in ("direction", "speed"):
            raise ConfigurationError(f"goal must be direction or speed, got {goal!r}.")
        directed = goal == "direction"
        super().__init__(
            "HalfCheetah-v5" if directed else speed_environment,
            tasks=DIRECTIONS if directed else draw_speed,
            horizon=horizon,
            set_task=None if directed else "set_speed",
            options={"ctrl_cost_weight": control_cost},
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
            num_workers=num_workers,
        )
