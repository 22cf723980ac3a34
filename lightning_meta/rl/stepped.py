"""Tasks whose environments have the interface of Gymnasium, in this process or in workers."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_meta.errors import ConfigurationError, DataError
from lightning_meta.randomness import uniforms
from lightning_meta.rl.environment import PolicySpaces, Transition
from lightning_meta.rl.places import PlaceError, Places, Source, Stepped
from lightning_meta.rl.workers import Workers

Answer = TypeVar("Answer")


class Stage:
    """Where the environments of all splits are: in this process, or in worker processes, from the first use on.

    Args:
        name: What the environments are called in errors.
        source: Has the environments.
        spaces: What a policy sees and does.
        num_workers: How many processes; with 0 environments are in this one.
    """

    def __init__(self, name: str, source: Source, spaces: PolicySpaces, num_workers: int) -> None:
        self.name, self.spaces = name, spaces
        self.places: Places | Workers = Workers(source, num_workers) if num_workers else Places(source)
        self.user: object = None
        """Who has the environments now: one batch of tasks acts at a time."""
        self.descriptions: list[str] = []

    def assign(self, user: object, tasks: Sequence[Any], descriptions: list[str]) -> None:
        """Give the environments to a user: one for each task, described in errors."""
        self.user, self.descriptions = user, descriptions
        self._explained(lambda: self.places.assign(tasks))

    def reset(self, seeds: NDArray[np.uint64]) -> NDArray[np.float32]:
        """Begin an episode in each place."""
        return self._explained(lambda: self.places.reset(seeds))

    def step(self, actions: NDArray[Any]) -> Stepped:
        """Act in each place."""
        return self._explained(lambda: self.places.step(actions))

    def close(self) -> None:
        """End environments and processes; the next use starts them again."""
        self.user = None
        self.places.close()

    def _explained(self, call: Callable[[], Answer]) -> Answer:
        try:
            return call()
        except PlaceError as error:
            failure = error.failure
            self.close()
            raise DataError(f"{self.descriptions[failure.place]} of {self.name}: {failure.message}") from RuntimeError(
                f"In the environment:\n{failure.trace}"
            )


class SteppedEnvironments:
    """`TaskEnvironments` of a `Stage`.

    Args:
        stage: Where they are.
        horizon: The most steps of an episode.
        tasks: `B` tasks, as the environments' source takes them.
        names: What each of them is called.
        episodes: How many episodes `E` of each.

    Raises:
        DataError: An environment raises, returns something that is not finite, or other observations than promised.
    """

    def __init__(self, stage: Stage, horizon: int, tasks: Sequence[Any], names: Sequence[str], episodes: int) -> None:
        self.spaces, self.horizon = stage.spaces, horizon
        self._stage, self._shape = stage, (len(tasks), episodes)
        places = [task for task in tasks for _ in range(episodes)]
        descriptions = [f"{name}, episode {episode}," for name in names for episode in range(episodes)]
        stage.assign(self, places, descriptions)

    def reset(self, seeds: NDArray[np.uint64]) -> Tensor:
        """Begin all episodes anew, from seeds `(B, E)`; returns observations `(B, E, *observation)`."""
        self._check_user()
        if seeds.shape != self._shape:
            raise ConfigurationError(f"There must be a seed for each episode, {self._shape}, got {seeds.shape}.")
        return self._tensor(self._stage.reset(seeds.reshape(-1)))

    def step(self, actions: Tensor) -> Transition:
        """Let all episodes act that have not ended: actions `(B, E, size)`, or `(B, E)` choices."""
        self._check_user()
        stepped = self._stage.step(actions.detach().cpu().flatten(0, 1).numpy())
        success = None if stepped.success is None else self._tensor(stepped.success)
        observations, rewards, ended = map(self._tensor, stepped[:3])
        return Transition(observations, rewards, ended, success)

    def close(self) -> None:
        """Let others have the environments."""
        if self._stage.user is self:
            self._stage.user = None

    def _check_user(self) -> None:
        if self._stage.user is not self:
            raise ConfigurationError("These environments are closed, or were given to another batch of tasks since.")

    def _tensor(self, array: NDArray[Any]) -> Tensor:
        return torch.from_numpy(array.reshape(*self._shape, *array.shape[1:]))


class TaskList:
    """A `TaskSuite` of tasks that are listed, or drawn from a seed.

    In training, numbers run through all groups in a random order again and again, and within a group through its tasks:
    every batch has all groups as equally as can be. In evaluation they run through the first task of each group, then
    the second, and so on, so that as many numbers as there are tasks have each of them once.

    Args:
        stage: Where the environments are.
        split: `"train"`, `"val"` or `"test"`.
        groups: Groups of tasks, such as the goals of each kind of environment; or a function that draws one from random
            numbers.
        horizon: The most steps of an episode.
        seed: Which order, and which tasks are drawn.
    """

    def __init__(
        self,
        stage: Stage,
        split: str,
        groups: Sequence[Sequence[Any]] | Callable[[np.random.Generator], Any],
        horizon: int,
        seed: int,
    ) -> None:
        self.stage, self.split, self.groups = stage, split, groups
        self.horizon, self.seed = horizon, seed

    @property
    def spaces(self) -> PolicySpaces:
        """What a policy sees and does."""
        return self.stage.spaces

    def task(self, number: int) -> Any:
        """The task of a number: a function of seed, split and number alone."""
        if callable(self.groups):
            random = uniforms(self.seed, self.split, [number], 1)
            return self.groups(np.random.Generator(np.random.Philox(int(random[0, 0] * 2**53))))
        count = len(self.groups)
        turn, place = divmod(number, count)
        group = self.groups[self._order(0, turn, count)[place]]
        turn, place = divmod(turn, len(group))
        return group[self._order(1, turn, len(group))[place]]

    def environments(self, numbers: Sequence[int], episodes: int) -> SteppedEnvironments:
        """The environments of the tasks of these numbers, with `episodes` of each."""
        tasks = [self.task(number) for number in numbers]
        described = [_shortened(task) for task in tasks]
        names = [f"Task {number} of {self.split}, {task}" for number, task in zip(numbers, described, strict=True)]
        return SteppedEnvironments(self.stage, self.horizon, tasks, names, episodes)

    def close(self) -> None:
        """End environments and processes."""
        self.stage.close()

    def _order(self, level: int, turn: int, count: int) -> list[int]:
        """In which order one turn through `count` things takes them."""
        if self.split != "train" or count == 1:
            return list(range(count))
        return [int(i) for i in uniforms(self.seed, f"task_order_{level}", [turn], count)[0].argsort()]


def _shortened(task: Any) -> str:
    text = " ".join(str(task).split())
    return text if len(text) <= 60 else f"{text[:57]}..."
