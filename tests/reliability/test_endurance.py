"""A long training needs no more memory than a short one."""

import json

import lightning.pytorch as pl
import psutil
import pytest
import torch.nn.functional as F
from lightning.pytorch.loggers import CSVLogger

from lightning_meta import MLP, MAMLModule, RunCheckpoint, SinusoidDataModule
from tests.processes import run


class Memory(pl.Callback):
    """The resident memory every hundred outer steps, in MiB."""

    def __init__(self):
        self.resident = []

    def on_train_batch_end(self, trainer, pl_module, *_):
        if trainer.global_step % 100 == 0:
            self.resident.append(psutil.Process().memory_info().rss / 2**20)


def train(folder, steps):
    memory = Memory()
    trainer = pl.Trainer(
        max_steps=steps, max_epochs=-1, accelerator="cpu", default_root_dir=folder, log_every_n_steps=50,
        callbacks=[RunCheckpoint(str(folder), monitor="val/query_loss", every_n_steps=500), memory],
        logger=CSVLogger(folder, "logs", "fit"), enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    data = SinusoidDataModule(k_shot=5, n_query=5, meta_batch_size=2, steps_per_epoch=1000, val_tasks=4)
    trainer.fit(MAMLModule(MLP(hidden=(16,)), inner_lr=0.01, loss=F.mse_loss), data)
    (folder / "memory.json").write_text(json.dumps(memory.resident))


@pytest.mark.timeout(3000)
def test_memory_does_not_grow(request, tmp_path):
    steps = request.config.getoption("endurance_steps")
    run(train, tmp_path, steps, log=tmp_path / "log", timeout=2800)
    resident = json.loads((tmp_path / "memory.json").read_text())
    warm = max(10, len(resident) // 10)  # logging, validation and checkpoints have all happened by then
    start, end = max(resident[warm - 5 : warm]), max(resident[-5:])
    print(f"{steps} outer steps: {start:.1f} MiB after {100 * warm} of them, {end:.1f} MiB at the end")
    assert end < 1.02 * start
