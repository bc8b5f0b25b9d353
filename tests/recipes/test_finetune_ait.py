"""Fine-tuning AiT: depth of one's own folders, objects of one's own classes, and what of the vocabulary is kept."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from torch import Tensor

from saccade.data.augment import ScaleJitterAugment
from saccade.data.depth_augment import DepthAugment
from saccade.data.sources import SourceSpec, open_source
from saccade.data.sources.base import most_objects
from saccade.errors import ConfigError, DataError, UsageError
from saccade.hub.checkpoint import load_folder, save_model
from saccade.layers.swin import SwinV2Config
from saccade.models.ait.config import AiTConfig, DepthConfig, ObjectsConfig
from saccade.models.ait.model import AiT
from saccade.models.ait.presets import PRESETS
from saccade.models.ait.transformer import TransformerConfig
from saccade.models.ait.vqvae import MapVQVAE, MapVQVAEConfig
from saccade.recipes import get_recipe
from saccade.recipes.ait import NO_DECAY
from saccade.recipes.finetune import _optim
from saccade.tasks import Task
from saccade.tokens.codebook import CodebookConfig, VQVAEConfig
from saccade.training.config import LayerDecay, TrainConfig, validate
from saccade.training.optim import layer_multiplier
from saccade.training.start import build_model
from saccade.training.trainer import Trainer, TrainResult

SIDE = 32
MASKS = VQVAEConfig(size=16, downsample=8, base_width=2, residual_blocks=1, codebook=CodebookConfig(codes=5, width=4))
MAPS = dataclasses.replace(
    MASKS, size=SIDE, signed=False, reconstruction="valid_squared", codebook=CodebookConfig(codes=7, width=4)
)
INSTANCE = ObjectsConfig(input_size=SIDE, objects=4, top_p=0.0, masks=MASKS)
MODEL = AiTConfig(
    classes=("dog", "cell", "cat"),
    category_ids=(3, 5, 8),
    num_classes=3,
    bins=12,
    mask_codes=5,
    depth_codes=7,
    spare_rows=2,
    backbone=SwinV2Config(
        width=8,
        depths=(1, 1),
        heads=(1, 2),
        windows=(4, 4),
        pretrained_windows=(4, 4),
        shifted=(True, False),
        drop_path=0.0,
        out_stages=(1,),
    ),
    transformer=TransformerConfig(
        width=8, heads=2, mlp_width=8, encoder_blocks=1, decoder_blocks=1, grid=4, length=54, dropout=0.0, drop_path=0.0
    ),
    detection=dataclasses.replace(INSTANCE, masks=None),
    instance=INSTANCE,
    depth=DepthConfig(depth=MAPS),
)
finetune = get_recipe("finetune")


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A solver of all three tasks."""
    torch.manual_seed(0)
    return save_model(AiT(MODEL), tmp_path_factory.mktemp("start") / "ait", classes={}, provenance={})


