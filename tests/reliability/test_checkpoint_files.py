"""Checkpoints that are truncated, foreign, hostile, or of another configuration are named as such."""

import os

import lightning.pytorch as pl
import pytest
import torch

from lightning_meta import MLP, MAMLModule, RunCheckpoint, SinusoidDataModule
from lightning_meta.errors import CheckpointError
from lightning_meta.inner import MetaSGD


def mse(predictions, targets):
    return (predictions - targets).square().mean()


def module(**kwargs):
    return MAMLModule(MLP(hidden=(8,)), inner_lr=0.01, loss=mse, **kwargs)


def trainer(folder, **kwargs):
    quiet = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    return pl.Trainer(max_epochs=1, default_root_dir=folder, **quiet, **kwargs)


def data(**kwargs):
    return SinusoidDataModule(meta_batch_size=2, steps_per_epoch=4, val_tasks=2, test_tasks=2, **kwargs)


@pytest.fixture
def checkpoint(tmp_path):
    trainer(tmp_path, callbacks=[RunCheckpoint(str(tmp_path))]).fit(module(), data())
    return tmp_path / "last.ckpt"


class Harm:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (str(self.path),))


def every_way_of_loading(path, folder):
    yield lambda: MAMLModule.load_from_checkpoint(path, network=MLP(hidden=(8,)), loss=mse)
    yield lambda: trainer(folder).fit(module(), data(), ckpt_path=path)
    yield lambda: trainer(folder).test(module(), data(), ckpt_path=path)


@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_a_truncated_checkpoint(share, checkpoint, tmp_path):
    content = checkpoint.read_bytes()
    checkpoint.write_bytes(content[: int(len(content) * share)])
    for load in every_way_of_loading(checkpoint, tmp_path):
        with pytest.raises(CheckpointError, match=r"last\.ckpt cannot be read: it is truncated, or no checkpoint"):
            load()


@pytest.mark.parametrize("content", [{"weight": torch.zeros(3)}, torch.zeros(3), {"state_dict": 3}])
def test_a_file_of_something_else(content, tmp_path):
    path = tmp_path / "other.pt"
    torch.save(content, path)
    for load in every_way_of_loading(path, tmp_path):
        with pytest.raises(CheckpointError, match="no checkpoint of Lightning"):
            load()


def test_a_checkpoint_that_would_run_code(checkpoint, tmp_path):
    content = torch.load(checkpoint, weights_only=True) | {"extra": Harm(tmp_path / "harm")}
    torch.save(content, checkpoint)
    for load in every_way_of_loading(checkpoint, tmp_path):
        with pytest.raises(CheckpointError, match="holds objects, and to load those could run any code"):
            load()
    assert not (tmp_path / "harm").exists()


def test_a_checkpoint_of_another_network_says_which_hyperparameter_differs(checkpoint, tmp_path):
    other = MAMLModule(MLP(hidden=(16,)), inner_optimizer=MetaSGD(0.1), inner_steps=2, loss=mse)
    with pytest.raises(
        CheckpointError, match=r"does not fit this MAMLModule: it lacks algorithm\.inner_optimizer.*is \(8, 1\)"
    ) as e:
        trainer(tmp_path).test(other, data(), ckpt_path=checkpoint)
    assert "inner_steps: 1 -> 2" in str(e.value)


def test_a_checkpoint_of_other_data_says_so(checkpoint, tmp_path):
    with pytest.warns(UserWarning, match=r"other hyperparameters.*\n  k_shot: 10 -> 5"):
        trainer(tmp_path).test(module(), data(k_shot=5), ckpt_path=checkpoint)


def test_the_task_strategy_is_kept(tmp_path):
    class Branching(torch.nn.Linear):
        def forward(self, inputs):
            return super().forward(inputs) if inputs.sum() > 0 else -super().forward(inputs)

    first = MAMLModule(Branching(1, 1), inner_lr=0.01, loss=mse)
    with pytest.warns(UserWarning, match=r"torch\.vmap cannot run"):
        trainer(tmp_path, callbacks=[RunCheckpoint(str(tmp_path))]).fit(first, data())
    second = MAMLModule(Branching(1, 1), inner_lr=0.01, loss=mse)
    assert second.task_map.together(next(iter_tasks())) > 0
    trainer(tmp_path).test(second, data(), ckpt_path=tmp_path / "last.ckpt")
    assert second.task_map.together(next(iter_tasks())) == 0


def iter_tasks():
    source = data()
    source.setup()
    return iter(source.train_dataloader())
