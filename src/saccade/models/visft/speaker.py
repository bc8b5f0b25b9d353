"""A frozen language model that speaks about an image through a Q-Former (BLIP-2, ICML 2023, section 3.2).

Only the Q-Former and the layer behind it are trained. Shape legend: B images, N image tokens, Q queries, T word ids,
C channels of the image, W channels of the language model's words.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, cast

import torch
from torch import Tensor, nn
from transformers import AutoTokenizer, OPTForCausalLM

from saccade.errors import CheckpointError, DataError
from saccade.models.visft.qformer import QFormer, QFormerConfig

_IGNORED = -100
END = "\n"
"""What a text ends with."""


class Pieces(Protocol):
    """What makes ids of words and words of ids: a tokenizer of ``transformers``."""

    bos_token_id: int | None
    pad_token_id: int | None

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Ids of a text."""
        ...

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        """Text of ids."""
        ...


@dataclass(kw_only=True, frozen=True)
class Manner:
    """How an answer is searched for.

    Attributes:
        beams: Width of the search.
        most: Greatest number of new tokens.
        least: Least number of new tokens before the end.
        length_penalty: Exponent of the length that a beam's log-probability is divided by; 0 = none.
    """

    beams: int = 5
    most: int = 30
    least: int = 1
    length_penalty: float = 1.0


def load_language(folder: str | Path) -> tuple[OPTForCausalLM, Pieces]:
    """A language model of the OPT family and its tokenizer, from a local folder; nothing is fetched.

    Raises:
        CheckpointError: The folder holds no such model.
    """
    try:
        language = OPTForCausalLM.from_pretrained(folder, local_files_only=True)
        return language, cast("Pieces", AutoTokenizer.from_pretrained(folder, local_files_only=True))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            "the language model cannot be read",
            where=folder,
            why=str(error).split("\n", maxsplit=1)[0],
            fix="a folder of facebook/opt-2.7b (or a smaller one of its family) with its tokenizer",
        ) from error


class QFormerSpeaker(nn.Module):
    """The Q-Former, the layer that makes words of its queries, and the frozen language model behind them.

    Args:
        config: Sizes of the Q-Former.
        image_width: Channels of the image tokens.
        language: It is frozen, and never in training mode.
        pieces: Its tokenizer.
    """

    def __init__(self, config: QFormerConfig, image_width: int, language: OPTForCausalLM, pieces: Pieces) -> None:
        super().__init__()
        self.qformer = QFormer(config, image_width)
        self.project = nn.Linear(config.width, language.get_input_embeddings().embedding_dim)
        self.language = language.requires_grad_(False).eval()
        self.pieces = pieces
        ends = pieces.encode(END, add_special_tokens=False)
        if len(ends) != 1 or pieces.bos_token_id is None:
            raise CheckpointError("the tokenizer has no line break, or no start, of its own", where=repr(ends))
        self.end_id = ends[0]

    def train(self, mode: bool = True) -> QFormerSpeaker:
        """The language model stays in evaluation mode: its dropout is no part of what is learned."""
        super().train(mode)
        self.language.eval()
        return self

    def loss(self, image_BNC: Tensor, prompts: Sequence[str], texts: Sequence[str]) -> Tensor:
        """Mean cross entropy of the words of the texts and of their end; prompts are read and not learned.

        Args:
            image_BNC: Tokens of the frozen tower.
            prompts: What stands before each text; may be empty.
            texts: What is to be said.

        Raises:
            DataError: A text without words.
        """
        if empty := [index for index, text in enumerate(texts) if not text.strip()]:
            raise DataError("a text without words cannot be learned", where=f"text {empty[0]} of the batch")
        heads = [self._prompt_ids(prompt) for prompt in prompts]
        tails = [
            self._ids((f" {text.strip()}" if prompt else text.strip()) + END)
            for prompt, text in zip(prompts, texts, strict=True)
        ]
        longest = max(len(head) + len(tail) for head, tail in zip(heads, tails, strict=True))
        ids_BT = torch.zeros(len(heads), longest, dtype=torch.long)
        mask_BT, labels_BT = torch.zeros_like(ids_BT), torch.full_like(ids_BT, _IGNORED)
        for row, (head, tail) in enumerate(zip(heads, tails, strict=True)):
            length = len(head) + len(tail)
            ids_BT[row, :length] = torch.tensor(head + tail)
            mask_BT[row, :length] = 1
            labels_BT[row, len(head) : length] = torch.tensor(tail)
        prefix_BQW = self.prefix(image_BNC)
        embeds_BTW, mask_BT = self._joined(prefix_BQW, ids_BT, mask_BT)
        unlabelled_BQ = labels_BT.new_full(prefix_BQW.shape[:2], _IGNORED)
        labels = torch.cat([unlabelled_BQ, labels_BT], dim=1).to(embeds_BTW.device)
        found: Tensor = self.language(inputs_embeds=embeds_BTW, attention_mask=mask_BT, labels=labels).loss
        return found

    def prefix(self, image_BNC: Tensor) -> Tensor:
        """Image tokens as words of the language model, ``[B, Q, W]``."""
        return self.project(self.qformer(image_BNC))

    @torch.inference_mode()
    def speak(self, image_BNC: Tensor, prompts: Sequence[str], manner: Manner) -> list[str]:
        """What the language model says after the image and a prompt: the best beam, up to the end of its line.

        Args:
            image_BNC: Tokens of the frozen tower.
            prompts: One per image; may be empty.
            manner: How to search.
        """
        heads = [self._prompt_ids(prompt) for prompt in prompts]
        longest = max(map(len, heads))
        ids_BT = torch.zeros(len(heads), longest, dtype=torch.long)
        mask_BT = torch.zeros_like(ids_BT)
        for row, head in enumerate(heads):  # padded on the left: every answer begins at the same place
            ids_BT[row, longest - len(head) :] = torch.tensor(head)
            mask_BT[row, longest - len(head) :] = 1
        embeds_BTW, mask_BT = self._joined(self.prefix(image_BNC), ids_BT, mask_BT)
        said = self.language.generate(
            inputs_embeds=embeds_BTW,
            attention_mask=mask_BT,
            do_sample=False,
            num_beams=manner.beams,
            max_new_tokens=manner.most,
            min_new_tokens=manner.least,
            length_penalty=manner.length_penalty,
            eos_token_id=self.end_id,
            pad_token_id=self.end_id,
        )
        texts = [self.pieces.decode(row, skip_special_tokens=True) for row in said.tolist()]
        return [text.split(END, maxsplit=1)[0].strip() for text in texts]

    def _prompt_ids(self, prompt: str) -> list[int]:
        assert self.pieces.bos_token_id is not None
        return [self.pieces.bos_token_id, *(self._ids(prompt) if prompt else [])]

    def _ids(self, text: str) -> list[int]:
        return list(self.pieces.encode(text, add_special_tokens=False))

    def _joined(self, prefix_BQW: Tensor, ids_BT: Tensor, mask_BT: Tensor) -> tuple[Tensor, Tensor]:
        """Image and words as the language model reads them, and what of it counts."""
        device = prefix_BQW.device
        words_BTW = self.language.get_input_embeddings()(ids_BT.to(device))
        mask = torch.cat([mask_BT.new_ones(prefix_BQW.shape[:2]), mask_BT], dim=1).to(device)
        return torch.cat([prefix_BQW.to(words_BTW.dtype), words_BTW], dim=1), mask
