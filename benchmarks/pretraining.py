"""Ordinary training and prototypes against meta-training: Conv-4 on CIFAR-FS, for the same time on one core.

    python benchmarks/pretraining.py ROOT [SECONDS]

ROOT holds CIFAR-FS: see `lightning_meta.CIFARFSDataModule`. docs/images.md has what it gives.
"""

import copy
import math
import sys
import tempfile
import time
from typing import Any

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_meta import CIFARFSDataModule, Conv4, Normalize, ProtoNetModule
from lightning_meta.datamodules.labelled import targets_of

CLASSES, BATCH, TASKS = 64, 128, 300


class UnitLength(nn.Module):
    """Features of length 1."""

    def forward(self, features: Tensor) -> Tensor:
        """`(examples, features)` to the same."""
        return F.normalize(features, dim=-1)


def network(outputs: int) -> Conv4:
    """The same body for both, with a head of so many outputs."""
    torch.manual_seed(0)
    normalize = Normalize([0.507, 0.487, 0.441], [0.267, 0.256, 0.276])
    return Conv4(outputs, in_channels=3, downsample="pool", image_size=32, normalize=normalize)


def data(root: str, **options: Any) -> CIFARFSDataModule:
    """Tasks of 5 ways; tests with 1 and with 5 shots."""
    made = CIFARFSDataModule(
        root, n_query=5, meta_batch_size=4, steps_per_epoch=10**6, test_tasks=TASKS, test_k_shot=[1, 5],
        test_n_query=15, **options,
    )  # fmt: skip
    made.setup()
    return made


def meta_trained(root: str, seconds: float) -> tuple[int, ProtoNetModule]:
    """A prototypical network, and in how many outer steps of 4 tasks it was trained."""
    module, steps = ProtoNetModule(network(5)), 0
    optimizer = torch.optim.Adam(module.parameters(), 1e-3)
    start = time.process_time()
    for batch in data(root).train_dataloader():
        optimizer.zero_grad()
        module.meta_loss(batch).backward()
        optimizer.step()
        steps += 1
        if time.process_time() - start > seconds:
            break
    return steps, module


def pretrained(root: str, seconds: float) -> tuple[int, nn.Module]:
    """The body of a classifier of the training classes, frozen, and in how many steps it was trained."""
    classifier, steps = network(CLASSES), 0
    for layer in classifier.modules():
        if isinstance(layer, nn.BatchNorm2d):  # of a classifier they track what they see, for afterwards
            layer.__init__(layer.num_features)
    dataset: Any = data(root).datasets["train"]
    targets = torch.from_numpy(targets_of(dataset, "train")).unique(return_inverse=True)[1]
    optimizer = torch.optim.SGD(classifier.parameters(), 0.05, momentum=0.9, weight_decay=5e-4)
    random = torch.Generator().manual_seed(0)
    start = time.process_time()
    while (spent := time.process_time() - start) < seconds:
        for group in optimizer.param_groups:
            group["lr"] = 0.025 * (1 + math.cos(math.pi * spent / seconds))
        chosen = torch.randint(len(targets), (BATCH,), generator=random)
        images = torch.stack([dataset[i][0] for i in chosen.tolist()]).float() / 255
        if torch.rand((), generator=random) < 0.5:
            images = images.flip(-1)
        optimizer.zero_grad()
        F.cross_entropy(classifier(images), targets[chosen]).backward()
        optimizer.step()
        steps += 1
    body = copy.deepcopy(classifier.body)
    return steps, body.requires_grad_(False).eval()


def test(name: str, module: ProtoNetModule, datamodule: CIFARFSDataModule) -> None:
    """Print the accuracies over the same tasks."""
    trainer = pl.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False)
    trainer.test(module, datamodule, verbose=False)
    found = {key: 100 * float(value) for key, value in trainer.callback_metrics.items()}
    rows = [
        f"{shot}: {found[f'test/query_accuracy/{shot}']:.1f} ± {found[f'test/query_accuracy_ci95/{shot}']:.1f} %"
        for shot in datamodule.test_rows
    ]
    print(f"{name}: {'; '.join(rows)}", flush=True)


def main(root: str, seconds: float) -> None:
    """Train both, and test them."""
    torch.set_num_threads(1)
    steps, body = pretrained(root, seconds)
    with tempfile.TemporaryDirectory() as cache:
        features = data(root, backbone=body, cache=cache)
        test(f"{steps} steps of ordinary training, then prototypes", ProtoNetModule(nn.Identity()), features)
        test("the same, with vectors of length 1", ProtoNetModule(UnitLength()), features)
    steps, module = meta_trained(root, seconds)
    test(f"{steps} outer steps of a prototypical network", module, data(root))


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]) if len(sys.argv) > 2 else 75.0)
