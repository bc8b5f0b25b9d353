"""A start for GSVA models that are trained without any pre-training.

The published model starts from a Llama that speaks, a CLIP whose patches its projector turned into words, and a SAM
that segments. From the usual small random weights a small one learns for thousands of steps only how to repeat the
question in the answer, and says the same of every picture: attention is uniform at first, so that a patch is 1 part in
300 of what a word reads. :func:`initialise_local` writes into the fresh weights what stands where; neither the
architecture nor what is trained changes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saccade.errors import ConfigError
from saccade.layers.local_start import look_around, start_local

if TYPE_CHECKING:
    from saccade.models.gsva.model import GSVA

_WORD_STD = 0.5
_COMMON_NORM = 4.0  # of what all words have in common
_LOOK_BACK, _MATCH = 1.0, 2.2  # gains of queries and keys
_LOUD, _SAY = 2.0, 0.6  # gains of what is repeated, in the stream and in the output
_FAST_PAIRS = 6  # of rotary frequencies: those that tell neighbours apart
_SLOW_SHARE = 9 / 16  # of rotary frequencies that turn too fast to compare words of question and answer


@torch.no_grad()
def initialise_local(model: GSVA) -> None:
    """Rewrites fresh weights in place; draws from torch's CPU generator.

    * SAM's image encoder starts local (:func:`saccade.layers.local_start.start_local`).
    * Linear layers of CLIP and of the language model keep the size of what they read; what adds to the stream of a
      block starts small.
    * CLIP's positions are 2-D sinusoids, and its heads look at the patches beside, above and below.
    * The language model's queries and keys start equal: words that are alike attend to one another.
    * The language model repeats: two heads of its first block look one and two words back, and a head of the second
      looks for a word that follows one like the present word, and says it (an induction head: Olsson et al., 2022).

    Raises:
        ConfigError: A language model of fewer than 4 heads or 2 layers.
        UsageError: A CLIP whose heads cannot tell places.
    """
    sizes = model.config.language
    if sizes.heads < 4 or sizes.layers < 2:
        raise ConfigError(
            f"the local start needs 4 heads and 2 layers, not {sizes.heads} and {sizes.layers}",
            where="language",
            fix="enlarge it, or choose initialise=plain",
        )
    start_local(model.sam.image_encoder.vit)
    tower: Any = model.clip.tower
    language: Any = model.language
    _scale_linears(tower, model.config.clip.layers, small=("out_proj", "fc2"))
    _scale_linears(language.model, sizes.layers, small=("o_proj", "down_proj"))
    places = tower.embeddings.position_embedding.weight
    places[0] = 0
    attentions = [layer.self_attn for layer in tower.encoder.layers]
    look_around(
        tower.embeddings.patch_embedding.weight,
        places[1:],
        [(attention.q_proj.weight, attention.k_proj.weight) for attention in attentions],
        heads=model.config.clip.heads,
    )
    for layer in language.model.layers:
        layer.self_attn.k_proj.weight.copy_(layer.self_attn.q_proj.weight)
    _repeat(language, sizes.heads)


def _scale_linears(part: nn.Module, layers: int, *, small: tuple[str, ...]) -> None:
    for name, module in part.named_modules():
        if isinstance(module, nn.Linear):
            narrow = 0.5 * (2 * layers) ** -0.5 if name.endswith(small) else 1.0
            module.weight.normal_(std=narrow * module.in_features**-0.5)


def _repeat(language: Any, heads: int) -> None:
    """Heads that look back in the first block, and one in the second that finds what followed a word before."""
    words, layers = language.model.embed_tokens.weight, language.model.layers
    width = words.shape[1]
    size = width // heads
    common = F.normalize(torch.randn(width), dim=0)
    words.normal_(std=_WORD_STD)
    words.sub_((words @ common)[:, None] * common)
    # Random directions that have nothing of what is common to all words.
    directions = torch.linalg.qr(torch.cat([common[:, None], torch.randn(width, 3 * size)], dim=1))[0]
    content, written, said = directions[:, 1:].mT.split(size)
    language.lm_head.weight.copy_(_SAY * (words @ content.mT) @ said)
    language.lm_head.weight.add_(torch.randn_like(words), alpha=0.1 * width**-0.5)
    words.add_(_COMMON_NORM * common)
    turns = language.model.rotary_emb.inv_freq  # radians per place, one per pair of channels j and j + size / 2
    for head, distance in ((0, 1), (1, 2)):
        rows = slice(head * size, (head + 1) * size)
        query, key = (_at(turns, places) for places in (0, distance))
        layers[0].self_attn.q_proj.weight[rows] = _LOOK_BACK * query[:, None] * common
        layers[0].self_attn.k_proj.weight[rows] = _LOOK_BACK * key[:, None] * common
    first = slice(0, size)
    layers[0].self_attn.v_proj.weight[first] = content
    layers[0].self_attn.o_proj.weight[:, first] = written.mT
    slow = torch.arange(size) % (size // 2) >= _SLOW_SHARE * (size // 2)
    layers[1].self_attn.q_proj.weight[first] = _MATCH * content * slow[:, None]
    layers[1].self_attn.k_proj.weight[first] = _MATCH * written * slow[:, None]
    layers[1].self_attn.v_proj.weight[first] = content
    layers[1].self_attn.o_proj.weight[:, first] = _LOUD * said.mT


def _at(turns_J: Tensor, places: int) -> Tensor:
    """A vector of fast rotary pairs that is turned as far as that many places are: two of them are most alike there."""
    angle = turns_J * places
    fast = torch.arange(len(turns_J)) < _FAST_PAIRS
    return torch.cat([angle.cos() * fast, angle.sin() * fast])
