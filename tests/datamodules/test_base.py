"""Streams of tasks, splits, and what is refused."""

import pickle
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.plugins import Precision
from lightning.pytorch.trainer.states import RunningStage
from torch.utils.data import Subset

from lightning_meta import EpisodicDataModule, Examples, GlyphsDataModule, SinusoidDataModule, Task
from lightning_meta.datamodules import ClassTasks
from lightning_meta.datasets import ClassDataset
from lightning_meta.errors import DataError
from tests.datamodules.test_class_tasks import Plain, numbered

SMALL = {"n_way": 3, "k_shot": 1, "n_query": 2, "meta_batch_size": 4, "steps_per_epoch": 5}


def module(**kwargs):
    data = EpisodicDataModule(numbered(), numbered(start=5000), numbered(start=9000), **SMALL | kwargs)
    data.setup()
    return data


def stream(data, loader):
    return torch.cat([task.query.inputs for task in loader])


def as_rank(rank, world, step=0, **kwargs):
    """A data module attached to (what it asks of) a Trainer."""
    data = module(**kwargs)
    progress = SimpleNamespace(total=SimpleNamespace(processed=step))
    loop = SimpleNamespace(epoch_loop=SimpleNamespace(batch_progress=progress))
    state = SimpleNamespace(status="running", stage=RunningStage.TRAINING)
    data.trainer = SimpleNamespace(
        global_rank=rank, world_size=world, fit_loop=loop, state=state, precision_plugin=Precision(),
        strategy=SimpleNamespace(root_device=torch.device("cpu")),
    )  # fmt: skip
    return data


def test_an_epoch_without_a_trainer_starts_at_task_zero():
    data = module()
    loader = data.train_dataloader()
    assert len(loader) == 5
    assert torch.equal(stream(data, loader), stream(data, loader))
    assert len(torch.unique(stream(data, loader).flatten(1), dim=0)) == 20


def test_the_stream_continues_at_the_trainers_step():
    whole = stream(None, as_rank(0, 1, 0, steps_per_epoch=12).train_dataloader())
    part = stream(None, as_rank(0, 1, 7).train_dataloader())
    assert torch.equal(part, whole[7 * 4 : 12 * 4])


