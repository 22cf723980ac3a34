"""The update cell of Meta-LSTM against the paper's equations, evaluated coordinate by coordinate."""

import math

import pytest
import torch
from torch import nn

from lightning_meta import MetaLSTMModule
from lightning_meta.inner import LSTMOptimizer
from lightning_meta.inner.lstm import preprocess
from tests.conftest import relative_error, vector_tasks

H = 3


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def dot(a, b):
    return sum(x * y for x, y in zip(a, b, strict=True))


def pre(x, p=10):
    if abs(x) >= math.exp(-p):
        return [math.log(abs(x)) / p, math.copysign(1, x)]
    return [-1.0, math.exp(p) * x]


class Coordinate:
    """One coordinate's LSTM in plain Python."""

    def __init__(self, optimizer):
        self.w = {name: p.tolist() for name, p in optimizer.named_parameters()}
        self.h, self.s, self.f, self.i = [0.0] * H, [0.0] * H, 0.0, 0.0

    def step(self, value, grad, loss):
        x = pre(loss) + pre(grad)
        rows = range(4 * H)
        z = [dot(self.w["weight_x"][k], x) + dot(self.w["weight_h"][k], self.h) + self.w["bias"][k] for k in rows]
        enter, forget, out = ([sigmoid(v) for v in z[k * H : (k + 1) * H]] for k in range(3))
        candidate = [math.tanh(v) for v in z[3 * H :]]
        self.s = [f * s + i * c for f, s, i, c in zip(forget, self.s, enter, candidate, strict=True)]
        self.h = [o * math.tanh(s) for o, s in zip(out, self.s, strict=True)]
        self.f = sigmoid(dot(self.w["weight_forget"], [*self.h, value, self.f]) + self.w["bias_forget"])
        self.i = sigmoid(dot(self.w["weight_input"], [*self.h, value, self.i]) + self.w["bias_input"])
        return self.f * value - self.i * grad


def optimizer_with_large_weights():
    torch.manual_seed(0)
    optimizer = LSTMOptimizer(H, input_bias=(-1.5, -1.0)).double()
    with torch.no_grad():
        for p in optimizer.parameters():
            p.add_(0.5 * torch.randn_like(p))
    return optimizer


def test_the_cell_is_that_of_the_paper():
    optimizer = optimizer_with_large_weights()
    params = {"a": torch.randn(2, 2, dtype=torch.float64), "b": torch.randn(3, dtype=torch.float64)}
    cells = [Coordinate(optimizer) for _ in range(7)]
    values = torch.cat([p.flatten() for p in params.values()]).tolist()
    state = optimizer.init(params)
    for step, loss in enumerate([1.7, 0.4, 1e-6, 0.0]):
        grads = {name: torch.randn_like(p) * 10.0 ** (-2 * step) for name, p in params.items()}
        grads["b"][0] = 0.0
        flat = torch.cat([g.flatten() for g in grads.values()]).tolist()
        values = [cell.step(v, g, loss) for cell, v, g in zip(cells, values, flat, strict=True)]
        loss = torch.tensor(loss, dtype=torch.float64)
        params, state = optimizer.update(grads, state, params, loss=loss, step=step)
        found = torch.cat([p.flatten() for p in params.values()])
        torch.testing.assert_close(found, torch.tensor(values, dtype=torch.float64), rtol=1e-12, atol=1e-14)
    expected = torch.tensor([cell.i for cell in cells], dtype=torch.float64)
    torch.testing.assert_close(state["input_gate"], expected, rtol=1e-12, atol=0)


def test_first_updates_are_small_gradient_steps():
    torch.manual_seed(0)
    optimizer = LSTMOptimizer()
    params, grads = {"w": torch.randn(100)}, {"w": torch.randn(100)}
    _, state = optimizer.update(grads, optimizer.init(params), params, loss=torch.tensor(1.6), step=0)
    assert 0.98 < state["forget_gate"].min() < state["forget_gate"].max() < 0.994
    assert 0.006 < state["input_gate"].min() < state["input_gate"].max() < 0.019


def test_preprocessing_covers_all_scales():
    found = preprocess(torch.tensor([1.0, -math.e, math.exp(-10) / 2, 0.0], dtype=torch.float64))
    expected = torch.tensor([[0.0, 0.1, -1.0, -1.0], [1.0, -1.0, 0.5, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(found, expected)
    x = torch.tensor([0.0, 1e-6, 2.0], requires_grad=True)
    (gradient,) = torch.autograd.grad(preprocess(x).sum(), x)
    assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("second_order", [False, True])
def test_the_meta_gradient_against_finite_differences(second_order, monkeypatch):
    """What is taken for constant (the support losses and, at first order, their gradients) is replayed."""
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    optimizer = optimizer_with_large_weights()
    module = MetaLSTMModule(net, optimizer, inner_steps=3, second_order=second_order, task_parallel="loop")
    tasks, update, recorded = vector_tasks(tasks=2), optimizer.update, []

    def recording(grads, state, params, *, loss, step):
        recorded.append(({name: g.detach() for name, g in grads.items()}, loss))
        return update(grads, state, params, loss=loss, step=step)

    monkeypatch.setattr(optimizer, "update", recording)
    module.meta_loss(tasks).backward()
    parameters = list(module.parameters())
    direction = [torch.randn_like(p) for p in parameters]
    slope = sum((p.grad * d).sum() for p, d in zip(parameters, direction, strict=True)).item()

    def loss_at(distance):
        steps = iter(recorded)

        def replaying(grads, state, params, *, loss, step):
            constant, loss = next(steps)
            return update(grads if second_order else constant, state, params, loss=loss, step=step)

        monkeypatch.setattr(optimizer, "update", replaying)
        with torch.no_grad():
            for p, d in zip(parameters, direction, strict=True):
                p.add_(d, alpha=distance)
        loss = module.meta_loss(tasks).item()
        with torch.no_grad():
            for p, d in zip(parameters, direction, strict=True):
                p.sub_(d, alpha=distance)
        return loss

    assert (loss_at(1e-6) - loss_at(-1e-6)) / 2e-6 == pytest.approx(slope, rel=1e-6)


def test_second_order_reaches_further():
    tasks, gradients = vector_tasks(tasks=2), {}
    for second_order in (False, True):
        torch.manual_seed(1)
        net = nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 3)).double()
        module = MetaLSTMModule(net, optimizer_with_large_weights(), inner_steps=2, second_order=second_order)
        module.meta_loss(tasks).backward()
        gradients[second_order] = [p.grad for p in net.parameters()]
    assert relative_error(gradients[False], gradients[True]) > 0.01


def test_it_takes_the_precision_of_the_network():
    module = MetaLSTMModule(nn.Linear(6, 3).double(), inner_steps=2)
    module.meta_loss(vector_tasks()).backward()
    assert module.inner_optimizer.weight_x.grad.dtype == torch.float64


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match="hidden"):
        LSTMOptimizer(0)
    with pytest.raises(ValueError, match="input_bias"):
        LSTMOptimizer(input_bias=(1.0, -1.0))
