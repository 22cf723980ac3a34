"""ProtoNet and Proto-MAML against closed forms and each other."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_meta import MLP, Conv4, Examples, GlyphsDataModule, MAMLModule, ProtoMAMLModule, ProtoNetModule
from lightning_meta.errors import ConfigurationError
from lightning_meta.functional.prototypes import prototypes, prototypical_head
from tests.conftest import pairs, relative_error, vector_tasks
from tests.modules.test_contracts import trainer
from tests.modules.test_maml import images


def test_prototypes_are_class_means_also_with_uneven_classes():
    features = torch.tensor([[0.0, 2.0], [4.0, 0.0], [2.0, 2.0], [1.0, 1.0]])
    found = prototypes(features, torch.tensor([0, 1, 0, 0]), 2)
    torch.testing.assert_close(found, torch.tensor([[1.0, 5 / 3], [4.0, 0.0]]))


def test_the_head_classifies_like_the_distances():
    torch.manual_seed(0)
    points, x = torch.randn(4, 6, dtype=torch.float64), torch.randn(9, 6, dtype=torch.float64)
    weight, bias = prototypical_head(points)
    torch.testing.assert_close(F.linear(x, weight, bias).softmax(1), (-(torch.cdist(x, points) ** 2)).softmax(1))


def test_the_loss_is_that_of_distances_to_class_means():
    torch.manual_seed(0)
    embedding, tasks = nn.Linear(6, 4).double(), vector_tasks()
    module = ProtoNetModule(embedding)
    loss = module.meta_loss(tasks)
    loss.backward()
    found = [p.grad.clone() for p in embedding.parameters()]
    embedding.zero_grad()
    losses = []
    for (sx, sy), (qx, qy) in pairs(tasks):
        centres = torch.stack([embedding(sx[sy == c]).mean(0) for c in range(3)])
        losses.append(F.cross_entropy(-(torch.cdist(embedding(qx), centres) ** 2), qy))
    expected = torch.stack(losses).mean()
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-12)
    assert relative_error(found, [p.grad for p in embedding.parameters()]) < 1e-11


def test_it_trains_on_more_classes_than_it_is_evaluated_on(tmp_path):
    data = GlyphsDataModule(
        n_way=6, val_n_way=3, test_n_way=4, n_query=2, meta_batch_size=2, steps_per_epoch=3, val_tasks=2, test_tasks=2,
        train_classes=12, val_classes=6, test_classes=6,
    )  # fmt: skip
    module = ProtoNetModule(Conv4(n_way=6, hidden=4))
    run = trainer(tmp_path, max_epochs=1)
    run.fit(module, data)
    (result,) = run.test(module, data, verbose=False)
    assert 0 <= result["test/query_accuracy"] <= 1


def test_a_class_without_an_example_is_named():
    tasks = vector_tasks()
    targets = tasks.support.targets.clone()
    targets[2] = torch.tensor([0, 0, 2, 2, 2, 2])
    with pytest.raises(ValueError, match="A task has no support example of class 1, of 3 classes"):
        ProtoNetModule(nn.Linear(6, 4).double()).meta_loss(
            tasks._replace(support=Examples(tasks.support.inputs, targets))
        )
    with pytest.raises(ValueError, match="class numbers"):
        ProtoNetModule(nn.Linear(6, 4)).adapt_to(torch.zeros(2, 6), torch.zeros(2))
    with pytest.raises(TypeError, match="adapt_only"):
        ProtoNetModule(nn.Linear(6, 4), adapt_only="0")


def test_proto_maml_without_steps_is_protonet():
    torch.manual_seed(0)
    net, tasks = MLP(6, 3, hidden=[8]).double(), vector_tasks()
    results = []
    for module in (ProtoNetModule(net), ProtoMAMLModule(net, inner_steps=0)):
        net.zero_grad()
        loss = module.meta_loss(tasks)
        loss.backward()
        results.append((loss.item(), [p.grad.clone() for p in net.body.parameters()]))
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-12)
    assert relative_error(results[0][1], results[1][1]) < 1e-11


@pytest.mark.parametrize("first_order", [False, True])
def test_proto_maml_is_the_unrolled_loop_from_the_prototypes(first_order):
    torch.manual_seed(0)
    net, tasks = MLP(6, 3, hidden=[8]).double(), vector_tasks()
    module = ProtoMAMLModule(net, inner_lr=0.1, inner_steps=2, first_order=first_order)
    loss = module.meta_loss(tasks)
    loss.backward()
    found = [p.grad.clone() for p in net.parameters()]
    net.zero_grad()
    losses = []
    for (sx, sy), (qx, qy) in pairs(tasks):
        w, b = net.body[1].weight, net.body[1].bias
        points = prototypes(F.relu(F.linear(sx, w, b)), sy, 3)
        params = [p.view_as(p) for p in (w, b, 2 * points, -points.square().sum(1))]

        def run(x, p):
            return F.linear(F.relu(F.linear(x, p[0], p[1])), p[2], p[3])

        for _ in range(2):
            grads = torch.autograd.grad(F.cross_entropy(run(sx, params), sy), params, create_graph=not first_order)
            params = [p - 0.1 * g for p, g in zip(params, grads, strict=True)]
        losses.append(F.cross_entropy(run(qx, params), qy))
    expected = torch.stack(losses).mean()
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-12)
    assert relative_error(found[:2], [p.grad for p in net.body.parameters()]) < 1e-11
    assert found[2].abs().max() == 0


def test_proto_maml_needs_a_body_and_a_head():
    with pytest.raises(ValueError, match=r"`body` and a linear layer `head`"):
        ProtoMAMLModule(nn.Linear(6, 3))
    with pytest.raises(ValueError, match="leaves it out"):
        ProtoMAMLModule(MLP(6, 3), adapt_only="body")


@pytest.mark.parametrize("outputs", [2, 4])
def test_proto_maml_takes_its_head_from_the_tasks_and_names_a_missing_class(outputs):
    torch.manual_seed(0)
    net, tasks = MLP(6, outputs, hidden=[8]).double(), vector_tasks()
    same = MLP(6, 3, hidden=[8]).double()
    same.body.load_state_dict(net.body.state_dict())
    expected = ProtoMAMLModule(same, inner_lr=0.1).meta_loss(tasks)
    module = ProtoMAMLModule(net, inner_lr=0.1)
    assert module.meta_loss(tasks).item() == pytest.approx(expected.item(), rel=1e-12)
    assert module.adapt_to(tasks.support.inputs[0], tasks.support.targets[0])(tasks.query.inputs[0]).shape == (9, 3)
    targets = tasks.support.targets.clone()
    targets[2] = torch.tensor([0, 0, 2, 2, 2, 2])
    with pytest.raises(ValueError, match="no support example of class 1, of 3 classes"):
        module.meta_loss(tasks._replace(support=Examples(tasks.support.inputs, targets)))


@pytest.mark.parametrize("kind", [ProtoNetModule, ProtoMAMLModule])
@pytest.mark.parametrize("way", ["loop", "vmap"])
def test_prototypes_are_made_in_full_precision_under_autocast(kind, way):
    torch.manual_seed(0)
    net, tasks = MLP(6, 3, hidden=[64]), vector_tasks(dtype=torch.float32)
    module = kind(net, task_parallel=way)
    exact = module.meta_loss(tasks)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = module.meta_loss(tasks)
        if kind is ProtoMAMLModule:
            run = partial(module.algorithm.initial, trainable=True)
            started = module.task_map(run, module.problem(tasks))
            assert all(params["head.weight"].dtype == torch.float32 for params, *_ in started)
    assert rounded.item() == pytest.approx(exact.item(), rel=0.02)


def test_tasks_of_any_way_have_as_many_outputs_as_classes(tmp_path):
    """Whichever batch comes first: a network with a head of its own would be refused with fewer than the largest."""
    data = images(n_way=(2, 5), k_shot=(1, 3), test_n_way=[3, 5], val_tasks=3, meta_batch_size=1, eval_batch_size=1)
    run, module = trainer(tmp_path, max_epochs=1), ProtoNetModule(Conv4(5, hidden=4))
    run.fit(module, data)
    results = run.test(module, data, verbose=False)
    assert len(results) == 2
    with pytest.raises(ConfigurationError, match="The network has 3 outputs, but the tasks have val_n_way"):
        trainer(tmp_path, max_epochs=1).fit(MAMLModule(Conv4(3, hidden=4), 0.1), data)


def test_after_training_proto_maml_adapts_to_fewer_classes_than_it_was_trained_with(tmp_path):
    data = GlyphsDataModule(
        train_classes=20, val_classes=20, test_classes=20, n_way=10, val_n_way=5, test_n_way=5, k_shot=1, n_query=1,
        val_tasks=2, steps_per_epoch=1, meta_batch_size=2,
    )  # fmt: skip
    module = ProtoMAMLModule(Conv4(10, hidden=4), inner_lr=0.05, inner_steps=1)
    trainer(tmp_path, max_epochs=1).fit(module, data)
    adapted = module.adapt_to(torch.rand(10, 1, 28, 28), torch.arange(5).repeat(2))
    assert adapted(torch.rand(3, 1, 28, 28)).shape == (3, 5)
