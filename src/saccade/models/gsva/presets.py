"""Named sizes of GSVA: the published ones, and one of ours."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal

from saccade.layers.sam import SAMConfig
from saccade.layers.sam_decoder import MaskDecoderConfig
from saccade.layers.vit import ViTConfig
from saccade.models.gsva.config import CLIPConfig, GSVAConfig, LanguageConfig, LoRAConfig
from saccade.models.gsva.conversation import Style

NANO_PIECES = 492
"""Pieces of the vocabulary that is bundled for ``gsva-nano``, without the four tokens that GSVA adds."""

_LARGE_LANGUAGE = partial(LanguageConfig, vocab_size=32004, width=5120, mlp_width=13824, layers=40, heads=40)


def gsva_7b() -> GSVAConfig:
    """On LLaVA-Lightning-7B-v1-1 (Vicuna)."""
    return GSVAConfig()


def gsva_13b(base: Literal["vicuna", "llama2"] = "vicuna", prompt: Style = "llava_llama_2") -> GSVAConfig:
    """On LLaVA-13B-v1-1 (Vicuna), or on LLaVA-Llama-2-13B.

    Args:
        base: The language model.
        prompt: Form of the prompt on Llama-2. Which one the authors used is not known: LISA takes that of Llama-2 for
            this language model, and the default of their own program is ``llava_v1``.
    """
    if base == "llama2":
        return GSVAConfig(
            language=_LARGE_LANGUAGE(norm_eps=1e-5, positions=4096),
            lora=LoRAConfig(rank=64),
            seg_id=32000,
            rej_id=32001,
            conversation=prompt,
        )
    return GSVAConfig(language=_LARGE_LANGUAGE(), lora=LoRAConfig(rank=64), seg_id=32000, rej_id=32001)


def nano(size: int = 160) -> GSVAConfig:
    """Ours, for pictures of drawn scenes: trained whole, from nothing.

    Args:
        size: Side of what SAM and CLIP see, in pixels.
    """
    rows = NANO_PIECES + 4
    return GSVAConfig(
        language=LanguageConfig(vocab_size=rows, width=128, mlp_width=384, layers=4, heads=4, positions=1024),
        lora=LoRAConfig(rank=0),
        clip=CLIPConfig(width=128, mlp_width=384, layers=4, heads=4, image_size=size, patch_size=16),
        sam=SAMConfig(
            vit=ViTConfig(
                width=128,
                depth=4,
                heads=2,
                mlp_width=384,
                image_size=size,
                window_size=size // 16,
                global_blocks=(),
                drop_path=0.0,
            ),
            width=96,
            mask_width=8,
            decoder=MaskDecoderConfig(heads=4, mlp_width=256, mask_tokens=1, iou_width=32),
        ),
        seg_id=NANO_PIECES,
        rej_id=NANO_PIECES + 1,
        max_length=768,
        max_new_tokens=160,
        trainable=("language", "vocabulary", "clip", "projector", "image_encoder", "mask_decoder", "bridge"),
    )


PRESETS: dict[str, Callable[[], GSVAConfig]] = {
    "gsva-7b": gsva_7b,
    "gsva-13b": gsva_13b,
    "gsva-llama2-13b": partial(gsva_13b, "llama2"),
    "gsva-llama2-13b-v1": partial(gsva_13b, "llama2", "llava_v1"),
    "gsva-nano": nano,
}
