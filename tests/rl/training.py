"""What the processes of `test_processes.py` run."""

import os
from pathlib import Path

import lightning.pytorch as pl
import torch

from lightning_meta import RunCheckpoint
from lightning_meta.rl import GaussianPolicy, MAMLRLModule, PolicyGradient, ReptileRLModule
from tests.distributed.training import is_first, trainer
from tests.rl.worlds import Corridors

EPOCHS, STEPS = 2, 4


def made(name):
    pl.seed_everything(0)
    policy = GaussianPolicy(3, 1, hidden=(8,), std=0.5)
    if name == "reptile":
        return ReptileRLModule(policy)
    options = {"loss": PolicyGradient(clip=0.2), "outer_steps_per_batch": 2}
    return MAMLRLModule(policy, inner_lr=0.2, optimizer=lambda p: torch.optim.Adam(p, 0.01), **options)


def data():
    return Corridors(steps_per_epoch=STEPS, val_tasks=5, test_tasks=7, eval_batch_size=3)


def train(name, folder, world=1):
    """Training with checkpoints after each outer step, from the last one in `folder` if there is one."""
    last = Path(folder, "last.ckpt")
    run = trainer(
        world, max_epochs=EPOCHS, precision="64-true", enable_checkpointing=True, log_every_n_steps=1,
        callbacks=[RunCheckpoint(str(folder), monitor="val/query_success", mode="max", every_n_steps=1)],
    )  # fmt: skip
    module = made(name)
    run.fit(module, data(), ckpt_path=str(last) if last.exists() else None)
    logged = {key: value.item() for key, value in run.callback_metrics.items() if "second" not in key}
    (tested,) = trainer(world, precision="64-true").test(module, data(), verbose=False)
    if is_first():
        torch.save({"parameters": module.state_dict(), "logged": logged | tested}, Path(folder, "found.pt"))


def train_and_die(name, folder, after):
    """Training that is killed, as by `kill -9`, within outer step number `after`."""

    class Dies(Corridors):
        def environments(self, numbers, episodes):
            if numbers[0] == after * self.meta_batch_size and isinstance(self.trainer, pl.Trainer):
                step = self.trainer.fit_loop.epoch_loop.batch_progress.total.processed
                if step == after and self.trainer.training:
                    os.kill(os.getpid(), 9)
            return super().environments(numbers, episodes)

    run = trainer(
        1, max_epochs=EPOCHS, precision="64-true", enable_checkpointing=True,
        callbacks=[RunCheckpoint(str(folder), monitor="val/query_success", mode="max", every_n_steps=1)],
    )  # fmt: skip
    run.fit(made(name), Dies(steps_per_epoch=STEPS, val_tasks=5, test_tasks=7, eval_batch_size=3))
