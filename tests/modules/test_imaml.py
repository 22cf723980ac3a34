"""Implicit MAML against closed forms."""

import gc

import psutil
import pytest
import torch
from torch import nn

from lightning_meta import Conv4, Examples, IMAMLModule, MetaModule, ReptileModule, Task
from lightning_meta.algorithms import GradientBased, Implicit, Unrolled
from lightning_meta.functional.conjugate_gradient import conjugate_gradient
from lightning_meta.inner import SGD, LSTMOptimizer
from tests.conftest import image_tasks, relative_error, vector_tasks
from tests.functional.test_meta_gradient import Point

WEIGHT = 0.7


def positive_definite(dim, seed):
    root = torch.randn(dim, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return root @ root.T / dim + 0.1 * torch.eye(dim, dtype=torch.float64)


@pytest.mark.parametrize("way", ["loop", "vmap", 2])
def test_the_closed_form_on_a_quadratic(way):
    r"""For L = (w-c)'A(w-c)/2 the solution is (A + lam)^-1 (A c + lam theta), so d phi / d theta = lam (A + lam)^-1."""
    dim, tasks = 5, 3
    curvature = positive_definite(dim, 1)
    generator = torch.Generator().manual_seed(2)
    support, query = torch.randn(2, tasks, 1, dim, generator=generator, dtype=torch.float64)

    def loss(w, centre):
        error = (w - centre)[0]
        return error @ curvature @ error / 2

    module = IMAMLModule(
        Point(dim), SGD(0.2), inner_steps=400, regularization=WEIGHT, cg_steps=dim, loss=loss, task_parallel=way
    )
    inputs = torch.zeros(tasks, 1, 1, dtype=torch.float64)
    value = module.meta_loss(Task(Examples(inputs, support), Examples(inputs, query)))
    value.backward()

    inverse = torch.linalg.inv(curvature + WEIGHT * torch.eye(dim, dtype=torch.float64))
    theta = module.network.w.detach()
    phi = (support[:, 0] @ curvature + WEIGHT * theta) @ inverse
    errors = phi - query[:, 0]
    expected = (errors @ curvature @ (WEIGHT * inverse)).mean(0)
    torch.testing.assert_close(module.network.w.grad, expected, rtol=1e-6, atol=1e-9)
    assert value.item() == pytest.approx(((errors @ curvature) * errors).sum(1).mean().item() / 2, rel=1e-6)


@pytest.mark.parametrize("adapt_only", [None, "2"])
def test_the_gradient_of_a_damped_system(adapt_only):
    """At the same adapted parameters that of a stronger term, and with a strong damping that of first order."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    tasks = vector_tasks(tasks=2)

    def gradients(meta_gradient, proximal):
        algorithm = GradientBased(SGD(0.0), meta_gradient, inner_steps=1, proximal=proximal, adapt_only=adapt_only)
        net.zero_grad()
        MetaModule(net, algorithm).meta_loss(tasks).backward()
        return [p.grad.clone() for p in net.parameters()]

    exact = gradients(Implicit(30), 2.5)
    assert relative_error(gradients(Implicit(30, damping=2.0), 0.5), exact) < 1e-9
    first_order = gradients(Unrolled(first_order=True), 2.5)
    assert relative_error(gradients(Implicit(30, damping=1e8), 0.5), first_order) < 1e-6
    assert relative_error(exact, first_order) > 1e-3


def test_the_gradient_is_that_of_a_long_unrolled_inner_loop():
    """On a smooth network, also for the body that all tasks share while only the head is adapted."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    tasks = vector_tasks(tasks=2)

    for adapt_only in (None, "2"):
        gradients = []
        for meta_gradient in (Implicit(cg_steps=30), Unrolled()):
            algorithm = GradientBased(SGD(0.3), meta_gradient, inner_steps=120, proximal=2.0, adapt_only=adapt_only)
            module = MetaModule(net, algorithm, task_parallel="vmap")
            net.zero_grad()
            module.meta_loss(tasks).backward()
            gradients.append([p.grad.clone() for p in net.parameters()])
        assert relative_error(*gradients) < 1e-6, adapt_only


def test_memory_does_not_grow_with_the_inner_steps():
    torch.manual_seed(0)
    tasks = image_tasks(tasks=4, n_way=5, k_shot=1, n_query=5, size=28, dtype=torch.float32)
    process, peak = psutil.Process(), {}
    for steps in (5, 50):
        module = IMAMLModule(Conv4(5, hidden=32), SGD(0.05), inner_steps=steps, task_parallel="vmap")
        highest = []
        update = module.inner_optimizer.update

        def watching(*args, update=update, highest=highest, **kwargs):
            highest.append(process.memory_info().rss)
            return update(*args, **kwargs)

        module.inner_optimizer.update = watching
        for _ in range(3):
            module.zero_grad()
            module.meta_loss(tasks).backward()
            highest.append(process.memory_info().rss)
        gc.collect()
        peak[steps] = max(highest)
    assert peak[50] < 1.05 * peak[5]


def test_conjugate_gradient_solves_every_task():
    matrices = torch.stack([positive_definite(6, seed) for seed in range(3)])
    right = torch.randn(3, 6, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    right[1] = 0  # solved from the start

    def product(v):
        image = torch.einsum("bij,bj->bi", matrices, torch.cat([v["a"], v["b"].flatten(1)], 1))
        return {"a": image[:, :2], "b": image[:, 2:].view(3, 2, 2)}

    found = conjugate_gradient(product, {"a": right[:, :2], "b": right[:, 2:].view(3, 2, 2)}, steps=8)
    expected = torch.linalg.solve(matrices, right)
    torch.testing.assert_close(torch.cat([found["a"], found["b"].flatten(1)], 1), expected, rtol=1e-8, atol=1e-9)


def test_what_it_cannot_do_is_refused():
    with pytest.raises(ValueError, match="IMAMLModule has no gradient for what LSTMOptimizer learns"):
        IMAMLModule(nn.Linear(2, 2), LSTMOptimizer())
    with pytest.raises(ValueError, match="regularization"):
        IMAMLModule(nn.Linear(2, 2), regularization=0.0)
    with pytest.raises(ValueError, match="cg_steps"):
        IMAMLModule(nn.Linear(2, 2), cg_steps=0)
    with pytest.raises(ValueError, match="damping must be 0 or more"):
        IMAMLModule(nn.Linear(2, 2), damping=-1.0)


def test_conjugate_gradient_stops_where_a_matrix_is_not_positive():
    """The residual never grows, and a task that is refused at once has the right-hand side for its solution."""
    rotation, _ = torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    eigenvalues = torch.tensor([[5.0, 3, 2, 1, 0.5, -0.3], [-1.0] * 6], dtype=torch.float64)
    matrices = rotation @ torch.diag_embed(eigenvalues) @ rotation.T
    right = torch.randn(2, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def product(v):
        return {"x": torch.einsum("bij,bj->bi", matrices, v["x"])}

    found = [conjugate_gradient(product, {"x": right}, steps)["x"] for steps in range(1, 12)]
    assert all(torch.equal(x[1], right[1]) for x in found)
    stopped = next(i for i in range(10) if torch.equal(found[i][0], found[i + 1][0]))
    assert all(torch.equal(found[stopped][0], x[0]) for x in found[stopped:])


class Tempered(nn.Module):
    """A linear layer and a scalar parameter."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(6, 3)
        self.scale = nn.Parameter(torch.tensor(1.5))

    def forward(self, x):
        return self.scale * self.linear(x)


@pytest.mark.parametrize("kind", [IMAMLModule, ReptileModule])
def test_scalar_parameters(kind):
    torch.manual_seed(0)
    gradients = []
    for way in ("loop", "vmap"):
        net = Tempered().double()
        net.load_state_dict(gradients[0][0] if gradients else net.state_dict())
        module = kind(net, SGD(0.1), inner_steps=3, task_parallel=way)
        module.meta_loss(vector_tasks()).backward()
        gradients.append((net.state_dict(), [p.grad for p in net.parameters()]))
    assert gradients[0][1][0].abs() > 0
    assert relative_error(gradients[1][1], gradients[0][1]) < 1e-11
