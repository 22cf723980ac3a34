"""Meta-World's own evaluation: what it counts."""

import numpy as np
import pytest
import torch

metaworld = pytest.importorskip("metaworld", reason="metaworld, of the extra rl, is not installed")

from metaworld.evaluation import Timestep, metalearning_evaluation  # noqa: E402

from lightning_meta.algorithms import Actor  # noqa: E402
from lightning_meta.errors import ConfigurationError  # noqa: E402
from lightning_meta.rl import GaussianPolicy, MAMLRLModule, Trajectories  # noqa: E402
from lightning_meta.rl.data_module import NumberedTasks  # noqa: E402
from lightning_meta.rl.meta_world import MetaWorldDataModule  # noqa: E402
from lightning_meta.rl.meta_world_agent import MetaWorldAgent  # noqa: E402
from lightning_meta.rl.sawyer_source import SawyerSource  # noqa: E402


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
    data = MetaWorldDataModule("ML1", "reach-v3", horizon=100, scaled=False)
    data.setup()
    agent = GoalBlind()
    found = successes(agent, data)
    assert found.mean() == pytest.approx(0.1)
    environments = metaworld.make_ml_envs("reach-v3", seed=42, meta_batch_size=50, split="test")
    success, _, _ = metalearning_evaluation(agent, environments, num_evals=1, adaptation_episodes=1)
    environments.close()
    assert success == 1.0


class Recorded(MetaWorldAgent):
    """Keeps what it is told, and what its policy is before each adaptation and at the end."""

    def init(self):
        super().init()
        self.told, self.adaptations = [], 0

    def step(self, timestep):
        super().step(timestep)
        self.told.append(timestep)

    def adapt(self):
        super().adapt()
        self.adaptations += 1


def test_an_agent_adapts_as_a_module_does():
    """Its parameters after an inner step are those of a step on the trajectories that are cut out by hand."""
    torch.manual_seed(0)
    module = MAMLRLModule(GaussianPolicy(39, 4), inner_lr=0.5)
    environments = metaworld.make_ml_envs("reach-v3", seed=42, meta_batch_size=2, split="test", max_episode_steps=7)
    agent = Recorded(module, environments.num_envs)
    metalearning_evaluation(agent, environments, num_evals=1, adaptation_episodes=3, evaluation_episodes=1)
    environments.close()
    assert agent.adaptations == 1
    assert len(agent.told) == 3 * 7

    def three_episodes(values):
        tensor = torch.from_numpy(np.stack(values, 1)).float()  # (2, 21, ...)
        return tensor.view(2, 3, 7, *tensor.shape[2:])

    source = SawyerSource("all", True, "v2")
    seen = [np.stack([source.observation(each) for each in step.observation]) for step in agent.told]
    observations = three_episodes(seen)
    actions = three_episodes([step.aux_policy_outputs["actions"] for step in agent.told])
    assert torch.equal(actions.clamp(-1, 1), three_episodes([step.action for step in agent.told]))
    rewards = three_episodes([step.reward for step in agent.told])
    with torch.no_grad():
        log = module.network(observations).log_probabilities(actions)
    mask = torch.ones(2, 3, 7, dtype=torch.bool)
    trajectories = Trajectories(observations, actions, rewards, mask, log, torch.full((2, 3), -1.0))
    tasks = NumberedTasks("test").tasks(range(2))
    expected = Actor(module.algorithm, module.task_map, lambda: module.problem(tasks), training=False)
    expected.adapt(trajectories.examples(module.sampler.advantages(trajectories)))
    seen = torch.randn(2, 5, 39)
    means = expected(seen).mean
    torch.testing.assert_close(agent._act(seen).mean, means, rtol=1e-5, atol=1e-6)
    with torch.no_grad():
        assert (module.network(seen).mean - means).abs().max() > 1e-2, "Adapting must change it for this to mean much."


def test_an_agent_is_for_as_many_environments_as_there_are():
    agent = MetaWorldAgent(MAMLRLModule(GaussianPolicy(39, 4)), 3)
    with pytest.raises(ConfigurationError, match=r"made for 3 environments of 39 numbers, got \(2, 39\)"):
        agent.eval_action(np.zeros((2, 39)))
    ended, actions = np.zeros(3, bool), np.zeros((3, 4), np.float32)
    agent.adapt_action(np.zeros((3, 39)))
    kept = {"actions": actions, "log_probabilities": np.zeros(3, np.float32)}
    agent.step(Timestep(np.zeros((3, 39)), actions, np.zeros(3), ended, ended, kept))
    with pytest.raises(ConfigurationError, match="must end an episode"):
        agent.adapt()
