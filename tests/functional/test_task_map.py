"""Ways of running tasks: what they refuse, fall back to and choose."""

import warnings

import pytest
import torch
from torch import nn

from lightning_meta import MLP, Conv4, MAMLModule
from lightning_meta.functional import TaskMap
from tests.conftest import image_tasks
from tests.networks import Gate, Recurrent, ValueDependent, network


@pytest.mark.parametrize("way", ["fast", 0, -2, True, 1.5, None])
def test_unknown_ways_are_refused(way):
    with pytest.raises(ValueError, match="'auto', 'vmap', 'loop', or the number of tasks"):
        TaskMap(nn.Linear(1, 1), ("weight",), way)


@pytest.mark.parametrize(
    ("net", "layer"), [(Recurrent(), r"'rnn' \(GRU\)"), (ValueDependent(), r"'gate' \(Gate\)")], ids=["gru", "if"]
)
def test_what_vmap_cannot_run_falls_back_once_naming_the_layer_or_is_refused(net, layer):
    net, tasks = net.double(), image_tasks()
    expected = MAMLModule(net, 0.1, task_parallel="loop").meta_loss(tasks)
    module = MAMLModule(net, 0.1)
    with pytest.warns(UserWarning, match=f"vmap cannot run layer {layer}"):
        found = module.meta_loss(tasks)
    assert found.item() == expected.item()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        module.meta_loss(tasks).backward()
    with pytest.raises(RuntimeError, match=f"layer {layer}.*\n.*task_parallel='loop'"):
        MAMLModule(net, 0.1, task_parallel="vmap").meta_loss(tasks)


def test_the_layer_is_named_behind_an_empty_sequential():
    """The usual identity shortcut is false as a boolean."""
    net = nn.Sequential(nn.Flatten(), nn.Sequential(), Gate(), nn.Linear(64, 3)).double()
    with pytest.warns(UserWarning, match=r"layer '2' \(Gate\)"):
        MAMLModule(net, 0.1).meta_loss(image_tasks())


def test_an_error_of_the_users_own_is_raised_as_it_is():
    class Broken(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(3, 3)

        def forward(self, x):
            raise KeyError("my own mistake")

    module = MAMLModule(Broken())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(KeyError, match="my own mistake"):
            module.meta_loss(image_tasks())


def test_auto_runs_all_tasks_together_unless_they_are_large():
    net = Conv4(5)

    def together(network, queries, names=("head.weight",), **kwargs):
        tasks = image_tasks(tasks=32, n_way=5, k_shot=1, n_query=queries, **kwargs)
        return TaskMap(network, names, "auto").together(tasks)

    assert together(net, 1, size=28) == 32
    assert together(net, 15, size=28) == 32
    assert together(net, 4, size=84) == 18
    assert together(net, 4, size=84, channels=3) == 18  # the inner layers' channels are what takes the memory
    assert together(net, 15, size=84) == 0
    assert together(Conv4(5, downsample="pool"), 15, size=28) == 0
    assert together(Conv4(5, downsample="pool"), 1, size=28) == 32
    assert together(MLP(64, 5), 15, size=84) == 32
    assert together(net, 15, size=84, names=()) == 32  # no parameters of their own


def test_chunks_of_one_task_are_a_loop():
    tasks = image_tasks()
    for way in (1, "loop"):
        module = MAMLModule(Recurrent().double(), 0.1, task_parallel=way)
        assert torch.isfinite(module.meta_loss(tasks))


def test_a_chunk_that_does_not_divide_the_batch():
    net, tasks = network("batch"), image_tasks(tasks=5)
    losses = [MAMLModule(net, 0.1, task_parallel=way).meta_loss(tasks).item() for way in (2, 4, 100, "vmap")]
    assert losses == pytest.approx([losses[0]] * 4, rel=1e-12)


def test_the_loop_frees_each_tasks_graph():
    """Saved tensors of one task are gone before the next is run."""
    live, peak = set(), []

    def pack(tensor):
        token = object()
        live.add(id(token))
        peak.append(len(live))
        return Saved(tensor, token)

    class Saved:
        def __init__(self, tensor, token):
            self.tensor, self.token = tensor, token

        def __del__(self):
            live.discard(id(self.token))

    peaks = {}
    for count in (1, 6):
        peak.clear()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved.tensor):
            MAMLModule(network("batch"), 0.1, task_parallel="loop").meta_loss(image_tasks(tasks=count))
        peaks[count] = max(peak)
    assert peaks[6] <= 1.1 * peaks[1]
