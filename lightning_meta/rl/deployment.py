"""From an environment to a policy that is adapted to it."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lightning_meta.algorithms import Actor
from lightning_meta.datamodules.arguments import check_number
from lightning_meta.errors import ConfigurationError, DataError
from lightning_meta.functional.inner_loop import check_steps
from lightning_meta.functional.network import copied
from lightning_meta.modules import deployment
from lightning_meta.modules.evaluation import with_gradients
from lightning_meta.rl.environment import Box, Discrete, PolicySpaces, TaskEnvironments, Transition
from lightning_meta.rl.places import one_reward
from lightning_meta.rl.rollout import chance, check_actions, numbers, rollout
from lightning_meta.rl.trajectories import Trajectories
from lightning_meta.task import Examples, Task, map_tensors


class AdaptedPolicy(nn.Module):
    """Acts in the environment that it was adapted to, on one observation or many.

    Args:
        network: The adapted network: says how to act on observations `(n, *observation)`.
        spaces: What it sees and does.
    """

    def __init__(self, network: nn.Module, spaces: PolicySpaces) -> None:
        super().__init__()
        self.network, self.spaces = network, spaces

    @torch.no_grad()
    def forward(self, observations: Any, uniforms: Any = None) -> Any:
        """Actions as the environment takes them: the most probable ones, or drawn with random numbers.

        Args:
            observations: One, `(*observation)`, or many, `(n, *observation)`; a tensor or an array.
            uniforms: Random numbers in [0, 1) to draw with, `(size,)` or `(n, size)`; 1 number for choices.

        Returns:
            A tensor for a tensor, else what `environment.step` takes: an array, or the number of a choice.

        Raises:
            ConfigurationError: Observations have another shape.
        """
        like, shape = next(self.network.parameters()), self.spaces.observation
        given = torch.as_tensor(observations, device=like.device)
        given = numbers(given, like)
        is_one = given.shape == shape
        if not is_one and given.shape[1:] != shape:
            raise ConfigurationError(f"Observations must be {shape} or many of such, got {tuple(given.shape)}.")
        predictions = self.network(given.unsqueeze(0) if is_one else given)
        if uniforms is None:
            actions = predictions.mode()
        else:
            noise = torch.as_tensor(uniforms, dtype=torch.float64, device=like.device)
            actions = predictions.sample(noise.unsqueeze(0) if is_one else noise)
        found = self.spaces.environment_actions(actions)
        found = found[0] if is_one else found
        if isinstance(observations, Tensor):
            return found
        return found.item() if found.dim() == 0 else found.cpu().numpy()


class OneEnvironment:
    """An environment with the interface of Gymnasium as one task with one episode at a time.

    Args:
        environment: Has `reset(seed=)`, `step(action)`, `observation_space` and `action_space`.
        horizon: The most steps of an episode; that of its specification if `None`.

    Raises:
        ConfigurationError: There is no horizon, or spaces are of a kind that policies do not know.
    """

    def __init__(self, environment: Any, horizon: int | None = None) -> None:
        self.environment = environment
        horizon = getattr(getattr(environment, "spec", None), "max_episode_steps", None) if horizon is None else horizon
        if horizon is None:
            raise ConfigurationError("Give horizon, the most steps of an episode: the environment has no limit itself.")
        check_number("horizon", horizon)
        self.horizon, self.spaces = horizon, spaces_of(environment)
        self._ended = False
        self._last = Transition(*(torch.zeros(1, 1) for _ in range(3)))

    def reset(self, seeds: NDArray[np.uint64]) -> Tensor:
        """Begin the episode anew."""
        observation, _ = self.environment.reset(seed=int(seeds[0, 0]) >> 33)  # Gymnasium takes 31 bits everywhere
        self._ended = False
        return _observation(observation)

    def step(self, actions: Tensor) -> Transition:
        """Act, unless the episode has ended."""
        if self._ended:
            return self._last
        action: Any = actions[0, 0].cpu().numpy()
        if isinstance(self.spaces.actions, Discrete):
            action = int(action)
        else:
            action = action.astype(self.environment.action_space.dtype).reshape(self.environment.action_space.shape)
        observation, reward, terminated, truncated, _ = self.environment.step(action)
        self._ended = bool(terminated or truncated)
        try:
            gained = one_reward(reward)
        except ValueError as error:
            raise DataError(f"{self.environment}: {error}.") from error
        self._last = Transition(
            _observation(observation), torch.tensor([[gained]], dtype=torch.float64), torch.tensor([[self._ended]])
        )
        return self._last

    def close(self) -> None:
        """It is its owner's to close."""


