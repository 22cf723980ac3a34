"""Adaptation by an inner loop of gradient steps."""

from collections.abc import Callable, Hashable
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lightning_meta.functional.inner_loop import Order, adapt
from lightning_meta.functional.learner import Learner, Params
from lightning_meta.inner import SGD, InnerOptimizer
from lightning_meta.modules.base import MetaModule
from lightning_meta.modules.checks import check_not_in_place, check_steps, check_updated
from lightning_meta.task import Examples, Task, number_of_tasks


class Adapted(NamedTuple):
    """What the inner loop leaves of a batch of tasks.

    Attributes:
        params: Each task's parameters.
        buffers: Each task's buffers.
        inner_losses: The support losses before each step, `(B, steps)`.
        state: The inner optimizer's state.
    """

    params: Params
    buffers: Params
    inner_losses: Tensor
    state: Any

    @property
    def steps(self) -> int:
        """How many inner steps were made."""
        return self.inner_losses.shape[1]


class AdaptingModule(MetaModule):
    """A module that adapts its network's parameters by an inner loop, with hooks for what algorithms do differently.

    See `GradientBasedModule` for the arguments, and for what is raised.
    """

    def __init__(
        self,
        network: nn.Module,
        inner_optimizer: InnerOptimizer | None = None,
        inner_steps: int = 1,
        val_inner_steps: int | None = None,
        transductive: bool = True,
        inner_optimizer_lr: float | None = None,
        checkpoint_inner_steps: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(network, **kwargs)
        if inner_optimizer is not None and not isinstance(inner_optimizer, InnerOptimizer):
            raise TypeError(
                f"inner_optimizer must be an object of a lightning_meta.InnerOptimizer, such as SGD(lr=0.1), got "
                f"{inner_optimizer!r}. (torch's optimizers write in place and cannot be differentiated through.)"
            )
        self.inner_optimizer = SGD() if inner_optimizer is None else inner_optimizer
        self.inner_steps = check_steps("inner_steps", inner_steps)
        self.val_inner_steps = (
            inner_steps if val_inner_steps is None else check_steps("val_inner_steps", val_inner_steps)
        )
        self.transductive = transductive
        self.checkpoint_inner_steps = checkpoint_inner_steps
        own = dict(self.network.named_parameters())
        self.inner_optimizer.build({name: own[name].detach() for name in self.adapted_names}, inner_steps)
        if inner_optimizer_lr is not None and not (inner_optimizer_lr >= 0 and list(self.inner_optimizer.parameters())):
            raise ValueError(
                f"inner_optimizer_lr={inner_optimizer_lr} is the outer learning rate, 0 or more, of what "
                f"{self.inner_optimizer} learns; if that is nothing, leave it out (or give null, in YAML and on the "
                "command line)."
            )
        self.inner_optimizer_lr = inner_optimizer_lr

    def outer_parameters(self) -> list[Any]:
        """The trainable parameters; those of the inner optimizer in a group with their own rate, if they have one."""
        if self.inner_optimizer_lr is None:
            return super().outer_parameters()
        inner = set(self.inner_optimizer.parameters())
        groups: list[dict[str, Any]] = [
            {"params": [p for p in super().outer_parameters() if p not in inner]},
            {"params": [p for p in super().outer_parameters() if p in inner], "lr": self.inner_optimizer_lr},
        ]
        return [group for group in groups if group["params"]]

    def objects(self) -> dict[str, str]:
        """Describe the inner optimizer, too."""
        settings = f"{type(self.inner_optimizer).__name__}({self.inner_optimizer.extra_repr()})"
        return super().objects() | {"inner_optimizer": settings}

    def compile_key(self) -> Hashable | None:
        """It depends on the number of inner steps, too."""
        key = super().compile_key()
        return None if key is None else (key, self.inner_steps)

    # Where a task's data is asked for. In reinforcement learning it is collected here, with the adapted parameters.

    def support_data(self, tasks: Task, params: Params, step: int) -> Examples:
        """The examples for inner step `step`, given the parameters before it."""
        return tasks.support

    def query_data(self, tasks: Task, params: Params) -> Examples:
        """The examples on which adapted parameters are judged."""
        return tasks.query

    # What an algorithm may change about the inner loop.

    @property
    def order(self) -> Order:
        """The order of the meta-gradient in meta-training: 2, or 1 with inner gradients taken for constants."""
        return 2

    def inner_batch(self, support: Examples, step: int) -> Examples:
        """What of the support sets `(B, examples, ...)` an inner step sees: all of it."""
        return support

    def initial_params(self, learner: Learner, tasks: Task, *, trainable: bool) -> Params:
        """Each task's parameters before the first step; differentiable in the network's own if `trainable`."""
        return learner.initial_params(number_of_tasks(tasks), trainable=trainable)

    def initial_state(self, learner: Learner, params: Params) -> Any:
        """Each task's state of the inner optimizer before the first step."""
        return self._over_tasks(learner)(self.inner_optimizer.init)(params)

    def _over_tasks(self, learner: Learner) -> Callable[..., Callable[..., Any]]:
        """What makes the inner optimizer's methods, of one task, work on all: nothing, if they do so as they are."""
        is_elementwise = getattr(self.inner_optimizer.update, "elementwise", False)
        return (lambda function: function) if is_elementwise else learner.over_tasks

    def params_at(self, params: Params, step: int) -> Params:
        """The parameters that the network runs with, once `step` inner steps have led to `params`."""
        return params

    def inner_objective(self, losses: Tensor, params: Params, initial: Params) -> Tensor:
        """What the inner loop descends, `(B,)`, given the tasks' support losses `(B,)`."""
        return losses

    def adapt(
        self,
        learner: Learner,
        tasks: Task,
        steps: int,
        *,
        order: Order,
        on_step: Callable[[int, Params, Any], None] | None = None,
        inner_batch: Callable[[Examples, int], Examples] | None = None,
    ) -> Adapted:
        """Run the inner loop on a batch of tasks: see `lightning_meta.functional.adapt`.

        `inner_batch` takes the place of the method of that name.
        """
        inner_batch = inner_batch or self.inner_batch
        count = number_of_tasks(tasks)
        initial = self.initial_params(learner, tasks, trainable=order > 0)
        buffers = learner.initial_buffers(count)

        before: dict[int, Params] = {}  # the buffers before each step, for a step that is computed again

        def objective(params: Params, step: int) -> Tensor:
            is_again = step in before
            before.setdefault(step, dict(buffers))
            current = dict(before[step]) if is_again else buffers
            support = inner_batch(self.support_data(tasks, params, step), step)
            with learner.twice_differentiable() if order == 2 else nullcontext():
                predictions = learner.predict(self.params_at(params, step), current, support.inputs)
                losses = self.task_losses(learner, predictions, support.targets)
                return self.inner_objective(losses, params, initial)

        def update(grads: Params, state: Any, params: Params, *, loss: Tensor, step: int) -> tuple[Params, Any]:
            def of_one_task(grads: Params, state: Any, params: Params, loss: Tensor) -> tuple[Params, Any]:
                result = self.inner_optimizer.update(grads, state, params, loss=loss, step=step)
                check_updated(self.inner_optimizer, params, result)
                return result

            versions = [param._version for param in params.values()]
            with torch.autocast(loss.device.type, enabled=False):
                new: tuple[Params, Any] = self._over_tasks(learner)(of_one_task)(grads, state, params, loss)
            check_not_in_place(self.inner_optimizer, versions, params)
            return new

        state = self.initial_state(learner, initial)
        scale = self.inner_loss_scale
        params, state, losses = adapt(
            objective, initial, state, update, steps,
            order=order, scale=scale, recompute=self.checkpoint_inner_steps, on_step=on_step,
        )  # fmt: skip
        inner_losses = torch.stack(losses, 1) if losses else torch.empty(count, 0, device=tasks.support.targets.device)
        return Adapted(params, buffers, inner_losses, state)
