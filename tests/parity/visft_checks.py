"""ViSFT against the original: backbones, low-rank updates and the second stage (heads and transforms: ``visft_*``)."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import visft_caption
import visft_detection
import visft_detr_transforms
import visft_segmentation
import visft_stage2
import visft_transforms
from safetensors.torch import load_file
from torch import Tensor, nn
from visft_parts import FLOAT

from saccade.layers.lora import LoRAConfig, add_lora, lora_of, merge, set_multiplier, unmerge, updates_of
from saccade.layers.vit import PlainViT, ViTConfig
from saccade.models.visft.convert import from_official, lora_form
from saccade.models.visft.presets import eva

if TYPE_CHECKING:
    from check import Report


def check(folder: Path, report: Report) -> None:
    """Every file of the folder."""
    config = json.loads((folder / "config.json").read_text())
    plain = plain_backbone(folder, config)
    parts = {
        "io_detection": lambda: visft_detection.compare_detection(report, folder, plain),
        "io_segmentation": lambda: visft_segmentation.compare_segmentation(report, folder, plain),
        "io_msdeform": lambda: visft_segmentation.compare_deformable(report, folder),
        "io_caption": lambda: visft_caption.compare_caption(report, folder, plain),
        "io_stage2": lambda: visft_stage2.compare_stage2(
            report, folder, read_vit(config["backbone"]), read_lora(config)
        ),
        "io_transforms": lambda: compare_transforms(report, folder),
        "lora_file": lambda: compare_lora_file(report, folder),
    }
    for name, compare in parts.items():
        if (folder / f"{name}.safetensors").is_file():
            compare()
    for kind, weights in (("eva_g", "weights"), ("eva_e", "weights_eva_e")):
        if (folder / f"io_backbone_{kind}.safetensors").is_file():
            BackboneCheck(folder, report, config, kind, weights).run()


def plain_backbone(folder: Path, config: dict[str, Any]) -> Callable[[Tensor], Tensor]:
    """The backbone that the heads of the fixture stand on, without updates: images to maps."""
    net = Alone(read_vit(config["backbone"])).eval()
    expected = {key: tuple(value.shape) for key, value in net.state_dict().items()}
    state = {key: value for key, value in load_file(folder / "weights.safetensors").items() if ".lora_" not in key}
    net.load_state_dict(from_official(state, expected, heads=())[0])
    return torch.no_grad()(net.backbone)


def compare_transforms(report: Report, folder: Path) -> None:
    """What is loaded and how it is augmented, of both tasks; every tensor of the file belongs to one of them."""
    report.expect("io_transforms.safetensors", list(load_file(folder / "io_transforms.safetensors")))
    visft_detr_transforms.compare_detection_transforms(report, folder)
    visft_transforms.compare_segmentation_transforms(report, folder)


def compare_lora_file(report: Report, folder: Path) -> None:
    """The updates by themselves are those among the weights."""
    updates, whole = load_file(folder / "lora_file.safetensors"), load_file(folder / "weights.safetensors")
    report.expect("lora_file", list(updates))
    within, _ = lora_form(whole)
    for block, pair in lora_form(updates)[0].items():
        for side, ours, theirs in zip("AB", within[block], pair, strict=True):
            report.close(f"lora_file/visual.blocks.{block}.attn.qkv.lora_{side}", ours, theirs, 0.0)


def read_vit(sizes: dict[str, Any]) -> ViTConfig:
    """A backbone of a fixture as our config."""
    return eva(
        width=sizes["embed_dim"],
        depth=sizes["depth"],
        heads=sizes["num_heads"],
        mlp_width=int(sizes["embed_dim"] * sizes["mlp_ratio"]),
        patch_size=sizes["patch_size"],
        image_size=sizes["img_size"],
        norm="post" if sizes["kind"] == "eva_e" else "pre",
    )


def read_lora(config: dict[str, Any]) -> LoRAConfig:
    """The updates of a fixture."""
    letters = "".join(letter for letter, on in zip("qkv", config["lora"]["enable_lora"], strict=True) if on)
    targets = (f"backbone.*.qkv:{letters}",)
    return LoRAConfig(rank=config["lora"]["r"], alpha=float(config["lora"]["lora_alpha"]), targets=targets)


class Alone(nn.Module):
    """A backbone under the name that it has in a model."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.backbone = PlainViT(config)


