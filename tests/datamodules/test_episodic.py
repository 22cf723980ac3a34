"""Ranges, rows, hooks and arguments of the data modules."""

import inspect
import pickle
import re
from types import SimpleNamespace

import lightning.pytorch as pl
import pytest
import torch
from jsonargparse import ArgumentParser
from lightning.pytorch.trainer.states import RunningStage
from torch.utils.data import Subset, TensorDataset

from lightning_meta import (
    CIFARFSDataModule,
    EpisodicDataModule,
    Examples,
    FC100DataModule,
    FineGrainedDataModule,
    GlyphsDataModule,
    ImageFolderDataModule,
    MiniImageNetDataModule,
    OmniglotDataModule,
    SinusoidDataModule,
    Task,
    TieredImageNetDataModule,
    class_split,
)
from lightning_meta.datamodules import ClassTasks, TaskDataModule
from lightning_meta.datasets import ClassDataset
from lightning_meta.errors import ArgumentTypeError, ConfigurationError
from lightning_meta.task import tensors_of
from tests.datamodules.test_base import as_rank, module
from tests.datamodules.test_class_tasks import Plain, numbered

RANGES = {"n_way": (2, 5), "k_shot": (1, 4), "n_query": 2}
RAGGED = {"n_way": (3, 5), "k_shot": (1, 3), "n_query": 2, "balanced": False}


def rows_of(loader):
    """Every task of a loader, without its padding."""
    found = []
    for batch in loader:
        for number in range(len(batch.support.targets)):
            found.append([(part.inputs[number][m].tolist(), part.targets[number][m].tolist())
                          for part in batch for m in [part.mask[number]]])  # fmt: skip
    return found


@pytest.mark.parametrize("shape", [RANGES, RAGGED], ids=["ranges", "unbalanced"])
def test_varied_tasks_are_one_stream_for_ranks_and_workers_and_go_on_where_they_were(shape):
    expected = rows_of(module(**shape).train_dataloader())
    assert len(expected) == 20
    assert rows_of(module(**shape, num_workers=2).train_dataloader()) == expected
    ranks = [rows_of(as_rank(rank, 2, **shape).train_dataloader()) for rank in range(2)]
    assert [task for step in range(5) for own in ranks for task in own[2 * step : 2 * step + 2]] == expected
    assert rows_of(as_rank(0, 1, 3, **shape).train_dataloader())[:8] == expected[12:]
    evaluated = rows_of(module(**shape, val_tasks=11, eval_batch_size=3).val_dataloader())
    assert len(evaluated) == 11
    assert rows_of(module(**shape, val_tasks=11, eval_batch_size=11).val_dataloader()) == evaluated


def test_a_list_makes_one_row_of_results_for_each_entry():
    data = module(n_way=3, test_n_way=[2, (3, 5)], test_k_shot=[1, 3], test_tasks=6)
    assert data.test_rows == ["2-way 1-shot", "2-way 3-shot", "3-5-way 1-shot", "3-5-way 3-shot"]
    assert list(data.rows) == data.test_rows
    assert data.ways_of("test") == (2, 5)
    assert data.ways_of("train") == data.ways_of("val") == (3, 3)
    assert data.largest_way == 5
    assert data.tasks["test"].n_way == 2
    for loaders in (data.test_dataloader(), data.predict_dataloader()):
        assert len(loaders) == 4
        for loader, shape in zip(loaders, [(2, 1), (2, 3), ((3, 5), 1), ((3, 5), 3)], strict=True):
            alone = module(n_way=3, test_n_way=shape[0], test_k_shot=shape[1], test_tasks=6)
            assert alone.test_rows == []
            assert alone.rows == {}
            for found, expected in zip(loader, alone.test_dataloader(), strict=True):
                assert len(tensors_of(found)) == len(tensors_of(expected))
                assert all(map(torch.equal, tensors_of(found), tensors_of(expected)))


def test_a_list_of_one_is_a_row():
    data = module(test_k_shot=[2])
    assert data.test_rows == ["3-way 2-shot"]
    assert len(data.test_dataloader()) == 1


def test_rows_share_the_data_on_the_device(monkeypatch):
    data = as_rank(0, 1, test_k_shot=[1, 2])
    data.trainer.strategy.root_device = torch.device("cuda")
    moves = []
    monkeypatch.setattr(ClassTasks, "to", lambda self, device: moves.append(device) or self)
    first, second = data.test_dataloader()
    data.predict_dataloader()
    assert moves == [torch.device("cuda")]
    assert first.batches.distribution._reader is second.batches.distribution._reader


