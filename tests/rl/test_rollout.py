"""Acting: against a loop over single episodes, masks, what is random, and environments that misbehave."""

import numpy as np
import pytest
import torch

from lightning_meta.rl import (
    Box,
    CategoricalActions,
    Discrete,
    GaussianActions,
    GaussianPolicy,
    PolicySpaces,
    RandomPolicy,
    Transition,
)
from lightning_meta.rl.navigation import NavigationSuite
from lightning_meta.rl.policies import CategoricalPolicy
from lightning_meta.rl.rollout import Chance, chance, check_actions, rollout
from tests.rl.worlds import Corridor

LIKE = torch.zeros(1, dtype=torch.float64)
GOALS = torch.tensor([-2.0, 2.0, 0.2], dtype=torch.float64)


def corridor(discrete=False, episodes=5, made=Corridor, goals=GOALS):
    return made(goals, episodes, discrete)


def acted(environments, policy, numbers=(3, 8, 20), step=0, episodes=5):
    random = chance(0, "train", numbers, step, episodes, environments.spaces, environments.horizon)
    return rollout(environments, policy, random, LIKE, numbers), random


@pytest.mark.parametrize("discrete", [False, True])
def test_it_is_what_each_episode_alone_would_be(discrete):
    torch.manual_seed(0)
    policy = (CategoricalPolicy(3, 2) if discrete else GaussianPolicy(3, 1, std=1.0)).double()
    found, random = acted(corridor(discrete), policy)
    lengths = set()
    for b, e in np.ndindex(3, 5):
        one = corridor(discrete, 1, goals=GOALS[b : b + 1])
        seen, rewards = one.reset(random.seeds[b : b + 1, e : e + 1]), []
        for t in range(12):
            predictions = policy(seen)
            action = predictions.sample(random.noise[b : b + 1, e : e + 1, t])
            torch.testing.assert_close(found.observations[b, e, t], seen[0, 0])
            torch.testing.assert_close(found.actions[b, e, t], action[0, 0])
            torch.testing.assert_close(found.log_probabilities[b, e, t], predictions.log_probabilities(action)[0, 0])
            after = one.step(one.spaces.environment_actions(action))
            seen = after.observations
            rewards.append(float(after.rewards))
            if bool(after.terminated):
                break
        length = len(rewards)
        lengths.add(length)
        assert found.mask[b, e].tolist() == [True] * length + [False] * (12 - length)
        assert found.rewards[b, e, :length].tolist() == pytest.approx(rewards)
        assert found.returns[b, e].item() == pytest.approx(sum(rewards))
        assert found.success[b, e] == float(after.success)
        for padded in (found.rewards, found.actions, found.log_probabilities):
            assert not padded[b, e, length:].any()
        assert (found.observations[b, e, length:] == found.observations[b, e, length - 1]).all()
    assert len(lengths) > 2


def test_it_stops_when_all_episodes_have_ended():
    environments = corridor(goals=torch.zeros(3, dtype=torch.float64))
    environments.horizon = 500
    found, _ = acted(environments, lambda seen: GaussianActions(-seen[..., :1], 0 * seen[..., :1] - 3))
    assert environments.steps < 500
    assert found.mask.shape == (3, 5, 500)
    assert found.observations.shape == (3, 5, 500, 3)
    assert found.mask.any(2).all()


def test_what_is_random_follows_from_seed_split_number_and_inner_step():
    spaces = PolicySpaces((2,), Box((-1.0, -1.0), (1.0, 1.0)))
    reference = chance(0, "train", [4, 9], 1, 3, spaces, 6)
    alone = chance(0, "train", [9], 1, 3, spaces, 6)
    assert reference.noise.shape == (2, 3, 6, 2)
    assert torch.equal(reference.noise[1], alone.noise[0])
    assert (reference.seeds[1] == alone.seeds[0]).all()
    assert len(np.unique(reference.seeds)) == 6
    others = [chance(1, "train", [9], 1, 3, spaces, 6), chance(0, "val", [9], 1, 3, spaces, 6)]
    others += [chance(0, "train", [9], 2, 3, spaces, 6), chance(0, "train", [8], 1, 3, spaces, 6)]
    for other in others:
        assert not (other.noise == alone.noise).any()
        assert not (other.seeds == alone.seeds).any()
    assert chance(0, "train", [9], 1, 3, PolicySpaces((2,), Discrete(5)), 6).noise.shape == (1, 3, 6, 1)


def test_a_task_of_navigation_is_a_function_of_its_number():
    suite = NavigationSuite("val", horizon=7)
    goals = suite.goals([5, 0, 77])
    assert torch.equal(goals[2], suite.goals([77])[0])
    assert goals.abs().max() <= 0.5
    assert not torch.equal(NavigationSuite("train").goals([5]), suite.goals([5]))


