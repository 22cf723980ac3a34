"""Networks."""

import pytest
import torch

from lightning_meta import MLP, Conv4


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
