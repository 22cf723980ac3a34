"""The networks and tasks of which `benchmarks/steps.py` measures a meta-gradient."""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_meta import MLP, Conv4, Examples, Task

Step = Callable[[], None]


class Case(NamedTuple):
    """A network and the tasks of one outer step."""

    network: Callable[[], nn.Module]
    tasks: int
    n_way: int = 5
    n_query: int = 1
    inner_steps: int = 1
    inner_lr: float = 0.1
    regression: bool = False

    def make_tasks(self, dtype: torch.dtype, device: str) -> Task:
        """Random tasks of the right shapes, always the same."""
        generator = torch.Generator().manual_seed(0)

        def examples(count: int) -> Examples:
            if self.regression:
                inputs = 10 * torch.rand(self.tasks, count, 1, generator=generator) - 5
                phase = torch.rand(self.tasks, 1, 1, generator=generator)
                return Examples(inputs, (inputs + 3 * phase).sin())
            images = torch.rand(self.tasks, self.n_way * count, 1, 28, 28, generator=generator)
            labels = torch.arange(self.n_way).repeat_interleave(count).expand(self.tasks, -1).contiguous()
            return Examples(images, labels)

        support, query = (examples(10), examples(10)) if self.regression else (examples(1), examples(self.n_query))
        parts = ((_to(part.inputs, device, dtype), _to(part.targets, device, dtype)) for part in (support, query))
        return Task(*(Examples(*tensors) for tensors in parts))

    @property
    def loss(self) -> Callable[[Tensor, Tensor], Tensor]:
        """What is descended."""
        return F.mse_loss if self.regression else F.cross_entropy


def _to(targets: Tensor, device: str, dtype: torch.dtype) -> Tensor:
    return targets.to(device, dtype) if targets.is_floating_point() else targets.to(device)


CASES = {
    "Conv-4, 1 query, 32 tasks": Case(lambda: Conv4(5), 32),
    "Conv-4, 15 queries, 32 tasks": Case(lambda: Conv4(5), 32, n_query=15),
    "Conv-4, 1 query, 5 inner steps, 16 tasks": Case(lambda: Conv4(5), 16, inner_steps=5),
    "Conv-4 with pooling, 15 queries, 8 tasks": Case(lambda: Conv4(5, downsample="pool"), 8, n_query=15),
    "MLP 784-256-128-64-64, 1 query, 32 tasks": Case(lambda: MLP(784, 5, hidden=[256, 128, 64, 64], norm="batch"), 32),
    "Sinusoid MLP, 10-shot, 25 tasks": Case(MLP, 25, regression=True, inner_lr=0.01),
    "Conv-4, 20-way, 1 query, 16 tasks": Case(lambda: Conv4(20), 16, n_way=20),
}
"""The networks of the MAML paper on tasks of the sizes that are usual for them."""