def _observation(observation: Any) -> Tensor:
    return numbers(torch.as_tensor(np.asarray(observation)), torch.zeros(1)).unsqueeze(0).unsqueeze(0)


def spaces_of(environment: Any) -> PolicySpaces:
    """What a policy sees and does in an environment with the interface of Gymnasium.

    Raises:
        ConfigurationError: A space is neither a box nor, for actions, a choice.
    """
    seen, done = (getattr(environment, f"{name}_space", None) for name in ("observation", "action"))
    if seen is None or done is None:
        raise ConfigurationError(f"{environment} needs an observation_space and an action_space, as gymnasium.Env has.")
    if not hasattr(seen, "low"):
        raise ConfigurationError(
            f"A policy sees one array of numbers, but the observations are {seen}: flatten them, for instance by "
            "gymnasium.wrappers.FlattenObservation."
        )
    if hasattr(done, "low"):
        low, high = (tuple(float(x) for x in np.asarray(bound).flatten()) for bound in (done.low, done.high))
        return PolicySpaces(tuple(seen.shape), Box(low, high))
    if not hasattr(done, "n") or getattr(done, "shape", None) or int(getattr(done, "start", 0)) != 0:
        raise ConfigurationError(f"Actions must be a Box or a Discrete from 0, got {done}.")
    return PolicySpaces(tuple(seen.shape), Discrete(int(done.n)))


def adapt_to(
    module: Any, env: Any, episodes: int = 10, steps: int | None = None, *, horizon: int | None = None, seed: int = 0
) -> AdaptedPolicy:
    """Adapt to one environment by acting in it; returns a policy that acts in it.

    Args:
        module: Adapts.
        env: Of Gymnasium's interface, acted in for one episode after another; or `TaskEnvironments` of one task, with
            as many episodes as it has.
        episodes: Episodes before each inner step.
        steps: Inner steps; as many as in evaluation if `None`.
        horizon: The most steps of an episode; if `None` the environment's own limit, or that of the data module.
        seed: What is random in acting follows from it.

    Raises:
        ConfigurationError: The environment does not suit the policy, or a number is out of its range.
        DataError: The environment gives what is not finite.
    """
    check_number("episodes", episodes)
    if horizon is None and getattr(getattr(env, "spec", None), "max_episode_steps", None) is None:
        horizon = getattr(getattr(module._trainer, "datamodule", None) or module.sampler.data, "horizon", None)
    environments: TaskEnvironments = env if isinstance(env, TaskEnvironments) else OneEnvironment(env, horizon)
    like = next(module.network.parameters())
    support: list[Examples] = []

    def acted(step: int) -> Trajectories:
        if isinstance(environments, OneEnvironment):
            parts = [one_rollout(step, episode, 1) for episode in range(episodes)]
            return map_tensors(lambda *each: torch.cat(each, 1), *parts)
        return one_rollout(step, 0, episodes)

    def one_rollout(step: int, episode: int, count: int) -> Trajectories:
        random = chance(seed, "test", [episode], step, count, environments.spaces, environments.horizon)
        return rollout(environments, act, random, like, [f"{env}"])

    number = torch.zeros(1, 1, dtype=torch.long, device=like.device)
    with with_gradients(Task(Examples(number, number), Examples(number, number))) as task:
        act = Actor(module.algorithm, module.task_map, lambda: module.problem(task), training=False)
        for step in range(act.steps if steps is None else check_steps("steps", steps)):
            trajectories = acted(step)
            support.append(trajectories.examples(module.sampler.advantages(trajectories)))
            act.adapt(support[-1])
    if not support:
        return AdaptedPolicy(copied(module.network).eval().requires_grad_(False), environments.spaces)
    given = map_tensors(lambda *each: torch.cat(each), *support)  # (steps, E, T, ...)
    network = deployment.adapted_network(module, *given[:2], steps=len(support), transductive=False)
    policy = AdaptedPolicy(network, environments.spaces)
    check_actions(network(given.inputs[0, :, 0]), environments.spaces)
    return policy
