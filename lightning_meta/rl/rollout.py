"""Acting in environments: one loop over time for all tasks and all their episodes."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_meta.errors import (
    ArgumentTypeError,
    ConfigurationError,
    DataError,
    NetworkError,
    NotFiniteError,
    one_line,
)
from lightning_meta.randomness import random_bits, uniforms
from lightning_meta.rl.actions import Actions, CategoricalActions, GaussianActions, UniformActions
from lightning_meta.rl.environment import Box, Discrete, PolicySpaces, TaskEnvironments
from lightning_meta.rl.trajectories import Trajectories
from lightning_meta.task import map_tensors


class Chance(NamedTuple):
    """All that is random in a rollout of `B` tasks, `E` episodes each.

    Attributes:
        seeds: Of the environments, `(B, E)`.
        noise: Of the actions, numbers in [0, 1), `(B, E, T, size)`; one for each step where actions are choices.
    """

    seeds: NDArray[np.uint64]
    noise: Tensor


def chance(
    seed: int, split: str, numbers: Sequence[int], step: int, episodes: int, spaces: PolicySpaces, horizon: int
) -> Chance:
    """What is random in the rollouts before inner step `step`: a function of (seed, split, task number, inner step).

    Args:
        seed: Which streams of tasks.
        split: `"train"`, `"val"` or `"test"`.
        numbers: Of the `B` tasks.
        step: The inner step; after the last one, how many there were.
        episodes: `E`.
        spaces: Says how many numbers an action takes.
        horizon: `T`.
    """
    size = spaces.actions.size if isinstance(spaces.actions, Box) else 1
    shape = len(numbers), episodes, horizon, size
    seeds = random_bits(seed, split, numbers, episodes, part=2 * step + 1)
    noise = uniforms(seed, split, numbers, episodes * horizon * size, part=2 * step + 2)
    return Chance(seeds, torch.from_numpy(noise).view(shape))


@torch.no_grad()
def rollout(
    environments: TaskEnvironments, act: Callable[[Tensor], Actions], chance: Chance, like: Tensor, names: Sequence[Any]
) -> Trajectories:
    """Act for one episode in each environment, from a reset to its end or the horizon.

    Args:
        environments: Of `B` tasks, `E` episodes each.
        act: Says how to act on observations `(B, E, *observation)`.
        chance: What is random in it.
        like: A tensor of the type and on the device of the policy: so are observations.
        names: What the tasks are called in errors.

    Raises:
        ArgumentTypeError: The policy does not return `Actions`.
        ConfigurationError: Its actions do not suit the environments.
        DataError: An observation or a reward is not finite, or has another shape than it should.
        NotFiniteError: An action is not finite.
    """
    spaces = environments.spaces
    shape = (*chance.seeds.shape, *spaces.observation)
    observations = _observed(environments.reset(chance.seeds), shape, like)
    alive = torch.ones(shape[:2], dtype=torch.bool, device=like.device)
    success = torch.full(shape[:2], -1.0, device=like.device)
    noise = chance.noise.to(like.device)
    seen: list[tuple[Any, ...]] = []
    for t in range(environments.horizon):
        _check_finite(observations, "observation", t, names)
        predictions = act(observations) if t else _first_actions(act, observations, spaces)
        actions = predictions.sample(noise[:, :, t])
        if not bool(torch.isfinite(actions).all()):
            raise NotFiniteError(
                f"The policy's actions are not finite at step {t} of an episode. A smaller inner or outer learning "
                "rate, gradient_clip_val, or a larger floor of the policy's deviations (min_std) may help."
            )
        after = environments.step(spaces.environment_actions(actions))
        rewards = after.rewards.to(like, copy=True)
        _check_finite(rewards, "reward", t, names)
        seen.append((observations, actions, rewards, alive, predictions))
        if after.success is not None:
            reached = (after.success.to(like.device) & alive).to(success)
            success = reached if t == 0 else torch.maximum(success, reached)
        following = _observed(after.observations, shape, like)
        alive = alive & ~after.terminated.to(like.device)
        if bool(alive.all()):
            observations = following
            continue
        observations = torch.where(alive.view(*alive.shape, *(1,) * len(spaces.observation)), following, observations)
        if not bool(alive.any()):
            break
    return _together(seen, success, environments.horizon)


def _together(seen: list[tuple[Any, ...]], success: Tensor, horizon: int) -> Trajectories:
    """Trajectories of what was seen in each step, `(B, E, T, ...)`, padded to the horizon."""
    observations, actions, rewards, mask, predictions = map_tensors(lambda *each: torch.stack(each, 2), *seen)
    log = predictions.log_probabilities(actions)
    missing = horizon - len(seen)

    def padded(values: Tensor, last: bool = False) -> Tensor:
        there = mask.view(*mask.shape, *(1,) * (values.dim() - 3))
        values = values if last else torch.where(there, values, torch.zeros_like(values))
        if not missing:
            return values
        end = values[:, :, -1:] if last else torch.zeros_like(values[:, :, -1:])
        return torch.cat([values, end.expand(-1, -1, missing, *values.shape[3:])], 2)

    log, rewards, actions = padded(log), padded(rewards), padded(actions)
    observations = padded(observations, last=True)
    mask = torch.cat([mask, mask.new_zeros(*mask.shape[:2], missing)], 2)
    return Trajectories(observations, actions, rewards, mask, log, success)


def _first_actions(act: Callable[[Tensor], Actions], observations: Tensor, spaces: PolicySpaces) -> Actions:
    """How to act at the beginning, where a policy that does not suit the environments is noticed."""
    try:
        predictions = act(observations)
    except NetworkError as error:
        size = f" A GaussianPolicy or a CategoricalPolicy needs observation_size={spaces.observation[0]}."
        raise ConfigurationError(
            f"The policy cannot act on the environments' observations, of shape {spaces.observation}: "
            f"{one_line(error.__cause__ or error)}.{size if len(spaces.observation) == 1 else ''}"
        ) from error.__cause__
    check_actions(predictions, spaces)
    return predictions


def check_actions(predictions: Any, spaces: PolicySpaces) -> None:
    """Refuse what a policy returns if the environments cannot be acted in with it.

    Raises:
        ArgumentTypeError: It is not `Actions`.
        ConfigurationError: It is for other actions.
    """
    if not isinstance(predictions, Actions) or not isinstance(predictions, tuple):
        raise ArgumentTypeError(
            f"The policy returned a {type(predictions).__name__}. It has to say how to act: return GaussianActions("
            "mean, log_std) or CategoricalActions(logits), or be a GaussianPolicy or CategoricalPolicy with network=..."
        )
    known: Any = predictions
    if not isinstance(known, GaussianActions | UniformActions | CategoricalActions):
        return  # a user's own
    actions = spaces.actions
    if isinstance(known, CategoricalActions) != isinstance(actions, Discrete):
        remedy = "CategoricalPolicy" if isinstance(actions, Discrete) else "GaussianPolicy"
        raise ConfigurationError(
            f"The environments take {actions}, but the policy returned {type(known).__name__}. Use a {remedy}."
        )
    size, name = (actions.size, "action_size") if isinstance(actions, Box) else (actions.count, "choices")
    if known[0].shape[-1] != size:
        raise ConfigurationError(
            f"The environments take {actions}, but the policy returned {known[0].shape[-1]} numbers. Give it "
            f"{name}={size}."
        )


def _observed(observations: Any, shape: tuple[int, ...], like: Tensor) -> Tensor:
    """Observations on the device and, if they are real numbers, in the type of the policy.

    Raises:
        DataError: They have another shape.
    """
    if not isinstance(observations, Tensor) or observations.shape != shape:
        found = tuple(getattr(observations, "shape", ()))
        raise DataError(f"The environments gave observations {found}, not {shape} (tasks, episodes, observation).")
    # Copies, since environments may write the next step into what they returned.
    if observations.dtype == torch.uint8:
        return numbers(observations, like)
    return observations.to(like if observations.is_floating_point() else like.device, copy=True)


def numbers(observations: Tensor, like: Tensor) -> Tensor:
    """What a policy sees, in its type: bytes of images as numbers from 0 to 1, as data modules give them."""
    found = observations.to(like, copy=True)
    return found / 255 if observations.dtype == torch.uint8 else found


def _check_finite(values: Tensor, what: str, t: int, names: Sequence[Any]) -> None:
    if values.is_floating_point() and not bool(torch.isfinite(values).all()):
        task, episode = (~torch.isfinite(values)).nonzero()[0, :2].tolist()
        raise DataError(
            f"Task {names[task]}: the {what} at step {t} of episode {episode} is not finite, though every action was. "
            "The environment has to be mended."
        )
