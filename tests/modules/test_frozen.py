"""Frozen weights that checkpoints leave out."""

import pytest
import torch
from torch import nn

from lightning_meta import EpisodicDataModule, MAMLModule
from lightning_meta.datasets import ClassDataset
from lightning_meta.errors import CheckpointError
from tests.modules.test_maml import trainer


def network(seed=0, size=400):
    """A large frozen part, a layer that is tied to it, and a small part that is trained."""
    torch.manual_seed(seed)
    frozen = nn.Sequential(nn.Linear(6, size), nn.ReLU(), nn.Linear(size, size)).requires_grad_(False)
    tied = nn.Linear(size, size)
    tied.weight = frozen[2].weight
    torch.manual_seed(1)
    return nn.Sequential(frozen, tied, nn.Linear(size, 3))


def data():
    classes = [ClassDataset(torch.randn(40, 6), torch.arange(5).repeat(8)) for _ in range(2)]
    return EpisodicDataModule(
        *classes, n_way=3, n_query=2, meta_batch_size=2, steps_per_epoch=2, val_tasks=2, eval_batch_size=2
    )


def fitted(tmp_path, **options):
    module = MAMLModule(network(), 0.1, adapt_only="2", **options)
    own = trainer(tmp_path)
    own.fit(module, data())
    path = tmp_path / "own.ckpt"
    own.save_checkpoint(path)
    return module, path


def test_frozen_weights_are_left_out_and_loaded_from_where_they_came(tmp_path):
    module, path = fitted(tmp_path, save_frozen=False)
    saved = torch.load(path, weights_only=True)
    assert set(saved["state_dict"]) == {f"network.{name}" for name in ("1.bias", "2.weight", "2.bias")}
    whole = fitted(tmp_path / "whole")[1]
    assert path.stat().st_size * 5 < whole.stat().st_size
    loaded = MAMLModule.load_from_checkpoint(path, network=network())
    assert all(torch.equal(v, loaded.state_dict()[n]) for n, v in module.state_dict().items())
    assert torch.equal(loaded.network[1].weight, loaded.network[0][2].weight)
    double = MAMLModule(network().double(), 0.1, adapt_only="2", save_frozen=False)
    trainer(tmp_path / "double", precision="64-true").fit(double, data(), ckpt_path=str(path))
    assert torch.equal(double.network[0][0].weight.float(), module.network[0][0].weight)
    assert double.trainer.global_step == 2  # where the other one ended


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (lambda: network(seed=2), "other values there. Make its network of the same pretrained weights"),
        (lambda: network()[1:], r"5 frozen parameters .*has no network\.0"),
    ],
)
def test_other_frozen_weights_are_refused(other, message, tmp_path):
    _, path = fitted(tmp_path, save_frozen=False)
    with pytest.raises(CheckpointError, match=message):
        MAMLModule.load_from_checkpoint(path, network=other(), adapt_only=None)


def test_without_anything_frozen_nothing_is_left_out(tmp_path):
    module = MAMLModule(network().requires_grad_(), 0.1, save_frozen=False)
    own = trainer(tmp_path)
    own.fit(module, data())
    own.save_checkpoint(tmp_path / "own.ckpt")
    saved = torch.load(tmp_path / "own.ckpt", weights_only=True)
    assert saved["state_dict"].keys() == module.state_dict().keys()
    loaded = MAMLModule.load_from_checkpoint(tmp_path / "own.ckpt", network=network(seed=3))
    assert torch.equal(loaded.network[0][0].weight, module.network[0][0].weight)