class BackboneCheck:
    """One backbone: without updates, with them counted once, and counted twice."""

    def __init__(self, folder: Path, report: Report, config: dict[str, Any], kind: str, weights: str) -> None:
        self.report, self.file = report, f"io_backbone_{kind}.safetensors"
        self.stem = self.file.removesuffix(".safetensors")
        self.tensors = load_file(folder / self.file)
        report.expect(self.stem, list(self.tensors))
        state = load_file(folder / f"{weights}.safetensors")
        self.net = Alone(read_vit(config["backbone_e" if kind == "eva_e" else "backbone"])).eval()
        plain = {key: value for key, value in state.items() if ".lora_" not in key}
        self._load(plain, str(folder / weights))
        self.lora = read_lora(config)
        self.state, self.source = state, str(folder / weights)

    def run(self) -> None:
        images = sorted({name.split("/")[0] for name in self.tensors if name.endswith("/image")})
        with torch.no_grad():
            for number in images:
                self._compare(number, "nolora")
            add_lora(self.net, self.lora)
            self._load(self.state, self.source)
            for number in images:
                self._compare(number, "lora")
            once = {name: layer.weight.clone() for name, (layer, _) in updates_of(self.net).items()}
            merge(self.net)
            for number in images:
                self._compare_out(number, "lora", "merged, ")
            for name in [name for name in self.tensors if name.startswith("lora_eval/")]:
                block = name.split("/block")[1].split("_")[0]
                ours = self.net.get_submodule(f"backbone.blocks.{block}.attn.qkv").weight
                self._close(name, ours)
            unmerge(self.net)
            for name, (layer, _) in updates_of(self.net).items():
                self.report.equal(f"{self.stem}/un-merged {name}", torch.equal(layer.weight, once[name]), True)
            set_multiplier(self.net, 2)
            for number in images:
                self._compare_out(number, "lora_eval", "")
            merge(self.net)
            for number in images:
                self._compare_out(number, "lora_eval", "merged, ")

    def _load(self, state: dict[str, Tensor], source: str) -> None:
        expected = {key: tuple(value.shape) for key, value in self.net.state_dict().items()}
        mapped, found = from_official(state, expected, heads=(), source=source)
        self.report.equal(f"{self.stem}/keys, {lora_of(self.net)}", found.gaps(), {})
        self.net.load_state_dict(mapped)

    def _compare(self, number: str, form: str) -> None:
        backbone = self.net.backbone
        image = self.tensors[f"{number}/image"]
        self.report.skip(f"{self.stem}/{number}/image")
        self._close(f"{number}/tokens", backbone.embed(image).flatten(1, 2))
        for index, block in enumerate(self._blocks(image)):
            self._close(f"{number}/{form}/block{index}", block)
        self._compare_out(number, form, "")

    def _blocks(self, image: Tensor) -> list[Tensor]:
        """Maps behind every block, the last one without the norm."""
        kept: list[Tensor] = []

        def keep(block: nn.Module, inputs: object, out: Tensor) -> None:
            kept.append(out.flatten(1, 2))

        hooks = [block.register_forward_hook(keep) for block in self.net.backbone]
        self.net.backbone(image)
        for hook in hooks:
            hook.remove()
        return kept

    def _compare_out(self, number: str, form: str, how: str) -> None:
        name = f"{number}/{form}/out"
        if name in self.tensors:
            out = self.net.backbone(self.tensors[f"{number}/image"]).permute(0, 3, 1, 2)
            self._close(name, out, how)

    def _close(self, name: str, ours: Tensor, how: str = "") -> None:
        if how:
            self.report.close(f"{self.stem}/{how}{name}", ours, self.tensors[name], FLOAT)
        else:
            self.report.close(f"{self.stem}/{name}", ours, self.tensors[name], FLOAT)
