"""Learned inner rates."""

import math

import pytest
import torch
from torch import nn

from lightning_meta import MAMLModule
from lightning_meta.inner import LSLR, SGD, MetaSGD
from tests.conftest import relative_error, vector_tasks


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).double()


@pytest.mark.parametrize("kind", [MetaSGD, LSLR])
@pytest.mark.parametrize("positive", [False, True])
def test_rates_start_as_gradient_descent_and_learn(kind, positive):
    tasks = vector_tasks()
    plain = MAMLModule(net(), 0.2, inner_steps=2)
    module = MAMLModule(net(), inner_optimizer=kind(0.2, positive), inner_steps=2)
    gradients = []
    for m in (plain, module):
        loss = m.meta_loss(tasks)
        loss.backward()
        gradients.append([p.grad for p in m.network.parameters()])
    assert relative_error(gradients[1], gradients[0]) < 1e-12
    rates = dict(module.inner_optimizer.rates)
    assert set(rates) == {"0/weight", "0/bias", "2/weight", "2/bias"}
    assert tuple(rates["0/weight"].shape) == ((8, 6) if kind is MetaSGD else (2,))
    assert all(rate.grad.abs().sum() > 0 for rate in rates.values())
    assert all(id(rate) in {id(p) for p in module.parameters()} for rate in rates.values())
    assert module.inner_optimizer.rate("2.bias", 0).min().item() == pytest.approx(0.2)


def test_the_gradient_of_a_rate_is_that_of_the_loss_in_it():
    tasks = vector_tasks()
    module = MAMLModule(net(), inner_optimizer=LSLR(0.2, positive=True), inner_steps=2)
    module.meta_loss(tasks).backward()
    rate = module.inner_optimizer.rates["0/weight"]
    found, values = rate.grad[1].item(), []
    for sign in (1, -1):
        with torch.no_grad():
            rate[1] = math.log(0.2) + sign * 1e-6
        values.append(module.meta_loss(tasks).item())
    assert (values[0] - values[1]) / 2e-6 == pytest.approx(found, rel=1e-6)


def test_each_step_has_its_own_rate_and_later_ones_the_last():
    optimizer = LSLR(0.1)
    optimizer.build({"w": torch.zeros(2)}, steps=3)
    with torch.no_grad():
        optimizer.rates["w"].copy_(torch.tensor([0.1, 0.2, 0.3]))
    rates = [optimizer.rate("w", step).item() for step in range(5)]
    assert rates == pytest.approx([0.1, 0.2, 0.3, 0.3, 0.3])


def test_rates_of_adapted_parameters_only_and_checkpoints(tmp_path):
    module = MAMLModule(net(), inner_optimizer=MetaSGD(0.1), adapt_only="2")
    assert set(module.inner_optimizer.rates) == {"2/weight", "2/bias"}
    other = MAMLModule(net(), inner_optimizer=MetaSGD(0.3), adapt_only="2")
    other.load_state_dict(module.state_dict())
    assert other.inner_optimizer.rate("2.bias", 0).max().item() == pytest.approx(0.1)


def test_errors_name_the_remedy():
    with pytest.raises(ValueError, match="positive cannot start"):
        MetaSGD(0.0, positive=True)
    with pytest.raises(RuntimeError, match=r"no rate for the parameter 'w'.*build"):
        MetaSGD().update({}, (), {"w": torch.zeros(1)}, loss=torch.tensor(0.0), step=0)
    module = MAMLModule(net(), inner_optimizer=SGD(0.1))
    module.algorithm.inner_optimizer = MetaSGD(0.1)
    with pytest.raises(RuntimeError, match="build"):
        module.meta_loss(vector_tasks())


def test_the_outer_rate_of_what_the_inner_optimizer_learns():
    module = MAMLModule(net(), inner_optimizer=LSLR(0.1), inner_optimizer_lr=0.5)
    groups = module.configure_optimizers().param_groups
    assert [(len(group["params"]), group["lr"]) for group in groups] == [(4, 0.001), (4, 0.5)]
    assert {id(p) for p in groups[1]["params"]} == {id(p) for p in module.inner_optimizer.parameters()}
    groups = MAMLModule(net(), inner_optimizer=LSLR(0.1)).configure_optimizers().param_groups
    assert [(len(group["params"]), group["lr"]) for group in groups] == [(4, 0.001), (4, 0.001)]
    with pytest.raises(ValueError, match=r"inner_optimizer_lr=0.5 .* SGD\(lr=0.01\) learns; if that is nothing"):
        MAMLModule(net(), inner_optimizer_lr=0.5)


@pytest.mark.parametrize("rate", [None, 0.01])
def test_weight_decay_leaves_learned_rates_alone(rate):
    """Where no gradient says otherwise, weights shrink by 1 - lr x decay, and learned rates stay what they are."""
    module = MAMLModule(
        net(),
        inner_optimizer=MetaSGD(0.1),
        inner_optimizer_lr=rate,
        optimizer=lambda groups: torch.optim.AdamW(groups, lr=0.1, weight_decay=0.5),
    )
    optimizer = module.configure_optimizers()
    weight = module.network[0].weight.detach().clone()
    for parameter in module.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    torch.testing.assert_close(module.network[0].weight, 0.95 * weight)
    rates = torch.cat([rate.flatten() for rate in module.inner_optimizer.rates.values()])
    torch.testing.assert_close(rates, torch.full_like(rates, 0.1), rtol=0, atol=0)


def test_learned_rates_are_not_lost_to_another_module():
    rates = MetaSGD(0.1)
    MAMLModule(net(), inner_optimizer=rates)
    with torch.no_grad():
        rates.rates["2/bias"].fill_(0.7)
    MAMLModule(net(), inner_optimizer=rates)
    assert rates.rate("2.bias", 0).min().item() == pytest.approx(0.7)
    with pytest.raises(ValueError, match="inner optimizer of its own"):
        MAMLModule(nn.Linear(6, 3), inner_optimizer=rates)
