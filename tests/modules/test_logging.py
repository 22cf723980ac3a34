"""What loggers are told of a training."""

import csv
import math

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.loggers import CSVLogger, WandbLogger
from torch.optim import SGD as TorchSGD

from lightning_meta import LSLR, MLP, MAMLModule
from tests.modules.test_maml import sinusoid_module, sinusoids, trainer


def logged(tmp_path):
    with (tmp_path / "metrics.csv").open() as file:
        return [row for row in csv.DictReader(file) if row.get("train/gradient_norm")]


def test_the_norm_of_the_meta_gradient_is_that_before_clipping(tmp_path):
    """It is what a step of torch's SGD at rate 1 would have moved, were it not clipped."""
    logger = CSVLogger(tmp_path, name="", version="")
    module = sinusoid_module(optimizer=lambda params: TorchSGD(params, lr=1.0), gradient_clip_val=1e-3)
    data = sinusoids(steps_per_epoch=1, val_tasks=1)
    before = [p.detach().clone() for p in module.parameters()]
    trainer(tmp_path, logger=logger, log_every_n_steps=1).fit(module, data)
    moved = math.sqrt(sum((p - b).square().sum().item() for p, b in zip(module.parameters(), before, strict=True)))
    assert moved == pytest.approx(1e-3, rel=1e-3)
    with torch.no_grad():
        for p, b in zip(module.parameters(), before, strict=True):
            p.copy_(b)
    module.zero_grad()
    module.meta_loss(next(iter(data.train_dataloader()))).backward()
    expected = math.sqrt(sum(p.grad.square().sum().item() for p in module.parameters()))
    assert float(logged(tmp_path)[0]["train/gradient_norm"]) == pytest.approx(expected, rel=1e-4)


def test_learned_rates_are_logged(tmp_path):
    logger = CSVLogger(tmp_path, name="", version="")
    module = MAMLModule(MLP(), inner_optimizer=LSLR(0.05, positive=True), inner_steps=2, loss=F.mse_loss)
    trainer(tmp_path, logger=logger, log_every_n_steps=5).fit(module, sinusoids(val_tasks=1))
    rows = logged(tmp_path)
    assert len(rows) == 4  # not in the steps between
    every = torch.cat([rates.detach().exp() for rates in module.inner_optimizer.rates.values()])
    for name, value in {"inner_lr": every.mean(), "inner_lr_min": every.min(), "inner_lr_max": every.max()}.items():
        assert float(rows[-1][f"train/{name}"]) == pytest.approx(value.item(), rel=1e-4)


def test_objects_given_in_a_script_are_hyperparameters_for_loggers(tmp_path):
    logger = WandbLogger(save_dir=tmp_path, offline=True)
    module = sinusoid_module(inner_lr=None, inner_optimizer=LSLR(0.05))
    trainer(tmp_path, logger=logger).fit(module, sinusoids(steps_per_epoch=1, val_tasks=1))
    config = dict(logger.experiment.config)
    logger.experiment.finish()
    assert config["network"] == "MLP"
    assert config["network_parameters"] == sum(p.numel() for p in module.network.parameters())
    assert config["optimizer"].startswith("Adam(lr=0.001")
    assert config["inner_optimizer"] == "LSLR(lr=0.05, positive=False)"
    assert config["loss"] == "mse_loss"
    assert config["inner_steps"] == 1
