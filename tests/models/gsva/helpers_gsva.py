"""A tiny GSVA, and batches for it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from saccade.layers.sam import SAMConfig
from saccade.layers.sam_decoder import MaskDecoderConfig
from saccade.layers.vit import ViTConfig
from saccade.models.gsva.config import CLIPConfig, GSVAConfig, LanguageConfig, LoRAConfig
from saccade.models.gsva.inputs import IGNORED, ConversationBatch
from saccade.models.gsva.model import GSVA
from saccade.samples import Origin
from saccade.tasks import Task
from saccade.tokens.pieces import IMAGE_ID

SEG, REJ, END, IMAGE = 36, 37, 2, IMAGE_ID
SIDE, CLIP_SIDE = 64, 28
PICTURES = ((20, 32), (33, 24), (16, 16))
QUESTION = (1, 10, IMAGE, 11, 12)


def config(**changes: Any) -> GSVAConfig:
    whole = GSVAConfig(
        language=LanguageConfig(vocab_size=40, width=32, mlp_width=48, layers=2, heads=2, positions=96),
        lora=LoRAConfig(rank=3, dropout=0.0),
        clip=CLIPConfig(width=24, mlp_width=32, layers=3, heads=2, image_size=CLIP_SIDE, patch_size=14),
        sam=SAMConfig(
            vit=ViTConfig(
                width=16,
                depth=2,
                heads=2,
                mlp_width=32,
                image_size=SIDE,
                window_size=3,
                global_blocks=(1,),
                drop_path=0.0,
            ),
            width=16,
            mask_width=4,
            decoder=MaskDecoderConfig(heads=2, mlp_width=24, iou_width=16),
        ),
        seg_id=SEG,
        rej_id=REJ,
        end_id=END,
        max_length=64,
        max_new_tokens=6,
    )
    return dataclasses.replace(whole, **changes)


def model(seed: int = 0, **changes: Any) -> GSVA:
    torch.manual_seed(seed)
    net = GSVA(config(**changes))
    with torch.no_grad():
        # Low-rank updates start as nothing, tables of positions as zeros.
        for name, parameter in net.named_parameters():
            if ".lora_B." in name or "rel_pos" in name or name.endswith("pos_embed"):
                parameter.normal_(std=0.1)
    return net.eval()


def batch(conversations: Mapping[int, Sequence[Sequence[int]]], **changes: Any) -> ConversationBatch:
    """Image number to the answers of its conversations, as ids; all have the same question."""
    torch.manual_seed(7)
    views = {image: (torch.randn(3, SIDE, SIDE), torch.randn(3, CLIP_SIDE, CLIP_SIDE)) for image in range(3)}
    images = list(conversations)
    rows = [[*QUESTION, *answer] for image in images for answer in conversations[image]]
    ids = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
    for into, row in zip(ids, rows, strict=True):
        into[: len(row)] = torch.tensor(row)
    labels = ids.clone()
    labels[:, : len(QUESTION)] = IGNORED
    labels[ids == 0] = IGNORED
    counts = [len(conversations[image]) for image in images]
    made = ConversationBatch(
        images=torch.stack([views[image][0] for image in images]),
        images_clip=torch.stack([views[image][1] for image in images]),
        task=Task.REFERRING,
        origins=[Origin(dataset="test", image_id=i, path=None, size_hw=PICTURES[i]) for i in images],
        input_sizes_hw=[_fit(PICTURES[image]) for image in images],
        input_ids=ids,
        attention_mask=ids != 0,
        conversation_to_image=torch.arange(len(images)).repeat_interleave(torch.tensor(counts)),
        labels=labels,
        masks=[_masks(image, conversations[image]) for image in images],
    )
    return dataclasses.replace(made, **changes)


def mixed() -> ConversationBatch:
    """One conversation with everything, several conversations, and one without masks."""
    return batch({0: [(13, SEG, 14, REJ, SEG, END)], 1: [(SEG, END), (15, 16, SEG, END)], 2: [(13, 14, END)]})


def total(losses: Mapping[str, Tensor]) -> Tensor:
    return torch.stack(list(losses.values())).sum()


def _masks(image: int, answers: Sequence[Sequence[int]]) -> Tensor:
    rows = sum(answer.count(SEG) + answer.count(REJ) for answer in map(list, answers))
    h, w = PICTURES[image]
    masks = torch.zeros(rows, h, w, dtype=torch.uint8)
    for index, mask in enumerate(masks):
        mask[index * 2 : h // 2, : w // 2 + index] = 1
    return masks


def _fit(size_hw: tuple[int, int]) -> tuple[int, int]:
    factor = SIDE / max(size_hw)
    return round(size_hw[0] * factor), round(size_hw[1] * factor)
