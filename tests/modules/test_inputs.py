"""What networks take and what they do to it: writing in place, padding, mappings, objects, tasks of other classes."""

import copy
from collections import UserDict

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.ops import StochasticDepth

from lightning_meta import (
    MLP,
    Examples,
    IMAMLModule,
    MAMLModule,
    MetaOptNetModule,
    MetaSGD,
    ProtoMAMLModule,
    ProtoNetModule,
    R2D2Module,
    ReptileModule,
    Task,
)
from lightning_meta.errors import ArgumentTypeError, ConfigurationError, NetworkError
from lightning_meta.functional.task_map import joined
from lightning_meta.inner import SGD
from tests.conftest import relative_error, vector_tasks
from tests.modules.test_strangers import WAYS, gradient, scaled

IN_PLACE = {
    "maml": lambda net, way: MAMLModule(net, 0.3, 2, task_parallel=way),
    "first order": lambda net, way: MAMLModule(net, 0.3, 2, first_order=True, task_parallel=way),
    "recomputed": lambda net, way: MAMLModule(net, 0.3, 2, checkpoint_inner_steps=True, task_parallel=way),
    "reptile": lambda net, way: ReptileModule(net, SGD(0.3), inner_steps=2, task_parallel=way),
    "imaml": lambda net, way: IMAMLModule(net, SGD(0.3), inner_steps=2, task_parallel=way),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", IN_PLACE)
def test_an_activation_that_overwrites_the_inputs(kind, way):
    found = []
    for in_place in (True, False):
        torch.manual_seed(0)
        net = nn.Sequential(nn.SiLU(in_place), nn.Linear(6, 3)).double()
        tasks = vector_tasks()
        before = tasks.support.inputs.clone()
        module = IN_PLACE[kind](net, way)
        module.meta_loss(tasks).backward()
        outcome = joined(list(module.task_map(module.algorithm.evaluate, module.problem(tasks))))
        assert torch.equal(tasks.support.inputs, before)
        adapted = module.adapt_to(tasks.support.inputs[0], tasks.support.targets[0])
        with torch.no_grad():
            predictions = adapted(tasks.query.inputs[0].clone())
        assert torch.equal(tasks.support.inputs, before)
        found.append([*(p.grad for p in net.parameters()), outcome.losses, predictions])
    assert relative_error(*found) < 1e-12


@pytest.mark.parametrize("way", WAYS)
def test_a_recomputed_step_of_a_network_that_writes_into_its_weights(way):
    class Clamped(nn.Linear):
        def forward(self, x):
            x = F.linear(x, self.weight, self.bias).tanh()
            with torch.no_grad():
                self.weight.clamp_(-0.3, 0.3)
            return F.linear(x, self.weight)

    net, tasks = scaled(Clamped(6, 6)), vector_tasks()
    own = nn.Sequential(net, nn.Linear(6, 3).double())
    assert relative_error(gradient(own, tasks, way, checkpoint_inner_steps=True), gradient(own, tasks, way)) < 1e-12


@pytest.mark.parametrize("way", WAYS)
def test_normalizing_vectors_of_zeros(way):
    """Padding of a cosine attention: x / eps is linear there, so that its second derivative is zero."""

    class Cosine(nn.Module):
        def __init__(self, normalize):
            super().__init__()
            self.first, self.head, self.normalize = nn.Linear(6, 5), nn.Linear(5, 3), normalize

        def forward(self, x):
            return self.head(self.normalize(self.first(x)) + self.normalize(self.first.weight[:, :1] * 0).sum(0))

    def by_hand(x):
        length = x.square().sum(1, keepdim=True)
        return x / torch.where(length > 1e-24, length.clamp(min=1e-24).sqrt(), 1e-12)

    found = []
    for normalize in (F.normalize, by_hand):
        torch.manual_seed(0)
        found.append(gradient(Cosine(normalize).double(), vector_tasks(), way))
    assert torch.isfinite(found[0]).all()
    assert relative_error(*found) < 1e-10


@pytest.mark.parametrize("adapt", [(torch.zeros(1, 6), torch.tensor([0])), (torch.zeros(3, 7), torch.arange(3))])
def test_errors_of_the_network_in_deployment_name_the_layer(adapt):
    net = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Linear(5, 3))
    for module in (MAMLModule(net), ProtoNetModule(net)):
        with pytest.raises(NetworkError, match=r"layer '[01]' \(\w+\) failed"):
            module.adapt_to(*adapt)