def test_rows_of_a_shape_that_the_data_cannot_give_are_refused_in_setup():
    with pytest.raises(ValueError, match=r"test: a task needs n_way=9 classes"):
        module(test_n_way=[5, 9])


class Own(EpisodicDataModule):
    def configure_tasks(self, split):
        return SimpleNamespace(tasks=lambda numbers: None)


def test_rows_of_tasks_of_ones_own_are_refused_with_what_to_do():
    with pytest.raises(ConfigurationError, match=r"test_k_shot=\[1, 5\] ask for several rows.*override configure_rows"):
        Own(test_k_shot=[1, 5]).setup()


def test_largest_way_is_over_all_splits():
    assert EpisodicDataModule().largest_way == 5
    assert EpisodicDataModule(n_way=(2, 4), val_n_way=3).largest_way == 4
    assert EpisodicDataModule(n_way=2, val_n_way=(3, 20), test_n_way=[(4, 9), 5]).largest_way == 20
    assert not hasattr(SinusoidDataModule(), "largest_way")
    assert not hasattr(SinusoidDataModule(), "n_way")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_way": (5, 3)}, r"n_way must be a range \(smallest, largest\), got \(5, 3\)\. Did you mean \(3, 5\)\?"),
        ({"k_shot": (0, 2)}, r"k_shot must be at least 1, got \(0, 2\)"),
        ({"val_n_way": (1, 2, 3)}, r"val_n_way must be a whole number or a range .* got \(1, 2, 3\)"),
        ({"n_way": [5, 20]}, r"n_way must be a whole number, got \[5, 20\]\. A range is a tuple \(smallest"),
        ({"test_n_way": []}, r"test_n_way must be a list of one or more different entries, got \[\]"),
        ({"test_k_shot": [1, 1]}, r"test_k_shot must be a list of one or more different entries, got \[1, 1\]"),
        ({"test_k_shot": [1, "five"]}, r"test_k_shot must be a whole number, got 'five'"),
        ({"test_k_shot": [1, [1, 5]]}, r"test_k_shot must be a whole number, got \[1, 5\]\. A range is"),
        ({"n_query": (1, 5)}, r"n_query must be a whole number, got \(1, 5\)"),
        ({"min_examples": 1}, r"min_examples must be at least 2, .* got 1"),
        ({"min_examples": "few"}, r"min_examples must be a whole number, got 'few'"),
        ({"balanced": "no"}, r"balanced must be True or False, got 'no'"),
    ],
    ids=str,
)
def test_arguments_without_a_meaning_are_refused(arguments, message):
    with pytest.raises((ConfigurationError, ArgumentTypeError), match=message):
        EpisodicDataModule(**arguments)


def test_ranges_and_lists_on_the_command_line():
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(GlyphsDataModule, "data")
    arguments = [
        "--data.n_way=[5,20]",
        "--data.val_k_shot=[1,5]",
        "--data.test_k_shot=[1,5]",
        "--data.test_n_way=[[5,20],5]",
    ]
    data = parser.parse_args(arguments).data
    assert (data.n_way, data.k_shot, data.val_k_shot) == ((5, 20), 1, (1, 5))
    assert data.test_k_shot == [1, 5]
    assert data.test_n_way == [(5, 20), 5]
    again = parser.parse_string(parser.dump(parser.parse_args(arguments))).data
    assert again == data
    made = GlyphsDataModule(**vars(data))
    assert made.test_rows == ["5-20-way 1-shot", "5-20-way 5-shot", "5-way 1-shot", "5-way 5-shot"]
    assert made.hparams["n_way"] == (5, 20)


FIELD = [
    CIFARFSDataModule, FC100DataModule, FineGrainedDataModule, GlyphsDataModule, ImageFolderDataModule,
    MiniImageNetDataModule, OmniglotDataModule, TieredImageNetDataModule,
]  # fmt: skip
MODULES = [*FIELD, EpisodicDataModule, SinusoidDataModule, TaskDataModule]


