"""A linear support vector machine for several classes, with first and second derivatives by the features."""

import torch
from torch import Tensor

from lightning_meta.errors import ConfigurationError

MAX_ITERATIONS = 40
GAP = 1e-18
"""Mean of multiplier times share at which the interior-point method stops, for a margin and a diagonal of 1."""

RIDGE = 1e-10
"""Added to the Gram matrix of the last solve, whose mean diagonal is 1, so that repeated examples have a solution."""


def svm_weights(features: Tensor, targets: Tensor, n_way: int, C: float = 0.1, mask: Tensor | None = None) -> Tensor:
    r"""The weights of each task's linear support vector machine, differentiable twice by the features.

    With :math:`w_k = \sum_n \alpha_n^k f(x_n)`, the dual of the machine of Crammer and Singer (2001, JMLR 2:265) is

    .. math:: \min_\alpha \tfrac12 \sum_k \|w_k\|^2 - \sum_n \alpha_n^{y_n} \quad \text{s.t.} \quad
        \alpha_n^{y_n} \le C, \quad \alpha_n^k \le 0 \; (k \ne y_n), \quad \sum_k \alpha_n^k = 0.

    Paper: Lee, Maji, Ravichandran, Soatto 2019, arXiv:1904.03758 (MetaOptNet). An interior-point method finds which
    bounds hold with equality. They are the same for all features near by, wherever a bound that holds has a positive
    multiplier, so the linear system that the other variables solve has the derivatives of the solution, of any order.
    Where the solution of that system is not that of the interior-point method, the latter is kept, and
    :math:`\alpha` is a constant.

    Args:
        features: `(B, n, d)`.
        targets: Class numbers from 0, `(B, n)`.
        n_way: The number of classes `N`. A class that no example of a task has gets a weight of 0 there, and the other
            weights are those of the problem without it.
        C: The largest :math:`\alpha`; the larger, the less a margin may be violated.
        mask: Which examples there are, `(B, n)`; all if `None`. What is in the others has no effect.

    Returns:
        `(B, N, d)`, in at least float32, also under autocast; computed in float64. Scores are `queries @ weights.mT`.

    Raises:
        ConfigurationError: `C` is not positive, shapes do not fit, or a target is not one of the `N` classes.

    Example:
        >>> features = torch.tensor([[[1.0, 0.0], [-1.0, 0.0]]])
        >>> svm_weights(features, torch.tensor([[0, 1]]), n_way=2, C=10.0)
        tensor([[[ 0.5000,  0.0000],
                 [-0.5000,  0.0000]]])
    """
    if mask is None:
        mask = torch.ones(features.shape[:2], dtype=torch.bool, device=features.device)
    _check(features, targets, n_way, C, mask)
    classes = torch.arange(n_way, device=features.device).unsqueeze(1)
    own = (targets.unsqueeze(1) == classes) & mask.unsqueeze(1)  # (B, N, n), as all of the dual variables
    allowed = own.any(2, keepdim=True) & mask.unsqueeze(1)
    with torch.autocast(features.device.type, enabled=False):
        points = torch.where(mask.unsqueeze(2), features, 0).double()
        # A task that is not finite has weights that are not, by the product at the end; a solver may hang on them.
        gram = points @ points.mT
        gram = torch.where(gram.isfinite().all(2, keepdim=True).all(1, keepdim=True), gram, 0)
        with torch.no_grad():
            # Units in which neither the Gram matrix nor the margin is above 1.
            size = (gram.diagonal(dim1=1, dim2=2).sum(1) / mask.sum(1).clamp(min=1)).view(-1, 1, 1)
            unit = size.clamp(min=1 / C)
            shares, free = _interior_point(gram / unit, own.double(), 1 / (C * unit), allowed)
            inner = C * (own.double() - shares)
            fixed = torch.where(free, 0, C * own.double())
            size = torch.where(size > 0, size, 1)
        exact = _on_free_variables(gram / size, own.double() / size, inner, fixed, free)
        with torch.no_grad():
            # A larger change, or one that is not finite, is a wrong guess of what is free.
            change, before = _squared_norm(exact - inner, gram), _squared_norm(inner, gram)
            right = change <= 1e-6 * before + 1e-18 * C**2 * unit.flatten()
        alpha = torch.where(right.view(-1, 1, 1), exact, inner)
        return (alpha @ points).to(torch.promote_types(features.dtype, torch.float32))


