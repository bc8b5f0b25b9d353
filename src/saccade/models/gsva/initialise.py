"""A start for GSVA models that are trained without any pre-training.

The published model starts from a Llama that speaks, a CLIP whose patches its projector turned into words, and a SAM
that segments. From the usual small random weights a small one learns to speak, and says the same of every picture:
attention is uniform at first, so that a patch is 1 part in 300 of what a word reads. :func:`initialise_local` writes
into the fresh weights what stands where; neither the architecture nor what is trained changes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from saccade.layers.local_start import sinusoids_2d, start_local

if TYPE_CHECKING:
    from saccade.models.gsva.model import GSVA

_PATCH_SCALE, _POSITION_SCALE = 0.25, 0.15
_WORD_STD = 0.5


@torch.no_grad()
def initialise_local(model: GSVA) -> None:
    """Rewrites fresh weights in place; draws from torch's CPU generator.

    * SAM's image encoder starts local (:func:`saccade.layers.local_start.start_local`).
    * Linear layers of CLIP and of the language model keep the size of what they read; what adds to the stream of a
      block starts small.
    * CLIP's positions are 2-D sinusoids. Its queries and keys start equal, and so do those of the language model: what
      is alike attends to one another, be it patches side by side or a word and its repetition in the answer.
    """
    start_local(model.sam.image_encoder.vit)
    tower, language = model.clip.tower, model.language
    side = model.config.clip.image_size // model.config.clip.patch_size
    _scale_linears(tower, model.config.clip.layers, small=("out_proj", "fc2"))
    _scale_linears(language.model, model.config.language.layers, small=("o_proj", "down_proj"))
    embeddings = tower.embeddings
    embeddings.patch_embedding.weight.normal_(
        std=_PATCH_SCALE * (2 / embeddings.patch_embedding.weight[0].numel()) ** 0.5
    )
    embeddings.position_embedding.weight[0] = 0
    embeddings.position_embedding.weight[1:] = _POSITION_SCALE * sinusoids_2d(side, model.config.clip.width).flatten(
        0, 1
    )
    language.model.embed_tokens.weight.normal_(std=_WORD_STD)
    language.lm_head.weight.normal_(std=_WORD_STD * model.config.language.width**-0.5)
    for module in (*tower.modules(), *language.modules()):
        if hasattr(module, "q_proj") and hasattr(module, "k_proj"):
            module.k_proj.weight.copy_(module.q_proj.weight)


def _scale_linears(part: nn.Module, layers: int, *, small: tuple[str, ...]) -> None:
    for name, module in part.named_modules():
        if isinstance(module, nn.Linear):
            narrow = (2 * layers) ** -0.5 if name.endswith(small) else 1.0
            module.weight.normal_(std=narrow * module.in_features**-0.5)
