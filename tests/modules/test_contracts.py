"""What every algorithm keeps: one row each."""

import copy

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F

from lightning_meta import (
    CAVIAModule,
    IMAMLModule,
    MAMLModule,
    MetaLSTMModule,
    MetaOptNetModule,
    ProtoMAMLModule,
    ProtoNetModule,
    R2D2Module,
    ReptileModule,
    Task,
    TaskDataModule,
)
from lightning_meta.inner import LSLR, SGD, Adam, LSTMOptimizer, MetaCurvature, MetaSGD
from lightning_meta.task import map_tensors
from tests.conftest import image_tasks, relative_error
from tests.networks import WithContext, network


def lstm(net, **kwargs):
    optimizer = LSTMOptimizer(4, input_bias=(-1.5, -1.0))
    with torch.no_grad():
        for p in optimizer.parameters():
            p.add_(0.1 * torch.randn_like(p))  # away from where all coordinates are treated alike
    return MetaLSTMModule(net, optimizer.double(), inner_steps=3, **kwargs)


ALGORITHMS = {
    "maml": lambda net, **k: MAMLModule(net, inner_lr=0.1, inner_steps=2, **k),
    "fomaml": lambda net, **k: MAMLModule(net, inner_lr=0.1, inner_steps=2, first_order=True, **k),
    "anil": lambda net, **k: MAMLModule(net, inner_lr=0.1, inner_steps=2, adapt_only="head", **k),
    "boil": lambda net, **k: MAMLModule(net, inner_lr=0.1, inner_steps=2, adapt_only="body", **k),
    "meta_sgd": lambda net, **k: MAMLModule(net, inner_optimizer=MetaSGD(0.1), inner_steps=2, **k),
    "maml_adam": lambda net, **k: MAMLModule(net, inner_optimizer=Adam(0.01, eps=1e-3), inner_steps=2, **k),
    "maml_plus_plus": lambda net, **k: MAMLModule(
        net, inner_optimizer=LSLR(0.1, positive=True), inner_steps=3, multi_step_loss_steps=9,
        per_step_norm=True, **k,
    ),
    "finetuning": lambda net, **k: MAMLModule(net, inner_lr=0.1, inner_steps=0, val_inner_steps=2, **k),
    "reptile": lambda net, **k: ReptileModule(net, SGD(0.1), inner_steps=3, inner_batch_size=4, **k),
    # A larger eps, since Adam makes noise of the zero gradient that a bias before a batch norm has.
    "reptile_adam": lambda net, **k: ReptileModule(
        net, Adam(0.01, betas=(0.0, 0.999), eps=1e-3), inner_steps=3, carry_inner_state=True, **k
    ),
    "meta_lstm": lstm,
    "imaml": lambda net, **k: IMAMLModule(net, SGD(0.1), inner_steps=5, **k),
    "imaml_head": lambda net, **k: IMAMLModule(net, SGD(0.1), inner_steps=5, adapt_only="head", **k),
    "cavia": lambda net, **k: CAVIAModule(WithContext(net), inner_lr=0.5, inner_steps=2, **k),
    "meta_curvature": lambda net, **k: MAMLModule(net, inner_optimizer=MetaCurvature(0.1), inner_steps=2, **k),
    "r2d2": lambda net, **k: R2D2Module(net, **k).double(),
    "metaoptnet": lambda net, **k: MetaOptNetModule(net, **k).double(),
    "protonet": lambda net, **k: ProtoNetModule(net, **k),
    "protomaml": lambda net, **k: ProtoMAMLModule(net, inner_lr=0.05, inner_steps=2, **k),
}  # fmt: skip

every_algorithm = pytest.mark.parametrize("name", ALGORITHMS)


def made(name, norm="batch", n_way=3, **kwargs):
    torch.manual_seed(0)
    return ALGORITHMS[name](network(norm, n_way), **kwargs)


def meta_gradient(module, tasks):
    module.zero_grad()
    loss = module.meta_loss(tasks)
    loss.backward()
    return loss.detach(), [p.grad.clone() for p in module.parameters()]


class Fixed:
    """Task number i is task i of a batch, over and over."""

    def __init__(self, batch):
        self.batch = batch

    def tasks(self, numbers):
        places = torch.tensor([n % len(self.batch.support.targets) for n in numbers])
        return map_tensors(lambda t: t[places], self.batch)


class FixedDataModule(TaskDataModule):
    def __init__(self, batch, **kwargs):
        super().__init__(meta_batch_size=4, val_tasks=4, test_tasks=6, eval_batch_size=4, **kwargs)
        self.batch = batch

    def configure_tasks(self, split):
        return Fixed(self.batch)


def trainer(tmp_path, **kwargs):
    settings = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    return pl.Trainer(default_root_dir=tmp_path, **(settings | {"enable_checkpointing": False} | kwargs))