@pytest.mark.parametrize("layer", [nn.Hardsigmoid, nn.Hardswish, nn.SiLU])
def test_an_activation_in_place_changes_what_comes_after_it_too(layer):
    class Residual(nn.Module):
        def __init__(self, in_place):
            super().__init__()
            self.first, self.activation, self.head = nn.Linear(6, 5), layer(inplace=in_place), nn.Linear(5, 3)
            self.in_place = in_place

        def forward(self, x):
            x = self.first(x)
            y = self.activation(x)
            return self.head(y + (x if self.in_place else y))

    found = []
    for in_place in (True, False):
        torch.manual_seed(0)
        found.append(gradient(Residual(in_place).double(), vector_tasks(), "vmap"))
    assert relative_error(*found) < 1e-12


@pytest.mark.parametrize("way", WAYS)
def test_words_of_padding_do_not_count(way):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Embedding(5, 3, scale_grad_by_freq=True), nn.Flatten(), nn.Linear(6, 2)).double()
    words, targets = torch.randint(5, (2, 4, 2)), torch.tensor([0, 1, 0, 1]).expand(2, 4)
    alone = Task(*[Examples(words, targets)] * 2)
    padded = Examples(F.pad(words, (0, 0, 0, 3)), F.pad(targets, (0, 3)), torch.arange(7).expand(2, 7) < 4)
    assert relative_error(gradient(net, Task(padded, padded), way), gradient(net, alone, way)) < 1e-12


@pytest.mark.parametrize("way", WAYS)
def test_normalizing_the_single_example_of_a_padded_task_is_not_silent(way):
    net = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Linear(5, 3)).double()
    tasks = vector_tasks(n_way=1, k_shot=2)
    mask = torch.tensor([[True, False], [True, True], [True, True], [True, True]])
    loss = MAMLModule(net, task_parallel=way).meta_loss(Task(tasks.support._replace(mask=mask), tasks.query))
    assert torch.isnan(loss)


HEADS = {
    "protonet": lambda way: ProtoNetModule(nn.Linear(6, 5), task_parallel=way),
    "r2d2": lambda way: R2D2Module(nn.Linear(6, 5), task_parallel=way),
    "metaoptnet": lambda way: MetaOptNetModule(nn.Linear(6, 5), task_parallel=way),
    "protomaml": lambda way: ProtoMAMLModule(MLP(6, 3, hidden=[5]), 0.1, task_parallel=way),
}


@pytest.mark.parametrize("name", HEADS)
def test_tasks_of_one_batch_with_other_numbers_of_classes(name):
    tasks = vector_tasks(tasks=3, n_way=3, k_shot=2, n_query=2)
    targets = torch.tensor([[0, 0, 1, 1, 2, 2], [0, 0, 1, 1, 0, 0], [0] * 6])
    tasks, found = Task(*(part._replace(targets=targets) for part in tasks)), []
    for way in WAYS:
        torch.manual_seed(0)
        module = HEADS[name](way).double()
        loss = module.meta_loss(tasks)
        loss.backward()
        with torch.no_grad():
            module.test_step(tasks, 0)
            predictions = module.predict_step(tasks, 0)
        assert predictions.shape == (3, 6, 3)
        assert torch.isinf(predictions[1, :, 2]).all()
        assert torch.isinf(predictions[2, :, 1:]).all()
        found.append([loss.detach(), predictions.nan_to_num(neginf=0), *(p.grad for p in module.network.parameters())])
        found[-1] = [t for t in found[-1] if t is not None]
    assert relative_error(found[1], found[0]) < 1e-10
    assert relative_error(found[2], found[0]) < 1e-10


@pytest.mark.parametrize("way", WAYS)
def test_a_loss_that_depends_on_nothing_trained_is_an_error(way):
    module = ProtoNetModule(MLP(6, 3, hidden=[5]).double(), task_parallel=way)
    module.network.body.requires_grad_(False)
    with pytest.raises(ConfigurationError, match="depends on nothing that is trained"):
        module.meta_loss(vector_tasks())


@pytest.mark.parametrize("way", WAYS)
def test_proto_maml_with_a_frozen_body_learns_its_rates(way):
    module = ProtoMAMLModule(MLP(6, 3, hidden=[5]).double(), inner_optimizer=MetaSGD(0.1), task_parallel=way)
    module.double().network.body.requires_grad_(False)
    module.meta_loss(vector_tasks()).backward()
    rates = dict(module.inner_optimizer.named_parameters())
    assert all((rate.grad.abs().sum() > 0) == ("head" in name) for name, rate in rates.items())


