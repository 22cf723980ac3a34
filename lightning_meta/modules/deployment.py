"""From a support set to a network that predicts."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from lightning_meta.functional.learner import Learner, Params
from lightning_meta.functional.normalization import (
    batch_normalized_layers,
    with_batch_statistics,
    with_stored_statistics,
)
from lightning_meta.modules.checks import check_support_set
from lightning_meta.modules.outcome import with_gradients
from lightning_meta.task import Examples, Task, map_tensors, tensors_of


def adapted_network(
    network: nn.Module,
    names: tuple[str, ...],
    adapt: Callable[[Learner, Task], tuple[Params, Params]],
    inputs: Any,
    targets: Tensor,
    transductive: bool,
) -> nn.Module:
    """A self-contained copy of a network, adapted to one labelled support set.

    Args:
        network: The network, which stays as it is.
        names: The parameters that are adapted.
        adapt: Maps a learner and a batch of one task to its parameters and its buffers.
        inputs: Support inputs `(examples, ...)`.
        targets: Their targets, `(examples, ...)`.
        transductive: Normalize with the statistics of whatever batch is predicted, or freeze those of the support set.

    Returns:
        The copy in evaluation mode, with nothing that requires grad.

    Raises:
        ValueError: Inputs and targets differ in length, or there are none.
    """
    check_support_set(tensors_of(inputs), targets)
    device = next(network.parameters()).device
    examples = map_tensors(lambda t: t.detach().to(device).unsqueeze(0), Examples(inputs, targets))
    with with_gradients(Task(examples, examples)) as task:
        network = copy.deepcopy(network).eval()
        learner = Learner(network, names, vectorized=False)
        params, buffers = adapt(learner, task)
        final = buffers | params
        with torch.no_grad():
            if not transductive and batch_normalized_layers(network):
                final |= learner.statistics(params, buffers, task.support.inputs)
            network = (with_batch_statistics if transductive else with_stored_statistics)(network)
            own = dict(network.named_parameters()) | dict(network.named_buffers())
            for name, tensor in final.items():
                if name in own:
                    own[name].copy_(tensor.squeeze(0))
    return network.requires_grad_(False)
