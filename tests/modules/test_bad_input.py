"""One clear error that names the thing, the value and the remedy."""

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_meta import MLP, SGD, Conv4, MAMLModule, Task
from lightning_meta.modules.lifecycle import Lifecycle
from tests.conftest import image_tasks, vector_tasks
from tests.modules.test_maml import images, sinusoid_module, sinusoids, trainer


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"inner_steps": -1}, "inner_steps must be 0 or more, got -1"),
        ({"val_inner_steps": -2}, "val_inner_steps must be 0 or more, got -2"),
        ({"gradient_clip_val": 0.0}, r"gradient_clip_val must be positive or None, got 0\.0"),
        ({"task_parallel": "parallel"}, "task_parallel='parallel' is not a way"),
        ({"adapt_only": "haed"}, "adapt_only='haed' matches none"),
    ],
)
def test_arguments_out_of_range(arguments, message):
    with pytest.raises(ValueError, match=message):
        MAMLModule(nn.Linear(2, 2), **arguments)


def test_a_sync_batch_norm_is_refused():
    net = nn.SyncBatchNorm.convert_sync_batchnorm(nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)))
    with pytest.raises(ValueError, match="Layer '1' is a SyncBatchNorm"):
        MAMLModule(net)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"gradient_clip_val": 0.5}, r"MAMLModule\(gradient_clip_val=0\.5\) instead"),
        ({"accumulate_grad_batches": 4}, r"accumulate_grad_batches=4.*Raise the data module's meta_batch_size"),
    ],
)
def test_options_of_the_trainer_that_belong_to_the_module(option, message):
    with pytest.raises(ValueError, match=message):
        trainer(**option).fit(sinusoid_module(), sinusoids())


@pytest.mark.parametrize("outputs", [3, 20])
def test_a_network_with_other_outputs_than_classes(outputs):
    with pytest.raises(ValueError, match=f"The network has {outputs} outputs, but the tasks have val_n_way=5 classes"):
        trainer().fit(MAMLModule(Conv4(outputs, hidden=4)), images())
    with pytest.raises(ValueError, match=f"The network has {outputs} outputs, but the tasks have n_way=5 classes"):
        trainer(limit_val_batches=0).fit(MAMLModule(Conv4(outputs, hidden=4)), images())


def test_a_test_with_other_classes_than_a_fixed_head_has():
    module = MAMLModule(Conv4(5, hidden=4))
    trainer(num_sanity_val_steps=0).fit(module, images())
    with pytest.raises(ValueError, match="The network has 5 outputs, but the tasks have test_n_way=8 classes"):
        trainer().test(module, images(test_n_way=8), verbose=False)


@pytest.mark.parametrize("way", ["vmap", "loop"])
def test_targets_without_an_output_are_named_without_a_trainer_too(way):
    with pytest.raises(ValueError, match="has 2 outputs, but the targets are classes 0 to 2"):
        MAMLModule(nn.Linear(6, 2).double(), task_parallel=way).meta_loss(vector_tasks())


def test_a_loss_that_is_no_scalar():
    module = MAMLModule(nn.Linear(6, 3).double(), loss=lambda p, t: F.cross_entropy(p, t, reduction="none"))
    with pytest.raises(ValueError, match=r"must be a scalar, but has the shape \(6,\)"):
        module.meta_loss(vector_tasks())


class PoisonedSinusoids(type(sinusoids())):
    """Task 42 has a NaN in its support set."""

    def configure_tasks(self, split):
        inner = super().configure_tasks(split)

        class Poisoned:
            def tasks(self, numbers):
                task = inner.tasks(numbers)
                if split == "train" and 42 in numbers:
                    task.support.inputs[list(numbers).index(42), 0] = float("nan")
                return task

        return Poisoned()


@pytest.mark.parametrize("way", ["vmap", "loop"])
def test_a_non_finite_loss_stops_before_harm_and_names_step_and_tasks(tmp_path, way):
    module = sinusoid_module(inner_steps=2, task_parallel=way)
    checkpoint = pl.callbacks.ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=2, save_top_k=-1)
    run = trainer(callbacks=[checkpoint], enable_checkpointing=True)
    data = PoisonedSinusoids(meta_batch_size=8, steps_per_epoch=10, val_tasks=4)
    with pytest.raises(FloatingPointError, match=r"nan at outer step 5 \(rank 0\) in tasks \[2\] .* inner step 0 of 2"):
        run.fit(module, data)
    assert all(torch.isfinite(p).all() for p in module.parameters())
    last = torch.load(tmp_path / "step=4.ckpt", weights_only=True)
    assert last["state_dict"].keys() == module.state_dict().keys()
    assert all(torch.isfinite(value).all() for value in last["state_dict"].values())


def test_a_diverging_inner_loop_names_the_inner_step():
    module = sinusoid_module(inner_lr=1e30, inner_steps=3)
    with pytest.raises(FloatingPointError, match=r"outer step 0 .* first at inner step [12] of 3"):
        trainer(limit_val_batches=0).fit(module, sinusoids())


