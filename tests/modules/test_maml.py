"""MAMLModule through an ordinary Trainer."""

import copy
import warnings

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, ReduceLROnPlateau

from lightning_meta import MLP, SGD, Conv4, EpisodicDataModule, MAMLModule, SinusoidDataModule, Task
from lightning_meta.datasets import glyphs
from tests.conftest import image_tasks, vector_tasks
from tests.networks import network


def trainer(tmp_path=None, **kwargs):
    options = {
        "accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_progress_bar": False,
        "enable_model_summary": False, "max_epochs": 1, "default_root_dir": tmp_path,
    }  # fmt: skip
    return pl.Trainer(**options | kwargs)


def sinusoids(**kwargs):
    return SinusoidDataModule(
        **{"meta_batch_size": 8, "steps_per_epoch": 20, "val_tasks": 20, "test_tasks": 20} | kwargs
    )


def sinusoid_module(**kwargs):
    torch.manual_seed(0)
    return MAMLModule(MLP(), **{"inner_lr": 0.01, "loss": F.mse_loss} | kwargs)


def images(**kwargs):
    sizes = {
        "n_query": 2,
        "meta_batch_size": 4,
        "steps_per_epoch": 5,
        "val_tasks": 6,
        "test_tasks": 10,
        "eval_batch_size": 4,
    }
    return EpisodicDataModule(glyphs(range(12)), glyphs(range(12, 20)), glyphs(range(20, 28)), **sizes | kwargs)


def test_the_sinusoid_is_learned_to_adapt_to():
    """The fourth bar at a smaller size: one step at least halves the error, ten steps bring more."""
    module = sinusoid_module(optimizer=lambda p: torch.optim.Adam(p, 3e-3))
    trainer(max_epochs=3).fit(module, sinusoids(k_shot=10, steps_per_epoch=1000, meta_batch_size=16))
    data = sinusoids(k_shot=10, test_n_query=100, test_tasks=200)
    data.setup()
    curves = torch.cat([module.adaptation_curve(task, 10)["query_loss"] for task in data.test_dataloader()]).mean(0)
    assert curves[1] < curves[0] / 2
    assert curves[10] < curves[1] / 1.5


def test_logs_have_the_designs_names():
    run = trainer(log_every_n_steps=5)
    module = MAMLModule(Conv4(5, hidden=4), inner_lr=0.4, inner_steps=2)
    run.fit(module, images())
    metrics = {"query_accuracy", "query_loss", "support_loss"}
    before = {f"{name}_before" for name in metrics}
    assert {name for name in run.logged_metrics if name.startswith("train/")} == {
        f"train/{n}" for n in metrics | before | {"gradient_norm"}
    }
    expected = metrics | before | {"query_accuracy_ci95", "query_loss_ci95"}
    assert {name for name in run.callback_metrics if name.startswith("val/")} == {f"val/{name}" for name in expected}
    assert {"train/query_loss", "train/query_accuracy", "val/query_accuracy"} <= set(run.progress_bar_metrics)
    run.test(module, images())
    assert set(run.callback_metrics) == {f"test/{name}" for name in expected}


@pytest.mark.parametrize("net", ["stateless", "tracked", "dropout"])
@pytest.mark.parametrize("transductive", [True, False])
def test_evaluation_adapts_and_leaves_the_module_alone(net, transductive):
    torch.manual_seed(0)
    network = {
        "stateless": lambda: Conv4(5, hidden=4),
        "tracked": lambda: nn.Sequential(
            nn.Flatten(), nn.Linear(784, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 5)
        ),
        "dropout": lambda: nn.Sequential(
            nn.Flatten(), nn.Linear(784, 16), nn.Dropout(0.5), nn.ReLU(), nn.Linear(16, 5)
        ),
    }[net]()
    module = MAMLModule(network, inner_lr=0.1, inner_steps=3, transductive=transductive)
    before = copy.deepcopy(module.state_dict())
    data = images(test_tasks=9)
    found = [trainer().test(module, data, verbose=False)[0] for _ in range(2)]
    validated = trainer().validate(module, data, verbose=False)[0]
    assert found[0] == found[1]
    assert module.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert all(p.grad is None for p in module.parameters())
    assert found[0]["test/support_loss"] < found[0]["test/support_loss_before"]
    assert validated["val/query_loss"] != validated["val/query_loss_before"]

    # By hand: each task is adapted by itself, and its query set judged.
    module.eval()
    accuracies = []
    for batch in data.test_dataloader():
        for i in range(len(batch.support.targets)):
            (sx, sy), (qx, qy) = (tuple(t[i] for t in part[:2]) for part in batch)
            adapted = module.adapt_to(sx, sy, transductive=transductive)
            accuracies.append((adapted(qx).argmax(1) == qy).double().mean())
    assert len(accuracies) == 9
    assert found[0]["test/query_accuracy"] == pytest.approx(torch.stack(accuracies).mean().item(), abs=1e-6)


