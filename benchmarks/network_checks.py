"""What is checked of a network: its meta-gradient and its losses, by the package and by a hand-written loop."""

import copy
import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from network_cases import Case
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from lightning_meta import Examples, MAMLModule, Task, TaskDataModule
from lightning_meta.errors import LightningMetaError
from lightning_meta.functional.losses import Loss
from lightning_meta.task import map_tensors

WAYS = ("loop", "vmap", "auto")
TOLERANCE = 1e-8
TOLERANCE_OF_LOSSES = 1e-6  # what a test returns is float32
INNER_LR = 0.01


class RandomTasks:
    """Tasks of four support and four query examples of two classes, made of random numbers."""

    def __init__(self, case: Case) -> None:
        self.case = case

    def tasks(self, numbers: Sequence[int]) -> Task:
        """The tasks of these numbers."""
        each = [self.task(torch.Generator().manual_seed(int(number))) for number in numbers]
        return map_tensors(lambda *parts: torch.stack(parts), *each)

    def task(self, draw: torch.Generator) -> Task:
        """One task."""
        return Task(*(Examples(*self.case.examples(draw)) for _ in range(2)))


class RandomTasksDataModule(TaskDataModule):
    """Two tasks for each of two outer steps, and two to test."""

    def __init__(self, case: Case) -> None:
        super().__init__(meta_batch_size=2, steps_per_epoch=2, test_tasks=2)
        self.case = case

    def configure_tasks(self, split: str) -> RandomTasks | None:
        """The same tasks in training and in the test, and none for validation."""
        return None if split == "val" else RandomTasks(self.case)


def each_task(tasks: Task) -> Iterator[Task]:
    """The tasks of a batch, without their leading dimension."""
    for i in range(len(tasks.support.targets)):
        yield map_tensors(lambda tensor, i=i: tensor[i], tasks)


def in_float64(tasks: Task) -> Task:
    """The same tasks, their real numbers in float64."""
    return map_tensors(lambda tensor: tensor.double() if tensor.is_floating_point() else tensor, tasks)


def without_dropout(network: nn.Module) -> nn.Module:
    """A copy of the network in which nothing is random: dropout and stochastic depth have the probability 0."""
    network = copy.deepcopy(network).train()
    for layer in network.modules():
        for name, value in vars(layer).items():
            if isinstance(value, float) and (name == "p" or "drop" in name):
                setattr(layer, name, 0.0)
    return network


def prepared(network: nn.Module) -> nn.Module:
    """A copy in float64, without dropout, in which no parameter is constant, as a head of zeros is.

    With such a head, most of the meta-gradient would be zero, and so would most errors.
    """
    network = without_dropout(network).double()
    draw = torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        if parameter.min() == parameter.max():
            parameter.data += 0.05 * torch.randn(parameter.shape, generator=draw, dtype=parameter.dtype)
    return network


def hardsigmoid(x: Tensor, inplace: bool = False) -> Tensor:
    """The hard sigmoid, which has no second derivative in torch."""
    return F.relu6(x + 3) / 6


def normalize(x: Tensor, p: float = 2.0, dim: int = 1, eps: float = 1e-12, out: None = None) -> Tensor:
    """Vectors of the length 1, and short ones divided by `eps`; in torch the second derivative at 0 is not a number."""
    squares = x.square().sum(dim, keepdim=True)
    is_short = squares <= eps**2
    return x / torch.where(is_short, eps, torch.where(is_short, 1.0, squares).sqrt())


