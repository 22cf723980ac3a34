"""Meta-Curvature."""

import pytest
import torch
from torch import nn

from lightning_meta import MAMLModule
from lightning_meta.inner import SGD, MetaCurvature
from tests.conftest import image_tasks, relative_error
from tests.modules.test_contracts import meta_gradient
from tests.networks import network


def random_gradients():
    generator = torch.Generator().manual_seed(0)
    shapes = {"conv.weight": (4, 3, 2, 2), "linear.weight": (3, 5), "bias": (4,), "scale": ()}
    return {name: torch.randn(shape, generator=generator, dtype=torch.float64) for name, shape in shapes.items()}


def test_the_transformation_is_the_kronecker_product():
    grads = random_gradients()
    params = {name: torch.zeros_like(grad) for name, grad in grads.items()}
    optimizer = MetaCurvature(1.0)
    optimizer.build(params, steps=1)
    with torch.no_grad():
        for matrix in optimizer.matrices.values():
            matrix.copy_(torch.randn_like(matrix))
    new, _ = optimizer.update(grads, (), params, loss=torch.tensor(0.0), step=0)
    for name, grad in grads.items():
        matrices = [m for key, m in optimizer.matrices.items() if key.startswith(name.replace(".", "/"))]
        product = matrices[0]
        for matrix in matrices[1:]:
            product = torch.kron(product, matrix)
        torch.testing.assert_close(new[name].flatten(), -(product @ grad.flatten()), rtol=1e-12, atol=1e-12)
    assert {key.rsplit("/", 1)[0]: len([k for k in optimizer.matrices if k.startswith(key.rsplit("/", 1)[0])])
            for key in optimizer.matrices} == {"conv/weight": 3, "linear/weight": 2, "bias": 1, "scale": 1}  # fmt: skip


def test_it_starts_as_gradient_descent_and_learns_its_matrices():
    tasks = image_tasks()
    plain = MAMLModule(network("batch"), inner_optimizer=SGD(0.1), inner_steps=2)
    curved = MAMLModule(network("batch"), inner_optimizer=MetaCurvature(0.1), inner_steps=2)
    loss, expected = meta_gradient(plain, tasks)
    value, found = meta_gradient(curved, tasks)
    assert value.item() == pytest.approx(loss.item(), rel=1e-12)
    assert relative_error(found[: len(expected)], expected) < 1e-11
    learned = list(curved.inner_optimizer.parameters())
    assert learned
    assert all(p.grad.abs().sum() > 0 for p in learned if p.shape != (6, 6))


def test_matrices_of_another_network_are_refused():
    optimizer = MetaCurvature(0.1)
    MAMLModule(nn.Linear(3, 2), inner_optimizer=optimizer)
    MAMLModule(nn.Linear(3, 2), inner_optimizer=optimizer)
    with pytest.raises(ValueError, match="for other parameters already"):
        MAMLModule(nn.Linear(4, 2), inner_optimizer=optimizer)