def test_a_body_with_batch_normalization_and_no_parameters():
    net = nn.Sequential()
    net.add_module("body", nn.BatchNorm1d(6, affine=False))
    module = R2D2Module(net.double(), transductive=False).double()
    tasks = vector_tasks()
    with torch.no_grad():
        module.test_step(tasks, 0)
    assert module.adapt_to(tasks.support.inputs[0], tasks.support.targets[0])(tasks.query.inputs[0]).shape == (9, 3)


@pytest.mark.filterwarnings("ignore:.*weight_norm")
def test_a_network_that_keeps_what_it_has_computed_is_deployed():
    """The older weight normalization keeps the weight, with its graph, and torch does not copy that."""
    net = nn.Sequential(nn.utils.weight_norm(nn.Linear(6, 5)), nn.Tanh(), nn.Linear(5, 3)).double()
    module, tasks = MAMLModule(net, 0.1), vector_tasks()
    module.meta_loss(tasks).backward()
    with torch.no_grad():
        predicted = module.predict_step(tasks, 0)[0]
    adapted = module.adapt_to(tasks.support.inputs[0], tasks.support.targets[0])
    assert relative_error([adapted(tasks.query.inputs[0])], [predicted]) < 1e-12
    assert module.adaptation_curve(tasks)["query_loss"].shape == (4, 2)


class OfDict(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 3)

    def forward(self, inputs):
        return self.layer(inputs["x"] * inputs["more"]["y"])


@pytest.mark.parametrize("way", WAYS)
def test_any_mapping_is_a_dict(way):
    """A tokenizer returns one that is none."""
    net, tasks = scaled(OfDict()), vector_tasks()

    def inside(kind):
        return Task(*(p._replace(inputs=kind({"x": p.inputs, "more": kind({"y": p.inputs.cos()})})) for p in tasks))

    assert relative_error(gradient(net, inside(UserDict), way), gradient(net, inside(dict), way)) < 1e-12
    one = UserDict({"x": tasks.support.inputs[0], "more": {"y": tasks.support.inputs[0]}})
    MAMLModule(copy.deepcopy(net)).adapt_to(one, tasks.support.targets[0])


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("value", [True, "a text", object()])
def test_what_is_no_tensor_would_be_given_whole_to_every_task(value, way):
    tasks = vector_tasks()
    mixed = Task(*(part._replace(inputs={"x": part.inputs, "other": value}) for part in tasks))
    with pytest.raises(ArgumentTypeError, match=r"Only tensors .* inputs\['other'\], a "):
        MAMLModule(OfDict(), task_parallel=way).meta_loss(mixed)
    with pytest.raises(ArgumentTypeError, match=r"Only tensors .* inputs, a "):
        MAMLModule(OfDict(), task_parallel=way).meta_loss(Task(*(part._replace(inputs=value) for part in tasks)))


def test_a_network_that_takes_several_arguments_is_to_be_wrapped():
    class Several(nn.Linear):
        def forward(self, x, more=None):
            return super().forward(x.view(-1, 6))

    tasks = vector_tasks()
    named = Task(*(part._replace(inputs={"x": part.inputs}) for part in tasks))
    with pytest.raises(NetworkError, match=r"no attribute 'view'.*Inputs are one argument.*wrap"):
        MAMLModule(Several(6, 3).double()).meta_loss(named)


def test_stochastic_depth_runs_together_with_choices_of_each_task():
    """It writes random numbers into an empty tensor, as torchvision's networks do."""

    class Deep(nn.Module):
        def __init__(self, p):
            super().__init__()
            self.first, self.depth, self.head = nn.Linear(6, 6), StochasticDepth(p, "row"), nn.Linear(6, 3)

        def forward(self, x):
            self.kept = self.depth(torch.ones_like(x[:, :1]))
            return self.head(x + self.depth(self.first(x)))

    torch.manual_seed(0)
    net, tasks = Deep(0.0).double(), vector_tasks()
    assert relative_error(gradient(net, tasks, "vmap"), gradient(net, tasks, "loop")) < 1e-12
    one = map(lambda part: part._replace(inputs=part.inputs[:1].expand(20, -1, -1)), tasks)
    same = Task(*(part._replace(targets=part.targets[:1].expand(20, -1)) for part in one))
    net.depth.p = 0.5
    module = MAMLModule(net, 0.1, task_parallel="vmap")
    module.meta_loss(same)
    assert len(set(module.outcome.losses.tolist())) > 10


def test_inputs_that_hold_no_tensor_are_refused():
    tasks = vector_tasks()
    empty = Task(*(part._replace(inputs={}) for part in tasks))
    with pytest.raises(ArgumentTypeError, match=r"must hold a tensor, but there is none in \{\}"):
        MAMLModule(nn.Linear(6, 3)).meta_loss(empty)
