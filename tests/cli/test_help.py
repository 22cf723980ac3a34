"""The help of every module and data module fits two screens and tells of every option."""

import inspect
import re

import pytest
from lightning.pytorch import LightningDataModule

from lightning_meta import datamodules, models, modules
from lightning_meta.cli.help import short_value
from lightning_meta.cli.main import main


def public(room, base):
    found = [getattr(room, name) for name in room.__all__]
    return [c for c in found if inspect.isclass(c) and issubclass(c, base) and not inspect.isabstract(c)]


CLASSES = {c.__name__: "model" for c in public(modules, modules.MetaModule)}
CLASSES |= {c.__name__: "data" for c in public(datamodules, LightningDataModule)}


@pytest.fixture
def help_of(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")

    def read(*arguments):
        with pytest.raises(SystemExit) as exit_:
            main([*arguments])
        assert exit_.value.code == 0
        return capsys.readouterr().out

    return read


def entries(text):
    """For every option what is written of it, in one line."""
    parts = re.split(r"^  --", text.split("\n\nOptions of a class:")[0], flags=re.MULTILINE)[1:]
    return {part.split()[0].split(".", 1)[1]: " ".join(part.split()) for part in parts}


def test_what_is_looked_at():
    assert {"MAMLModule", "ReptileModule", "ProtoNetModule", "GlyphsDataModule", "SinusoidDataModule"} <= set(CLASSES)


@pytest.mark.parametrize("name", CLASSES)
def test_every_option_has_its_default_and_a_sentence(name, help_of):
    kind = CLASSES[name]
    text = help_of("fit", f"--{kind}.help", name)
    assert len(text.splitlines()) <= 120
    assert max(map(len, text.splitlines())) <= 120
    found = entries(text)
    parameters = inspect.signature(getattr(modules if kind == "model" else datamodules, name)).parameters.values()
    assert set(found) == {p.name for p in parameters}
    for parameter in parameters:
        said = found[parameter.name]
        if parameter.default is parameter.empty:
            assert "(required" in said, said
        elif not callable(parameter.default):
            assert f"(default: {short_value(parameter.default)}" in said, said
        else:
            assert re.search(r"\(default: \w+\(", said), said
        sentence = re.split(r" \((?:default:|required)", said)[0]
        assert sentence.endswith("."), f"--{kind}.{parameter.name} of {name} has no sentence: {said}"


@pytest.mark.parametrize("command", ["fit", "validate", "test", "predict"])
def test_the_help_of_a_command(command, help_of):
    text = help_of(command, "--help")
    assert len(text.splitlines()) <= 230
    for option in (
        "--ckpt_path",
        "--model",
        "--data",
        "--checkpoint.every_n_steps int",
        "--trainer.max_epochs int|null",
    ):
        assert option in text
    assert "lightning_meta.MAMLModule" in text
    assert "torch.nn" not in text


def test_networks_of_the_package_are_named_and_helped_with(help_of):
    network = entries(help_of("fit", "--model.help", "MAMLModule"))["network"]
    named = ", ".join(f"lightning_meta.{name}" for name in sorted(models.__all__))
    assert network.endswith(f"(required; such as {named})")
    assert (
        "(default: 64)" in entries(help_of("fit", "--model", "MAMLModule", "--model.network.help", "Conv4"))["hidden"]
    )
