"""Networks of torchvision through the comparison of `benchmarks/networks.py`, small enough for every run."""

import importlib
from pathlib import Path

import pytest
import torch
from torchvision.models import MobileNetV2, SwinTransformer, VisionTransformer

FOLDER = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(scope="module", autouse=True)
def _benchmarks():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # small networks: more threads only wait for each other
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        yield
    torch.set_num_threads(threads)


@pytest.fixture
def checks():
    return importlib.import_module("network_checks")


def case(name):
    cases = importlib.import_module("network_cases")
    small = cases.images(32)
    own = {
        "ViT": lambda: VisionTransformer(32, 16, 2, 2, 32, 64, num_classes=2),
        "Swin": lambda: SwinTransformer([4, 4], 16, [2, 2], [2, 2], [2, 2], num_classes=2),
        "MobileNetV2": lambda: MobileNetV2(2, width_mult=0.25),
    }
    if name in own:
        return cases.Case("torchvision", own[name], small)
    return cases.CASES[name]._replace(examples=small)


@pytest.mark.parametrize("name", ["ResNet-18", "MobileNetV2", "MobileNetV3-small", "ViT", "Swin"])
def test_the_meta_gradient_is_that_of_a_hand_written_loop(name, checks):
    found = checks.compare(case(name))
    assert found.is_right, found
    assert found.refusals == {}
    assert found.second_order_part > 1e3 * checks.TOLERANCE  # one of the first order alone would be noticed


@pytest.mark.parametrize("name", ["ViT", "Swin", "MobileNetV3-small"])
@pytest.mark.filterwarnings("ignore:torch.vmap cannot run layer")
def test_what_a_test_and_an_adapted_network_say_is_that_of_a_hand_written_loop(name, checks):
    found = checks.trained(case(name))
    assert found.is_right, found


def test_a_wrong_gradient_is_noticed(checks, monkeypatch):
    own = checks.by_the_package
    monkeypatch.setattr(
        checks, "by_the_package", lambda *args, **options: own(*args, **options | {"first_order": True})
    )
    assert not checks.compare(case("ViT")).is_right


def test_a_wrong_loss_is_noticed(checks, monkeypatch):
    own = checks.query_loss
    monkeypatch.setattr(checks, "query_loss", lambda *args, **options: own(*args, **options) * 1.00001)
    assert not checks.trained(case("ViT")).is_right


def test_every_name_in_the_document_is_a_case():
    rows = (FOLDER.parent / "docs" / "networks.md").read_text().splitlines()
    names = [row.split("|")[1].strip() for row in rows if row.startswith("| ") and not row.startswith("| network")]
    assert names == list(importlib.import_module("network_cases").CASES)
