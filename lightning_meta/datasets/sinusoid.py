"""Regression of sine waves."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from lightning_meta.randomness import uniforms
from lightning_meta.task import Examples, Task


@dataclass(frozen=True)
class SinusoidTasks:
    r"""Tasks to regress :math:`y = a \sin(x - \varphi)` from a few points, noise-free.

    Paper: Finn, Abbeel, Levine 2017, arXiv:1703.03400, section 5.1.

    Attributes:
        split: `"train"`, `"val"` or `"test"`: which stream of tasks.
        k_shot: Support points `K`.
        n_query: Query points `Q`.
        seed: Which streams.
        amplitude: Range of a.
        phase: Range of φ, in radians.
        inputs: Range of x.

    Example:
        >>> task = SinusoidTasks("train", k_shot=10, n_query=10).tasks([0, 1, 2])
        >>> task.support.inputs.shape, task.query.targets.shape
        (torch.Size([3, 10, 1]), torch.Size([3, 10, 1]))
    """

    split: str
    k_shot: int
    n_query: int
    seed: int = 0
    amplitude: tuple[float, float] = (0.1, 5.0)
    phase: tuple[float, float] = (0.0, math.pi)
    inputs: tuple[float, float] = (-5.0, 5.0)

    def tasks(self, numbers: Sequence[int]) -> Task:
        """The tasks of these numbers: inputs and targets `(B, K, 1)` and `(B, Q, 1)`, float32."""
        random = torch.from_numpy(uniforms(self.seed, self.split, numbers, 2 + self.k_shot + self.n_query))

        def between(u: torch.Tensor, bounds: tuple[float, float]) -> torch.Tensor:
            return bounds[0] + (bounds[1] - bounds[0]) * u.unsqueeze(-1)

        amplitude, phase = between(random[:, :1], self.amplitude), between(random[:, 1:2], self.phase)
        x = between(random[:, 2:], self.inputs)
        y = amplitude * torch.sin(x - phase)
        x, y = x.float(), y.float()
        k = self.k_shot
        return Task(Examples(x[:, :k], y[:, :k]), Examples(x[:, k:], y[:, k:]))
