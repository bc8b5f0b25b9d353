"""The second stage of ViSFT against the original: losses, gradients and steps of low-rank updates (``io_stage2``)."""

from __future__ import annotations

import dataclasses
import functools
import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import visft_caption
import visft_detection
import visft_segmentation
from safetensors.torch import load_file
from torch import Tensor
from torchvision import tv_tensors
from visft_parts import FLOAT, GRADIENT, Tensors, recorded_draws

from saccade.layers.lora import LoRAConfig, add_lora
from saccade.layers.vit import ViTConfig
from saccade.models.visft.config import ViSFTConfig
from saccade.models.visft.convert import from_official, to_official
from saccade.models.visft.model import ViSFT
from saccade.samples import Batch, Origin, Target
from saccade.tasks import Task
from saccade.tokens.words import END, PAD, START, UNKNOWN, WordMap
from saccade.training.config import OptimConfig, SourceConfig, TrainConfig
from saccade.training.distributed import open_world
from saccade.training.engine import Engine
from saccade.training.schedule import learning_rate

if TYPE_CHECKING:
    from check import Report

FILE = "io_stage2.safetensors"
TASKS = {"caption": Task.CAPTION, "detection": Task.DETECTION, "segment": Task.INSTANCE}
SCHEDULE = "lr_multiplier_at_update(0-based) warmup 2000 total 100000"


def compare_stage2(report: Report, folder: Path, vit: ViTConfig, lora: LoRAConfig) -> None:
    """Every tensor of ``io_stage2``, and the learning rates that the meta file states.

    Args:
        report: Where rows go.
        folder: The fixture.
        vit: Its backbone.
        lora: Its updates.
    """
    Stage2Check(report, folder, vit, lora).run()
    compare_schedule(report, folder)


def compare_schedule(report: Report, folder: Path) -> None:
    """The multipliers of the learning rate."""
    told = json.loads((folder / "meta.json").read_text()).get(SCHEDULE, {})
    optim = OptimConfig(lr=1.0, schedule="transformers", warmup_steps=2000)
    for update, multiplier in told.items():
        ours = learning_rate(int(update), steps=100_000, optim=optim)
        report.close(f"meta.json/lr at {update}", torch.tensor(ours), torch.tensor(float(multiplier)), FLOAT)


