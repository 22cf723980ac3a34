"""Proto-MAML."""

from typing import Any

import torch
from torch import nn

from lightning_meta.functional.learner import Learner, Params, strip
from lightning_meta.functional.prototypes import prototypes, prototypical_head
from lightning_meta.modules.checks import check_support_classes
from lightning_meta.modules.maml import MAMLModule
from lightning_meta.task import Task, number_of_tasks


class ProtoMAMLModule(MAMLModule):
    r"""MAML whose head starts, for every task, as the classifier by the distances to its support set's prototypes.

    .. math:: w_c = 2 p_c, \qquad b_c = -\|p_c\|^2

    with the prototypes p_c of the body's features. They are differentiated through; the network's own head has no
    effect. Paper: Triantafillou et al. 2020, arXiv:1903.03096.

    Args:
        network: Gives `head(body(inputs))`, of a submodule `body` for `(examples, features)` and a linear layer `head`.
        kwargs: See `MAMLModule`.

    Raises:
        ValueError: The network has no such parts, or `adapt_only` leaves out the head; in use, a class has no support
            example.

    Example:
        >>> from lightning_meta import MLP, Examples, Task
        >>> module = ProtoMAMLModule(MLP(4, 3), inner_lr=0.1)
        >>> inputs, targets = torch.randn(2, 6, 4), torch.tensor([0, 0, 1, 1, 2, 2]).expand(2, 6)
        >>> module.meta_loss(Task(Examples(inputs, targets), Examples(inputs, targets))).backward()
        >>> bool(module.network.head.weight.grad.any()), bool(module.network.body[1].weight.grad.any())
        (False, True)
    """

    def __init__(self, network: nn.Module, **kwargs: Any) -> None:
        parts = (getattr(network, "body", None), getattr(network, "head", None))
        if not isinstance(parts[0], nn.Module) or not isinstance(parts[1], nn.Linear) or parts[1].bias is None:
            raise ValueError(
                f"ProtoMAMLModule needs a network with a submodule `body` and a linear layer `head` with a bias after "
                f"it, as Conv4 has; {type(network).__name__} has not."
            )
        super().__init__(network, **kwargs)
        if not {"head.weight", "head.bias"} <= set(self.adapted_names):
            raise ValueError(f"The head has to be adapted, but adapt_only={self.adapt_only!r} leaves it out.")
        self.n_way = parts[1].out_features

    def initial_params(self, learner: Learner, tasks: Task, *, trainable: bool) -> Params:
        """The network's parameters, with the head that the prototypes give."""
        params = super().initial_params(learner, tasks, trainable=trainable)
        with torch.set_grad_enabled(trainable):
            support = self.support_data(tasks, params, 0)
            check_support_classes(support.targets, self.n_way)
            body = learner.part("body")
            at_start = self.params_at(params, 0)
            own = {short: at_start[name] for short, name in strip(at_start, "body").items()}
            features = body.predict(own, body.initial_buffers(number_of_tasks(tasks)), support.inputs)

            def head(features: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
                return prototypical_head(prototypes(features, targets, self.n_way))

            weight, bias = learner.over_tasks(head)(features, support.targets)
            weight, bias = weight.to(params["head.weight"]), bias.to(params["head.bias"])
        if not trainable:
            weight, bias = weight.requires_grad_(), bias.requires_grad_()
        return params | {"head.weight": weight, "head.bias": bias}
