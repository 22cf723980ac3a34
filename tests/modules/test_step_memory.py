"""What bounds the memory of an outer step, each measured in a process of its own."""

import json
import os
import subprocess
import sys

import pytest
import torch

from lightning_meta import MAMLModule
from lightning_meta.inner import Adam, MetaSGD
from tests.conftest import image_tasks, relative_error
from tests.modules.test_contracts import meta_gradient
from tests.networks import network

CODE = """
import json, os, re, sys, torch
from pathlib import Path
from lightning_meta import Conv4, Examples, MAMLModule, Task
torch.set_num_threads(1)
resident = lambda key: int(re.search(key + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024
for tasks, steps, way, recompute in json.loads(sys.argv[1]):
    if os.fork():  # a process of its own for each case
        os.wait()
        continue
    labels = torch.arange(5).expand(tasks, -1).contiguous()
    batch = Task(*(Examples(torch.rand(tasks, 5, 1, 28, 28), labels) for _ in range(2)))
    module = MAMLModule(Conv4(5), 0.01, steps, task_parallel=way, checkpoint_inner_steps=recompute)
    before = resident("VmRSS")
    for _ in range(2):
        module.zero_grad()
        module.meta_loss(batch).backward()
    print(resident("VmHWM") - before, flush=True)
    os._exit(0)
"""

on_linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is read from /proc")


def memory(*cases):
    """MiB at the peak of outer steps of each case, (tasks, inner steps, way, whether steps are computed again).

    With the allocator as it comes: what it keeps is no need.
    """
    environment = os.environ | {"LIGHTNING_META_KEEP_MEMORY": "0"}
    command = [sys.executable, "-c", CODE, json.dumps(cases)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return [float(line) for line in done.stdout.split()]


@on_linux
def test_the_memory_of_a_loop_does_not_grow_with_the_tasks():
    *found, together = memory(*((n, 1, way, False) for way in ("loop", 1) for n in (4, 64)), (16, 1, "vmap", False))
    print(found)
    assert max(found) <= 1.1 * min(found)
    assert together > 2 * max(found)  # what is measured is the step


@on_linux
def test_checkpointed_inner_steps_bound_the_memory_of_many():
    cases = [(8, 2, "vmap", False), (8, 10, "vmap", True), (8, 10, "vmap", False)]
    # The allocator adds to what a step needs, now more and now less.
    two, ten, kept = map(min, zip(memory(*cases), memory(*cases), strict=True))
    print(f"2 steps {two:.0f} MiB, 10 checkpointed {ten:.0f} MiB, 10 kept {kept:.0f} MiB")
    assert ten <= 2 * two
    assert ten < kept


@pytest.mark.parametrize("way", ["vmap", 3, "loop"])
@pytest.mark.parametrize("inner", [None, MetaSGD(0.1), Adam(0.01, eps=1e-3)], ids=["sgd", "meta_sgd", "adam"])
def test_checkpointed_inner_steps_have_the_same_meta_gradient(way, inner):
    tasks, found = image_tasks(), []
    for recompute in (False, True):
        module = MAMLModule(
            network("batch_tracked"), inner_optimizer=inner, inner_steps=3, task_parallel=way,
            checkpoint_inner_steps=recompute,
        )  # fmt: skip
        found.append([g.clone() for g in meta_gradient(module, tasks)[1]])
    assert relative_error(found[1], found[0]) < 1e-14


def test_buffers_that_the_network_reads_are_those_of_the_step():
    torch.manual_seed(0)
    net = torch.nn.Sequential(
        torch.nn.Flatten(), torch.nn.utils.parametrizations.spectral_norm(torch.nn.Linear(64, 3))
    ).double()  # fmt: skip
    found = []
    for recompute in (False, True):
        module = MAMLModule(net, 0.5, 3, task_parallel="loop", checkpoint_inner_steps=recompute)
        found.append([g.clone() for g in meta_gradient(module, image_tasks())[1]])
    assert relative_error(found[1], found[0]) < 1e-14


def test_dropout_is_the_same_when_a_step_is_computed_again():
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 16), torch.nn.Dropout(), torch.nn.Linear(16, 3))
    found = []
    for recompute in (False, True):
        module = MAMLModule(net.double(), 0.1, 3, task_parallel="loop", checkpoint_inner_steps=recompute)
        torch.manual_seed(1)
        found.append([g.clone() for g in meta_gradient(module, image_tasks())[1]])
    assert relative_error(found[1], found[0]) < 1e-14
