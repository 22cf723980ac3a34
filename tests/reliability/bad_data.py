"""Data sets and networks with flaws, for the command line."""

import torch
from torch import nn
from torch.utils.data import Dataset

FLAWS = (
    "none", "no targets", "real targets", "too few targets", "few examples", "few classes", "raises", "not a tuple",
    "strings", "sizes differ", "nan", "empty", "negative targets", "channels", "integers", "nested targets",
    "none inputs",
)  # fmt: skip


class Images(Dataset):
    """Thirty images of five classes, read one by one, with a flaw."""

    def __init__(self, flaw: str = "none", start: int = 0):
        self.flaw = flaw
        self.targets = [start + i % 5 for i in range(0 if flaw == "empty" else 30)]
        if flaw == "no targets":
            del self.targets
        elif flaw == "real targets":
            self.targets = [t + 0.5 for t in self.targets]
        elif flaw == "too few targets":
            self.targets = self.targets[:7]
        elif flaw == "few examples":
            self.targets = list(range(30))
        elif flaw == "few classes":
            self.targets = [start] * 30
        elif flaw == "negative targets":
            self.targets = [-1 - t for t in self.targets]
        elif flaw == "nested targets":
            self.targets = [[t] for t in self.targets]

    def __len__(self):
        return 0 if self.flaw == "empty" else 30

    def __getitem__(self, index):
        image = torch.full((1, 28, 28), float(index))
        if self.flaw == "raises" and index % 3 == 1:
            raise OSError(f"image{index}.png is broken")
        if self.flaw == "not a tuple":
            return image
        replaced = {
            "strings": "image",
            "sizes differ": torch.zeros(1, 28, 20 + index),
            "nan": image * torch.nan,
            "channels": torch.zeros(3, 28, 28),
            "integers": image.long(),
            "none inputs": None,
        }
        return replaced.get(self.flaw, image), index % 5


class Flawed(nn.Module):
    """A network that does not do what it should."""

    def __init__(self, flaw: str = "none"):
        super().__init__()
        self.flaw = flaw
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(100 if flaw == "features" else 784, 8), nn.ReLU())
        self.head = nn.Linear(8, 2 if flaw == "few outputs" else 5)
        if flaw == "frozen":
            self.requires_grad_(False)
        if flaw == "no parameters":
            self.body, self.head = nn.Flatten(), nn.Identity()

    def forward(self, inputs):
        outputs = self.head(self.body(inputs))
        replaced = {"tuple": (outputs, outputs), "none": None, "scalar": outputs.mean(), "nan": outputs * torch.nan}
        return replaced.get(self.flaw if self.flaw != "none" else "", outputs)


NETWORK_FLAWS = ("none", "features", "few outputs", "frozen", "no parameters", "tuple", "scalar", "nan")
