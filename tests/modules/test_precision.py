"""Half precision trains like single precision; under float16 inner gradients do not vanish."""

from itertools import pairwise
from unittest.mock import PropertyMock, patch

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.plugins import MixedPrecision

from lightning_meta import MLP, Conv4, GlyphsDataModule, MAMLModule, ReptileModule, SinusoidDataModule
from lightning_meta.functional.inner_loop import scaled_gradients
from lightning_meta.inner import SGD
from tests.conftest import image_tasks, relative_error
from tests.modules.test_contracts import ALGORITHMS, FixedDataModule, made, trainer


class KeepFirstGradient(torch.optim.SGD):
    """Gradient descent that remembers the first gradient it got."""

    gradients = None

    def step(self, closure=None):
        if self.gradients is None:
            self.gradients = [p.grad.double().clone() for group in self.param_groups for p in group["params"]]
        return super().step(closure)


def float16(scale=2.0**10):
    """16-mixed on the CPU, where Lightning would take bfloat16."""
    return MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=scale))


@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_algorithm_in_every_precision(name, tmp_path):
    found = {}
    for precision in ("64-true", "32-true", "bf16-mixed", "16-mixed"):
        module = made(name, optimizer=lambda params: KeepFirstGradient(params, lr=0.01)).float()
        dtype = torch.float64 if precision == "64-true" else torch.float32
        plugins = {"plugins": [float16()]} if precision == "16-mixed" else {"precision": precision}
        run = trainer(tmp_path, max_epochs=1, **plugins)
        run.fit(module, FixedDataModule(image_tasks(k_shot=4, dtype=torch.float32), steps_per_epoch=3))
        assert all(p.dtype == dtype and torch.isfinite(p).all() for p in module.parameters())
        assert torch.isfinite(run.callback_metrics["val/query_loss"])
        (optimizer,) = run.optimizers
        found[precision] = optimizer.gradients
    assert relative_error(found["32-true"], found["64-true"]) < 1e-4
    exact, *halves = (torch.cat([g.flatten() for g in found[p]]) for p in ("64-true", "bf16-mixed", "16-mixed"))
    # An inner Adam makes steps of the noise, too, where there is no gradient: with torch's own layers in bfloat16, one
    # task after another, the cosine is 0.68.
    of_bfloat16 = 0.9 if name == "maml_adam" else 0.95
    for half, least in zip(halves, (of_bfloat16, 0.99), strict=True):
        assert not torch.equal(half, exact)
        assert F.cosine_similarity(half, exact, dim=0) > least


def test_steps_whose_gradients_are_too_large_for_float16_are_left_out_counted_and_logged(tmp_path):
    """The scale halves with each of them, until gradients fit; what is skipped changes nothing."""
    torch.manual_seed(0)
    module = MAMLModule(MLP(), inner_lr=0.01, loss=F.mse_loss)
    seen = []

    class Watch(pl.Callback):
        def on_train_batch_start(self, *_):
            seen.append(torch.cat([p.detach().flatten() for p in module.parameters()]))

    run = trainer(tmp_path, max_epochs=1, plugins=[float16(2.0**24)], callbacks=[Watch()])
    run.fit(module, SinusoidDataModule(meta_batch_size=4, steps_per_epoch=20, val_tasks=2))
    skipped = module.outer.skipped
    assert 0 < skipped < 20
    Watch().on_train_batch_start()
    assert sum(torch.equal(before, after) for before, after in pairwise(seen)) == skipped
    assert module.loss_scale == 2.0 ** (24 - skipped)
    assert run.callback_metrics["train/skipped_steps"] == skipped
    run = trainer(tmp_path, max_epochs=1, plugins=[float16(2.0**60)])
    with pytest.raises(FloatingPointError, match="more than max_skipped_steps=20"):
        run.fit(module, SinusoidDataModule(meta_batch_size=4, steps_per_epoch=30, val_tasks=2))


def learn_sinusoid(precision, tmp_path, steps):
    torch.manual_seed(0)
    module = MAMLModule(MLP(), inner_lr=0.01, loss=F.mse_loss, val_inner_steps=1)
    data = SinusoidDataModule(k_shot=10, meta_batch_size=16, steps_per_epoch=steps, val_tasks=2, test_tasks=600)
    run = trainer(tmp_path, precision=precision, max_epochs=1)
    run.fit(module, data)
    return run.test(module, data, verbose=False)[0]["test/query_loss"]


