"""Prototypes: one point for each class, the mean of its support examples' features."""

import torch
import torch.nn.functional as F
from torch import Tensor


def prototypes(features: Tensor, targets: Tensor, n_way: int, mask: Tensor | None = None) -> Tensor:
    r"""The mean of each class's features, :math:`p_c = \frac{1}{K}\sum_{y_i = c} f(x_i)`.

    Paper: Snell, Swersky, Zemel 2017, arXiv:1703.05175.

    Args:
        features: `(..., examples, features)`; the leading dimensions are those of a batch of tasks.
        targets: Class numbers from 0, `(..., examples)`.
        n_way: The number of classes `N`.
        mask: Which examples there are, `(..., examples)`; all if `None`.

    Returns:
        `(..., N, features)`, in at least float32, also under autocast; zeros for a class without an example.
    """
    features = features.to(torch.promote_types(features.dtype, torch.float32))
    members = F.one_hot(targets, n_way).to(features.dtype)
    if mask is not None:
        members = members * mask.unsqueeze(-1)
    with torch.autocast(features.device.type, enabled=False):
        return (members.transpose(-1, -2) @ features) / members.sum(-2).clamp(min=1).unsqueeze(-1)


def prototypical_head(prototypes: Tensor) -> tuple[Tensor, Tensor]:
    r"""The linear layer whose softmax is that over negative squared distances to the prototypes.

    .. math:: -\|x - p_c\|^2 = 2 p_c \cdot x - \|p_c\|^2 - \|x\|^2,

    and the last term is the same for all classes. Paper: Snell, Swersky, Zemel 2017, section 2.5; as the first
    parameters of an inner loop: Triantafillou et al. 2020, arXiv:1903.03096 (Proto-MAML).

    Args:
        prototypes: `(..., N, features)`.

    Returns:
        Weight `(..., N, features)` and bias `(..., N)`.
    """
    return 2 * prototypes, -prototypes.square().sum(-1)
