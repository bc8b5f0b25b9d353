"""Writes the SentencePiece model that goes with gsva-nano: python scripts/gsva_nano_vocabulary.py OUT.

Its text is what GSVA is asked and answers about drawn scenes, so that every word of it is one piece; other words are
spelt in letters, and other scripts in bytes.
"""

from __future__ import annotations

import io
import string
import sys
from pathlib import Path

import numpy as np
import sentencepiece

from saccade.data.phrases import PhraseAugment
from saccade.data.scenes import VOCABULARY
from saccade.data.sources.scenes import ScenesSource
from saccade.draws import GeneratorDraws
from saccade.models.gsva import prompts
from saccade.models.gsva.presets import NANO_PIECES
from saccade.tasks import Task
from saccade.tokens.pieces import FILE, PieceVocabulary

_SCENES = 1500


def corpus() -> list[str]:
    """Conversations about scenes, and their words and those of the scenes alone, so that each is worth a piece.

    The words are those of training: evaluation's wording glues some together ("ringin").
    """
    source = ScenesSource(task=Task.REFERRING, size=64)
    choose = PhraseAugment(count=4).build(64)
    training, evaluation = [], []
    for number in range(_SCENES):
        rng = np.random.default_rng(number)
        sample = choose(source[number], rng)
        for spoken, lines in (
            (prompts.training(sample, GeneratorDraws(rng)), training),
            (prompts.evaluation(sample), evaluation),
        ):
            lines += [conversation.text("llava_v1") for conversation in spoken]
    bare = {word.strip(string.punctuation) for line in training for word in line.split()}
    words = sorted({*VOCABULARY, *filter(str.isalpha, bare)})
    letters = [" ".join(string.ascii_letters), " ".join(string.digits), " ".join(string.punctuation)]
    return training + evaluation + words * 1000 + letters * 20


def main(out: str) -> None:
    """Trains and writes the model, and says which words of the scenes are more than one piece."""
    content = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus()),
        model_writer=content,
        model_type="unigram",
        vocab_size=NANO_PIECES,
        character_coverage=1.0,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        max_sentence_length=1 << 16,
        num_threads=1,
        minloglevel=2,
    )
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / FILE).write_bytes(content.getvalue())
    vocabulary = PieceVocabulary(folder)
    split = [word for word in VOCABULARY if len(vocabulary.encode(word)) != 2]  # with the <s>
    print(f"{folder / FILE}: {len(content.getvalue())} bytes, {len(vocabulary)} rows; words of several pieces: {split}")


if __name__ == "__main__":
    main(*sys.argv[1:])
