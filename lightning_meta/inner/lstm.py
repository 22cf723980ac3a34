"""The LSTM that updates a learner's parameters."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from lightning_meta.errors import ConfigurationError
from lightning_meta.functional.network import Params
from lightning_meta.inner.base import InnerOptimizer, check_rate


class LSTMOptimizer(InnerOptimizer):
    r"""The update rule of Meta-LSTM: the parameters are the cell state of an LSTM whose gates are learned.

    For every coordinate of the parameters φ by itself, with the gradient g and the loss L before the step,

    .. math::
        x &= [\mathrm{pre}(L), \mathrm{pre}(g)], \qquad (h, s) \leftarrow \mathrm{LSTM}(x, h, s) \\
        f &\leftarrow \sigma(w_f \cdot [h, \phi, f] + b_f), \qquad i \leftarrow \sigma(w_i \cdot [h, \phi, i] + b_i) \\
        \phi &\leftarrow f \circ \phi - i \circ g

    so that f = 1 and a constant i is gradient descent at the rate i. All weights are shared by all coordinates. The
    gates see their own values of the step before, as the paper's equations have it (its released code feeds back what
    goes into the sigmoid); they are 0 before the first step.

    Memory, for a backward pass: about 8 numbers per hidden unit for each coordinate and inner step. For the 32-filter
    Conv-4 (28,485 parameters) that is 18 MiB a step and task in float32, so 216 MiB a task at 12 steps.

    Paper: Ravi, Larochelle 2017, "Optimization as a model for few-shot learning" (ICLR); preprocessing: Andrychowicz
    et al. 2016, arXiv:1606.04474, appendix A.

    Args:
        hidden: Hidden units of the first, ordinary LSTM.
        forget_bias: Between which values b_f starts, uniformly: σ(4.5) is 0.989.
        input_bias: Between which values b_i starts: it sets the first rate, σ(-4.5) = 0.011.
        weight_range: All other weights start between minus and plus this value. So small as published, the hidden units
            start alike.

    Raises:
        ConfigurationError: `hidden` is below 1, a bias is not a pair of a lower and an upper value, or `weight_range`
            is negative.

    Example:
        >>> import torch
        >>> params = {"w": torch.tensor([1.0])}
        >>> optimizer = LSTMOptimizer(input_bias=(-50.0, -50.0), forget_bias=(50.0, 50.0))  # keeps what there is
        >>> new, _ = optimizer.update(
        ...     {"w": torch.tensor([0.2])}, optimizer.init(params), params, loss=torch.tensor(0.7), step=0
        ... )
        >>> new["w"].tolist()
        [1.0]
    """

    def __init__(
        self,
        hidden: int = 20,
        forget_bias: tuple[float, float] = (4.0, 5.0),
        input_bias: tuple[float, float] = (-5.0, -4.0),
        weight_range: float = 0.01,
    ) -> None:
        super().__init__()
        if hidden < 1:
            raise ConfigurationError(f"LSTMOptimizer needs hidden to be at least 1, got {hidden}.")
        for name, bias in {"forget_bias": forget_bias, "input_bias": input_bias}.items():
            if len(bias) != 2 or not bias[0] <= bias[1]:
                raise ConfigurationError(f"{name} must be a lower and an upper value, got {bias}.")
        self.hidden = hidden
        r = check_rate("weight_range", weight_range)

        def uniform(low: float, high: float, *shape: int) -> nn.Parameter:
            return nn.Parameter(torch.empty(shape).uniform_(low, high))

        self.weight_x = uniform(-r, r, 4 * hidden, 4)
        """Of the first LSTM, on the preprocessed loss and gradient; rows for its gates input, forget, output and its
        candidate."""
        self.weight_h = uniform(-r, r, 4 * hidden, hidden)
        self.bias = uniform(-r, r, 4 * hidden)
        self.weight_forget = uniform(-r, r, hidden + 2)
        """Of the forget gate, on the first LSTM's output, the parameter, and the gate before."""
        self.weight_input = uniform(-r, r, hidden + 2)
        self.bias_forget = uniform(*forget_bias)
        self.bias_input = uniform(*input_bias)

    def build(self, params: Params, steps: int) -> None:
        """Take the precision and the device of the parameters."""
        self.to(next(iter(params.values())))

    def init(self, params: Params) -> dict[str, Tensor]:
        """Zeros: the first LSTM's output and cell `(hidden, coordinates)`, and both gates `(coordinates,)`."""
        some = next(iter(params.values()))
        coordinates = sum(param.numel() for param in params.values())
        layer = some.new_zeros(self.hidden, coordinates)
        gate = some.new_zeros(coordinates)
        return {"output": layer, "cell": layer, "forget_gate": gate, "input_gate": gate}

    def update(
        self, grads: Params, state: Any, params: Params, *, loss: Tensor, step: int, **extra: Any
    ) -> tuple[Params, Any]:
        """One step of both layers, over all coordinates at once."""
        param = torch.cat([p.flatten() for p in params.values()])
        grad = torch.cat([grads[name].flatten() for name in params])

        # The loss is the same for all coordinates: it acts as part of the bias.
        bias = self.bias + self.weight_x[:, :2] @ preprocess(loss.to(grad.dtype))
        weight = torch.cat([self.weight_x[:, 2:], self.weight_h], 1)
        gates = torch.addmm(bias.unsqueeze(1), weight, torch.cat([preprocess(grad), state["output"]]))
        of_gates, candidate = torch.split(gates, [3 * self.hidden, self.hidden])
        i, f, o = of_gates.sigmoid().chunk(3)
        cell = f * state["cell"] + i * candidate.tanh()
        output = o * cell.tanh()

        forget_gate = self._gate(self.weight_forget, self.bias_forget, output, param, state["forget_gate"])
        input_gate = self._gate(self.weight_input, self.bias_input, output, param, state["input_gate"])
        param = forget_gate * param - input_gate * grad

        pieces = torch.split(param, [p.numel() for p in params.values()])
        new = {name: piece.view(p.shape) for (name, p), piece in zip(params.items(), pieces, strict=True)}
        return new, {"output": output, "cell": cell, "forget_gate": forget_gate, "input_gate": input_gate}

    def _gate(self, weight: Tensor, bias: Tensor, output: Tensor, param: Tensor, before: Tensor) -> Tensor:
        return (weight[: self.hidden] @ output + weight[-2] * param + weight[-1] * before + bias).sigmoid()

    def extra_repr(self) -> str:
        """The size."""
        return f"hidden={self.hidden}"


def preprocess(x: Tensor, p: float = 10.0) -> Tensor:
    r"""Log-magnitude and sign of numbers of any scale, both within about [-1, 1].

    .. math::
        \left(\frac{\log|x|}{p}, \mathrm{sgn}\,x\right) \text{ where } |x| \ge e^{-p}, \qquad
        (-1, e^p x) \text{ elsewhere}

    Args:
        x: Of any shape.
        p: Where small begins.

    Returns:
        `(2, *x.shape)`.
    """
    magnitude = x.abs()
    large = magnitude >= math.exp(-p)
    log = torch.where(large, magnitude, 1).log() / p  # the derivative of log at 0 would be NaN
    return torch.stack([torch.where(large, log, -1), torch.where(large, x.sign(), math.exp(p) * x)])