def write_coco(root: Path, names: tuple[str, ...], *, most: int = 3, crowds: int = 0) -> Path:
    """Six pictures with 1 to ``most`` squares each; the first one has crowds, too."""
    (root / "images").mkdir(parents=True)
    images, annotations = [], []
    for number in range(6):
        name = f"{number}.png"
        pixels = np.random.default_rng(number).integers(0, 255, (SIDE, 40, 3), np.uint8)
        Image.fromarray(pixels).save(root / "images" / name)
        images.append({"id": number, "file_name": name, "height": SIDE, "width": 40})
        count = most if number == 0 else 1
        for index in range(count + (crowds if number == 0 else 0)):
            x, y = 2 + 3 * (index % 10), 4 + 3 * (index // 10)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": 1 + index % len(names),
                    "bbox": [x, y, 8, 9],
                    "area": 72,
                    "iscrowd": int(index >= count),
                    "segmentation": [[x, y, x + 8, y, x + 8, y + 9, x, y + 9]],
                }
            )
    categories = [{"id": number, "name": name} for number, name in enumerate(names, start=1)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    for split in ("train", "val"):
        (root / f"instances_{split}.json").write_text(json.dumps(content))
    return root


def write_depth(root: Path) -> Path:
    for number in range(6):
        generator = np.random.default_rng(number)
        for folder, pixels in (
            ("rgb", generator.integers(0, 255, (SIDE, 40, 3)).astype(np.uint8)),
            ("depth", generator.integers(500, 30_000, (SIDE, 40)).astype(np.uint16)),
        ):
            (root / folder).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(root / folder / f"{number}.png")
    return root


def short(config: TrainConfig, out: Path) -> TrainConfig:
    train, val = (
        tuple(dataclasses.replace(source, batch_size=2) for source in part) for part in (config.train, config.val)
    )
    return dataclasses.replace(
        config, train=train, val=val, out=str(out), workers=0, threads=1, device="cpu", precision="float32"
    )


def fit(config: TrainConfig, out: Path) -> TrainResult:
    return Trainer(short(config, out), console=Console(file=io.StringIO())).fit()


# ---------------------------------------------------------------------- depth


def test_depth_of_a_folder(start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("saccade.training.logs.draw_curves", lambda *_args: None)
    root = write_depth(tmp_path / "own")
    config = finetune(data_root=str(root), task="depth", model=str(start), steps=2)
    validate(config)
    assert (config.monitor, config.train[0].reader, config.depth_vqvae) == ("depth/d1", "depth_folder", "")
    assert isinstance(config.train[0].augment, DepthAugment)
    # Neither NYU's crop nor its 10 m: these maps are of something else.
    assert config.val[0].protocol == "crop=none,max_m=1000"
    assert config.model == dataclasses.replace(MODEL, detection=None, instance=None)
    before = load_folder(start).model.state_dict()
    result = fit(config, tmp_path / "runs")
    assert 0 <= result.metrics["depth/d1"] <= 1
    loaded = load_folder(result.best or result.checkpoint)
    assert loaded.model.tasks == (Task.DEPTH,)
    after = loaded.model.state_dict()
    assert not any(key.startswith("mask_vqvae.") for key in after)
    frozen = [key for key in after if key.startswith("depth_vqvae.")]
    assert frozen and all(torch.equal(after[key], before[key]) for key in frozen)
    assert not torch.equal(after["transformer.input_proj.weight"], before["transformer.input_proj.weight"])


def test_nyu_keeps_its_protocol(start: Path, tmp_path: Path) -> None:
    from saccade.data.scenes import write_scenes

    write_scenes(tmp_path / "nyu", format="nyu", count=6, split="train", size=2 * SIDE)
    config = finetune(data_root=str(tmp_path / "nyu"), task="depth", model=str(start), steps=2)
    assert (config.val[0].reader, config.val[0].protocol) == ("nyu", "")


# ---------------------------------------------------------------------- objects


@pytest.mark.parametrize("task", ["detection", "instance"])
def test_objects_of_other_classes(start: Path, tmp_path: Path, task: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("saccade.training.logs.draw_curves", lambda *_args: None)
    root = write_coco(tmp_path / "own", ("cat", "fox", "owl", "dog", "elk"))
    config = finetune(data_root=str(root), task=task, model=str(start), steps=2)
    validate(config)
    assert config.model.num_classes == 5 and config.model.classes == ("cat", "fox", "owl", "dog", "elk")
    assert config.model.category_ids == (1, 2, 3, 4, 5)
    assert config.train[0].augment == ScaleJitterAugment(scales=(0.6, 1.5), rules="ait")
    result = fit(config, tmp_path / "runs")
    loaded = load_folder(result.best or result.checkpoint)
    assert loaded.model.tasks == (config.train[0].task,)
    assert loaded.model.classes.names == config.model.classes
    assert config.monitor in result.metrics
    frozen = {key: tensor for key, tensor in loaded.model.state_dict().items() if "vqvae." in key}
    assert {key.split(".")[0] for key in frozen} == ({"mask_vqvae"} if task == "instance" else set())
    assert all(torch.equal(tensor, load_folder(start).model.state_dict()[key]) for key, tensor in frozen.items())


def rows_of(config: TrainConfig) -> tuple[Tensor, Tensor, AiT]:
    """Vocabulary before and after the weights were moved."""
    torch.manual_seed(5)
    model = build_model(config)[0]
    assert isinstance(model, AiT)
    before = load_folder(config.weights).model.state_dict()["transformer.token_embed"]
    return before, model.state_dict()["transformer.token_embed"], model


def test_rows_of_the_vocabulary_move_to_their_new_places(start: Path, tmp_path: Path) -> None:
    root = write_coco(tmp_path / "own", ("cat", "fox", "owl", "dog", "elk"))
    before, after, model = rows_of(finetune(data_root=str(root), task="instance", model=str(start), steps=2))
    # Before: 0..12 corners, 13 dog, 14 cell, 15 cat, 16 reserved, 17 noise, 18..22 mask codes, 23..29 depth codes.
    # After: 13 cat, 14 fox, 15 owl, 16 dog, 17 elk, 18 reserved, 19 noise, 20..24, 25..31.
    assert before.shape == (32, 8) and after.shape == (34, 8)
    assert (model.config.noise_token, model.config.mask_tokens, model.config.depth_tokens) == (
        19,
        slice(20, 25),
        slice(25, 32),
    )
    assert torch.equal(after[:13], before[:13])
    assert torch.equal(after[13], before[15]) and torch.equal(after[16], before[13])
    assert torch.equal(after[18:], before[16:])
    fresh = after[[14, 15, 17]]
    assert float((fresh[:, None] - before).abs().amax(2).min()) > 1e-3 and 0.005 < float(fresh.std()) < 0.05
    bias, old = (net.state_dict()["transformer.token_bias"] for net in (model, load_folder(start).model))
    assert torch.equal(bias[[13, 16, 19]], old[[15, 13, 17]])
    positions = model.state_dict()["transformer.position_embed"]
    assert torch.equal(positions, load_folder(start).model.state_dict()["transformer.position_embed"])


def test_the_same_classes_in_another_order_are_told_apart_by_name(start: Path, tmp_path: Path) -> None:
    root = write_coco(tmp_path / "own", ("cat", "dog", "cell"))
    before, after, _ = rows_of(finetune(data_root=str(root), task="detection", model=str(start), steps=2))
    assert torch.equal(after, before[[*range(13), 15, 13, 14, *range(16, 32)]])


def test_other_bins_or_codes_are_no_other_classes(start: Path, tmp_path: Path) -> None:
    root = write_coco(tmp_path / "own", ("cat",))
    config = finetune(data_root=str(root), task="detection", model=str(start), steps=2)
    for change in ({"bins": 24}, {"mask_codes": 6}, {"spare_rows": 0}):
        ((name, value),) = change.items()
        odd = dataclasses.replace(config, model=dataclasses.replace(config.model, **change))
        with pytest.raises(ConfigError, match=rf"where: model\.{name}\n(.|\n)*{getattr(MODEL, name)} -> {value}"):
            build_model(odd)
    wide = dataclasses.replace(config.model, transformer=dataclasses.replace(config.model.transformer, width=16))
    with pytest.raises(ConfigError, match="not the one that weights names"):
        build_model(dataclasses.replace(config, model=wide))


def test_sequences_grow_with_the_data_as_far_as_there_are_positions(start: Path, tmp_path: Path) -> None:
    """54 positions: ten boxes of 5 tokens, or six objects of 5 + 4."""
    config = finetune(data_root=str(write_coco(tmp_path / "few", ("cat",))), task="detection", model=str(start))
    assert config.model.detection.objects == 4, "never fewer than the model was trained with"
    ten = write_coco(tmp_path / "ten", ("cat",), most=10, crowds=3)
    assert finetune(data_root=str(ten), task="detection", model=str(start)).model.detection.objects == 10
    with pytest.raises(DataError, match=r"a picture has 10 objects, and the model has room for 6(.|\n)*9 tokens"):
        finetune(data_root=str(ten), task="instance", model=str(start))
    eleven = write_coco(tmp_path / "eleven", ("cat",), most=11)
    with pytest.raises(DataError, match=r"11 objects, and the model has room for 10(.|\n)*leave out"):
        finetune(data_root=str(eleven), task="detection", model=str(start))


def test_objects_are_counted_without_crowds(tmp_path: Path) -> None:
    root = write_coco(tmp_path / "own", ("cat",), most=5, crowds=2)
    source = open_source(SourceSpec(task=Task.DETECTION, reader="coco", root=str(root)))
    assert most_objects(source) == 5
    # A part of a source reads its images instead.
    assert most_objects(open_source(SourceSpec(task=Task.DETECTION, reader="coco", root=str(root), limit=2))) == 5
    assert most_objects(open_source(SourceSpec(task=Task.DETECTION, reader="coco", root=str(root), offset=1))) == 1


# ---------------------------------------------------------------------- rates and refusals


def test_large_models_learn_slower_below_small_ones_alike() -> None:
    optim = _optim(PRESETS["instance-b"](), 1_000)
    assert optim.layer_rates == LayerDecay(rate=0.85, layers=27, stages=(2, 2, 18, 2))
    assert (optim.lr, optim.warmup_steps, optim.no_decay) == (1e-4, 50, NO_DECAY)
    assert layer_multiplier("backbone.patch_embed.weight", optim.layer_rates) == pytest.approx(0.85**28)
    assert layer_multiplier("transformer.norm.weight", optim.layer_rates) == 1.0
    small = _optim(MODEL, 1_000)
    assert small.lr == 5e-4
    found = [
        layer_multiplier(f"backbone.{n}.weight", small.layer_rates) for n in ("patch_embed", "stages.0.blocks.0.x")
    ]
    assert found == [0.1, 1.0]


def test_a_task_that_the_model_lacks_is_refused(tmp_path: Path) -> None:
    root = write_depth(tmp_path / "own")
    alone = AiT(dataclasses.replace(MODEL, depth=None))
    folder = save_model(alone, tmp_path / "alone", classes={}, provenance={})
    with pytest.raises(UsageError, match="does not offer the task depth"):
        finetune(data_root=str(root), task="depth", model=str(folder))


def test_a_vqvae_and_then_the_solver_that_says_its_codes(
    start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("saccade.training.logs.draw_curves", lambda *_args: None)
    root = write_depth(tmp_path / "own")
    form = MapVQVAEConfig(task=Task.DEPTH, vqvae=MAPS)
    first = save_model(MapVQVAE(form), tmp_path / "vqvae", classes={}, provenance={})
    config = finetune(data_root=str(root), task="depth", model=str(first), steps=2)
    validate(config)
    # Colours say nothing to it, and no layer of it is a lower one.
    assert config.train[0].augment == DepthAugment(cut_depth=0.0, light=0.0) and config.optim.layer_rates is None
    tuned = fit(config, tmp_path / "runs").checkpoint
    codes = load_folder(tuned).model.state_dict()
    assert not torch.equal(
        codes["vqvae.codebook.entries"], load_folder(first).model.state_dict()["vqvae.codebook.entries"]
    )
    solver = finetune(data_root=str(root), task="depth", model=str(start), steps=1)
    after = load_folder(fit(dataclasses.replace(solver, depth_vqvae=str(tuned)), tmp_path / "runs").checkpoint)
    own = {key: value for key, value in after.model.state_dict().items() if key.startswith("depth_vqvae.")}
    assert own and all(torch.equal(value, codes[key.removeprefix("depth_")]) for key, value in own.items())
