"""A module of this package as an agent in `metaworld.evaluation`."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_meta.algorithms import Actor
from lightning_meta.errors import ConfigurationError
from lightning_meta.modules.evaluation import with_gradients
from lightning_meta.randomness import uniforms
from lightning_meta.rl.data_module import NumberedTasks
from lightning_meta.rl.sawyer_source import Observations, SawyerSource
from lightning_meta.rl.trajectories import Trajectories


class MetaWorldAgent:
    """Adapts as in this package, is counted as in `metaworld.evaluation.metalearning_evaluation`.

    What that counts as success is no mean over goals: see `docs/meta_world.md`. Use it to compare with what was
    published by that count, with as many `adaptation_steps` as the module makes inner steps.

    Args:
        module: Such as a trained `MAMLRLModule`.
        environments: How many there are, each with a task: `num_envs` of the vector environment.
        observations: What its policy sees, as of its `MetaWorldDataModule`.
        scaled: The same.
        seed: What is random in its actions follows from it.

    Example:
        >>> def success(module, environments):
        ...     from metaworld.evaluation import metalearning_evaluation
        ...     agent = MetaWorldAgent(module, environments.num_envs)
        ...     return metalearning_evaluation(agent, environments, adaptation_steps=1, adaptation_episodes=10)[0]
    """

    def __init__(
        self,
        module: Any,
        environments: int,
        observations: Observations = "all",
        scaled: bool = True,
        seed: int = 0,
    ) -> None:
        self.module, self.environments, self.seed = module, environments, seed
        self.source = SawyerSource(observations, scaled, "v2")
        self._act: Actor | None = None
        self._steps: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
        self._ends: list[NDArray[np.bool_]] = []
        self._drawn = 0

    def init(self) -> None:
        """Forget what was adapted to."""
        with with_gradients(NumberedTasks("test").tasks(range(self.environments))) as tasks:
            self._act = Actor(
                self.module.algorithm, self.module.task_map, lambda: self.module.problem(tasks), training=False
            )
        self._steps, self._ends = [], []

    def adapt_action(self, observations: NDArray[np.float64]) -> tuple[NDArray[np.float32], dict[str, NDArray[Any]]]:
        """Act to adapt: actions `(environments, 4)`, and what the policy makes of them."""
        actions, log = self._acted(observations)
        kept = {"actions": actions.numpy(), "log_probabilities": log.numpy()}
        return self._clipped(actions), kept

    def step(self, timestep: Any) -> None:
        """Keep what an action led to."""
        kept = {name: torch.as_tensor(value) for name, value in timestep.aux_policy_outputs.items()}
        rewards = torch.as_tensor(timestep.reward, dtype=torch.float32)
        seen = self._seen(timestep.observation)
        self._steps.append((seen, kept["actions"], rewards, kept["log_probabilities"]))
        self._ends.append(np.logical_or(timestep.terminated, timestep.truncated))

    def adapt(self) -> None:
        """Make an inner step on the episodes since the last one.

        Raises:
            ConfigurationError: An environment has not ended an episode.
        """
        trajectories = self._trajectories()
        self._steps, self._ends = [], []
        self._actor().adapt(trajectories.examples(self.module.sampler.advantages(trajectories)))

    def eval_action(self, observations: NDArray[np.float64]) -> NDArray[np.float32]:
        """Act with the adapted policy: `(environments, 4)`."""
        return self._clipped(self._acted(observations)[0])

    def reset(self, env_mask: NDArray[np.bool_]) -> None:
        """Nothing: a policy remembers nothing of an episode."""

    def _acted(self, observations: NDArray[np.float64]) -> tuple[Tensor, Tensor]:
        predictions = self._actor()(self._seen(observations).unsqueeze(1))
        noise = torch.from_numpy(uniforms(self.seed, "test", [self._drawn], self.environments * 4))
        self._drawn += 1
        actions = predictions.sample(noise.view(self.environments, 1, 4))
        return actions[:, 0].cpu(), predictions.log_probabilities(actions)[:, 0].cpu()

    def _actor(self) -> Actor:
        if self._act is None:
            self.init()
        assert self._act is not None
        return self._act

    def _seen(self, observations: NDArray[np.float64]) -> Tensor:
        if observations.shape != (self.environments, 39):
            raise ConfigurationError(
                f"The agent was made for {self.environments} environments of 39 numbers, got {observations.shape}."
            )
        seen = np.stack([self.source.observation(each) for each in observations])
        return torch.from_numpy(seen).to(next(self.module.network.parameters()))

    def _clipped(self, actions: Tensor) -> NDArray[np.float32]:
        return actions.clamp(-1, 1).numpy().astype(np.float32)

    def _trajectories(self) -> Trajectories:
        """The episodes that ended, of every environment as many as of the one with the fewest: `(B, E, T, ...)`."""
        observations, actions, rewards, log = (torch.stack(each, 1) for each in zip(*self._steps, strict=True))
        ends = [np.flatnonzero([ended[b] for ended in self._ends]) + 1 for b in range(self.environments)]
        count = min(map(len, ends))
        if not count:
            raise ConfigurationError("Every environment must end an episode before the agent adapts.")
        spans = [list(zip([0, *end[: count - 1]], end[:count], strict=True)) for end in ends]
        longest = max(last - first for task in spans for first, last in task)
        mask = torch.zeros(self.environments, count, longest, dtype=torch.bool)
        for b, task in enumerate(spans):
            for e, (first, last) in enumerate(task):
                mask[b, e, : last - first] = True

        def cut(values: Tensor) -> Tensor:
            cutout = values.new_zeros(self.environments, count, longest, *values.shape[2:])
            for b, task in enumerate(spans):
                for e, (first, last) in enumerate(task):
                    cutout[b, e, : last - first] = values[b, first:last]
            return cutout

        unknown = torch.full((self.environments, count), -1.0)
        return Trajectories(cut(observations), cut(actions), cut(rewards), mask, cut(log), unknown)
