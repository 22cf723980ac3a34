"""Data that depends on adapted parameters: a point robot that learns to find its task's goal, by policy gradients."""

from dataclasses import replace

import lightning.pytorch as pl
import pytest
import torch
from torch import nn

from lightning_meta import Examples, MAMLModule, ProtoNetModule, RunCheckpoint, Task, TaskDataModule
from lightning_meta.algorithms import Actor
from lightning_meta.functional.task_map import joined
from lightning_meta.modules.evaluation import collected
from lightning_meta.randomness import uniforms
from lightning_meta.task import map_tensors
from tests.conftest import image_tasks, relative_error, vector_tasks
from tests.modules.test_contracts import made as contract
from tests.modules.test_contracts import trainer

EPISODES, HORIZON, SIGMA = 8, 10, 0.1
PLACES = EPISODES * HORIZON


class Goals:
    """A goal in the unit square around the start, and the noise of all actions: functions of the task's number."""

    def __init__(self, split):
        self.split = split

    def tasks(self, numbers):
        random = torch.from_numpy(uniforms(0, self.split, numbers, 2 + 3 * PLACES * 2))
        noise = torch.erfinv(random[:, 2:] * 1.99 - 0.995) * 2**0.5
        inputs = {"goal": random[:, None, :2] - 0.5, "noise": noise.view(-1, 3 * HORIZON, EPISODES, 2)}
        return Task(*(Examples(inputs, torch.zeros(len(numbers), 1)) for _ in range(2)))


class Navigation(TaskDataModule):
    def configure_tasks(self, split):
        return Goals(split)


def surrogate_return(mean, targets):
    ratio = (log_probability(targets["action"], mean) - targets["log_probability"]).exp()
    return -(ratio * targets["advantage"]).mean()


def log_probability(action, mean):
    return -((action - mean) / SIGMA).square().sum(-1) / 2


class NavigationMAML(MAMLModule):
    """Acts with the parameters before each inner step and with the adapted ones."""

    def collect(self, tasks, act):
        episodes = []
        for step in range(act.steps + 1):
            episodes.append(self.rollout(tasks.support.inputs, act, step))
            if step < act.steps:
                act.adapt(episodes[-1])
        support = map_tensors(lambda *steps: torch.cat(steps, 1), *episodes[:-1])
        return Task(support, episodes[-1])

    def rollout(self, world, act, step):
        position = world["goal"].new_zeros(len(world["goal"]), EPISODES, 2)
        seen = []
        for t in range(HORIZON):
            mean = act(position)
            action = mean + SIGMA * world["noise"][:, step * HORIZON + t]
            seen.append((position, action, log_probability(action, mean)))
            position = position + action.clamp(-0.2, 0.2)
        observation, action, log = (torch.stack(each, 1) for each in zip(*seen, strict=True))
        rewards = -(observation - world["goal"].unsqueeze(1)).norm(dim=-1)  # (B, HORIZON, EPISODES)
        future = rewards.flip(1).cumsum(1).flip(1)
        advantage = future - future.mean(2, keepdim=True)
        targets = {"action": action, "log_probability": log, "advantage": advantage, "reward": rewards}
        return Examples(observation.flatten(1, 2), map_tensors(lambda t: t.flatten(1, 2), targets))

    def support_data(self, tasks, params, step):
        return map_tensors(lambda t: t[:, step * PLACES : (step + 1) * PLACES], tasks.support)

    def task_metrics(self, predictions, targets):
        return {"return": targets["reward"].sum(1) / EPISODES}


def made(**kwargs):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 2)).double()
    return NavigationMAML(net, inner_lr=0.05, inner_steps=2, loss=surrogate_return, **kwargs)


def test_every_way_of_running_tasks_collects_and_learns_the_same():
    found = {}
    for way in ("vmap", "loop", 2):
        module, numbers = made(task_parallel=way), Goals("train").tasks(range(5))
        batch = collected(module, numbers, training=True)
        module.meta_loss(batch).backward()
        found[way] = ([batch.query.inputs], [p.grad for p in module.parameters()])
    assert found["vmap"][0][0].shape == (5, PLACES, 2)
    for way in ("loop", 2):
        for one, other in zip(found[way], found["vmap"], strict=True):
            assert relative_error(one, other) < 1e-10


