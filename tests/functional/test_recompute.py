"""Steps that are computed again in the backward pass."""

import copy

import pytest
import torch
from torch import nn

from lightning_meta import MAMLModule
from lightning_meta.errors import NetworkError
from lightning_meta.functional.kernels import mode
from lightning_meta.functional.recompute import recomputed
from tests.conftest import image_tasks, relative_error


class InPlace(nn.Module):
    def __init__(self, method):
        super().__init__()
        self.method = method

    def forward(self, x):
        return getattr(x, self.method)()


ACTIVATIONS = {
    **{kind.__name__: kind(inplace=True) for kind in (nn.ReLU, nn.ELU, nn.SiLU)},
    **{name: InPlace(name) for name in ("tanh_", "exp_")},
}


def gradient(net, way, **options):
    own = copy.deepcopy(net)
    torch.manual_seed(1)
    module = MAMLModule(own, 0.1, 2, task_parallel=way, **options)
    module.meta_loss(image_tasks(channels=2, size=6)).backward()
    return torch.cat([p.grad.flatten() for p in own.parameters()])


@pytest.mark.parametrize("way", ["loop", "vmap"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations_in_place(way, activation, monkeypatch):
    """Their results are saved, and asked for twice where they are written into a view, as a kernel's result is."""
    monkeypatch.setattr(mode, "SMALLEST_OF_ONE_TASK", 0)
    torch.manual_seed(0)
    layers = nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), ACTIVATIONS[activation], nn.Flatten(), nn.Linear(64, 3)
    net = nn.Sequential(*layers).double()
    assert relative_error(gradient(net, way, checkpoint_inner_steps=True), gradient(net, way)) < 1e-12


def test_random_numbers_are_drawn_again():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(72, 20), nn.Dropout(0.5), nn.Tanh(), nn.Linear(20, 3)).double()
    plain = gradient(net, "vmap")
    assert relative_error(gradient(net, "vmap", checkpoint_inner_steps=True), plain) < 1e-12
    torch.manual_seed(1)
    before = torch.get_rng_state()
    x = torch.ones(5, requires_grad=True)
    recomputed(lambda x: (x * torch.rand(5)).exp(), x).sum().backward()
    drawn = torch.get_rng_state()
    torch.set_rng_state(before)
    torch.rand(5)
    assert torch.equal(torch.get_rng_state(), drawn)  # the backward pass has drawn nothing


def test_a_chain_of_calls_keeps_the_values_of_few():
    def step(x):
        return x.sin().exp().cos()

    x = torch.ones(3, dtype=torch.double, requires_grad=True)
    end = x
    for _ in range(6):
        end = recomputed(step, end)
    (found,) = torch.autograd.grad(end.sum(), x)
    expected = x
    for _ in range(6):
        expected = step(expected)
    assert torch.equal(found, torch.autograd.grad(expected.sum(), x)[0])


def test_automatic_precision_is_that_of_the_call():
    weight = torch.randn(8, 8, requires_grad=True)
    kinds = []

    def product(weight):
        kinds.append((weight @ weight).dtype)
        return (weight @ weight).float().tanh()

    with torch.autocast("cpu", torch.bfloat16):
        result = recomputed(product, weight)
    result.sum().backward()
    assert kinds == [torch.bfloat16] * 2


def test_what_does_something_else_each_time_is_an_error():
    calls = []

    def step(x):
        calls.append(None)
        return x.exp() if len(calls) == 1 else x.exp().sin().exp()

    x = torch.ones(3, requires_grad=True)
    with pytest.raises(NetworkError, match="something else in each call"):
        recomputed(step, x).sum().backward()


def test_what_is_overwritten_is_an_error():
    def step(x):
        y = x.exp()
        z = y * y
        y.add_(1)
        (inner,) = torch.autograd.grad(z.sum(), x, create_graph=True)
        return inner

    with pytest.raises(NetworkError, match="overwritten in place"):
        recomputed(step, torch.ones(3, requires_grad=True))
