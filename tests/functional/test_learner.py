"""Parameters, buffers and ties of a network run functionally."""

import pytest
import torch
from torch import nn

from lightning_meta import MAMLModule
from lightning_meta.functional import select_parameters
from tests.conftest import image_tasks, relative_error, vector_tasks
from tests.networks import network


def test_selection_by_submodule_pattern_and_name():
    net = network("batch")
    assert select_parameters(net, "head") == ("head.weight", "head.bias")
    assert select_parameters(net, ["*.bias"]) == tuple(n for n, _ in net.named_parameters() if n.endswith("bias"))
    assert select_parameters(net, None) == tuple(n for n, _ in net.named_parameters())


@pytest.mark.parametrize(
    ("patterns", "message"), [("haed", "haed.*head.weight"), ([], "adapt_only is empty"), (["head", "x"], "'x'")]
)
def test_a_selection_of_nothing_is_refused(patterns, message):
    with pytest.raises(ValueError, match=message):
        select_parameters(network("batch"), patterns)


def test_a_network_without_trainable_parameters_is_refused():
    with pytest.raises(ValueError, match="nothing to adapt"):
        MAMLModule(nn.Flatten())
    with pytest.raises(ValueError, match="nothing to adapt"):
        MAMLModule(nn.Linear(2, 2).requires_grad_(False))


def test_a_lazy_network_is_refused_by_name():
    with pytest.raises(ValueError, match=r"'1\.weight' is lazy"):
        MAMLModule(nn.Sequential(nn.Flatten(), nn.LazyLinear(3)))


@pytest.mark.parametrize("way", ["loop", "vmap"])
def test_only_the_selected_parameters_adapt_but_all_are_meta_learned(way):
    net, tasks = network("batch"), image_tasks()
    module = MAMLModule(net, 0.5, 2, adapt_only="head", task_parallel=way)
    adapted = module.adapt_to(tasks.support.inputs[0], tasks.support.targets[0])
    for (name, before), after in zip(net.named_parameters(), adapted.parameters(), strict=True):
        assert torch.equal(before, after) == (not name.startswith("head")), name
    module.meta_loss(tasks).backward()
    assert all(p.grad.abs().sum() > 0 for p in net.body[4].parameters())


@pytest.mark.parametrize("way", ["loop", "vmap", 2])
def test_frozen_parameters_stay_fixed_and_get_no_gradient(way):
    net, tasks = network("batch"), image_tasks()
    net.body[0].requires_grad_(False)
    module = MAMLModule(net, 0.5, task_parallel=way)
    module.meta_loss(tasks).backward()
    assert all(p.grad is None for p in net.body[0].parameters())
    adapted = module.adapt_to(tasks.support.inputs[0], tasks.support.targets[0])
    assert torch.equal(adapted.body[0].weight, net.body[0].weight)


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.encode = nn.Linear(6, 6)
        self.decode = nn.Linear(6, 6)
        self.decode.weight = self.encode.weight
        self.head = nn.Linear(6, 3)

    def forward(self, x):
        return self.head(torch.tanh(self.decode(torch.tanh(self.encode(x)))))


def test_tied_parameters_stay_tied():
    torch.manual_seed(0)
    net, tasks = Tied().double(), vector_tasks()
    gradients = {}
    for way in ("loop", "vmap"):
        net.zero_grad()
        MAMLModule(net, 0.5, 3, task_parallel=way).meta_loss(tasks).backward()
        gradients[way] = [p.grad.clone() for p in net.parameters()]
    assert relative_error(gradients["vmap"], gradients["loop"]) < 1e-12
    adapted = MAMLModule(net, 0.5).adapt_to(tasks.support.inputs[0], tasks.support.targets[0])
    assert adapted.encode.weight is adapted.decode.weight
    assert not torch.equal(adapted.encode.weight, net.encode.weight)
    assert select_parameters(net, "decode") == ("encode.weight", "decode.bias")  # found by its other name


class Counting(nn.Module):
    """Counts its calls in a buffer and adds the count to the outputs."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(6, 3)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls.add_(1)
        return self.linear(x) * self.calls


@pytest.mark.parametrize("way", ["loop", "vmap", 2])
def test_buffers_are_each_tasks_own_and_never_leak(way):
    net, tasks = Counting().double(), vector_tasks()
    module = MAMLModule(net, 0.1, inner_steps=3, task_parallel=way)
    outcome = [module.meta_loss(tasks).item() for _ in range(2)]
    assert outcome[0] == outcome[1]
    assert net.calls.item() == 0
    adapted = module.adapt_to(tasks.support.inputs[0], tasks.support.targets[0])
    assert adapted.calls.item() == 3  # one call for each inner step, within the task
    assert net.calls.item() == 0


def test_a_parameter_that_the_network_does_not_use():
    class Unused(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self.spare = nn.Linear(6, 3), nn.Linear(2, 2)

        def forward(self, x):
            return self.linear(x)

    net = Unused().double()
    for way in ("loop", "vmap"):
        net.zero_grad()
        MAMLModule(net, 0.1, task_parallel=way).meta_loss(vector_tasks()).backward()
        assert net.spare.weight.grad.abs().sum() == 0
        assert net.linear.weight.grad.abs().sum() > 0


def test_inputs_may_be_any_nesting_of_tensors():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(6, 3), nn.Linear(6, 3)

        def forward(self, inputs):
            return self.a(inputs["left"]) + self.b(inputs["both"][1])

    tasks = vector_tasks()
    nested = [part._replace(inputs={"left": part.inputs, "both": [part.inputs + 1, part.inputs - 1]}) for part in tasks]
    net = Two().double()
    losses = [MAMLModule(net, 0.1, task_parallel=w).meta_loss(type(tasks)(*nested)).item() for w in ("loop", "vmap", 3)]
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-12)


class Attention(nn.Module):
    """Self-attention over the six features as tokens."""

    def __init__(self):
        super().__init__()
        self.embed, self.project, self.head = nn.Linear(1, 12), nn.Linear(12, 12), nn.Linear(24, 3)

    def forward(self, x):
        q, k, v = self.project(self.embed(x.unsqueeze(-1))).unsqueeze(1).chunk(3, -1)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v).squeeze(1)
        return self.head(mixed.flatten(1))


def test_attention_can_be_differentiated_twice():
    torch.manual_seed(0)
    net = Attention().float()
    gradients = {}
    for way in ("loop", "vmap"):
        net.zero_grad()
        MAMLModule(net, 0.1, 2, task_parallel=way).meta_loss(vector_tasks(dtype=torch.float32)).backward()
        gradients[way] = [p.grad.clone() for p in net.parameters()]
    assert relative_error(gradients["vmap"], gradients["loop"]) < 1e-4
