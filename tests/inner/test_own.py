"""An inner optimizer of a user's own."""

import pytest
import torch
from torch import nn

from lightning_meta import SGD, InnerOptimizer, MAMLModule
from tests.conftest import relative_error, vector_tasks


@pytest.mark.parametrize("lr", [-0.1, float("nan")])
def test_a_bad_rate_is_refused(lr):
    with pytest.raises(ValueError, match="0 or more"):
        SGD(lr)


class NormalizedMomentum(InnerOptimizer):
    """Learned rate, momentum, and the norm over all parameters of a task: state, extras and coupling."""

    def __init__(self):
        super().__init__()
        self.rate = nn.Parameter(torch.tensor(0.3, dtype=torch.float64))

    def init(self, params):
        return {name: torch.zeros_like(p) for name, p in params.items()}

    def update(self, grads, state, params, *, loss, step, **extra):
        norm = sum(g.square().sum() for g in grads.values()).sqrt()
        state = {name: 0.5 * state[name] + grads[name] / norm for name in params}
        return {name: p - self.rate * loss / (step + 1) * state[name] for name, p in params.items()}, state


def test_an_inner_optimizer_of_ones_own_is_meta_learned_in_every_way():
    torch.manual_seed(0)
    net = nn.Linear(6, 3).double()
    gradients = {}
    for way in ("loop", "vmap", 3):
        module = MAMLModule(net, inner_steps=3, inner_optimizer=NormalizedMomentum(), task_parallel=way)
        module.zero_grad()
        module.meta_loss(vector_tasks()).backward()
        gradients[way] = [p.grad.clone() for p in module.parameters()]
        assert module.inner_optimizer.rate.grad.abs() > 0
        assert any(p is module.inner_optimizer.rate for p in module.configure_optimizers().param_groups[1]["params"])
    assert relative_error(gradients["vmap"], gradients["loop"]) < 1e-12
    assert relative_error(gradients[3], gradients["loop"]) < 1e-12


def test_the_rate_is_given_in_one_place():
    net = nn.Linear(2, 2)
    assert MAMLModule(net).inner_optimizer.lr == 0.01
    assert MAMLModule(net, inner_lr=0.4).inner_optimizer.lr == 0.4
    with pytest.raises(ValueError, match="Give the rate to that one"):
        MAMLModule(net, inner_lr=0.01, inner_optimizer=SGD(0.1))


class InPlace(InnerOptimizer):
    """What torch's optimizers do."""

    def init(self, params):
        return ()

    def update(self, grads, state, params, *, loss, step, **extra):
        with torch.no_grad():
            for name, param in params.items():
                param.sub_(0.1 * grads[name])
        return params, state


class Forgetful(InPlace):
    """Returns the parameters only."""

    def update(self, grads, state, params, *, loss, step, **extra):
        return {name: param - grads[name] for name, param in params.items()}


@pytest.mark.parametrize("way", ["loop", "auto"])
def test_mistakes_of_ones_own_are_named(way):
    tasks = vector_tasks()
    with pytest.raises(RuntimeError, match=r"InPlace\.update has written in place into weight"):
        MAMLModule(nn.Linear(6, 3).double(), inner_optimizer=InPlace(), task_parallel=way).meta_loss(tasks)
    with pytest.raises(TypeError, match=r"Forgetful\.update must return two things"):
        MAMLModule(nn.Linear(6, 3).double(), inner_optimizer=Forgetful(), task_parallel=way).meta_loss(tasks)
    with pytest.raises(TypeError, match="optimizer must be callable"):
        MAMLModule(nn.Linear(6, 3), optimizer=SGD(0.1))
