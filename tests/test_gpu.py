"""On a GPU: the meta-gradients of the CPU, every precision, compiled steps and exact resumes.

`pytest tests/modules/test_random_networks.py tests/functional/test_layers.py --device cuda` sends the sweeps there.
"""

import copy

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_meta import (
    MLP,
    Conv4,
    GlyphsDataModule,
    MAMLModule,
    ReptileModule,
    RunCheckpoint,
    SinusoidDataModule,
    Task,
)
from lightning_meta.inner import SGD
from lightning_meta.task import map_tensors
from tests.conftest import image_tasks, relative_error, vector_tasks
from tests.modules.test_contracts import ALGORITHMS, FixedDataModule, made, meta_gradient
from tests.modules.test_contracts import trainer as on_cpu_trainer
from tests.modules.test_precision import KeepFirstGradient
from tests.networks import NORMS

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU"),
    pytest.mark.timeout(300),
]
WAYS = ("loop", "vmap", 3, "auto")


def on_gpu(tensors):
    return tensors.cuda() if isinstance(tensors, nn.Module) else map_tensors(lambda t: t.cuda(), tensors)


def on_cpu(tensors):
    return map_tensors(lambda t: t.cpu(), tensors)


def trainer(tmp_path, **kwargs):
    return on_cpu_trainer(tmp_path, **{"accelerator": "gpu", "devices": 1} | kwargs)


def compared(module, tasks):
    """The relative errors of the meta-gradient in each way on the GPU, to that of the loop on the CPU."""
    module.task_map.task_parallel = "loop"
    _, expected = meta_gradient(copy.deepcopy(module), tasks)
    errors = {}
    for way in WAYS:
        own = on_gpu(copy.deepcopy(module))
        own.task_map.task_parallel = way
        _, found = meta_gradient(own, on_gpu(tasks))
        errors[way] = relative_error(on_cpu(found), expected)
    return errors


@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_algorithm_has_the_meta_gradient_of_the_cpu(name):
    errors = compared(made(name), image_tasks())
    assert max(errors.values()) < 1e-9, errors


@pytest.mark.parametrize("norm", NORMS)
def test_every_normalization_has_the_meta_gradient_of_the_cpu(norm):
    errors = compared(made("maml", norm), image_tasks())
    assert max(errors.values()) < 1e-9, errors


@pytest.mark.parametrize("downsample", ["stride", "pool"])
def test_conv4_has_the_meta_gradient_of_the_cpu(downsample):
    torch.manual_seed(0)
    module = MAMLModule(Conv4(3, hidden=8, downsample=downsample).double(), 0.1, 2)
    errors = compared(module, image_tasks(size=28))
    assert max(errors.values()) < 1e-9, errors


@pytest.mark.parametrize("name", ["maml", "anil", "reptile", "protonet", "r2d2", "imaml"])
def test_tasks_of_different_sizes_have_the_meta_gradient_of_the_cpu(name):
    tasks = image_tasks(k_shot=3)
    masks = [torch.ones(part.targets.shape, dtype=torch.bool) for part in tasks]
    masks[0][1, 2::3], masks[0][2, -2:], masks[1][0, -1:] = False, False, False
    masks[0][:, ::3] = True  # one of each class
    tasks = Task(*(part._replace(mask=mask) for part, mask in zip(tasks, masks, strict=True)))
    errors = compared(made(name), tasks)
    assert max(errors.values()) < 1e-9, errors


@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_algorithm_in_every_precision(name, tmp_path):
    """In float32 torch may use TF32 for convolutions, which keeps 11 bits."""
    found = {}
    for precision in ("64-true", "32-true", "bf16-mixed", "16-mixed"):
        module = made(name, optimizer=lambda params: KeepFirstGradient(params, lr=0.01)).float()
        data = FixedDataModule(image_tasks(k_shot=4, dtype=torch.float32), steps_per_epoch=20)
        run = trainer(tmp_path, max_epochs=1, precision=precision)
        run.fit(module, data)
        assert all(torch.isfinite(p).all() for p in module.parameters())
        assert torch.isfinite(run.callback_metrics["val/query_loss"])
        (optimizer,) = run.optimizers
        found[precision] = torch.cat([g.flatten() for g in optimizer.gradients]).cpu()
    least = {"32-true": 0.999, "bf16-mixed": 0.9 if name == "maml_adam" else 0.95, "16-mixed": 0.99}
    alike = {p: F.cosine_similarity(found[p], found["64-true"], dim=0).item() for p in least}
    assert all(alike[p] > least[p] for p in least), alike


