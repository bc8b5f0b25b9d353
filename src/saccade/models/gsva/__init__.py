"""GSVA: generalized segmentation with a multimodal language model that may also refuse."""
