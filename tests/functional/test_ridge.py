"""Ridge regression in closed form."""

import pytest
import torch
import torch.nn.functional as F

from lightning_meta.functional.ridge import ridge_weights


def problem(examples, features, tasks=3):
    generator = torch.Generator().manual_seed(examples)
    x = torch.randn(tasks, examples, features, generator=generator, dtype=torch.float64)
    return x, torch.randint(0, 4, (tasks, examples), generator=generator)


@pytest.mark.parametrize(("examples", "features"), [(5, 12), (12, 5)])
def test_the_solution_is_that_of_the_normal_equations_and_minimizes_the_loss(examples, features):
    x, targets = problem(examples, features)
    found = ridge_weights(x, targets, 4, 0.3)
    y = F.one_hot(targets, 4).double()
    for i in range(3):
        expected = torch.linalg.solve(x[i].T @ x[i] + 0.3 * torch.eye(features, dtype=torch.float64), x[i].T @ y[i])
        torch.testing.assert_close(found[i], expected.T, rtol=1e-10, atol=1e-10)
    w = found.clone().requires_grad_()
    ((x @ w.transpose(1, 2) - y).square().sum() + 0.3 * w.square().sum()).backward()
    assert w.grad.abs().max() < 1e-10


@pytest.mark.parametrize(("examples", "features"), [(4, 6), (6, 4)])
def test_its_derivatives_in_features_and_strength(examples, features):
    x, targets = problem(examples, features, tasks=1)
    strength = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)

    def function(x, strength):
        return ridge_weights(x, targets, 4, strength)

    assert torch.autograd.gradcheck(function, (x.requires_grad_(), strength))
    assert torch.autograd.gradgradcheck(function, (x, strength))


def test_padding_and_absent_classes():
    x, targets = problem(9, 5)
    mask = torch.ones(3, 9, dtype=torch.bool)
    mask[1, 4:] = False
    targets = targets.where(mask, 3)
    found = ridge_weights(x, targets, 6, 0.3, mask)
    torch.testing.assert_close(found[1], ridge_weights(x[1, :4], targets[1, :4], 6, 0.3), rtol=1e-12, atol=1e-12)
    assert found[:, 4:].abs().max() == 0


def test_it_is_solved_in_single_precision_under_autocast():
    x, targets = problem(5, 12)
    with torch.autocast("cpu", torch.bfloat16):
        found = ridge_weights(x.float(), targets, 4, 0.3)
    torch.testing.assert_close(found.double(), ridge_weights(x, targets, 4, 0.3), rtol=1e-4, atol=1e-5)