def test_a_meta_gradient_that_is_not_finite_is_not_applied():
    class Root(nn.Module):
        def __init__(self):
            super().__init__()
            self.net, self.scale = MLP(), nn.Parameter(torch.zeros(()))

        def forward(self, x):
            return self.net(x) * (1 + self.scale.sqrt())  # the root of 0 has an infinite slope

    module = MAMLModule(Root(), 0.01, adapt_only="net", loss=F.mse_loss)
    with pytest.raises(
        FloatingPointError, match="meta-gradient is not finite at outer step 0, though the loss on this"
    ):
        trainer(limit_val_batches=0).fit(module, sinusoids())
    assert module.network.scale.item() == 0


def test_other_hyperparameters_than_the_checkpoints_are_named(tmp_path):
    module = sinusoid_module()
    run = trainer(tmp_path)
    run.fit(module, sinusoids())
    run.save_checkpoint(tmp_path / "a.ckpt")
    other = sinusoid_module(inner_lr=0.02)
    with pytest.warns(UserWarning, match=r"inner_lr: 0\.01 -> 0\.02\n(.*\n)?  k_shot: 10 -> 5"):
        trainer(tmp_path).test(other, sinusoids(k_shot=5), ckpt_path=tmp_path / "a.ckpt", verbose=False)
    assert other.inner_optimizer.lr == 0.02


def test_meta_loss_of_images_on_a_wrong_shape_is_the_networks_own_error():
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        MAMLModule(nn.Linear(7, 3).double()).meta_loss(image_tasks())


def test_cross_entropy_on_real_numbers_is_refused():
    with pytest.raises(ValueError, match=r"loss is cross-entropy.*give loss=torch\.nn\.functional\.mse_loss"):
        trainer().fit(MAMLModule(MLP()), sinusoids())


def test_a_cross_entropy_of_ones_own_is_checked_too():
    module = MAMLModule(Conv4(20, hidden=4), loss=nn.CrossEntropyLoss(label_smoothing=0.1))
    with pytest.raises(ValueError, match="The network has 20 outputs, but the tasks have val_n_way=5 classes"):
        trainer().fit(module, images())


def test_a_support_loss_that_is_not_finite_is_not_hidden_by_a_finite_query_loss():
    def loss(predictions, targets):
        value = F.mse_loss(predictions, targets)
        # The support set has 10 points, the query set 7: only the support loss overflows, with a zero gradient.
        return value if len(targets) == 7 else value * 0 + float("inf")

    with pytest.raises(FloatingPointError, match="inner step 0 of 1"):
        trainer(limit_val_batches=0).fit(sinusoid_module(loss=loss), sinusoids(n_query=7))


def test_layers_that_the_trainer_converted_are_refused():
    module = MAMLModule(nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)))
    module.network = nn.SyncBatchNorm.convert_sync_batchnorm(module.network)
    with pytest.raises(ValueError, match="Layer '1' is a SyncBatchNorm"):
        Lifecycle.on_fit_start(None, None, module)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"inner_optimizer": torch.optim.SGD([torch.zeros(1)], lr=0.1)},
            "inner_optimizer must be an object of a lightning_meta",
        ),
        ({"optimizer": torch.optim.Adam([torch.zeros(1)])}, "optimizer must be callable, got Adam"),
        ({"loss": nn.MSELoss}, "loss must be callable, got <class"),
        ({"loss": "mse"}, "loss must be callable, got 'mse'"),
        ({"network": nn.Linear}, "network must be an nn.Module, got <class"),
    ],
    ids=["inner_optimizer", "optimizer", "loss_class", "loss_name", "network_class"],
)
def test_arguments_of_another_kind(arguments, message):
    with pytest.raises(TypeError, match=message):
        MAMLModule(**{"network": nn.Linear(2, 2)} | arguments)


class Forgetful(SGD):
    """Leaves out the biases."""

    def update(self, grads, state, params, **extra):
        new, state = super().update(grads, state, params, **extra)
        return {name: p for name, p in new.items() if "bias" not in name}, state


def test_an_inner_optimizer_that_leaves_out_parameters():
    module = MAMLModule(nn.Linear(6, 3).double(), inner_optimizer=Forgetful(0.1))
    with pytest.raises(ValueError, match=r"Forgetful\.update must return every parameter.* not for bias"):
        module.meta_loss(vector_tasks())


def test_targets_that_would_be_broadcast():
    tasks = vector_tasks(n_way=1, k_shot=5)
    tasks = Task(*(part._replace(targets=part.targets.double()) for part in tasks))
    with pytest.raises(ValueError, match=r"compares \(5, 1\) with \(5,\).* the same shape"):
        MAMLModule(nn.Linear(6, 1).double(), loss=F.mse_loss).meta_loss(tasks)


def test_a_network_that_returns_a_tuple():
    class Two(nn.Linear):
        def forward(self, x):
            return super().forward(x), x

    with pytest.raises(TypeError, match="The network returned a tuple"):
        MAMLModule(Two(6, 3).double()).meta_loss(vector_tasks())


def test_raw_images_for_adapt_to():
    module = MAMLModule(Conv4(5, hidden=4))
    with pytest.raises(ValueError, match="give inputs / 255"):
        module.adapt_to(torch.zeros(5, 1, 28, 28, dtype=torch.uint8), torch.arange(5))
