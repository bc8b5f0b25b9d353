"""The caption head of ViSFT: a recurrent speaker that attends to 14 x 14 cells of the last map of a plain backbone.

Source: ViSFT, 2024; Show, Attend and Tell, ICML 2015; facts in docs/visft.md.

Shape legend: B images, H W map, C backbone width, N cells, T steps, P words of the batch, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saccade.errors import CheckpointError, ConfigError, DataError, UsageError
from saccade.layers.show_attend_tell import Speaker, SpeakerConfig, Taught
from saccade.mapping import Rule
from saccade.results import Caption
from saccade.samples import Batch
from saccade.tokens.words import WordMap


@dataclass(kw_only=True, frozen=True)
class CaptionHeadConfig:
    """The head; the defaults are the published sizes.

    Attributes:
        speaker: Attention, state and words.
        cells: Side of the map that is attended to; the last map is averaged over as many regions.
        coverage: Weight of what keeps the attention of all words together even over the cells.
        most_words: Greatest number of words of a caption.
        beams: Beams of the search in prediction; 1 = the likeliest word at every step.
    """

    speaker: SpeakerConfig = field(default_factory=SpeakerConfig)
    cells: int = 14
    coverage: float = 1.0
    most_words: int = 50
    beams: int = 3

    def __post_init__(self) -> None:
        if not 1 <= self.beams <= self.speaker.vocabulary:
            raise ConfigError(
                f"a search of {self.beams} beams",
                where="caption.beams",
                fix=f"1 to {self.speaker.vocabulary}, the words",
            )


class CaptionHead(nn.Module):
    """The head.

    Args:
        config: Sizes.
        in_width: Channels C of the backbone.
        words: The map of words that captions are read and written with; None = ids only.

    Raises:
        CheckpointError: The map has another number of words than the head.
    """

    def __init__(self, config: CaptionHeadConfig, in_width: int, words: WordMap | None = None) -> None:
        super().__init__()
        if words is not None and len(words) != config.speaker.vocabulary:
            raise CheckpointError(
                f"the map has {len(words)} words, the caption head {config.speaker.vocabulary}",
                where="caption.speaker.vocabulary",
                fix="give the map of words that the head was trained with",
            )
        self.config = config
        self.words = words
        self.speaker = Speaker(config.speaker, in_width)

    def forward(self, map_BHWC: Tensor) -> Tensor:
        """The cells ``[B, N, C]`` that are attended to."""
        side = self.config.cells
        return F.adaptive_avg_pool2d(map_BHWC.permute(0, 3, 1, 2), (side, side)).flatten(2).mT.contiguous()

    def loss(self, map_BHWC: Tensor, batch: Batch) -> dict[str, Tensor]:
        """The cross entropy of the next word, and the unevenness of the attention; their sum is the loss.

        One caption per sample is learned: the first of the target (the loader draws it).

        Args:
            map_BHWC: The last map of the backbone.
            batch: Network inputs with captions.

        Returns:
            ``loss_ce`` and ``loss_coverage``.

        Raises:
            DataError: A sample has no caption.
            UsageError: The head has no map of words.
        """
        words = self._require_words()
        texts = [target.captions[0] if target.captions else None for target in batch.targets]
        if any(text is None for text in texts):
            raise DataError("a training sample has no caption", fix="use a captioning data set")
        rows = [words.encode(text, most=self.config.most_words) for text in texts if text is not None]
        longest = max(len(row) for row in rows)
        ids_BT = torch.tensor([row + [0] * (longest - len(row)) for row in rows], device=map_BHWC.device)
        return self.loss_of_ids(map_BHWC, ids_BT, [len(row) for row in rows])

    def loss_of_ids(self, map_BHWC: Tensor, ids_BT: Tensor, lengths: Sequence[int]) -> dict[str, Tensor]:
        """The loss of encoded captions; see :meth:`loss`.

        Args:
            map_BHWC: The last map of the backbone.
            ids_BT: ``<start> words <end>``, padded.
            lengths: Of every row, start and end included.
        """
        taught, wanted_P = self.teach(map_BHWC, ids_BT, lengths)
        seen_BN = taught.attention_BTN.float().sum(dim=1)
        return {
            "loss_ce": F.cross_entropy(taught.logits_PV.float(), wanted_P),
            "loss_coverage": self.config.coverage * (1 - seen_BN).square().mean(),
        }

    def teach(self, map_BHWC: Tensor, ids_BT: Tensor, lengths: Sequence[int]) -> tuple[Taught, Tensor]:
        """What the head says when it is told the right words, and the words ``[P]`` that are right."""
        steps = [length - 1 for length in lengths]
        taught = self.speaker.teach(self(map_BHWC), ids_BT[:, :-1], steps)
        sorted_ids, going = ids_BT[taught.order], sorted(steps, reverse=True)
        wanted = [sorted_ids[: sum(n > step for n in going), step + 1] for step in range(max(steps))]
        return taught, torch.cat(wanted)

    def predict(self, map_BHWC: Tensor, batch: Batch) -> list[Caption]:
        """One caption per image, with its log-probability per word.

        Raises:
            UsageError: The head has no map of words.
        """
        words = self._require_words()
        said, scores = self.speak(map_BHWC, start=words.start_id, end=words.end_id)
        return [
            Caption(text=words.decode(row), score=float(score) / (len(row) + 1))
            for row, score in zip(said, scores.tolist(), strict=True)
        ]

    def speak(self, map_BHWC: Tensor, *, start: int, end: int) -> tuple[list[list[int]], Tensor]:
        """The ids of a caption for every image, without start and end, and their summed log-probabilities ``[B]``."""
        cells_BNC, most = self(map_BHWC), self.config.most_words
        if self.config.beams == 1:
            return self.speaker.greedy(cells_BNC, start=start, end=end, most=most)
        return self.speaker.beam(cells_BNC, beams=self.config.beams, start=start, end=end, most=most)

    def _require_words(self) -> WordMap:
        if self.words is None:
            raise UsageError(
                "the caption head has no map of words",
                why="the released heads come without theirs",
                fix="give the WORDMAP_*.json that its captions were written with",
            )
        return self.words


def head_keys(prefix: str) -> tuple[Rule, ...]:
    """Official names on the left, ours on the right.

    Args:
        prefix: Of our names, e.g. ``"caption."``.
    """
    official, ours = "visft_heads.caption_decoder.", f"{prefix}speaker."
    return (
        (f"{official}attention.encoder_att.", f"{ours}key."),
        (f"{official}attention.decoder_att.", f"{ours}query."),
        (f"{official}attention.full_att.", f"{ours}score."),
        (f"{official}embedding.", f"{ours}embed."),
        (f"{official}decode_step.", f"{ours}cell."),
        (f"{official}init_h.", f"{ours}first_hidden."),
        (f"{official}init_c.", f"{ours}first_cell."),
        (f"{official}f_beta.", f"{ours}gate."),
        (f"{official}fc.", f"{ours}logits."),
    )
