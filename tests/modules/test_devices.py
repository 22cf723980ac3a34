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
from lightning_meta import IMAMLModule, MAMLModule, MLP, ReptileModule, SinusoidDataModule
from lightning_meta.inner import LSLR, Adam

torch.set_num_threads(1)
pl.seed_everything(0)
algorithm, devices, path = sys.argv[1], int(sys.argv[2]), sys.argv[3]
module = {
    "maml": lambda: MAMLModule(MLP(), inner_lr=0.01, loss=F.mse_loss),
    "reptile": lambda: ReptileModule(
        MLP(), Adam(0.01, betas=(0.0, 0.999), eps=1e-3), inner_batch_size=3, carry_inner_state=True, loss=F.mse_loss
    ),
    "maml_plus_plus": lambda: MAMLModule(
        MLP(norm="batch"), inner_steps=2, inner_optimizer=LSLR(0.01), per_step_norm=True, multi_step_loss_steps=3,
        loss=F.mse_loss, optimizer=lambda params: torch.optim.SGD(params, lr=1e-4),  # Adam would follow noise here:
        # a bias before a batch norm has no gradient
    ),
    "imaml_head": lambda: IMAMLModule(MLP(), inner_steps=3, adapt_only="head", loss=F.mse_loss),
}[algorithm]()
data = SinusoidDataModule(meta_batch_size=8, steps_per_epoch=5, val_tasks=9, test_tasks=11, eval_batch_size=2)
trainer = pl.Trainer(
    accelerator="cpu", strategy="ddp" if devices > 1 else "auto", devices=devices, precision="64-true", max_epochs=1,
    logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
)
trainer.fit(module, data)
results = trainer.test(module, data, verbose=False)[0]
if trainer.is_global_zero:
    carried = getattr(module, "carried_state", None) or {}
    second = {f"carried {name}": tensor for name, tensor in carried.get("second", {}).items()}
    torch.save({"parameters": module.state_dict() | second, "results": results}, path)
"""


@pytest.mark.parametrize("algorithm", ["maml", "reptile", "maml_plus_plus", "imaml_head"])
def test_two_processes_train_and_evaluate_as_one(algorithm, tmp_path):
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)
    found = {}
    for devices in (1, 2):
        path = tmp_path / f"{devices}.pt"
        command = [sys.executable, str(script), algorithm, str(devices), str(path)]
        subprocess.run(command, check=True, capture_output=True, timeout=200)
        found[devices] = torch.load(path, weights_only=True)
    assert any("carried" in name for name in found[1]["parameters"]) == (algorithm == "reptile")
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
