"""Reptile against hand-written loops with `torch.optim`."""

import copy

import pytest
import torch
import torch.nn.functional as F

from lightning_meta import Examples, MAMLModule, ReptileModule, Task
from lightning_meta.functional.mini_batches import mini_batch
from lightning_meta.inner import SGD, Adam, MetaSGD
from tests.conftest import image_tasks, relative_error, vector_tasks
from tests.modules.test_contracts import FixedDataModule, trainer
from tests.networks import network


def adapted_by_hand(net, make_optimizer, batches, state=None):
    """What `torch.optim` makes of a copy of the network; the optimizer goes on from `state`."""
    net = copy.deepcopy(net).train()
    optimizer = make_optimizer(net.parameters())
    if state is not None:
        optimizer.load_state_dict(copy.deepcopy(state))
    for inputs, targets in batches:
        optimizer.zero_grad()
        F.cross_entropy(net(inputs), targets).backward()
        optimizer.step()
    return [p.detach() for p in net.parameters()], optimizer.state_dict()


OPTIMIZERS = {
    "sgd": (SGD(0.1), lambda params: torch.optim.SGD(params, 0.1)),
    "momentum": (SGD(0.1, momentum=0.9), lambda params: torch.optim.SGD(params, 0.1, momentum=0.9)),
    "adam": (None, lambda params: torch.optim.Adam(params, 0.001, betas=(0.0, 0.999))),
}


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("way", ["loop", "vmap", 3])
def test_the_meta_gradient_is_how_far_a_loop_of_torch_optim_leads(kind, way):
    net, tasks = network("mlp"), image_tasks()
    inner, theirs = OPTIMIZERS[kind]
    module = ReptileModule(net, inner, inner_steps=7, task_parallel=way)
    loss = module.meta_loss(tasks)
    loss.backward()
    ends = [adapted_by_hand(net, theirs, [(x, y)] * 7)[0] for x, y in zip(*tasks.support[:2], strict=True)]
    for p, ends_of_p in zip(net.parameters(), zip(*ends, strict=True), strict=True):
        torch.testing.assert_close(p.grad, p.detach() - torch.stack(ends_of_p).mean(0), rtol=1e-12, atol=1e-12)
    losses = []
    for end, (x, y) in zip(ends, zip(*tasks.support[:2], strict=True), strict=True):
        learned = copy.deepcopy(net)
        for p, value in zip(learned.parameters(), end, strict=True):
            p.data = value
        losses.append(F.cross_entropy(learned(x), y).item())
    assert loss.item() == pytest.approx(sum(losses) / 4, rel=1e-12)


def test_an_outer_step_is_the_interpolation(tmp_path):
    """Three outer steps at an annealed rate, with the state of the inner Adam carried from step to step."""
    net, batch = network("mlp"), image_tasks()
    theirs = OPTIMIZERS["adam"][1]
    expected, state = copy.deepcopy(net), None
    for rate in (0.5, 0.5 * 2 / 3, 0.5 / 3):
        ends, states = zip(
            *(adapted_by_hand(expected, theirs, [(x, y)] * 2, state) for x, y in zip(*batch.support[:2], strict=True)),
            strict=True,
        )
        with torch.no_grad():
            for p, ends_of_p in zip(expected.parameters(), zip(*ends, strict=True), strict=True):
                p.add_(rate * (torch.stack(ends_of_p).mean(0) - p))
        state = copy.deepcopy(states[0])
        for key, entry in state["state"].items():
            for name in ("exp_avg", "exp_avg_sq"):
                entry[name] = torch.stack([s["state"][key][name] for s in states]).mean(0)
    module = ReptileModule(
        net,
        inner_steps=2,
        carry_inner_state=True,
        optimizer=lambda params: torch.optim.SGD(params, 0.5),
        lr_scheduler=lambda optimizer: torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=3),
    )
    run = trainer(tmp_path, max_epochs=1, precision="64-true")
    run.fit(module, FixedDataModule(batch, steps_per_epoch=3))
    assert relative_error(list(module.network.parameters()), list(expected.parameters())) < 1e-11
    assert module.algorithm.state["steps"].item() == 6

    run.save_checkpoint(tmp_path / "a.ckpt")
    other = ReptileModule.load_from_checkpoint(
        tmp_path / "a.ckpt", network=network("mlp"), weights_only=True, map_location="cpu"
    )
    kept = zip(other.algorithm.state["second"].values(), module.algorithm.state["second"].values(), strict=True)
    assert all(torch.equal(a, b) for a, b in kept)
    loss = [m.meta_loss(batch).item() for m in (module, other)]
    assert loss[0] == loss[1]


def test_mini_batches_are_drawn_without_replacement():
    module = ReptileModule(network("mlp"), inner_batch_size=4, val_inner_batch_size=3)
    tasks = image_tasks()  # six support examples
    numbered = tasks._replace(support=Examples(torch.arange(6.0).expand(4, 6), tasks.support.targets))

    def drawn(size, draw, steps):
        parts = [mini_batch(numbered.support, step, size=size, draw=draw).inputs for step in range(steps)]
        return torch.cat(parts, 1)

    order = drawn(4, 0, 6)  # four passes of six
    assert order.shape == (4, 24)
    for start in range(0, 24, 6):
        assert sorted(order[0, start : start + 6].tolist()) == list(range(6))
    assert torch.equal(order[0], order[3])
    assert order[0, :6].tolist() != order[0, 6:12].tolist()
    assert not torch.equal(order, drawn(4, 1, 6))
    assert torch.equal(order[:, :12], drawn(3, 0, 4))
    second = mini_batch(numbered.support, 1, size=module.algorithm.val_inner_batch_size, draw=0)
    assert torch.equal(second.inputs, drawn(3, 0, 2)[:, 3:])
    both = mini_batch(tasks.support, 0, size=4, draw=0)
    assert torch.equal(both.targets[0], tasks.support.targets[0][order[0, :4].long()])


