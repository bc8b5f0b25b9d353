"""Named sizes of GiT. base, large and huge are the published ones; tiny and nano are ours."""

from __future__ import annotations

from collections.abc import Callable

from saccade.layers.vit import ViTConfig
from saccade.models.git.config import CaptionConfig, DetectionConfig, GiTConfig, GroundingConfig, SemanticConfig


def base() -> GiTConfig:
    """GiT-B: SAM ViT-B with six more windowed blocks."""
    return GiTConfig()


def large() -> GiTConfig:
    """GiT-L."""
    return GiTConfig(
        vit=ViTConfig(width=1024, depth=30, heads=16, mlp_width=4096, global_blocks=(5, 11, 17, 23), drop_path=0.4)
    )


def huge() -> GiTConfig:
    """GiT-H."""
    return GiTConfig(
        vit=ViTConfig(width=1280, depth=38, heads=16, mlp_width=5120, global_blocks=(7, 15, 23, 31), drop_path=0.4)
    )


def base_672() -> GiTConfig:
    """GiT-B for detection at 672 px, the light config of the authors."""
    return GiTConfig(
        vit=ViTConfig(image_size=672),
        detection=DetectionConfig(input_size=672, num_bins=1344),
        instance_segmentation=None,
        semantic_segmentation=None,
        caption=None,
        grounding=None,
    )


def _small(
    *, width: int, mlp_width: int, depth: int, heads: int, vocab_size: int, global_blocks: tuple[int, ...]
) -> GiTConfig:
    return GiTConfig(
        vit=ViTConfig(
            width=width,
            depth=depth,
            heads=heads,
            mlp_width=mlp_width,
            image_size=224,
            global_blocks=global_blocks,
            drop_path=0.0,
        ),
        vocab_size=vocab_size,
        max_positions=64,
        concept_heads=4,
        text_dropout=0.0,
        detection=DetectionConfig(
            input_size=224, grid_per_window=(10, 10), train_points_per_window=24, num_bins=224, max_detections=100
        ),
        instance_segmentation=DetectionConfig(
            input_size=224,
            grid_per_window=(10, 10),
            train_points_per_window=12,
            num_bins=224,
            max_detections=100,
            num_rays=24,
        ),
        semantic_segmentation=SemanticConfig(input_size=224, train_points_per_window=24),
        caption=CaptionConfig(input_size=224, max_length=24),
        grounding=GroundingConfig(input_size=224, num_bins=224, max_text_length=32),
    )


NANO_VOCABULARY_SIZE = 1024
"""Word rows of nano and tiny: the bundled vocabulary with [DEC] and [ENC]."""


def nano() -> GiTConfig:
    """The bundled model: all five tasks in under 8 MB at 224 px."""
    return _small(width=192, mlp_width=672, depth=8, heads=3, vocab_size=NANO_VOCABULARY_SIZE, global_blocks=(2, 5))


def tiny() -> GiTConfig:
    """Between nano and base: 12 blocks of width 384."""
    return _small(
        width=384, mlp_width=1536, depth=12, heads=6, vocab_size=NANO_VOCABULARY_SIZE, global_blocks=(2, 5, 8)
    )


PRESETS: dict[str, Callable[[], GiTConfig]] = {
    "nano": nano,
    "tiny": tiny,
    "base": base,
    "base-672": base_672,
    "large": large,
    "huge": huge,
}
