"""Reptile."""

from collections.abc import Hashable
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from lightning_meta.functional.learner import Learner, Params
from lightning_meta.functional.meta_gradient import task_surrogates
from lightning_meta.functional.normalization import batch_normalized_layers
from lightning_meta.inner import Adam, InnerOptimizer
from lightning_meta.modules.adapting import Adapted
from lightning_meta.modules.checks import check_meta_parameters
from lightning_meta.modules.gradient_based import GradientBasedModule
from lightning_meta.modules.outcome import Outcome
from lightning_meta.modules.training import OptimizerCallable
from lightning_meta.randomness import uniforms
from lightning_meta.task import Examples, Task, map_tensors, tensors_of


class ReptileModule(GradientBasedModule):
    r"""Moves the initial parameters towards those that each task ends in, with no second derivatives and no query set.

    .. math:: \theta \leftarrow \theta + \epsilon \frac{1}{B} \sum_b (\phi_b - \theta),

    where φ_b is θ after `inner_steps` steps of the inner optimizer on task b's support set. As a meta-gradient that is
    :math:`\theta - \frac{1}{B} \sum_b \phi_b`, for any outer optimizer; plain gradient descent at the rate ε is the
    interpolation above. A schedule anneals it: `LinearLR` from 1 to 0 as published.

    Training tasks may have more support examples than those evaluated: set the data module's `k_shot` and
    `val_k_shot`. Training does not use query sets. What `adapt_only` leaves out stays as it is initialized. `adapt_to`
    freezes batch normalization to the support set, whichever way evaluation has it.

    Paper: Nichol, Achiam, Schulman 2018, arXiv:1803.02999 (batched version, algorithm 2).

    Args:
        network: Called as `network(inputs)`.
        inner_optimizer: `Adam(lr=0.001, betas=(0, 0.999))` if `None`, as published.
        inner_steps: Inner steps in meta-training.
        val_inner_steps: Inner steps in evaluation; `inner_steps` if `None`.
        inner_batch_size: Support examples in an inner step of meta-training, drawn without replacement until all have
            had their turn, anew in each of the Trainer's outer steps; the whole support set if `None`.
        val_inner_batch_size: The same in evaluation.
        carry_inner_state: Start every task from one state of the inner optimizer, and keep the mean of the states that
            tasks end in, over all tasks and devices. (The published code carries one state on from task to task, which
            run one after another there.) Otherwise each task starts with a fresh state.
        transductive: Whether batch normalization in evaluation uses the statistics of the query batch. Otherwise each
            query example joins the support set by itself, and the statistics are those of both (as published).
        optimizer: Makes the outer optimizer.
        kwargs: See `MetaModule`: `adapt_only`, `loss`, `lr_scheduler`, `gradient_clip_val`, `task_parallel`.

    Raises:
        ValueError: An argument does not make sense, or the inner optimizer has meta-parameters of its own: Reptile's
            meta-gradient has no part for them.

    Example:
        >>> import torch
        >>> from lightning_meta import Examples, Task
        >>> module = ReptileModule(nn.Linear(4, 3), inner_steps=3)
        >>> inputs, targets = torch.randn(2, 6, 4), torch.tensor([0, 0, 1, 1, 2, 2]).expand(2, 6)
        >>> module.meta_loss(Task(Examples(inputs, targets), Examples(inputs, targets))).backward()
        >>> module.network.weight.grad.shape
        torch.Size([3, 4])
    """

    objective = "support_loss"
    without_query_batch = "support set with one query example"

    def __init__(
        self,
        network: nn.Module,
        inner_optimizer: InnerOptimizer | None = None,
        inner_steps: int = 5,
        val_inner_steps: int | None = None,
        inner_batch_size: int | None = None,
        val_inner_batch_size: int | None = None,
        carry_inner_state: bool = False,
        transductive: bool = True,
        optimizer: OptimizerCallable = lambda params: torch.optim.SGD(params, lr=1.0),
        **kwargs: Any,
    ) -> None:
        if inner_optimizer is None:
            inner_optimizer = Adam(lr=0.001, betas=(0.0, 0.999))
        for name, size in {"inner_batch_size": inner_batch_size, "val_inner_batch_size": val_inner_batch_size}.items():
            if size is not None and size < 1:
                raise ValueError(f"{name} must be at least 1, or None for the whole support set; got {size}.")
        super().__init__(
            network, inner_optimizer, inner_steps, val_inner_steps, transductive, optimizer=optimizer, **kwargs
        )
        check_meta_parameters(type(self).__name__, self.inner_optimizer)
        self.inner_batch_size = inner_batch_size
        self.val_inner_batch_size = val_inner_batch_size
        self.carry_inner_state = carry_inner_state
        self.carried_state: Any = None
        """The state of the inner optimizer from which tasks start, if it is carried."""

    def learn(self, learner: Learner, tasks: Task) -> Outcome:
        """Adapt to the support sets; how far that leads from the initial parameters is the meta-gradient."""
        batches = partial(_mini_batch, size=self.inner_batch_size, draw=self.outer_step)
        adapted = self.adapt(learner, tasks, self.inner_steps, order=0, inner_batch=batches)
        with torch.no_grad():
            support = self.support_data(tasks, adapted.params, adapted.steps)
            predictions = learner.predict(adapted.params, dict(adapted.buffers), support.inputs)
            losses = self.task_losses(learner, predictions, support.targets)
            metrics = {f"support_{name}": v for name, v in self.task_metrics(predictions, support.targets).items()}
        initial = self.initial_params(learner, tasks, trainable=True)
        ways = {name: initial[name] - param for name, param in adapted.params.items()}
        carried = map_tensors(torch.detach, adapted.state) if self.carry_inner_state else ()
        return Outcome(task_surrogates(losses, initial, ways), metrics, adapted.inner_losses, carried)

    def compile_key(self) -> Hashable | None:
        """Mini-batches and carried states are others in every outer step, which is not compiled then."""
        changes = self.inner_batch_size is not None or self.carry_inner_state
        return None if changes else super().compile_key()

    def inner_batch(self, support: Examples, step: int) -> Examples:
        """The mini-batch of an inner step in evaluation."""
        return _mini_batch(support, step, size=self.val_inner_batch_size, draw=0)

    # The inner optimizer's state.

    def initial_state(self, learner: Learner, params: Params) -> Any:
        """The carried state, if there is one, for each task."""
        fresh = super().initial_state(learner, params)
        if self.carried_state is None:
            return fresh
        return map_tensors(lambda new, kept: kept.to(new).expand_as(new), fresh, self.carried_state)

    def carry(self, mean: Any) -> None:
        """Keep the mean state of the inner optimizer."""
        if self.carry_inner_state:
            self.carried_state = mean

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save the carried state, too."""
        super().on_save_checkpoint(checkpoint)
        if self.carried_state is not None:
            checkpoint["inner_state"] = map_tensors(lambda t: t.detach().cpu(), self.carried_state)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the carried state."""
        super().on_load_checkpoint(checkpoint)
        if not self.carry_inner_state:
            return
        own = dict(self.network.named_parameters())
        fresh = self.inner_optimizer.init({name: own[name].detach() for name in self.adapted_names})
        saved = checkpoint.get("inner_state")
        if saved is not None and [t.shape for t in tensors_of(saved)] != [t.shape for t in tensors_of(fresh)]:
            rank_zero_warn("The checkpoint's inner state is that of another inner optimizer; a fresh one is used.")
            saved = None
        self.carried_state = saved

    # Evaluation.

    def query_predictions(
        self, learner: Learner, tasks: Task, adapted: Adapted, query: Examples, transductive: bool
    ) -> Tensor:
        """Predictions for query sets; if not transductive, of each example in one batch with the support set."""
        if transductive or not batch_normalized_layers(self.network):
            return super().query_predictions(learner, tasks, adapted, query, transductive=True)
        support = self.support_data(tasks, adapted.params, adapted.steps)
        predictions = []
        for i in range(query.targets.shape[1]):
            joined = map_tensors(lambda s, q, i=i: torch.cat([s, q[:, i : i + 1]], 1), support.inputs, query.inputs)
            of_all = learner.predict(adapted.params, dict(adapted.buffers), joined)
            predictions.append(map_tensors(lambda t: t[:, -1:], of_all))
        return cast(Tensor, map_tensors(lambda *parts: torch.cat(parts, 1), *predictions))


def _mini_batch(support: Examples, step: int, *, size: int | None, draw: int) -> Examples:
    """Mini-batch number `step` of support sets `(B, examples, ...)`.

    The examples are put in a random order again and again, and cut into mini-batches; `draw` says in which orders. They
    are the same for all tasks of a meta-batch, and so on any number of devices: tasks have other classes and drawings
    at the same places, but a class that a mini-batch has little of is the same class number in all of them.
    """
    count = support.targets.shape[1]
    if size is None or size >= count:
        return support
    places = np.arange(step * size, (step + 1) * size)
    passes = np.unique(places // count)
    orders = np.argsort(uniforms(draw, "mini_batches", passes.tolist(), count), axis=1)
    chosen = torch.from_numpy(np.concatenate(list(orders))[places - passes[0] * count]).to(support.targets.device)
    return map_tensors(lambda t: t.index_select(1, chosen), support)