class Stage2Check:
    """One fixture folder."""

    def __init__(self, report: Report, folder: Path, vit: ViTConfig, lora: LoRAConfig) -> None:
        self.vit, self.lora = vit, lora
        self.config: dict[str, Any] = json.loads((folder / "config.json").read_text())
        self.tensors = Tensors(report, folder / FILE)
        self.weights = load_file(folder / "weights.safetensors")
        self.words = self._words()
        # A committed folder has not every task: then the heads of the others are left out.
        self.tasks = {name: task for name, task in TASKS.items() if f"{name}/image" in self.tensors}

    def run(self) -> None:
        """Gradients of every task by themselves, then the steps."""
        for name, task in self.tasks.items():
            # The gradient of the patches is an accident of the original, and still one that can be compared.
            model = self._model(dataclasses.replace(self.lora, trained=("backbone.patch_embed.bias",)))
            self._record(model)
            losses = model.train().loss(self._batch(name))
            torch.stack(list(losses.values())).sum().backward()
            self._losses(name, {key.removeprefix(f"{task}_"): value for key, value in losses.items()})
            grads = {key: p.grad for key, p in model.named_parameters() if p.grad is not None}
            for key, grad in to_official(grads, model.config).items():
                if f"{name}/grad/{key}" in self.tensors:
                    self.tensors.close(f"{name}/grad/{key}", grad, GRADIENT)
        self._trajectory()

    def _trajectory(self) -> None:
        model = self._model(self.lora)
        with tempfile.TemporaryDirectory() as out, open_world("cpu") as world:
            run = TrainConfig(
                name="stage2",
                out=out,
                model=model.config,
                train=(SourceConfig(task=Task.CAPTION, reader="scenes"),),
                steps=len(self.tasks),
                optim=OptimConfig(
                    lr=self.config["s2_lr"],
                    weight_decay=1e-4,
                    clip_norm=0.1,
                    schedule="constant",
                    adam="transformers",
                ),
            )
            engine = Engine(model, run, world)
            for index, name in enumerate(self.tasks):
                self._record(model)
                done = engine.step(index, [self._batch(name)])
                self.tensors.close(f"traj/step{index}/loss_total", torch.tensor(done.losses[0][1]["total"]))
                self.tensors.close(f"traj/step{index}/grad_norm", torch.tensor(done.grad_norm), GRADIENT)
                state = {key: value for key, value in model.state_dict().items() if ".lora." in key}
                for key, value in to_official(state, model.config).items():
                    if f"traj/step{index}/{key}" in self.tensors:
                        self.tensors.close(f"traj/step{index}/{key}", value)

    def _model(self, lora: LoRAConfig) -> ViSFT:
        instance = dataclasses.replace(visft_segmentation.read_config(self.config), pad_multiple=1)
        model = ViSFT(
            ViSFTConfig(
                vit=self.vit,
                detection=visft_detection.read_config(self.config) if "detection" in self.tasks else None,
                instance=instance if "segment" in self.tasks else None,
                caption=visft_caption.read_config(self.config) if "caption" in self.tasks else None,
            ),
            self.words,
        )
        add_lora(model, lora)
        expected = {key: tuple(value.shape) for key, value in model.state_dict().items()}
        mapped, found = from_official(self.weights, expected, source="weights.safetensors")
        self.tensors.equal("keys of the whole model", found.gaps(), {})
        model.load_state_dict(mapped)
        return model

    def _record(self, model: ViSFT) -> None:
        """The recorded points, instead of random ones."""
        names = sorted(name for name in self.tensors if name.startswith("segment/rand"))
        if (head := model.instance) is not None:
            draw = recorded_draws([self.tensors.read(name) for name in names])
            head.loss = functools.partial(type(head).loss, head, draw=draw)

    def _words(self) -> WordMap:
        """A map in which every id is a word of letters."""
        tokens = self.config["tokens"]
        special = {tokens["pad"]: PAD, tokens["unk"]: UNKNOWN, tokens["start"]: START, tokens["end"]: END}
        letters = "abcdefghijklmnopqrstuvwxyz"
        rows = range(self.config["caption"]["vocab_size"])
        return WordMap({special.get(i, f"w{letters[i // 26]}{letters[i % 26]}"): i for i in rows})

    def _batch(self, name: str) -> Batch:
        inputs = {
            key.removeprefix(f"{name}/"): self.tensors.read(key)
            for key in self.tensors
            if key.startswith(f"{name}/") and not key.startswith((f"{name}/grad", f"{name}/loss", f"{name}/rand"))
        }
        images = inputs["image"]
        size = int(images.shape[-2]), int(images.shape[-1])
        return Batch(
            images=images,
            task=TASKS[name],
            origins=[Origin(dataset="fixture", image_id=i, path=None, size_hw=size) for i in range(len(images))],
            input_sizes_hw=[size] * len(images),
            targets=self._targets(name, inputs, size),
        )

    def _targets(self, name: str, inputs: dict[str, Tensor], size: tuple[int, int]) -> list[Target]:
        if name == "caption":
            lengths = inputs["caplens"].flatten().tolist()
            rows = [ids[:length] for ids, length in zip(inputs["captions"].tolist(), lengths, strict=True)]
            texts = [" ".join(self.words.words[index] for index in row[1:-1]) for row in rows]
            self.tensors.equal("caption ids", [self.words.encode(text, most=50) for text in texts], rows)
            return [Target(captions=(text,)) for text in texts]
        if name == "detection":
            x, y, w, h = (inputs["boxes"] * torch.tensor([size[1], size[0]] * 2)).unbind(-1)
            boxes = torch.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2], dim=-1)
            listed = tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=size)
            return [Target(boxes=listed, class_ids=inputs["labels"])]
        first = visft_segmentation.read_config(self.config).first_logit
        return [Target(masks=tv_tensors.Mask(inputs["gt_masks"]), class_ids=inputs["gt_labels"] - first)]

    def _losses(self, name: str, losses: dict[str, Tensor]) -> None:
        total = torch.stack(list(losses.values())).sum()
        self.tensors.close(f"{name}/loss_total", total)
        for key, value in {"loss": total}.items() if name == "caption" else losses.items():
            self.tensors.close(f"{name}/loss/{key}", value)
