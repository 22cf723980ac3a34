"""What tasks start from, where that is not the network's own parameters."""

from typing import Protocol

import torch

from lightning_meta.functional.losses import check_support_classes
from lightning_meta.functional.network import Params, strip
from lightning_meta.functional.problem import Problem
from lightning_meta.functional.prototypes import prototypes, prototypical_head


class Start(Protocol):
    """Replaces some of the parameters that tasks start from."""

    def __call__(self, problem: Problem, params: Params, *, trainable: bool) -> Params:
        """The initial parameters of each task.

        Args:
            problem: The tasks.
            params: The network's own, one copy for each task, `(B, *shape)`.
            trainable: Whether they are to be differentiable in what is meta-learned; otherwise they are leaves.
        """
        ...


class PrototypeStart:
    r"""The network's head starts as the linear layer that classifies by the distances to the prototypes.

    .. math:: w_c = 2 p_c, \qquad b_c = -\|p_c\|^2

    It has as many outputs as the tasks have classes. Paper: Triantafillou et al. 2020, arXiv:1903.03096 (Proto-MAML).
    """

    def __call__(self, problem: Problem, params: Params, *, trainable: bool) -> Params:
        """The network's parameters, with the head that the prototypes give."""
        with torch.set_grad_enabled(trainable):
            support = problem.support(params, 0)
            n_way = problem.ways or max(check_support_classes(problem.tasks), problem.classes)
            body = problem.learner.part("body")
            at_start = problem.at_step(params, 0)
            own = {short: at_start[name] for short, name in strip(at_start, "body").items()}
            _, buffers = problem.initial()
            own_buffers = {short: buffers[name] for short, name in strip(buffers, "body").items()}
            features, _ = body.predict(own, own_buffers, support.inputs, support.mask)
            weight, bias = prototypical_head(prototypes(features, support.targets, n_way, support.mask))
            weight, bias = weight.to(params["head.weight"]), bias.to(params["head.bias"])
        if not weight.requires_grad:  # of a frozen body, too: the head is adapted all the same
            weight, bias = weight.requires_grad_(), bias.requires_grad_()
        return params | {"head.weight": weight, "head.bias": bias}


class ZeroStart:
    """All parameters that the inner loop changes start at zero, for every task: the context parameters of CAVIA.

    Paper: Zintgraf, Shiarlis, Kurin, Hofmann, Whiteson 2019, arXiv:1810.03642.
    """

    def __call__(self, problem: Problem, params: Params, *, trainable: bool) -> Params:
        """Zeros in the place of the network's own."""
        return {name: torch.zeros_like(param).requires_grad_() for name, param in params.items()}