@pytest.mark.parametrize("kind", MODULES)
def test_every_option_is_explicit_documented_and_the_bases(kind):
    own = inspect.signature(kind).parameters
    assert all(parameter.kind is parameter.POSITIONAL_OR_KEYWORD for parameter in own.values())
    listed = re.search(r"Args:\n(.*?)\n\n", inspect.cleandoc(kind.__doc__), re.DOTALL).group(1)
    sentences = dict(re.findall(r"^    (\w+): ((?:.|\n     )+)", listed, re.MULTILINE))
    assert list(sentences) == list(own)
    base = TaskDataModule if kind is SinusoidDataModule else EpisodicDataModule
    theirs = inspect.signature(base).parameters
    shared = [name for name in theirs if name in own]
    assert [own[name] for name in shared] == [theirs[name] for name in shared]
    if kind in FIELD:
        left_out = {"train_dataset", "val_dataset", "test_dataset", "same_names"}
        assert set(theirs) - set(own) == left_out - set(own)
        listed_by_base = re.search(r"Args:\n(.*?)\n\n", inspect.cleandoc(base.__doc__), re.DOTALL).group(1)
        assert all(f"{name}: {sentences[name]}" in listed_by_base for name in shared)


@pytest.mark.parametrize("kind", MODULES)
def test_no_more_than_three_classes_in_a_chain(kind):
    own = [each for each in kind.__mro__ if each.__module__.startswith("lightning_meta.")]
    assert len(own) <= 3


class Words(Plain):
    """Example i holds i % 7 + 1 letters."""

    def __getitem__(self, index):
        return "x" * (index % 7 + 1), self.targets[index]


class Padded(EpisodicDataModule):
    calls = 0

    def collate(self, inputs):
        self.calls += 1
        letters = torch.zeros(len(inputs), max(map(len, inputs)), dtype=torch.uint8)
        for row, word in zip(letters, inputs, strict=True):
            row[: len(word)] = 1
        return {"letters": letters, "length": letters.sum(1)}


@pytest.mark.parametrize("shape", [{"n_way": 3, "k_shot": 2}, RANGES, RAGGED], ids=["fixed", "ranges", "unbalanced"])
def test_inputs_are_padded_by_collate_over_the_whole_batch(shape):
    data = Padded(Words(numbered()), meta_batch_size=4, **{"n_query": 2} | shape)
    data.setup()
    found = data.tasks["train"].tasks(range(4))
    assert data.calls == 1
    where = data.tasks["train"].indices(range(4))
    lengths = [set((where[number][where[number] >= 0] % 7 + 1).tolist()) for number in range(4)]
    longest = max(set.union(*lengths))
    for part in found:
        assert part.inputs["letters"].shape == (*part.targets.shape, longest)
        assert part.inputs["letters"].dtype == torch.uint8
        assert torch.equal(part.inputs["letters"].sum(2), part.inputs["length"])
        if part.mask is not None:
            assert torch.equal(part.inputs["length"] > 0, part.mask)
    met = [set(torch.cat([part.inputs["length"][n] for part in found]).tolist()) - {0} for n in range(4)]
    assert met == lengths
    assert next(iter(data.train_dataloader())).support.inputs["letters"].dtype == torch.uint8  # bytes, not images


def test_collate_goes_to_workers_without_the_trainer_and_the_data():
    data = Padded(Words(numbered()), Words(numbered()), n_way=3, n_query=2, meta_batch_size=2)
    data.setup()
    data.trainer = SimpleNamespace(cannot=lambda: None, state=SimpleNamespace(status="finished"))
    loader = data.train_dataloader()
    sent = pickle.loads(pickle.dumps(loader.batches))
    assert all(map(torch.equal, tensors_of(sent[3]), tensors_of(loader.batches[3])))
    assert data.trainer is not None
    assert data.datasets["train"] is not None


def test_collate_that_loses_examples_is_refused():
    class Loses(Padded):
        def collate(self, inputs):
            return torch.zeros(len(inputs) - 1, 3)

    data = Loses(Words(numbered()), n_way=3, n_query=2, meta_batch_size=2)
    data.setup()
    with pytest.raises(ArgumentTypeError, match=r"one entry for each of the 18 examples, but collate returned \[17\]"):
        next(iter(data.train_dataloader()))
    data = EpisodicDataModule(Words(numbered()), n_way=3, n_query=2, meta_batch_size=2)
    data.setup()
    with pytest.raises(ArgumentTypeError, match=r"train: only tensors can be divided.*inputs\[0\], a str"):
        next(iter(data.train_dataloader()))


