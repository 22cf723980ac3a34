"""Inner steps that change the head only have the body's features once, and the same gradients."""

import copy

import pytest
import torch
from torch import nn

from lightning_meta import (
    LSLR,
    MLP,
    SGD,
    WRN28_10,
    Adapter,
    Backbone,
    BodyAndHead,
    Conv4,
    MAMLModule,
    MetaLSTMModule,
    Projection,
    ProtoMAMLModule,
    R2D2Net,
    ReptileModule,
    ResNet12,
    TextClassifier,
)
from lightning_meta.inner import LSTMOptimizer
from tests.conftest import image_tasks, relative_error
from tests.networks import network

HEAD = {"adapt_only": "head", "inner_steps": 3}
MODULES = {
    "anil": lambda net, **o: MAMLModule(net, 0.5, **HEAD, **o),
    "first_order": lambda net, **o: MAMLModule(net, 0.5, first_order=True, **HEAD, **o),
    "multi_step_loss": lambda net, **o: MAMLModule(net, 0.5, multi_step_loss_steps=9, **HEAD, **o),
    "recomputed": lambda net, **o: MAMLModule(net, 0.5, checkpoint_inner_steps=True, **HEAD, **o),
    "lslr": lambda net, **o: MAMLModule(net, inner_optimizer=LSLR(0.5), **HEAD, **o),
    "non_transductive": lambda net, **o: MAMLModule(net, 0.5, transductive=False, **HEAD, **o),
    "meta_lstm": lambda net, **o: MetaLSTMModule(
        net, LSTMOptimizer(input_bias=(-1.0, 0.0)), second_order=True, **HEAD, **o
    ),
    "protomaml": lambda net, **o: ProtoMAMLModule(net, 0.05, **HEAD, **o),
    "mini_batches": lambda net, **o: ReptileModule(net, SGD(0.5), inner_batch_size=3, **HEAD, **o),
}


class Whole(BodyAndHead):
    """The same network, which says nothing of how it is made."""

    def forward(self, inputs):
        return self.head(self.body(inputs))


class Counted(nn.Module):
    """Counts its calls."""

    calls = 0

    def forward(self, x):
        self.calls += 1
        return x


def pair():
    """Two equal networks of float64, of which the first says that it is its head on its body."""
    net = network("batch")
    return BodyAndHead(net.body, net.head), Whole(copy.deepcopy(net.body), copy.deepcopy(net.head))


def gradients(module, tasks):
    module.meta_loss(tasks).backward()
    return torch.cat([p.grad.flatten() for p in module.parameters() if p.grad is not None])


@pytest.mark.parametrize("way", ["vmap", "loop", 2])
@pytest.mark.parametrize("name", MODULES)
def test_gradient_and_prediction_are_those_of_the_whole_network(name, way):
    found = []
    for net in pair():
        torch.manual_seed(0)
        module, tasks = MODULES[name](net, task_parallel=way).double(), image_tasks()
        adapted = module.adapt_to(tasks.support.inputs[0], tasks.support.targets[0])
        found.append((gradients(module, tasks), adapted(tasks.query.inputs[0])))
    (gradient, logits), (expected, expected_logits) = found
    assert expected.abs().max() > 1e-4
    assert relative_error(gradient, expected) < 1e-12
    assert relative_error(logits, expected_logits) < 1e-12


def test_padded_tasks():
    tasks = image_tasks()
    mask = torch.arange(6).expand(4, -1) < torch.tensor([[6], [5], [6], [5]])
    tasks = tasks._replace(support=tasks.support._replace(mask=mask))
    found = [gradients(MAMLModule(net, 0.5, **HEAD), tasks) for net in pair()]
    assert relative_error(*found) < 1e-12


def test_a_head_that_normalizes():
    found = []
    for net in pair():
        net.head = nn.Sequential(net.head, nn.BatchNorm1d(3).double())
        found.append(gradients(MAMLModule(net, 0.5, **HEAD), image_tasks()))
    assert relative_error(*found) < 1e-12


@pytest.mark.parametrize(("change", "calls"), [("none", 2), ("forward", 4), ("hook", 4), ("body adapts", 4)])
def test_how_often_the_body_runs(change, calls):
    """Once for the support set and once for the query set, unless the network is run as a whole in all three steps."""
    net, whole = pair()
    net, adapt_only = (whole if change == "forward" else net), ("*.bias" if change == "body adapts" else "head")
    net.body.append(Counted())
    if change == "hook":
        net.register_forward_hook(lambda *_: None)
    module = MAMLModule(net, 0.5, inner_steps=3, adapt_only=adapt_only, task_parallel="vmap")
    module.meta_loss(image_tasks()).backward()
    assert net.body[-1].calls == calls


def test_a_body_that_shares_the_heads_weights():
    """With the head first, its name is that of the shared weight."""
    found = []
    for kind in (BodyAndHead, Whole):
        torch.manual_seed(0)
        net = kind(nn.Flatten(), nn.Linear(64, 64)).double()
        del net.body
        net.body = nn.Sequential(nn.Flatten(), net.head, nn.Tanh())
        found.append(gradients(MAMLModule(net, 0.5, **HEAD), image_tasks()))
    assert relative_error(*found) < 1e-12


def test_a_support_set_that_changes_is_seen_in_every_step():
    class Shifted(MAMLModule):
        def support_data(self, tasks, params, step):
            support = super().support_data(tasks, params, step)
            return support._replace(inputs=support.inputs.roll(step, -1))

    found = [gradients(Shifted(net, 0.5, **HEAD), image_tasks()) for net in pair()]
    plain = gradients(MAMLModule(pair()[0], 0.5, **HEAD), image_tasks())
    assert relative_error(*found) < 1e-12 < 1e-3 < relative_error(plain, found[1])


def test_the_networks_of_this_package_say_so():
    for kind in (MLP, WRN28_10, Adapter, Backbone, Conv4, Projection, R2D2Net, ResNet12, TextClassifier):
        assert kind.forward is BodyAndHead.forward, kind