def test_predictions_are_those_of_the_adapted_network():
    module, data = sinusoid_module(inner_steps=3), sinusoids(test_tasks=10, eval_batch_size=4)
    predictions = trainer().predict(module, data)
    assert [len(p) for p in predictions] == [4, 4, 2]
    task = next(iter(data.test_dataloader()))
    expected = module.adapt_to(task.support.inputs[1], task.support.targets[1])(task.query.inputs[1])
    torch.testing.assert_close(predictions[0][1], expected)
    assert not predictions[0].requires_grad


def test_training_is_the_outer_optimizer_on_the_meta_gradient():
    """Five outer steps of SGD by hand."""
    module, data = sinusoid_module(optimizer=lambda p: torch.optim.SGD(p, 0.05)), sinusoids(steps_per_epoch=5)
    reference = copy.deepcopy(module)
    data.setup()
    parameters = list(reference.parameters())
    for task in data.train_dataloader():
        gradients = torch.autograd.grad(reference.meta_loss(task), parameters)
        with torch.no_grad():
            for p, g in zip(parameters, gradients, strict=True):
                p -= 0.05 * g
    trainer(limit_val_batches=0).fit(module, data)
    for found, expected in zip(module.parameters(), parameters, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)


def test_the_scheduler_is_stepped_once_an_outer_step():
    module = sinusoid_module(lr_scheduler=lambda o: CosineAnnealingLR(o, T_max=40))
    run = trainer(max_epochs=2)
    run.fit(module, sinusoids())
    assert run.optimizers[0].param_groups[0]["lr"] == pytest.approx(0, abs=1e-9)


def test_a_plateau_scheduler_is_stepped_after_each_validation():
    module = sinusoid_module(
        optimizer=lambda p: torch.optim.SGD(p, 0.0), lr_scheduler=lambda o: ReduceLROnPlateau(o, patience=0)
    )
    run = trainer(max_epochs=4)
    run.fit(module, sinusoids(steps_per_epoch=2))
    assert run.lr_scheduler_configs[0].scheduler.last_epoch == 4


def test_the_meta_gradient_is_clipped():
    module = sinusoid_module(optimizer=lambda p: torch.optim.SGD(p, 1.0), gradient_clip_val=0.01)
    before = [p.detach().clone() for p in module.parameters()]
    trainer(limit_val_batches=0).fit(module, sinusoids(steps_per_epoch=1))
    moved = torch.cat([(p - b).flatten() for p, b in zip(module.parameters(), before, strict=True)])
    assert moved.norm().item() == pytest.approx(0.01, rel=1e-3)


@pytest.mark.parametrize("way", ["vmap", "loop", 3])
def test_meta_loss_needs_no_trainer_and_leaves_grad_alone(way):
    module = MAMLModule(network("batch_tracked"), 0.3, task_parallel=way)
    loss = module.meta_loss(image_tasks())
    assert loss.dim() == 0
    assert loss.requires_grad
    assert all(p.grad is None for p in module.parameters())
    assert torch.isclose(module.outcome.losses.mean(), loss)
    loss.backward()
    assert all(p.grad is not None for p in module.parameters())
    assert module.network.body[1].num_batches_tracked == 0


def test_a_hook_overridden_in_a_subclass_takes_part():
    class WithPenalty(MAMLModule):
        def meta_loss(self, tasks):
            return super().meta_loss(tasks) + 10 * sum(p.square().sum() for p in self.network.parameters())

    torch.manual_seed(0)
    plain, penalized = MAMLModule(MLP(), loss=F.mse_loss), WithPenalty(MLP(), loss=F.mse_loss)
    for module in (plain, penalized):
        trainer(limit_val_batches=0).fit(module, sinusoids(steps_per_epoch=100))
    sizes = [sum(p.square().sum() for p in m.network.parameters()) for m in (plain, penalized)]
    assert sizes[1] < 0.8 * sizes[0]


