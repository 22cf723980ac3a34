"""How an inner loop is evaluated: adapt, predict, and compare with before."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lightning_meta.algorithms.base import Adapted, Outcome, Statistics
from lightning_meta.functional.masks import joint_mask
from lightning_meta.functional.network import Params
from lightning_meta.functional.normalization import batch_normalized_layers
from lightning_meta.functional.problem import Problem
from lightning_meta.task import Examples, map_tensors, number_of_examples

if TYPE_CHECKING:
    from lightning_meta.algorithms.gradient_based import GradientBased


def evaluate(algorithm: "GradientBased", problem: Problem) -> Outcome:
    """Adapt without a meta-gradient, and measure before and after."""
    adapted = algorithm.adapt(problem, algorithm.val_inner_steps, order=0)
    with torch.no_grad():
        query = problem.query(adapted.params)
        predictions = predicted(problem, adapted, query, algorithm.statistics)
        losses = problem.losses(predictions, query)
        metrics = problem.metrics("query", predictions, query)
    metrics |= details(algorithm, problem, adapted, query, algorithm.statistics)
    return Outcome(losses, metrics, adapted.inner_losses, judged=(predictions, query.targets, query.mask))


@torch.no_grad()
def details(
    algorithm: "GradientBased", problem: Problem, adapted: Adapted, query: Examples, statistics: Statistics
) -> dict[str, Tensor]:
    """The support loss after adaptation, and every metric before it, of the data that is at hand."""
    params, buffers, _ = algorithm.initial(problem, trainable=False)
    before = predicted(problem, adapted._replace(params=params, buffers=buffers, steps=0), query, statistics)
    after, _ = problem.support_losses(adapted.params, adapted.buffers, adapted.support, adapted.steps)
    values = {"support_loss": after, "query_loss_before": problem.losses(before, query)}
    if adapted.steps:
        values["support_loss_before"] = adapted.inner_losses[:, 0]
    return values | problem.metrics("query", before, query, "_before")


def predicted(problem: Problem, adapted: Adapted, query: Examples, statistics: Statistics) -> Any:
    """Predictions of adapted parameters for query sets, `(B, queries, ...)`."""
    params, buffers, steps, support = adapted.params, adapted.buffers, adapted.steps, adapted.support
    if statistics == "query batch (transductive)" or not batch_normalized_layers(problem.learner.network):
        return problem.predict(params, buffers, query, steps)[0]
    if statistics == "support set":
        at_end = problem.at_step(params, steps)
        frozen, buffers = problem.learner.frozen_to(at_end, buffers, support.inputs, support.mask)
        return problem.predict(params, buffers, query, steps, learner=frozen)[0]
    predictions = []
    mask = joint_mask(support, Examples(map_tensors(lambda t: t[:, :1], query.inputs), ()))
    for i in range(number_of_examples(query)):
        both = map_tensors(lambda s, q, i=i: torch.cat([s, q[:, i : i + 1]], 1), support.inputs, query.inputs)
        of_all, _ = problem.predict(params, buffers, Examples(both, (), mask), steps)
        predictions.append(map_tensors(lambda t: t[:, -1:], of_all))
    return map_tensors(lambda *parts: torch.cat(parts, 1), *predictions)


def curve(algorithm: "GradientBased", problem: Problem, steps: int) -> dict[str, Tensor]:
    """Query metrics after each of some inner steps, transductively: `(B, steps + 1)` each."""
    rows: list[dict[str, Tensor]] = []

    @torch.no_grad()
    def measure(step: int, params: Params, buffers: Params, _: Any) -> None:
        losses, metrics, _ = problem.judged(params, buffers, step)
        rows.append({"query_loss": losses} | metrics)

    algorithm.adapt(problem, steps, order=0, on_step=measure)
    return {name: torch.stack([row[name] for row in rows], 1) for name in rows[0]}
