"""Every shipped configuration runs, at a small size, through the command line."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from lightning_meta import (
    CAVIAModule,
    IMAMLModule,
    MetaLSTMModule,
    MetaOptNetModule,
    ProtoMAMLModule,
    ProtoNetModule,
    R2D2Module,
    ReptileModule,
)
from lightning_meta.cli.main import main
from lightning_meta.inner import LSLR, SGD, LSTMOptimizer, MetaCurvature, MetaSGD
from lightning_meta.rl import MAMLRLModule, MetaLSTMRLModule, RandomPolicy, ReptileRLModule
from lightning_meta.text import generated_texts
from tests.cli.test_main import QUIET
from tests.text.models import save_model

ROOT = Path(__file__).parents[1] / "configs"
CONFIGS = sorted(str(path.relative_to(ROOT)) for path in ROOT.rglob("*.yaml") if path.parent.name != "trainer")


def first_order(module):
    return module.algorithm.meta_gradient.order(0) == 1


# What makes each algorithm what it is.
HALLMARKS = {
    "maml": lambda m: not first_order(m) and type(m.inner_optimizer) is SGD and m.algorithm.inner_steps > 0,
    "fomaml": first_order,
    "anil": lambda m: all(name.startswith("head.") for name in m.task_map.names),
    "boil": lambda m: all(name.startswith("body.") for name in m.task_map.names),
    "meta_sgd": lambda m: type(m.inner_optimizer) is MetaSGD,
    "maml_plus_plus": lambda m: (
        type(m.inner_optimizer) is LSLR
        and m.algorithm.meta_gradient.multi_step_loss_steps
        and len(m.algorithm.step_params)
    ),
    "finetuning": lambda m: m.algorithm.inner_steps == 0 and m.algorithm.val_inner_steps > 0,
    "reptile": lambda m: type(m) is ReptileModule,
    "meta_lstm": lambda m: type(m) is MetaLSTMModule and type(m.inner_optimizer) is LSTMOptimizer,
    "imaml": lambda m: type(m) is IMAMLModule,
    "protonet": lambda m: type(m) is ProtoNetModule,
    "protomaml": lambda m: type(m) is ProtoMAMLModule,
    "meta_curvature": lambda m: type(m.inner_optimizer) is MetaCurvature,
    "r2d2": lambda m: type(m) is R2D2Module,
    "metaoptnet": lambda m: type(m) is MetaOptNetModule,
    "cavia": lambda m: type(m) is CAVIAModule and m.task_map.names == ("context",),
}

# Those of reinforcement learning have a folder of their own.
HALLMARKS |= {
    "rl/maml": lambda m: type(m) is MAMLRLModule and not first_order(m) and m.outer.per_batch > 1,
    "rl/fomaml": lambda m: type(m) is MAMLRLModule and first_order(m),
    "rl/joint": lambda m: m.algorithm.inner_steps == 0 and m.algorithm.val_inner_steps > 0,
    "rl/random": lambda m: type(m.network) is RandomPolicy,
    "rl/reptile": lambda m: type(m) is ReptileRLModule,
    "rl/meta_lstm": lambda m: type(m) is MetaLSTMRLModule and type(m.inner_optimizer) is LSTMOptimizer,
}


def test_the_promised_configurations_are_there():
    classifiers = {name for name in HALLMARKS if "/" not in name} - {"cavia"}  # whose network needs a context
    promised = {f"{name}/{data}_5way_1shot.yaml" for name in classifiers for data in ("glyphs", "omniglot")}
    promised |= {f"{name}/omniglot_20way_1shot.yaml" for name in ("maml", "fomaml", "reptile")}  # five shots, too
    promised |= {f"{name}/sinusoid_5shot.yaml" for name in ("maml", "meta_sgd", "meta_curvature", "cavia")}
    promised |= {"maml/sinusoid_10shot.yaml", "maml/omniglot_5to20way_1to5shot.yaml", "protonet/texts.yaml"}
    promised |= {f"{name}/cifar_fs_5way_1shot.yaml" for name in ("anil", "maml", "meta_lstm", "protonet", "reptile")}
    promised |= {f"{name}/cifar_fs_5way_5shot.yaml" for name in ("metaoptnet", "protonet", "r2d2")}
    promised |= {"r2d2/cifar_fs_5way_5shot_resnet12.yaml"}
    promised |= {f"{name}/navigation.yaml" for name in HALLMARKS if "/" in name}
    algorithms, texts = ("protonet", "maml", "anil", "protomaml", "reptile", "meta_lstm"), ("banking77", "clinc150")
    promised |= {f"{name}/{data}_5way_{k}shot.yaml" for name in algorithms for data in texts for k in (1, 5)}
    assert promised <= set(CONFIGS)


def text_options(tmp_path):
    """A small table and splits in the layout of the data, and a tiny model with vectors as long as MiniLM's."""
    model = save_model(tmp_path / "model", hidden_size=384, num_hidden_layers=1)
    lines = [json.dumps({"text": text, "label": label}) for text, label in generated_texts(12)]
    topics = sorted({label for _, label in generated_texts(12)})
    fold = {"train": topics[:12], "val": topics[12:20], "test": topics[20:]}
    for data in ("banking77", "clinc150"):
        (tmp_path / f"{data}.jsonl.gz").write_bytes(gzip.compress("\n".join(lines).encode()))
        (tmp_path / f"{data}_splits_protaugment.json").write_text(json.dumps({"folds": [fold]}))
    table = "".join(f'"{text}",{label}\n' for text, label in generated_texts(12))
    (tmp_path / "texts.csv").write_text("text,label\n" + table)
    return ["--data.root", str(tmp_path), "--data.model", model, "--data.cache", str(tmp_path / "cache")]