def test_the_stored_batch_has_what_the_adapted_policy_did():
    """On the batch just collected, the probability ratio is 1 for the parameters that acted at every inner step."""
    module, numbers = made(), Goals("train").tasks(range(3))
    batch = collected(module, numbers, training=True)
    problem, seen = module.problem(batch), []
    problem = replace(problem, learner=replace(problem.learner, vectorized=True))
    module.algorithm.adapt(problem, 2, order=0, on_step=lambda step, params, *_: seen.append((step, params)))
    for step, params in seen:
        data = module.query_data(batch, params) if step == 2 else module.support_data(batch, params, step)
        for i in range(3):
            own = {name: p[i] for name, p in params.items()}
            mean = torch.func.functional_call(module.network, own, data.inputs[i])
            log = log_probability(data.targets["action"][i], mean)
            torch.testing.assert_close(log, data.targets["log_probability"][i], rtol=1e-9, atol=1e-9)
    assert (seen[2][1]["0.weight"] - seen[0][1]["0.weight"]).abs().max() > 1e-4


def run(folder, epochs, resume=None, steps=40):
    module = made(optimizer=lambda p: torch.optim.Adam(p, 5e-3), outer_steps_per_batch=2)
    data = Navigation(meta_batch_size=8, steps_per_epoch=steps, val_tasks=20, test_tasks=40, eval_batch_size=20)
    callbacks = [RunCheckpoint(str(folder), monitor="val/query_loss")]
    run = trainer(folder, max_epochs=epochs, precision="64-true", enable_checkpointing=True, callbacks=callbacks)
    run.fit(module, data, ckpt_path=resume)
    return module, data, run


def test_it_learns_and_a_resumed_training_is_one_that_was_not_interrupted(tmp_path):
    pl.seed_everything(0)
    whole, data, trained = run(tmp_path / "whole", 2)
    assert trained.global_step == 2 * 2 * 40
    (after,) = trained.test(whole, data, verbose=False)
    (before,) = trained.test(made(), data, verbose=False)
    print(f"return {before['test/query_return']:.2f} before, {after['test/query_return']:.2f} after")
    assert after["test/query_return"] > before["test/query_return"] + before["test/query_return_ci95"]
    pl.seed_everything(0)
    run(tmp_path / "half", 1)
    resumed, *_ = run(tmp_path / "half", 2, resume=tmp_path / "half" / "last.ckpt")
    for found, expected in zip(resumed.parameters(), whole.parameters(), strict=True):
        assert torch.equal(found, expected)


def test_what_has_no_inner_steps_cannot_be_adapted():
    module, tasks = ProtoNetModule(nn.Linear(6, 4).double()), vector_tasks()
    act = Actor(module.algorithm, module.task_map, lambda: module.problem(tasks), training=True)
    assert act.steps == 0
    assert act(tasks.query.inputs).shape == (4, 9, 4)
    with pytest.raises(ValueError, match="MetricBased has no inner steps"):
        act.adapt(tasks.support)


@pytest.mark.parametrize("name", ["maml", "maml_adam", "maml_plus_plus", "meta_lstm", "imaml", "protomaml", "cavia"])
@pytest.mark.parametrize("way", ["vmap", "loop", 3])
def test_the_actor_makes_the_inner_steps_of_the_algorithm(name, way):
    tasks, module = image_tasks(), contract(name, task_parallel=way)
    act = Actor(module.algorithm, module.task_map, lambda: module.problem(tasks), training=True)
    losses = [act.adapt(tasks.support) for _ in range(act.steps)]
    found = act(tasks.query.inputs)

    def run(problem):
        adapted = module.algorithm.adapt(problem, act.steps, order=0)
        query = problem.query(adapted.params)
        predictions, _ = problem.predict(adapted.params, adapted.buffers, query, adapted.steps)
        return predictions, adapted.inner_losses

    expected, inner_losses = joined(list(module.task_map(run, module.problem(tasks))))
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(torch.stack(losses, 1), inner_losses, rtol=1e-10, atol=1e-12)
    assert (losses[0] - losses[-1]).abs().max() > 1e-6
