"""Linear classifiers that are made of a support set's features in closed form."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from lightning_meta.errors import ConfigurationError
from lightning_meta.functional.prototypes import prototypes, prototypical_head
from lightning_meta.functional.ridge import ridge_weights
from lightning_meta.functional.svm import svm_weights


class Head(nn.Module, ABC):
    """Makes a linear layer from the features of support examples; what it learns are its own parameters."""

    @abstractmethod
    def forward(
        self, features: Tensor, targets: Tensor, n_way: int, mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The layer of each task.

        Args:
            features: `(B, examples, features)`.
            targets: Class numbers from 0, `(B, examples)`.
            n_way: The number of classes `N`.
            mask: Which examples there are, `(B, examples)`; all if `None`.

        Returns:
            Weight `(B, N, features)` and bias `(B, N)`, in at least float32; zeros for a class without examples.
        """


class PrototypeHead(Head):
    """Classifies by the distances to the mean of each class: see `prototypical_head`."""

    def forward(
        self, features: Tensor, targets: Tensor, n_way: int, mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The layer whose softmax is that over negative squared distances to the prototypes."""
        return prototypical_head(prototypes(features, targets, n_way, mask))


class RidgeHead(Head):
    r"""Regresses one-hot classes on features, scaled and shifted to logits: :math:`\alpha X W + \beta`.

    λ, α and β are learned; λ by its logarithm. Paper: Bertinetto, Henriques, Torr, Vedaldi 2019, arXiv:1805.08136.

    Args:
        regularization: The strength λ at first, positive.
        scale: The scale α at first.
    """

    def __init__(self, regularization: float = 1.0, scale: float = 1.0) -> None:
        super().__init__()
        if not regularization > 0:
            raise ConfigurationError(f"regularization must be positive, got {regularization}.")
        self.log_regularization = nn.Parameter(torch.tensor(regularization).log())
        self.scale = nn.Parameter(torch.tensor(float(scale)))
        self.shift = nn.Parameter(torch.tensor(0.0))

    def forward(
        self, features: Tensor, targets: Tensor, n_way: int, mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The layer whose outputs are the regressed ones, scaled and shifted."""
        weight = self.scale * ridge_weights(features, targets, n_way, self.log_regularization.exp(), mask)
        return weight, self.shift.to(weight.dtype).expand(weight.shape[:2])


class SVMHead(Head):
    r"""A multi-class linear support vector machine, whose margins times a learned scale are the logits.

    Paper: Lee, Maji, Ravichandran, Soatto 2019, arXiv:1904.03758 (MetaOptNet); see `svm_weights`.

    Args:
        C: The bound of the dual variables, positive: the larger, the less may an example violate its margin.
        scale: The scale at first.
    """

    def __init__(self, C: float = 0.1, scale: float = 1.0) -> None:
        super().__init__()
        if not C > 0:
            raise ConfigurationError(f"C must be positive, got {C}.")
        self.C = C
        self.scale = nn.Parameter(torch.tensor(float(scale)))

    def forward(
        self, features: Tensor, targets: Tensor, n_way: int, mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The machine's weights, scaled, and no bias."""
        weight = self.scale * svm_weights(features, targets, n_way, self.C, mask)
        return weight, weight.new_zeros(weight.shape[:2])