def bytes_of(*shape):
    return torch.full((40, *shape), 51, dtype=torch.uint8)


LABELS = torch.arange(8).repeat_interleave(5)


def tensor_dataset(inputs):
    data = TensorDataset(inputs, LABELS)
    data.targets = LABELS
    return data


class OneByOne(Plain):
    def __init__(self, inputs, key=None, **attributes):
        super().__init__(ClassDataset(inputs, LABELS))
        self.key = key
        vars(self).update(attributes)

    def __getitem__(self, index):
        inputs = self.data.inputs[index]
        return inputs if self.key is None else {self.key: inputs}, self.targets[index]


@pytest.mark.parametrize(
    ("dataset", "expected"),
    [
        (ClassDataset(bytes_of(1, 4, 4), LABELS), 0.2),
        (ClassDataset(bytes_of(3, 4, 4), LABELS), 0.2),
        (Subset(Subset(ClassDataset(bytes_of(3, 4, 4), LABELS), range(40)), range(40)), 0.2),
        (ClassDataset(bytes_of(2, 4, 4), LABELS), None),
        (ClassDataset(bytes_of(16), LABELS), None),
        (ClassDataset(bytes_of(4, 4), LABELS), None),
        (ClassDataset(bytes_of(16), LABELS, scale=0.5), 25.5),
        (ClassDataset(bytes_of(1, 4, 4), LABELS, scale=1), 51.0),
        (tensor_dataset(bytes_of(1, 4, 4)), 0.2),
        (tensor_dataset(bytes_of(16)), None),
        (OneByOne(bytes_of(3, 4, 4)), 0.2),
        (OneByOne(bytes_of(16)), None),
        (OneByOne(bytes_of(3, 4, 4), scale=None), None),
        (OneByOne(bytes_of(16), scale=1 / 51), 1.0),
        (OneByOne(bytes_of(3, 4, 4), key="image"), None),
    ],
)
@pytest.mark.parametrize("shape", [{"n_way": 3, "k_shot": 2}, RANGES], ids=["fixed", "ranges"])
def test_the_data_set_says_what_becomes_of_bytes(dataset, expected, shape):
    data = EpisodicDataModule(dataset, meta_batch_size=3, **shape | {"n_query": 1})
    data.setup()
    for part in next(iter(data.train_dataloader())):
        (inputs,) = tensors_of(part.inputs)
        values = inputs if part.mask is None else inputs[part.mask]
        assert values.dtype == (torch.uint8 if expected is None else torch.float32)
        assert torch.equal(values, torch.full_like(values, 51 if expected is None else expected))


def test_a_scale_of_another_kind_is_refused():
    data = EpisodicDataModule(OneByOne(bytes_of(16), scale="1/255"), n_way=3, n_query=1, meta_batch_size=2)
    data.setup()
    with pytest.raises(ArgumentTypeError, match=r"OneByOne\.scale must be a number or None, got '1/255'"):
        next(iter(data.train_dataloader()))


def test_every_byte_of_an_image_is_divided_by_255():
    images = torch.arange(256, dtype=torch.uint8).view(256, 1, 1, 1)
    data = EpisodicDataModule(
        ClassDataset(images, torch.arange(2).repeat_interleave(128)), n_way=2, k_shot=100, n_query=28
    )
    data.setup()
    task = next(iter(data.train_dataloader()))
    inputs = torch.cat([task.support.inputs[0], task.query.inputs[0]]).flatten().sort().values
    assert torch.equal(inputs, torch.arange(256) / 255)


class ThreeClasses:
    """Task number i has inputs of at most i + 1."""

    def __init__(self, split):
        self.split = split

    def tasks(self, numbers):
        labels = torch.arange(3).expand(len(numbers), 3)
        scale = torch.tensor([float(n + 1) for n in numbers])[:, None, None]
        examples = Examples(torch.nn.functional.one_hot(labels, 4) * scale, labels)
        return Task(examples, examples)


class ThreeClassDataModule(TaskDataModule):
    """Notes the splits of the batches that it finishes."""

    def configure_tasks(self, split):
        return ThreeClasses(split)

    def finish(self, tasks, split):
        self.finished = [*getattr(self, "finished", []), split]
        return tasks


