"""The networks that `benchmarks/networks.py` looks at, and random examples of what each of them takes."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from lightning_meta.functional.losses import Loss

LABELS = (0, 0, 1, 1)
WORDS, LENGTH = 50, 12
NODES, FEATURES = 10, 8

Draw = Callable[[Generator], tuple[Any, Tensor]]
"""Draws the inputs and targets of four examples."""


class Case(NamedTuple):
    """A network, and what it is trained on.

    Attributes:
        library: Where it comes from, which is the name to install.
        make: Makes it, with random weights and two classes.
        examples: Draws the inputs and targets of four examples.
        loss: Of one task.
        needs: What is to be known about using it, for the table.
    """

    library: str
    make: Callable[[], nn.Module]
    examples: Draw
    loss: Loss = F.cross_entropy
    needs: str = ""


def images(size: int = 64) -> Draw:
    """Draws images with a class each."""

    def examples(draw: Generator) -> tuple[Tensor, Tensor]:
        return torch.randn(len(LABELS), 3, size, size, generator=draw), torch.tensor(LABELS)

    return examples


def segmented(draw: Generator) -> tuple[Tensor, Tensor]:
    """Images with a class for each pixel."""
    inputs, _ = images()(draw)
    return inputs, torch.randint(2, (len(LABELS), 64, 64), generator=draw)


def sentences(draw: Generator) -> tuple[dict[str, Tensor], Tensor]:
    """Sentences of different lengths, padded, with a mask."""
    words = torch.randint(1, WORDS, (len(LABELS), LENGTH), generator=draw)
    lengths = torch.randint(LENGTH // 2, LENGTH + 1, (len(LABELS), 1), generator=draw)
    mask = torch.arange(LENGTH) < lengths
    return {"input_ids": words * mask, "attention_mask": mask.long()}, torch.tensor(LABELS)


def sentences_without_mask(draw: Generator) -> tuple[dict[str, Tensor], Tensor]:
    """Sentences of the same length."""
    return {"input_ids": torch.randint(1, WORDS, (len(LABELS), LENGTH), generator=draw)}, torch.tensor(LABELS)


def signals(draw: Generator) -> tuple[Tensor, Tensor]:
    """Features of the nodes of one graph."""
    return torch.randn(len(LABELS), NODES, FEATURES, generator=draw), torch.tensor(LABELS)


def graphs(draw: Generator) -> tuple[dict[str, Tensor], Tensor]:
    """Graphs with as many nodes, and their adjacency matrices."""
    inputs, targets = signals(draw)
    edges = (torch.rand(len(LABELS), NODES, NODES, generator=draw) < 0.3).float()
    return {"x": inputs, "adj": torch.maximum(edges, edges.mT)}, targets


class ByKeyword(nn.Module):
    """Calls a network with a dict's entries as arguments, and takes the logits of what it returns."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        """Logits `(examples, N)`."""
        logits: Tensor = self.network(**inputs).logits
        return logits


