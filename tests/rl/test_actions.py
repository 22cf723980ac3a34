"""Distributions over actions, against torch's, and what is drawn of them."""

import math

import pytest
import torch

from lightning_meta.randomness import uniforms
from lightning_meta.rl import Actions, CategoricalActions, GaussianActions, UniformActions


def test_gaussian_actions_are_torchs_normal_distribution():
    torch.manual_seed(0)
    mean, log_std = torch.randn(2, 5, 3, dtype=torch.float64)
    expected = torch.distributions.Normal(mean, log_std.exp())
    found, actions = GaussianActions(mean, log_std), torch.randn(5, 3, dtype=torch.float64)
    torch.testing.assert_close(found.log_probabilities(actions), expected.log_prob(actions).sum(-1))
    torch.testing.assert_close(found.entropies(), expected.entropy().sum(-1))
    u = torch.rand(5, 3, dtype=torch.float64)
    torch.testing.assert_close(found.sample(u), expected.icdf(u))
    assert torch.equal(found.mode(), mean)


def test_categorical_actions_are_torchs():
    torch.manual_seed(0)
    logits = torch.randn(5, 4, dtype=torch.float64)
    expected, found = torch.distributions.Categorical(logits=logits), CategoricalActions(logits)
    actions = torch.tensor([0, 3, 1, 2, 2])
    torch.testing.assert_close(found.log_probabilities(actions), expected.log_prob(actions))
    torch.testing.assert_close(found.entropies(), expected.entropy())
    drawn = CategoricalActions(logits[:1].expand(20000, 4)).sample(
        torch.from_numpy(uniforms(0, "val", range(20000), 1))
    )
    shares = torch.bincount(drawn, minlength=4) / 20000
    torch.testing.assert_close(shares, logits[0].softmax(0).float(), atol=0.015, rtol=0)
    assert torch.equal(found.mode(), logits.argmax(-1))


def test_the_ends_of_the_interval_are_drawn_finite():
    ends = torch.tensor([[0.0, 1 - 2.0**-53]], dtype=torch.float64)
    for dtype in (torch.float32, torch.float64):
        drawn = GaussianActions(torch.zeros(1, 2, dtype=dtype), torch.zeros(1, 2, dtype=dtype)).sample(ends)
        assert drawn.dtype == dtype
        assert drawn.abs().min() > 7
        assert drawn.abs().max() < 9
    logits = torch.tensor([[0.0, -1.0, -100.0]])
    assert CategoricalActions(logits).sample(ends[:, 1:]).item() in (1, 2)
    assert CategoricalActions(logits).sample(ends[:, :1]).item() == 0


def test_uniform_actions_fill_the_box():
    actions = UniformActions(torch.zeros(2, 3))
    assert actions.sample(torch.tensor([[0.0, 0.5, 0.75]]).double()).tolist() == [[-1.0, 0.0, 0.5]]
    assert actions.entropies()[0].item() == pytest.approx(3 * math.log(2))
    assert actions.log_probabilities(torch.zeros(2, 3))[0].item() == pytest.approx(-3 * math.log(2))


def test_all_are_actions():
    for actions in (GaussianActions(*torch.zeros(2, 1, 1)), CategoricalActions(torch.zeros(1, 2))):
        assert isinstance(actions, Actions)
    assert isinstance(UniformActions(torch.zeros(1, 2)), Actions)
