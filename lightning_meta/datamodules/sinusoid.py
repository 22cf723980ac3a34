"""Sine waves."""

from lightning_meta.datamodules.arguments import check_number
from lightning_meta.datamodules.base import TaskDataModule
from lightning_meta.datasets.sinusoid import SinusoidTasks
from lightning_meta.task import TaskDistribution


class SinusoidDataModule(TaskDataModule):
    """Regression tasks: a sine wave of amplitude 0.1 to 5 and phase 0 to π, sampled at inputs from -5 to 5.

    Inputs and targets are `(B, examples, 1)`. Use a regression loss such as `torch.nn.functional.mse_loss`.
    Paper: Finn, Abbeel, Levine 2017, arXiv:1703.03400, section 5.1.

    Args:
        k_shot: Support points of a task.
        n_query: Query points of a task.
        meta_batch_size: Tasks in an outer step, over all devices together.
        steps_per_epoch: Outer steps in an epoch.
        val_tasks: Number of validation tasks.
        test_tasks: Number of test (and prediction) tasks.
        eval_batch_size: Tasks in a batch of evaluation, on each device.
        seed: Which streams of tasks.
        num_workers: Worker processes of each loader. Data held as tensors needs none.
        val_k_shot: Support points of a validation task; those in training by default, and so on below.
        val_n_query: Query points of a validation task.
        test_k_shot: Support points of a test task.
        test_n_query: Query points of a test task.

    Raises:
        ArgumentTypeError: At construction, a value is of another kind.
        ConfigurationError: At construction, a number is out of its range. In `setup`, the devices do not divide the
            meta-batch.

    Example:
        >>> data = SinusoidDataModule(k_shot=5, meta_batch_size=4)
        >>> data.setup()
        >>> next(iter(data.train_dataloader())).support.targets.shape
        torch.Size([4, 5, 1])
    """

    def __init__(
        self,
        k_shot: int = 10,
        n_query: int = 10,
        meta_batch_size: int = 32,
        steps_per_epoch: int = 500,
        val_tasks: int = 200,
        test_tasks: int = 600,
        eval_batch_size: int = 8,
        seed: int = 0,
        num_workers: int = 0,
        val_k_shot: int | None = None,
        val_n_query: int | None = None,
        test_k_shot: int | None = None,
        test_n_query: int | None = None,
    ) -> None:
        super().__init__(
            meta_batch_size=meta_batch_size,
            steps_per_epoch=steps_per_epoch,
            val_tasks=val_tasks,
            test_tasks=test_tasks,
            eval_batch_size=eval_batch_size,
            seed=seed,
            num_workers=num_workers,
        )
        self.k_shot, self.n_query = k_shot, n_query
        self.val_k_shot = k_shot if val_k_shot is None else val_k_shot
        self.val_n_query = n_query if val_n_query is None else val_n_query
        self.test_k_shot = k_shot if test_k_shot is None else test_k_shot
        self.test_n_query = n_query if test_n_query is None else test_n_query
        for prefix in ("", "val_", "test_"):
            for name in (f"{prefix}k_shot", f"{prefix}n_query"):
                check_number(name, getattr(self, name))

    def configure_tasks(self, split: str) -> TaskDistribution:
        """The waves of a split."""
        prefix = "" if split == "train" else f"{split}_"
        k_shot, n_query = getattr(self, f"{prefix}k_shot"), getattr(self, f"{prefix}n_query")
        return SinusoidTasks(split, k_shot, n_query, self.seed)
