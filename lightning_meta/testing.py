"""What every algorithm, inner optimizer and source of tasks keeps, as functions that your own tests call."""

import copy
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lightning_meta.functional.learner import Learner
from lightning_meta.inner import InnerOptimizer
from lightning_meta.modules import MetaModule
from lightning_meta.task import Task, TaskDistribution, map_tensors, number_of_tasks, tensors_of

__all__ = ["check_algorithm", "check_inner_optimizer", "check_tasks"]


def check_algorithm(module: MetaModule, tasks: Task, tolerance: float = 1e-10) -> None:
    """Check what every algorithm keeps, on a batch of at least two tasks.

    The meta-gradient of the batch is the mean of those of single tasks, the same in every way of running tasks, and
    reaches every trainable parameter. Evaluation leaves the module's state alone, and nothing writes into the tasks.

    Args:
        module: In float64, with a network that `torch.vmap` can run.
        tasks: In float64.
        tolerance: The largest relative difference of two meta-gradients.

    Raises:
        AssertionError: One of these does not hold; the message says which.
    """
    before = [tensor.clone() for tensor in tensors_of(tasks)]
    together = _meta_gradient(module, tasks, "vmap")
    count = number_of_tasks(tasks)
    assert count > 1, "Give at least two tasks."
    assert torch.isfinite(together).all(), "The meta-gradient is not finite."
    assert together.any(), "The meta-gradient is zero."
    for way in ("loop", 1, max(1, count - 1)):
        _assert_close(_meta_gradient(module, tasks, way), together, tolerance, f"task_parallel={way!r} and 'vmap'")
    singles = [_meta_gradient(module, map_tensors(lambda t, i=i: t[i : i + 1], tasks), "loop") for i in range(count)]
    _assert_close(torch.stack(singles).mean(0), together, tolerance, "the mean of single tasks and the batch")
    state = copy.deepcopy(module.state_dict())
    outcomes = list(module.task_map(module.algorithm.evaluate, module.problem(tasks)))
    assert all(torch.isfinite(outcome.losses).all() for outcome in outcomes), "A loss in evaluation is not finite."
    after = module.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in state.items()), "Evaluation changed the module."
    unchanged = all(torch.equal(a, b) for a, b in zip(before, tensors_of(tasks), strict=True))
    assert unchanged, "The tasks were written to."


def check_inner_optimizer(make: Callable[[], InnerOptimizer], steps: int = 3, tolerance: float = 1e-10) -> None:
    """Check what every inner optimizer keeps.

    Its update of many tasks under `torch.vmap` is that of each task alone. It returns new tensors under the names that
    it was given, writes into nothing, and is differentiable in the parameters and in what it learns.

    Args:
        make: Makes the optimizer, anew each time.
        steps: Inner steps to make.
        tolerance: The largest relative difference.

    Raises:
        AssertionError: One of these does not hold; the message says which.
    """
    generator = torch.Generator().manual_seed(0)
    shapes = {"layer.weight": (3, 4), "layer.bias": (3,)}
    params, grads = (
        {name: torch.randn(2, *shape, generator=generator, dtype=torch.float64) for name, shape in shapes.items()}
        for _ in range(2)
    )
    optimizer = make().double()
    optimizer.build({name: param[0] for name, param in params.items()}, steps)
    optimizer.double()
    kept = {name: param.clone() for name, param in params.items()}

    def run(params: dict[str, Tensor], grads: dict[str, Tensor]) -> dict[str, Tensor]:
        state = optimizer.init(params)
        for step in range(steps):
            loss = torch.stack([param.square().sum() for param in params.values()]).sum()
            params, state = optimizer.update(grads, state, params, loss=loss.detach(), step=step)
        return params

    learner = Learner(torch.nn.Identity(), (), vectorized=True)
    many = learner.over_tasks(run)(params, grads)
    assert many.keys() == params.keys(), "update must return every parameter under its name."
    for i in range(2):
        alone = run(*({name: t[i] for name, t in tree.items()} for tree in (params, grads)))
        for name, expected in alone.items():
            assert expected.shape == params[name].shape[1:], f"update changed the shape of {name}."
            _assert_close(many[name][i], expected, tolerance, f"{name} of many tasks and of one")
    assert all(torch.equal(params[name], kept[name]) for name in params), "update wrote into its parameters."
    start = {name: param[0].clone().requires_grad_() for name, param in params.items()}
    total = torch.stack([p.square().sum() for p in run(start, {n: g[0] for n, g in grads.items()}).values()]).sum()
    wanted = [*start.values(), *(p for p in optimizer.parameters() if p.requires_grad)]
    found = torch.autograd.grad(total, wanted, allow_unused=True)
    assert all(g is not None for g in found[: len(start)]), "The result does not depend on the initial parameters."
    assert all(torch.isfinite(g).all() for g in found if g is not None), "A derivative is not finite."


def check_tasks(tasks: TaskDistribution, numbers: Sequence[int] = (0, 7, 123)) -> None:
    """Check that a task is a function of its number: the same alone, in any company, and whenever it is asked for.

    Args:
        tasks: Makes tasks.
        numbers: At least two different task numbers.

    Raises:
        AssertionError: It is not; the message names the task.
    """
    together = tasks.tasks(numbers)
    assert number_of_tasks(together) == len(numbers), "There must be one task for each number."
    backwards = tasks.tasks(list(reversed(numbers)))
    for i, number in enumerate(numbers):
        alone = map_tensors(lambda t: t[0], tasks.tasks([number]))
        for batch, place in ((together, i), (backwards, len(numbers) - 1 - i)):
            in_company = map_tensors(lambda t, place=place: t[place], batch)
            for part, other in zip(alone, in_company, strict=True):
                assert _same(part, other), f"Task {number} is another one in company, or when asked for again."


def _same(one: object, other: object) -> bool:
    """Whether two sets of examples are equal, but for padding."""
    examples = []
    for part in (one, other):
        assert isinstance(part, tuple)
        mask = part[2]
        examples.append(tensors_of(part[:2] if mask is None else map_tensors(lambda t, m=mask: t[m], part[:2])))
    return all(a.shape == b.shape and torch.equal(a, b) for a, b in zip(*examples, strict=True))


def _meta_gradient(module: MetaModule, tasks: Task, way: str | int) -> Tensor:
    module = copy.deepcopy(module)
    module.task_map.task_parallel = way  # type: ignore[assignment]
    module.zero_grad()
    module.meta_loss(tasks).backward()  # type: ignore[no-untyped-call]
    trainable = [p for p in module.parameters() if p.requires_grad]
    assert all(p.grad is not None for p in trainable), "The meta-loss does not reach every trainable parameter."
    return torch.cat([p.grad.flatten().double() for p in trainable if p.grad is not None])


def _assert_close(found: Tensor, expected: Tensor, tolerance: float, what: str) -> None:
    error = float((found - expected).norm() / expected.norm().clamp(min=1e-300))
    assert error <= tolerance, f"{what} differ by {error:.1e}, more than {tolerance:.1e}."