class Listener(pl.LightningModule):
    """Notes the tasks that it is given."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen = []

    def training_step(self, batch):
        self.seen.append(("train", batch.support.inputs.dtype, batch.support.inputs.amax((1, 2)).tolist()))
        return self.weight * 1

    def validation_step(self, batch):
        self.seen.append(("val", batch.support.inputs.dtype, batch.support.inputs.amax((1, 2)).tolist()))

    def test_step(self, batch):
        self.seen.append(("test", batch.support.inputs.dtype, batch.support.inputs.amax((1, 2)).tolist()))

    predict_step = test_step

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def test_a_data_module_of_ones_own_needs_configure_tasks_only():
    sizes = {"meta_batch_size": 2, "steps_per_epoch": 2, "val_tasks": 3, "test_tasks": 1, "eval_batch_size": 2}
    data = ThreeClassDataModule(**sizes)
    assert data.hparams == {**sizes, "seed": 0, "num_workers": 0}
    assert not hasattr(data, "n_way")
    trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
                         enable_model_summary=False, max_epochs=2, precision="64-true")  # fmt: skip
    listener = Listener()
    trainer.fit(listener, data)
    evaluation = [("val", torch.float64, [1.0, 2.0]), ("val", torch.float64, [3.0])]
    epochs = [
        [("train", torch.float64, [4.0 * e + 2 * step + 1, 4.0 * e + 2 * step + 2]) for step in range(2)]
        for e in range(2)
    ]
    assert listener.seen == [*evaluation, *epochs[0], *evaluation, *epochs[1], *evaluation]
    trainer.test(listener, data, verbose=False)
    trainer.predict(listener, data)
    trainer.validate(listener, data, verbose=False)
    assert data.finished == [step for step, *_ in listener.seen]
    assert data.finished[-4:] == ["test", "test", "val", "val"]


def test_the_base_cannot_be_made():
    with pytest.raises(TypeError, match="abstract"):
        TaskDataModule()


def test_a_split_that_configure_tasks_does_not_give_is_named():
    class Nothing(TaskDataModule):
        def configure_tasks(self, split):
            return None

    data = Nothing()
    data.setup()
    assert data.val_dataloader() == []
    for loader in (data.train_dataloader, data.test_dataloader):
        with pytest.raises(ValueError, match=r'There are no .*: configure_tasks\("t\w+"\) returned None'):
            loader()


def test_finish_follows_the_data_set_of_each_split():
    sets = [ClassDataset(bytes_of(16), LABELS, scale=scale) for scale in (None, 2, 3)]
    data = EpisodicDataModule(*sets, n_way=3, n_query=1, meta_batch_size=2)
    data.setup()
    data.trainer = as_rank(0, 1).trainer
    raw = data.tasks["train"].tasks([0])
    for stage, expected in [
        (RunningStage.TRAINING, 51),
        (RunningStage.SANITY_CHECKING, 102.0),
        (RunningStage.VALIDATING, 102.0),
        (RunningStage.TESTING, 153.0),
        (RunningStage.PREDICTING, 153.0),
    ]:
        data.trainer.state.stage = stage
        assert data.on_after_batch_transfer(raw, 0).query.inputs.unique().tolist() == [expected]


def test_one_data_set_is_divided_by_its_classes():
    """`tests/datamodules/test_image_folder.py` has the rules of the division."""
    whole = ClassDataset(torch.arange(60.0)[:, None], torch.arange(12).repeat_interleave(5))
    data = EpisodicDataModule.from_dataset(whole, [0.5, 0.25, 0.25], 3, n_way=2, n_query=2, meta_batch_size=2)
    data.setup()
    expected = class_split(whole, [0.5, 0.25, 0.25], 3)
    assert [list(part.indices) for part in data.datasets.values()] == [part.indices for part in expected]
    assert set((next(iter(data.train_dataloader())).query.inputs.flatten() // 5).tolist()) <= {
        int(whole.targets[i]) for i in expected[0].indices
    }
    alone = EpisodicDataModule.from_dataset(whole, [1.0, 0.0, 0.0], n_way=2, n_query=2)
    alone.setup()
    assert alone.val_dataloader() == []
    with pytest.raises(ConfigurationError, match=r"parts of train, val and test, got \[0\.5, 0\.5\]"):
        EpisodicDataModule.from_dataset(whole, [0.5, 0.5])
