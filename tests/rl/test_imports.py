"""What is imported at the time of use: its absence is an error that says what to install."""

import sys

import pytest

from lightning_meta.errors import ConfigurationError
from lightning_meta.rl import GymnasiumDataModule, HalfCheetahDataModule, MetaWorldDataModule
from lightning_meta.rl.imports import imported


@pytest.mark.parametrize(
    ("library", "make"),
    [
        ("gymnasium", lambda: GymnasiumDataModule("CartPole-v1", [{}])),
        ("gymnasium", HalfCheetahDataModule),
        ("metaworld", lambda: MetaWorldDataModule("ML1", "reach-v3")),
    ],
)
def test_a_missing_library_is_named_with_the_extra(library, make, monkeypatch):
    monkeypatch.setitem(sys.modules, library, None)
    data = make()
    with pytest.raises(ConfigurationError, match=rf"{library} cannot be imported.*pip install 'lightning-meta\[rl\]'"):
        data.setup()


def test_full_paths():
    import collections.abc

    assert imported("collections.abc.Mapping.get") is collections.abc.Mapping.get
    assert imported("HalfCheetah-v5") == "HalfCheetah-v5"
    assert imported("Some.Name-v2") == "Some.Name-v2"
    assert imported(imported) is imported
    with pytest.raises(ConfigurationError, match="has no attribute 'Robot'"):
        imported("collections.Robot")
