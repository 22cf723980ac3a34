"""Networks for tests: one for each kind of layer that makes meta-gradients hard."""

import torch
from torch import nn


class Normed(nn.Module):
    """Two blocks of convolution, the given norm and ReLU, and a head."""

    def __init__(self, norm, n_way=3, channels=6):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, channels, 3, stride=2, padding=1), norm(channels, 4), nn.ReLU(),
            nn.Conv2d(channels, channels, 3, stride=2, padding=1), norm(channels, 2), nn.ReLU(), nn.Flatten(),
        )  # fmt: skip
        self.head = nn.Linear(channels * 4, n_way)

    def forward(self, x):
        return self.head(self.body(x))


def _scaled(layer):
    """Move weight and bias away from 1 and 0, where mistakes could hide."""
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return layer


NORMS = {
    "batch": lambda c, s: _scaled(nn.BatchNorm2d(c, track_running_stats=False)),
    "batch_tracked": lambda c, s: _scaled(nn.BatchNorm2d(c)),
    "layer": lambda c, s: _scaled(nn.LayerNorm([c, s, s])),
    "instance": lambda c, s: _scaled(nn.InstanceNorm2d(c, affine=True)),
    "group": lambda c, s: _scaled(nn.GroupNorm(2, c)),
}


def network(kind, n_way=3):
    """A float64 network for images 1x8x8: one of NORMS, or "mlp"."""
    torch.manual_seed(0)
    if kind == "mlp":
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.Tanh(), nn.Linear(16, n_way)).double()
    return Normed(NORMS[kind], n_way).double()


class WithContext(nn.Module):
    """A network whose images are shifted by context parameters, for CAVIA."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner
        self.context = nn.Parameter(torch.zeros(8).to(next(inner.parameters())))

    def forward(self, x):
        return self.inner(x + self.context)


class Recurrent(nn.Module):
    """A GRU, which torch.vmap cannot run."""

    def __init__(self, n_way=3):
        super().__init__()
        self.rnn = nn.GRU(8, 5, batch_first=True)
        self.head = nn.Linear(5, n_way)

    def forward(self, x):
        return self.head(self.rnn(x.squeeze(1))[0][:, -1])


class ValueDependent(nn.Module):
    """Asks for a tensor's value, which torch.vmap cannot run."""

    def __init__(self, n_way=3):
        super().__init__()
        self.flat = nn.Flatten()
        self.gate = Gate()
        self.head = nn.Linear(64, n_way)

    def forward(self, x):
        return self.head(self.gate(self.flat(x)))


class Gate(nn.Module):
    """An `if` on data."""

    def forward(self, x):
        return x if x.sum() > 0 else 2 * x
