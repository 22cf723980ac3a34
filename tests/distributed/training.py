"""What the ranks of the distributed tests run; rank 0 writes what it found."""

import hashlib
import itertools
import logging
import os
import tempfile
import warnings
from pathlib import Path

import lightning.pytorch as pl
import torch
import torch.nn.functional as F

from lightning_meta import Conv4, EpisodicDataModule, Examples, GlyphsDataModule, MAMLModule, SinusoidDataModule, Task
from lightning_meta.datamodules import ClassTasks
from lightning_meta.datasets import glyphs
from lightning_meta.models import MLP
from lightning_meta.task import tensors_of
from tests.conftest import image_tasks
from tests.modules.test_contracts import ALGORITHMS, FixedDataModule
from tests.networks import network

WAYS = ("vmap", 2, "loop")
OPTIMIZERS = {
    "sgd": lambda params: torch.optim.SGD(params, lr=0.05),
    "adam": lambda params: torch.optim.Adam(params, lr=1e-3),
}
CASES = list(itertools.product(ALGORITHMS, WAYS, OPTIMIZERS))
# One case of each algorithm, with every way and both optimizers among them.
FEW_CASES = [(name, WAYS[i % 3], ("sgd", "adam")[i // 3 % 2]) for i, name in enumerate(ALGORITHMS)]


def is_first():
    return os.environ.get("RANK", "0") == "0"


def trainer(world, **kwargs):
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    settings = {
        "accelerator": "cpu", "devices": world, "strategy": "ddp" if world > 1 else "auto", "logger": False,
        "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False,
        "default_root_dir": tempfile.gettempdir(),
    }  # fmt: skip
    return pl.Trainer(**(settings | kwargs))


class KeepGradient(pl.Callback):
    """The meta-gradient of the last outer step."""

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.gradient = torch.cat([p.grad.flatten().clone() for p in pl_module.parameters()])


def made_without_noise(name, **kwargs):
    """A module without biases before batch normalization: their gradient is rounding noise, which Adam amplifies."""
    torch.manual_seed(0)
    net = network("batch")
    for layer in net.body:
        if isinstance(layer, torch.nn.Conv2d):
            layer.bias = None
    return ALGORITHMS[name](net, **kwargs)


def parameters_after_five_steps(world, cases, path):
    found = {}
    for name, way, optimizer in cases:
        module = made_without_noise(name, task_parallel=way, optimizer=OPTIMIZERS[optimizer])
        data = FixedDataModule(image_tasks(20), steps_per_epoch=5)
        trainer(world, precision="64-true", max_epochs=1, limit_val_batches=0).fit(module, data)
        parameters = torch.cat([tensor.flatten().double() for tensor in module.state_dict().values()])

        module = made_without_noise(name, task_parallel=way, optimizer=OPTIMIZERS["sgd"]).float()
        keep = KeepGradient()
        data = FixedDataModule(image_tasks(20, dtype=torch.float32), steps_per_epoch=1)
        trainer(world, max_epochs=1, limit_val_batches=0, callbacks=[keep]).fit(module, data)
        found[f"{name}, {way}, {optimizer}"] = (parameters, keep.gradient)
    if is_first():
        torch.save(found, path)


class Numbered:
    """Tasks that have their number in their inputs."""

    def __init__(self, split):
        self.own = ClassTasks(glyphs(range(12)), split, 5, 1, 2)

    def tasks(self, numbers):
        support, query = self.own.tasks(numbers)
        number = torch.tensor(list(numbers)).view(-1, 1).expand(-1, support.targets.shape[1])
        return Task(Examples({"images": support.inputs / 255, "number": number}, support.targets), query)


class NumberedDataModule(EpisodicDataModule):
    def configure_tasks(self, split):
        return Numbered(split)


class ImagesOnly(Conv4):
    def forward(self, inputs):
        return super().forward(inputs["images"] if isinstance(inputs, dict) else inputs)


class Record(pl.Callback):
    """The tasks of each outer step: their numbers, and a digest of their data."""

    def __init__(self):
        self.seen = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        step = trainer.fit_loop.epoch_loop.batch_progress.total.processed
        for i, number in enumerate(batch.support.inputs["number"][:, 0].tolist()):
            data = b"".join(tensor[i].contiguous().numpy().tobytes() for tensor in tensors_of(batch))
            self.seen.append((step, number, hashlib.sha256(data).hexdigest()))


def tasks_seen(world, workers, path):
    record = Record()
    module = MAMLModule(ImagesOnly(n_way=5, hidden=4), inner_lr=0.1)
    data = NumberedDataModule(meta_batch_size=4, steps_per_epoch=50, num_workers=workers)
    trainer(world, max_epochs=1, limit_val_batches=0, callbacks=[record]).fit(module, data)
    torch.save(record.seen, f"{path}.{os.environ.get('RANK', '0')}")


def test_results(world, path):
    pl.seed_everything(0)
    results = {}
    module = MAMLModule(Conv4(n_way=5, hidden=8), inner_lr=0.4)
    data = GlyphsDataModule(n_way=5, n_query=5, test_tasks=601, test_classes=100, train_classes=10, val_classes=10)
    results |= trainer(world).test(module, data, verbose=False)[0]
    pl.seed_everything(0)
    module = MAMLModule(MLP(), inner_lr=0.01, loss=F.mse_loss)
    wave = trainer(world).test(module, SinusoidDataModule(test_tasks=601), verbose=False)[0]
    results |= {f"wave {name}": value for name, value in wave.items()}
    if is_first():
        torch.save(results, path)


test_results.__test__ = False


def train_some_steps(world, folder, steps, resume):
    """Training without dropout, from the last checkpoint in `folder` if that is asked for."""
    from lightning_meta import RunCheckpoint

    pl.seed_everything(0)
    module = MAMLModule(MLP(), inner_lr=0.01, loss=F.mse_loss)
    data = SinusoidDataModule(meta_batch_size=8, steps_per_epoch=10, val_tasks=9)
    run = trainer(
        world, max_epochs=3, max_steps=steps, precision="64-true", enable_checkpointing=True,
        callbacks=[RunCheckpoint(str(folder), monitor="val/query_loss")],
    )  # fmt: skip
    run.fit(module, data, ckpt_path=str(Path(folder, "last.ckpt")) if resume else None)