def test_query_data_may_depend_on_the_adapted_parameters():
    """As in reinforcement learning: the hook is where a task's data is asked for."""
    asked = []

    class Collects(MAMLModule):
        def query_data(self, tasks, params):
            asked.append({name: p.detach().clone() for name, p in params.items()})
            return tasks.query._replace(inputs=tasks.query.inputs * 2)

    module, tasks = Collects(nn.Linear(6, 3).double(), 0.5), vector_tasks()
    loss = module.meta_loss(tasks)
    doubled = tasks._replace(query=tasks.query._replace(inputs=tasks.query.inputs * 2))
    assert loss.item() == MAMLModule(module.network, 0.5).meta_loss(doubled).item()
    assert asked[0]["weight"].shape == (4, 3, 6)
    assert not torch.equal(asked[0]["weight"][0], module.network.weight)


@pytest.mark.parametrize("kind", ["batch", "batch_tracked"])
def test_adapt_to_gives_a_self_contained_network(kind):
    module, tasks = MAMLModule(network(kind), 0.3, inner_steps=3), image_tasks()
    before = copy.deepcopy(module.state_dict())
    modes = [layer.training for layer in module.modules()]
    x, y = tasks.support.inputs[0], tasks.support.targets[0]
    for context in (torch.no_grad, torch.inference_mode, torch.enable_grad):
        with context():
            adapted = module.adapt_to(x, y)
            outputs = adapted(x)
        assert not outputs.requires_grad
        torch.testing.assert_close(adapted(x), outputs, rtol=0, atol=0)
    assert all(torch.equal(v, before[n]) for n, v in module.state_dict().items())
    assert [layer.training for layer in module.modules()] == modes
    assert not any(p.requires_grad for p in adapted.parameters())
    assert F.cross_entropy(outputs, y) < F.cross_entropy(module.network.train()(x), y)
    one_by_one = torch.cat([adapted(image[None]) for image in tasks.query.inputs[0]])
    torch.testing.assert_close(one_by_one, adapted(tasks.query.inputs[0]), rtol=1e-9, atol=1e-10)
    assert copy.deepcopy(adapted)(x).equal(outputs)


def test_adapt_to_takes_any_number_of_steps():
    module, tasks = MAMLModule(network("batch"), 0.3), image_tasks()
    x, y = tasks.support.inputs[0], tasks.support.targets[0]
    losses = [F.cross_entropy(module.adapt_to(x, y, steps=s)(x), y).item() for s in (0, 1, 10)]
    assert losses[0] > losses[1] > losses[2]


@pytest.mark.parametrize(
    ("inputs", "targets", "message"),
    [
        (torch.zeros(3, 6), torch.zeros(2, dtype=torch.long), r"\[3\] inputs and 2 targets"),
        (torch.zeros(0, 6), torch.zeros(0), "0 targets"),
    ],
)
def test_adapt_to_refuses_a_support_set_that_does_not_fit(inputs, targets, message):
    with pytest.raises(ValueError, match=message):
        MAMLModule(nn.Linear(6, 3)).adapt_to(inputs, targets)


def test_a_checkpoint_round_trips_and_is_plain(tmp_path):
    module = sinusoid_module(inner_steps=2)
    run = trainer(tmp_path, enable_checkpointing=True)
    run.fit(module, sinusoids())
    path = run.checkpoint_callback.best_model_path
    checkpoint = torch.load(path, weights_only=True)
    plain = {"inner_lr": 0.01, "inner_steps": 2, "val_inner_steps": None, "first_order": False, "adapt_only": None}
    assert plain.items() <= checkpoint["hyper_parameters"].items()
    assert not {"network", "loss", "optimizer"} & checkpoint["hyper_parameters"].keys()
    loaded = MAMLModule.load_from_checkpoint(path, network=MLP(), loss=F.mse_loss)
    assert loaded.algorithm.inner_steps == 2
    task = SinusoidDataModule(meta_batch_size=1)
    task.setup()
    (x, y), _ = (tuple(t[0] for t in part[:2]) for part in next(iter(task.train_dataloader())))
    assert torch.equal(loaded.adapt_to(x, y)(x), module.adapt_to(x, y)(x))


def test_training_resumes_in_mid_epoch_at_the_exact_task(tmp_path):
    def module():
        return sinusoid_module(lr_scheduler=lambda o: CosineAnnealingLR(o, T_max=60))

    torch.manual_seed(1)
    whole = module()
    trainer(tmp_path, max_epochs=3).fit(whole, sinusoids())
    checkpoint = pl.callbacks.ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=27, save_top_k=-1)
    trainer(tmp_path, max_epochs=2, callbacks=[checkpoint], enable_checkpointing=True).fit(module(), sinusoids())
    resumed = module()
    run = trainer(tmp_path, max_epochs=3)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*not resumable.*")
        run.fit(resumed, sinusoids(), ckpt_path=tmp_path / "step=27.ckpt")
    assert run.global_step == 60
    for found, expected in zip(resumed.parameters(), whole.parameters(), strict=True):
        assert torch.equal(found, expected)


