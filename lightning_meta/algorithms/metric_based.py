"""Embedding × head: the algorithms that adapt in closed form."""

from collections.abc import Hashable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from lightning_meta.algorithms.base import Algorithm, Fitted, Outcome, Statistics
from lightning_meta.algorithms.heads import Head
from lightning_meta.errors import ConfigurationError
from lightning_meta.functional.losses import check_support_classes
from lightning_meta.functional.masks import joint_mask
from lightning_meta.functional.normalization import batch_normalized_layers
from lightning_meta.functional.problem import Problem
from lightning_meta.task import map_tensors, number_of_examples


class MetricBased(Algorithm):
    """Classifies the features of query examples by a linear head that is made of the support set's in closed form.

    Args:
        head: Makes the linear layer of each task.
        statistics: Whose statistics batch normalization uses in evaluation; the transductive ones are those of support
            and query examples together, as in meta-training.
    """

    def __init__(self, head: Head, statistics: Statistics = "query batch (transductive)") -> None:
        super().__init__(statistics)
        self.head = head

    def select(self, network: nn.Module) -> tuple[str, ...]:
        """None: all tasks share all parameters."""
        return ()

    def compile_key(self, outer_step: int) -> Hashable | None:
        """Nothing besides tensors."""
        return ()

    def learn(self, problem: Problem) -> Outcome:
        """The loss of the query sets, classified by the support sets' head."""
        return self._judged(problem, "query batch (transductive)")._replace(judged=())

    def evaluate(self, problem: Problem) -> Outcome:
        """The same, with nothing to differentiate."""
        with torch.no_grad():
            return self._judged(problem, self.statistics)

    def predict(self, problem: Problem) -> Any:
        """Logits of the query sets: `(B, queries, N)`."""
        with torch.no_grad():
            return self._logits(problem, self.statistics)

    def fit(self, problem: Problem, steps: int | None = None) -> Fitted:
        """The embedding, and the head that a single task's support set gives."""
        if steps is not None:
            raise ConfigurationError(f"There is no inner loop, so steps={steps} has no meaning. Leave it out.")
        learner, support = self._embedding(problem), problem.support({}, 0)
        _, buffers = replace(problem, learner=learner).initial()
        n_way = check_support_classes(problem.tasks, all_below=True)
        with torch.no_grad():
            features, _ = learner.predict({}, buffers, support.inputs)
            weight, bias = self.head(_checked(features), support.targets, n_way)
        return Fitted(learner.network, {}, (weight[0], bias[0]))

    def _embedding(self, problem: Problem) -> Any:
        """The learner of the network's submodule `body`, if it has one; otherwise of the whole network."""
        has_body = isinstance(getattr(problem.learner.network, "body", None), nn.Module)
        return problem.learner.part("body") if has_body else problem.learner

    def _judged(self, problem: Problem, statistics: Statistics) -> Outcome:
        logits, query = self._logits(problem, statistics), problem.query({})
        losses = problem.losses(logits, query)
        metrics, none = problem.metrics("query", logits, query), losses.detach().new_empty(problem.count, 0)
        return Outcome(losses, metrics, none, judged=(logits, query.targets, query.mask))

    def _logits(self, problem: Problem, statistics: Statistics) -> Tensor:
        """What the tasks' heads make of the query sets, `(B, queries, N)`."""
        learner, support, query = self._embedding(problem), problem.support({}, 0), problem.query({})
        _, buffers = replace(problem, learner=learner).initial()
        if statistics == "query batch (transductive)" or not batch_normalized_layers(learner.network):
            both = map_tensors(lambda s, q: torch.cat([s, q], 1), support.inputs, query.inputs)
            mask = joint_mask(support, query)
            features, _ = learner.predict({}, buffers, both, mask)
            of_support, of_query = torch.tensor_split(_checked(features), [number_of_examples(support)], 1)
        else:
            learner, buffers = learner.frozen_to({}, buffers, support.inputs, support.mask)
            of_support, of_query = (
                _checked(learner.predict({}, buffers, part.inputs, part.mask)[0]) for part in (support, query)
            )
        n_way = problem.ways or max(check_support_classes(problem.tasks), problem.classes)
        weight, bias = self.head(of_support, support.targets, n_way, support.mask)
        with torch.autocast(of_query.device.type, enabled=False):
            logits = torch.baddbmm(bias.unsqueeze(1), of_query.to(weight.dtype), weight.transpose(1, 2))
        found: Tensor = problem.without_absent_classes(logits)
        return found


def _checked(features: Any) -> Tensor:
    """Features `(B, examples, features)`.

    Raises:
        ConfigurationError: They are something else.
    """
    if not isinstance(features, Tensor) or features.dim() != 3:
        shape = tuple(features.shape[1:]) if isinstance(features, Tensor) else type(features).__name__
        raise ConfigurationError(
            f"The embedding must give one vector for each example, (examples, features), but gives {shape}. Flatten or "
            "average feature maps at its end."
        )
    return features
