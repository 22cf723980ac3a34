"""What algorithms make of tasks."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_meta.task import Task, map_tensors


class Outcome(NamedTuple):
    """What an algorithm made of a batch of `B` tasks.

    Attributes:
        losses: The adapted parameters' loss on each task, `(B,)`; differentiable in meta-training.
        metrics: Values to log for each task, `(B,)` each, detached.
        inner_losses: Support losses before each inner step, `(B, steps)`, detached.
        carried: Tensors `(B, ...)` whose mean over the tasks of all devices the module keeps after the outer step: see
            `MetaModule.carry`.
    """

    losses: Tensor
    metrics: dict[str, Tensor]
    inner_losses: Tensor
    carried: Any = ()


def joined(outcomes: list[Outcome]) -> Outcome:
    """The outcomes of all chunks as one, detached."""
    return Outcome(
        torch.cat([outcome.losses.detach() for outcome in outcomes]),
        {name: torch.cat([outcome.metrics[name] for outcome in outcomes]) for name in outcomes[0].metrics},
        torch.cat([outcome.inner_losses for outcome in outcomes]),
        map_tensors(lambda *parts: torch.cat(parts).detach(), *(outcome.carried for outcome in outcomes)),
    )


@contextmanager
def with_gradients(batch: Task) -> Iterator[Task]:
    """Make a batch differentiable in evaluation too, where Lightning turns gradients off."""
    with torch.inference_mode(False), torch.enable_grad():
        yield map_tensors(lambda t: t.clone() if t.is_inference() else t, batch)
