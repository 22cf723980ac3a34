"""Shared fixtures: small tasks, and the real data where it is at hand."""

import logging
import os
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch.func import functional_call

from lightning_meta import Examples, Task
from lightning_meta.task import map_tensors

DEVICE = "cpu"
"""Where the sweeps of layers and random networks compute; `--device` sets it."""


def pytest_addoption(parser):
    parser.addoption("--all-cases", action="store_true", help="Every algorithm in every way on many processes.")
    parser.addoption("--all-layers", action="store_true", help="Every layer of torch with its options.")
    parser.addoption("--device", default="cpu", help="Where the sweeps of layers and random networks compute.")
    parser.addoption("--kills", type=int, default=2, help="How many trainings of each algorithm to kill.")
    parser.addoption("--fuzz-examples", type=int, default=25, help="How many configurations to try.")
    parser.addoption("--random-networks", type=int, default=20, help="How many random networks to try.")
    parser.addoption("--endurance-steps", type=int, default=3000, help="How long to look at the memory.")


def pytest_configure(config):
    global DEVICE
    DEVICE = config.getoption("device")


def on_device(tensors):
    """A module, or any nesting of tensors, where `--device` says."""
    if isinstance(tensors, torch.nn.Module):
        return tensors.to(DEVICE)
    return map_tensors(lambda t: t.to(DEVICE), tensors)


@pytest.fixture(autouse=True, scope="session")
def _threads():
    torch.set_num_threads(1 if "PYTEST_XDIST_WORKER" in os.environ else 2)


@pytest.fixture(autouse=True)
def _what_is_logged():
    """Scripts silence Lightning, which other tests listen to."""
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    yield
    logger.setLevel(level)


@pytest.fixture
def omniglot_root() -> Path:
    root = os.environ.get("LIGHTNING_META_DATA")
    if not root:
        pytest.skip("LIGHTNING_META_DATA is not set: it is the folder that holds omniglot-py/")
    return Path(root)


def image_tasks(tasks=4, n_way=3, k_shot=2, n_query=3, channels=1, size=8, dtype=torch.float64, seed=0) -> Task:
    """Random images; class by class, as the data modules make them."""
    generator = torch.Generator().manual_seed(seed)

    def examples(shots):
        inputs = torch.randn(tasks, n_way * shots, channels, size, size, generator=generator, dtype=dtype)
        return Examples(inputs, torch.arange(n_way).repeat_interleave(shots).expand(tasks, -1))

    return Task(examples(k_shot), examples(n_query))


def vector_tasks(tasks=4, n_way=3, k_shot=2, n_query=3, features=6, dtype=torch.float64, seed=0) -> Task:
    """Random vectors."""
    images = image_tasks(tasks, n_way, k_shot, n_query, features, 1, dtype, seed)
    return Task(*(part._replace(inputs=part.inputs.flatten(2)) for part in images))


def relative_error(found, expected) -> float:
    found, expected = (torch.cat([t.flatten() for t in tensors]) for tensors in (found, expected))
    return ((found - expected).norm() / expected.norm()).item()


def meta_gradient_by_hand(network, tasks, rate, steps=2):
    """Of MAML with gradient descent, in plain torch: a gradient for each parameter that is not frozen."""
    params = {name: p for name, p in network.named_parameters() if p.requires_grad}
    losses = []
    for (inputs, targets), (queries, labels) in pairs(tasks):
        own = params
        for _ in range(steps):
            loss = F.cross_entropy(functional_call(network, own, inputs), targets)
            grads = torch.autograd.grad(loss, list(own.values()), create_graph=True)
            own = {name: p - rate * g for (name, p), g in zip(own.items(), grads, strict=True)}
        losses.append(F.cross_entropy(functional_call(network, own, queries), labels))
    return torch.autograd.grad(sum(losses) / len(losses), list(params.values()))


def pairs(tasks):
    """Each task by itself: ((support inputs, targets), (query inputs, targets))."""
    return zip(zip(*tasks.support[:2], strict=True), zip(*tasks.query[:2], strict=True), strict=True)