@every_algorithm
def test_the_loss_falls(name, tmp_path):
    batch = image_tasks(k_shot=3)
    batch = Task(batch.support, batch.support)  # random images: what can be learned is to fit them
    module = made(name, optimizer=lambda params: torch.optim.Adam(params, lr=0.01))
    data = FixedDataModule(batch, steps_per_epoch=40)
    run = trainer(tmp_path, max_epochs=1, num_sanity_val_steps=0, precision="64-true")
    (before,) = run.validate(module, data, verbose=False)
    run.fit(module, data)
    (after,) = run.validate(module, data, verbose=False)
    assert after["val/query_loss"] < 0.9 * before["val/query_loss"]


@every_algorithm
def test_the_meta_gradient_of_a_batch_is_the_mean_of_its_tasks(name):
    tasks = image_tasks()
    module = made(name)
    loss, whole = meta_gradient(module, tasks)
    singles = [meta_gradient(module, map_tensors(lambda t, i=i: t[i : i + 1], tasks)) for i in range(4)]
    assert loss.item() == pytest.approx(sum(single.item() for single, _ in singles) / 4, rel=1e-12)
    mean = [sum(parts) / 4 for parts in zip(*(gradient for _, gradient in singles), strict=True)]
    assert relative_error(whole, mean) < 1e-11


@every_algorithm
@pytest.mark.parametrize("way", ["vmap", 1, 3, "auto"])
def test_every_way_of_running_tasks_has_the_same_meta_gradient(name, way):
    tasks = image_tasks()
    loss, expected = meta_gradient(made(name, task_parallel="loop"), tasks)
    value, gradient = meta_gradient(made(name, task_parallel=way), tasks)
    assert value.item() == pytest.approx(loss.item(), rel=1e-12)
    assert any(g.any() for g in expected)
    assert relative_error(gradient, expected) < 1e-11


@every_algorithm
def test_a_checkpoint_round_trips_into_the_same_predictions(name, tmp_path):
    data = FixedDataModule(image_tasks(), steps_per_epoch=2)
    module = made(name)
    run = trainer(tmp_path, max_epochs=1, num_sanity_val_steps=0, precision="64-true")
    run.fit(module, data)
    run.save_checkpoint(tmp_path / "a.ckpt")
    torch.load(tmp_path / "a.ckpt", weights_only=True)
    expected = torch.cat(run.predict(module, data))
    other = made(name)
    with torch.no_grad():
        for p in other.parameters():
            p.add_(torch.randn_like(p))
    found = trainer(tmp_path, precision="64-true").predict(other, data, ckpt_path=tmp_path / "a.ckpt")
    assert torch.equal(torch.cat(found), expected)


@every_algorithm
@pytest.mark.parametrize("transductive", [True, False])
def test_evaluation_leaves_the_state_alone(name, transductive, tmp_path):
    data = FixedDataModule(image_tasks(), steps_per_epoch=2)
    module = made(name, "batch_tracked", transductive=transductive)  # with buffers that could be written to
    if name == "reptile_adam":
        run = trainer(tmp_path, precision="64-true", max_epochs=1, limit_val_batches=0)
        run.fit(module, data)
        carried = copy.deepcopy(module.algorithm.state)
    before = copy.deepcopy(module.state_dict())
    run = trainer(tmp_path, precision="64-true")
    run.validate(module, data, verbose=False)
    (result,) = run.test(module, data, verbose=False)
    assert torch.isfinite(torch.tensor(list(result.values()))).all()
    after = module.state_dict()
    assert before.keys() == after.keys()
    assert any("running_mean" in key for key in before)
    assert all(torch.equal(before[key], after[key]) for key in before)
    if name == "reptile_adam":
        map_tensors(lambda a, b: torch.testing.assert_close(a, b) or a, module.algorithm.state, carried)


@every_algorithm
def test_adapt_to_predicts_like_the_evaluation(name):
    tasks = image_tasks()
    module = made(name).eval()
    (support, query) = map_tensors(lambda t: t[1], tasks)
    adapted = module.adapt_to(support.inputs, support.targets, transductive=True)
    (evaluated,) = list(module.task_map(module.algorithm.predict, module.problem(map_tensors(lambda t: t[1:2], tasks))))
    found = adapted(query.inputs)
    assert not any(p.requires_grad for p in adapted.parameters())
    if name not in ("protonet", "r2d2", "metaoptnet"):  # which normalizes support and query examples together
        torch.testing.assert_close(found, evaluated[0])
    frozen = module.adapt_to(support.inputs, support.targets)
    one_by_one = torch.cat([frozen(query.inputs[i : i + 1]) for i in range(len(query.targets))])
    torch.testing.assert_close(frozen(query.inputs), one_by_one)


def test_prototypes_that_are_frozen_predict_like_the_evaluation():
    tasks = image_tasks()
    module = made("protonet", transductive=False).eval()
    (support, query) = map_tensors(lambda t: t[1], tasks)
    (evaluated,) = list(module.task_map(module.algorithm.predict, module.problem(map_tensors(lambda t: t[1:2], tasks))))
    found = module.adapt_to(support.inputs, support.targets)(query.inputs)
    torch.testing.assert_close(F.softmax(found, 1), F.softmax(evaluated[0], 1))
