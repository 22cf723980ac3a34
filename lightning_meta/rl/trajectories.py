"""What was seen and done in the episodes of many tasks, and what is made of it: returns, baselines, advantages."""

from typing import NamedTuple

import torch
from torch import Tensor

from lightning_meta.task import Examples


class Experience(NamedTuple):
    """The targets of a policy's loss: what it did in `E` episodes of `T` steps, and how good that was.

    Padding, after the end of an episode, is told by the mask; it changes nothing.

    Attributes:
        actions: `(..., E, T, size)` real numbers, or `(..., E, T)` choices.
        log_probabilities: Of the actions, by the policy that acted, `(..., E, T)`.
        advantages: How much better each action was than expected, `(..., E, T)`.
        mask: Which steps there were, `(..., E, T)` bool.
        returns: The sum of the rewards of each episode, `(..., E)`.
        success: Whether the task was achieved in each episode, `(..., E)`, 1 or 0; -1 where it is not known.
    """

    actions: Tensor
    log_probabilities: Tensor
    advantages: Tensor
    mask: Tensor
    returns: Tensor
    success: Tensor


class Trajectories(NamedTuple):
    """`E` episodes of at most `T` steps of each of `B` tasks.

    After the end of an episode the mask is false, observations are the last one, and all else is 0.

    Attributes:
        observations: Before each step, `(B, E, T, *observation)`.
        actions: As the policy chose them, `(B, E, T, size)`, or choices `(B, E, T)`.
        rewards: For each step, `(B, E, T)`.
        mask: Which steps there were, `(B, E, T)` bool.
        log_probabilities: Of the actions, by the policy that acted, `(B, E, T)`.
        success: Whether the task was achieved at any step of the episode, `(B, E)`, 1 or 0; -1 where it is not known.
    """

    observations: Tensor
    actions: Tensor
    rewards: Tensor
    mask: Tensor
    log_probabilities: Tensor
    success: Tensor

    @property
    def returns(self) -> Tensor:
        """The sum of the rewards of each episode, `(B, E)`."""
        return torch.where(self.mask, self.rewards, 0).sum(-1)

    def examples(self, advantages: Tensor) -> Examples:
        """Episodes as examples of a task, given how good each step was, `(B, E, T)`."""
        targets = Experience(self.actions, self.log_probabilities, advantages, self.mask, self.returns, self.success)
        return Examples(self.observations, targets)


def discounted_sums(values: Tensor, discount: float) -> Tensor:
    r"""What follows from each step on, :math:`\sum_{l \ge 0} \gamma^l x_{t+l}`, of values `(..., T)`, 0 after the end.

    Example:
        >>> discounted_sums(torch.tensor([1.0, 0.0, 4.0]), 0.5)
        tensor([2., 2., 4.])
    """
    steps = torch.arange(values.shape[-1], device=values.device)
    ahead = steps.unsqueeze(1) - steps  # (T, T): how far the row's step lies after the column's
    weights = torch.where(ahead >= 0, torch.as_tensor(discount, dtype=values.dtype) ** ahead.clamp(min=0), 0)
    return values @ weights.to(values.dtype)


def linear_baseline(trajectories: Trajectories, discount: float, ridge: float = 1e-5) -> Tensor:
    r"""The return to be expected from each step on, fitted to what followed, for every task by itself.

    .. math:: V = w \cdot [s, s^2, \tau, \tau^2, \tau^3, 1], \qquad \tau = t / 100

    by least squares over the steps that there were, with the observation s within -10 to 10. Paper: Duan et al. 2016,
    arXiv:1604.06778, appendix.

    Args:
        trajectories: Of `B` tasks.
        discount: γ of the returns that are fitted.
        ridge: λ of a term :math:`\lambda \|w\|^2` that is added to the mean squared error of a step.

    Returns:
        `(B, E, T)`; 0 after the end of an episode. In float64, as it is fitted.
    """
    mask = trajectories.mask
    count, episodes, steps = mask.shape
    seen = trajectories.observations.to(torch.float64).reshape(count, episodes, steps, -1).clamp(-10, 10)
    time = torch.arange(steps, device=seen.device, dtype=torch.float64).view(steps, 1).expand(*mask.shape, 1) / 100
    features = torch.cat([seen, seen**2, time, time**2, time**3, torch.ones_like(time)], -1)
    features = torch.where(mask.unsqueeze(-1), features, 0).flatten(1, 2)  # (B, E * T, features)
    rewards = torch.where(mask, trajectories.rewards.to(torch.float64), 0)
    wanted = discounted_sums(rewards, discount).flatten(1).unsqueeze(-1)
    square = features.mT @ features
    # Per step, so that the condition of the equations does not depend on how many steps there are.
    eye = torch.eye(square.shape[-1], dtype=square.dtype, device=square.device)
    penalty = ridge * mask.sum((1, 2)).clamp(min=1).view(-1, 1, 1) * eye
    weights: Tensor = torch.linalg.solve(square + penalty, features.mT @ wanted)
    return (features @ weights).view(mask.shape)


def generalized_advantages(rewards: Tensor, values: Tensor, mask: Tensor, discount: float, decay: float) -> Tensor:
    r"""How much better each action was than expected: generalized advantage estimation.

    .. math:: \delta_t = r_t + \gamma V_{t+1} - V_t, \qquad A_t = \sum_{l \ge 0} (\gamma \lambda)^l \delta_{t+l}

    Nothing is expected after the last step of an episode. Paper: Schulman et al. 2015, arXiv:1506.02438.

    Args:
        rewards: `(..., T)`.
        values: What is expected from each step on, `(..., T)`.
        mask: Which steps there were, `(..., T)` bool: the first ones of each episode.
        discount: γ.
        decay: λ: 1 for what really followed less the expected, 0 for one step ahead.

    Returns:
        `(..., T)`; 0 after the end of an episode.
    """
    values = torch.where(mask, values, 0)
    following = torch.cat([values[..., 1:], torch.zeros_like(values[..., :1])], -1)
    deltas = torch.where(mask, rewards + discount * following - values, 0)
    return torch.where(mask, discounted_sums(deltas, discount * decay), 0)


def normalized(advantages: Tensor, mask: Tensor) -> Tensor:
    """Advantages `(B, E, T)` of mean 0 and variance 1 over the steps that each task has; 0 after the end."""
    count = mask.flatten(1).sum(1).clamp(min=1).view(-1, 1, 1)
    centred = advantages - torch.where(mask, advantages, 0).sum((1, 2), keepdim=True) / count
    centred = torch.where(mask, centred, 0)
    deviation = (centred.square().sum((1, 2), keepdim=True) / count).sqrt()
    return centred / (deviation + 1e-8)
