"""Labelled texts from files."""

import csv
import gzip
import json

import pytest

from lightning_meta.errors import ArgumentTypeError, ConfigurationError, DataError, MissingFileError
from lightning_meta.text import Texts, read_texts

TEXTS = ['He said "no",\nand left', "tab\tand, comma", "plain", "  spaces  ", 'ends in "', "ünïcode 你好", "a; b"]
LABELS = ["x", "y", "x", "z", "y", "x", "z"]


def write(path, kind):
    if kind == "jsonl":
        lines = [json.dumps({"text": t, "label": c, "more": 1}) for t, c in zip(TEXTS, LABELS, strict=True)]
        path.write_text("\n".join(lines) + "\n\n")
        return
    with path.open("w", newline="", encoding="utf-8-sig") as file:
        writer = csv.writer(file, delimiter="\t" if kind == "tsv" else ",")
        writer.writerow(["label", "text"])
        writer.writerows(zip(LABELS, TEXTS, strict=True))


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl"])
def test_every_format_gives_the_same_texts(kind, packed, tmp_path):
    path = tmp_path / f"data.{kind}"
    write(path, kind)
    if packed:
        path, content = tmp_path / f"data.{kind}.gz", path.read_bytes()
        path.write_bytes(gzip.compress(content))
    assert read_texts(path) == Texts(TEXTS, LABELS)


def test_columns_of_other_names_and_groups(tmp_path):
    (tmp_path / "a.csv").write_text("query,intent,domain\nwhere is it,lost,card\nhow much,2,money\n")
    found = read_texts(tmp_path / "a.csv", text="query", label="intent", group="domain")
    assert found == Texts(["where is it", "how much"], ["lost", "2"], ["card", "money"])
    (tmp_path / "a.jsonl").write_text('{"text": "one", "label": 7}\n')
    assert read_texts(tmp_path / "a.jsonl").labels == ["7"]
    assert read_texts([("one", "a", "g")], group="domain").groups == ["g"]


def test_a_data_set_of_hugging_face_has_named_classes():
    class Names:
        names = ("lost", "found")

    class Table(list):
        column_names, features = ("text", "label"), {"text": object(), "label": Names()}

    found = read_texts(Table([{"text": "one", "label": 1}, {"text": "two", "label": 0}]))
    assert found == Texts(["one", "two"], ["found", "lost"])


def test_empty_texts_are_counted(tmp_path, capsys, caplog):
    (tmp_path / "a.csv").write_text("text,label\none,a\n,a\n   ,b\n")
    with caplog.at_level("INFO"):
        assert read_texts(tmp_path / "a.csv").texts == ["one"]
    assert "2 of 3 texts are empty and are left out" in caplog.text + capsys.readouterr().err
    (tmp_path / "a.csv").write_text("text,label\n,a\n")
    with pytest.raises(DataError, match=r"a\.csv has no texts: all 1 are empty"):
        read_texts(tmp_path / "a.csv")


@pytest.mark.parametrize(
    ("name", "content", "kind", "message"),
    [
        ("a.csv", "txt,label\none,a\n", ConfigurationError, r"a\.csv, line 2: there is no column 'text'; there are "
         r"'txt', 'label'\. Did you mean 'txt'\? Name the column: text=\.\.\."),
        ("a.csv", "text,label\none,a\nno, quotes,a\n", DataError, r"a\.csv, line 3: there are 3 columns, .* a comma"),
        ("a.csv", 'text,label\n"one\ntwo",a\n"never closed,b\nx,y\n', DataError, r"line 4: unexpected end of data\. "),
        ("a.csv", 'text,label\n"one" two,a\n', DataError, r"a\.csv, line 2: '?,'? ?.*expected after .*written twice"),
        ("a.csv", "text,text\none,a\n", DataError, r"line 1: a column has the same name as another"),
        ("a.csv", "text,label\none,\n", DataError, r"line 2, column 'label': there must be the name .*got ''"),
        ("a.csv", "text,label\n", DataError, r"a\.csv has no texts\."),
        ("a.csv", "", DataError, r"a\.csv has no texts\."),
        ("a.tsv", "text\tlabel\none\ttwo\ta\n", DataError, r"line 2: there are 3 columns, .* a tab"),
        ("a.jsonl", '{"text": "one", "label": "a"}\n{"text"\n', DataError, r"a\.jsonl, line 2: it is not JSON: "),
        ("a.jsonl", '["one", "a"]\n', DataError, r"a\.jsonl, line 1: it must be an object"),
        ("a.jsonl", '{"text": 1, "label": "a"}\n', DataError, r"line 1, column 'text': a text must be a string, got 1"),
        ("a.jsonl", '{"text": "a", "label": null}\n', DataError, r"line 1, column 'label': .*got None"),
        ("a.txt", "one", ConfigurationError, r"a\.txt: the name of a file of texts ends in \.csv, \.tsv, \.jsonl"),
        ("a.csv.gz", "text,label\n", DataError, r"a\.csv\.gz cannot be unpacked"),
        ("a.csv", b"text,label\none,a\n\xff\xfe,b\n", DataError, r"a\.csv, line 3: it is not in UTF-8"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(name, content, kind, message, tmp_path):
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(kind, match=message):
        read_texts(tmp_path / name)


def test_what_is_no_table_is_refused(tmp_path):
    with pytest.raises(MissingFileError, match=r"no file .*a\.csv\. The folder .* is there"):
        read_texts(tmp_path / "a.csv")
    with pytest.raises(MissingFileError, match="There is no folder"):
        read_texts(tmp_path / "b" / "a.csv")
    with pytest.raises(ArgumentTypeError, match=r"pairs \(text, label\), but entry 1 is 'two'"):
        read_texts([("one", "a"), "two"])
    with pytest.raises(ArgumentTypeError, match=r"give one split, such as data\['train'\]"):
        read_texts({"train": 1})
