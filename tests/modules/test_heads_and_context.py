"""R2D2 and CAVIA against loops by hand."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

from lightning_meta import CAVIAModule, ContextMLP, R2D2Module, Task
from tests.conftest import pairs, relative_error, vector_tasks


def test_r2d2_is_ridge_regression_by_hand():
    torch.manual_seed(0)
    embedding, tasks = nn.Linear(6, 8).double(), vector_tasks()
    module = R2D2Module(embedding, regularization=0.5, scale=2.0).double()
    loss = module.meta_loss(tasks)
    loss.backward()
    found = [p.grad.clone() for p in module.parameters()]
    module.zero_grad()
    head, losses = module.algorithm.head, []
    for (sx, sy), (qx, qy) in pairs(tasks):
        x, y = embedding(sx), F.one_hot(sy, 3).double()
        inverse = torch.linalg.inv(x.T @ x + head.log_regularization.exp() * torch.eye(8, dtype=torch.float64))
        losses.append(F.cross_entropy(head.scale * embedding(qx) @ (inverse @ x.T @ y) + head.shift, qy))
    expected = torch.stack(losses).mean()
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-10)
    assert relative_error(found, [p.grad for p in module.parameters()]) < 1e-9


@pytest.mark.parametrize("way", ["vmap", "loop"])
def test_cavia_is_the_unrolled_loop_from_a_context_of_zeros(way):
    torch.manual_seed(0)
    net = ContextMLP(6, 1, hidden=[8]).double()
    with torch.no_grad():
        net.context.fill_(7.0)  # which has no effect
    tasks = vector_tasks()
    tasks = Task(*(part._replace(targets=part.targets.double().unsqueeze(-1)) for part in tasks))
    module = CAVIAModule(net, inner_lr=0.5, inner_steps=2, loss=F.mse_loss, task_parallel=way)
    loss = module.meta_loss(tasks)
    loss.backward()
    found = {name: p.grad.clone() for name, p in net.named_parameters()}
    assert found.pop("context").abs().max() == 0
    net.zero_grad()
    losses = []
    for (sx, sy), (qx, qy) in pairs(tasks):
        context = torch.zeros(5, dtype=torch.float64, requires_grad=True)
        for _ in range(2):
            support = F.mse_loss(functional_call(net, {"context": context}, sx), sy)
            (gradient,) = torch.autograd.grad(support, context, create_graph=True)
            context = context - 0.5 * gradient
        losses.append(F.mse_loss(functional_call(net, {"context": context}, qx), qy))
    expected = torch.stack(losses).mean()
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-12)
    assert relative_error(list(found.values()), [p.grad for n, p in net.named_parameters() if n in found]) < 1e-11
    adapted = module.adapt_to(tasks.support.inputs[0], tasks.support.targets[0])
    assert adapted.context.abs().max() > 0
    assert torch.equal(adapted.mlp.head.weight, net.mlp.head.weight)


def test_what_makes_no_sense_is_refused():
    with pytest.raises(ValueError, match="adapt_only='context' matches none"):
        CAVIAModule(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="regularization must be positive"):
        R2D2Module(nn.Linear(2, 2), regularization=0.0)
    with pytest.raises(ValueError, match="context_size must be a whole number"):
        ContextMLP(context_size=0)
    module, tasks = R2D2Module(nn.Conv2d(1, 4, 1)), vector_tasks(dtype=torch.float32)
    maps = Task(*(part._replace(inputs=torch.rand(4, part.targets.shape[1], 1, 4, 4)) for part in tasks))
    with pytest.raises(ValueError, match=r"\(examples, features\), but gives \(15, 4, 4, 4\)"):
        module.meta_loss(maps)
