"""What docs/text.md shows besides its programs and its commands."""

from pathlib import Path

import pytest
import torch
import yaml

from lightning_meta.cli.main import main
from tests.cli.test_main import QUIET
from tests.documents import blocks
from tests.text.models import stand_ins

SMALL = ["--data.val_tasks", "2", "--data.test_tasks", "4", "--data.steps_per_epoch", "2", "--trainer.max_epochs", "1"]


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Train and test a configuration."""
    stand_ins(tmp_path, monkeypatch)
    monkeypatch.chdir(tmp_path)

    def of(config):
        Path("config.yaml").write_text(yaml.safe_dump(config | {"trainer": {"default_root_dir": "run"}}))
        main(["fit", "--config", "config.yaml", *SMALL, *QUIET])
        return main(["test", "--config", "config.yaml", "--ckpt_path", "best", *SMALL, *QUIET])

    return of


def shown(place):
    return yaml.safe_load(list(blocks("docs/text.md", "yaml"))[place].code)


def test_deployment_predicts_what_evaluation_does(run):
    """Of one text at a time, where evaluation has vectors that were encoded together."""
    made = run(shown(0))
    data, module = made.datamodule, made.model
    tasks = next(iter(data.test_dataloader()))
    (predicted, *_) = module.task_map(module.algorithm.predict, module.problem(tasks))
    indices = data.tasks["test"].indices([0])[0]  # (N, K + Q), places in the subset
    texts = [text for part in data._read().values() for text in part.texts]
    places = torch.as_tensor(data.datasets["test"].indices)[torch.as_tensor(indices)]
    network = module.adapt_to(data.encode([texts[i] for i in places[:, 0]]), torch.arange(5))
    alone = torch.cat([network(data.encode([texts[i]])) for i in places[:, 1:].flatten()])
    assert torch.allclose(alone, predicted[0], atol=1e-4)
    assert torch.equal(alone.argmax(1), predicted[0].argmax(1))


def test_the_configuration_of_tokens(run):
    made = run(shown(1))
    assert made.trainer.callback_metrics["test/query_loss"] > 0
    saved = torch.load("run/checkpoints/best.ckpt", weights_only=True)["state_dict"]
    frozen = {f"network.{name}" for name, p in made.model.network.named_parameters() if not p.requires_grad}
    assert frozen
    assert not frozen & saved.keys()
