"""Configuration of GSVA: the language model, the two eyes (CLIP and SAM), and what is trained."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from saccade.errors import ConfigError
from saccade.layers.sam import SAMConfig

Part: TypeAlias = Literal[
    "language",
    "vocabulary",
    "lora",
    "clip",
    "projector",
    "image_encoder",
    "prompt_encoder",
    "mask_decoder",
    "bridge",
]
"""What can be trained by itself: ``vocabulary`` is the word table and the output layer, ``language`` the blocks between
them."""

PUBLISHED_PARTS: tuple[Part, ...] = ("vocabulary", "lora", "mask_decoder", "bridge")
"""What the authors train."""


def _at_least_1(value: int, where: str) -> None:
    if value < 1:
        raise ConfigError(f"{value} is less than 1", where=where)


@dataclass(kw_only=True)
class LanguageConfig:
    """A Llama.

    Attributes:
        vocab_size: Rows of the word table, the added tokens included.
        width: Channels.
        mlp_width: Hidden channels of the gated MLP.
        layers: Blocks.
        heads: Attention heads.
        norm_eps: Epsilon of the RMS norms (Llama-1 and Vicuna 1e-6, Llama-2 1e-5).
        positions: Greatest length of a sequence, image tokens included.
        rope_base: Base of the rotary positions.
    """

    vocab_size: int = 32005
    width: int = 4096
    mlp_width: int = 11008
    layers: int = 32
    heads: int = 32
    norm_eps: float = 1e-6
    positions: int = 2048
    rope_base: float = 10000.0

    def __post_init__(self) -> None:
        for name in ("vocab_size", "width", "mlp_width", "layers", "heads", "positions"):
            _at_least_1(getattr(self, name), f"language.{name}")
        if self.width % self.heads:
            raise ConfigError(f"width {self.width} is not a multiple of heads {self.heads}", where="language.width")


@dataclass(kw_only=True)
class LoRAConfig:
    """Low-rank updates of the queries and values of every block of the language model.

    Attributes:
        rank: 0 = none.
        alpha: The update is scaled by ``alpha / rank``.
        dropout: On the input of the update, in training.
    """

    rank: int = 8
    alpha: int = 16
    dropout: float = 0.05


@dataclass(kw_only=True)
class CLIPConfig:
    """The image tower of CLIP; its features are those before the last block, without the class token.

    Attributes:
        width: Channels.
        mlp_width: Hidden channels of the MLP.
        layers: Blocks.
        heads: Attention heads.
        image_size: Side of the input in pixels.
        patch_size: Side of a patch in pixels.
    """

    width: int = 1024
    mlp_width: int = 4096
    layers: int = 24
    heads: int = 16
    image_size: int = 224
    patch_size: int = 14

    def __post_init__(self) -> None:
        for name in ("width", "mlp_width", "layers", "heads", "image_size", "patch_size"):
            _at_least_1(getattr(self, name), f"clip.{name}")

    @property
    def tokens(self) -> int:
        """Tokens that an image becomes."""
        return (self.image_size // self.patch_size) ** 2


@dataclass(kw_only=True)
class GSVAConfig:
    """GSVA.

    Attributes:
        language: The language model.
        lora: Its low-rank updates.
        clip: What the language model sees the image with.
        sam: What masks are made with.
        seg_id: Token that says: here is a mask.
        rej_id: Token that says: there is no such thing in the image.
        end_id: Token that ends an answer.
        conversation: Form of the prompt that the language model was tuned on.
        max_length: Greatest number of tokens in training, image tokens included; longer conversations are cut.
        max_new_tokens: Greatest length of a free answer.
        trainable: What is trained; all else keeps its values.
        one_seg: Without [REJ], as LISA: every phrase is asked by itself and answered with one [SEG], and what is absent
            has an empty mask. For comparisons.
        ce_weight: Of the cross-entropy of the answer.
        bce_weight: Of the pixel-wise error of masks.
        dice_weight: Of the overlap error of masks.
    """

    language: LanguageConfig = field(default_factory=LanguageConfig)
    lora: LoRAConfig = field(default_factory=LoRAConfig)
    clip: CLIPConfig = field(default_factory=CLIPConfig)
    sam: SAMConfig = field(default_factory=SAMConfig)
    seg_id: int = 32003
    rej_id: int = 32004
    end_id: int = 2
    conversation: Literal["llava_v1", "llava_llama_2"] = "llava_v1"
    max_length: int = 1024
    max_new_tokens: int = 256
    trainable: tuple[Part, ...] = PUBLISHED_PARTS
    one_seg: bool = False
    ce_weight: float = 1.0
    bce_weight: float = 2.0
    dice_weight: float = 0.5

    def __post_init__(self) -> None:
        rows = self.language.vocab_size
        for name in ("seg_id", "rej_id", "end_id"):
            if not 0 <= getattr(self, name) < rows:
                raise ConfigError(f"token {getattr(self, name)} of a vocabulary of {rows}", where=name)
        for name in ("max_length", "max_new_tokens"):
            _at_least_1(getattr(self, name), name)
        if self.seg_id == self.rej_id:
            raise ConfigError("[SEG] and [REJ] are one token", where="rej_id")
        if self.max_length > self.language.positions:
            raise ConfigError(
                f"{self.max_length} tokens are more than the {self.language.positions} positions of the language model",
                where="max_length",
            )