class Recurrent(nn.Module):
    """A head on the last output of an LSTM."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.LSTM(FEATURES, 16, batch_first=True), nn.Linear(16, 2)

    def forward(self, x: Tensor) -> Tensor:
        """Logits `(examples, N)` of sequences `(examples, length, features)`."""
        logits: Tensor = self.head(self.body(x)[0][:, -1])
        return logits


class Pooled(nn.Module):
    """A head on the first output vector of a body."""

    def __init__(self, body: nn.Module, width: int) -> None:
        super().__init__()
        self.body, self.head = body, nn.Linear(width, 2)

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        """Logits `(examples, N)`."""
        logits: Tensor = self.head(self.body(**inputs).last_hidden_state[:, 0])
        return logits


class GraphOfSensors(nn.Module):
    """Two convolutions over the same graph for all examples, which is a buffer."""

    def __init__(self, kind: str = "GCNConv") -> None:
        from torch_geometric import nn as layers

        super().__init__()
        convolution = getattr(layers, kind)
        self.first, self.second, self.head = convolution(FEATURES, 16), convolution(16, 16), nn.Linear(16, 2)
        ring = torch.arange(NODES)
        self.register_buffer("edges", torch.stack([ring, (ring + 1) % NODES]))

    def forward(self, x: Tensor) -> Tensor:
        """Logits `(examples, N)` of nodes `(examples, nodes, features)`."""
        x = self.second(self.first(x, self.edges).relu(), self.edges).relu()
        logits: Tensor = self.head(x.mean(1))
        return logits


class DenseGraphs(nn.Module):
    """Two convolutions over a graph of each example's own."""

    def __init__(self) -> None:
        from torch_geometric.nn import DenseGCNConv

        super().__init__()
        self.first, self.second, self.head = DenseGCNConv(FEATURES, 16), DenseGCNConv(16, 16), nn.Linear(16, 2)

    def forward(self, graph: dict[str, Tensor]) -> Tensor:
        """Logits `(examples, N)`."""
        x = self.second(self.first(graph["x"], graph["adj"]).relu(), graph["adj"]).relu()
        logits: Tensor = self.head(x.mean(1))
        return logits


def torchvision(name: str, size: int = 64, needs: str = "", **options: Any) -> Case:
    """A classifier of torchvision."""

    def make() -> nn.Module:
        from torchvision.models import get_model

        network: nn.Module = get_model(name, weights=None, num_classes=2, **options)
        return network

    return Case("torchvision", make, images(size), needs=needs)


def maxvit() -> nn.Module:
    """MaxViT-T with windows that fit images of 64×64; torchvision's own are for 224×224."""
    from torchvision.models import MaxVit

    return MaxVit((64, 64), 64, 2, [64, 128, 256, 512], [2, 2, 5, 2], 32, 0.2, num_classes=2)


def deeplab() -> nn.Module:
    """A segmentation network of torchvision, which returns a dict."""
    from torchvision.models.segmentation import deeplabv3_mobilenet_v3_large

    network: nn.Module = deeplabv3_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=2)
    return network


def timm(name: str, needs: str = "", **options: Any) -> Case:
    """A classifier of timm."""

    def make() -> nn.Module:
        from timm import create_model

        network: nn.Module = create_model(name, pretrained=False, num_classes=2, **options)
        return network

    return Case("timm", make, images(), needs=needs)


def unet() -> nn.Module:
    """A U-Net with a ResNet-18 for its encoder."""
    from segmentation_models_pytorch import Unet

    network: nn.Module = Unet("resnet18", encoder_weights=None, classes=2)
    return network


SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}


def transformer(kind: str, examples: Draw = sentences, **options: Any) -> Case:
    """A small transformer of Hugging Face that classifies sentences."""

    def make() -> nn.Module:
        from transformers import AutoConfig, AutoModelForSequenceClassification

        config = AutoConfig.for_model(kind, vocab_size=WORDS, num_labels=2, pad_token_id=0, **options)
        return ByKeyword(AutoModelForSequenceClassification.from_config(config))

    return Case("transformers", make, examples, needs="dict inputs; wrapped to be called by keyword")


def bert_body() -> nn.Module:
    """A small BERT without a head."""
    from transformers import AutoModel, BertConfig

    return Pooled(AutoModel.from_config(BertConfig(vocab_size=WORDS, **SMALL)), SMALL["hidden_size"])


def hugging_face_vit() -> nn.Module:
    """A small vision transformer of Hugging Face."""
    from transformers import AutoModelForImageClassification, ViTConfig

    config = ViTConfig(image_size=64, patch_size=16, num_labels=2, **SMALL)
    network: nn.Module = AutoModelForImageClassification.from_config(config)
    return network


def of_logits(outputs: Any, targets: Tensor) -> Tensor:
    """Cross-entropy of an output with logits among others."""
    return F.cross_entropy(outputs["logits"], targets)


