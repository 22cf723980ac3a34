"""A training with everything that has to be restored: dropout, Adam, a schedule, learned rates, random numbers."""

from datetime import timedelta
from functools import partial

import lightning.pytorch as pl
import numpy as np
import torch
import torch.nn.functional as F
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.strategies import DDPStrategy
from torch import nn
from torch.optim import Adam
from torch.optim.lr_scheduler import CosineAnnealingLR

from lightning_meta import MAMLModule, MetaLSTMModule, ReptileModule, RunCheckpoint, SinusoidDataModule, inner

EPOCHS, STEPS = 3, 40
TIMEOUT = 20  # seconds


def network():
    return nn.Sequential(nn.Linear(1, 16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 1))


def module(algorithm):
    settings = {
        "loss": F.mse_loss,
        "inner_steps": 3,
        "lr_scheduler": partial(CosineAnnealingLR, T_max=EPOCHS * STEPS),
        "optimizer": partial(Adam, lr=1e-3),
    }
    if algorithm == "maml":
        return MAMLModule(network(), inner_optimizer=inner.MetaSGD(0.01), inner_optimizer_lr=1e-2, **settings)
    if algorithm == "reptile":
        optimizer = inner.Adam(0.01, betas=(0.0, 0.999))
        return ReptileModule(network(), optimizer, inner_batch_size=4, carry_inner_state=True, **settings)
    return MetaLSTMModule(network(), inner.LSTMOptimizer(4), gradient_clip_val=0.25, **settings)


class Jitter(pl.Callback):
    """Changes a parameter by what the global generators say next."""

    def on_train_batch_end(self, trainer, pl_module, *_):
        with torch.no_grad():
            next(pl_module.network.parameters())[0, 0] += 1e-3 * (torch.rand(()) + np.random.rand())


def train(algorithm, folder, world=1, seed=0):
    """Train in `folder`, from the last checkpoint that is there."""
    pl.seed_everything(seed)
    last = folder / "last.ckpt"
    checkpoint = RunCheckpoint(str(folder), monitor="val/query_loss", every_n_steps=7)
    trainer = pl.Trainer(
        max_epochs=EPOCHS, accelerator="cpu", devices=world, default_root_dir=folder, log_every_n_steps=5,
        strategy=DDPStrategy(timeout=timedelta(seconds=TIMEOUT)) if world > 1 else "auto",
        callbacks=[checkpoint, *([Jitter()] if world == 1 else [])], logger=CSVLogger(folder, "logs", "fit"),
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    data = SinusoidDataModule(meta_batch_size=4, steps_per_epoch=STEPS, val_tasks=8)
    trainer.fit(module(algorithm), data, ckpt_path=str(last) if last.exists() else None)


def final_state(folder):
    return torch.load(folder / "last.ckpt", weights_only=True)