def test_the_adaptation_with_mini_batches_is_that_of_a_loop():
    net, tasks = network("mlp"), image_tasks()
    module = ReptileModule(net, SGD(0.1), inner_steps=4, inner_batch_size=4)
    module.meta_loss(tasks).backward()
    ends = []
    for i in range(4):
        batches = [mini_batch(tasks.support, step, size=4, draw=0) for step in range(4)]
        batches = [(b.inputs[i], b.targets[i]) for b in batches]
        ends.append(adapted_by_hand(net, OPTIMIZERS["sgd"][1], batches)[0])
    expected = [
        p.detach() - torch.stack(end).mean(0) for p, end in zip(net.parameters(), zip(*ends, strict=True), strict=True)
    ]
    assert relative_error([p.grad for p in net.parameters()], expected) < 1e-12


def test_a_query_example_joins_the_support_set_by_itself():
    net, tasks = network("batch"), image_tasks()
    module = ReptileModule(net, SGD(0.1), inner_steps=2, transductive=False).eval()
    (found,) = list(module.task_map(module.algorithm.predict, module.problem(tasks)))
    end, _ = adapted_by_hand(net, OPTIMIZERS["sgd"][1], [(tasks.support.inputs[1], tasks.support.targets[1])] * 2)
    learned = copy.deepcopy(net).train()
    for p, value in zip(learned.parameters(), end, strict=True):
        p.data = value
    with torch.no_grad():
        expected = [learned(torch.cat([tasks.support.inputs[1], x[None]]))[-1] for x in tasks.query.inputs[1]]
    torch.testing.assert_close(found[1], torch.stack(expected))
    module.algorithm.statistics = "query batch (transductive)"
    (transductive,) = list(module.task_map(module.algorithm.predict, module.problem(tasks)))
    assert (transductive - found).abs().max() > 0.01


def test_it_trains_without_query_sets(tmp_path):
    module = ReptileModule(network("mlp"), SGD(0.1))
    tasks = image_tasks()
    other = Task(tasks.support, tasks.query._replace(inputs=tasks.query.inputs * float("nan")))
    assert module.meta_loss(tasks).item() == module.meta_loss(other).item()


def test_what_it_cannot_do_is_refused():
    with pytest.raises(ValueError, match=r"ReptileModule has no gradient for what MetaSGD learns.*MAMLModule"):
        ReptileModule(network("mlp"), MetaSGD())
    with pytest.raises(ValueError, match="inner_batch_size must be at least 1"):
        ReptileModule(network("mlp"), inner_batch_size=0)
    assert isinstance(MAMLModule(network("mlp"), inner_optimizer=Adam()).inner_optimizer, Adam)


def test_any_outer_optimizer(tmp_path):
    batch = vector_tasks(features=64)
    module = ReptileModule(network("mlp"), SGD(0.1), optimizer=lambda p: torch.optim.Adam(p, lr=0.01))
    run = trainer(tmp_path, max_epochs=1, precision="64-true")
    before = [p.detach().clone() for p in module.parameters()]
    run.fit(module, FixedDataModule(batch, steps_per_epoch=1))
    moved = torch.cat([(p - b).flatten() for p, b in zip(module.parameters(), before, strict=True)])
    assert moved.abs().max().item() == pytest.approx(0.01, rel=1e-4)
    assert "train/support_loss" in run.callback_metrics


def test_the_carried_state_of_another_inner_optimizer_is_not_used(tmp_path):
    net, data = network("mlp"), FixedDataModule(image_tasks(), steps_per_epoch=1)
    run = trainer(tmp_path, max_epochs=1, precision="64-true")
    run.fit(ReptileModule(net, carry_inner_state=True), data)
    run.save_checkpoint(tmp_path / "adam.ckpt")
    other = ReptileModule(net, SGD(0.1, momentum=0.9), carry_inner_state=True)
    with pytest.warns(UserWarning, match="inner state is that of another inner optimizer"):
        trainer(tmp_path, precision="64-true").test(other, data, ckpt_path=tmp_path / "adam.ckpt", verbose=False)
    assert other.algorithm.state is None


def test_the_support_hook_is_where_training_data_comes_from():
    class Doubled(ReptileModule):
        def support_data(self, tasks, params, step):
            return tasks.support._replace(inputs=2 * tasks.support.inputs)

    net, tasks = network("mlp"), image_tasks()
    doubled = Task(tasks.support._replace(inputs=2 * tasks.support.inputs), tasks.query)
    settings = {"inner_optimizer": SGD(0.1), "inner_batch_size": 4}
    assert Doubled(net, **settings).meta_loss(tasks).item() == ReptileModule(net, **settings).meta_loss(doubled).item()
