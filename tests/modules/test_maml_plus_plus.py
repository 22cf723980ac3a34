"""The options of MAML++."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

from lightning_meta import MAMLModule
from lightning_meta.functional.multi_step import multi_step_weights
from lightning_meta.inner import LSLR
from tests.conftest import image_tasks, pairs, relative_error, vector_tasks
from tests.modules.test_contracts import FixedDataModule, trainer
from tests.networks import network

RATE = 0.2


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).double()


def set_step(module, step, monkeypatch):
    monkeypatch.setattr(module.outer, "step", step)


@pytest.mark.parametrize("step", [0, 5, 10])
def test_the_multi_step_loss_is_the_weighted_one_by_hand(step, monkeypatch):
    learned, tasks = net(), vector_tasks()
    module = MAMLModule(learned, RATE, inner_steps=3, multi_step_loss_steps=10)
    set_step(module, step, monkeypatch)
    loss = module.meta_loss(tasks)
    loss.backward()
    found = [p.grad.clone() for p in learned.parameters()]
    learned.zero_grad()
    weights = {0: [1 / 3] * 3, 5: [1 / 6, 1 / 6, 2 / 3], 10: [0, 0, 1]}[step]
    total, last = 0.0, 0.0
    for (sx, sy), (qx, qy) in pairs(tasks):
        params = dict(learned.named_parameters())
        for weight in weights:
            support = F.cross_entropy(functional_call(learned, params, sx), sy)
            grads = torch.autograd.grad(support, list(params.values()), create_graph=True)
            params = {name: p - RATE * g for (name, p), g in zip(params.items(), grads, strict=True)}
            query = F.cross_entropy(functional_call(learned, params, qx), qy)
            total = total + weight * query / 4
        last += query.item() / 4
    total.backward()
    assert loss.item() == pytest.approx(last, rel=1e-12)  # the value is that of the last step
    assert relative_error(found, [p.grad for p in learned.parameters()]) < 1e-11


def test_weights_fall_to_a_floor_and_always_sum_to_one():
    assert multi_step_weights(1, 0.3) == [1.0]
    for progress in (0.0, 0.3, 0.99, 1.0, 7.0):
        assert sum(multi_step_weights(5, progress)) == pytest.approx(1)
    assert multi_step_weights(5, 0.99)[0] == pytest.approx(0.03 / 5)


def test_the_order_is_annealed(monkeypatch):
    gradients, tasks = {}, vector_tasks()
    for name, step, kwargs in [
        ("first", 0, {"first_order": True}),
        ("second", 0, {}),
        ("early", 9, {"first_order_steps": 10}),
        ("late", 10, {"first_order_steps": 10}),
    ]:
        module = MAMLModule(net(), RATE, inner_steps=2, **kwargs)
        set_step(module, step, monkeypatch)
        module.meta_loss(tasks).backward()
        gradients[name] = [p.grad for p in module.parameters()]
    assert relative_error(gradients["early"], gradients["first"]) == 0
    assert relative_error(gradients["late"], gradients["second"]) == 0
    assert relative_error(gradients["first"], gradients["second"]) > 0.01


def test_norms_of_each_step_are_those_of_a_loop_by_hand():
    learned, tasks = network("batch"), image_tasks()
    module = MAMLModule(learned, RATE, inner_steps=2, per_step_norm=True)
    with torch.no_grad():
        for table in module.algorithm.step_params.values():
            table.add_(0.2 * torch.randn_like(table))
    loss = module.meta_loss(tasks)
    loss.backward()
    tables = {key.replace("/", "."): table for key, table in module.algorithm.step_params.items()}
    found = [p.grad.clone() for p in module.parameters()]
    module.zero_grad()
    # in one order in every process: devices exchange gradients, and optimizers save their state, by position
    assert list(tables) == [f"body.{i}.{part}" for i in (1, 4) for part in ("weight", "bias")]
    losses = []
    learned.train()
    for (sx, sy), (qx, qy) in pairs(tasks):
        params = {name: p for name, p in learned.named_parameters() if name not in tables}
        for step in range(2):
            of_step = {name: table[step] for name, table in tables.items()}
            support = F.cross_entropy(functional_call(learned, params | of_step, sx), sy)
            grads = torch.autograd.grad(support, list(params.values()), create_graph=True)
            params = {name: p - RATE * g for (name, p), g in zip(params.items(), grads, strict=True)}
        of_query = {name: table[2] for name, table in tables.items()}
        losses.append(F.cross_entropy(functional_call(learned, params | of_query, qx), qy))
    expected = torch.stack(losses).mean()
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-12)
    by_hand = [torch.zeros_like(p) if p.grad is None else p.grad for p in module.parameters()]
    assert relative_error(found, by_hand) < 1e-11
    assert all(table.grad[i].any() for table in tables.values() for i in range(3))


def test_all_of_it_together_trains_and_is_deployed(tmp_path):
    batch = image_tasks()
    module = MAMLModule(
        network("batch"), inner_optimizer=LSLR(0.1), inner_steps=3, multi_step_loss_steps=4,
        first_order_steps=2, per_step_norm=True,
    )  # fmt: skip
    run = trainer(tmp_path, max_epochs=1, precision="64-true")
    run.fit(module, FixedDataModule(batch, steps_per_epoch=6))
    (predictions, _) = run.predict(module, FixedDataModule(batch))
    adapted = module.adapt_to(batch.support.inputs[2], batch.support.targets[2], transductive=True)
    torch.testing.assert_close(adapted(batch.query.inputs[2]), predictions[2])
    curve = module.adaptation_curve(batch)
    assert curve["query_accuracy"].shape == (4, 4)


def test_what_makes_no_sense_is_refused():
    with pytest.raises(ValueError, match="has no batch normalization"):
        MAMLModule(net(), per_step_norm=True)
    with pytest.raises(ValueError, match="leaves nothing of adapt_only"):
        MAMLModule(network("batch"), per_step_norm=True, adapt_only=["body.1", "body.4"])
    with pytest.raises(ValueError, match="val_inner_steps cannot be 5"):
        MAMLModule(network("batch"), per_step_norm=True, inner_steps=2, val_inner_steps=5)
    with pytest.raises(ValueError, match="inner_steps is 0"):
        MAMLModule(net(), inner_steps=0, multi_step_loss_steps=5)
    with pytest.raises(ValueError, match="first_order_steps is a number of outer steps"):
        MAMLModule(net(), first_order_steps=-1)