def _check(features: Tensor, targets: Tensor, n_way: int, C: float, mask: Tensor) -> None:
    """Refuse what is not a batch of problems."""
    if not 0 < C < float("inf"):
        raise ConfigurationError(f"C must be a positive number, got {C}.")
    if features.dim() != 3 or targets.shape != features.shape[:2] or mask.shape != features.shape[:2]:
        raise ConfigurationError(
            "A support vector machine needs features (tasks, examples, d), and targets and mask (tasks, examples), got "
            f"{tuple(features.shape)}, {tuple(targets.shape)} and {tuple(mask.shape)}."
        )
    outside = mask & ((targets < 0) | (targets >= n_way))
    if bool(outside.any()):
        raise ConfigurationError(f"A target is {int(targets[outside][0])}, but the classes are 0 to {n_way - 1}.")


def _squared_norm(alpha: Tensor, gram: Tensor) -> Tensor:
    """The squared norm of the weights of each task, `(B,)`."""
    return (alpha * (alpha @ gram)).sum((1, 2))


def _interior_point(gram: Tensor, own: Tensor, margin: Tensor, allowed: Tensor) -> tuple[Tensor, Tensor]:
    r"""Solve the dual by a predictor-corrector method, in the shares :math:`s = y - \alpha / C` of each example.

    They are what makes it simple: those of an example are not negative and sum to 1. With the margin
    :math:`m = 1 / C`, the Gram matrix `G` and the multipliers `z` and `v`, the conditions are

    .. math:: G (s_k - y_k) + m y_k = z_k + v, \quad \sum_k s_k = 1, \quad s z = 0, \quad s, z \ge 0.

    A Newton step is one system for each class, coupled by `v` only.

    Args:
        gram: `(B, n, n)`; 0 for an example that is not there.
        own: 1 for the class of each example, `(B, N, n)`.
        margin: `(B, 1, 1)`, at most 1.
        allowed: Which variables there are, `(B, N, n)`; the shares of the others are 0.

    Returns:
        The shares, and which of them are not 0, both `(B, N, n)`.
    """
    there = allowed.any(1)  # (B, n)
    count = allowed.sum((1, 2)).clamp(min=1).view(-1, 1, 1)
    # Both are smaller for smaller features, of which multipliers are products. No features at all have a solution too.
    size = gram.diagonal(dim1=1, dim2=2).mean(1).clamp(min=1e-12).view(-1, 1, 1)
    enough = GAP * size * margin.square()
    stiff = (gram + 1e-13 * size * torch.eye(gram.shape[1], dtype=gram.dtype, device=gram.device)).unsqueeze(1)
    pairs = allowed.unsqueeze(3) & allowed.unsqueeze(2)

    def gap(s: Tensor, z: Tensor) -> Tensor:
        return torch.where(allowed, s * z, 0).sum((1, 2), keepdim=True) / count

    def slope(s: Tensor) -> Tensor:
        return (torch.where(allowed, s, 0) - own) @ gram + margin * own

    # A start at which all but the products are as they should be. Variables that are not there stay at 1.
    s = torch.where(allowed, 1 / allowed.sum(1, keepdim=True).clamp(min=1), 1.0).to(gram.dtype)
    at_start = slope(s)
    spread = torch.where(allowed, at_start.abs(), 0).sum((1, 2), keepdim=True) / count
    v = torch.where(allowed, at_start, torch.inf).amin(1, keepdim=True) - spread
    v = torch.where(there.unsqueeze(1), v, 0)
    z = torch.where(allowed, at_start - v, 1)
    for _ in range(MAX_ITERATIONS):
        mean = gap(s, z)
        going = mean > enough
        if not bool(going.any()):
            break
        factor = torch.linalg.cholesky_ex(stiff + torch.diag_embed(z / s))[0]
        inverse = torch.where(pairs, torch.cholesky_inverse(factor), 0)
        coupling = torch.linalg.cholesky_ex(inverse.sum(1) + torch.diag_embed((~there).to(gram.dtype)))[0]
        dual = z + v - slope(s)
        primal = torch.where(there, 1 - torch.where(allowed, s, 0).sum(1), 0).unsqueeze(2)
        parts = (inverse, coupling, dual, primal)
        ds, dz, _ = _newton_step(s, z, torch.where(allowed, -s * z, 0), *parts)
        length = _longest(s, z, ds, dz)
        centring = (gap(s + length * ds, z + length * dz) / mean) ** 3
        products = torch.where(allowed, centring * mean - s * z - ds * dz, 0)
        ds, dz, dv = _newton_step(s, z, products, *parts)
        length = torch.where(going, 0.995 * _longest(s, z, ds, dz), 0)
        s, z, v = s + length * ds, z + length * dz, v + length * dv
    s = torch.where(allowed, s, 0)
    largest = s == s.amax(1, keepdim=True)
    return s, allowed & ((s > z) | largest)


