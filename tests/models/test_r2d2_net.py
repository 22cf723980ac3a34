"""The network of R2-D2's paper."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_meta import MAMLModule, Normalize, R2D2Module, R2D2Net
from lightning_meta.errors import ConfigurationError
from lightning_meta.testing import check_algorithm
from tests.conftest import image_tasks, meta_gradient_by_hand, relative_error


def small(**options):
    torch.manual_seed(0)
    network = R2D2Net(3, widths=[4, 5, 6, 7], image_size=24, **options)
    with torch.no_grad():  # away from 1 and 0, where mistakes could hide
        for layer in network.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.weight.add_(0.3 * torch.randn_like(layer.weight))
                layer.bias.add_(0.3 * torch.randn_like(layer.bias))
    return network.double()


@pytest.mark.parametrize(
    ("channels", "size", "own", "narrow"),
    [(1, 28, 1536 + 2048, 512), (3, 32, 3456 + 4608, 1152), (3, 84, 31104 + 41472, 10368)],
)
def test_features_are_as_many_as_the_authors_have(channels, size, own, narrow):
    for widths, features in (((96, 192, 384, 512), own), ((64, 64, 64, 64), narrow)):
        with torch.device("meta"):  # shapes only
            network = R2D2Net(5, in_channels=channels, widths=widths, image_size=size)
            assert network.body(torch.zeros(2, channels, size, size)).shape == (2, features)
            assert network(torch.zeros(2, channels, size, size)).shape == (2, 5)


def test_features_are_those_of_the_last_two_blocks():
    network = small(normalize=Normalize([0.5, 0.4, 0.3], [0.2, 0.3, 0.4]))
    images = torch.rand(7, 3, 24, 24, dtype=torch.float64)
    parameters, x, blocks = list(network.body.parameters()), network.body[0](images), []
    for i in range(4):
        weight, bias, scale, shift = parameters[4 * i : 4 * i + 4]
        x = F.conv2d(x, weight, bias, padding=1)
        mean, variance = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), correction=0, keepdim=True)
        x = (x - mean) / (variance + 1e-5).sqrt() * scale.view(-1, 1, 1) + shift.view(-1, 1, 1)
        x = F.leaky_relu(x, 0.1)  # before the pooling, as most have it: the same, since it never falls
        blocks.append(F.max_pool2d(x, 2, stride=2 if i < 3 else 1))
        x = blocks[-1]
    features = torch.cat([F.max_pool2d(blocks[2], 2, stride=1).flatten(1), blocks[3].flatten(1)], 1)
    assert torch.allclose(network.body(images), features, rtol=1e-10)
    assert torch.allclose(network(images), network.head(features), rtol=1e-10)


def test_the_second_order_meta_gradient_is_that_of_a_loop_by_hand_in_every_way():
    network, tasks = small(), image_tasks(tasks=3, n_way=3, k_shot=1, n_query=1, channels=3, size=24)
    module = MAMLModule(copy.deepcopy(network), inner_lr=0.1, inner_steps=2)
    check_algorithm(module, tasks)
    module.meta_loss(tasks).backward()
    expected = meta_gradient_by_hand(network, tasks, 0.1)
    assert relative_error([p.grad for p in module.network.parameters()], expected) < 1e-9


def test_ridge_regression_on_it_keeps_what_every_algorithm_keeps():
    check_algorithm(R2D2Module(small()).double(), image_tasks(tasks=2, channels=3, size=24))


def test_features_are_dropped_in_training_only():
    network, images = small(drop_rate=0.5), torch.rand(40, 3, 24, 24, dtype=torch.float64)
    third, fourth = 6 * 4, 7 * 4
    found = network.train().body(images)
    share = (found[:, third:] == 0).double().mean().item()
    assert share == pytest.approx(0.5, abs=0.05)
    assert 0 < (found[:, :third] == 0).double().mean() < 0.5  # before the pooling of 2x2, of which the largest stays
    assert found.shape[1] == third + fourth
    network.eval()
    assert torch.equal(network.body(images), network.body(images))
    assert not torch.equal(network.body(images), found)
    assert not any(isinstance(layer, nn.Dropout) for layer in small().modules())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: R2D2Net(5, drop_rate=1.0), "drop_rate must be at least 0 and below 1, got 1.0"),
        (lambda: R2D2Net(5, widths=[64, 64]), r"four blocks, got widths=\[64, 64\]"),
        (lambda: R2D2Net(5, widths=[64, 64, 64, 0]), r"widths\[3\] to be a whole number"),
        (lambda: R2D2Net(0), "n_way to be a whole number of at least 1, got 0"),
        (lambda: R2D2Net(5, image_size=8), "at least 16x16 pixels, got image_size=8"),
    ],
)
def test_impossible_networks_are_refused(make, message):
    with pytest.raises(ConfigurationError, match=message):
        make()
