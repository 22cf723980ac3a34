"""Prototypical networks."""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lightning_meta.functional.learner import Learner
from lightning_meta.functional.normalization import batch_normalized_layers
from lightning_meta.functional.prototypes import prototypes, prototypical_head
from lightning_meta.modules.base import MetaModule
from lightning_meta.modules.checks import check_support_classes
from lightning_meta.modules.deployment import adapted_network
from lightning_meta.modules.outcome import Outcome
from lightning_meta.task import Task, map_tensors, number_of_tasks


class ProtoNetModule(MetaModule):
    r"""Learns an embedding in which examples lie near the prototype of their class.

    .. math::
        p_c = \frac{1}{K} \sum_{y_i = c} f(x_i), \qquad
        \log P(c \mid x) = -\|f(x) - p_c\|^2 - \log \sum_{c'} e^{-\|f(x) - p_{c'}\|^2}

    There is no inner loop and no head, so tasks may have any number of classes, and more in training than in
    evaluation, as in the paper. Paper: Snell, Swersky, Zemel 2017, arXiv:1703.05175.

    Args:
        network: The embedding f: its submodule `body` if it has one (as the networks of this package do), otherwise the
            whole network. It gives `(examples, features)`.
        transductive: Whether batch normalization in evaluation uses the statistics of a task's support and query
            examples together, as in training; otherwise those of the support set.
        kwargs: See `MetaModule`: `loss`, `optimizer`, `lr_scheduler`, `gradient_clip_val`, `task_parallel`.

    Raises:
        ValueError: An argument does not make sense; in use, a class without a support example.

    Example:
        >>> from lightning_meta import Examples, Task
        >>> module = ProtoNetModule(nn.Linear(4, 8))
        >>> inputs, targets = torch.randn(2, 6, 4), torch.tensor([0, 0, 1, 1, 2, 2]).expand(2, 6)
        >>> module.meta_loss(Task(Examples(inputs, targets), Examples(inputs, targets))).backward()
        >>> module.adapt_to(inputs[0], targets[0])(inputs[0, :1]).shape
        torch.Size([1, 3])
    """

    def __init__(self, network: nn.Module, transductive: bool = True, **kwargs: Any) -> None:
        if kwargs.pop("adapt_only", None) is not None:
            raise ValueError("ProtoNetModule has no inner loop, so adapt_only has no meaning. Leave it out.")
        super().__init__(network, **kwargs)
        self.transductive = transductive

    def select_adapted(self) -> tuple[str, ...]:
        """None: all tasks share all parameters."""
        return ()

    @property
    def embedding(self) -> nn.Module:
        """The network that embeds."""
        body = getattr(self.network, "body", None)
        return body if isinstance(body, nn.Module) else self.network

    def learn(self, learner: Learner, tasks: Task) -> Outcome:
        """The loss of the query sets, classified by the support sets' prototypes."""
        return self._judge(learner, tasks, transductive=True)

    def evaluate(self, learner: Learner, tasks: Task) -> Outcome:
        """The same, with nothing to differentiate."""
        with torch.no_grad():
            return self._judge(learner, tasks, self.transductive)

    def predict(self, learner: Learner, tasks: Task) -> Tensor:
        """Negative squared distances of the query sets to each prototype: `(B, queries, N)`."""
        with torch.no_grad():
            return self.logits(learner, tasks, self.transductive)

    def _judge(self, learner: Learner, tasks: Task, transductive: bool) -> Outcome:
        logits = self.logits(learner, tasks, transductive)
        losses = self.task_losses(learner, logits, tasks.query.targets)
        metrics = self.task_metrics(logits.detach(), tasks.query.targets)
        metrics = {f"query_{name}": value for name, value in metrics.items()}
        return Outcome(losses, metrics, losses.new_empty(number_of_tasks(tasks), 0))

    def logits(self, learner: Learner, tasks: Task, transductive: bool) -> Tensor:
        """Negative squared distances `(B, queries, N)`."""
        if self.embedding is not self.network:
            learner = learner.part("body")
        support, query = tasks
        buffers = learner.initial_buffers(number_of_tasks(tasks))
        if transductive or not batch_normalized_layers(learner.network):
            both = map_tensors(lambda s, q: torch.cat([s, q], 1), support.inputs, query.inputs)
            features = learner.predict({}, buffers, both)
            of_support, of_query = torch.tensor_split(features, [support.targets.shape[1]], 1)
        else:
            learner, buffers = learner.frozen_to({}, buffers, support.inputs)
            of_support = learner.predict({}, buffers, support.inputs)
            of_query = learner.predict({}, buffers, query.inputs)
        n_way = check_support_classes(support.targets)
        centers = learner.over_tasks(partial(prototypes, n_way=n_way))(of_support, support.targets)
        distances: Tensor = (of_query.unsqueeze(2) - centers.unsqueeze(1)).square().sum(-1)
        return -distances

    def adapt_to(self, inputs: Any, targets: Tensor, *, transductive: bool = False) -> nn.Module:
        """Make prototypes of one labelled support set and return a network to predict with.

        Args:
            inputs: Support inputs `(examples, ...)`, as the network takes them.
            targets: Their classes, numbered from 0, `(examples,)`.
            transductive: Normalize with the statistics of whatever batch is predicted. By default they are frozen to
                the support set.

        Returns:
            A copy of the embedding in evaluation mode and, as its `head`, the linear layer that classifies like the
            distances to the prototypes: logits `(examples, N)` that have the same softmax.

        Raises:
            ValueError: Inputs and targets differ in length, there are none, or a class below the largest is missing.
        """
        body = adapted_network(
            self.embedding, (), lambda learner, _: ({}, learner.initial_buffers(1)), inputs, targets, transductive
        )
        with torch.inference_mode(False), torch.no_grad():
            device = next(body.parameters()).device
            n_way = check_support_classes(targets.unsqueeze(0))
            features = body(map_tensors(lambda t: t.clone().to(device), inputs))
            weight, bias = prototypical_head(prototypes(features, targets.to(device), n_way))
            head = nn.Linear(weight.shape[1], weight.shape[0], device=weight.device, dtype=weight.dtype)
            head.weight.copy_(weight)
            head.bias.copy_(bias)
        network = nn.Sequential()
        network.add_module("body", body)
        network.add_module("head", head)
        return network.eval().requires_grad_(False)
