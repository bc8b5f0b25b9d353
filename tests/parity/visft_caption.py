"""ViSFT's caption head against the original (``io_caption``)."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from visft_parts import FLOAT, GRADIENT, Tensors, load_weights

from saccade.layers.show_attend_tell import SpeakerConfig
from saccade.models.visft.caption import CaptionHead, CaptionHeadConfig, head_keys

if TYPE_CHECKING:
    from check import Report

FILE = "io_caption.safetensors"


def read_config(config: dict[str, Any]) -> CaptionHeadConfig:
    """The head of a fixture."""
    sizes = config["caption"]
    return CaptionHeadConfig(
        speaker=SpeakerConfig(
            attention_width=sizes["attention_dim"],
            embed_width=sizes["embed_dim"],
            state_width=sizes["decoder_dim"],
            vocabulary=sizes["vocab_size"],
            dropout=0.0,
        ),
        cells=sizes["encoded_image_size"],
    )


def compare_caption(report: Report, folder: Path, backbone: Callable[[Tensor], Tensor]) -> None:
    """Every tensor of ``io_caption``.

    Args:
        report: Where rows go.
        folder: The fixture.
        backbone: Images ``[B, 3, H, W]`` to the last map ``[B, H, W, C]``, without LoRA.
    """
    config = json.loads((folder / "config.json").read_text())
    head = load_weights(CaptionHead(read_config(config), config["backbone"]["embed_dim"]), head_keys(""), folder)
    tensors = Tensors(report, folder / FILE)
    for group in sorted({name.split("/")[0] for name in tensors}):
        if f"{group}/image" in tensors:
            features = backbone(tensors.read(f"{group}/image")).permute(0, 3, 1, 2)
            tensors.close(f"{group}/features", features)
        _compare_group(head, tensors, group, config["tokens"])


def _compare_group(head: CaptionHead, tensors: Tensors, group: str, tokens: dict[str, int]) -> None:
    def close(name: str, ours: Tensor, tolerance: float = FLOAT) -> None:
        if f"{group}/{name}" in tensors:  # a committed folder has less
            tensors.close(f"{group}/{name}", ours, tolerance)

    def same(name: str, ours: Tensor) -> None:
        tensors.same(f"{group}/{name}", ours)

    features = tensors.read(f"{group}/features").clone().requires_grad_()
    map_BHWC = features.permute(0, 2, 3, 1)
    side = head.config.cells
    close("pooled", head(map_BHWC).unflatten(1, (side, side)))
    ids, lengths = tensors.read(f"{group}/captions"), tensors.read(f"{group}/caplens")[:, 0].tolist()
    taught, wanted = head.teach(map_BHWC, ids, lengths)
    same("sort_ind", taught.order)
    steps = sorted((length - 1 for length in lengths), reverse=True)
    same("decode_lengths", torch.tensor(steps))
    close("scores_packed", taught.logits_PV)
    same("targets_packed", wanted)
    close("alphas", taught.attention_BTN)
    padded = torch.zeros(len(steps), steps[0], taught.logits_PV.shape[1])
    at = 0
    for step in range(steps[0]):
        going = sum(n > step for n in steps)
        padded[:going, step] = taught.logits_PV[at : at + going]
        at += going
    close("scores_padded", padded)
    right = (taught.logits_PV.topk(5, dim=1).indices == wanted[:, None]).any(1).float().mean() * 100
    close("top5acc", right.reshape(tensors.values[f"{group}/top5acc"].shape))
    loss = torch.stack(list(head.loss_of_ids(map_BHWC, ids, lengths).values())).sum()
    close("loss", loss)
    (gradient,) = torch.autograd.grad(loss, features)
    close("grad_features", gradient, GRADIENT)
    with torch.inference_mode():
        for beams, kind in ((1, "greedy{}"), (3, "beam3_{}"), (5, "beam5_{}")):
            head.config = dataclasses.replace(head.config, beams=beams)
            said, scores = head.speak(map_BHWC, start=tokens["start"], end=tokens["end"])
            for image, (row, score) in enumerate(zip(said, scores, strict=True)):
                name = kind.format(image)
                ended = [tokens["end"]] if len(row) < head.config.most_words else []
                same(name, torch.tensor([tokens["start"], *row, *ended]))
                if beams > 1:
                    close(f"{name}_logp", score)
