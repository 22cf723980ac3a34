"""What `benchmarks/steps.py` compares: one meta-gradient of MAML, by this package and by others.

Run by itself it is one contender in a process of its own, so that none pays for another's memory or settings: it reads
commands from its standard input and answers on its standard output.
"""

import json
import resource
import sys
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from floor import operations, products
from peers import hand, with_higher, with_learn2learn, with_parallel_metalearn, with_torchopt
from step_cases import CASES, Case, Step
from torch import Tensor, nn

from lightning_meta import MAMLModule, Task
from lightning_meta.functional.allocator import keep_freed_memory


def own(task_parallel: Any, **options: Any) -> Callable[..., Step]:
    """This package, running tasks in one way."""

    def make(case: Case, network: nn.Module, tasks: Task, first_order: bool) -> Step:
        keep_freed_memory()  # as under a Trainer
        module = MAMLModule(
            network, case.inner_lr, case.inner_steps, first_order=first_order, loss=case.loss,
            task_parallel=task_parallel, **options,
        )  # fmt: skip

        def step() -> None:
            module.zero_grad()
            module.meta_loss(tasks).backward()

        return step

    return make


def in_bfloat16(case: Case, network: nn.Module, tasks: Task, first_order: bool) -> Step:
    """This package under `precision="bf16-mixed"`."""
    single = own("auto")(case, network, tasks, first_order)

    def step() -> None:
        with torch.autocast(tasks.query.inputs.device.type, torch.bfloat16):
            single()

    return step


def at_best(case: Case, network: nn.Module, tasks: Task, first_order: bool) -> Step:
    """The multiplications of the hand-written loop alone, see `floor.py`."""
    return products(operations(hand(case, network, tasks, first_order)), next(network.parameters()).detach())


WAYS: dict[str, Callable[[Case, nn.Module, Task, bool], Step | None]] = {
    "loop": own("loop"),
    "chunk 8": own(8),
    "vmap": own("vmap"),
    "auto": own("auto"),
    "compiled": own("auto", compile=True),
    "bf16": in_bfloat16,
    "hand loop": hand,
    "higher": with_higher,
    "TorchOpt": with_torchopt,
    "parallel-metalearn": with_parallel_metalearn,
    "learn2learn": with_learn2learn,
    "floor": at_best,
}
"""The contenders, this package's first; "floor" computes nothing."""

PEERS = ("hand loop", "higher", "TorchOpt", "parallel-metalearn", "learn2learn")


def gradient(case: Case, way: str, first_order: bool, device: str) -> Tensor | None:
    """The meta-gradient in float64."""
    made = _prepare(case, way, first_order, device, torch.float64)
    if made is None:
        return None
    step, network = made
    step()
    return torch.cat([p.grad.flatten() for p in network.parameters()]).cpu()


def _prepare(case: Case, way: str, first_order: bool, device: str, dtype: torch.dtype) -> tuple[Step, nn.Module] | None:
    torch.manual_seed(0)
    network = case.network().to(device, dtype)
    # Another value of the scales and shifts than the 1 and 0 they start with, at which mistakes could hide.
    with torch.no_grad():
        for p in network.parameters():
            if p.dim() == 1:
                p.add_(0.1 * torch.randn(p.shape, dtype=torch.float64).to(p))
    step = WAYS[way](case, network, case.make_tasks(dtype, device), first_order)
    return None if step is None else (step, network)


def _synchronized(step: Step, device: str) -> Step:
    if device != "cuda":
        return step

    def synchronized() -> None:
        step()
        torch.cuda.synchronize()

    return synchronized


def _status_mib(key: str) -> float | None:
    """An entry of this process's status, where the system has that."""
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(f"{key}:"):
                return int(line.split()[1]) / 1024
    return None


def _peak_mib(device: str) -> float:
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    return _status_mib("VmHWM") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    """Be one contender.

    Answers commands: `start` makes the first steps, `turn SECONDS` times steps, `memory` tells the memory they took,
    `gradient FILE` writes it.
    """
    name, way, order, device, threads = sys.argv[1:]
    warnings.simplefilter("ignore")
    torch.set_num_threads(int(threads))
    case, first_order = CASES[name], order == "first"
    sys.stdin.readline()  # `start`
    before = (_status_mib("VmRSS") or 0.0) if device == "cpu" else 0.0
    made = _prepare(case, way, first_order, device, torch.float32)
    if made is None:
        print(json.dumps(None), flush=True)
        return
    step = _synchronized(made[0], device)
    start = time.perf_counter()
    step()
    first = time.perf_counter() - start
    times = []
    for _ in range(2):
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
    estimate = min(times)
    print(json.dumps({"first": first, "estimate": estimate}), flush=True)
    for line in sys.stdin:
        command, *arguments = line.rstrip("\n").split(" ", 1)
        if command == "turn":
            steps = max(1, round(float(arguments[0]) / estimate))
            start = time.perf_counter()
            for _ in range(steps):
                step()
            print(json.dumps((time.perf_counter() - start) / steps), flush=True)
        elif command == "memory":
            print(json.dumps(_peak_mib(device) - before), flush=True)
        elif command == "gradient":
            torch.save(gradient(case, way, first_order, device), arguments[0])
            print(json.dumps(None), flush=True)


if __name__ == "__main__":
    main()
