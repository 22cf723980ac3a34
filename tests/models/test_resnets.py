"""Residual networks of the few-shot literature."""

import copy

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_meta import WRN28_10, EpisodicDataModule, MAMLModule, ProtoNetModule, ResNet12
from lightning_meta.datasets import ClassDataset
from lightning_meta.errors import ConfigurationError
from lightning_meta.models.resnet12 import DropBlock
from lightning_meta.testing import check_algorithm
from tests.conftest import image_tasks, meta_gradient_by_hand, relative_error


def small(name):
    torch.manual_seed(0)
    made = ResNet12(3, widths=[4, 5, 6, 7]) if name == "ResNet12" else WRN28_10(3, depth=10, width=1)
    with torch.no_grad():  # away from 1 and 0, where mistakes could hide
        for layer in made.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.weight.add_(0.3 * torch.randn_like(layer.weight))
                layer.bias.add_(0.3 * torch.randn_like(layer.bias))
    return made.double()


def test_they_are_those_of_the_papers():
    convolutions = sum(9 * b * a + 2 * 9 * a * a + b * a for b, a in [(3, 64), (64, 160), (160, 320), (320, 640)])
    with torch.device("meta"):  # shapes only
        body, wide = ResNet12(5).body, WRN28_10(5)
        assert body(torch.zeros(2, 3, 84, 84)).shape == (2, 640)
    assert sum(p.numel() for p in body.parameters()) == convolutions + 8 * (64 + 160 + 320 + 640)  # 12.4 million
    assert round(sum(p.numel() for p in wide.body.parameters()) / 1e6, 1) == 36.5
    assert sum(isinstance(layer, nn.Conv2d) and layer.kernel_size == (3, 3) for layer in wide.modules()) == 25
    assert wide.head.in_features == 640
    assert WRN28_10(5, depth=16, width=2)(torch.zeros(2, 3, 32, 32)).shape == (2, 5)


@pytest.mark.parametrize("name", ["ResNet12", "WRN28_10"])
def test_the_second_order_meta_gradient_is_that_of_a_loop_by_hand_in_every_way(name):
    network, tasks = small(name), image_tasks(tasks=3, n_way=3, k_shot=1, n_query=1, channels=3, size=16)
    module = MAMLModule(copy.deepcopy(network), inner_lr=0.1, inner_steps=2)
    check_algorithm(module, tasks)
    module.meta_loss(tasks).backward()
    expected = meta_gradient_by_hand(network, tasks, 0.1)
    assert relative_error([p.grad for p in module.network.parameters()], expected) < 1e-9


@pytest.mark.parametrize("name", ["ResNet12", "WRN28_10"])
def test_embeddings_keep_what_every_algorithm_keeps(name):
    check_algorithm(ProtoNetModule(small(name)), image_tasks(tasks=2, channels=3, size=16))


def test_dropped_blocks_are_whole_and_as_many_as_asked_for():
    torch.manual_seed(0)
    layer = DropBlock(0.1, 3)
    inputs = torch.rand(2000, 4, 10, 10) + 0.5
    found = layer(inputs)
    dropped = (found == 0).float()
    assert 0.085 < dropped.mean() < 0.1  # blocks that overlap drop less than the rate
    # A place is dropped if and only if it lies in a block of 3x3 that is dropped as a whole.
    inner = -F.max_pool2d(-dropped, 3, 1)
    assert torch.equal(F.max_pool2d(F.pad(inner, (2,) * 4), 3, 1), dropped)
    share = 1 - dropped.mean((1, 2, 3), keepdim=True)
    assert torch.allclose(found, inputs * (1 - dropped) / share)
    assert not torch.equal(dropped[:, 0], dropped[:, 1])  # each channel its own
    # The probability of a corner of the map by hand: one block covers it; the middle is covered by nine.
    gamma = 0.1 / 9 * 100 / 64
    assert dropped[..., 0, 0].mean().item() == pytest.approx(gamma, abs=0.004)
    assert dropped[..., 5, 5].mean().item() == pytest.approx(1 - (1 - gamma) ** 9, abs=0.01)


def test_nothing_is_dropped_in_evaluation_and_blocks_are_no_larger_than_the_map():
    layer = DropBlock(0.3, 5)
    assert torch.equal(layer.eval()(torch.ones(2, 2, 4, 4)), torch.ones(2, 2, 4, 4))
    maps = layer.train()(torch.ones(400, 1, 2, 2))
    assert {float(x.mean()) for x in maps} == {0.0, 1.0}  # all of it or nothing
    assert (maps.flatten(1).mean(1) == 0).float().mean().item() == pytest.approx(0.3, abs=0.07)
    network = ResNet12(3, widths=[2, 2, 2, 2], drop_rate=0.5).eval()
    images = torch.rand(4, 3, 32, 32)
    assert torch.equal(network(images), network(images))
    assert not torch.equal(network.train()(images), network(images))


@pytest.mark.parametrize("way", ["vmap", "loop"])
def test_what_is_dropped_in_meta_training_follows_from_the_outer_step(way, tmp_path):
    """Two trainings from one seed are one; dropping runs under vmap and has an effect."""

    def trained(drop_rate):
        pl.seed_everything(7)
        network = ResNet12(3, in_channels=1, widths=[2, 2, 3, 3], drop_rate=drop_rate, block_size=2)
        module = MAMLModule(network, inner_lr=0.1, inner_steps=2, task_parallel=way)
        images = torch.rand(60, 1, 16, 16, generator=torch.Generator().manual_seed(0))
        data = EpisodicDataModule(ClassDataset(images, torch.arange(6).repeat_interleave(10)), n_way=3, n_query=2,
                                  meta_batch_size=2, steps_per_epoch=2)  # fmt: skip
        trainer = pl.Trainer(max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False,
                             enable_progress_bar=False, enable_model_summary=False)  # fmt: skip
        trainer.fit(module, data)
        return torch.cat([p.detach().flatten() for p in module.parameters()])

    first = trained(0.3)
    torch.rand(5)
    assert torch.equal(trained(0.3), first)
    assert not torch.equal(trained(0.0), first)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ResNet12(5, drop_rate=1.0), "drop_rate must be at least 0 and below 1, got 1.0"),
        (lambda: WRN28_10(5, drop_rate=-0.1), "drop_rate must be at least 0"),
        (lambda: ResNet12(5, drop_rate=0.1, block_size=0), "block_size must be a whole number"),
        (lambda: ResNet12(5, widths=[]), r"widths\[0\] to be a whole number"),
        (lambda: ResNet12(0), "n_way to be a whole number of at least 1, got 0"),
        (lambda: WRN28_10(5, depth=27), "depth must be 10, 16, 22, 28"),
        (lambda: WRN28_10(5, width=1.5), "width to be a whole number"),
    ],
)
def test_impossible_networks_are_refused(make, message):
    with pytest.raises(ConfigurationError, match=message):
        make()