def of_out(outputs: Any, targets: Tensor) -> Tensor:
    """Cross-entropy of what torchvision's segmentation networks return."""
    return F.cross_entropy(outputs["out"], targets)


CASES = {
    "ResNet-18": torchvision("resnet18"),
    "ResNet-50": torchvision("resnet50"),
    "ResNeXt-50 32x4d": torchvision("resnext50_32x4d"),
    "Wide ResNet-50-2": torchvision("wide_resnet50_2"),
    "DenseNet-121": torchvision("densenet121"),
    "VGG-11": torchvision("vgg11"),
    "VGG-11 with batch norm": torchvision("vgg11_bn"),
    "AlexNet": torchvision("alexnet"),
    "SqueezeNet 1.1": torchvision("squeezenet1_1"),
    "GoogLeNet": torchvision("googlenet", aux_logits=False, init_weights=False, needs="`aux_logits=False`"),
    "Inception v3": torchvision(
        "inception_v3", 80, aux_logits=False, init_weights=False, needs="`aux_logits=False`, images of 75×75 or more"
    ),
    "MobileNetV2": torchvision("mobilenet_v2"),
    "MobileNetV3-small": torchvision("mobilenet_v3_small"),
    "MNASNet 0.5": torchvision("mnasnet0_5"),
    "ShuffleNetV2 x0.5": torchvision("shufflenet_v2_x0_5"),
    "EfficientNet-B0": torchvision("efficientnet_b0"),
    "EfficientNetV2-S": torchvision("efficientnet_v2_s"),
    "RegNet-X 400MF": torchvision("regnet_x_400mf"),
    "RegNet-Y 400MF": torchvision("regnet_y_400mf"),
    "ConvNeXt-T": torchvision("convnext_tiny"),
    "ViT-B/16": torchvision("vit_b_16", image_size=64, needs="`image_size=64`"),
    "Swin-T": torchvision("swin_t"),
    "Swin-V2-T": torchvision("swin_v2_t"),
    "MaxViT-T": Case("torchvision", maxvit, images(), needs="windows that fit the image"),
    "DeepLabV3 MobileNetV3": Case(
        "torchvision", deeplab, segmented, of_out, '`loss=` of `outputs["out"]`'
    ),
    "ViT-Ti/16": timm("vit_tiny_patch16_224", img_size=64, needs="`img_size=64`"),
    "ResNet-10t": timm("resnet10t"),
    "ConvNeXt-Atto": timm("convnext_atto"),
    "EfficientNet, tiny": timm("test_efficientnet"),
    "NFNet, tiny": timm("test_nfnet"),
    "MambaOut, tiny": timm("test_mambaout"),
    "U-Net ResNet-18": Case("segmentation-models-pytorch", unet, segmented),
    "BERT": transformer("bert", **SMALL),
    "BERT without padding": transformer("bert", sentences_without_mask, **SMALL),
    "BERT without a head": transformer("bert", **SMALL)._replace(make=bert_body),
    "DistilBERT": transformer("distilbert", dim=32, n_layers=2, n_heads=2, hidden_dim=64),
    "DeBERTa-v2": transformer("deberta-v2", **SMALL),
    "ModernBERT": transformer("modernbert", **SMALL),
    "GPT-2": transformer("gpt2", n_embd=32, n_layer=2, n_head=2, n_positions=LENGTH),
    "Llama": transformer("llama", **SMALL),
    "ViT": Case(
        "transformers", hugging_face_vit, images(), of_logits, '`loss=` of `outputs["logits"]`'
    ),
    "LSTM": Case("torch", Recurrent, signals),
    "GraphSAGE, one graph": Case(
        "torch_geometric", lambda: GraphOfSensors("SAGEConv"), signals, needs="edges as a buffer"
    ),
    "GCN, one graph": Case("torch_geometric", GraphOfSensors, signals, needs="edges as a buffer"),
    "GCN, dense graphs": Case("torch_geometric", DenseGraphs, graphs, needs="dict inputs"),
}  # fmt: skip
"""By the name in the table; of every family its smallest."""
