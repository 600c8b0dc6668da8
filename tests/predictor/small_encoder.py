"""A small random BERT with a tokenizer of a few words, as a sentence encoder lies on disk."""

from pathlib import Path

import torch
from transformers import BertConfig, BertModel, BertTokenizer

WORDS = [
    *("what", "color", "is", "it", "red", "blue", "or", "the", "a", "where"),
    *("ground", "count", "read", "please", "now", "here", "this", "that"),
]


def write_encoder(folder: Path, seed: int = 0) -> Path:
    """Width 16, one layer, at most 32 tokens; weights of a seed."""
    folder.mkdir(exist_ok=True)
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary = folder / "vocab.txt"
    vocabulary.write_text("\n".join([*special, *WORDS]))
    BertTokenizer(str(vocabulary), model_max_length=32).save_pretrained(folder)
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=len(special) + len(WORDS),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=32,
    )
    BertModel(config, add_pooling_layer=False).save_pretrained(folder)
    return folder
