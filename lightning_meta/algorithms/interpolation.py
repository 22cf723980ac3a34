"""Reptile's meta-gradient."""

from collections.abc import Hashable
from dataclasses import dataclass
from typing import ClassVar

import torch

from lightning_meta.algorithms.base import Outcome
from lightning_meta.algorithms.gradient_based import GradientBased
from lightning_meta.functional.gradients import task_surrogates
from lightning_meta.functional.problem import Problem
from lightning_meta.task import map_tensors


@dataclass(frozen=True)
class Interpolation:
    r"""How far the inner loop leads: :math:`\theta - \phi_b`, with no derivative of the inner loop and no query set.

    Paper: Nichol, Achiam, Schulman 2018, arXiv:1803.02999.
    """

    objective: ClassVar[str] = "support_loss"

    def compile_key(self, outer_step: int) -> Hashable | None:
        """Nothing besides the inner loop's."""
        return ()

    def __call__(self, algorithm: GradientBased, problem: Problem) -> Outcome:
        """Adapt to the support sets; how far that leads from the initial parameters is the meta-gradient."""
        adapted = algorithm.adapt(problem, algorithm.inner_steps, order=0, training=True)
        support = adapted.support
        with torch.no_grad():
            predictions, _ = problem.predict(adapted.params, adapted.buffers, support, adapted.steps)
            losses = problem.inner_losses(predictions, support.targets, mask=support.mask)
            metrics = problem.metrics("support", predictions, support)
        initial, *_ = algorithm.initial(problem, trainable=True)
        ways = {name: initial[name] - param for name, param in adapted.params.items()}
        carried = map_tensors(torch.detach, adapted.state) if algorithm.carries else ()
        return Outcome(task_surrogates(losses, initial, ways), metrics, adapted.inner_losses, carried)
