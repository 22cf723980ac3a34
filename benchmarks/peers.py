"""MAML as others compute it: a meta-gradient by hand and by four libraries, and a training with learn2learn."""

from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from step_cases import Case, Step
from torch import Tensor, nn
from torch.func import functional_call

from lightning_meta import Examples, Task


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


def with_learn2learn(case: Case, network: nn.Module, tasks: Task, first_order: bool) -> Step:
    """The library learn2learn 0.2.0."""
    import learn2learn as l2l

    maml = l2l.algorithms.MAML(network, lr=case.inner_lr, first_order=first_order)
    (xs, ys), (xq, yq) = tasks.support[:2], tasks.query[:2]

    def step() -> None:
        network.zero_grad()
        for i in range(case.tasks):
            (_query_loss(case, maml, Examples(xs[i], ys[i]), Examples(xq[i], yq[i])) / case.tasks).backward()

    return step


def _query_loss(case: Case, maml: Any, support: Examples, query: Examples) -> Tensor:
    learner = maml.clone()
    for _ in range(case.inner_steps):
        learner.adapt(case.loss(learner(support.inputs), support.targets))
    return case.loss(learner(query.inputs), query.targets)


def learn2learn_training(case: Case, root: Path) -> Step:
    """A step of a training with learn2learn 0.2.0: reads a meta-batch of its Omniglot, and updates by Adam."""
    import learn2learn as l2l
    import torchvision

    n_shots = 1 + case.n_query
    # Files that are there need not lie beside the archive that they came from.
    with patch.object(torchvision.datasets.Omniglot, "_check_integrity", lambda self: True):
        datasets, transforms = l2l.vision.benchmarks.omniglot_benchmark.omniglot_tasksets(
            case.n_way, n_shots, case.n_way, n_shots, str(root)
        )
    train = l2l.data.TaskDataset(datasets[0], task_transforms=transforms[0], num_tasks=20000)
    maml = l2l.algorithms.MAML(case.network(), lr=case.inner_lr)
    optimizer = torch.optim.Adam(maml.parameters(), lr=1e-3)
    is_support = torch.arange(n_shots * case.n_way) % n_shots == 0

    def step() -> None:
        optimizer.zero_grad()
        for _ in range(case.tasks):
            inputs, targets = train.sample()
            support, query = (Examples(inputs[part], targets[part]) for part in (is_support, ~is_support))
            (_query_loss(case, maml, support, query) / case.tasks).backward()
        optimizer.step()

    return step
