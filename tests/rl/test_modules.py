"""The two phases: the same in every way of running tasks, what is stored, what is logged, how training goes on."""

from dataclasses import replace

import lightning.pytorch as pl
import pytest
import torch
from torch import nn

from lightning_meta import RunCheckpoint
from lightning_meta.algorithms import Actor
from lightning_meta.errors import ConfigurationError
from lightning_meta.inner import LSLR, SGD, LSTMOptimizer, MetaSGD
from lightning_meta.modules.evaluation import collected as collected_for
from lightning_meta.rl import (
    CategoricalPolicy,
    GaussianPolicy,
    MAMLRLModule,
    MetaLSTMRLModule,
    NavigationDataModule,
    PolicyGradient,
    ReptileRLModule,
)
from lightning_meta.task import tensors_of
from lightning_meta.testing import check_algorithm
from tests.conftest import relative_error
from tests.modules.test_contracts import trainer
from tests.rl.worlds import Corridors, collected, navigator, ready

MODULES = {
    "maml": lambda **k: navigator(**k),
    "promp": lambda **k: navigator(loss=PolicyGradient(clip=0.2, entropy=0.01), **k),
    "dice": lambda **k: navigator(loss=PolicyGradient("dice"), inner_loss=PolicyGradient("dice"), **k),
    "fomaml": lambda **k: navigator(first_order=True, **k),
    "network_only": lambda **k: navigator(adapt_only="network", **k),
    "meta_sgd": lambda **k: navigator(inner_optimizer=MetaSGD(0.1), **k),
    "lslr": lambda **k: navigator(inner_optimizer=LSLR(0.1), **k),
    "reptile": lambda **k: navigator(made=ReptileRLModule, **({"inner_optimizer": SGD([0.2, 0.1])} | k)),
    "meta_lstm": lambda **k: navigator(made=MetaLSTMRLModule, **({"inner_optimizer": lstm()} | k)),
    "joint": lambda **k: navigator(**({"inner_steps": 0, "val_inner_steps": 2} | k)),
}


def lstm():
    torch.manual_seed(0)
    optimizer = LSTMOptimizer(4, input_bias=(-2.4, -2.0))
    with torch.no_grad():
        for p in optimizer.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return optimizer.double()


every_module = pytest.mark.parametrize("name", MODULES)


@every_module
def test_loop_vmap_and_chunks_collect_and_learn_the_same(name):
    found = {}
    for way in ("vmap", "loop", 3):
        module = MODULES[name](task_parallel=way)
        batch = collected(module)
        module.meta_loss(batch).backward()
        found[way] = (tensors_of(batch), [p.grad for p in module.parameters()])
    steps = max(module.algorithm.inner_steps, 1)
    assert found["vmap"][0][0].shape == (4, steps, 5, 12, 2)
    for way in ("loop", 3):
        for one, other in zip(found[way][0], found["vmap"][0], strict=True):
            torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)
        assert relative_error(found[way][1], found["vmap"][1]) < 1e-10


@every_module
def test_it_keeps_what_every_algorithm_does(name):
    module = MODULES[name]()
    check_algorithm(module, collected(module, range(3), training=True) if name != "joint" else evaluated(module))


def evaluated(module):
    """A batch that evaluation, which has inner steps, can be made on."""
    return collected(module, range(3), training=False)


@every_module
def test_the_stored_batch_has_what_the_adapted_policy_did(name):
    """The ratio is 1 for the parameters that acted at every inner step: learning takes the path that acting took."""
    module = MODULES[name]()
    batch, seen = collected(module, range(3), training=False), []
    problem = module.problem(batch)
    problem = replace(problem, learner=replace(problem.learner, vectorized=True))
    module.algorithm.adapt(problem, 2, order=0, on_step=lambda step, params, *_: seen.append((step, params)))
    own = {n: p.detach() for n, p in module.network.named_parameters()}
    for step, params in seen:
        data = module.query_data(batch, params) if step == 2 else module.support_data(batch, params, step)
        for i in range(3):
            mine = own | {name: p[i] for name, p in params.items()}
            predictions = torch.func.functional_call(module.network, mine, data.inputs[i])
            log, there = predictions.log_probabilities(data.targets.actions[i]), data.targets.mask[i]
            torch.testing.assert_close(log[there], data.targets.log_probabilities[i][there], rtol=1e-9, atol=1e-9)
    first = next(iter(seen[0][1]))
    assert (seen[2][1][first] - seen[0][1][first]).abs().max() > 1e-4


