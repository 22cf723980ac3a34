"""The command line, through `main([...])`."""

import json
import subprocess
import sys

import pytest
import torch
import yaml

from lightning_meta import MAMLModule
from lightning_meta.cli.main import main

QUIET = [
    "--trainer.accelerator",
    "cpu",
    "--trainer.enable_progress_bar",
    "false",
    "--trainer.enable_model_summary",
    "false",
]


@pytest.fixture
def config(tmp_path):
    """A small run, with classes named bare."""
    path = tmp_path / "small.yaml"
    settings = {
        "trainer": {"max_epochs": 2, "default_root_dir": str(tmp_path / "run"), "log_every_n_steps": 2},
        "model": {
            "class_path": "MAMLModule",
            "init_args": {
                "network": {"class_path": "Conv4", "init_args": {"hidden": 4}},
                "inner_lr": 0.4,
                "optimizer": {"class_path": "SGD", "init_args": {"lr": 0.1, "momentum": 0.9}},
                "lr_scheduler": {"class_path": "CosineAnnealingLR", "init_args": {"T_max": 8}},
            },
        },
        "data": {
            "class_path": "GlyphsDataModule",
            "init_args": {
                "train_classes": 8, "val_classes": 4, "test_classes": 4, "n_way": 3, "n_query": 2, "meta_batch_size": 4,
                "steps_per_epoch": 4, "val_tasks": 4, "test_tasks": 6,
            },
        },
    }  # fmt: skip
    path.write_text(yaml.safe_dump(settings))
    return path


def test_a_run_is_one_folder_and_best_and_last_are_found_in_it(config, tmp_path):
    fitted = main(["fit", "--config", str(config), *QUIET])
    run = tmp_path / "run"
    files = {str(p.relative_to(run)) for p in run.rglob("*") if p.is_file()}
    expected = {"config.yaml", "checkpoints/best.ckpt", "checkpoints/last.ckpt", "logs/fit/metrics.csv"}
    assert expected <= files <= expected | {"logs/fit/hparams.yaml"}
    assert fitted.model.network.head.out_features == 3  # linked to data.n_way
    assert type(fitted.trainer.optimizers[0]) is torch.optim.SGD
    assert fitted.trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0, abs=1e-9)

    for which in ("best", "last"):
        tested = main(["test", "--config", str(run / "config.yaml"), "--ckpt_path", which, *QUIET])
        weights = torch.load(run / f"checkpoints/{which}.ckpt", weights_only=True)["state_dict"]
        assert all(torch.equal(v, weights[n]) for n, v in tested.model.state_dict().items())
        assert "test/query_accuracy_ci95" in tested.trainer.callback_metrics
    assert yaml.safe_load((run / "config.yaml").read_text()).get("ckpt_path") is None
    assert (run / "logs/test/metrics.csv").is_file()
    assert (run / "logs/fit/metrics.csv").is_file()

    # The last epoch's weights are rebuilt by path alone.
    loaded = MAMLModule.load_from_checkpoint(run / "checkpoints/last.ckpt")
    assert all(torch.equal(v, fitted.model.state_dict()[n]) for n, v in loaded.state_dict().items())

    # A start that fails loses nothing.
    log = (run / "logs/fit/metrics.csv").read_text()
    with pytest.raises(ValueError, match="n_way=9"):
        main(["fit", "--config", str(config), "--data.n_way", "9", *QUIET])
    assert (run / "logs/fit/metrics.csv").read_text() == log
    assert not (run / "logs/fit/metrics.1.csv").exists()


def test_resuming_continues_the_run(config, tmp_path):
    whole = main(["fit", "--config", str(config), *QUIET])
    state = {n: v.clone() for n, v in whole.model.state_dict().items()}
    main(["fit", "--config", str(config), "--trainer.max_epochs", "1", *QUIET])
    resumed = main(["fit", "--config", str(config), "--ckpt_path", "last", *QUIET])
    assert resumed.trainer.global_step == 8
    assert all(torch.equal(v, state[n]) for n, v in resumed.model.state_dict().items())
    assert (tmp_path / "run/logs/fit/metrics.1.csv").is_file()
    assert yaml.safe_load((tmp_path / "run/config.yaml").read_text()).get("ckpt_path") is None


def test_predict_and_validate(config, tmp_path):
    main(["fit", "--config", str(config), *QUIET])
    validated = main(["validate", "--config", str(config), "--ckpt_path", "best", *QUIET])
    assert "val/query_accuracy" in validated.trainer.callback_metrics
    main(["predict", "--config", str(config), "--ckpt_path", "best", *QUIET])
    assert torch.load(tmp_path / "run/predictions.pt", weights_only=True).shape == (6, 6, 3)


def test_what_is_best_the_module_says_unless_the_configuration_does(config, tmp_path):
    fitted = main(["fit", "--config", str(config), *QUIET])
    assert (fitted.trainer.checkpoint_callback.monitor, fitted.trainer.checkpoint_callback.mode) == (
        fitted.model.monitor, fitted.model.mode,
    )  # fmt: skip
    assert yaml.safe_load((tmp_path / "run/config.yaml").read_text())["checkpoint"].get("monitor") is None
    own = ["--checkpoint.monitor", "val/support_loss", "--checkpoint.save_top_k", "2"]
    fitted = main(["fit", "--config", str(config), *own, *QUIET])
    checkpoint = fitted.trainer.checkpoint_callback
    assert (checkpoint.monitor, checkpoint.mode, checkpoint.save_top_k) == ("val/support_loss", "min", 2)


