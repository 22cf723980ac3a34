"""What is not finite is an error, or a step that is left out, counted and logged; on every device alike."""

import math

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.loggers import CSVLogger

from lightning_meta import MLP, MAMLModule, RunCheckpoint, SinusoidDataModule
from tests.distributed import training as distributed
from tests.modules.test_maml import trainer
from tests.processes import run


class Spoiled:
    """Waves, of which some tasks have a target that is not finite."""

    def __init__(self, own, bad):
        self.own, self.bad = own, bad

    def tasks(self, numbers):
        tasks = self.own.tasks(numbers)
        for i, number in enumerate(numbers):
            if number in self.bad:
                tasks.query.targets[i, 0] = math.nan
        return tasks


class SpoiledDataModule(SinusoidDataModule):
    """Two tasks in an outer step, so that task 2 i is of step i."""

    bad = frozenset({5, 8})

    def __init__(self, **kwargs):
        super().__init__(**{"meta_batch_size": 2, "steps_per_epoch": 6, "val_tasks": 2, **kwargs})

    def configure_tasks(self, split):
        own = super().configure_tasks(split)
        return Spoiled(own, self.bad) if split == "train" else own


def module(**kwargs):
    torch.manual_seed(0)
    optimizer = kwargs.pop("optimizer", lambda params: torch.optim.SGD(params, lr=0.01))
    return MAMLModule(MLP(hidden=(8,)), **{"inner_lr": 0.01, "loss": F.mse_loss, "optimizer": optimizer} | kwargs)


def test_by_default_it_is_an_error_that_names_the_task(tmp_path):
    maml = module()
    run_ = trainer(tmp_path)
    with pytest.raises(FloatingPointError, match=r"The loss is nan at outer step 2 \(rank 0\) in tasks \[1\]"):
        run_.fit(maml, SpoiledDataModule())
    assert all(torch.isfinite(p).all() for p in maml.parameters())


def test_skipped_steps_change_nothing_and_are_counted_and_logged(tmp_path):
    maml, clean = module(on_nonfinite="skip"), module()
    logger = CSVLogger(tmp_path, "logs", "fit")
    trainer(tmp_path, logger=logger, log_every_n_steps=1).fit(maml, SpoiledDataModule())
    assert maml.outer.skipped == 2
    logged = (tmp_path / "logs" / "fit" / "metrics.csv").read_text().splitlines()
    column = logged[0].split(",").index("train/skipped_steps")
    assert [float(line.split(",")[column]) for line in logged[1:7]] == [0, 0, 1, 1, 2, 2]

    # The same as training on the other steps alone.
    data = SinusoidDataModule(meta_batch_size=2)
    data.setup()
    optimizer = clean.configure_optimizers()
    for step in (0, 1, 3, 5):
        optimizer.zero_grad()
        clean.meta_loss(data.tasks["train"].tasks([2 * step, 2 * step + 1])).backward()
        optimizer.step()
    for found, expected in zip(maml.parameters(), clean.parameters(), strict=True):
        torch.testing.assert_close(found, expected)


def test_the_number_of_skipped_steps_is_kept_over_a_resume(tmp_path):
    callbacks = [RunCheckpoint(str(tmp_path))]
    first = trainer(tmp_path, max_steps=3, enable_checkpointing=True, callbacks=callbacks)
    first.fit(module(on_nonfinite="skip"), SpoiledDataModule())
    second = module(on_nonfinite="skip")
    trainer(tmp_path).fit(second, SpoiledDataModule(), ckpt_path=tmp_path / "last.ckpt")
    assert second.outer.skipped == 2


def test_too_many_skipped_steps_in_a_row_are_an_error(tmp_path):
    data = SpoiledDataModule(steps_per_epoch=10)
    data.bad = range(4, 100)
    maml = module(on_nonfinite="skip", max_skipped_steps=3)
    with pytest.raises(FloatingPointError, match=r"4 outer steps in a row were skipped, more than max_skipped_steps=3"):
        trainer(tmp_path).fit(maml, data)
    assert maml.outer.skipped == 4


def test_a_gradient_that_is_not_finite_though_the_loss_is(tmp_path):
    def root(predictions, targets):
        return F.mse_loss(predictions, targets) + (predictions - predictions.detach()).abs().sum().sqrt()

    with pytest.raises(FloatingPointError, match=r"meta-gradient is not finite at outer step 0"):
        trainer(tmp_path).fit(module(loss=root, inner_steps=0), SinusoidDataModule(meta_batch_size=2, val_tasks=2))
    skipping = module(loss=root, inner_steps=0, on_nonfinite="skip", max_skipped_steps=50)
    data = SinusoidDataModule(meta_batch_size=2, steps_per_epoch=3, val_tasks=2)
    trainer(tmp_path).fit(skipping, data)
    assert skipping.outer.skipped == 3
    assert all(torch.isfinite(p).all() for p in skipping.parameters())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"on_nonfinite": "ignore"}, "on_nonfinite must be 'raise' or 'skip', got 'ignore'"),
        ({"max_skipped_steps": 0}, "max_skipped_steps must be a whole number of at least 1, got 0"),
    ],
)
def test_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        module(**arguments)


def skip_on_ranks(world, path):
    maml = module(on_nonfinite="skip")
    distributed.trainer(world, max_epochs=1, precision="64-true").fit(maml, SpoiledDataModule())
    state = {"skipped": maml.outer.skipped, **maml.state_dict()}
    if distributed.is_first():
        torch.save(state, path)


def test_all_devices_skip_the_step_that_is_bad_on_one(tmp_path):
    found = {}
    for world in (1, 2):
        path = tmp_path / f"{world}.pt"
        run(skip_on_ranks, world, path, world=world, log=tmp_path / "log")
        found[world] = torch.load(path, weights_only=True)
    assert found[1].pop("skipped") == found[2].pop("skipped") == 2
    for name, expected in found[1].items():
        torch.testing.assert_close(found[2][name], expected, rtol=0, atol=1e-12)


def test_a_meta_batch_that_the_devices_do_not_divide_and_too_few_tasks_are_refused(tmp_path):
    cases = [
        ("meta_batch_size", 3, "meta_batch_size=3 is the number of tasks .* and 2 devices do not divide it"),
        ("val_tasks", 1, "val_tasks=1 is fewer than the 2 devices"),
    ]
    for name, value, message in cases:
        with pytest.raises(RuntimeError, match=message):
            run(fit_on_two, {name: value}, world=2, log=tmp_path / "log")
    with pytest.raises(RuntimeError, match="test_tasks=1 is fewer than the 2 devices"):
        run(test_on_two, {"test_tasks": 1}, world=2, log=tmp_path / "log")


def fit_on_two(sizes):
    distributed.trainer(2, max_epochs=1).fit(module(), SinusoidDataModule(**{"meta_batch_size": 2} | sizes))


def test_on_two(sizes):
    distributed.trainer(2).test(module(), SinusoidDataModule(**{"meta_batch_size": 2} | sizes))


test_on_two.__test__ = False
