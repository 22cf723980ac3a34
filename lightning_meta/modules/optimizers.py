"""The outer optimizer, and its schedule."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch.optim import LBFGS, Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from lightning_meta.algorithms.base import Algorithm
from lightning_meta.errors import ConfigurationError

if TYPE_CHECKING:
    from lightning_meta.modules.meta_module import MetaModule

OptimizerCallable = Callable[[Iterable[Any]], Optimizer]
LRSchedulerCallable = Callable[[Optimizer], LRScheduler | ReduceLROnPlateau]


@dataclass(frozen=True)
class DefaultOptimizer:
    """The default optimizer of a class: a lambda, in which the command line sees the optimizer, but pickle does not.

    Attributes:
        of: The class whose constructor has it.
    """

    of: type

    def __call__(self, params: Iterable[Any]) -> Optimizer:
        """Make the optimizer."""
        made: Optimizer = _default(self.of)(params)
        return made

    @classmethod
    def instead_of(cls, optimizer: OptimizerCallable, module: type) -> OptimizerCallable:
        """The same optimizer, for `module` or one of its bases, where it is their default."""
        return next((cls(base) for base in module.__mro__ if _default(base) is optimizer), optimizer)


def _default(cls: type) -> Any:
    return (getattr(vars(cls).get("__init__"), "__kwdefaults__", None) or {}).get("optimizer")


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
    waits = {"interval": "epoch", "monitor": "val/query_loss"}
    when: dict[str, Any] = waits if isinstance(scheduler, ReduceLROnPlateau) else {"interval": "step"}
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, **when}}


def check_optimizers(optimizers: list[Optimizer]) -> None:
    """Refuse several outer optimizers.

    Raises:
        ConfigurationError: There is not exactly one.
    """
    if len(optimizers) != 1:
        raise ConfigurationError(
            f"configure_optimizers gives {len(optimizers)} optimizers, and an outer step is made by one. Give one, "
            "with a parameter group for what has another learning rate."
        )


def keep_monitors(module: "MetaModule") -> None:
    """Keep what Lightning leaves out of the dictionary of a scheduler under manual optimization.

    Until `configure_optimizers` has been called, it is wrapped at this instance.
    """
    vars(module).pop("configure_optimizers", None)  # of a fit that ended before that
    own = module.configure_optimizers

    def configure() -> Any:
        vars(module).pop("configure_optimizers", None)
        module.outer.monitors = {}
        found = own()
        waits = [found] if isinstance(found, dict) else []
        if isinstance(found, tuple | list) and len(found) == 2 and isinstance(found[1], list):
            waits = [each for each in found[1] if isinstance(each, dict)]
        for each in waits:
            inside = each.get("lr_scheduler")
            if isinstance(inside, dict):
                each = inside
            scheduler = each.get("scheduler", inside)
            module.outer.monitors[id(scheduler)] = each.pop("monitor", None), each.pop("strict", True)
            each.pop("reduce_on_plateau", None)
        return found

    module.configure_optimizers = configure  # type: ignore[method-assign]


def step_schedulers(module: "MetaModule", *, validated: bool = False) -> None:
    """Step the schedulers that are due, as Lightning's dictionary of a scheduler says.

    After an outer step these are those with the interval `"step"`, after the last one of an epoch those with `"epoch"`;
    after a validation (`validated`) those that monitor what was measured there.

    Raises:
        ConfigurationError: What a scheduler monitors was not logged.
    """
    trainer: Any = module.trainer
    per_batch = module.outer.per_batch
    of_step = trainer.fit_loop.epoch_loop.batch_idx * per_batch + module.outer.step % per_batch + 1
    for config in trainer.lr_scheduler_configs:
        reduces = isinstance(config.scheduler, ReduceLROnPlateau)
        monitor, strict = module.outer.monitors.get(id(config.scheduler), (None, True))
        monitor = monitor or "val/query_loss"
        waits = reduces and monitor.startswith("val/")
        number = of_step if config.interval == "step" and not waits else trainer.current_epoch + 1
        is_time = config.interval == "step" or (trainer.is_last_batch and of_step % per_batch == 0)
        if waits != validated or not (waits or is_time) or number % config.frequency:
            continue
        value = trainer.callback_metrics.get(monitor) if reduces else None
        if reduces and value is None:
            if strict:
                raise ConfigurationError(
                    f"ReduceLROnPlateau monitors {monitor!r}, which is not logged. There are: "
                    f"{', '.join(trainer.callback_metrics)}."
                )
            continue
        module.lr_scheduler_step(config.scheduler, value)


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
    """The trainable parameters; those that the algorithm learns in a group of their own.

    That group has its own rate, if one is given, and no weight decay, which would draw learned rates and gates to 0.

    Raises:
        ConfigurationError: There are none.
    """
    trainable = [p for p in module.parameters() if p.requires_grad]
    if not trainable:
        raise ConfigurationError(
            f"{type(module).__name__} has no parameter that requires grad, so there is nothing to train. What learns "
            "nothing can be tested: trainer.test(module, data), or the command test."
        )
    learned = set(module.algorithm.parameters())
    rate = {} if module.inner_optimizer_lr is None else {"lr": module.inner_optimizer_lr}
    groups: list[dict[str, Any]] = [
        {"params": [p for p in trainable if p not in learned]},
        {"params": [p for p in trainable if p in learned], "weight_decay": 0.0, **rate},
    ]
    return [group for group in groups if group["params"]]
