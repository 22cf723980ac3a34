"""Gradients that are transformed by meta-learned curvature."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from lightning_meta.errors import ConfigurationError
from lightning_meta.functional.network import Params, dict_key
from lightning_meta.inner.base import InnerOptimizer, check_rate


class MetaCurvature(InnerOptimizer):
    r"""Gradient descent along gradients that learned matrices transform, one for each dimension of a tensor.

    For a convolution's gradient G of shape (out, in, positions of the kernel),

    .. math:: \phi \leftarrow \phi - \alpha\, (G \times_1 M_{out} \times_2 M_{in} \times_3 M_{f}),

    for a linear layer's without the last, and a matrix alone for a bias. All start as the identity, so that it starts
    as gradient descent. Paper: Park, Oliva 2019, arXiv:1902.03356 (MC2).

    Args:
        lr: The rate α, non-negative.

    Raises:
        ConfigurationError: `lr` is negative.

    Example:
        >>> optimizer, params = MetaCurvature(lr=0.5), {"w": torch.tensor([1.0, 2.0])}
        >>> optimizer.build(params, steps=1)
        >>> new, _ = optimizer.update({"w": torch.tensor([0.5, 0.0])}, (), params, loss=torch.tensor(0.0), step=0)
        >>> new["w"].tolist()
        [0.75, 2.0]
    """

    def __init__(self, lr: float = 0.01) -> None:
        super().__init__()
        self.lr = check_rate("lr", lr)
        self.matrices = nn.ParameterDict()
        """For each dimension of a parameter a square matrix, under the parameter's name with `/` for `.` and the
        number of the dimension."""

    def build(self, params: Params, steps: int) -> None:
        """Make the matrices; those that are there already are kept.

        Raises:
            ConfigurationError: There are matrices for other parameters already.
        """
        sizes = {f"{dict_key(name)}/{i}": size for name, p in params.items() for i, size in enumerate(_sizes(p))}
        if self.matrices and {key: len(matrix) for key, matrix in self.matrices.items()} != sizes:
            raise ConfigurationError(
                "MetaCurvature has matrices for other parameters already. Give each module an inner optimizer of "
                "its own."
            )
        like = next(iter(params.values()))
        for key, size in () if self.matrices else sizes.items():
            self.matrices[key] = nn.Parameter(torch.eye(size, dtype=like.dtype, device=like.device))

    def init(self, params: Params) -> tuple[()]:
        """No state."""
        return ()

    def update(
        self, grads: Params, state: Any, params: Params, *, loss: Tensor, step: int, **extra: Any
    ) -> tuple[Params, Any]:
        """One step along the transformed gradients."""
        return {name: param - self.lr * self._transformed(name, grads[name]) for name, param in params.items()}, state

    def _transformed(self, name: str, grad: Tensor) -> Tensor:
        sizes = _sizes(grad)
        result = grad.reshape(sizes)  # each product takes the first dimension and puts it last, so all come round
        for i in range(len(sizes)):
            result = torch.tensordot(result, self.matrices[f"{dict_key(name)}/{i}"], dims=([0], [1]))  # to the end
        return result.reshape(grad.shape)

    def extra_repr(self) -> str:
        """The rate."""
        return f"lr={self.lr}"


def _sizes(param: Tensor) -> list[int]:
    """Output and input channels, and all positions of a kernel as one."""
    if param.dim() == 0:
        return [1]
    return [*param.shape[:2], *([math.prod(param.shape[2:])] if param.dim() > 2 else [])]
