"""Small environments for tests, importable by worker processes."""

import os

import numpy as np
import pytest

gymnasium = pytest.importorskip("gymnasium", reason="gymnasium, of the extra rl, is not installed")


class Point(gymnasium.Env):
    """A point that is paid for being near a goal; an episode ends after a random number of steps."""

    def __init__(self, goal=0.0, wrong=None, size=2, discrete=False):
        self.goal, self.wrong = goal, wrong
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (size,), np.float64)
        discrete_space = gymnasium.spaces.Discrete(3, start=-1)
        self.action_space = discrete_space if discrete else gymnasium.spaces.Box(-1.0, 1.0, (1,), np.float32)
        self.steps = self.last = 0

    def set_goal(self, goal):
        self.goal = goal

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.position = self.np_random.normal(size=self.observation_space.shape)
        self.steps, self.last = 0, int(self.np_random.integers(2, 9))
        return self._observed(), {}

    def step(self, action):
        assert self.action_space.contains(action), action
        self.steps += 1
        assert self.steps <= self.last, "stepped after its end"
        if self.wrong == "raise" and self.steps == 2:
            raise ZeroDivisionError("a bug in the robot")
        if self.wrong == "exit":
            os._exit(3)
        if self.wrong == "display":
            raise RuntimeError("no display: the environment variable DISPLAY is missing")
        self.position = self.position + 0.1 * np.asarray(action) + 0.01 * self.np_random.normal()
        distance = float(np.abs(self.position - self.goal).max())
        reward = {"reward": float("nan"), "rewards": [1, 2]}.get(self.wrong, -distance)
        return self._observed(), reward, self.steps == self.last, False, {"success": distance < 0.5}

    def _observed(self):
        if self.wrong == "nan":
            return np.full(2, np.nan)
        return self.position[:1] if self.wrong == "shape" else self.position


def draw_goal(generator):
    return float(generator.uniform(-1, 1))


def episodes(suite, numbers, count=3, steps=10, seed=0):
    """Everything that environments return for the same seeds and actions."""
    import torch

    environments = suite.environments(numbers, count)
    generator = torch.Generator().manual_seed(seed)
    seeds = np.arange(len(numbers) * count, dtype=np.uint64).reshape(len(numbers), count) + np.uint64(2**63)
    found = [environments.reset(seeds)]
    for _ in range(steps):
        size = getattr(environments.spaces.actions, "size", None)
        if size is None:
            actions = torch.randint(environments.spaces.actions.count, (len(numbers), count), generator=generator)
        else:
            actions = torch.rand(len(numbers), count, size, generator=generator) * 2 - 1
        transition = environments.step(environments.spaces.environment_actions(actions))
        found += [tensor for tensor in transition if tensor is not None]
    environments.close()
    return found