@pytest.mark.parametrize("first_order", [False, True])
@pytest.mark.parametrize("kind", ["mlp", "conv"])
def test_a_compiled_step_has_the_same_meta_gradient(kind, first_order):
    torch.manual_seed(0)
    net, tasks = (MLP(6, 3), vector_tasks()) if kind == "mlp" else (Conv4(3, hidden=8, image_size=8), image_tasks())
    tasks = on_gpu(tasks)
    module = on_gpu(MAMLModule(net.double(), 0.1, 2, first_order=first_order, compile=True))
    for step in range(3):
        with torch.no_grad():  # with the parameters as they are now
            for p in module.parameters():
                p.add_(0.01 * step)
        module.compiles = True
        _, found = meta_gradient(module, tasks)
        assert module._program.reason is None
        module.compiles = False
        _, expected = meta_gradient(module, tasks)
        assert relative_error(found, expected) < 1e-9


@pytest.mark.parametrize("way", ["loop", "vmap"])
def test_dropout_is_drawn_again_where_steps_are_recomputed(way):
    def gradient(**options):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Flatten(), nn.Linear(64, 20), nn.Dropout(0.5), nn.Tanh(), nn.Linear(20, 3)).double()
        module = on_gpu(MAMLModule(net, 0.1, 2, task_parallel=way, **options))
        torch.manual_seed(1)
        return meta_gradient(module, on_gpu(image_tasks()))[1]

    plain = gradient()
    assert relative_error(gradient(checkpoint_inner_steps=True), plain) < 1e-12
    assert torch.equal(plain[0], gradient()[0])


class Interrupt(pl.Callback):
    def __init__(self, step):
        self.step = step

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step >= self.step:
            raise RuntimeError("the power went out")


@pytest.mark.parametrize("algorithm", ["maml", "reptile"])
def test_a_resume_in_mid_epoch_is_exact(algorithm, tmp_path):
    """With dropout, Adam and a checkpoint every seven steps."""

    def train(folder, *callbacks):
        pl.seed_everything(0)
        net = nn.Sequential(nn.Linear(1, 16), nn.Tanh(), nn.Dropout(0.2), nn.Linear(16, 1))
        optimizer = {"optimizer": lambda params: torch.optim.Adam(params, lr=1e-3), "loss": F.mse_loss}
        if algorithm == "maml":
            module = MAMLModule(net, 0.01, 2, **optimizer)
        else:
            module = ReptileModule(net, SGD(0.01), inner_steps=3, inner_batch_size=4, **optimizer)
        checkpoint = RunCheckpoint(str(folder), monitor="val/query_loss", every_n_steps=7)
        last = folder / "last.ckpt"
        run = trainer(folder, max_epochs=2, enable_checkpointing=True, callbacks=[checkpoint, *callbacks])
        data = SinusoidDataModule(meta_batch_size=4, steps_per_epoch=20, val_tasks=8)
        run.fit(module, data, ckpt_path=str(last) if last.exists() else None)
        return [p.detach().cpu() for p in module.parameters()]

    whole = train(tmp_path / "whole")
    with pytest.raises(RuntimeError, match="power"):
        train(tmp_path / "parts", Interrupt(25))
    again = train(tmp_path / "parts")
    assert all(map(torch.equal, again, whole))


def test_data_stays_on_the_gpu_and_what_is_learned_is_what_the_cpu_learns(tmp_path):
    found = {}
    for accelerator in ("cpu", "gpu"):
        torch.manual_seed(0)
        net = Conv4(5, hidden=8)
        module = MAMLModule(net, 0.1, optimizer=lambda p: torch.optim.SGD(p, lr=0.1), val_inner_steps=1)
        data = GlyphsDataModule(n_query=3, meta_batch_size=4, steps_per_epoch=5, val_tasks=4, test_tasks=16)
        run = trainer(tmp_path, accelerator=accelerator, max_epochs=1, precision="64-true")
        run.fit(module, data)
        if accelerator == "gpu":
            batch = next(iter(run.train_dataloader))
            assert batch.query.inputs.device.type == "cuda"
        found[accelerator] = run.test(module, data, verbose=False)[0]
    assert found["gpu"] == pytest.approx(found["cpu"], rel=1e-6)


def test_a_network_that_was_adapted_predicts_on_the_gpu():
    module = on_gpu(made("maml")).eval()
    tasks = image_tasks()
    support, query = map_tensors(lambda t: t[0].cuda(), tasks)
    found = module.adapt_to(support.inputs, support.targets)(query.inputs)
    support, query = on_cpu((support, query))
    expected = module.cpu().adapt_to(support.inputs, support.targets)(query.inputs)
    torch.testing.assert_close(found.cpu(), expected)


def test_a_network_that_does_not_fit_into_the_memory_is_one_clear_error():
    module = on_gpu(MAMLModule(Conv4(5, hidden=2048, downsample="pool"), 0.1, 5))
    tasks = on_gpu(image_tasks(tasks=512, n_way=5, n_query=15, size=28, dtype=torch.float32))
    with pytest.raises(torch.OutOfMemoryError):
        meta_gradient(module, tasks)
