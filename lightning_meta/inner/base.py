"""What every inner optimizer is."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, TypeVar

from torch import Tensor, nn

from lightning_meta.errors import ArgumentTypeError, ConfigurationError
from lightning_meta.functional.network import Params

Method = TypeVar("Method", bound=Callable[..., Any])


def elementwise(update: Method) -> Method:
    """Mark an `update` that treats every coordinate by itself, with operators that broadcast over leading dimensions.

    It, and `init`, then get the parameters of all tasks at once, each `(B, *shape)`, which saves `torch.vmap`. A
    subclass that overrides `update` does not inherit the mark.
    """
    update.elementwise = True  # type: ignore[attr-defined]
    return update


class InnerOptimizer(nn.Module, ABC):
    """A differentiable optimizer of one task's parameters, with its state passed in and out.

    Whatever it learns (a rate per parameter, an LSTM) are its own `nn.Parameter`s, and so meta-parameters: checkpoints,
    distributed training and the outer optimizer treat them like the network's.

    `init` and `update` see one task: parameters by name, without the task dimension. Many tasks are run by
    `torch.vmap`, so write tensor operations only: no `.item()`, no `if` on a tensor's value, nothing in place, no state
    on `self`. `extra_repr` is what a checkpoint records of the settings, to warn where they differ.
    """

    def build(self, params: Params, steps: int) -> None:
        """Make what depends on the parameters to adapt, such as a rate for each. Called once by the module.

        Args:
            params: The network's parameters that the inner loop changes, by name. Names have dots, which an
                `nn.ParameterDict` does not take: put `/` for them, for instance.
            steps: Inner steps in meta-training.
        """

    @abstractmethod
    def init(self, params: Params) -> Any:
        """The state before the first step.

        Args:
            params: The parameters to adapt, by name.

        Returns:
            Any nesting of dicts, lists and tuples of tensors, and of nothing else; `()` for none.
        """

    @abstractmethod
    def update(
        self, grads: Params, state: Any, params: Params, *, loss: Tensor, step: int, **extra: Any
    ) -> tuple[Params, Any]:
        """One inner step.

        Args:
            grads: The gradient of the support loss for each parameter, of the same shape.
            state: The state that `init` or the last `update` returned.
            params: The parameters.
            loss: The support loss, a detached scalar.
            step: The number of the inner step, from 0.
            extra: What a particular algorithm passes besides.

        Returns:
            New parameters under the same names, and the new state. Neither is changed in place.
        """

    def learned(self) -> dict[str, Tensor]:
        """Numbers to be logged of what is learned, by name: nothing by default."""
        return {}


def check_rate(name: str, value: float) -> float:
    """Refuse a rate or coefficient that is negative or not a number.

    Raises:
        TypeError: It is no number at all.
        ValueError: It is negative, or "not a number".
    """
    if not isinstance(value, int | float):
        raise ArgumentTypeError(f"{name} of an inner optimizer must be a number, got {value!r}.")
    if not value >= 0:
        raise ConfigurationError(f"{name} of an inner optimizer must be 0 or more, got {name}={value}.")
    return value


def check_optimizer(optimizer: Any) -> InnerOptimizer:
    """Refuse what is not an inner optimizer.

    Raises:
        ArgumentTypeError: It is something else.
    """
    if not isinstance(optimizer, InnerOptimizer):
        raise ArgumentTypeError(
            f"inner_optimizer must be an object of a lightning_meta.InnerOptimizer, such as SGD(lr=0.1), got "
            f"{optimizer!r}. (torch's optimizers write in place and cannot be differentiated through.)"
        )
    return optimizer


def check_nothing_to_learn(module: str, optimizer: InnerOptimizer) -> None:
    """Refuse an inner optimizer that has something to learn, for an algorithm whose meta-gradient has no part for it.

    Raises:
        ConfigurationError: `optimizer` has parameters; `module` is the name of the algorithm.
    """
    if any(p.requires_grad for p in optimizer.parameters()):
        raise ConfigurationError(
            f"{module} has no gradient for what {type(optimizer).__name__} learns. Use MAMLModule with "
            "it, or an inner optimizer without parameters, such as SGD or Adam."
        )