def _newton_step(
    s: Tensor, z: Tensor, products: Tensor, inverse: Tensor, coupling: Tensor, dual: Tensor, primal: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The changes of shares, multipliers and `v` that bring about changes of the three kinds of conditions."""
    right = (inverse @ (dual + products / s).unsqueeze(3)).squeeze(3)
    dv = torch.cholesky_solve(primal - right.sum(1).unsqueeze(2), coupling).mT
    ds = right + (inverse @ dv.unsqueeze(3)).squeeze(3)
    return ds, (products - z * ds) / s, dv


def _longest(s: Tensor, z: Tensor, ds: Tensor, dz: Tensor) -> Tensor:
    """The part of a step of each task, at most 1, up to which nothing is negative: `(B, 1, 1)`."""
    return 1 / torch.maximum(-ds / s, -dz / z).amax((1, 2), keepdim=True).clamp(min=1)


def _on_free_variables(gram: Tensor, margin: Tensor, inner: Tensor, fixed: Tensor, free: Tensor) -> Tensor:
    r"""Solve for the free variables, with the others at their bounds: differentiable by the Gram matrix.

    With :math:`E^T \alpha = b` for the sums of examples, adding :math:`E E^T` to the quadratic form and :math:`E b` to
    the linear one changes no solution, and makes the form definite where the solution is unique. So Cholesky factors
    do; batches of LU factors, of 150 rows, do not end on several threads in torch 2.14 with MKL.
    The ridge pulls towards the solution that is known, so it does not move it.
    """
    n_way, n = free.shape[1:]
    free_ = free.to(gram.dtype)
    eye, classes = (torch.eye(size, dtype=gram.dtype, device=gram.device) for size in (n, n_way))
    blocks = (classes.view(n_way, 1, n_way, 1) * (gram + RIDGE * eye).view(-1, 1, n, 1, n)).flatten(3).flatten(1, 2)
    sums = torch.diag_embed(free_).flatten(1, 2)  # (B, N * n, n): each example's free variables
    flat = free_.flatten(1)
    form = flat.unsqueeze(2) * blocks * flat.unsqueeze(1) + sums @ sums.mT + torch.diag_embed(1 - flat)
    total = -fixed.sum(1).unsqueeze(2)
    linear = torch.where(free, margin - fixed @ gram + RIDGE * inner, fixed).flatten(1).unsqueeze(2) + sums @ total
    factor = torch.linalg.cholesky_ex(form)[0]
    effect = torch.cholesky_solve(torch.cat([sums, linear], 2), factor)
    effect, start = effect[:, :, :n], effect[:, :, n:]
    coupling = torch.linalg.cholesky_ex(sums.mT @ effect + torch.diag_embed((~free.any(1)).to(gram.dtype)))[0]
    solution = start - effect @ torch.cholesky_solve(sums.mT @ start - total, coupling)
    return solution.view(-1, n_way, n)
