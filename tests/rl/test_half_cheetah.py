"""The half-cheetah of MuJoCo."""

import numpy as np
import pytest
import torch

pytest.importorskip("mujoco", reason="mujoco, of the extra rl, is not installed")

from lightning_meta.errors import ConfigurationError
from lightning_meta.rl.half_cheetah import HalfCheetahDataModule
from tests.rl.environments import gymnasium


def run(goal, action, steps=20):
    """Rewards of one action, and the speed and the cost of it by Gymnasium's own environment."""
    module = HalfCheetahDataModule(goal)
    module.setup()
    suite = module.suites["test"]
    environments = suite.environments([0, 1], 1)
    environments.reset(np.zeros((2, 1), np.uint64))
    rewards = [environments.step(action.expand(2, 1, 6)).rewards[:, 0] for _ in range(steps)]
    real = gymnasium.make("HalfCheetah-v5")
    real.reset(seed=0)
    speeds = [real.step(action.numpy())[4]["x_velocity"] for _ in range(steps)]
    return torch.stack(rewards, 1), torch.tensor(speeds, dtype=torch.float32), 0.05 * action.square().sum(), suite


ACTION = torch.tensor([0.5, -1.0, 0.2, 1.0, -0.3, 0.7])


def test_directions_are_paid_the_other_way_round():
    rewards, speeds, cost, _ = run("direction", ACTION)
    torch.testing.assert_close(rewards, torch.stack([speeds - cost, -speeds - cost]))


def test_speeds_are_paid_by_their_distance():
    rewards, speeds, cost, suite = run("speed", ACTION)
    wanted = torch.tensor([suite.task(0), suite.task(1)])
    assert 0 < wanted.min() < wanted.max() < 2
    torch.testing.assert_close(rewards, -(speeds - wanted[:, None]).abs() - cost)


def test_other_goals_are_refused():
    with pytest.raises(ConfigurationError, match="goal must be direction or speed, got 'height'"):
        HalfCheetahDataModule("height")
