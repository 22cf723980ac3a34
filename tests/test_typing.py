"""A type checker sees every option of modules and data modules: it refuses calls that cannot work."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]

IMPORTS = """\
import torch
import torch.nn.functional as F
from lightning_meta import SGD, Conv4, EpisodicDataModule, GlyphsDataModule, IMAMLModule, MAMLModule
from lightning_meta import MetaLSTMModule, ProtoMAMLModule, ProtoNetModule, ReptileModule, SinusoidDataModule
net = Conv4(5)
"""
WRONG = [
    "Conv4(5, hiden=3)",
    "MAMLModule(net, inner_learning_rate=0.1)",
    "MAMLModule(net, task_parallel='fast')",
    "MAMLModule(net, on_nonfinite='ignore')",
    "ReptileModule(net, SGD(0.1), inner_step=3)",
    "ReptileModule(net, inner_steps='three')",
    "MetaLSTMModule(net, first_order=True)",
    "ProtoNetModule(net, adapt_only='head')",
    "IMAMLModule(net, cg_steps='five')",
    "GlyphsDataModule(n_ways=5)",
    "EpisodicDataModule(k_shots=1)",
    "SinusoidDataModule(n_way=3)",
]
RIGHT = [
    "Conv4(5, hidden=3)",
    "MAMLModule(net, inner_lr=0.1, inner_steps=5, adapt_only='head', task_parallel=4)",
    "MAMLModule(net, inner_optimizer=SGD(0.1), loss=F.mse_loss, on_nonfinite='skip')",
    "MAMLModule(net, optimizer=lambda params: torch.optim.SGD(params, lr=0.1), compile=True)",
    "ReptileModule(net, SGD(0.1), inner_steps=3)",
    "MetaLSTMModule(net, inner_steps=5, gradient_clip_val=0.25)",
    "ProtoMAMLModule(net, inner_lr=0.1)",
    "ProtoNetModule(net)",
    "IMAMLModule(net, cg_steps=5)",
    "GlyphsDataModule(train_classes=20, n_way=5, meta_batch_size=4)",
    "SinusoidDataModule(k_shot=10, seed=1)",
]


def test_calls_that_cannot_work_are_refused_and_others_are_not(tmp_path):
    file = tmp_path / "calls.py"
    file.write_text(IMPORTS + "\n".join(WRONG + RIGHT) + "\n")
    done = subprocess.run(
        [sys.executable, "-m", "mypy", str(file)],  # strictly, by the project's configuration, whose cache it shares
        capture_output=True, text=True, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode in (0, 1), done.stdout + done.stderr
    first = IMPORTS.count("\n") + 1
    lines = {int(number) - first for number in re.findall(r"calls\.py:(\d+): error:", done.stdout, re.MULTILINE)}
    accepted = [call for i, call in enumerate(WRONG) if i not in lines]
    refused = [call for i, call in enumerate(RIGHT, len(WRONG)) if i in lines]
    assert (accepted, refused) == ([], []), done.stdout