class TwiceDifferentiable(TorchFunctionMode):
    """Within it, two functions of torch are made of operators whose second derivatives are right."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        instead = {F.hardsigmoid: hardsigmoid, F.normalize: normalize}
        return instead.get(func, func)(*args, **(kwargs or {}))


def query_loss(network: nn.Module, params: dict[str, Tensor], task: Task, loss: Loss, first_order: bool) -> Tensor:
    """The query loss after one inner step of one task, differentiable in the initial parameters."""

    def of(params: dict[str, Tensor], examples: Examples) -> Tensor:
        buffers = {name: buffer.clone() for name, buffer in network.named_buffers()}
        return loss(functional_call(network, params | buffers, (examples.inputs,)), examples.targets)

    with (
        TwiceDifferentiable(),
        sdpa_kernel(SDPBackend.MATH),
    ):  # other kernels of attention have none
        grads = torch.autograd.grad(
            of(params, task.support), list(params.values()), create_graph=not first_order, materialize_grads=True
        )
        adapted = {name: p - INNER_LR * g for (name, p), g in zip(params.items(), grads, strict=True)}
        return of(adapted, task.query)


def by_hand(network: nn.Module, tasks: Task, loss: Loss, *, first_order: bool = False) -> list[Tensor]:
    """The meta-gradient by a hand-written loop over tasks: the gradient of the mean query loss in each parameter."""
    params = dict(network.named_parameters())
    total = [torch.zeros_like(p) for p in params.values()]
    for task in each_task(tasks):
        grads = torch.autograd.grad(
            query_loss(network, params, task, loss, first_order), list(params.values()), materialize_grads=True
        )
        total = [t + g / len(tasks.support.targets) for t, g in zip(total, grads, strict=True)]
    return total


def by_the_package(network: nn.Module, tasks: Task, loss: Loss, way: Any, **options: Any) -> list[Tensor]:
    """The meta-gradient that `MAMLModule` leaves in `.grad`."""
    module = MAMLModule(copy.deepcopy(network), inner_lr=INNER_LR, loss=loss, task_parallel=way, **options)
    module.meta_loss(tasks).backward()
    return [torch.zeros_like(p) if p.grad is None else p.grad for p in module.network.parameters()]


def largest_error(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """The largest relative error of a parameter's gradient.

    A gradient of less than a millionth of all counts as that much: the bias of a convolution before a batch
    normalization has none but for rounding.
    """
    least = 1e-6 * norm(expected)
    errors = [(f - e).norm() / torch.maximum(e.norm(), least) for f, e in zip(found, expected, strict=True)]
    return torch.stack(errors).max().item()


def norm(tensors: Sequence[Tensor]) -> Tensor:
    """The Euclidean norm of all of them together."""
    return torch.stack([tensor.norm() for tensor in tensors]).norm()


class Comparison(NamedTuple):
    """What was found of one network in float64.

    Attributes:
        errors: The largest relative error of every way that runs; `"first order"` is that of `first_order=True`.
        refusals: What is said of a way that does not run.
        second_order_part: The difference of the second-order and the first-order meta-gradient, relative to the first.
    """

    errors: dict[str, float]
    refusals: dict[str, str]
    second_order_part: float

    @property
    def is_right(self) -> bool:
        """Whether the loop and `auto` run, and all that runs has the gradient of the hand-written loop."""
        return {"loop", "auto"} <= self.errors.keys() and self.largest <= TOLERANCE

    @property
    def is_right_in_first_order(self) -> bool:
        """Whether `first_order=True` has the gradient of the hand-written loop."""
        return self.errors.get("first order", math.nan) <= TOLERANCE

    @property
    def largest(self) -> float:
        """The largest error; not a number where one is not."""
        return torch.tensor([*self.errors.values()] or [math.nan]).max().item()


def compare(case: Case, ways: Sequence[str] = WAYS) -> Comparison:
    """Compare every way of running tasks with the hand-written loop."""
    torch.manual_seed(0)
    network, tasks = prepared(case.make()), in_float64(RandomTasks(case).tasks(range(2)))
    expected = by_hand(network, tasks, case.loss)
    first = by_hand(network, tasks, case.loss, first_order=True)
    second_order_part = norm([e - f for e, f in zip(expected, first, strict=True)]) / norm(expected)
    errors: dict[str, float] = {}
    refusals: dict[str, str] = {}
    for way in (*ways, "first order"):
        options = {"way": "auto", "first_order": True} if way == "first order" else {"way": way}
        try:
            with fallbacks():
                found = by_the_package(network, tasks, case.loss, **options)
        except LightningMetaError as error:
            refusals[way] = str(error)
            continue
        errors[way] = largest_error(found, first if way == "first order" else expected)
    return Comparison(errors, refusals, second_order_part.item())


@contextmanager
def fallbacks() -> Iterator[list[str]]:
    """Collects the warnings by which `auto` says that it turns to the loop."""
    found: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield found
    found += [str(w.message) for w in caught if "one after another" in str(w.message)]


class Training(NamedTuple):
    """What was found of one network in training, test and adaptation.

    Attributes:
        error: The largest relative error of a loss in float64, of the test and of an adapted network, by the
            hand-written loop; not a number where a loss in float32 is not finite.
        fallbacks: What `auto` said on turning to the loop, which it does once at most.
    """

    error: float
    fallbacks: list[str]

    @property
    def is_right(self) -> bool:
        """Whether losses are those of the hand-written loop, without repeated warnings."""
        return self.error <= TOLERANCE_OF_LOSSES and len(self.fallbacks) <= 1


def trained(case: Case, *, first_order: bool = False) -> Training:
    """Train, test and adapt in float32, and test and adapt what was trained in float64 as well.

    Training has the network's own dropout.
    """
    torch.manual_seed(0)
    module = MAMLModule(case.make(), inner_lr=INNER_LR, loss=case.loss, first_order=first_order)
    data = RandomTasksDataModule(case)
    trainer = quiet_trainer(max_epochs=1)
    with fallbacks() as said:
        trainer.fit(module, data)
    (row,) = trainer.test(module, data, verbose=False)
    task, *others = each_task(RandomTasks(case).tasks(range(2)))
    deployed = module.adapt_to(*task.support[:2])
    one = map_tensors(lambda tensor: tensor[:1], task.query)
    if not math.isfinite(row["test/query_loss"]) or not case.loss(deployed(one.inputs), one.targets).isfinite():
        return Training(math.nan, said)

    (row,) = quiet_trainer(precision="64-true").test(module.double(), data, verbose=False)
    task, *others = map(in_float64, (task, *others))
    adapted = module.adapt_to(*task.support[:2], transductive=True)
    network = without_dropout(module.network)
    params = dict(network.named_parameters())
    expected = [query_loss(network, params, each, case.loss, first_order=True).item() for each in (task, *others)]
    found = case.loss(adapted(task.query.inputs), task.query.targets).item()
    pairs = [(row["test/query_loss"], sum(expected) / len(expected)), (found, expected[0])]
    return Training(max(abs(value - by_hand) / abs(by_hand) for value, by_hand in pairs), said)


def quiet_trainer(**options: Any) -> pl.Trainer:
    """A Trainer on the CPU that keeps and shows nothing."""
    return pl.Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, **options,
    )  # fmt: skip
