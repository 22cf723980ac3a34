"""Your own texts: a table of texts and the names of their classes."""

from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torch.utils.data import Dataset, Subset

from lightning_meta.datamodules.arguments import check_number
from lightning_meta.datamodules.episodic import EpisodicDataModule
from lightning_meta.datamodules.splits import SplitRecord
from lightning_meta.datasets import ClassDataset
from lightning_meta.errors import ArgumentTypeError, ConfigurationError
from lightning_meta.task import Task
from lightning_meta.text.embeddings import Pooling, encode, encoded_once, padded, tokenized
from lightning_meta.text.pretrained import DEFAULT_MODEL, Pretrained
from lightning_meta.text.splits import check_groups, read_split_file, split_at_random, split_by_file
from lightning_meta.text.tables import Texts, read_texts

Representation = Literal["embeddings", "tokens"]


class TextDataModule(EpisodicDataModule):
    """Tasks of your own texts, from a table with a column of texts and one of the names of their classes.

    As `"embeddings"`, texts are encoded once by a pretrained model, which stays as it is, and kept in a folder of
    caches: inputs are vectors `(B, examples, features)`, and meta-learning takes seconds. As `"tokens"`, inputs are
    dicts of `input_ids` and `attention_mask`, `(B, examples, tokens)`, padded to the longest text of the meta-batch,
    for a network such as `TextClassifier`. Texts of more than `max_length` tokens are cut; how many is said.

    Classes are divided at random by `split_seed`, or by a column of groups, such as domains, or by a file
    `{"train": [...], "val": [...], "test": [...]}`, of one fold or of several, `{"folds": [{...}, ...]}`, or by files
    of their own. Which classes each split has is written to `classes.json` in the run's folder.

    Args:
        path: A file `.csv`, `.tsv` or `.jsonl`, each also as `.gz`; or what else `read_texts` takes, such as pairs.
        text: The column of the texts.
        label: The column of the classes.
        group: A column of groups of classes: splits share no group, then.
        root: The folder in which the files lie; the current one if `None`.
        val_path: Texts of the validation classes, if they have a file of their own.
        test_path: Texts of the test classes, if they have a file of their own.
        split: Parts of the classes (or groups) for train, val and test, where nothing else divides them.
        split_seed: Another seed, other classes in each split.
        split_file: A JSON file that names the classes (or groups) of each split.
        fold: Which of its folds, from 1.
        model: A folder, an installed package that carries a model, or a name on the Hugging Face hub.
        representation: `embeddings` or `tokens`.
        pooling: How a text's vector is made of those of its tokens: their `mean`, or that of the first (`cls`).
        normalize: Whether vectors have unit length.
        max_length: The most tokens of a text, those that mark its ends included.
        encode_batch_size: Texts that are encoded together.
        cache: The folder of encoded texts; `lightning_meta` in the user's folder of caches if `None`.
        n_way: Classes in a task, or a range [smallest, largest].
        k_shot: Support examples of each class, or a range.
        n_query: Query examples of each class.
        meta_batch_size: Tasks in an outer step, over all devices together.
        steps_per_epoch: Outer steps in an epoch.
        val_tasks: Number of validation tasks.
        test_tasks: Number of test (and prediction) tasks.
        eval_batch_size: Tasks in a batch of evaluation, on each device.
        seed: Which streams of tasks.
        num_workers: Worker processes of each loader. Data held as tensors needs none.
        val_n_way: Classes in a validation task; those in training by default, and so on below.
        val_k_shot: Support examples of each class in validation.
        val_n_query: Query examples of each class in validation.
        test_n_way: Classes in a test task, or a list: one row of results for each entry.
        test_k_shot: Support examples of each class in tests, or a list.
        test_n_query: Query examples of each class in tests.
        balanced: Whether classes of a task have equal shots; if not, they are drawn as in Meta-Dataset, up to k_shot.
        min_examples: Use classes with at least that many examples, even if that is below k_shot + n_query.

    Raises:
        ArgumentTypeError: At construction, a value is of another kind.
        ConfigurationError: At construction, a value does not make sense. In `setup`, a column is missing, the classes
            cannot give such tasks, splits share classes, or the devices do not divide the meta-batch.
        DataError: In `prepare_data` and `setup`, a file cannot be read; the message names file and line.
        MissingFileError: There is no such file or model.
    """

    def __init__(
        self,
        path: str | Sequence[Any],
        text: str = "text",
        label: str = "label",
        group: str | None = None,
        root: str | None = None,
        val_path: str | None = None,
        test_path: str | None = None,
        split: tuple[float, float, float] = (0.6, 0.2, 0.2),
        split_seed: int = 0,
        split_file: str | None = None,
        fold: int = 1,
        model: str = DEFAULT_MODEL,
        representation: Representation = "embeddings",
        pooling: Pooling = "mean",
        normalize: bool = True,
        max_length: int = 128,
        encode_batch_size: int = 64,
        cache: str | None = None,
        n_way: int | tuple[int, int] = 5,
        k_shot: int | tuple[int, int] = 1,
        n_query: int = 15,
        meta_batch_size: int = 32,
        steps_per_epoch: int = 500,
        val_tasks: int = 200,
        test_tasks: int = 600,
        eval_batch_size: int = 8,
        seed: int = 0,
        num_workers: int = 0,
        val_n_way: int | tuple[int, int] | None = None,
        val_k_shot: int | tuple[int, int] | None = None,
        val_n_query: int | None = None,
        # A list before a range: on the command line [1, 5] is a list here.
        test_n_way: int | list[int | tuple[int, int]] | tuple[int, int] | None = None,
        test_k_shot: int | list[int | tuple[int, int]] | tuple[int, int] | None = None,
        test_n_query: int | None = None,
        balanced: bool = True,
        min_examples: int | None = None,
    ) -> None:
        super().__init__(
            n_way=n_way,
            k_shot=k_shot,
            n_query=n_query,
            meta_batch_size=meta_batch_size,
            steps_per_epoch=steps_per_epoch,
            val_tasks=val_tasks,
            test_tasks=test_tasks,
            eval_batch_size=eval_batch_size,
            seed=seed,
            num_workers=num_workers,
            val_n_way=val_n_way,
            val_k_shot=val_k_shot,
            val_n_query=val_n_query,
            test_n_way=test_n_way,
            test_k_shot=test_k_shot,
            test_n_query=test_n_query,
            balanced=balanced,
            min_examples=min_examples,
        )
        check_number("max_length", max_length, 3)
        check_number("encode_batch_size", encode_batch_size)
        check_number("split_seed", split_seed, 0, 2**64)
        check_number("fold", fold)
        for name, value, kind in (("representation", representation, Representation), ("pooling", pooling, Pooling)):
            if value not in get_args(kind):
                raise ConfigurationError(f"{name} must be {' or '.join(map(repr, get_args(kind)))}, got {value!r}.")
        if val_path is not None and test_path is None:
            raise ConfigurationError("val_path is given without test_path: files of their own are for all splits.")
        if test_path is not None and split_file is not None:
            raise ConfigurationError("Classes are divided by test_path or by split_file: give one of them.")
        self.root = Path(root or ".").expanduser()
        self.paths: dict[str, Any] = {"train": path, "val": val_path, "test": test_path}
        self.columns = {"text": text, "label": label, "group": group}
        self.split, self.split_seed = split, split_seed
        self.split_file, self.fold = split_file, fold
        self.pretrained = Pretrained(model)
        self.representation: Representation = representation
        self.embedded = representation == "embeddings"
        self.pooling: Pooling = pooling
        self.normalize, self.max_length, self.encode_batch_size = normalize, max_length, encode_batch_size
        self.cache = None if cache is None else Path(cache).expanduser()
        self.split_classes: dict[str, list[str]] = {}
        """The classes of each split, once `setup` has run."""
        self._record = SplitRecord()
        self._loaded: tuple[dict[str, Texts], Any] | None = None

    def _set_hparams(self, hp: Any) -> None:
        # Texts given as a list are data, and would be in each checkpoint.
        super()._set_hparams({name: value for name, value in dict(hp).items() if name != "path" or type(value) is str})

    def prepare_data(self) -> None:
        """Encode the texts that are not encoded yet, on one process of each machine."""
        if not self.tasks:
            self._load()

    def configure_datasets(self) -> None:
        """Take the encoded texts, and divide their classes into splits."""
        parts, inputs = self._load()
        self._loaded = None
        _check_shared({split: set(part.labels) for split, part in parts.items()})
        found: dict[str, Dataset[Any]] = {}
        start = 0
        for split, part in parts.items():
            places = slice(start, start := start + len(part.texts))
            of_part = inputs[places] if isinstance(inputs, Tensor) else {n: t[places] for n, t in inputs.items()}
            names = sorted(set(part.labels))
            number = {name: i for i, name in enumerate(names)}
            data = ClassDataset(of_part, [number[label] for label in part.labels], names)
            found |= {split: Subset(data, range(len(data)))} if split else self._divided(data, part)
        self.datasets.update(found)
        for split, subset in found.items():
            base: Any = subset.dataset  # type: ignore[attr-defined]
            numbers = base.targets[torch.as_tensor(subset.indices)].unique()  # type: ignore[attr-defined]
            self.split_classes[split] = [base.classes[i] for i in numbers.tolist()]
        sizes = ", ".join(f"{len(names)} classes to {split}" for split, names in self.split_classes.items())
        rank_zero_info(f"{self.paths['train'] if type(self.paths['train']) is str else 'Texts'}: {sizes}.")

    def _load(self) -> tuple[dict[str, Texts], Any]:
        """The texts of each file, and the inputs of all; kept from `prepare_data` to `setup`."""
        if self._loaded is None:
            parts = self._read()
            self._loaded = parts, self._inputs([text for part in parts.values() for text in part.texts])
        return self._loaded

    def _read(self) -> dict[str, Texts]:
        """The texts of each split; of `""` where one table has them all."""
        given = {split: path for split, path in self.paths.items() if path is not None}
        columns = [self.columns["text"], self.columns["label"], self.columns["group"]]
        found = {
            split: read_texts(self.root / path if isinstance(path, str) else path, *columns)  # type: ignore[arg-type]
            for split, path in given.items()
        }
        return found if len(found) > 1 else {"": found["train"]}

    def _divided(self, data: ClassDataset, part: Texts) -> dict[str, Any]:
        if part.groups is not None:
            check_groups(part.labels, part.groups)
        if self.split_file is None:
            return split_at_random(data, part.groups, self.split, self.split_seed)
        found = read_split_file(self.root / self.split_file, self.fold)
        return split_by_file(data, part.groups or part.labels, found)

    def _inputs(self, texts: list[str]) -> Any:
        if self.representation == "tokens":
            ids, cut = tokenized(self.pretrained, texts, self.max_length)
            inputs: Any = padded(ids, self.pretrained.tokenizer.pad_token_id)
        else:
            options = self.pooling, self.normalize, self.max_length, self.encode_batch_size
            inputs, cut = encoded_once(self.pretrained, texts, *options, self.cache)
        if cut:
            rank_zero_info(f"{cut} of {len(texts)} texts are cut: they have over max_length={self.max_length} tokens.")
        return inputs

    def encode(self, texts: Sequence[str]) -> Any:
        """Texts as inputs, to adapt to and to predict: vectors `(texts, features)`, or ids padded to the longest.

        Raises:
            ArgumentTypeError: They are not a list of strings.
        """
        if isinstance(texts, str) or not texts or not all(isinstance(text, str) for text in texts):
            raise ArgumentTypeError(f"encode takes a list of strings, got {texts!r}. For one text give [text].")
        if self.representation == "tokens":
            ids, _ = tokenized(self.pretrained, texts, self.max_length)
            return padded(ids, self.pretrained.tokenizer.pad_token_id)
        options = self.pooling, self.normalize, self.max_length, self.encode_batch_size
        return encode(self.pretrained, texts, *options)[0]

    def finish(self, tasks: Task, split: str) -> Task:
        """Cut the padding that no text of the meta-batch needs."""
        if self.representation == "embeddings":
            return super().finish(tasks, split)
        longest = max(int(part.inputs["attention_mask"].sum(-1).max()) for part in tasks)
        support, query = (
            part._replace(inputs={name: ids[..., :longest] for name, ids in part.inputs.items()}) for part in tasks
        )
        return Task(support, query)

    def on_after_batch_transfer(self, batch: Task, dataloader_idx: int) -> Task:
        """Finish a batch on the device; with the first, write down the classes of each split."""
        self._record(self._running_trainer(), self.split_classes)
        return super().on_after_batch_transfer(batch, dataloader_idx)


def _check_shared(labels: dict[str, set[str]]) -> None:
    """Refuse files of splits that share classes."""
    for one, other in combinations(labels, 2):
        shared = sorted(labels[one] & labels[other])
        if shared:
            raise ConfigurationError(
                f"The files of {one} and {other} share {len(shared)} classes: {', '.join(shared[:5])}. Few-shot "
                "evaluation is on classes never trained on: leave them out of one file, or give one file, and its "
                "classes are divided."
            )
