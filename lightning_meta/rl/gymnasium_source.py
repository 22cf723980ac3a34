"""Environments of Gymnasium, each with its task."""

import hashlib
import pickle
from collections.abc import Callable, Mapping
from typing import Any
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray

from lightning_meta.errors import ConfigurationError, DataError, one_line
from lightning_meta.rl.environment import Box, Discrete, PolicySpaces
from lightning_meta.rl.imports import required
from lightning_meta.rl.places import Environment


class GymnasiumSource:
    """Has environments of one kind, each of which gets its task by keyword arguments or by a call.

    Args:
        make: An environment's identifier, or a class or function that makes one.
        set_task: Called with an environment and a task, or the name of an environment's method that is called with a
            task; with `None`, tasks are keyword arguments of `make`.
        options: Further keyword arguments of every environment.
        first: A task of which spaces are read.

    Raises:
        DataError: An environment cannot be made.
        ConfigurationError: Its observations or actions are none that a policy can see or do.
    """

    # Environments whose arguments are a task can only be used for that task: beyond these, the oldest are ended.
    spare = 256

    def __init__(self, make: Any, set_task: Any, options: Mapping[str, Any], first: Any) -> None:
        self.gymnasium = required("gymnasium")
        self.make, self.set_task, self.options = make, set_task, dict(options)
        self.name = make if isinstance(make, str) else getattr(make, "__qualname__", type(make).__name__)
        self._free: list[tuple[str, Any]] = []
        self._keys: dict[int, str] = {}
        environment: Any = self.acquire(first)
        for name in ("observation_space", "action_space"):
            if getattr(environment, name, None) is None:
                raise ConfigurationError(f"{self.name} needs {name}, as gymnasium.Env has.")
        self.observations, self.actions = environment.observation_space, environment.action_space
        self.release(environment)
        self.flat = self._flat_observations()
        self.shape: tuple[int, ...] = self.flat.shape

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "gymnasium": None, "_free": [], "_keys": {}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self.gymnasium = required("gymnasium")

    @property
    def spaces(self) -> PolicySpaces:
        """What a policy sees and does."""
        kinds = self.gymnasium.spaces
        if isinstance(self.actions, kinds.Discrete):
            return PolicySpaces(self.shape, Discrete(int(self.actions.n)))
        if not isinstance(self.actions, kinds.Box) or len(self.actions.shape) != 1:
            raise ConfigurationError(
                f"{self.name} has the actions {self.actions}. They must be a Discrete or a Box with one dimension; "
                "gymnasium.wrappers.TransformAction can make others into these."
            )
        return PolicySpaces(self.shape, Box(*(tuple(map(float, b)) for b in (self.actions.low, self.actions.high))))

    def acquire(self, task: Any) -> Environment:
        """An environment in which this is the task."""
        key = _content(task) if self.set_task is None else ""
        found = next((i for i, (of, _) in enumerate(self._free) if of == key), None)
        environment = self._made(task) if found is None else self._free.pop(found)[1]
        self._keys[id(environment)] = key
        self.give(environment, task)
        return environment  # type: ignore[no-any-return]

    def give(self, environment: Any, task: Any) -> None:
        """Give an environment its task.

        Raises:
            DataError: That failed.
            ValueError: Its spaces are not those of other tasks.
        """
        try:
            if isinstance(self.set_task, str):
                environment.get_wrapper_attr(self.set_task)(task)
            elif self.set_task is not None:
                self.set_task(environment.unwrapped, task)
        except Exception as error:
            raise DataError(
                f"{self.name}: set_task={self.set_task!r} failed with {task!r}: {one_line(error)}"
            ) from error
        for name in ("observation", "action"):
            expected, space = getattr(self, f"{name}s", None), getattr(environment, f"{name}_space", None)
            if expected is not None and space != expected:
                raise ValueError(f"its {name}s are {space}, and those of other tasks are {expected}")

    def shown(self, task: Any, horizon: int, render_mode: str | None) -> Any:
        """An environment with this task for itself, which shows what a policy sees and ends at the horizon."""
        environment = self._made(task, None if render_mode is None else {"render_mode": render_mode})
        self.give(environment, task)
        return shown(environment, self.observation, self.shape, horizon)

    def release(self, environment: Any) -> None:
        """Keep an environment for later."""
        self._free.append((self._keys.pop(id(environment)), environment))
        while len(self._free) > self.spare:
            self._free.pop(0)[1].close()

    def observation(self, raw: Any) -> NDArray[np.floating[Any]]:
        """An observation as float32: bytes of images as 0 to 1, and what is no array as Gymnasium flattens it."""
        if self.flat is not self.observations:
            raw = self.gymnasium.spaces.flatten(self.observations, raw)
        seen = np.asarray(raw)
        if seen.shape != self.shape:
            raise ValueError(f"an observation has the shape {seen.shape}, and its space is {self.observations}")
        return seen.astype(np.float32) / 255 if self.flat.dtype == np.uint8 else seen.astype(np.float32)

    def action(self, action: Any) -> Any:
        """An action as environments take it."""
        if isinstance(self.actions, self.gymnasium.spaces.Discrete):
            return int(action) + int(self.actions.start)
        return action.astype(self.actions.dtype)

    def close(self) -> None:
        """End the environments that are kept."""
        for _, environment in self._free:
            environment.close()
        self._free.clear()

    def _made(self, task: Any, more: dict[str, Any] | None = None) -> Any:
        if self.set_task is None and not isinstance(task, Mapping):
            raise ConfigurationError(
                f"A task of {self.name} is {task!r}, which is no dictionary of keyword arguments. Give set_task, the "
                "name of the environment's method that is called with it."
            )
        arguments = self.options | (more or {}) | (dict(task) if self.set_task is None else {})
        try:
            if isinstance(self.make, str):
                return self.gymnasium.make(self.make, disable_env_checker=True, **arguments)
            return self.make(**arguments)
        except Exception as error:
            hint = ""
            if isinstance(self.make, str) and "-" not in self.make:
                hint = " An environment of your own is named by its full path, my_module.MyEnvironment."
            raise DataError(
                f"{self.name} cannot be made with the arguments {arguments}: {one_line(error)}{hint}"
            ) from error

    def _flat_observations(self) -> Any:
        if isinstance(self.observations, self.gymnasium.spaces.Box):
            return self.observations
        try:
            return self.gymnasium.spaces.flatten_space(self.observations)
        except NotImplementedError:
            space = None
        if not isinstance(space, self.gymnasium.spaces.Box):
            raise ConfigurationError(
                f"{self.name} has the observations {self.observations}, which have no fixed shape."
            )
        return space


def shown(environment: Any, observation: Callable[[Any], Any], shape: tuple[int, ...], horizon: int) -> Any:
    """An environment of Gymnasium that shows what a policy sees, and ends at the horizon."""
    gymnasium = required("gymnasium")
    space = gymnasium.spaces.Box(-np.inf, np.inf, shape, np.float32)
    wrappers = gymnasium.wrappers
    return wrappers.TimeLimit(wrappers.TransformObservation(environment, observation, space), horizon)


def _content(task: Any) -> str:
    """What tells a task from others: its whole content, of which a text may show a part; like no other if unknown."""
    import cloudpickle

    try:
        return hashlib.blake2b(cloudpickle.dumps(task)).hexdigest()
    except (pickle.PicklingError, TypeError, AttributeError):
        return uuid4().hex
