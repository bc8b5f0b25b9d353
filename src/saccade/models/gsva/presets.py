"""Named sizes of GSVA: the published ones."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal

from saccade.models.gsva.config import GSVAConfig, LanguageConfig, LoRAConfig

_LARGE_LANGUAGE = partial(LanguageConfig, vocab_size=32004, width=5120, mlp_width=13824, layers=40, heads=40)


def gsva_7b() -> GSVAConfig:
    """On LLaVA-Lightning-7B-v1-1 (Vicuna)."""
    return GSVAConfig()


def gsva_13b(base: Literal["vicuna", "llama2"] = "vicuna") -> GSVAConfig:
    """On LLaVA-13B-v1-1 (Vicuna), or on LLaVA-Llama-2-13B."""
    if base == "llama2":
        return GSVAConfig(
            language=_LARGE_LANGUAGE(norm_eps=1e-5, positions=4096),
            lora=LoRAConfig(rank=64),
            seg_id=32000,
            rej_id=32001,
            conversation="llava_llama_2",
        )
    return GSVAConfig(language=_LARGE_LANGUAGE(), lora=LoRAConfig(rank=64), seg_id=32000, rej_id=32001)


PRESETS: dict[str, Callable[[], GSVAConfig]] = {
    "gsva-7b": gsva_7b,
    "gsva-13b": gsva_13b,
    "gsva-llama2-13b": partial(gsva_13b, "llama2"),
}
