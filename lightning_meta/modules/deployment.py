"""From a support set to a network that predicts, and what adaptation does step by step."""

import itertools
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lightning_meta.errors import ArgumentTypeError, ConfigurationError
from lightning_meta.functional.inner_loop import check_steps
from lightning_meta.functional.learner import Learner
from lightning_meta.functional.losses import is_cross_entropy
from lightning_meta.functional.network import copied
from lightning_meta.functional.normalization import (
    batch_normalized_layers,
    with_batch_statistics,
    with_stored_statistics,
)
from lightning_meta.functional.problem import Problem
from lightning_meta.functional.task_map import joined
from lightning_meta.modules.evaluation import with_gradients
from lightning_meta.task import Examples, Task, are_classes, map_tensors, plain_inputs, present_classes, tensors_of

if TYPE_CHECKING:
    from lightning_meta.modules.meta_module import MetaModule


def adapted_network(
    module: "MetaModule", inputs: Any, targets: Any, steps: int | None, transductive: bool
) -> nn.Module:
    """A self-contained copy of the module's network, adapted to one labelled support set: see `MetaModule.adapt_to`."""
    check_support_set(inputs, targets)
    if steps is not None:
        check_steps("steps", steps)
    own = itertools.chain(module.network.parameters(), module.network.buffers())
    device = next((tensor.device for tensor in own), module.device)
    examples = map_tensors(lambda t: t.detach().to(device).unsqueeze(0), Examples(inputs, targets))
    with with_gradients(plain_inputs(Task(examples, examples))) as task:
        network = copied(module.network).eval()
        learner = Learner(network, module.task_map.names, vectorized=False)
        problem = replace(module.problem(task), learner=learner, ways=None)
        try:
            fitted = module.algorithm.fit(problem, steps)
        except Exception as error:
            module.task_map.explain(lambda problem: module.algorithm.fit(problem, steps), problem, error)
            raise
        learner.isolation.restore()
        adapted = _with_values(replace(learner, network=fitted.network), fitted.values, task.support, transductive)
        if fitted.head is not None:
            adapted = _with_head(adapted, *fitted.head)
        adapted = adapted.eval().requires_grad_(False)
        return _without_absent_classes(module, adapted, problem)


def forward(module: "MetaModule", *inputs: Any, **options: Any) -> Any:
    """Refuse to predict without a task.

    Raises:
        ConfigurationError: Always; it says what predicts.
    """
    raise ConfigurationError(
        f"{type(module).__name__} does not predict by itself: it adapts. module.adapt_to(inputs, targets) returns a "
        "network that is adapted to a support set, to call or to export; module.network is the one before adaptation."
    )


@torch.no_grad()
def _with_values(learner: Learner, values: dict[str, Tensor], support: Examples, transductive: bool) -> nn.Module:
    """A copy of the learner's network with these parameters and buffers, `(1, *shape)` each."""
    network = learner.network
    if not transductive and batch_normalized_layers(network):
        own = {n: b.unsqueeze(0) for n, b in network.named_buffers()}
        params = {n: v for n, v in values.items() if n not in own}
        values = values | learner.statistics(params, own | {n: values[n] for n in own if n in values}, support.inputs)
    network = (with_batch_statistics if transductive else with_stored_statistics)(network)
    parameters, buffers = dict(network.named_parameters()), dict(network.named_buffers())
    for name, value in values.items():
        value = value.squeeze(0)
        if name in parameters and parameters[name].shape != value.shape:  # a head of another number of classes
            parent, _, last = name.rpartition(".")
            setattr(network.get_submodule(parent), last, nn.Parameter(value.clone()))
        elif name in parameters or name in buffers:
            (parameters | buffers)[name].copy_(value)
    return network


def _with_head(body: nn.Module, weight: Tensor, bias: Tensor) -> nn.Module:
    """The embedding as `body`, and a linear layer as `head` after it."""
    network = nn.Sequential()
    network.add_module("body", body)
    head = nn.Linear(weight.shape[1], weight.shape[0], device=weight.device, dtype=weight.dtype)
    with torch.no_grad():
        head.weight.copy_(weight)
        head.bias.copy_(bias)
    network.add_module("head", head)
    return network


class KnownClasses(nn.Module):
    """A network whose logits are minus infinity for the classes that its support set had no example of.

    Args:
        network: Gives logits `(examples, N)`.
        known: Which classes there are, `(N,)`.
    """

    def __init__(self, network: nn.Module, known: Tensor) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("known", known)

    def forward(self, inputs: Any) -> Tensor:
        """Logits `(examples, N)`."""
        logits: Tensor = self.network(inputs)
        assert isinstance(self.known, Tensor)
        return logits.masked_fill(~self.known, -torch.inf)


def _without_absent_classes(module: "MetaModule", network: nn.Module, problem: Problem) -> nn.Module:
    if not are_classes(problem.tasks.support.targets) or not is_cross_entropy(module.loss):
        return network
    with torch.no_grad():  # of copies, since a network may write into its buffers and its inputs
        logits = copied(network)(map_tensors(lambda t: t[0].clone(), problem.tasks.support.inputs))
    if not isinstance(logits, Tensor) or logits.dim() != 2:
        return network
    (known,) = present_classes(problem.tasks, logits.shape[1])
    return network if bool(known.all()) else KnownClasses(network, known).eval()


def adaptation_curve(module: "MetaModule", tasks: Task, steps: int | None) -> dict[str, Tensor]:
    """Query metrics after each inner step, `(B, steps + 1)` each: see `MetaModule.adaptation_curve`."""
    if steps is not None:
        check_steps("steps", steps)

    def run(part: Problem) -> dict[str, Tensor]:
        return module.algorithm.curve(replace(part, learner=replace(part.learner, network=network)), steps)

    with with_gradients(tasks) as tasks:
        network = copied(module.network).eval()
        return joined(list(module.task_map(run, module.problem(tasks))))


def check_support_set(inputs: Any, targets: Any) -> None:
    """Refuse a support set without one target for each input, or of raw images.

    Raises:
        ArgumentTypeError: They are not tensors.
        ConfigurationError: Lengths differ, there is nothing, or inputs are uint8.
    """
    of_inputs, of_targets = tensors_of(inputs), tensors_of(targets)
    if not of_inputs or not of_targets:
        raise ArgumentTypeError("Inputs and targets of a support set must be tensors; torch.as_tensor makes them.")
    if isinstance(inputs, Tensor) and inputs.dtype == torch.uint8 and inputs.dim() == 4:
        raise ConfigurationError(
            "The inputs are uint8 images. Data modules divide those by 255: give inputs / 255 here."
        )
    lengths, count = [len(tensor) for tensor in of_inputs], len(of_targets[0])
    if not count or any(length != count for length in lengths):
        raise ConfigurationError(f"A support set needs one target per input: got {lengths} inputs and {count} targets.")
