"""Going from one process to two changes nothing but the speed; precisions train."""

import subprocess
import sys

import pytest
import torch

from tests.modules.test_maml import sinusoid_module, sinusoids, trainer

SCRIPT = """
import sys
import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from lightning_meta import MAMLModule, MLP, SinusoidDataModule

torch.set_num_threads(1)
pl.seed_everything(0)
devices, path = int(sys.argv[1]), sys.argv[2]
module = MAMLModule(MLP(), inner_lr=0.01, loss=F.mse_loss)
data = SinusoidDataModule(meta_batch_size=8, steps_per_epoch=5, val_tasks=9, test_tasks=11, eval_batch_size=2)
trainer = pl.Trainer(
    accelerator="cpu", strategy="ddp" if devices > 1 else "auto", devices=devices, precision="64-true", max_epochs=1,
    logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
)
trainer.fit(module, data)
results = trainer.test(module, data, verbose=False)[0]
if trainer.is_global_zero:
    torch.save({"parameters": module.state_dict(), "results": results}, path)
"""


def test_two_processes_train_and_evaluate_as_one(tmp_path):
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)
    found = {}
    for devices in (1, 2):
        path = tmp_path / f"{devices}.pt"
        command = [sys.executable, str(script), str(devices), str(path)]
        subprocess.run(command, check=True, capture_output=True, timeout=200)
        found[devices] = torch.load(path, weights_only=True)
    for name, expected in found[1]["parameters"].items():
        torch.testing.assert_close(found[2]["parameters"][name], expected, rtol=1e-10, atol=1e-12)
    for name, expected in found[1]["results"].items():
        assert found[2]["results"][name] == pytest.approx(expected, rel=1e-6), name


@pytest.mark.parametrize("precision", ["bf16-mixed", "64-true"])
def test_precisions(precision):
    run = trainer(precision=precision, max_epochs=2)
    module = sinusoid_module()
    run.fit(module, sinusoids(steps_per_epoch=50))
    assert all(torch.isfinite(p).all() for p in module.parameters())
    exact = trainer(max_epochs=2)
    exact.fit(sinusoid_module(), sinusoids(steps_per_epoch=50))
    found, expected = (r.callback_metrics["val/query_loss"].item() for r in (run, exact))
    assert found == pytest.approx(expected, rel=0.05)
