"""From an environment to a policy that is adapted to it: an environment as a stranger writes one, without Gymnasium."""

import numpy as np
import pytest
import torch

from lightning_meta.errors import DataError
from lightning_meta.rl import CategoricalPolicy, GaussianPolicy, MAMLRLModule, MetaLSTMRLModule, ReptileRLModule
from lightning_meta.rl.deployment import OneEnvironment
from tests.rl.worlds import Corridor, collected, navigator


class Box:
    def __init__(self, low, high, dtype=np.float32):
        self.low, self.high, self.dtype = np.array(low, dtype), np.array(high, dtype), np.dtype(dtype)
        self.shape = self.low.shape


class Choice:
    def __init__(self, n, start=0):
        self.n, self.start = n, start


class Lever:
    """Pays 1 for the right one of three levers; an episode is one pull, or a few for an arm that is to be put right."""

    observation_space = Box([0.0], [1.0])

    def __init__(self, right, discrete=True, time=4):
        self.right, self.discrete, self.time, self.closed = right, discrete, time, False
        self.action_space = Choice(3) if discrete else Box([[0.0]], [[2.0]])

    def reset(self, *, seed=None):
        assert 0 <= seed < 2**31
        self.pulls, self.over = 0, False
        return np.array([1.0], np.float32), {}

    def step(self, action):
        assert not self.over
        if self.discrete:
            assert type(action) is int
            reward = float(action == self.right)
        else:
            assert action.shape == (1, 1)
            assert action.dtype == np.float32
            assert 0 <= action.item() <= 2
            reward = -abs(action.item() - self.right)
        self.pulls += 1
        self.over = self.pulls == self.time
        return np.array([1.0], np.float32), reward, False, self.over, {}


@pytest.mark.parametrize("right", [0, 1, 2])
def test_a_policy_of_choices_adapts_to_an_environment(right):
    torch.manual_seed(0)
    module = MAMLRLModule(CategoricalPolicy(1, 3), inner_lr=2.0, inner_steps=5)
    before = {name: p.clone() for name, p in module.state_dict().items()}
    policy = module.adapt_to(Lever(right), episodes=10, horizon=20)
    chosen = policy(np.ones(1, np.float32))
    assert chosen == right
    assert type(chosen) is int  # which Discrete.contains
    assert isinstance(policy(np.ones((7, 1))), np.ndarray)
    assert policy(torch.ones(7, 1)).tolist() == [right] * 7
    drawn = policy(torch.ones(2, 1), torch.tensor([[0.0], [0.999]]))
    assert drawn.shape == (2,)
    assert all(torch.equal(p, before[name]) for name, p in module.state_dict().items())
    assert not any(p.requires_grad for p in policy.parameters())
    again = module.adapt_to(Lever(right), episodes=10, horizon=20)
    for one, other in zip(policy.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("made", [MAMLRLModule, ReptileRLModule, MetaLSTMRLModule])
def test_every_module_adapts_a_policy_of_real_numbers(made):
    torch.manual_seed(0)
    module = made(GaussianPolicy(1, 1, std=0.5), inner_steps=3)
    policy = module.adapt_to(Lever(1.8, discrete=False), horizon=4, episodes=20)
    start = module.adapt_to(Lever(1.8, discrete=False), horizon=4, steps=0)
    assert start(torch.ones(1)).shape == (1,)
    assert start([1.0]).dtype == start(np.ones(1)).dtype == np.float32
    assert policy(torch.ones(1)) > start(torch.ones(1)) + 0.1  # in the environment's unit, towards the right


def test_environments_of_a_suite_adapt_as_in_evaluation():
    """By hand from what is acted, and the same policy as the learned parameters give."""
    module = navigator()
    data = module.sampler.data
    environments = data.suites["test"].environments([0], 5)
    policy = module.adapt_to(environments, episodes=5)
    batch = collected(module, [0], "test", training=False)  # number 0 of the test split has the same random numbers
    params = {name: p.detach() for name, p in module.network.named_parameters()}
    for step in range(2):
        data = module.support_data(batch, {}, step)
        leaves = {name: p.requires_grad_() for name, p in params.items()}
        predictions = torch.func.functional_call(module.network, leaves, data.inputs[0])
        targets = type(data.targets)(*(t[0] for t in data.targets))
        grads = torch.autograd.grad(module.inner_loss(predictions, targets), list(leaves.values()))
        params = {name: (p - 0.1 * g).detach() for (name, p), g in zip(leaves.items(), grads, strict=True)}
    for name, found in policy.network.named_parameters():
        torch.testing.assert_close(found, params[name], rtol=1e-9, atol=1e-10)
    seen = torch.randn(3, 2, dtype=torch.float64)
    mean = torch.func.functional_call(module.network, params, seen).mean
    torch.testing.assert_close(policy(seen), 0.1 * mean.clamp(-1, 1))


def test_one_environment_is_not_stepped_after_its_end():
    one = OneEnvironment(Lever(0, time=2), 5)
    one.reset(np.zeros((1, 1), np.uint64))
    rewards = [one.step(torch.tensor([[0]])) for _ in range(5)]
    assert [bool(after.terminated) for after in rewards] == [False, True, True, True, True]


def test_what_cannot_be_adapted_to_is_said():
    module = MAMLRLModule(CategoricalPolicy(1, 3))
    with pytest.raises(ValueError, match="Give horizon"):
        module.adapt_to(Lever(0))
    with pytest.raises(ValueError, match="episodes must be at least 1, got 0"):
        module.adapt_to(Lever(0), episodes=0, horizon=3)
    with pytest.raises(ValueError, match=r"observations, of shape \(1,\): RuntimeError.* needs observation_size=1"):
        MAMLRLModule(CategoricalPolicy(2, 3)).adapt_to(Lever(0), horizon=3)
    generous = Lever(0)
    generous.step = lambda action: (np.ones(1), np.ones(2), False, False, {})
    with pytest.raises(DataError, match=r"returned the reward array\(\[1., 1.\]\), which has to be one number"):
        module.adapt_to(generous, horizon=3)
    with pytest.raises(ValueError, match="needs an observation_space and an action_space"):
        module.adapt_to(object(), horizon=3)
    with pytest.raises(ValueError, match="Use a CategoricalPolicy"):
        MAMLRLModule(GaussianPolicy(1, 1)).adapt_to(Lever(0), horizon=3)
    other = Lever(0)
    other.action_space = Choice(3, start=1)
    with pytest.raises(ValueError, match="a Box or a Discrete from 0"):
        module.adapt_to(other, horizon=3)
    other.observation_space = {"a": 1}
    with pytest.raises(ValueError, match="FlattenObservation"):
        module.adapt_to(other, horizon=3)
    policy = module.adapt_to(Lever(0), horizon=3)
    with pytest.raises(ValueError, match=r"Observations must be \(1,\) or many of such, got \(3, 2\)"):
        policy(torch.zeros(3, 2))
    assert isinstance(Corridor(torch.zeros(1), 1).spaces.observation, tuple)
