"""A body that no inner step changes: its features of the support set are computed once for all of them."""

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from lightning_meta.functional.network import Params, strip
from lightning_meta.functional.problem import Problem
from lightning_meta.models.body_and_head import BodyAndHead
from lightning_meta.task import Examples


def has_fixed_body(problem: Problem) -> bool:
    """Whether a network is its head on its body, and tasks adapt nothing of the body."""
    network, names = problem.learner.network, problem.learner.names
    if not isinstance(network, BodyAndHead) or type(network).forward is not BodyAndHead.forward:
        return False
    if network._forward_hooks or network._forward_pre_hooks or "forward" in vars(network) or problem.step_params:
        return False
    shared = set(network.body.parameters()) & set(network.head.parameters())
    return not shared and all(name.startswith("head.") for name in names)


@dataclass
class FixedBody:
    """Support losses as those of `Problem`, for inner steps that change the head only.

    Paper: Raghu et al. 2020, arXiv:1909.09157 (ANIL).

    Attributes:
        problem: The tasks, of which `has_fixed_body` is true.
        differentiable: Whether the losses are differentiated in the body.
    """

    problem: Problem
    differentiable: bool
    _inputs: Any = field(default=None, init=False)
    _features: Any = field(default=None, init=False)

    def support_losses(
        self, params: Params, buffers: Params, examples: Examples, step: int, *, twice: bool = False
    ) -> tuple[Tensor, Params]:
        """The loss of each task's parameters on support examples, `(B,)`, and the buffers: see `Problem`."""
        learner = self.problem.learner
        if examples.inputs is not self._inputs:
            own = {short: buffers[name] for short, name in strip(buffers, "body").items()}
            with torch.set_grad_enabled(self.differentiable):
                found, own = learner.part("body").predict({}, own, examples.inputs, examples.mask)
            self._inputs, self._features = examples.inputs, found
            buffers = buffers | {f"body.{name}": buffer for name, buffer in own.items()}
        head = replace(self.problem, learner=learner.part("head"))
        of_head = {short: params[name] for short, name in strip(params, "head").items()}
        own = {short: buffers[name] for short, name in strip(buffers, "head").items()}
        losses, own = head.support_losses(of_head, own, examples._replace(inputs=self._features), step, twice=twice)
        return losses, buffers | {f"head.{name}": buffer for name, buffer in own.items()}
