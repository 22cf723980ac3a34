"""The loss of a policy: minus its return, with the policy gradient for a gradient."""

from typing import Any, Literal

import torch
from torch import Tensor

from lightning_meta.errors import ConfigurationError
from lightning_meta.rl.trajectories import Experience

Kind = Literal["ratio", "score", "dice"]


class PolicyGradient:
    r"""Minus the return of the episodes, with minus the policy gradient for its gradient.

    Its *value* is minus the mean return of the episodes at hand, so that it says the same in logs, for a schedule and
    to the gates of Meta-LSTM, whatever its gradient is made of. Its *gradient* is that of one of

    .. math::
        \text{ratio}&: -\frac{1}{n} \sum_t \frac{\pi(a_t)}{\pi_{old}(a_t)} A_t \\
        \text{score}&: -\frac{1}{n} \sum_t A_t \log \pi(a_t) \\
        \text{dice}&: -\frac{1}{n} \sum_t (m_t - m_{t-1}) A_t, \qquad
        m_t = \exp\Big(\sum_{t' \le t} \log \pi(a_{t'}) - \bot \log \pi(a_{t'})\Big)

    over the n steps that there were in all episodes of a task, with advantages A. The first derivatives of the three
    are the same where the policy is the one that acted. Second derivatives, which MAML needs, are not. For an episode
    of one step the expected one of "ratio" and of "dice" is that of the expected return; the one of "score", which
    MAML's published code uses, is not. Of longer episodes "dice" has all terms, at a high variance, and "ratio" leaves
    out those of one step's action with another's. "ratio" alone stays right where the policy has moved since it acted:
    with several outer steps on each batch use it.

    Papers: Finn, Abbeel, Levine 2017, arXiv:1703.03400 ("score"); Rothfuss et al. 2019, arXiv:1810.06784 (ProMP:
    "ratio"); Foerster et al. 2018, arXiv:1802.05098, and Farquhar et al. 2019, arXiv:1909.10549 ("dice", with
    advantages); Schulman et al. 2017, arXiv:1707.06347 (PPO: the clipped ratio).

    Args:
        kind: What the gradient is made of.
        clip: ε of PPO: no gradient leads the ratio further than 1 ± ε in the direction of the advantage.
        entropy: How much the mean entropy of the policy is worth, in the unit of advantages; in the gradient alone.

    Raises:
        ConfigurationError: `kind` is none of these, or `clip` or `entropy` does not make sense.

    Example:
        >>> from lightning_meta.rl import CategoricalActions
        >>> logits = torch.zeros(1, 1, 2, requires_grad=True)  # one episode of one step, two choices
        >>> done = Experience(torch.tensor([[1]]), torch.tensor([[0.5]]).log(), torch.tensor([[2.0]]),
        ...                   torch.tensor([[True]]), torch.tensor([3.0]), torch.tensor([1.0]))
        >>> loss = PolicyGradient()(CategoricalActions(logits), done)
        >>> loss.backward()
        >>> loss.item(), logits.grad.flatten().tolist()
        (-3.0, [1.0, -1.0])
    """

    def __init__(self, kind: Kind = "ratio", clip: float | None = None, entropy: float = 0.0) -> None:
        if kind not in ("ratio", "score", "dice"):
            raise ConfigurationError(f"kind must be 'ratio', 'score' or 'dice', got {kind!r}.")
        if clip is not None and (kind != "ratio" or not clip > 0):
            raise ConfigurationError(
                f"clip={clip} must be above 0, and of kind='ratio', since it is the ratio that is clipped; kind is "
                f"{kind!r}."
            )
        if not entropy >= 0:
            raise ConfigurationError(f"entropy must be 0 or more, got {entropy}.")
        self.kind, self.clip, self.entropy = kind, clip, entropy

    def __call__(self, predictions: Any, targets: Experience) -> Tensor:
        """The loss of one task.

        Args:
            predictions: How the policy would act in each step, `(E, T, ...)`: `GaussianActions`, `CategoricalActions`,
                or another `Actions`.
            targets: What was done.
        """
        mask, count = targets.mask, targets.mask.sum().clamp(min=1)
        log = torch.where(mask, predictions.log_probabilities(targets.actions), 0)
        gains = torch.where(mask, self._gains(log, targets), 0).sum() / count
        if self.entropy:
            gains = gains + self.entropy * torch.where(mask, predictions.entropies(), 0).sum() / count
        return -targets.returns.mean() - (gains - gains.detach())

    def _gains(self, log: Tensor, targets: Experience) -> Tensor:
        """What is to be climbed of each step, `(E, T)`."""
        advantages = targets.advantages
        if self.kind == "score":
            return log * advantages
        if self.kind == "dice":
            change = log - log.detach()
            until = change.cumsum(-1)
            return (until.exp() - (until - change).exp()) * advantages
        ratio = torch.where(targets.mask, log - targets.log_probabilities, 0).exp()
        if self.clip is None:
            return ratio * advantages
        return torch.minimum(ratio * advantages, ratio.clamp(1 - self.clip, 1 + self.clip) * advantages)

    @staticmethod
    def check_outer_steps(outer_steps_per_batch: int, *losses: Any) -> None:
        """Refuse several outer steps on a batch with a loss that is wrong once the policy has moved.

        Raises:
            ConfigurationError: One of the losses is of another kind than `"ratio"`.
        """
        for loss in losses:
            if outer_steps_per_batch > 1 and isinstance(loss, PolicyGradient) and loss.kind != "ratio":
                raise ConfigurationError(
                    f"outer_steps_per_batch={outer_steps_per_batch}, but {loss} is right only for the policy that "
                    "acted, and each outer step moves it. Use kind='ratio', or one outer step."
                )

    def __repr__(self) -> str:
        return f"PolicyGradient(kind={self.kind!r}, clip={self.clip}, entropy={self.entropy})"
