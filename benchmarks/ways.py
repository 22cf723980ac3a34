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
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from floor import operations, products
from torch import Tensor, nn
from torch.func import functional_call

from lightning_meta import MLP, Conv4, Examples, MAMLModule, Task
from lightning_meta.functional.allocator import keep_freed_memory

Step = Callable[[], None]


class Case(NamedTuple):
    """A network and the tasks of one outer step."""

    network: Callable[[], nn.Module]
    tasks: int
    n_way: int = 5
    n_query: int = 1
    inner_steps: int = 1
    inner_lr: float = 0.1
    regression: bool = False

    def make_tasks(self, dtype: torch.dtype, device: str) -> Task:
        """Random tasks of the right shapes, always the same."""
        generator = torch.Generator().manual_seed(0)

        def examples(count: int) -> Examples:
            if self.regression:
                inputs = 10 * torch.rand(self.tasks, count, 1, generator=generator) - 5
                phase = torch.rand(self.tasks, 1, 1, generator=generator)
                return Examples(inputs, (inputs + 3 * phase).sin())
            images = torch.rand(self.tasks, self.n_way * count, 1, 28, 28, generator=generator)
            labels = torch.arange(self.n_way).repeat_interleave(count).expand(self.tasks, -1).contiguous()
            return Examples(images, labels)

        support, query = (examples(10), examples(10)) if self.regression else (examples(1), examples(self.n_query))
        parts = ((_to(part.inputs, device, dtype), _to(part.targets, device, dtype)) for part in (support, query))
        return Task(*(Examples(*tensors) for tensors in parts))

    @property
    def loss(self) -> Callable[[Tensor, Tensor], Tensor]:
        """What is descended."""
        return F.mse_loss if self.regression else F.cross_entropy


def _to(targets: Tensor, device: str, dtype: torch.dtype) -> Tensor:
    return targets.to(device, dtype) if targets.is_floating_point() else targets.to(device)


CASES = {
    "Conv-4, 1 query, 32 tasks": Case(lambda: Conv4(5), 32),
    "Conv-4, 15 queries, 32 tasks": Case(lambda: Conv4(5), 32, n_query=15),
    "Conv-4, 1 query, 5 inner steps, 16 tasks": Case(lambda: Conv4(5), 16, inner_steps=5),
    "Conv-4 with pooling, 15 queries, 8 tasks": Case(lambda: Conv4(5, downsample="pool"), 8, n_query=15),
    "MLP 784-256-128-64-64, 1 query, 32 tasks": Case(lambda: MLP(784, 5, hidden=[256, 128, 64, 64], norm="batch"), 32),
    "Sinusoid MLP, 10-shot, 25 tasks": Case(MLP, 25, regression=True, inner_lr=0.01),
    "Conv-4, 20-way, 1 query, 16 tasks": Case(lambda: Conv4(20), 16, n_way=20),
}
"""The networks of the MAML paper on tasks of the sizes that are usual for them."""


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


def hand(case: Case, network: nn.Module, tasks: Task, first_order: bool) -> Step:
    """A plain loop over tasks, as one writes it without a library."""
    loss, count = case.loss, case.tasks

    def step() -> None:
        network.zero_grad()
        for i in range(count):
            params = dict(network.named_parameters())
            for _ in range(case.inner_steps):
                support_loss = loss(functional_call(network, params, tasks.support.inputs[i]), tasks.support.targets[i])
                grads = torch.autograd.grad(support_loss, list(params.values()), create_graph=not first_order)
                params = {name: p - case.inner_lr * g for (name, p), g in zip(params.items(), grads, strict=True)}
            query_loss = loss(functional_call(network, params, tasks.query.inputs[i]), tasks.query.targets[i])
            (query_loss / count).backward()

    return step


def with_higher(case: Case, network: nn.Module, tasks: Task, first_order: bool) -> Step:
    """The library `higher`."""
    import higher

    loss, count = case.loss, case.tasks
    optimizer = torch.optim.SGD(network.parameters(), lr=case.inner_lr)

    def step() -> None:
        network.zero_grad()
        for i in range(count):
            with higher.innerloop_ctx(
                network, optimizer, copy_initial_weights=False, track_higher_grads=not first_order
            ) as (learner, inner):
                for _ in range(case.inner_steps):
                    inner.step(loss(learner(tasks.support.inputs[i]), tasks.support.targets[i]))
                query_loss = loss(learner(tasks.query.inputs[i]), tasks.query.targets[i]) / count
                if not first_order:
                    query_loss.backward()
                    continue
                # It leaves no way to the initial parameters: FOMAML's gradient is that of the adapted ones.
                grads = torch.autograd.grad(query_loss, list(learner.parameters()))
                for p, g in zip(network.parameters(), grads, strict=True):
                    p.grad = g if p.grad is None else p.grad + g

    return step


def with_torchopt(case: Case, network: nn.Module, tasks: Task, first_order: bool) -> Step | None:
    """The library TorchOpt, which has no first-order MAML."""
    import torchopt

    if first_order:
        return None
    loss, count = case.loss, case.tasks
    optimizer = torchopt.MetaSGD(network, lr=case.inner_lr)
    meta = list(network.parameters())

    def step() -> None:
        for p in meta:
            p.grad = None
        start, optimizer_start = torchopt.extract_state_dict(network), torchopt.extract_state_dict(optimizer)
        for i in range(count):
            for _ in range(case.inner_steps):
                optimizer.step(loss(network(tasks.support.inputs[i]), tasks.support.targets[i]))
            (loss(network(tasks.query.inputs[i]), tasks.query.targets[i]) / count).backward()
            torchopt.recover_state_dict(network, start)
            torchopt.recover_state_dict(optimizer, optimizer_start)

    return step


def with_parallel_metalearn(case: Case, network: nn.Module, tasks: Task, first_order: bool) -> Step:
    """The library parallel-metalearn, all tasks in one chunk."""
    from metalearn.algorithms import MAML
    from metalearn.inner_optimizers import InnerSGD
    from metalearn.loss.base import BaseLoss
    from metalearn.model_wrappers import MAML_Model

    class Loss(BaseLoss):
        def forward(self, out_dict: Any, targets: Any, model_states: Any = None, **kwargs: Any) -> Any:
            value = case.loss(out_dict["logits"], targets["labels"])
            return value, value.detach()

    class Part(nn.Module):
        def __init__(self, part: nn.Module) -> None:
            super().__init__()
            self.part = part

        def forward(self, x: Tensor, **kwargs: Any) -> Tensor:
            result: Tensor = self.part(x)
            return result

    model = MAML_Model(backbone=Part(network.body), head=Part(network.head))
    inner = InnerSGD(model.get_fast_weights(), first_order=first_order, inner_lr=case.inner_lr, learn_lr=False)
    inner = inner.to(tasks.query.inputs)
    with torch.no_grad():
        for rate in inner.parameters():  # made in float32
            rate.fill_(case.inner_lr)
    algorithm = MAML(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.0),
        inner_optimizer=inner,
        support_loss_fn=Loss(),
        inner_steps=case.inner_steps,
        device=tasks.query.inputs.device,
    )
    (xs, ys), (xq, yq) = tasks.support[:2], tasks.query[:2]

    def step() -> None:
        algorithm.step(iter([(xs, {"labels": ys}, xq, {"labels": yq})]), training=True)

    return step


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
    "floor": at_best,
}
"""The contenders, this package's first; "floor" computes nothing."""

PEERS = ("hand loop", "higher", "TorchOpt", "parallel-metalearn")


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
