"""The two phases of reinforcement learning, as hooks of a `MetaModule`: act and adapt, then learn on what was stored.

`collect` acts with the policy before each inner step, adapts, and acts with the adapted one, without a meta-gradient.
What it returns is an ordinary batch of tasks, on which the ordinary inner loop learns.
"""

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from lightning_meta.algorithms import Actor
from lightning_meta.errors import ConfigurationError
from lightning_meta.functional.inner_loop import check_steps
from lightning_meta.functional.network import Params
from lightning_meta.functional.normalization import batch_normalized_layers
from lightning_meta.modules.evaluation import with_gradients
from lightning_meta.rl.data_module import SPLITS, RLDataModule
from lightning_meta.rl.rollout import chance, rollout
from lightning_meta.rl.trajectories import (
    Experience,
    Trajectories,
    generalized_advantages,
    linear_baseline,
    normalized,
)
from lightning_meta.task import Examples, Task, map_tensors

if TYPE_CHECKING:
    from lightning_meta.modules import MetaModule


class Sampler:
    """What a module needs to act: where its environments are, and how good it takes each action for.

    Args:
        discount: γ, how much less a reward is worth for each step that it comes later.
        gae_lambda: λ of generalized advantage estimation.

    Raises:
        ConfigurationError: One of them is not from 0 to 1.
    """

    def __init__(self, discount: float, gae_lambda: float) -> None:
        for name, value in {"discount": discount, "gae_lambda": gae_lambda}.items():
            if not 0 <= value <= 1:
                raise ConfigurationError(f"{name} must be from 0 to 1, got {value}.")
        self.discount, self.gae_lambda = discount, gae_lambda
        self.data: RLDataModule | None = None
        """Whose environments to act in where no Trainer has a data module."""
        self.steps = 0
        """Inner steps of the last collection."""
        self.seconds, self.collected_at = 0.0, 0.0
        """How long the last collection took, and when it ended."""
        self.env_steps = 0
        """Steps in environments of the last collection, on this device."""
        self.in_training = False
        """Whether the last collection was for meta-training."""

    def source(self, module: "MetaModule") -> RLDataModule:
        """The data module whose environments to act in.

        Raises:
            ConfigurationError: There is none.
        """
        data = getattr(module._trainer, "datamodule", None) or self.data
        if not isinstance(data, RLDataModule):
            raise ConfigurationError(
                f"{type(module).__name__} acts in environments, which an RLDataModule has. Give one to the Trainer, "
                "trainer.fit(module, data), or to the module, module.sampler.data = data."
            )
        return data

    @torch.no_grad()
    def advantages(self, trajectories: Trajectories) -> Tensor:
        """How much better each action was than expected, of mean 0 and variance 1 in each task, `(B, E, T)`."""
        values = linear_baseline(trajectories, self.discount)
        rewards = trajectories.rewards.to(values)
        found = generalized_advantages(rewards, values, trajectories.mask, self.discount, self.gae_lambda)
        return normalized(found, trajectories.mask).to(trajectories.rewards)


def collect(module: Any, tasks: Task, act: Actor) -> Task:
    """Act before each inner step, adapt, and act with the adapted policy, in all tasks at once.

    Args:
        module: Has a `sampler`.
        tasks: Numbers of tasks, as an `RLDataModule` gives them.
        act: Acts, and makes the inner steps.

    Returns:
        Trajectories as examples: of each inner step as support, `(B, steps, E, T, ...)`, of the adapted policy as
        query, `(B, E, T, ...)`. Targets are `Experience`. Without inner steps the support is the query, once.
    """
    sampler: Sampler = module.sampler
    check_policy(module.network)
    began = time.perf_counter()
    data = sampler.source(module)
    split, numbers = which(tasks)
    found = _acted(module, act, data, split, numbers)
    sampler.collected_at = time.perf_counter()
    sampler.seconds = sampler.collected_at - began
    sampler.steps, sampler.in_training = act.steps, act.training
    steps = torch.stack([examples.targets.mask.sum() for examples in found]).sum()
    sampler.env_steps = int(steps)
    if act.training:
        _count(module, steps)
    support = map_tensors(lambda *each: torch.stack(each, 1), *(found[:-1] or found))
    return Task(support, found[-1])


def check_policy(network: nn.Module) -> None:
    """Refuse a policy that is not the same where it acts, step by step, and where it learns, on whole episodes.

    Raises:
        ConfigurationError: It has batch normalization over what is at hand, or dropout.
    """
    names = list(batch_normalized_layers(network))
    names += [name for name, layer in network.named_modules() if isinstance(layer, _DropoutNd) and layer.p > 0]
    if names:
        raise ConfigurationError(
            f"A policy must be the same when it acts and when it learns, and its layer {names[0]!r} makes it depend on "
            "what else is in the batch, or on chance. Use LayerNorm, and no dropout."
        )


def _acted(module: Any, act: Actor, data: RLDataModule, split: str, numbers: Sequence[int]) -> list[Examples]:
    """The examples of each inner step and of the adapted policy."""
    suite = data.suites[split]
    like = next(module.network.parameters())
    names = [f"{number} of {split}" for number in numbers]
    environments, before, found = None, 0, []
    try:
        for step in range(act.steps + 1):
            episodes = data.episodes[split][step == act.steps]
            if environments is None or episodes != before:
                if environments is not None:
                    environments.close()
                environments, before = suite.environments(numbers, episodes), episodes
            random = chance(data.seed, split, numbers, step, episodes, environments.spaces, environments.horizon)
            trajectories = rollout(environments, act, random, like, names)
            found.append(trajectories.examples(module.sampler.advantages(trajectories)))
            if step < act.steps:
                act.adapt(found[-1])
    finally:
        if environments is not None:
            environments.close()
    return found