@pytest.fixture(scope="session")
def cifar_root(tmp_path_factory):
    """Images in the layout of CIFAR-FS: 20 classes to train and 5 for each evaluation, of 20 images."""
    root, pixels = tmp_path_factory.mktemp("cifar-fs"), np.random.default_rng(0)
    for split, classes in {"train": 20, "val": 5, "test": 5}.items():
        for label in range(classes):
            folder = root / split / f"{split}{label}"
            folder.mkdir(parents=True)
            for number in range(20):
                Image.fromarray(pixels.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(folder / f"{number}.png")
    return root


@pytest.mark.parametrize("name", CONFIGS)
def test_configuration(name, tmp_path, request):
    arguments = [
        "--config", str(ROOT / name), "--trainer.default_root_dir", str(tmp_path), *QUIET,
        "--data.val_tasks", "2", "--data.test_tasks", "2", "--data.meta_batch_size", "2", "--data.steps_per_epoch", "2",
    ]  # fmt: skip
    if "strategy: ddp" in (ROOT / name).read_text():  # a second process would run the tests again
        arguments += ["--trainer.devices", "1", "--trainer.strategy", "auto"]
    if "omniglot" in name:
        arguments += ["--data.root", str(request.getfixturevalue("omniglot_root"))]
    if "cifar_fs" in name:
        root = str(request.getfixturevalue("cifar_root"))
        has_widths = any(network in (ROOT / name).read_text() for network in ("R2D2Net", "ResNet12"))
        width, value = ("widths", "[8,8,8,8]") if has_widths else ("hidden", "8")
        arguments += ["--data.root", root, "--data.cache", str(tmp_path / "cache"), f"--model.network.{width}", value]
    if name.startswith("reptile/") and "cifar" in name:
        arguments += ["--model.val_inner_steps", "5"]
    is_text = "TextDataModule" in (ROOT / name).read_text()
    if is_text:
        arguments += text_options(tmp_path)
    if "glyphs" in name:
        arguments += ["--data.train_classes", "30", "--data.val_classes", "30", "--data.test_classes", "30"]
    if name.startswith("rl/"):
        arguments += ["--data.horizon", "6", "--data.episodes", "3"]
        if "navigation" not in name:
            library = "metaworld" if "/ml" in name else "mujoco"
            pytest.importorskip(library, reason=f"{library}, of the extra rl, is not installed")
            arguments += ["--data.num_workers", "0"]
    fitted = main(["fit", *arguments, "--trainer.max_epochs", "1"])
    assert fitted.trainer.global_step == 2 * fitted.model.outer.per_batch
    if name.startswith(("maml/", "rl/maml")):
        main(["test", *arguments, "--ckpt_path", "best"])
    tested = main(["show", *arguments, "--ckpt_path", "best"])  # a test, and a page about it
    assert (tmp_path / "figures/test.png").is_file()
    measured = tested.trainer.callback_metrics
    losses = [measured[key] for key in measured if key.startswith("test/query_loss")]
    assert losses
    assert all(torch.isfinite(loss) for loss in losses)
    assert HALLMARKS[name.rpartition("/")[0]](fitted.model)
    if name.startswith("rl/"):
        assert torch.isfinite(measured["test/query_return"])
        kind = "success" if "/ml" in name else "return"
        assert fitted.trainer.checkpoint_callback.monitor == f"val/query_{kind}"
        return
    shape = (384,) if is_text else (3, 32, 32) if "cifar_fs" in name else (1, 28, 28)
    inputs, labels = torch.rand(10, *shape), torch.arange(5).repeat(2)
    if "sinusoid" not in name:
        assert len(fitted.model.adapt_to(inputs, labels)(inputs[:3])) == 3


@pytest.mark.parametrize("name", [name for name in CONFIGS if "lr_scheduler" in (ROOT / name).read_text()])
def test_the_schedule_ends_with_the_training(name):
    config = yaml.safe_load((ROOT / name).read_text())
    steps = config["trainer"]["max_epochs"] * config["data"]["init_args"]["steps_per_epoch"]
    steps *= config["model"]["init_args"].get("outer_steps_per_batch", 1)
    schedule = config["model"]["init_args"]["lr_scheduler"]["init_args"]
    assert schedule.get("T_max", schedule.get("total_iters")) == steps
