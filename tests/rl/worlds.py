"""Small worlds to act in, and modules that do."""

import numpy as np
import torch

from lightning_meta.algorithms import Actor
from lightning_meta.rl import (
    Box,
    Discrete,
    GaussianPolicy,
    MAMLRLModule,
    NavigationDataModule,
    PolicySpaces,
    RLDataModule,
    Transition,
)


class Corridor:
    """Tasks of walking left or right along a line, from a random start; arriving ends an episode and succeeds."""

    horizon = 12

    def __init__(self, goals, episodes, discrete=False):
        self.spaces = PolicySpaces((3,), Discrete(2) if discrete else Box((-1.0,), (1.0,)))
        self.goals, self.episodes, self.closed, self.steps = goals.unsqueeze(1), episodes, 0, 0

    def reset(self, seeds):
        self.at = torch.tensor(
            [[np.random.default_rng(int(s)).uniform(-0.5, 0.5) for s in row] for row in seeds]
        ).double()
        self.over = torch.zeros_like(self.at, dtype=torch.bool)
        return self.observations()

    def observations(self):
        return torch.stack([self.at, self.at**2, torch.ones_like(self.at)], -1)

    def step(self, actions):
        self.steps += 1
        way = 2.0 * actions - 1 if isinstance(self.spaces.actions, Discrete) else actions.squeeze(-1)
        self.at = torch.where(self.over, self.at, self.at + 0.5 * way.double())
        self.over = self.over | ((self.at - self.goals).abs() < 0.4)
        return Transition(self.observations(), -(self.at - self.goals).abs(), self.over, self.over)

    def close(self):
        self.closed += 1


class Corridors(RLDataModule):
    """A goal at -2 or 2, by the number's parity."""

    monitor = "val/query_success"

    def __init__(self, discrete=False, made=Corridor, **kwargs):
        super().__init__(**({"episodes": 6, "meta_batch_size": 4, "val_tasks": 6, "test_tasks": 6} | kwargs))
        self.discrete, self.made, self.last = discrete, made, None

    def configure_suite(self, split):
        return self

    @property
    def spaces(self):
        return self.made(torch.zeros(1), 1, self.discrete).spaces

    def environments(self, numbers, episodes):
        goals = torch.tensor([4.0 * (number % 2) - 2 for number in numbers], dtype=torch.float64)
        self.last = self.made(goals, episodes, self.discrete)
        return self.last

    def close(self):
        pass


def ready(module, data):
    """A module that acts in the environments of a data module without a Trainer."""
    data.setup()
    module.sampler.data = data
    return module


def navigator(seed=0, made=MAMLRLModule, data=None, **kwargs):
    """In float64, of small trajectories."""
    torch.manual_seed(seed)
    policy = GaussianPolicy(2, 2, hidden=(16,), std=0.5).double()
    settings = {} if "inner_optimizer" in kwargs else {"inner_lr": 0.1}
    module = made(policy, **(settings | {"inner_steps": 2} | kwargs))
    return ready(module, data or NavigationDataModule(horizon=12, episodes=5, meta_batch_size=4))


def collected(module, numbers=range(4), split="train", training=True):
    """What acting in tasks of a split leaves."""
    tasks = module.sampler.data.tasks[split].tasks(numbers)
    return module.collect(
        tasks, Actor(module.algorithm, module.task_map, lambda: module.problem(tasks), training=training)
    )