def learn_glyphs(precision, tmp_path, steps, tests):
    torch.manual_seed(0)
    module = MAMLModule(Conv4(n_way=5, hidden=32), inner_lr=0.4, optimizer=lambda p: torch.optim.Adam(p, 3e-3))
    sizes = {"meta_batch_size": 16, "steps_per_epoch": steps, "val_tasks": 2, "test_tasks": tests}
    data = GlyphsDataModule(n_query=3, test_n_query=15, **sizes)
    run = trainer(tmp_path, precision=precision, max_epochs=1)
    run.fit(module, data)
    return run.test(module, data, verbose=False)[0]["test/query_accuracy"]


@pytest.mark.timeout(3000)
def test_bfloat16_reaches_what_float32_reaches(tmp_path, request):
    """Within 2 % of the error on the sinusoid, and 2 points of accuracy on Glyphs."""
    steps, few, tests = (5000, 600, 600) if request.config.getoption("all_cases") else (300, 40, 100)
    single, half = (learn_sinusoid(precision, tmp_path, steps) for precision in ("32-true", "bf16-mixed"))
    print(f"sinusoid, {steps} steps: {single:.4f} in float32, {half:.4f} under bf16-mixed")
    assert abs(half - single) <= 0.02 * single
    single, half = (learn_glyphs(precision, tmp_path, few, tests) for precision in ("32-true", "bf16-mixed"))
    print(f"Glyphs, {few} steps: {single:.4f} in float32, {half:.4f} under bf16-mixed")
    assert abs(half - single) <= 0.02


def meta_gradient(module, tasks, *, rounded):
    module.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=rounded):
        module.meta_loss(tasks).backward()
    return [p.grad.clone() for p in module.parameters()]


@pytest.mark.parametrize("downsample", ["stride", "pool"])
@pytest.mark.parametrize("n_query", [1, 15])
def test_how_far_bfloat16_takes_second_order_meta_gradients_off(downsample, n_query, request):
    """Of Conv-4 on Glyphs at an inner rate of 0.4: far before training, less after."""
    if (downsample, n_query) != ("stride", 1) and not request.config.getoption("all_cases"):
        pytest.skip("one of four cases: --all-cases runs them")
    torch.manual_seed(0)
    data = GlyphsDataModule(n_query=n_query, meta_batch_size=8, steps_per_epoch=41)
    data.setup("fit")
    module = MAMLModule(Conv4(5, downsample=downsample), inner_lr=0.4)
    optimizer, errors = torch.optim.Adam(module.parameters(), 1e-3), {}
    for step, tasks in enumerate(data.train_dataloader()):
        batch = data.on_after_batch_transfer(tasks, 0)
        if step in (0, 40):
            errors[step] = relative_error(*(meta_gradient(module, batch, rounded=r) for r in (True, False)))
        meta_gradient(module, batch, rounded=False)
        optimizer.step()
    print(f"{downsample}, {n_query} queries: " + ", ".join(f"{e:.3f} after {n} steps" for n, e in errors.items()))
    assert 0.01 < errors[0] < 0.7  # it is rounded
    assert errors[40] < 0.25


def small_gradients(kind):
    """A module whose inner gradients with respect to the outputs are below float16's smallest number."""
    torch.manual_seed(0)
    network = MLP(in_features=6, hidden=(16,), out_features=3)

    def loss(predictions, targets):
        return 2e-8 * F.cross_entropy(predictions.float(), targets)

    rate = 1e6
    if kind == "reptile":
        return ReptileModule(network, SGD(rate), inner_steps=2, loss=loss)
    return MAMLModule(network, inner_lr=rate, inner_steps=2, loss=loss, first_order=kind == "fomaml")


@pytest.mark.parametrize("kind", ["maml", "fomaml", "reptile"])
@pytest.mark.parametrize("way", ["vmap", "loop", 2])
def test_inner_gradients_that_float16_would_lose(kind, way):
    tasks = image_tasks(k_shot=3, channels=6, size=1, dtype=torch.float32)
    tasks = tasks._replace(
        support=tasks.support._replace(inputs=tasks.support.inputs.flatten(2)),
        query=tasks.query._replace(inputs=tasks.query.inputs.flatten(2)),
    )

    def meta_gradient(scale, half):
        module = small_gradients(kind)
        module.task_map.task_parallel = way
        with patch.object(type(module), "loss_scale", PropertyMock(return_value=scale)):
            with torch.autocast("cpu", torch.float16, enabled=half, cache_enabled=False):
                loss = module.meta_loss(tasks)
            return scaled_gradients(loss, list(module.parameters()), scale)

    expected = meta_gradient(1.0, half=False)
    assert any(gradient.any() for gradient in expected)
    assert relative_error(meta_gradient(2.0**24, half=True), expected) < 0.01
    lost = meta_gradient(1.0, half=True)
    # Nothing of the inner loop is left: Reptile has no gradient at all, MAML at most that of the last step.
    assert relative_error(lost, expected) > 0.5
