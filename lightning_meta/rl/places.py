"""Environments with the interface of Gymnasium, many of them stepped together in one process."""

import traceback
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from lightning_meta.errors import one_line


class Environment(Protocol):
    """What is asked of an environment: that of `gymnasium.Env`."""

    def reset(self, *, seed: int | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin an episode."""
        ...

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Act: observation, reward, whether the episode ended, whether it was cut off, and more."""
        ...


class Source(Protocol):
    """Has the environments of tasks, in the process that steps them; goes to worker processes as it is at first.

    Attributes:
        shape: The shape of an observation.
    """

    shape: tuple[int, ...]

    def acquire(self, task: Any) -> Environment:
        """An environment in which this is the task."""
        ...

    def release(self, environment: Environment) -> None:
        """An environment that is not needed for now."""
        ...

    def observation(self, raw: Any) -> NDArray[np.floating[Any]]:
        """What a policy sees of what an environment returned.

        Raises:
            ValueError: It is of another kind than what was promised.
        """
        ...

    def action(self, action: Any) -> Any:
        """An action as environments take it."""
        ...

    def close(self) -> None:
        """End the environments that were released."""
        ...


def one_reward(reward: Any) -> float:
    """A reward as a number.

    Raises:
        ValueError: It is none, or several.
    """
    try:
        return float(reward)
    except (TypeError, ValueError) as error:
        raise ValueError(f"step returned the reward {reward!r}, which has to be one number") from error


class Failure(NamedTuple):
    """What went wrong in an environment, where, and where in its code."""

    place: int
    message: str
    trace: str


class PlaceError(Exception):
    """An environment failed."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure)
        self.failure = failure


class Stepped(NamedTuple):
    """What `P` environments return.

    Attributes:
        observations: `(P, *observation)`, float32.
        rewards: `(P,)`, float32.
        ended: `(P,)` bool.
        success: `(P,)` bool; `None` where environments do not say.
    """

    observations: NDArray[np.float32]
    rewards: NDArray[np.float32]
    ended: NDArray[np.bool_]
    success: NDArray[np.bool_] | None


class Places:
    """Environments side by side: each place has a task, and its episode stays ended once it has ended.

    Args:
        source: Has the environments.
    """

    def __init__(self, source: Source) -> None:
        self.source = source
        self.environments: list[Environment] = []
        self.last = Stepped(np.empty(0, np.float32), np.empty(0, np.float32), np.empty(0, np.bool_), None)

    def assign(self, tasks: Sequence[Any]) -> None:
        """Have one place for each of `P` tasks."""
        self._release()
        for place, task in enumerate(tasks):
            self.environments.append(self._safely(place, self.source.acquire, task))

    def reset(self, seeds: NDArray[np.uint64]) -> NDArray[np.float32]:
        """Begin an episode in each place, from seeds `(P,)`; returns observations `(P, *observation)`."""
        count = len(self.environments)
        observations = np.empty((count, *self.source.shape), np.float32)
        for place in range(count):
            # Environments hand their seed on to whatever they use, and NumPy's old generators take 32 bits at most.
            observations[place] = self._safely(place, self._begin, place, int(seeds[place]) & 0x7FFFFFFF)
        self.last = Stepped(observations, np.zeros(count, np.float32), np.zeros(count, np.bool_), None)
        return observations

    def step(self, actions: NDArray[Any]) -> Stepped:
        """Act where episodes go on, with actions `(P, ...)`; elsewhere observations stay and rewards are zero."""
        count = len(self.environments)
        observations, ended = self.last.observations.copy(), self.last.ended.copy()
        rewards, success = np.zeros(count, np.float32), np.zeros(count, np.bool_)
        told = self.last.success is not None
        for place in np.flatnonzero(~ended):
            observations[place], rewards[place], ended[place], achieved = self._safely(
                int(place), self._act, int(place), actions[place]
            )
            if achieved is not None:
                success[place], told = achieved, True
        self.last = Stepped(observations, rewards, ended, success if told else None)
        return self.last

    def close(self) -> None:
        """End all environments."""
        self._release()
        self.source.close()

    def _release(self) -> None:
        while self.environments:
            self.source.release(self.environments.pop(0))

    def _begin(self, place: int, seed: int) -> NDArray[np.floating[Any]]:
        raw, _ = self.environments[place].reset(seed=seed)
        return self._seen(raw, "reset")

    def _act(self, place: int, action: Any) -> tuple[NDArray[np.floating[Any]], float, bool, bool | None]:
        step = self.environments[place].step(self.source.action(action))
        raw, reward, ended, cut, info = step
        reward = one_reward(reward)
        if not np.isfinite(reward):
            raise ValueError(f"step returned the reward {reward}, which is not finite")
        achieved = info.get("success", info.get("is_success"))
        return self._seen(raw, "step"), reward, bool(ended) or bool(cut), None if achieved is None else bool(achieved)

    def _seen(self, raw: Any, method: str) -> NDArray[np.floating[Any]]:
        seen = self.source.observation(raw)
        if not np.isfinite(seen).all():
            raise ValueError(f"{method} returned an observation that is not finite: {np.array2string(seen)}")
        return seen

    def _safely(self, place: int, function: Any, *args: Any) -> Any:
        try:
            return function(*args)
        except Exception as error:
            raise PlaceError(Failure(place, one_line(error), traceback.format_exc())) from error
