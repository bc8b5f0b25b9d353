"""Every recipe, scaled down, trains two steps on drawn scenes."""

from __future__ import annotations

import dataclasses
import io
import json
import math
from pathlib import Path

import pytest
from rich.console import Console

from saccade.data.depth_augment import DepthAugment
from saccade.data.large_scale_jitter import LargeScaleJitterAugment
from saccade.data.scenes import THING_CLASSES, VOCABULARY
from saccade.hub.checkpoint import save_model
from saccade.layers.swin import SwinV2Config
from saccade.layers.vit import ViTConfig
from saccade.layers.vitae import ViTAEConfig
from saccade.models.ait.config import AiTConfig, ObjectsConfig
from saccade.models.ait.vqvae import MapVQVAE, MapVQVAEConfig
from saccade.models.git.config import DetectionConfig, GiTConfig
from saccade.models.gsva.config import GSVAConfig
from saccade.models.gsva.presets import nano as gsva_nano
from saccade.models.systems import ModelConfig, build
from saccade.models.visft.clip import CLIPPairConfig
from saccade.models.visft.config import ViSFTConfig
from saccade.models.vitdet.config import ViTDetConfig
from saccade.recipes import RECIPES, get_recipe
from saccade.tasks import Task
from saccade.tokens.codebook import VQVAEConfig
from saccade.training.config import SourceConfig, TrainConfig
from saccade.training.start import vocabulary_of
from saccade.training.trainer import Trainer

SIDE = 64


def scaled_down(config: TrainConfig, out: Path) -> TrainConfig:
    """The same run in miniature: tasks, mixture, augmentation, optimiser and precision stay, sizes and data shrink."""
    model = _small_model(config.model)
    return dataclasses.replace(
        config,
        model=model,
        **_vqvaes(model, out),
        train=tuple(_scenes(source, "train") for source in config.train),
        val=tuple(_scenes(source, "val") for source in config.val),
        steps=min(config.steps, 2),
        accumulate=1,
        weights=_start(config, model, out) if config.lora is not None else "",
        init_from="",
        text_init="",
        vocabulary="",
        workers=0,
        threads=1,
        log_every=1,
        eval_every=0,
        save_every=1000,
        monitor="",
        out=str(out),
        device="cpu",
    )


def _start(config: TrainConfig, model: ModelConfig, folder: Path) -> str:
    """What low-rank updates are put on: they refuse fresh weights."""
    vocabulary = vocabulary_of(dataclasses.replace(config, model=model, weights="", vocabulary=""))
    return str(save_model(build(model, vocabulary), folder / "start", classes={}, provenance={}))


def _small_detector(model: ViTDetConfig) -> ViTDetConfig:
    small = {"width": 32, "depth": 4, "heads": 2, "mlp_width": 48, "image_size": SIDE, "global_blocks": (1,)}
    cells = {"width": 8, "embed": 4}
    backbone = model.backbone
    if isinstance(backbone, ViTAEConfig):
        first, second, last = backbone.cells
        backbone = ViTAEConfig(
            cells=(
                dataclasses.replace(first, **cells),
                dataclasses.replace(second, **cells),
                dataclasses.replace(last, width=32, embed=16),
            ),
            blocks=dataclasses.replace(backbone.blocks, **small),
        )
    else:
        backbone = dataclasses.replace(backbone, **small, position_size=2 if backbone.position_size else 0)
    return dataclasses.replace(
        model,
        classes=THING_CLASSES,
        category_ids=(),
        backbone=backbone,
        pyramid=dataclasses.replace(model.pyramid, channels=8),
        rpn=dataclasses.replace(model.rpn, channels=8, candidates=(50, 50), proposals=(20, 20)),
        roi=dataclasses.replace(
            model.roi, num_classes=len(THING_CLASSES), channels=8, conv_channels=8, hidden=16, batch=16
        ),
        input_size=SIDE,
    )


def _small_vqvae(vqvae: VQVAEConfig) -> VQVAEConfig:
    small = {"downsample": 16, "base_width": 2, "residual_blocks": 1}
    codebook = dataclasses.replace(vqvae.codebook, codes=8, width=4)
    return dataclasses.replace(vqvae, size=SIDE, codebook=codebook, **small)