@pytest.mark.parametrize("world", [1, 2, 4])
def test_ranks_share_one_stream(world):
    expected = stream(None, module().train_dataloader()).view(5, world, 4 // world, 6, 1)
    for rank in range(world):
        found = stream(None, as_rank(rank, world).train_dataloader())
        assert torch.equal(found, expected[:, rank].flatten(0, 1))


@pytest.mark.parametrize("world", [1, 2, 3])
def test_evaluation_covers_each_task_once_on_any_number_of_devices(world):
    sizes = {"val_tasks": 11, "test_tasks": 7, "eval_batch_size": 2}
    if world == 3:
        sizes["meta_batch_size"] = 3
    expected = stream(None, module(**sizes).val_dataloader())
    assert len(expected) == 11
    parts = [as_rank(rank, world, **sizes) for rank in range(world)]
    assert torch.equal(torch.cat([stream(None, part.val_dataloader()) for part in parts]), expected)
    assert sum(len(stream(None, part.test_dataloader())) for part in parts) == 7
    assert sum(len(stream(None, part.predict_dataloader())) for part in parts) == 7
    for part in parts:
        assert len(list(part.val_dataloader())) == len(part.val_dataloader())


def test_workers_do_not_change_the_stream():
    assert torch.equal(
        stream(None, module(num_workers=2).train_dataloader()), stream(None, module().train_dataloader())
    )


def test_iterating_leaves_the_global_random_numbers_alone():
    data = module()
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    list(data.train_dataloader())
    assert torch.equal(torch.rand(3), expected)


def test_uint8_images_become_floats_after_the_transfer():
    images = ClassDataset(torch.full((40, 1, 4, 4), 255, dtype=torch.uint8), torch.arange(8).repeat_interleave(5))
    data = EpisodicDataModule(images, **SMALL)
    data.setup()
    task = next(iter(data.train_dataloader()))
    assert task.support.inputs.dtype == torch.float32
    assert task.support.inputs.max() == 1
    data.trainer = as_rank(0, 1).trainer
    raw = next(iter(data.train_dataloader()))
    assert raw.query.inputs.dtype == torch.uint8
    assert torch.equal(data.on_after_batch_transfer(raw, 0).query.inputs, task.query.inputs)


def test_evaluation_shapes_of_their_own():
    data = module(val_k_shot=2, test_n_way=5, test_n_query=4)
    assert next(iter(data.val_dataloader())).support.inputs.shape[1] == 3 * 2
    assert next(iter(data.test_dataloader())).query.inputs.shape[1] == 5 * 4


@pytest.mark.parametrize(
    "arguments",
    [
        {"n_way": 0},
        {"val_k_shot": 0},
        {"meta_batch_size": 0},
        {"steps_per_epoch": -1},
        {"seed": -1},
        {"num_workers": -1},
    ],
    ids=str,
)
def test_numbers_out_of_range_are_refused_at_construction(arguments):
    ((name, value),) = arguments.items()
    with pytest.raises(ValueError, match=f"{name} must be at least .* got {value}"):
        EpisodicDataModule(**arguments)


def test_devices_that_do_not_divide_the_meta_batch_are_refused():
    data = as_rank(0, 3)
    with pytest.raises(ValueError, match=r"meta_batch_size=4 .* 3 devices do not divide it\. Make it a multiple of 3"):
        data.setup()
    data = as_rank(0, 4, val_tasks=3)
    with pytest.raises(ValueError, match="val_tasks=3 is fewer than the 4 devices"):
        data.setup()


def named(classes):
    return ClassDataset(torch.zeros(6 * len(classes), 1), torch.arange(len(classes)).repeat_interleave(6), classes)


ONE = numbered()


@pytest.mark.parametrize(
    ("train", "val", "shared"),
    [
        (ONE, ONE, "0, 1, 2, 3, 4, and 3 more"),
        (Subset(ONE, range(24)), Subset(ONE, range(18, 48)), "3"),
        (Plain(ONE), ONE, None),
        (Subset(ONE, range(24)), Subset(ONE, range(24, 48)), None),
        (named(["a", "b", "c"]), named(["c", "d", "e"]), "c"),
        (numbered(), numbered(), None),
    ],
    ids=["object", "subsets", "numbers", "disjoint", "names", "objects"],
)
def test_splits_that_share_classes_are_refused(train, val, shared):
    data = EpisodicDataModule(train, val, **SMALL)
    if shared is None:
        data.setup()
    else:
        with pytest.raises(ValueError, match=f"train and val splits share classes: {shared}\\."):
            data.setup()


def test_equal_names_can_be_different_classes():
    splits = named(["0", "1", "2"]), named(["0", "1", "2"])
    with pytest.raises(ValueError, match=r"share classes: 0, 1, 2\..*give same_names='different'"):
        EpisodicDataModule(*splits, **SMALL).setup()
    EpisodicDataModule(*splits, **SMALL, same_names="different").setup()
    with pytest.raises(ValueError, match="share classes: 0, 1, 2") as error:  # one object's are the same all the same
        EpisodicDataModule(splits[0], splits[0], **SMALL, same_names="different").setup()
    assert "same_names" not in str(error.value)
    with pytest.raises(ValueError, match="same_names must be 'refuse' or 'different'"):
        EpisodicDataModule(*splits, **SMALL, same_names="other")


def test_tasks_of_ones_own():
    class Lines:
        def __init__(self, split):
            self.split = split

        def tasks(self, numbers):
            slope = torch.tensor([float(n) for n in numbers])[:, None, None]
            x = torch.linspace(-1, 1, 4).expand(len(numbers), 4).unsqueeze(-1)
            return Task(Examples(x, slope * x), Examples(x, slope * x))

    class LinesDataModule(EpisodicDataModule):
        def configure_tasks(self, split):
            return Lines(split)

    data = LinesDataModule(meta_batch_size=3, steps_per_epoch=2)
    data.setup()
    assert [task.support.targets[:, -1, 0].tolist() for task in data.train_dataloader()] == [[0, 1, 2], [3, 4, 5]]


def test_glyph_splits_are_disjoint_and_evaluation_does_not_depend_on_the_training_classes():
    sizes = {"val_classes": 6, "test_classes": 6, "n_query": 5}
    few, many = (GlyphsDataModule(train_classes=n, **sizes) for n in (5, 8))
    for data in (few, many):
        data.setup()
    assert torch.equal(stream(None, few.test_dataloader()), stream(None, many.test_dataloader()))
    names = [set(many.datasets[split].classes) for split in ("train", "val", "test")]
    assert len(set.union(*names)) == sum(map(len, names)) == 20


def test_sinusoid_shapes():
    data = SinusoidDataModule(k_shot=5, n_query=7, test_n_query=50, meta_batch_size=3)
    data.setup()
    assert next(iter(data.train_dataloader())).query.targets.shape == (3, 7, 1)
    assert next(iter(data.test_dataloader())).query.inputs.shape == (8, 50, 1)


def test_hyperparameters_are_plain():
    assert module().hparams["n_way"] == 3
    assert "train_dataset" not in module().hparams


def test_loaders_can_be_sent_to_workers_that_are_spawned():
    data = module()
    for loader in (data.train_dataloader(), data.val_dataloader()):
        batches = pickle.loads(pickle.dumps(loader.batches))
        assert torch.equal(batches[0].query.inputs, loader.batches[0].query.inputs)


def test_a_split_that_is_not_there_is_named():
    data = EpisodicDataModule(numbered(), **SMALL)
    data.setup()
    assert data.val_dataloader() == []
    with pytest.raises(ValueError, match="no test tasks: give a test_dataset"):
        data.test_dataloader()
    data = EpisodicDataModule(test_dataset=numbered(), **SMALL)
    data.setup()
    with pytest.raises(ValueError, match="no tasks to train on: give a train_dataset"):
        data.train_dataloader()


def test_bad_targets_name_their_split():
    data = Plain(numbered())
    data.targets = [0.5] * 48
    with pytest.raises(ValueError, match=r"^val: the targets of Plain"):
        EpisodicDataModule(numbered(), data, **SMALL).setup()


@pytest.mark.parametrize("arguments", [{"n_way": "5"}, {"k_shot": 1.5}, {"steps_per_epoch": None}], ids=str)
def test_numbers_of_another_kind_are_refused(arguments):
    ((name, value),) = arguments.items()
    with pytest.raises(TypeError, match=f"{name} must be a whole number, got {value!r}"):
        EpisodicDataModule(**arguments)


class Broken:
    """Tasks of which one cannot be made."""

    def __init__(self, own):
        self.own = own

    def tasks(self, numbers):
        if 5 in numbers:
            raise KeyError("reading 5")
        return self.own.tasks(numbers)


def test_what_fails_in_a_worker_is_one_line_that_names_the_tasks():
    data = module(num_workers=2)
    data.setup()
    data.tasks["train"] = Broken(data.tasks["train"])
    with pytest.raises(DataError, match=r"^Tasks \[.*5.*\]: KeyError: 'reading 5'$") as error:
        list(data.train_dataloader())
    assert "in tasks" in str(error.value.__cause__)  # the worker's own trace


def test_the_example_that_a_worker_cannot_read_is_named():
    class Unreadable(torch.utils.data.Dataset):
        targets = tuple(i % 5 for i in range(30))

        def __len__(self):
            return 30

        def __getitem__(self, index):
            raise OSError(f"image{index}.png is broken")

    data = EpisodicDataModule(Unreadable(), n_way=5, n_query=2, meta_batch_size=2, num_workers=1)
    data.setup()
    with pytest.raises(DataError, match=r"train: example (\d+) of the data set cannot be read: image\1\.png is broken"):
        list(data.train_dataloader())


@pytest.mark.parametrize(("device", "workers", "moves"), [("cpu", 0, False), ("cuda", 0, True), ("cuda", 1, False)])
def test_data_is_kept_on_a_gpu_while_a_trainer_runs(device, workers, moves, monkeypatch):
    monkeypatch.setattr(ClassTasks, "to", lambda self, to: ("moved", self, to))
    data = as_rank(0, 1, num_workers=workers)
    data.trainer.strategy.root_device = torch.device(device)
    for split, loader in (("train", data.train_dataloader()), ("val", data.val_dataloader())):
        used = loader.batches.distribution
        assert (used == ("moved", data.tasks[split], torch.device(device))) if moves else used is data.tasks[split]
    data.trainer.state.status = "finished"
    assert data.train_dataloader().batches.distribution is data.tasks["train"]
