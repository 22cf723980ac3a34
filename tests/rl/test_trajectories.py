"""Returns, baselines and advantages, against loops written out and least squares of NumPy; what is masked."""

import numpy as np
import pytest
import torch

from lightning_meta.rl.trajectories import (
    Trajectories,
    discounted_sums,
    generalized_advantages,
    linear_baseline,
    normalized,
)


def trajectories(count=3, episodes=6, steps=9, size=4, seed=0):
    """Episodes of random lengths, at least one step each, with rubbish in the padding."""
    g = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    lengths = torch.randint(1, steps + 1, (count, episodes, 1), generator=g)
    mask = torch.arange(steps) < lengths
    return Trajectories(
        3 * normal(count, episodes, steps, size), normal(count, episodes, steps, 2), normal(count, episodes, steps),
        mask, normal(count, episodes, steps), torch.zeros(count, episodes),
    )  # fmt: skip


def with_other_padding(given):
    def other(t):
        mask = given.mask.view(*given.mask.shape, *(1,) * (t.dim() - 3))
        return torch.where(mask, t, torch.full_like(t, 123.0))

    return given._replace(
        observations=other(given.observations), actions=other(given.actions), rewards=other(given.rewards),
        log_probabilities=other(given.log_probabilities),
    )  # fmt: skip


def advantages_by_hand(rewards, values, discount, decay):
    """From the definition: a weighted mean of the estimates that look 1, 2, ... steps ahead, one episode at a time."""
    length, found = len(rewards), []
    values = [*values, 0.0]
    for t in range(length):
        ahead = []
        for n in range(1, length - t + 1):
            ahead.append(sum(discount**k * rewards[t + k] for k in range(n)) + discount**n * values[t + n] - values[t])
        weights = [(1 - decay) * decay ** (n - 1) for n in range(1, length - t)] + [decay ** (length - t - 1)]
        found.append(sum(w * a for w, a in zip(weights, ahead, strict=True)))
    return found


@pytest.mark.parametrize(("discount", "decay"), [(0.99, 0.95), (1.0, 1.0), (0.9, 0.0), (0.5, 0.3)])
def test_advantages_are_those_of_the_definition(discount, decay):
    given = trajectories()
    values = torch.randn(given.mask.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = generalized_advantages(given.rewards, values, given.mask, discount, decay)
    for b, e in np.ndindex(3, 6):
        length = int(given.mask[b, e].sum())
        expected = advantages_by_hand(
            given.rewards[b, e, :length].tolist(), values[b, e, :length].tolist(), discount, decay
        )
        np.testing.assert_allclose(found[b, e, :length], expected, rtol=1e-12, atol=1e-12)
        assert not found[b, e, length:].any()


def test_discounted_sums_are_those_of_a_loop():
    values = torch.randn(5, 30, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected, total = [], torch.zeros(5, dtype=torch.float64)
    for column in reversed(values.unbind(1)):
        total = column + 0.97 * total
        expected.append(total)
    torch.testing.assert_close(discounted_sums(values, 0.97), torch.stack(expected[::-1], 1), rtol=1e-12, atol=1e-12)


def test_the_baseline_is_the_least_squares_fit_of_each_task_alone():
    given = trajectories(steps=20, episodes=10)
    found = linear_baseline(given, 0.9, ridge=1e-5)
    assert found.shape == given.mask.shape
    for b in range(3):
        rows, wanted = [], []
        for e in range(10):
            length = int(given.mask[b, e].sum())
            for t in range(length):
                s, tau = np.clip(given.observations[b, e, t].numpy(), -10, 10), t / 100
                rows.append(np.concatenate([s, s**2, [tau, tau**2, tau**3, 1.0]]))
                wanted.append(sum(0.9**k * float(given.rewards[b, e, t + k]) for k in range(length - t)))
        rows, wanted, width = np.array(rows), np.array(wanted), rows[0].size
        # A ridge is a least squares problem with a row for each weight.
        penalty = np.sqrt(1e-5 * len(rows)) * np.eye(width)
        weights, *_ = np.linalg.lstsq(np.vstack([rows, penalty]), np.append(wanted, np.zeros(width)), rcond=None)
        np.testing.assert_allclose(found[b][given.mask[b]], rows @ weights, rtol=1e-7, atol=1e-7)
    assert not found[~given.mask].any()


def test_normalized_advantages_have_mean_0_and_variance_1_in_each_task():
    given = trajectories()
    found = normalized(given.rewards, given.mask)
    for b in range(3):
        own = found[b][given.mask[b]]
        assert abs(own.mean()) < 1e-12
        assert abs(own.var(correction=0) - 1) < 1e-6
    assert not found[~given.mask].any()
    alike = normalized(torch.full_like(given.rewards, 2.0), given.mask)
    assert torch.isfinite(alike).all()
    assert alike.abs().max() < 1e-6


def test_what_stands_after_the_end_of_an_episode_changes_nothing():
    one = trajectories()
    other = with_other_padding(one)
    assert not torch.equal(one.rewards, other.rewards)
    assert torch.equal(one.returns, other.returns)
    values = [linear_baseline(given, 0.99) for given in (one, other)]
    assert torch.equal(*values)
    advantages = [
        generalized_advantages(given.rewards, value + 5 * ~given.mask * (i + 1), given.mask, 0.99, 0.95)
        for i, (given, value) in enumerate(zip((one, other), values, strict=True))
    ]
    assert torch.equal(*advantages)
    assert torch.equal(*(normalized(a + 7 * i * ~one.mask, one.mask) for i, a in enumerate(advantages)))
