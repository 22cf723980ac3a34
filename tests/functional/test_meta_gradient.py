"""The meta-gradient against a hand-unrolled loop, another library, finite differences and a closed form."""

import higher
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

from lightning_meta import Examples, MAMLModule, Task
from lightning_meta.functional import Touch, surrogate
from tests.conftest import image_tasks, relative_error
from tests.networks import NORMS, network

LR = 0.3
WAYS = ["loop", "vmap", 1, 3]


def meta_gradient(module, tasks):
    module.zero_grad()
    loss = module.meta_loss(tasks)
    loss.backward()
    return loss.detach(), [p.grad for p in module.network.parameters()]


def unrolled(net, tasks, steps, first_order):
    """Reference: plain autograd, task by task, with batch statistics everywhere."""
    net.train()
    parameters = list(net.parameters())
    names = [name for name, _ in net.named_parameters()]
    total, losses = [torch.zeros_like(p) for p in parameters], []
    for i in range(len(tasks.support.targets)):
        (sx, sy), (qx, qy) = (tuple(t[i] for t in part[:2]) for part in tasks)
        params = parameters
        buffers = {name: b.clone() for name, b in net.named_buffers()}

        def loss(params, x, y, buffers=buffers):
            return F.cross_entropy(functional_call(net, dict(zip(names, params, strict=True)) | buffers, x), y)

        for _ in range(steps):
            grads = torch.autograd.grad(loss(params, sx, sy), params, create_graph=not first_order)
            params = [p - LR * g for p, g in zip(params, grads, strict=True)]
        query = loss(params, qx, qy)
        losses.append(query.detach())
        for t, g in zip(total, torch.autograd.grad(query, parameters), strict=True):
            t += g / len(tasks.support.targets)
    return torch.stack(losses).mean(), total


def with_higher(net, tasks, steps, first_order):
    """Reference: the library `higher`."""
    net.train()
    optimizer = torch.optim.SGD(net.parameters(), lr=LR)
    net.zero_grad()
    count = len(tasks.support.targets)
    for i in range(count):
        with higher.innerloop_ctx(net, optimizer, copy_initial_weights=False, track_higher_grads=not first_order) as (
            learner,
            inner,
        ):
            for _ in range(steps):
                inner.step(F.cross_entropy(learner(tasks.support.inputs[i]), tasks.support.targets[i]))
            query = F.cross_entropy(learner(tasks.query.inputs[i]), tasks.query.targets[i])
            if first_order:
                # higher leaves no path to the initial parameters: FOMAML's gradient is that of the adapted ones
                grads = torch.autograd.grad(query, list(learner.parameters()))
                for p, g in zip(net.parameters(), grads, strict=True):
                    p.grad = g / count if p.grad is None else p.grad + g / count
            else:
                (query / count).backward()
    return [p.grad.clone() for p in net.parameters()]


@pytest.mark.parametrize("kind", [*NORMS, "mlp"])
@pytest.mark.parametrize("steps", [1, 5])
@pytest.mark.parametrize("first_order", [False, True], ids=["second", "first"])
def test_every_way_has_the_gradient_of_the_unrolled_loop_and_of_higher(kind, steps, first_order):
    net, tasks = network(kind), image_tasks(n_query=2)
    expected_loss, expected = unrolled(net, tasks, steps, first_order)
    assert relative_error(with_higher(net, tasks, steps, first_order), expected) < 1e-10
    for way in WAYS:
        module = MAMLModule(net, LR, steps, first_order=first_order, task_parallel=way)
        loss, found = meta_gradient(module, tasks)
        assert loss.item() == pytest.approx(expected_loss.item(), rel=1e-12), way
        assert relative_error(found, expected) < 1e-10, way


