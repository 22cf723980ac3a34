"""The outer optimizer, and its schedule."""

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from torch.optim import LBFGS, Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from lightning_meta.algorithms.base import Algorithm
from lightning_meta.errors import ConfigurationError

if TYPE_CHECKING:
    from lightning_meta.modules.meta_module import MetaModule

OptimizerCallable = Callable[[Iterable[Any]], Optimizer]
LRSchedulerCallable = Callable[[Optimizer], LRScheduler | ReduceLROnPlateau]


def configured(module: "MetaModule") -> Any:
    """The outer optimizer over all trainable parameters, and its scheduler.

    Raises:
        ConfigurationError: One of them refuses its arguments, or is of a kind that meta-training cannot use.
    """
    try:
        optimizer = module.optimizer(parameter_groups(module))
    except (TypeError, ValueError) as error:
        raise ConfigurationError(f"optimizer cannot be made from the parameters: {error}.") from error
    if isinstance(optimizer, LBFGS):
        raise ConfigurationError(
            "LBFGS evaluates the loss many times in a step, on the same tasks: give another optimizer."
        )
    if module.lr_scheduler is None:
        return optimizer
    try:
        scheduler = module.lr_scheduler(optimizer)
    except (TypeError, ValueError, ZeroDivisionError) as error:
        raise ConfigurationError(f"lr_scheduler cannot be made from the optimizer: {error}.") from error
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def check_inner_rate(rate: float | None, algorithm: Algorithm) -> None:
    """Refuse an outer learning rate for what an algorithm learns besides the network, if that is nothing.

    Raises:
        ConfigurationError: That is so, or the rate is negative.
    """
    if rate is not None and not (rate >= 0 and list(algorithm.parameters())):
        learned = getattr(algorithm, "inner_optimizer", None) or algorithm
        raise ConfigurationError(
            f"inner_optimizer_lr={rate} is the outer learning rate, 0 or more, of what {learned} learns; if that is "
            "nothing, leave it out (or give null, in YAML and on the command line)."
        )


def parameter_groups(module: "MetaModule") -> list[Any]:
    """The trainable parameters; those of the algorithm in a group with their own rate, if they have one."""
    trainable = [p for p in module.parameters() if p.requires_grad]
    rate = module.inner_optimizer_lr
    if rate is None:
        return trainable
    learned = set(module.algorithm.parameters())
    groups: list[dict[str, Any]] = [
        {"params": [p for p in trainable if p not in learned]},
        {"params": [p for p in trainable if p in learned], "lr": rate},
    ]
    return [group for group in groups if group["params"]]
