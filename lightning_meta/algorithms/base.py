"""What an algorithm is: something that makes an outcome of a problem."""

from abc import ABC, abstractmethod
from collections.abc import Hashable
from typing import Any, Literal, NamedTuple, Protocol

from torch import Tensor, nn

from lightning_meta.errors import ConfigurationError
from lightning_meta.functional.network import Params
from lightning_meta.functional.problem import Problem
from lightning_meta.task import Examples

Statistics = Literal["query batch (transductive)", "support set", "support set with one query example"]


class Outcome(NamedTuple):
    """What an algorithm made of a batch of `B` tasks.

    Attributes:
        losses: The adapted parameters' loss on each task, `(B,)`; in meta-training with the meta-gradient for its
            gradient.
        metrics: Values to log for each task, `(B,)` each, detached.
        inner_losses: Support losses before each inner step, `(B, steps)`, detached.
        carried: Tensors `(B, ...)` whose mean over the tasks of all devices is given to `Algorithm.carry` after the
            outer step.
        judged: In evaluation what was judged: predictions and targets `(B, queries, ...)`, and the mask.
    """

    losses: Tensor
    metrics: dict[str, Tensor]
    inner_losses: Tensor
    carried: Any = ()
    judged: Any = ()


class Adapted(NamedTuple):
    """What the inner loop leaves of a batch of tasks.

    Attributes:
        params: Each task's parameters.
        buffers: Each task's buffers.
        inner_losses: The support losses before each step, `(B, steps)`.
        state: The inner optimizer's state.
        support: The support examples of the last step.
        steps: How many inner steps were made.
    """

    params: Params
    buffers: Params
    inner_losses: Tensor
    state: Any
    support: Examples
    steps: int


class Fitted(NamedTuple):
    """What `Algorithm.fit` leaves of one task, from which a network to predict with is made.

    Attributes:
        network: What to make it of; itself unchanged.
        values: Parameters and buffers of the task, by their names in the network, `(1, *shape)` each.
        head: Weight `(N, features)` and bias `(N,)` of a linear layer after the network, if there is to be one.
    """

    network: nn.Module
    values: Params
    head: tuple[Tensor, Tensor] | None = None


class Algorithm(nn.Module, ABC):
    """A meta-learning algorithm in plain torch: what it learns besides the network are its own parameters.

    A subclass is complete: it has parts, and is not derived from any further.
    """

    def __init__(self, statistics: Statistics, objective: str = "query_loss") -> None:
        super().__init__()
        self.statistics = statistics
        """Whose statistics batch normalization uses in evaluation; in meta-training it is the batch at hand."""
        self.objective = objective
        """What the losses of `learn` are called in the logs."""
        self.step_params = nn.ParameterDict()
        """Parameters that belong to an inner step: see `Problem.step_params`. Keys have `/` for `.`."""

    @abstractmethod
    def select(self, network: nn.Module) -> tuple[str, ...]:
        """Names of the network's parameters that the inner loop changes; none if there is no inner loop."""

    def build(self, network: nn.Module) -> None:
        """Make the parameters that depend on the network. Called once by the module."""

    @abstractmethod
    def learn(self, problem: Problem) -> Outcome:
        """Adapt in meta-training: the mean of the losses has the meta-gradient for its gradient."""

    @abstractmethod
    def evaluate(self, problem: Problem) -> Outcome:
        """Adapt and measure; nothing is differentiated afterwards."""

    @abstractmethod
    def predict(self, problem: Problem) -> Any:
        """Adapt, and predict the query sets: `(B, queries, ...)`."""

    @abstractmethod
    def fit(self, problem: Problem, steps: int | None = None) -> Fitted:
        """Adapt to the support set of a single task, by `steps` inner steps if that is not `None`."""

    def curve(self, problem: Problem, steps: int | None = None) -> dict[str, Tensor]:
        """Query metrics after each inner step, `(B, steps + 1)` each.

        Raises:
            ConfigurationError: There is no inner loop.
        """
        raise ConfigurationError("There are no inner steps to follow: this algorithm adapts in closed form.")

    def compile_key(self, outer_step: int) -> Hashable | None:
        """What `learn` depends on besides tensors; `None` if that is something else in every outer step."""
        return ()

    def carry(self, mean: Any) -> None:
        """Keep the mean of `Outcome.carried` over the tasks of all devices."""

    def carried(self) -> Any:
        """What is kept from one outer step to the next besides parameters, as tensors; `None` if nothing is."""
        return None

    def restore(self, carried: Any, network: nn.Module) -> bool:
        """Go on from what `carried` returned, given the network; `False` if that does not fit and is left alone."""
        return True


class MetaGradient(Protocol):
    """Makes a meta-gradient of an inner loop."""

    @property
    def objective(self) -> str:
        """What the losses are called in the logs."""
        ...

    def __call__(self, algorithm: Any, problem: Problem) -> Outcome:
        """Adapt in meta-training: see `Algorithm.learn`."""
        ...

    def compile_key(self, outer_step: int) -> Hashable | None:
        """See `Algorithm.compile_key`."""
        ...
