"""Networks."""

import pytest
import torch
import torch.nn.functional as F

from lightning_meta import MLP, Conv4, MAMLModule, Normalize
from lightning_meta.errors import ConfigurationError
from lightning_meta.testing import check_algorithm
from tests.conftest import image_tasks


@pytest.mark.parametrize("norm", ["batch", "instance", "group", "layer", "none"])
def test_conv4_shapes(norm):
    stride = Conv4(5, hidden=8, norm=norm)
    assert stride(torch.randn(4, 1, 28, 28)).shape == (4, 5)
    assert stride.body(torch.randn(4, 1, 28, 28)).shape == (4, 8)
    pool = Conv4(3, hidden=8, in_channels=3, downsample="pool", norm=norm, image_size=84)
    assert pool.body(torch.randn(4, 3, 84, 84)).shape == (4, 8 * 25)
    assert pool(torch.randn(4, 3, 84, 84)).shape == (4, 3)


def test_conv4_of_the_paper_has_its_parameters():
    convolutions = (9 + 3 * 9 * 64) * 64 + 4 * 64
    assert sum(p.numel() for p in Conv4(5).parameters()) == convolutions + 4 * 2 * 64 + 64 * 5 + 5
    assert not list(Conv4(5).buffers())


def test_pooled_blocks_are_those_of_the_papers():
    """Vinyals et al. 2016 and Snell et al. 2017: convolution, normalization, ReLU, and then pooling."""
    torch.manual_seed(0)
    network = Conv4(3, hidden=4, downsample="pool").double()
    x = images = torch.randn(6, 1, 28, 28, dtype=torch.float64)
    for block in network.body[:4]:
        x = F.max_pool2d(F.relu(block[1](block[0](x))), 2)
    expected = network.head(x.flatten(1))
    torch.testing.assert_close(network(images), expected, rtol=0, atol=0)
    ours, theirs = (
        torch.autograd.grad(y.square().sum(), list(network.parameters()), retain_graph=True)
        for y in (network(images), expected)
    )
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_mlp_of_the_papers():
    sinusoid = MLP()
    assert [p.numel() for p in sinusoid.parameters()] == [40, 40, 1600, 40, 40, 1]
    omniglot = MLP(784, 5, hidden=[256, 128, 64, 64], norm="batch")
    assert omniglot(torch.randn(6, 1, 28, 28)).shape == (6, 5)
    assert omniglot.body(torch.randn(6, 784)).shape == (6, 64)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Conv4(0), "n_way to be a whole number of at least 1, got 0"),
        (lambda: Conv4(5, downsample="max"), "'stride' or 'pool', got 'max'"),
        (lambda: Conv4(5, norm="bach"), "'batch', .* got 'bach'"),
        (lambda: Conv4(5, hidden=12, norm="group"), "multiple of 8, got 12"),
        (lambda: Conv4(5, downsample="pool", image_size=12), "16x16 pixels, got image_size=12"),
        (lambda: MLP(1, 0), "out_features=0"),
        (lambda: MLP(hidden=[]), "at least one hidden layer"),
        (lambda: MLP(norm="layer"), "'batch' or 'none', got 'layer'"),
    ],
)
def test_impossible_networks_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_normalize_is_a_layer_of_the_network():
    layer = Normalize([0.5, 0.4, 0.3], [0.2, 0.3, 0.1])
    images = torch.rand(4, 3, 16, 16)
    for channel, (mean, std) in enumerate([(0.5, 0.2), (0.4, 0.3), (0.3, 0.1)]):
        assert torch.allclose(layer(images)[:, channel], (images[:, channel] - mean) / std)
    assert torch.allclose(layer.undo(layer(images)), images, atol=1e-6)
    network = Conv4(3, hidden=4, in_channels=3, normalize=layer)
    plain = Conv4(3, hidden=4, in_channels=3)
    learned = [tensor for name, tensor in network.state_dict().items() if not name.endswith(("mean", "std"))]
    plain.load_state_dict(dict(zip(plain.state_dict(), learned, strict=True)))
    assert torch.allclose(network(images), plain(layer(images)))
    loaded = Conv4(3, hidden=4, in_channels=3, normalize=Normalize([0.0] * 3, [1.0] * 3))
    loaded.load_state_dict(network.state_dict())
    assert torch.equal(loaded(images), network(images))  # the numbers are saved with the network
    gray = Normalize([0.5], [0.5])
    assert torch.allclose(gray(images), images * 2 - 1)


def test_a_network_that_normalizes_keeps_what_every_algorithm_keeps():
    torch.manual_seed(0)
    network = Conv4(3, hidden=4, in_channels=3, image_size=16, normalize=Normalize([0.5, 0.4, 0.3], [0.2, 0.3, 0.1]))
    check_algorithm(MAMLModule(network.double(), inner_lr=0.1, inner_steps=2), image_tasks(channels=3, size=16))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Normalize([0.5], [0.2, 0.3]), "a std for each mean"),
        (lambda: Normalize([], []), "a std for each mean"),
        (lambda: Normalize([0.5], [0.0]), "must be positive"),
        (lambda: Normalize([0.5] * 3, [0.5] * 3)(torch.rand(2, 1, 8, 8)), r"for images \(examples, 3, H, W\)"),
        (lambda: Conv4(5, normalize=[0.5]), r"normalize must be a layer such as Normalize"),
    ],
)
def test_normalizations_without_a_meaning_are_refused(make, message):
    with pytest.raises(ConfigurationError, match=message):
        make()
