"""Environments of Meta-World, each with its goal, and what a policy sees of them."""

from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from lightning_meta.rl.imports import required
from lightning_meta.rl.places import Environment
from lightning_meta.rl.sawyer import SawyerKind

Observations: TypeAlias = Literal["all", "current"]

SIZES: dict[Observations, int] = {"all": 39, "current": 18}
START = {0: (0.0, 0.6, 0.2), 4: (0.0, 0.6, 0.02), 11: (0.0, 0.6, 0.02)}
"""About where the hand and the objects begin, by their place among the numbers of one step."""
UNIT = 0.1


class Goal(NamedTuple):
    """A task of Meta-World: an environment with places of its object and of the goal.

    Attributes:
        environment: Such as `"reach-v3"`.
        number: Which of its goals in the split.
        task: Meta-World's own object, for an environment's `set_task`.
    """

    environment: str
    number: int
    task: Any

    def __str__(self) -> str:
        return f"goal {self.number} of {self.environment}"


class SawyerSource:
    """Has environments of Meta-World.

    Args:
        observations: What a policy sees of the 39 numbers.
        scaled: Whether positions are in units of 0.1 m from about where things begin.
        reward_function_version: `"v1"` or `"v2"`.
    """

    def __init__(self, observations: Observations, scaled: bool, reward_function_version: str) -> None:
        self.reward_function_version, self.scaled = reward_function_version, scaled
        self.shape: tuple[int, ...] = (SIZES[observations],)
        self.origin, self.factor = np.zeros(39), np.ones(39)
        for step in (0, 18):
            for place, start in START.items():
                self.origin[step + place : step + place + 3] = start
                self.factor[step + place : step + place + 3] = 1 / UNIT
        self._kinds: dict[str, SawyerKind] = {}
        self._free: list[Any] = []

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_kinds": {}, "_free": []}

    def acquire(self, task: Goal) -> Environment:
        """An environment with this goal."""
        kind = self._kinds.get(task.environment)
        if kind is None:
            environment_class = required("metaworld.env_dict").ALL_V3_ENVIRONMENTS[task.environment]
            kind = self._kinds[task.environment] = SawyerKind(environment_class, self.reward_function_version)
        environment = kind.environment()
        environment.set_task(task.task)
        return environment  # type: ignore[no-any-return]

    def release(self, environment: Any) -> None:
        """Nothing: making an environment of a kind that is there costs nothing."""

    def observation(self, raw: Any) -> NDArray[np.floating[Any]]:
        """The hand and the objects now, the same of the step before, and three zeros in place of the goal."""
        if not self.scaled:
            return np.asarray(raw[: self.shape[0]], dtype=np.float32)
        seen = (raw - self.origin) * self.factor
        # Environments with one object, or none, have zeros for the others.
        for first in (4, 11, 22, 29):
            if not raw[first : first + 7].any():
                seen[first : first + 7] = 0
        found: NDArray[np.float32] = seen[: self.shape[0]].astype(np.float32)
        return found

    def action(self, action: Any) -> Any:
        """As it is."""
        return action

    def close(self) -> None:
        """End the simulations."""
        self._kinds.clear()
