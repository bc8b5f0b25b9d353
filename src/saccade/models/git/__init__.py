"""GiT (ECCV 2024): one plain ViT, every task as language."""