def test_what_was_collected_before_does_not_matter():
    module = navigator()
    alone = collected(module, [2])
    collected(module, [7, 8])
    together = collected(module, [5, 2, 3])
    for one, other in zip(tensors_of(alone), tensors_of(together), strict=True):
        torch.testing.assert_close(one[0], other[1], rtol=1e-12, atol=1e-12)


def test_advantages_are_of_mean_0_and_variance_1_and_episodes_differ_in_evaluation():
    data = NavigationDataModule(horizon=12, episodes=5, val_episodes=7, val_query_episodes=3, meta_batch_size=4)
    module = navigator(data=data)
    batch = collected(module, split="val", training=False)
    assert batch.support.inputs.shape == (4, 2, 7, 12, 2)
    assert batch.query.inputs.shape == (4, 3, 12, 2)
    advantages = batch.support.targets.advantages
    assert advantages.mean((2, 3)).abs().max() < 1e-10
    assert (advantages.var((2, 3), correction=0) - 1).abs().max() < 1e-6


def test_what_is_logged_is_what_was_acted():
    module = ready(MAMLRLModule(GaussianPolicy(3, 1, std=0.5).double(), inner_lr=0.2, val_inner_steps=3), Corridors())
    batch = collected(module, range(4), "val", training=False)
    found = module.measured(batch, {"query_kl": torch.zeros(4), "query_loss": torch.ones(4)})
    names = [f"return_after_{i}" for i in (1, 2, 3)] + [f"success_after_{i}" for i in (1, 2, 3)]
    names += [f"query_{n}{s}" for n in ("return", "success", "loss") for s in ("", "_before")]
    assert sorted(found) == sorted([*names, "kl"])
    support, query = batch.support.targets, batch.query.targets
    assert torch.equal(found["query_return_before"], support.returns[:, 0].mean(1))
    assert torch.equal(found["return_after_2"], support.returns[:, 2].mean(1))
    assert torch.equal(found["return_after_3"], query.returns.mean(1))
    assert torch.equal(found["query_success"], query.success.mean(1))
    assert torch.equal(found["query_loss_before"], -found["query_return_before"])
    assert 0 < support.success.mean() < 1
    curve = module.adaptation_curve(module.sampler.data.tasks["val"].tasks(range(4)))
    assert torch.equal(curve["query_return"][:, 2], found["return_after_2"])
    assert torch.equal(curve["query_success"][:, 3], found["query_success"])
    assert module.adaptation_curve(module.sampler.data.tasks["val"].tasks([0]), 1)["query_return"].shape == (1, 2)


def run(folder, epochs, resume=None, **kwargs):
    pl.seed_everything(0)
    policy = GaussianPolicy(2, 2, hidden=(16,)).double()
    options = {"optimizer": lambda p: torch.optim.Adam(p, 0.01), "outer_steps_per_batch": 2} | kwargs
    module = MAMLRLModule(policy, inner_lr=0.1, val_inner_steps=2, loss=PolicyGradient(clip=0.2), **options)
    data = NavigationDataModule(
        horizon=10, episodes=10, meta_batch_size=6, steps_per_epoch=5, val_tasks=5, test_tasks=20, eval_batch_size=10
    )
    callbacks = [RunCheckpoint(str(folder), monitor=module.monitor, mode=module.mode)]
    fitted = trainer(
        folder, max_epochs=epochs, precision="64-true", enable_checkpointing=True, callbacks=callbacks,
        log_every_n_steps=1,
    )  # fmt: skip
    fitted.fit(module, data, ckpt_path=resume)
    return module, data, fitted


