"""Sine waves."""

from typing import Any

from lightning_meta.datamodules.base import EpisodicDataModule
from lightning_meta.datasets.sinusoid import SinusoidTasks
from lightning_meta.task import TaskDistribution


class SinusoidDataModule(EpisodicDataModule):
    """Regression tasks: a sine wave of amplitude 0.1 to 5 and phase 0 to π, sampled at inputs from -5 to 5.

    Inputs and targets are `(B, examples, 1)`. Use a regression loss such as `torch.nn.functional.mse_loss`.
    Paper: Finn, Abbeel, Levine 2017, arXiv:1703.03400, section 5.1.

    Args:
        k_shot: Support points of a task.
        n_query: Query points of a task.
        kwargs: See `EpisodicDataModule`; `n_way` and the data sets have no meaning here.

    Example:
        >>> data = SinusoidDataModule(k_shot=5, meta_batch_size=4)
        >>> data.setup()
        >>> next(iter(data.train_dataloader())).support.targets.shape
        torch.Size([4, 5, 1])
    """

    def __init__(self, k_shot: int = 10, n_query: int = 10, **kwargs: Any) -> None:
        super().__init__(n_way=1, k_shot=k_shot, n_query=n_query, **kwargs)

    def configure_tasks(self, split: str) -> TaskDistribution:
        """The waves of a split."""
        prefix = "" if split == "train" else f"{split}_"
        k_shot, n_query = getattr(self, f"{prefix}k_shot"), getattr(self, f"{prefix}n_query")
        return SinusoidTasks(split, k_shot, n_query, self.seed)
