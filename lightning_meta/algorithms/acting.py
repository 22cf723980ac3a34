"""Acting with adapted parameters, where data depends on them."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _NormBase

from lightning_meta.algorithms.base import Algorithm
from lightning_meta.algorithms.gradient_based import GradientBased
from lightning_meta.errors import ConfigurationError
from lightning_meta.functional.inner_loop import BatchUpdate, InnerObjective, adapt
from lightning_meta.functional.learner import ALL_TASKS
from lightning_meta.functional.masks import filled
from lightning_meta.functional.network import Params, take_written
from lightning_meta.functional.problem import Problem
from lightning_meta.functional.task_map import TaskMap, joined
from lightning_meta.task import Examples, Task, first_tensor


class Actor:
    """Predicts for all tasks of a batch at once, each with its own parameters, and adapts them step by step.

    Nothing is differentiated through it. Tasks are run together, in chunks or by a loop, as in the outer steps.

    Args:
        algorithm: Makes the inner steps.
        task_map: Runs the tasks.
        problem: Makes the problem of the batch; called when it is first needed.
        training: Whether inner steps are counted as in meta-training, or as in evaluation.
    """

    def __init__(
        self, algorithm: Algorithm, task_map: TaskMap, problem: Callable[[], Problem], *, training: bool
    ) -> None:
        self.algorithm, self.task_map, self.training = algorithm, task_map, training
        self.steps = 0
        """How many inner steps the algorithm makes."""
        if isinstance(algorithm, GradientBased):
            self.steps = algorithm.inner_steps if training else algorithm.val_inner_steps
        self.step = 0
        """How many inner steps have been made here."""
        self._make_problem = problem
        self._problem: Problem | None = None
        self._learned: tuple[Params, Params, Any, Params] = ({}, {}, (), {})  # with the parameters at the start
        self._direct: Callable[[Any], Any] | None = None

    def __call__(self, inputs: Any) -> Any:
        """Predictions `(B, examples, ...)` for inputs `(B, examples, ...)`, by the parameters as they are now."""

        def run(part: Problem, params: Params, buffers: Params, state: Any, initial: Params, inputs: Any) -> Any:
            return part.learner.predict(part.at_step(params, self.step), buffers, inputs)

        with torch.no_grad():
            if self._direct is not None:
                return self._direct(inputs)
            predictions, buffers = self._over_tasks(run, inputs)
            params, _, state, initial = self._learned
            self._learned = *take_written(params, buffers), state, initial
            self._direct = self._without_detours()
        return predictions

    def _without_detours(self) -> Callable[[Any], Any] | None:
        """Prediction by plain `torch.vmap`, for many calls with the same parameters; `None` where it takes more.

        Nothing is to be differentiated, so the kernels for that are not needed; without buffers and normalization
        layers nothing else is either. It is asked for after a first call, which has shown that `vmap` can run it.
        """
        problem, task_map = self._problem, self.task_map
        layers = list(task_map.network.modules())
        special = any(isinstance(layer, _NormBase) for layer in layers) or task_map.isolation.writes
        if problem is None or special or next(task_map.network.buffers(), None) is not None:
            return None
        if not 1 < task_map.together(problem.tasks) == problem.count:
            return None
        params = {n: p.contiguous() for n, p in problem.at_step(self._learned[0], self.step).items()}

        def of_one_task(params: Params, inputs: Any) -> Any:
            return torch.func.functional_call(task_map.network, params, (inputs,))

        return partial(ALL_TASKS(of_one_task), params)

    def adapt(self, examples: Examples) -> Tensor:
        """Make one inner step on these examples, `(B, examples, ...)`.

        Returns:
            The losses before the step, `(B,)`.

        Raises:
            ConfigurationError: The algorithm has no inner steps.
        """
        algorithm = self.algorithm
        if not isinstance(algorithm, GradientBased):
            raise ConfigurationError(f"{type(algorithm).__name__} has no inner steps, so there is nothing to adapt.")

        def run(part: Problem, params: Params, buffers: Params, state: Any, initial: Params, given: Any) -> Any:
            part = replace(part, tasks=Task(given, given))
            objective = InnerObjective(part, initial, proximal=algorithm.proximal, given=filled(given))
            update = BatchUpdate(algorithm.inner_optimizer, part.learner.over_tasks)
            params = {name: param.detach().requires_grad_() for name, param in params.items()}
            *learned, losses = adapt(
                objective, params, buffers, state, update, 1, order=0, scale=part.scale, first=self.step
            )
            return (*learned, initial), losses[0]

        with torch.enable_grad():
            self._learned, losses = self._over_tasks(run, examples)
        self.step += 1
        self._direct = None
        found: Tensor = losses
        return found

    def _over_tasks(self, function: Callable[..., Any], given: Any) -> Any:
        """Call a function of parameters, buffers, state, initial parameters and what is given on all tasks."""
        if self._problem is None:
            self._problem = self._make_problem()
            with torch.enable_grad():  # a start may be made of gradients
                self._learned = joined(list(self.task_map(self._start, self._problem)))
        problem = self._problem

        def run(part: Problem) -> Any:
            return function(part, *part.tasks.support.targets[1])

        # All that belongs to tasks is cut into chunks together.
        numbers = torch.arange(problem.count, device=first_tensor(problem.tasks.support.inputs).device)
        packed = Examples(problem.tasks.support.inputs, (numbers, (*self._learned, given)))
        tasks = Task(packed, Examples(problem.tasks.query.inputs, ()))
        return joined(list(self.task_map(run, replace(problem, tasks=tasks))))

    def _start(self, part: Problem) -> tuple[Params, Params, Any, Params]:
        if not isinstance(self.algorithm, GradientBased):
            return {}, part.initial()[1], (), {}
        params, buffers, state = self.algorithm.initial(part, trainable=False)
        return params, buffers, state, params