def test_navigation_moves_by_at_most_a_tenth_and_ends_at_the_goal():
    suite = NavigationSuite("val", horizon=10)
    environments = suite.environments([3], 2)
    environments.reset(np.zeros((1, 2), np.uint64))
    goal = suite.goals([3])[0]
    total, before = torch.zeros(1, 2, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
    for _ in range(10):
        wanted = torch.stack([goal - before, torch.zeros_like(goal)]).unsqueeze(0) * 10  # straight, and not at all
        after = environments.step(suite.spaces.environment_actions(wanted))
        assert (after.observations[0, 0] - before).abs().max() <= 0.1 + 1e-12
        before = after.observations[0, 0]
        assert after.rewards[0, 0].item() == pytest.approx(-float((before - goal).norm()))
        total += after.rewards
    assert after.terminated.tolist() == [[True, False]]
    assert total[0, 1].item() == pytest.approx(-10 * float(goal.norm()))
    still = environments.step(torch.ones(1, 2, 2))
    assert torch.equal(still.observations[0, 0], before)


class Broken(Corridor):
    """Breaks in the third step in a way that is set."""

    way = "reward"

    def step(self, actions):
        after = super().step(actions)
        if self.steps != 3:
            return after
        if self.way == "shape":
            return after._replace(observations=after.observations[..., :2])
        name = "rewards" if self.way == "reward" else "observations"
        values = getattr(after, name).clone()
        values[1, 2] = torch.nan
        return after._replace(**{name: values})


@pytest.mark.parametrize(
    ("way", "message"),
    [
        ("reward", "Task 8: the reward at step 2 of episode 2 is not finite"),
        ("observation", "Task 8: the observation at step 3 of episode 2 is not finite"),
        ("shape", r"gave observations \(3, 5, 2\), not \(3, 5, 3\)"),
    ],
)
def test_what_environments_do_wrong_is_named(way, message, monkeypatch):
    monkeypatch.setattr(Broken, "way", way)
    with pytest.raises(RuntimeError, match=message):
        acted(corridor(made=Broken, goals=10 * GOALS), RandomPolicy(action_size=1).double())


def test_policies_that_do_not_suit_the_actions_are_refused():
    box, choice = corridor().spaces, corridor(True).spaces
    for policy, spaces, message in [
        (CategoricalPolicy(3, 2), box, "returned CategoricalActions. Use a GaussianPolicy"),
        (GaussianPolicy(3, 1), choice, "returned GaussianActions. Use a CategoricalPolicy"),
        (GaussianPolicy(3, 2), box, "returned 2 numbers. Give it action_size=1"),
        (CategoricalPolicy(3, 4), choice, "returned 4 numbers. Give it choices=2"),
        (RandomPolicy(choices=2), box, "Use a GaussianPolicy"),
    ]:
        with pytest.raises(ValueError, match=message):
            check_actions(policy(torch.zeros(1, 3)), spaces)
    with pytest.raises(TypeError, match=r"The policy returned a Tensor\. It has to say how to act"):
        check_actions(torch.nn.Linear(3, 1)(torch.zeros(1, 3)), box)
    with pytest.raises(FloatingPointError, match="actions are not finite at step 0"):
        acted(corridor(), lambda seen: GaussianActions(seen[..., :1] * torch.nan, seen[..., :1]))


def test_policies():
    torch.manual_seed(0)
    policy = GaussianPolicy(3, 2, std=0.7, min_std=0.1)
    actions = policy(torch.randn(4, 5, 3))
    assert actions.mean.shape == actions.log_std.shape == (4, 5, 2)
    torch.testing.assert_close(actions.log_std.exp(), torch.full((4, 5, 2), 0.7))
    with torch.no_grad():
        policy.log_std -= 100
    torch.testing.assert_close(policy(torch.randn(1, 3)).log_std.exp(), torch.full((1, 2), 0.1))
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(8, 2))
    of_images = GaussianPolicy(action_size=2, network=network, observation_dims=3)
    images = torch.randn(4, 5, 2, 2, 2)
    torch.testing.assert_close(of_images(images).mean[1, 2], network(images[1, 2].unsqueeze(0))[0])
    assert RandomPolicy(choices=3)(torch.zeros(7, 2)).logits.shape == (7, 3)
    for wrong, message in [
        (lambda: GaussianPolicy(std=0.1, min_std=0.2), "std must be above min_std"),
        (lambda: GaussianPolicy(hidden=(0,)), "at least 1"),
        (lambda: GaussianPolicy(activation="sine"), "one of tanh, relu, got 'sine'"),
        (lambda: RandomPolicy(), "Give action_size or choices"),
    ]:
        with pytest.raises(ValueError, match=message):
            wrong()


def test_transitions_need_no_success():
    class Silent(Corridor):
        def step(self, actions):
            return Transition(*super().step(actions)[:3])

    found, _ = acted(corridor(made=Silent), RandomPolicy(action_size=1).double())
    assert (found.success == -1).all()
    assert isinstance(acted(corridor(), RandomPolicy(action_size=1).double())[1], Chance)


class OneBuffer(Corridor):
    """Writes each step into what it returned before, as many simulators do."""

    def observations(self):
        if not hasattr(self, "buffer"):
            self.buffer, self.paid = super().observations(), torch.zeros_like(self.at)
        return self.buffer.copy_(super().observations())

    def step(self, actions):
        after = super().step(actions)
        return after._replace(rewards=self.paid.copy_(after.rewards))


def test_environments_may_use_one_buffer():
    torch.manual_seed(0)
    policy = GaussianPolicy(3, 1).double()
    (found, _), (expected, _) = acted(corridor(made=OneBuffer), policy), acted(corridor(), policy)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_forbidden_choices_have_a_finite_entropy():
    logits = torch.tensor([0.0, 0.0, -torch.inf], requires_grad=True)
    entropy = CategoricalActions(logits).entropies()
    assert entropy.item() == pytest.approx(np.log(2))
    entropy.backward()
    assert torch.isfinite(logits.grad).all()
