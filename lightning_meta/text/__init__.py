"""Few-shot text: tables of texts, pretrained encoders, and the data module that joins them (extra `text`)."""

from lightning_meta.text.datamodule import TextDataModule
from lightning_meta.text.encoder import TextClassifier, TextEncoder
from lightning_meta.text.generated import generated_texts
from lightning_meta.text.tables import Texts, read_texts

__all__ = ["TextClassifier", "TextDataModule", "TextEncoder", "Texts", "generated_texts", "read_texts"]
