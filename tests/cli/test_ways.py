"""A network gets the data's number of classes where both have one, and nobody is overruled in silence."""

import pytest
import torch
import yaml
from torch import nn

from lightning_meta import Conv4, MAMLModule
from lightning_meta.cli.main import main
from lightning_meta.errors import ConfigurationError
from tests.cli.test_main import QUIET

IMAGES = {
    "class_path": "GlyphsDataModule",
    "init_args": {"train_classes": 4, "val_classes": 4, "test_classes": 4, "n_way": 3, "n_query": 2,
                  "meta_batch_size": 2, "steps_per_epoch": 2, "val_tasks": 2},
}  # fmt: skip
WAVES = {"class_path": "SinusoidDataModule", "init_args": {"steps_per_epoch": 2, "val_tasks": 4}}
MINE = "tests.cli.test_ways."


class NoArguments(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Flatten(), nn.Linear(784, 3))


class Wrapped(nn.Module):
    def __init__(self, inner: nn.Module, scale: float = 1.0):
        super().__init__()
        self.inner, self.scale = inner, scale

    def forward(self, inputs):
        return self.scale * self.inner(inputs)


class Outputs(nn.Linear):
    def __init__(self, n_way: int):
        super().__init__(1, n_way)


class OneOutput(nn.Linear):
    def __init__(self, n_way: int = 1):
        super().__init__(1, n_way)


class ManyOutputs(nn.Sequential):
    def __init__(self, n_way: int = 64):
        super().__init__(nn.Flatten(), nn.Linear(784, n_way))


def fit(folder, network, data=IMAGES, *arguments, **model):
    settings = {
        "model": {"class_path": "MAMLModule", "init_args": {"network": network, **model}},
        "data": data,
        "trainer": {"max_epochs": 1, "default_root_dir": str(folder / "run")},
    }
    (folder / "settings.yaml").write_text(yaml.safe_dump(settings))
    return main(["fit", "--config", str(folder / "settings.yaml"), *arguments, *QUIET])


def saved_network(folder):
    return torch.load(folder / "run/checkpoints/last.ckpt", weights_only=True)["hyper_parameters"]["network"]


def test_the_datas_number_is_in_the_checkpoint_and_not_in_the_configuration(tmp_path):
    fitted = fit(tmp_path, {"class_path": "Conv4", "init_args": {"hidden": 4}})
    assert fitted.model.network.head.out_features == 3
    assert saved_network(tmp_path)["init_args"]["n_way"] == 3
    assert MAMLModule.load_from_checkpoint(tmp_path / "run/checkpoints/last.ckpt").network.head.out_features == 3
    again = main(["fit", "--config", str(tmp_path / "run/config.yaml"), "--data.n_way", "4", *QUIET])
    assert again.model.network.head.out_features == 4


def test_the_same_number_may_be_given_and_another_is_refused_by_name(tmp_path):
    fit(tmp_path, {"class_path": "Conv4", "init_args": {"hidden": 4, "n_way": 3}})
    with pytest.raises(
        ValueError, match=r"model\.network\.n_way=7, but the largest tasks of GlyphsDataModule have 3 cl"
    ):
        fit(tmp_path, {"class_path": "Conv4", "init_args": {"hidden": 4}}, IMAGES, "--model.network.n_way", "7")


def test_a_networks_own_default_gives_way_to_the_data(tmp_path):
    assert fit(tmp_path, {"class_path": MINE + "ManyOutputs"}).model.network[1].out_features == 3


def test_a_network_without_n_way_gets_none(tmp_path):
    fit(tmp_path, {"class_path": MINE + "NoArguments"})
    assert saved_network(tmp_path) == {"class_path": MINE + "NoArguments"}


def test_networks_inside_of_networks_get_it(tmp_path):
    network = {"class_path": MINE + "Wrapped", "init_args": {"inner": {"class_path": "Conv4", "init_args": {}}}}
    fitted = fit(tmp_path, network)
    assert type(fitted.model.network.inner) is Conv4
    assert fitted.model.network.inner.head.out_features == 3
    assert "n_way" not in saved_network(tmp_path)["init_args"]


def test_data_without_classes_leaves_the_network_alone(tmp_path):
    loss = "torch.nn.functional.mse_loss"
    with pytest.raises(
        ConfigurationError, match=r"model\.network\.n_way is missing: the tasks of SinusoidDataModule have no"
    ):
        fit(tmp_path, {"class_path": MINE + "Outputs"}, WAVES, loss=loss)
    assert fit(tmp_path, {"class_path": MINE + "OneOutput"}, WAVES, loss=loss).model.network.out_features == 1
    given = {"class_path": MINE + "Outputs", "init_args": {"n_way": 1}}
    assert fit(tmp_path, given, WAVES, loss=loss).model.network.out_features == 1
    again = main(["fit", "--config", str(tmp_path / "run/config.yaml"), *QUIET])
    assert again.model.network.out_features == 1
