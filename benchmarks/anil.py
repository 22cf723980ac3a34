"""CPU time of ANIL's outer step, with the body run once on the support set, beside the body run in every inner step.

    python benchmarks/anil.py

Conv-4 of 64 filters, 16 tasks of 5 classes, 3 queries of each; medians of steps in turns, with one thread.
"""

import statistics
import time

import torch
from torch import Tensor

from lightning_meta import Conv4, Examples, MAMLModule, Task

ROUNDS = 9


class InEveryStep(Conv4):
    """The same network; one with a `forward` of its own is run as a whole in every inner step."""

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits `(examples, n_way)`."""
        logits: Tensor = self.head(self.body(inputs))
        return logits


def examples(shots: int) -> Examples:
    """Random images of 16 tasks with 5 classes."""
    return Examples(torch.rand(16, 5 * shots, 1, 28, 28), torch.arange(5).repeat_interleave(shots).expand(16, -1))


def outer_step(module: MAMLModule, tasks: Task) -> float:
    """CPU milliseconds of a meta-gradient."""
    begun = time.process_time()
    module.meta_loss(tasks).backward()
    module.zero_grad()
    return 1000 * (time.process_time() - begun)


def main() -> None:
    """Measure, and print a line for each case."""
    torch.set_num_threads(1)
    for shots, steps in ((1, 3), (5, 5)):
        tasks = Task(examples(shots), examples(3))
        modules = [MAMLModule(net(5), 0.1, steps, adapt_only="head") for net in (Conv4, InEveryStep)]
        times = [[outer_step(module, tasks) for module in modules] for _ in range(ROUNDS + 1)][1:]
        once, every = (statistics.median(column) for column in zip(*times, strict=True))
        print(f"{shots} shot, {steps} inner steps: {once:.0f} ms once, {every:.0f} ms in every step")


if __name__ == "__main__":
    main()