def test_meta_gradient_against_finite_differences():
    net, tasks = network("batch"), image_tasks(tasks=2)
    module = MAMLModule(net, LR, inner_steps=2, task_parallel="vmap")
    _, found = meta_gradient(module, tasks)
    torch.manual_seed(3)
    direction = [torch.randn_like(p) for p in net.parameters()]
    values = []
    for sign in (1, -1):
        with torch.no_grad():
            for p, d in zip(net.parameters(), direction, strict=True):
                p.add_(d, alpha=sign * 1e-6)
        values.append(module.meta_loss(tasks).item())
        with torch.no_grad():
            for p, d in zip(net.parameters(), direction, strict=True):
                p.sub_(d, alpha=sign * 1e-6)
    slope = sum((g * d).sum() for g, d in zip(found, direction, strict=True)).item()
    assert (values[0] - values[1]) / 2e-6 == pytest.approx(slope, rel=1e-5)


class Point(nn.Module):
    """Predicts its parameter, whatever the inputs."""

    def __init__(self, dim):
        super().__init__()
        self.w = nn.Parameter(torch.linspace(-1, 1, dim, dtype=torch.float64))

    def forward(self, inputs):
        return self.w.expand(len(inputs), -1)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("steps", [1, 5])
@pytest.mark.parametrize("first_order", [False, True], ids=["second", "first"])
def test_closed_form_on_a_quadratic(way, steps, first_order):
    r"""For the loss (w-c)'A(w-c)/2, w_k - c = (I - lr A)^k (w - c), so the meta-gradient is J'A(w_k - d)."""
    dim, tasks = 4, 3
    generator = torch.Generator().manual_seed(1)
    root = torch.randn(dim, dim, generator=generator, dtype=torch.float64)
    curvature = root @ root.T / dim
    support, query = torch.randn(2, tasks, 1, dim, generator=generator, dtype=torch.float64)

    def loss(w, centre):
        error = (w - centre)[0]
        return error @ curvature @ error / 2

    module = MAMLModule(Point(dim), LR, steps, first_order=first_order, loss=loss, task_parallel=way)
    inputs = torch.zeros(tasks, 1, 1, dtype=torch.float64)
    value, (found,) = meta_gradient(module, Task(Examples(inputs, support), Examples(inputs, query)))

    contraction = torch.linalg.matrix_power(torch.eye(dim, dtype=torch.float64) - LR * curvature, steps)
    errors = support[:, 0] + (module.network.w.detach() - support[:, 0]) @ contraction - query[:, 0]
    jacobian = torch.eye(dim, dtype=torch.float64) if first_order else contraction
    torch.testing.assert_close(found, (errors @ curvature @ jacobian).mean(0), rtol=1e-12, atol=1e-14)
    assert value.item() == pytest.approx(((errors @ curvature) * errors).sum(1).mean().item() / 2, rel=1e-12)


def test_meta_batch_gradient_is_the_mean_of_single_tasks():
    net, tasks = network("batch"), image_tasks(tasks=3)
    _, found = meta_gradient(MAMLModule(net, LR), tasks)
    found = [g.clone() for g in found]
    single = []
    for i in range(3):
        one = Task(*(Examples(*(t[i : i + 1] for t in part[:2])) for part in tasks))
        single.append([g.clone() for g in meta_gradient(MAMLModule(net, LR), one)[1]])
    expected = [torch.stack(g).mean(0) for g in zip(*single, strict=True)]
    assert relative_error(found, expected) < 1e-12


def test_surrogate_carries_value_and_gradient_also_under_autocast():
    p = torch.randn(1000, requires_grad=True)
    g = torch.randn(1000)
    with torch.autocast("cpu", torch.bfloat16):
        scalar = surrogate(torch.tensor(2.5), [p], [g])
    scalar.backward()
    assert scalar.item() == 2.5
    torch.testing.assert_close(p.grad, g, rtol=0, atol=0)


def test_touch_reaches_parameters_that_the_loss_does_not_depend_on():
    used, unused = (torch.ones(3, requires_grad=True) for _ in range(2))
    loss = Touch.apply(used.sum(), used, unused)
    loss.backward()
    assert loss.item() == 3
    assert used.grad.tolist() == [1, 1, 1]
    assert unused.grad.tolist() == [0, 0, 0]
