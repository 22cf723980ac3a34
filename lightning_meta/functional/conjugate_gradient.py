"""Solve linear systems of which only products with the matrix are at hand."""

from collections.abc import Callable

import torch
from torch import Tensor

from lightning_meta.functional.network import Params


def conjugate_gradient(product: Callable[[Params], Params], right: Params, steps: int) -> Params:
    r"""Solve :math:`A_b x_b = r_b` for every task `b`, with symmetric positive definite matrices.

    Exact after as many steps as the matrix has distinct eigenvalues, but for rounding. A task whose residual has
    vanished, or along whose direction the matrix is not positive, keeps the solution that it has by then; the
    right-hand side itself, if that happens at once.
    Paper: Hestenes, Stiefel 1952, doi:10.6028/jres.049.044.

    Args:
        product: Maps vectors to `A` times them, for all tasks at once.
        right: The right-hand sides, by name, each `(B, *shape)`.
        steps: Number of iterations, one product each.

    Returns:
        The solutions, like `right`, detached.
    """
    solution = {name: torch.zeros_like(r) for name, r in right.items()}
    residual = {name: r.detach() for name, r in right.items()}
    direction = residual
    squared = inner(residual, residual)
    active = torch.ones_like(squared, dtype=torch.bool)
    for step in range(steps):
        image = {name: v.detach() for name, v in product(direction).items()}
        curvature = inner(direction, image)
        active = active & (curvature > 0)
        length = torch.where(active, squared / curvature, 0)
        refused = ~active & (step == 0)
        solution = add(solution, torch.where(refused, 1, length), direction)
        residual = add(residual, -length, image)
        before, squared = squared, inner(residual, residual)
        direction = add(residual, torch.where(before > 0, squared / before, 0), direction)
    return solution


def inner(a: Params, b: Params) -> Tensor:
    """The inner product of each task's vectors, `(B,)`, elementwise in at least float32."""
    dtype = torch.promote_types(next(iter(a.values())).dtype, torch.float32)
    return torch.stack([(a[name].to(dtype) * b[name].to(dtype)).reshape(len(a[name]), -1).sum(1) for name in a]).sum(0)


def add(a: Params, factor: Tensor, b: Params) -> Params:
    """`a + factor * b`, with a factor for each task, `(B,)`."""
    return {name: a[name] + factor.view(-1, *[1] * (a[name].dim() - 1)).to(a[name].dtype) * b[name] for name in a}