def _small_solver(model: AiTConfig) -> AiTConfig:
    def objects(task: ObjectsConfig | None) -> ObjectsConfig | None:
        masks = None if task is None or task.masks is None else _small_vqvae(task.masks)
        return None if task is None else dataclasses.replace(task, input_size=SIDE, objects=12, masks=masks)

    depth = model.depth
    if depth is not None:
        depth = dataclasses.replace(depth, depth=_small_vqvae(depth.depth), pad_to=SIDE if depth.pad_to else 0)
    backbone = model.backbone
    if isinstance(backbone, SwinV2Config):
        few = len(backbone.depths)
        backbone = dataclasses.replace(
            backbone, width=8, depths=(1,) * few, heads=(1,) * few, windows=(4,) * few, pretrained_windows=(4,) * few
        )
    else:
        backbone = ViTConfig(width=16, depth=2, heads=2, mlp_width=16, image_size=SIDE, window_size=2)
    return dataclasses.replace(
        model,
        classes=THING_CLASSES if model.classes else (),
        category_ids=(),
        num_classes=len(THING_CLASSES),
        bins=SIDE,
        mask_codes=8,
        depth_codes=8,
        backbone=backbone,
        transformer=dataclasses.replace(
            model.transformer, width=16, heads=4, mlp_width=16, encoder_blocks=1, decoder_blocks=1, grid=8, length=300
        ),
        detection=objects(model.detection),
        instance=objects(model.instance),
        depth=depth,
    )


def _vqvaes(model: ModelConfig, folder: Path) -> dict[str, str]:
    """What a solver says the codes of; here they mean nothing."""
    if not isinstance(model, AiTConfig):
        return {}
    made = {}
    for name, task, vqvae in (
        ("mask", Task.INSTANCE, model.instance.masks if model.instance else None),
        ("depth", Task.DEPTH, model.depth.depth if model.depth else None),
    ):
        if vqvae is not None:
            net = MapVQVAE(MapVQVAEConfig(task=task, vqvae=vqvae))
            made[f"{name}_vqvae"] = str(save_model(net, folder / name, classes={}, provenance={}))
    return made


def _small_gsva(model: GSVAConfig) -> GSVAConfig:
    small = gsva_nano(SIDE)
    return dataclasses.replace(
        small,
        language=dataclasses.replace(small.language, layers=2),
        lora=model.lora,
        conversation=model.conversation,
        trainable=model.trainable,
    )


def _small_visft(model: ViSFTConfig) -> ViSFTConfig:
    """With the words of scenes and their classes; the backbone's form and the heads' rules stay."""
    detection, instance, caption = model.detection, model.instance, model.caption
    classes = {"classes": THING_CLASSES, "num_classes": len(THING_CLASSES), "category_ids": (), "layout": "ours"}
    if detection is not None:
        detr = dataclasses.replace(
            detection.detr,
            encoder_width=16,
            decoder_width=16,
            heads=2,
            mlp_width=16,
            encoder_layers=1,
            decoder_layers=2,
        )
        detection = dataclasses.replace(detection, detr=detr, queries=8, **classes)
    if instance is not None:
        pixels = dataclasses.replace(
            instance.pixels, width=16, mask_width=16, heads=2, mlp_width=16, layers=1, groups=4
        )
        decoder = dataclasses.replace(instance.decoder, heads=2, mlp_width=16, layers=2, queries=8)
        instance = dataclasses.replace(instance, pixels=pixels, decoder=decoder, points=64, **classes)
    if caption is not None:
        speaker = dataclasses.replace(
            caption.speaker, attention_width=8, embed_width=8, state_width=8, vocabulary=len(VOCABULARY) + 4
        )
        caption = dataclasses.replace(caption, speaker=speaker, most_words=8)
    depth = 2
    vit = dataclasses.replace(
        model.vit, width=32, depth=depth, heads=2, mlp_width=32, image_size=SIDE // 14 * 14, global_blocks=(0, 1)
    )
    sizes = {"detection_size": SIDE, "instance_size": SIDE, "caption_size": SIDE}
    return dataclasses.replace(model, vit=vit, detection=detection, instance=instance, caption=caption, **sizes)