def test_it_learns_and_a_resumed_training_is_one_that_was_not_interrupted(tmp_path):
    whole, data, trained = run(tmp_path / "whole", 3)
    logged = trained.callback_metrics
    assert trained.global_step == 2 * 3 * 5
    assert logged["train/env_steps"] <= 3 * 5 * 2 * 6 * 10 * 10
    assert logged["train/env_steps"] > 0.9 * 3 * 5 * 2 * 6 * 10 * 10  # a few arrive
    assert logged["train/kl"] > 0
    assert {"train/seconds_sampling", "train/seconds_learning", "train/env_steps_per_second"} <= logged.keys()
    assert {"val/query_return_ci95", "val/return_after_1_ci95", "val/entropy"} <= logged.keys()
    assert "val/query_return_before_ci95" not in logged
    (after,) = trained.test(whole, data, verbose=False)
    pl.seed_everything(0)
    untrained = MAMLRLModule(GaussianPolicy(2, 2, hidden=(16,)).double(), inner_lr=0.1, val_inner_steps=2)
    (before,) = trained.test(untrained, data, verbose=False)
    assert after["test/query_return"] > before["test/query_return"] + before["test/query_return_ci95"]
    assert after["test/query_return"] > after["test/query_return_before"]
    run(tmp_path / "half", 1)
    resumed, _, trained = run(tmp_path / "half", 3, resume=tmp_path / "half" / "last.ckpt")
    for found, expected in zip(resumed.parameters(), whole.parameters(), strict=True):
        assert torch.equal(found, expected)
    for name in ("train/env_steps", "train/query_return", "val/query_return"):
        assert trained.callback_metrics[name] == logged[name]


@pytest.mark.parametrize("discrete", [False, True])
def test_success_is_what_the_best_is_chosen_by_where_it_is_known(discrete, tmp_path):
    torch.manual_seed(0)
    policy = CategoricalPolicy(3, 2) if discrete else GaussianPolicy(3, 1)
    module = MAMLRLModule(policy, inner_lr=2.0, optimizer=lambda p: torch.optim.Adam(p, 0.02))
    assert module.monitor == "val/query_return"
    data = Corridors(discrete, steps_per_epoch=25, episodes=10)
    fitted = trainer(tmp_path, max_epochs=1)
    fitted.fit(module, data)
    assert module.monitor == "val/query_success"
    assert module.mode == "max"
    (found,) = fitted.test(module, data, verbose=False)
    assert found["test/query_success"] > found["test/query_success_before"] + 0.2
    assert data.last.closed == 1
    (predicted,) = fitted.predict(module, data)
    assert torch.isfinite(predicted.entropies()).all()
    assert predicted.mode().shape[:3] == (6, 10, 12)


def test_environments_are_closed_when_a_policy_does_not_suit_them():
    module = ready(MAMLRLModule(CategoricalPolicy(3, 2)), Corridors())
    with pytest.raises(ValueError, match="Use a GaussianPolicy"):
        collected(module)
    assert module.sampler.data.last.closed == 1


def test_what_makes_no_sense_is_refused():
    module = MAMLRLModule(GaussianPolicy())
    tasks = Corridors()
    tasks.setup()
    tasks = tasks.tasks["train"].tasks([0])
    act = Actor(module.algorithm, module.task_map, lambda: module.problem(tasks), training=True)
    with pytest.raises(ValueError, match="acts in environments, which an RLDataModule has"):
        module.collect(tasks, act)
    with pytest.raises(ValueError, match=r"discount must be from 0 to 1, got 1\.5"):
        MAMLRLModule(GaussianPolicy(), discount=1.5)
    for loss in ({"loss": PolicyGradient("dice")}, {"inner_loss": PolicyGradient("score")}):
        with pytest.raises(ValueError, match="right only for the policy that acted"):
            MetaLSTMRLModule(GaussianPolicy(), outer_steps_per_batch=2, **loss)
        MAMLRLModule(GaussianPolicy(), **loss)
    module = navigator()
    with pytest.raises(ValueError, match="Inner step 2 has no trajectories: the batch was collected for 2"):
        module.support_data(collected(module), {}, 2)


def test_the_core_collects_as_in_its_own_steps():
    module = navigator()
    tasks = module.sampler.data.tasks["val"].tasks([0, 1])
    one, other = collected_for(module, tasks, training=False), collected(module, [0, 1], "val", training=False)
    assert torch.equal(one.query.inputs, other.query.inputs)


@pytest.mark.parametrize("layer", [nn.BatchNorm1d(8), nn.BatchNorm1d(8, track_running_stats=False), nn.Dropout(0.1)])
def test_a_policy_that_acts_otherwise_than_it_learns_is_refused(layer):
    body = nn.Sequential(nn.Linear(2, 8), layer, nn.Linear(8, 2))
    data = NavigationDataModule(horizon=3, meta_batch_size=2, steps_per_epoch=1, val_tasks=1)
    with pytest.raises(ConfigurationError, match=r"its layer '.*1' makes it depend on .*LayerNorm, and no dropout"):
        trainer(None, max_epochs=1).fit(MAMLRLModule(GaussianPolicy(2, 2, network=body)), data)
