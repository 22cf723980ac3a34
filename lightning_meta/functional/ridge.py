"""Ridge regression in closed form."""

import torch
import torch.nn.functional as F
from torch import Tensor


def ridge_weights(
    features: Tensor, targets: Tensor, n_way: int, regularization: Tensor | float, mask: Tensor | None = None
) -> Tensor:
    r"""Regress one-hot targets Y on features X: :math:`W = X^\top (X X^\top + \lambda I)^{-1} Y`.

    The system has the size of the number of examples, or of features where those are fewer; both have the same
    solution. Paper: Bertinetto, Henriques, Torr, Vedaldi 2019, arXiv:1805.08136, equation 4.

    Args:
        features: `(..., examples, features)`.
        targets: Class numbers from 0, `(..., examples)`.
        n_way: The number of classes `N`.
        regularization: The strength λ, positive; a scalar.
        mask: Which examples there are, `(..., examples)`; all if `None`.

    Returns:
        `(..., N, features)`, in at least float32, also under autocast; zeros for a class without an example.

    Example:
        >>> ridge_weights(torch.eye(2), torch.tensor([0, 1]), 2, 1.0)
        tensor([[0.5000, 0.0000],
                [0.0000, 0.5000]])
    """
    x = features.to(torch.promote_types(features.dtype, torch.float32))
    y = F.one_hot(targets, n_way).to(x.dtype)
    if mask is not None:
        x, y = x * mask.unsqueeze(-1), y * mask.unsqueeze(-1)
    n, d = x.shape[-2:]
    with torch.autocast(x.device.type, enabled=False):
        diagonal = torch.eye(min(n, d), dtype=x.dtype, device=x.device) * regularization
        transposed = x.transpose(-1, -2)
        gram, right = (x @ transposed, y) if n <= d else (transposed @ x, transposed @ y)
        # Not `linalg.solve`, whose batched LU of larger matrices on several CPU threads has been seen not to return.
        solution = torch.cholesky_solve(right, torch.linalg.cholesky(gram + diagonal))
        found: Tensor = ((transposed @ solution) if n <= d else solution).transpose(-1, -2)
        return found
