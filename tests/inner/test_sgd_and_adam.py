"""SGD and Adam against `torch.optim`, `higher`, and finite differences."""

import higher
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_meta import MAMLModule
from lightning_meta.inner import SGD, Adam
from lightning_meta.testing import check_inner_optimizer
from tests.conftest import relative_error, vector_tasks

CASES = {
    "sgd": (SGD(0.1), torch.optim.SGD, {"lr": 0.1}),
    "momentum": (SGD(0.1, momentum=0.9), torch.optim.SGD, {"lr": 0.1, "momentum": 0.9}),
    "nesterov": (
        SGD(0.1, momentum=0.9, nesterov=True, weight_decay=0.01),
        torch.optim.SGD,
        {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01},
    ),
    "adam": (Adam(0.1), torch.optim.Adam, {"lr": 0.1}),
    "adam_reptile": (Adam(0.1, betas=(0.0, 0.999)), torch.optim.Adam, {"lr": 0.1, "betas": (0.0, 0.999)}),
    "adam_decay": (
        Adam(0.1, betas=(0.8, 0.95), eps=1e-3, weight_decay=0.1),
        torch.optim.Adam,
        {"lr": 0.1, "betas": (0.8, 0.95), "eps": 1e-3, "weight_decay": 0.1},
    ),
}
every_case = pytest.mark.parametrize("case", CASES)


@every_case
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_twenty_steps_are_those_of_torch(case, dtype, tolerance):
    ours, theirs, settings = CASES[case]
    torch.manual_seed(0)
    params = {"w": torch.randn(4, 3, dtype=dtype), "b": torch.randn(3, dtype=dtype)}
    copies = {name: p.clone().requires_grad_() for name, p in params.items()}
    optimizer = theirs(copies.values(), **settings)
    state = ours.init(params)
    for step in range(20):
        for copy in copies.values():
            copy.grad = torch.sin(3 * copy.detach()) + 0.1
        optimizer.step()
        grads = {name: torch.sin(3 * p) + 0.1 for name, p in params.items()}
        params, state = ours.update(grads, state, params, loss=torch.tensor(0.0), step=step)
    for name in params:
        assert relative_error([params[name]], [copies[name].detach()]) < tolerance


@every_case
def test_the_meta_gradient_through_five_steps_is_that_of_higher(case):
    ours, theirs, settings = CASES[case]
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    tasks = vector_tasks()
    optimizer = theirs(net.parameters(), **settings)
    for i in range(4):
        with higher.innerloop_ctx(net, optimizer, copy_initial_weights=False) as (learner, inner):
            for step in range(5):
                if "betas" in optimizer.defaults:  # higher adds eps before the bias correction, torch after it
                    _, beta2 = optimizer.defaults["betas"]
                    inner.param_groups[0]["eps"] = optimizer.defaults["eps"] * (1 - beta2 ** (step + 1)) ** 0.5
                inner.step(F.cross_entropy(learner(tasks.support.inputs[i]), tasks.support.targets[i]))
            (F.cross_entropy(learner(tasks.query.inputs[i]), tasks.query.targets[i]) / 4).backward()
    expected = [p.grad.clone() for p in net.parameters()]
    for way in ("loop", "vmap"):
        net.zero_grad()
        MAMLModule(net, inner_steps=5, inner_optimizer=ours, task_parallel=way).meta_loss(tasks).backward()
        assert relative_error([p.grad for p in net.parameters()], expected) < 1e-10


@every_case
def test_gradcheck_through_the_trajectory_and_the_state(case):
    optimizer = CASES[case][0]

    def trajectory(w, state_of_old):
        params, state = {"w": w}, optimizer.init({"w": w})
        for step in range(3):
            grads = {"w": torch.sin(params["w"]) + state_of_old * params["w"]}
            params, state = optimizer.update(grads, state, params, loss=torch.tensor(0.0), step=step)
        return params["w"]

    torch.manual_seed(0)
    inputs = [torch.randn(4, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    assert torch.autograd.gradcheck(trajectory, inputs)
    assert torch.autograd.gradgradcheck(trajectory, inputs)


def test_a_gradient_of_zero_gives_no_nan():
    w = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    optimizer = Adam(0.1)
    params, state = {"w": w}, optimizer.init({"w": w})
    for step in range(2):
        grads = {"w": params["w"] * torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)}
        params, state = optimizer.update(grads, state, params, loss=torch.tensor(0.0), step=step)
    (gradient,) = torch.autograd.grad(params["w"].sum(), w)
    assert torch.isfinite(gradient).all()
    assert gradient[0] == 1


def test_bad_settings_are_refused():
    for wrong, message in [
        (lambda: SGD(momentum=-0.1), "momentum"),
        (lambda: SGD(nesterov=True), "momentum above 0"),
        (lambda: Adam(betas=(0.9, 1.0)), "betas"),
        (lambda: Adam(eps=0.0), "eps"),
        (lambda: Adam(lr=-1.0), "lr"),
    ]:
        with pytest.raises(ValueError, match=message):
            wrong()


def test_sgd_takes_a_rate_for_each_step():
    optimizer, params = SGD([0.5, 0.1]), {"w": torch.tensor([1.0])}
    found = [
        optimizer.update({"w": torch.tensor([1.0])}, (), params, loss=torch.tensor(0.0), step=step)[0]["w"].item()
        for step in range(3)
    ]
    assert found == pytest.approx([0.5, 0.9, 0.9])
    check_inner_optimizer(lambda: SGD([0.5, 0.1], momentum=0.9))
    assert optimizer.extra_repr() == "lr=[0.5, 0.1]"
    with pytest.raises(ValueError, match="lr is an empty list"):
        SGD([])
    with pytest.raises(ValueError, match=r"must be 0 or more, got lr=-0\.1"):
        SGD([0.5, -0.1])
