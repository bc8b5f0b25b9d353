"""Tiny towers, and miniatures of the data of suites."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn
from transformers import OPTConfig, OPTForCausalLM

from saccade.data.scenes import VOCABULARY, draw_scene
from saccade.hub.checkpoint import save_model
from saccade.layers.vit import ViTConfig
from saccade.models.visft.clip import CLIPPair, CLIPPairConfig, TextTowerConfig
from saccade.models.visft.presets import eva
from saccade.suites.towers import Tower, open_tower
from saccade.tokens.clip_pieces import CLIPPieces

MERGES = ["#version: 0.2", "a t</w>", "c at</w>", "d o", "do g</w>"]


def tiny_vit(**changes: object) -> ViTConfig:
    settings: dict[str, object] = {"image_size": 56, "class_token": True} | changes
    return eva(width=32, depth=2, heads=2, mlp_width=48, **settings)


def tiny_pair(folder: Path, **changes: object) -> CLIPPair:
    """A pair with CLIP's own letters for a vocabulary."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "merges.txt").write_text("\n".join(MERGES))
    pieces = CLIPPieces(folder)
    torch.manual_seed(0)
    text = TextTowerConfig(vocab_size=len(pieces), positions=77, width=24, layers=1, heads=2)
    return CLIPPair(CLIPPairConfig(vit=tiny_vit(**changes), text=text, joint_width=12), pieces)


def save_pair(folder: Path, **changes: object) -> Path:
    pair = tiny_pair(folder.with_name("words"), **changes)
    return save_model(pair, folder, classes={}, provenance={})


def tiny_tower(tmp_path: Path, **changes: object) -> Tower:
    return open_tower(str(save_pair(tmp_path / "pair", **changes)))


def tiny_language(folder: Path) -> Path:
    """An OPT that can spell, and its tokenizer, as a folder of the hub."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = ["<pad>", "</s>", "\n", *sorted({letter for word in VOCABULARY for letter in word} | set(" .,:?'QSCaAt"))]
    tokenizer = Tokenizer(models.WordLevel({letter: index for index, letter in enumerate(letters)}, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="</s>", eos_token="</s>", pad_token="<pad>"
    ).save_pretrained(folder)
    torch.manual_seed(0)
    OPTForCausalLM(
        OPTConfig(
            vocab_size=len(letters), hidden_size=32, word_embed_proj_dim=32, num_hidden_layers=1, ffn_dim=32,
            num_attention_heads=2, max_position_embeddings=256, bos_token_id=1, eos_token_id=1, pad_token_id=0,
        )
    ).save_pretrained(folder)  # fmt: skip
    return folder


@contextmanager
def unchanged(module: nn.Module) -> Iterator[None]:
    """Checks that a module is not changed meanwhile."""
    before = {key: value.clone() for key, value in module.state_dict().items()}
    yield
    assert all(torch.equal(before[key], value) for key, value in module.state_dict().items())


def scene_picture(index: int, side: int = 64) -> torch.Tensor:
    return torch.from_numpy(draw_scene((5, index), (side, side)).image).permute(2, 0, 1).contiguous()