def which(tasks: Task) -> tuple[str, list[int]]:
    """The split and the numbers of a batch of tasks."""
    return SPLITS[int(tasks.support.inputs.flatten()[0])], tasks.support.targets.flatten().tolist()


def _count(module: Any, steps: Tensor) -> None:
    """Add the steps of all devices to those of this training."""
    trainer = module._trainer
    if trainer is not None and trainer.world_size > 1:
        steps = trainer.strategy.reduce(steps.clone(), reduce_op="sum")
    totals = module.outer.totals
    totals["env_steps"] = totals.get("env_steps", 0) + int(steps)


def support_data(module: Any, tasks: Task, params: Params, step: int) -> Examples:
    """The trajectories from before inner step `step`.

    Raises:
        ConfigurationError: There are none: more inner steps are made than were acted for.
    """
    there = tasks.support.targets.mask.shape[1]
    if step >= there:
        raise ConfigurationError(f"Inner step {step} has no trajectories: the batch was collected for {there} steps.")
    return map_tensors(lambda t: t[:, step], tasks.support)


def task_metrics(module: Any, predictions: Any, targets: Experience, mask: Tensor | None = None) -> dict[str, Tensor]:
    """How far a policy is from the one that acted (KL divergence, nats a step) and its entropy, `(B,)` each."""
    there = targets.mask
    count = there.flatten(1).sum(1).clamp(min=1)
    # E[log new/old] is minus the KL divergence; the other terms are 0 on average, and make every step's positive.
    change = torch.where(there, predictions.log_probabilities(targets.actions) - targets.log_probabilities, 0)
    kl = torch.where(there, change.exp() - 1 - change, 0).flatten(1).sum(1) / count
    entropy = torch.where(there, predictions.entropies(), 0).flatten(1).sum(1) / count
    return {"kl": kl, "entropy": entropy}


def measured(module: Any, tasks: Task, values: dict[str, Tensor]) -> dict[str, Tensor]:
    """Returns and successes before and after each inner step, instead of losses, which are minus the returns."""
    sampler: Sampler = module.sampler
    found: dict[str, Tensor] = {}
    for name in ("kl", "entropy"):  # of query trajectories; Reptile's training judges support trajectories alone
        for key in (f"support_{name}", f"query_{name}"):
            if key in values:
                found[name] = values[key]
    support, query = tasks.support.targets, tasks.query.targets
    of_steps = {"return": (support.returns, query.returns)}
    if bool((query.success >= 0).any()):  # some environments say it only where the task is achieved
        of_steps["success"] = (support.success.clamp(min=0), query.success.clamp(min=0))
    for name, (before, after) in of_steps.items():
        each = [before[:, step].mean(1) for step in range(sampler.steps)] + [after.mean(1)]
        found |= {f"query_{name}": each[-1], f"query_{name}_before": each[0]}
        found |= {f"{name}_after_{step}": each[step] for step in range(1, sampler.steps + 1)}
    if "query_loss" in values:
        found |= {"query_loss": values["query_loss"], "query_loss_before": -found["query_return_before"]}
    if sampler.in_training:
        now = time.perf_counter()
        of_all = {
            "env_steps": module.outer.totals.get("env_steps", 0),
            "env_steps_per_second": sampler.env_steps / max(sampler.seconds, 1e-9),
            "seconds_sampling": sampler.seconds,
            "seconds_learning": now - sampler.collected_at,
        }
        some = query.returns
        found |= {
            name: torch.full((len(some),), value, device=some.device, dtype=torch.float64)
            for name, value in of_all.items()
        }
    return {name: value.detach() for name, value in found.items()}


def adaptation_curve(module: Any, tasks: Task, steps: int | None = None) -> dict[str, Tensor]:
    """`query_return`, and `query_success` where it is known, after every inner step, `(B, steps + 1)` each.

    Args:
        module: Has a `sampler`.
        tasks: Numbers of tasks, as an `RLDataModule` gives them.
        steps: Inner steps; those of evaluation if `None`.
    """
    with with_gradients(tasks) as tasks:
        act = Actor(module.algorithm, module.task_map, lambda: module.problem(tasks), training=False)
        if steps is not None:
            act.steps = check_steps("steps", steps)
        batch = collect(module, tasks, act)
    found = {}
    for name in ("return", "success"):
        key = "returns" if name == "return" else name
        support, query = (getattr(part.targets, key) for part in batch)
        if name == "success":
            if not bool((query >= 0).any()):
                break
            support, query = support.clamp(min=0), query.clamp(min=0)
        parts = ([support.mean(2)] if act.steps else []) + [query.mean(1, keepdim=True)]
        found[f"query_{name}"] = torch.cat(parts, 1)
    return found


def monitor(module: Any) -> str:
    """The log key by which the best checkpoint is chosen: the success where the data module knows it, or the return."""
    data = getattr(module._trainer, "datamodule", None) or module.sampler.data
    return getattr(data, "monitor", "val/query_return")


def mode(module: Any) -> str:
    """The more the better."""
    return "max"
