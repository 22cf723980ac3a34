"""What reinforcement learning asks of environments: all tasks of a batch, several episodes of each, stepped together.

Whoever brings environments implements two interfaces, and nothing else of this package has to know what is behind them:
a `TaskSuite` has the tasks of a split by number, and `TaskEnvironments` are the environments of some of those.

- A task is a pure function of (seed, split, number). What is random within an episode follows from the seed that
  `reset` is given, so the same seeds and actions give the same episode. Nothing of an environment is saved.
- An episode that ended stays ended: nothing resets by itself. Environments keep the observation at its end from then on
  (it is never shown to a loss, but has to be finite), and are not stepped any further.
- Actions for a `Box` arrive within its bounds: see `PolicySpaces.environment_actions`, which whoever acts has called.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_meta.errors import ConfigurationError


@dataclass(frozen=True)
class Box:
    """Actions that are `size` real numbers within bounds.

    Attributes:
        low: The smallest value of each; minus infinity where there is no bound.
        high: The largest value of each.

    Raises:
        ConfigurationError: There are none, as many low as high bounds are not given, or one is upside down.
    """

    low: tuple[float, ...]
    high: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.low or len(self.low) != len(self.high):
            raise ConfigurationError(f"A Box needs equally many bounds, got low={self.low} and high={self.high}.")
        if not all(low < high for low, high in zip(self.low, self.high, strict=True)):
            raise ConfigurationError(f"Each low must be below its high, got low={self.low} and high={self.high}.")

    @property
    def size(self) -> int:
        """How many numbers an action is."""
        return len(self.low)


@dataclass(frozen=True)
class Discrete:
    """Actions that are one of `count` choices, numbered from 0.

    Raises:
        ConfigurationError: There are not at least two.
    """

    count: int

    def __post_init__(self) -> None:
        if self.count < 2:
            raise ConfigurationError(f"There must be at least two actions to choose from, got {self.count}.")


@dataclass(frozen=True)
class PolicySpaces:
    """What a policy sees and does: the same for every task.

    Attributes:
        observation: The shape of one observation, such as `(39,)`.
        actions: `Box` or `Discrete`.

    Example:
        >>> spaces = PolicySpaces((2,), Box((-0.1, 0.0), (0.1, 1.0)))
        >>> spaces.environment_actions(torch.tensor([[-1.0, 0.0], [5.0, 1.0]]))
        tensor([[-0.1000,  0.5000],
                [ 0.1000,  1.0000]])
    """

    observation: tuple[int, ...]
    actions: Box | Discrete

    def environment_actions(self, actions: Tensor) -> Tensor:
        """What environments are given for the actions of a policy.

        A policy's action of -1 to 1 stands for the range from the lower to the upper bound, and is clipped to it, so
        that the same policy suits a robot in radians and one in newtons. Where a bound is infinite, and for choices,
        actions are as they are.

        Args:
            actions: `(..., size)`, or `(...)` choices.
        """
        if isinstance(self.actions, Discrete):
            return actions
        bounded, low, half = _scale(self.actions, actions.dtype, actions.device)
        scaled = low + (actions.clamp(-1, 1) + 1) * half
        return scaled if bounded is None else torch.where(bounded, scaled, actions)


@lru_cache
def _scale(box: Box, dtype: torch.dtype, device: torch.device) -> tuple[Tensor | None, Tensor, Tensor]:
    """Which numbers have both bounds (`None` if all have), the lower bounds, and half of the ranges."""
    low, high = (torch.tensor(bound, dtype=dtype, device=device) for bound in (box.low, box.high))
    bounded = torch.isfinite(low) & torch.isfinite(high)
    low, high = torch.where(bounded, low, -1), torch.where(bounded, high, 1)
    return None if bool(bounded.all()) else bounded, low, (high - low) / 2


class Transition(NamedTuple):
    """What one step of `B` tasks with `E` episodes each leads to.

    Attributes:
        observations: After the step, `(B, E, *observation)`.
        rewards: For the step, `(B, E)`.
        terminated: Which episodes have ended, by this step or before, `(B, E)` bool. An environment's own time limit
            counts; the suite's `horizon` does not.
        success: Where the task was achieved at this step, `(B, E)` bool; `None` where that is not known.
    """

    observations: Tensor
    rewards: Tensor
    terminated: Tensor
    success: Tensor | None = None


@runtime_checkable
class TaskEnvironments(Protocol):
    """The environments of `B` tasks, `E` episodes of each, all stepped together.

    Attributes:
        spaces: What a policy sees and does.
        horizon: The most steps of an episode.
    """

    @property
    def spaces(self) -> PolicySpaces:
        """What a policy sees and does."""
        ...

    @property
    def horizon(self) -> int:
        """The most steps of an episode."""
        ...

    def reset(self, seeds: NDArray[np.uint64]) -> Tensor:
        """Begin all episodes anew.

        Args:
            seeds: `(B, E)`, what is random in each episode follows from.

        Returns:
            Observations `(B, E, *observation)`.
        """
        ...

    def step(self, actions: Tensor) -> Transition:
        """Let all episodes act that have not ended.

        Args:
            actions: `(B, E, size)` within the bounds of a `Box`, or `(B, E)` choices of a `Discrete`. Those of episodes
                that have ended mean nothing.
        """
        ...

    def close(self) -> None:
        """No more is asked of these. A suite may keep processes and simulators for the next ones."""
        ...


@runtime_checkable
class TaskSuite(Protocol):
    """The tasks of a split, by number.

    Attributes:
        spaces: What a policy sees and does, known before there is an environment.
    """

    @property
    def spaces(self) -> PolicySpaces:
        """What a policy sees and does."""
        ...

    def environments(self, numbers: Sequence[int], episodes: int) -> TaskEnvironments:
        """The environments of the tasks of these numbers, `B`, with `episodes` of each.

        They are in use until they are closed, or until the suite is asked for others: one batch of tasks acts at a
        time.
        """
        ...

    def close(self) -> None:
        """End whatever the suite keeps: processes, simulators. It may be asked for environments again."""
        ...
