"""Sine waves."""

import numpy as np
import torch

from lightning_meta.datasets import SinusoidTasks


def test_tasks_are_sine_waves_of_the_papers_ranges():
    task = SinusoidTasks("train", k_shot=40, n_query=40).tasks(range(300))
    x = torch.cat([task.support.inputs, task.query.inputs], 1).double().numpy()[..., 0]
    y = torch.cat([task.support.targets, task.query.targets], 1).double().numpy()[..., 0]
    amplitudes, phases = [], []
    for xs, ys in zip(x, y, strict=True):
        # a sin(x - p) = (a cos p) sin x - (a sin p) cos x: a linear fit must leave nothing
        basis = np.stack([np.sin(xs), -np.cos(xs)], 1)
        (c, s), *_ = np.linalg.lstsq(basis, ys, rcond=None)
        np.testing.assert_allclose(basis @ [c, s], ys, atol=1e-5)
        amplitudes.append(np.hypot(c, s))
        phases.append(np.arctan2(s, c))
    assert 0.1 <= min(amplitudes) < 0.3
    assert 4.8 < max(amplitudes) <= 5.0 + 1e-6
    assert -1e-6 <= min(phases) < 0.1
    assert np.pi - 0.1 < max(phases) <= np.pi + 1e-6
    assert -5 <= x.min() < -4.95
    assert 4.95 < x.max() <= 5


def test_number_and_split_make_the_task():
    train, val = (SinusoidTasks(split, 5, 5) for split in ("train", "val"))
    together = train.tasks([3, 4])
    assert torch.equal(train.tasks([4]).query.targets[0], together.query.targets[1])
    assert not torch.equal(val.tasks([4]).query.targets[0], together.query.targets[1])
