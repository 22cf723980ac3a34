"""Meta-World's own evaluation: what it counts."""

import numpy as np
import pytest
import torch

metaworld = pytest.importorskip("metaworld", reason="metaworld, of the extra rl, is not installed")

from metaworld.evaluation import metalearning_evaluation  # noqa: E402

from lightning_meta.rl.meta_world import MetaWorldDataModule  # noqa: E402


class GoalBlind:
    """Always moves its hand to one place, which is near 5 of the 50 goals, and learns nothing."""

    place = np.array([-0.05, 0.85, 0.25])

    def actions(self, observations):
        actions = np.zeros((len(observations), 4), np.float32)
        actions[:, :3] = np.clip(10 * (self.place - observations[:, :3]), -1, 1)
        return actions

    def init(self):
        pass

    def adapt_action(self, observations):
        return self.actions(observations), {}

    def step(self, timestep):
        pass

    def adapt(self):
        pass

    def eval_action(self, observations):
        return self.actions(observations)

    def reset(self, env_mask):
        pass


def successes(agent, data, episodes=1):
    """Of each of the test goals, in our count."""
    environments = data.suites["test"].environments(range(50), episodes)
    observations = environments.reset(np.zeros((50, episodes), np.uint64))
    achieved = torch.zeros(50, episodes, dtype=torch.bool)
    for _ in range(environments.horizon):
        actions = torch.from_numpy(agent.actions(observations.flatten(0, 1).numpy())).view(50, episodes, 4)
        observations, _, _, success = environments.step(actions)
        achieved |= success
    return achieved.float().mean(1)


def test_a_goal_blind_agent_scores_everything_there_and_a_tenth_here():
    data = MetaWorldDataModule("ML1", "reach-v3", horizon=100)
    data.setup()
    agent = GoalBlind()
    found = successes(agent, data)
    assert found.mean() == pytest.approx(0.1)
    environments = metaworld.make_ml_envs("reach-v3", seed=42, meta_batch_size=50, split="test")
    success, _, _ = metalearning_evaluation(agent, environments, num_evals=1, adaptation_episodes=1)
    environments.close()
    assert success == 1.0
