"""ViSFT: task heads on a plain backbone, and low-rank fine-tuning of that backbone by them."""
