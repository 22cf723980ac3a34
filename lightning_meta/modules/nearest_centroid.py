"""The baseline of metric-based learning: nothing is learned."""

from torch import nn

from lightning_meta.algorithms import MetricBased, PrototypeHead
from lightning_meta.functional.losses import Loss
from lightning_meta.functional.task_map import TaskParallel
from lightning_meta.modules.documentation import complete_arguments
from lightning_meta.modules.evaluation import Metrics
from lightning_meta.modules.meta_module import MetaModule


class NearestCentroidModule(MetaModule):
    r"""Classifies by the nearest mean of a class's support examples, and learns nothing: what others have to beat.

    .. math:: \hat y(x) = \arg\min_c \| f(x) - p_c \|, \qquad p_c = \frac{1}{K} \sum_{y_i = c} f(x_i)

    It is tested on the same tasks as another module, `trainer.test(NearestCentroidModule(), data)`, so that the two can
    be compared task by task. A `ProtoNetModule` of a network that starts as the identity begins as this.

    Args:
        network: The embedding f, such as a pretrained network: its submodule `body` if it has one. If `None`, the
            inputs as they are, flattened.
        transductive: Whether batch normalization uses the statistics of a task's support and query examples together;
            otherwise those of the support set.

    Raises:
        ConfigurationError: An argument does not make sense; in use, a class without a support example.

    Example:
        >>> import torch
        >>> module = NearestCentroidModule()
        >>> network = module.adapt_to(torch.tensor([[0.0, 0.0], [3.0, 4.0]]), torch.tensor([0, 1]))
        >>> network(torch.tensor([[2.0, 1.0]])).argmax().item()
        0
    """

    algorithm: MetricBased

    def __init__(
        self,
        network: nn.Module | None = None,
        transductive: bool = True,
        *,
        loss: Loss | None = None,
        metrics: Metrics | None = None,
        task_parallel: TaskParallel = "auto",
    ) -> None:
        algorithm = MetricBased(PrototypeHead(), "query batch (transductive)" if transductive else "support set")
        network = nn.Flatten() if network is None else network
        super().__init__(network, algorithm, loss=loss, metrics=metrics, task_parallel=task_parallel)


complete_arguments(NearestCentroidModule, MetaModule)
