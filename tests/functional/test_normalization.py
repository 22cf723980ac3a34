"""Batch normalization: transductive, or frozen to the support set."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_meta import MAMLModule
from lightning_meta.functional.normalization import record_statistics, with_batch_statistics, with_stored_statistics
from tests.conftest import image_tasks
from tests.networks import network


def test_recorded_statistics_are_the_mean_and_the_biased_variance():
    layer = nn.BatchNorm2d(3)
    x = torch.randn(5, 3, 4, 4) * 2 + 10
    with record_statistics(layer) as statistics:
        layer(x)
    torch.testing.assert_close(statistics[".running_mean"], x.mean((0, 2, 3)))
    torch.testing.assert_close(statistics[".running_var"], x.var((0, 2, 3), unbiased=False))


@pytest.mark.parametrize("kind", ["batch", "batch_tracked"])
def test_stored_statistics_of_a_batch_give_that_batchs_own_output(kind):
    net = network(kind)
    x = torch.randn(7, 1, 8, 8, dtype=torch.float64)
    with record_statistics(net) as statistics:
        expected = net.train()(x)
    stored = with_stored_statistics(net)
    stored.load_state_dict(stored.state_dict() | statistics)
    torch.testing.assert_close(stored(x), expected, rtol=1e-10, atol=1e-12)
    one_by_one = torch.cat([stored(x[i : i + 1]) for i in range(7)])
    torch.testing.assert_close(one_by_one, expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(with_batch_statistics(net)(x), expected, rtol=1e-10, atol=1e-12)


def test_a_pretrained_frozen_layer_keeps_its_running_statistics():
    torch.manual_seed(0)
    frozen = nn.BatchNorm2d(1).double().requires_grad_(False)
    frozen.running_mean.fill_(0.5)
    frozen.running_var.fill_(4.0)
    net = nn.Sequential(frozen, nn.Flatten(), nn.Linear(64, 3)).double()
    tasks = image_tasks()
    module = MAMLModule(net, inner_steps=0)
    x = tasks.query.inputs[0]
    expected = F.cross_entropy(net[2](((x - 0.5) / (4.0 + frozen.eps) ** 0.5).flatten(1)), tasks.query.targets[0])
    outcome = next(iter(module.task_map(module.algorithm.learn, module.problem(tasks))))
    assert outcome.losses[0].item() == pytest.approx(expected.item(), rel=1e-9)
    assert frozen.running_mean.item() == 0.5


def test_evaluation_ways_differ_only_in_the_statistics():
    """With the query set equal to the support set, both ways agree; with another, they do not."""
    tasks = image_tasks(k_shot=3, n_query=3)
    same = tasks._replace(query=tasks.support)
    ways = {t: MAMLModule(network("batch_tracked"), 0.3, 2, transductive=t) for t in (True, False)}

    def predictions(tasks):
        return {t: torch.cat(list(m.task_map(m.algorithm.predict, m.problem(tasks)))) for t, m in ways.items()}

    equal = predictions(same)
    torch.testing.assert_close(equal[False], equal[True], rtol=1e-9, atol=1e-10)
    different = predictions(tasks)
    assert not torch.allclose(different[False], different[True], atol=1e-3)


def test_non_transductive_evaluation_predicts_what_adapt_to_predicts():
    tasks = image_tasks()
    for kind in ("batch", "batch_tracked", "instance", "layer"):
        for way in ("vmap", "loop"):
            module = MAMLModule(network(kind), 0.3, 3, transductive=False, task_parallel=way)
            found = torch.cat(list(module.task_map(module.algorithm.predict, module.problem(tasks))))
            for i in range(4):
                adapted = module.adapt_to(tasks.support.inputs[i], tasks.support.targets[i])
                one_by_one = torch.cat([adapted(x[None]) for x in tasks.query.inputs[i]])
                torch.testing.assert_close(found[i], one_by_one, rtol=1e-9, atol=1e-10)