def test_first_order_differs_from_second_order():
    tasks = image_tasks()
    losses, gradients = [], []
    for first_order in (True, False):
        module = MAMLModule(network("mlp"), 0.5, 3, first_order=first_order)
        loss = module.meta_loss(tasks)
        losses.append(loss.item())
        gradients.append(torch.autograd.grad(loss, list(module.parameters())))
    assert losses[0] == pytest.approx(losses[1], rel=1e-12)
    assert not torch.allclose(gradients[0][0], gradients[1][0], rtol=1e-3)


def test_classification_targets_of_another_kind_of_loss():
    """Regression targets have no accuracy; a loss of one's own is used for all."""
    module = MAMLModule(nn.Linear(6, 1).double(), 0.1, loss=lambda p, t: (p.squeeze(-1) - t).abs().mean())
    tasks = vector_tasks()
    tasks = Task(*(part._replace(targets=part.targets.double()) for part in tasks))
    module.meta_loss(tasks).backward()
    assert module.outcome.metrics == {}


def test_a_network_that_is_replaced_is_the_one_that_learns():
    module, tasks = MAMLModule(network("mlp"), 0.1, adapt_only="3"), image_tasks()
    module.network = network("batch")
    with pytest.raises(ValueError, match="adapt_only='3' matches none"):
        module.meta_loss(tasks)
    module.algorithm.adapt_only = "head"
    module.meta_loss(tasks).backward()
    assert all(p.grad.abs().sum() > 0 for p in module.network.head.parameters())


def test_loading_with_another_loss_or_inner_optimizer_is_named(tmp_path):
    module = MAMLModule(MLP(), inner_optimizer=SGD(0.4), loss=F.mse_loss)
    run = trainer(tmp_path, limit_val_batches=0)
    run.fit(module, sinusoids(steps_per_epoch=1))
    run.save_checkpoint(tmp_path / "a.ckpt")
    with pytest.warns(UserWarning, match=r"inner_optimizer: .*0\.4.*0\.01.*\n  loss: 'mse_loss' -> 'cross_entropy'"):
        MAMLModule.load_from_checkpoint(tmp_path / "a.ckpt", network=MLP())


def test_values_before_and_after_no_steps_are_the_same():
    module = MAMLModule(Conv4(5, hidden=4), val_inner_steps=0, transductive=False)
    found = trainer().test(module, images(), verbose=False)[0]
    assert found["test/query_accuracy"] == found["test/query_accuracy_before"]
    assert found["test/query_loss"] == found["test/query_loss_before"]


@pytest.mark.parametrize("options", [{"log_every_n_steps": 0}, {"barebones": True, "enable_progress_bar": None}])
def test_training_without_logs(options):
    if "barebones" in options:
        options = options | {"logger": None, "enable_checkpointing": None, "enable_model_summary": None}
    run = trainer(**options)
    run.fit(sinusoid_module(), sinusoids(steps_per_epoch=3))
    assert run.global_step == 3


def test_what_an_interrupted_validation_left_is_forgotten():
    module = sinusoid_module()
    module.evaluation.of("val").update({"query_loss": torch.full((5,), 1e9)})
    assert trainer().validate(module, sinusoids(), verbose=False)[0]["val/query_loss"] < 1e6


@pytest.mark.parametrize("way", ["loop", "vmap"])
def test_half_precision_evaluation_with_support_statistics(way):
    module = MAMLModule(Conv4(5, hidden=4), 0.1, transductive=False, task_parallel=way)
    half, full = (trainer(precision=p).test(module, images(), verbose=False)[0] for p in ("bf16-mixed", "32-true"))
    assert half["test/query_loss"] == pytest.approx(full["test/query_loss"], rel=0.05)


def test_double_precision_on_images():
    run = trainer(precision="64-true")
    run.fit(MAMLModule(Conv4(5, hidden=4), 0.1), images(steps_per_epoch=2))
    assert run.global_step == 2


def test_a_list_of_shots_is_a_row_of_results_each():
    module, run = MAMLModule(Conv4(5, hidden=4), 0.1), trainer()
    rows = run.test(module, images(test_k_shot=[1, 3]), verbose=False)
    found = {name: value for row in rows for name, value in row.items()}
    for shot in (1, 3):
        (alone,) = trainer().test(module, images(test_k_shot=shot), verbose=False)
        assert found[f"test/query_accuracy/5-way {shot}-shot"] == pytest.approx(alone["test/query_accuracy"], abs=1e-6)
        assert f"test/query_accuracy_ci95/5-way {shot}-shot" in found
    assert "test/query_accuracy" not in found
