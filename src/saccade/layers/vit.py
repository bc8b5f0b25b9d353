"""The plain ViT."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(kw_only=True)
class ViTConfig:
    """Placeholder while the module is written; fields below are stable."""

    width: int = 768
    depth: int = 18
    heads: int = 12
    mlp_width: int = 3072
    patch_size: int = 16
    window_size: int = 14
    global_blocks: tuple[int, ...] = (2, 5, 8, 11)
    image_size: int = 1120
    drop_path: float = 0.1