@pytest.mark.parametrize("command", ["fit", "test"])
@pytest.mark.parametrize("which", ["best", "last", "elsewhere.ckpt"])
def test_a_checkpoint_that_is_not_there_is_an_error_and_never_a_fresh_start(config, tmp_path, command, which):
    with pytest.raises(FileNotFoundError, match=rf"--ckpt_path {which}: there is no file.*This run has no checkpoint"):
        main([command, "--config", str(config), "--ckpt_path", which, *QUIET])
    assert not (tmp_path / "run/checkpoints").exists()


def test_the_configuration_given_wins_over_the_checkpoints_and_differences_are_named(config):
    main(["fit", "--config", str(config), *QUIET])
    with pytest.warns(UserWarning, match=r"inner_lr: 0\.4 -> 0\.2"):
        tested = main(["test", "--config", str(config), "--ckpt_path", "best", "--model.inner_lr", "0.2", *QUIET])
    assert tested.model.inner_optimizer.lr == 0.2


def test_testing_without_a_checkpoint_says_so(config):
    with pytest.warns(UserWarning, match="No --ckpt_path: `test` uses the network as it is initialized"):
        main(["test", "--config", str(config), *QUIET])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model.inner_rate", "0.1"], "inner_rate"),
        (["--data.kshot", "3"], "Did you mean k_shot?"),
        (["--model.iner_lr", "1"], "Did you mean inner_lr?"),
        (["--model.network.hiden", "3"], "Did you mean hidden?"),
        (["--trainer.max_epchs", "3"], "Did you mean --trainer.max_epochs?"),
        (["--model", "MAMLModul"], "Did you mean MAMLModule?"),
        (["--data.n_way", "five"], "n_way"),
        (["--model.network", "Conv5"], "Conv5"),
        (["--trainer.max_epochs", "many"], "max_epochs"),
    ],
)
def test_what_cannot_be_parsed_is_named(config, capsys, arguments, message):
    with pytest.raises(SystemExit) as exit_:
        main(["fit", "--config", str(config), *arguments, *QUIET])
    assert exit_.value.code == 2
    assert message in capsys.readouterr().err


def test_a_misspelt_key_of_a_file_is_named(config, tmp_path, capsys):
    settings = yaml.safe_load(config.read_text())
    settings["trainer"]["max_epochz"] = settings["trainer"].pop("max_epochs")
    (tmp_path / "wrong.yaml").write_text(yaml.safe_dump(settings))
    with pytest.raises(SystemExit):
        main(["fit", "--config", str(tmp_path / "wrong.yaml"), *QUIET])
    assert "'trainer.max_epochz'. Did you mean trainer.max_epochs?" in capsys.readouterr().err


def test_a_second_run_in_a_folder_keeps_the_first(config, tmp_path):
    for rate in ("0.4", "0.2"):
        main(["fit", "--config", str(config), "--model.inner_lr", rate, *QUIET])
    run = tmp_path / "run"
    rates = {name: yaml.safe_load((run / name).read_text())["model"]["init_args"]["inner_lr"] for name in CONFIGS}
    assert rates == {"config.1.yaml": 0.4, "config.yaml": 0.2}
    checkpoints = {path.name for path in (run / "checkpoints").iterdir()}
    assert checkpoints == {"best.ckpt", "last.ckpt", "best.1.ckpt", "last.1.ckpt"}
    of_first = torch.load(run / "checkpoints" / "best.1.ckpt", weights_only=True)
    assert of_first["hyper_parameters"]["inner_lr"] == 0.4


CONFIGS = ("config.1.yaml", "config.yaml")


def test_a_network_without_n_way_and_a_loss_by_its_path(tmp_path):
    """torchvision has an MLP, too: the package's own is meant."""
    path = tmp_path / "sinusoid.yaml"
    path.write_text(
        json.dumps(
            {
                "model": {
                    "class_path": "MAMLModule",
                    "init_args": {
                        "network": {"class_path": "MLP", "init_args": {"hidden": [8]}},
                        "loss": "torch.nn.functional.mse_loss",
                    },
                },
                "data": {"class_path": "SinusoidDataModule", "init_args": {"steps_per_epoch": 2, "val_tasks": 4}},
                "trainer": {"max_epochs": 1, "default_root_dir": str(tmp_path / "run")},
            }
        )
    )
    main(["fit", "--config", str(path), *QUIET])
    loaded = MAMLModule.load_from_checkpoint(tmp_path / "run/checkpoints/best.ckpt")
    assert loaded.network.head.in_features == 8
    assert loaded.loss is torch.nn.functional.mse_loss


def test_the_module_is_a_command():
    done = subprocess.run([sys.executable, "-m", "lightning_meta", "fit", "--help"], capture_output=True, text=True)
    assert done.returncode == 0
    assert "--ckpt_path" in done.stdout
