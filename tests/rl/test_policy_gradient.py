"""The value, the gradient and the expected second derivatives of the policy's loss, by enumeration; masks."""

import itertools

import pytest
import torch

from lightning_meta.functional.losses import losses_of_tasks
from lightning_meta.rl import CategoricalActions, Experience, GaussianActions, PolicyGradient
from tests.rl.test_trajectories import trajectories, with_other_padding

REWARDS = torch.tensor([1.0, -0.5, 2.0], dtype=torch.float64)
START = torch.tensor([0.3, -0.2, 0.4], dtype=torch.float64)


def experience(actions, log_probabilities, advantages):
    """One episode."""
    actions = torch.tensor([actions])
    advantages = torch.as_tensor(advantages, dtype=torch.float64).view(actions.shape)
    return Experience(
        actions, log_probabilities.view(actions.shape), advantages, torch.ones_like(actions, dtype=torch.bool),
        advantages[:, 0], torch.zeros(1),
    )  # fmt: skip


def bandit(kind, old=START):
    """The expected objective of a three-armed bandit, as a function of the logits: the sum over all that may happen."""
    loss, shares = PolicyGradient(kind), old.softmax(0)

    def expected(logits):
        total = 0
        for arm in range(3):
            done = experience([arm], shares[arm].log(), REWARDS[arm])
            total = total - shares[arm] * loss(CategoricalActions(logits.view(1, 1, 3)), done)
        return total

    return expected


def expected_return(logits):
    return (logits.softmax(0) * REWARDS).sum()


def derivatives(function, at):
    return [torch.autograd.functional.jacobian(function, at), torch.autograd.functional.hessian(function, at)]


@pytest.mark.parametrize("kind", ["ratio", "dice"])
def test_the_expected_hessian_on_a_bandit_is_that_of_the_expected_return(kind):
    for found, expected in zip(derivatives(bandit(kind), START), derivatives(expected_return, START), strict=True):
        assert (found - expected).abs().max() < 1e-10
        assert expected.abs().max() > 0.01


def test_the_score_has_the_gradient_but_not_the_hessian():
    (gradient, hessian), (right, right_hessian) = (derivatives(f, START) for f in (bandit("score"), expected_return))
    assert (gradient - right).abs().max() < 1e-10
    assert (hessian - right_hessian).abs().max() > 0.1 * right_hessian.abs().max()


def test_the_ratio_is_right_for_a_policy_that_has_moved_since_it_acted():
    moved = START + torch.tensor([0.5, -0.7, 0.1], dtype=torch.float64)
    for found, expected in zip(derivatives(bandit("ratio"), moved), derivatives(expected_return, moved), strict=True):
        assert (found - expected).abs().max() < 1e-10


@pytest.mark.parametrize("kind", ["dice", "ratio", "score"])
def test_derivatives_over_two_steps_whose_rewards_depend_on_both_actions(kind):
    """By enumeration of the nine episodes of a task that remembers the first action."""
    rewards = torch.randn(2, 3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    at = torch.randn(12, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    loss = PolicyGradient(kind)

    def policy(parameters, first):
        return torch.stack([parameters[:3], parameters[3 * (first + 1) : 3 * (first + 2)]]).view(1, 2, 3)

    def episodes(parameters):
        for first, second in itertools.product(range(3), repeat=2):
            actions = CategoricalActions(policy(parameters, first))
            log = actions.log_probabilities(torch.tensor([[first, second]]))
            reward = torch.stack([rewards[0, first, 0], rewards[1, first, second]])
            yield [first, second], actions, log, reward

    def true(parameters):
        return sum(log.sum().exp() * reward.sum() for _, _, log, reward in episodes(parameters)) / 2  # of a step

    acted = [(log.detach(), log.sum().exp().detach()) for _, _, log, _ in episodes(at)]

    def expected(parameters):
        total = 0
        for (old, share), (done, actions, _, reward) in zip(acted, episodes(parameters), strict=True):
            total = total - share * loss(actions, experience(done, old, torch.stack([reward.sum(), reward[1]])))
        return total

    (gradient, hessian), (right, right_hessian) = derivatives(expected, at), derivatives(true, at)
    assert (gradient - right).abs().max() < 1e-10
    assert ((hessian - right_hessian).abs().max() < 1e-10) == (kind == "dice")


def gaussian(given, seed=3):
    mean = torch.randn(given.actions.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return mean, torch.full_like(mean, -0.3)


def targets(given):
    return given.examples(given.rewards.sin()).targets


@pytest.mark.parametrize("loss", [PolicyGradient(k, entropy=0.1) for k in ("ratio", "score", "dice")], ids=str)
def test_the_value_is_minus_the_return_and_padding_changes_nothing(loss):
    given = trajectories()
    found = []
    for each in (given, with_other_padding(given)):
        means, log_std = (t.requires_grad_() for t in gaussian(given))
        losses = losses_of_tasks(loss, GaussianActions(means, log_std), targets(each))
        torch.testing.assert_close(losses, -given.returns.mean(1), rtol=1e-12, atol=0)
        grads = torch.autograd.grad(losses.sum(), (means, log_std), create_graph=True)
        twice = torch.autograd.grad(grads[0].square().sum(), means)
        found.append([*grads, *twice])
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)
        assert not one[~given.mask].any()
        assert one[given.mask].abs().max() > 1e-3


def test_the_gradient_is_that_of_the_formula():
    given = trajectories(count=1)
    mean, log_std = gaussian(given)
    done = targets(given)
    mean.requires_grad_()
    loss = losses_of_tasks(PolicyGradient(clip=0.3, entropy=0.5), GaussianActions(mean, log_std), done).sum()
    (found,) = torch.autograd.grad(loss, mean)
    normal = torch.distributions.Normal(mean, log_std.exp())
    ratio = (normal.log_prob(done.actions).sum(-1) - done.log_probabilities).exp()
    clipped = torch.minimum(ratio * done.advantages, ratio.clamp(0.7, 1.3) * done.advantages)
    (expected,) = torch.autograd.grad(-clipped[given.mask].mean(), mean)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    assert (found == 0).all(-1)[given.mask].any()  # some are clipped, others are not
    assert found[given.mask].any()


def test_the_entropy_is_climbed():
    done = targets(trajectories(count=1))
    done = done._replace(advantages=torch.zeros_like(done.advantages))
    mean, log_std = gaussian(trajectories(count=1))
    log_std.requires_grad_()
    losses_of_tasks(PolicyGradient(entropy=0.5), GaussianActions(mean, log_std), done).sum().backward()
    torch.testing.assert_close(log_std.grad.sum(), torch.tensor(-0.5 * 2, dtype=torch.float64))


def test_what_makes_no_sense_is_refused():
    with pytest.raises(ValueError, match="'ratio', 'score' or 'dice', got 'a2c'"):
        PolicyGradient("a2c")
    with pytest.raises(ValueError, match=r"clip=0\.2 must be above 0, and of kind='ratio'"):
        PolicyGradient("dice", clip=0.2)
    with pytest.raises(ValueError, match="clip=0 must be above 0"):
        PolicyGradient(clip=0)
    with pytest.raises(ValueError, match="entropy must be 0 or more, got -1"):
        PolicyGradient(entropy=-1)
