"""A small SentencePiece model of the Llama family, trained by the tests."""

from __future__ import annotations

import io
from pathlib import Path

import sentencepiece

TEXT = (
    "the man in red and the left dog are on the right",
    "USER: What are the two chairs in this image? ASSISTANT: Sure, they are.",
    "Please segment all the people, the tallest tree and the sky.",
    "[INST] <<SYS>> You are a helpful language and vision assistant. <</SYS>> [/INST]",
)
PIECES = 320


def train_pieces(folder: Path) -> Path:
    """Writes ``tokenizer.model`` with byte pieces and without any normalisation, as Llama's."""
    content = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXT * 20),
        model_writer=content,
        model_type="bpe",
        vocab_size=PIECES,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    path = folder / "tokenizer.model"
    path.write_bytes(content.getvalue())
    return path