def _small_pair(model: CLIPPairConfig) -> CLIPPairConfig:
    vit = dataclasses.replace(model.vit, width=16, depth=1, heads=2, mlp_width=16, global_blocks=(0,))
    return dataclasses.replace(model, vit=vit, text=dataclasses.replace(model.text, width=16, layers=1, heads=2))


def _small_model(model: ModelConfig) -> ModelConfig:
    if isinstance(model, ViSFTConfig):
        return _small_visft(model)
    if isinstance(model, CLIPPairConfig):
        return _small_pair(model)
    if isinstance(model, GSVAConfig):
        return _small_gsva(model)
    if isinstance(model, ViTDetConfig):
        return _small_detector(model)
    if isinstance(model, AiTConfig):
        return _small_solver(model)
    if isinstance(model, MapVQVAEConfig):
        return dataclasses.replace(model, vqvae=_small_vqvae(model.vqvae))

    def boxes(task: DetectionConfig | None) -> DetectionConfig | None:
        return None if task is None else dataclasses.replace(task, input_size=2 * SIDE, num_bins=4 * SIDE)

    def resized(task, **changes):
        return None if task is None else dataclasses.replace(task, input_size=SIDE, **changes)

    return GiTConfig(
        vit=ViTConfig(
            width=32,
            depth=4,
            heads=2,
            mlp_width=48,
            image_size=2 * SIDE,
            window_size=4,
            global_blocks=(1,),
            drop_path=model.vit.drop_path,
        ),
        vocab_size=1024,
        max_positions=64,
        concept_heads=2,
        text_dropout=model.text_dropout,
        detection=boxes(model.detection),
        instance_segmentation=boxes(model.instance_segmentation),
        semantic_segmentation=resized(model.semantic_segmentation, train_points_per_window=8),
        caption=resized(model.caption),
        grounding=resized(model.grounding, num_bins=2 * SIDE),
    )


def _scenes(source: SourceConfig, split: str) -> SourceConfig:
    augment = source.augment
    if isinstance(augment, DepthAugment):
        augment = dataclasses.replace(augment, columns="all")  # of NYU, whose pictures have 640
    if isinstance(augment, LargeScaleJitterAugment):
        augment = dataclasses.replace(augment, size=SIDE)
    return SourceConfig(
        task=source.task,
        reader="scenes",
        split=split,
        size=SIDE,
        limit=100 if split == "train" else 2,
        weight=source.weight,
        batch_size=min(source.batch_size, 2),
        per_step=min(source.per_step, 2),
        augment=augment,
    )


def every_recipe() -> list:
    """All but finetune and those of lesions, which need a folder; large transfers differ from base in numbers alone."""
    names = sorted(name for name in RECIPES if name != "finetune" and not name.startswith("polar."))
    slow = [name for name in names if "_shot_" in name and not name.endswith("_base")]
    return [pytest.param(name, marks=pytest.mark.slow if name in slow else ()) for name in names]


@pytest.mark.parametrize("name", every_recipe())
def test_two_steps(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # METEOR starts a Java program that reads its tables for many seconds, and a plot takes longer than two steps.
    monkeypatch.setattr("saccade.metrics.caption.meteor_missing", lambda: "not in this test")
    monkeypatch.setattr("saccade.training.logs.draw_curves", lambda *_args: None)
    config = get_recipe(name)()
    result = Trainer(scaled_down(config, tmp_path), console=Console(file=io.StringIO())).fit()
    assert result.step == min(config.steps, 2)
    assert {label.split("[")[0].split("#")[0] for label in result.evaluations} == {str(s.task) for s in config.val}
    log = [json.loads(line) for line in (result.folder / "metrics.jsonl").read_text().splitlines()]
    trained = [row for row in log if row["kind"] == "train"]
    assert len(trained) == min(config.steps, 2)
    assert all(math.isfinite(value) for row in trained for value in row.values() if isinstance(value, float))
    assert (result.checkpoint is None) == (config.steps == 0)
