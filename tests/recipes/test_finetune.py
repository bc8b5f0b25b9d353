"""Fine-tuning: what is found in a folder, the defaults, and a whole miniature run."""

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

from saccade.data.scenes import write_scenes
from saccade.data.sources import SourceSpec
from saccade.errors import DataError, UsageError
from saccade.hub.checkpoint import load_folder, save_model
from saccade.hub.resolve import ASSETS
from saccade.layers.pyramid import PyramidConfig
from saccade.layers.roi import RoIConfig
from saccade.layers.rpn import RPNConfig
from saccade.layers.vit import ViTConfig
from saccade.models.git.config import GIT_TASKS, CaptionConfig, DetectionConfig, GiTConfig, SemanticConfig
from saccade.models.git.model import GiT
from saccade.models.vitdet.config import ViTDetConfig
from saccade.models.vitdet.model import ViTDet
from saccade.recipes import get_recipe
from saccade.recipes.finetune import _open_training
from saccade.recipes.git import LAYER_RATES
from saccade.recipes.small import STEM_RATES
from saccade.tasks import Task
from saccade.tokens.vocabulary import TextVocabulary
from saccade.training.config import validate
from saccade.training.trainer import Trainer

SHARED = Path(__file__).resolve().parents[2].parent / "shared"
finetune = get_recipe("finetune")


def small_config() -> GiTConfig:
    return GiTConfig(
        vit=ViTConfig(
            width=32, depth=3, heads=2, mlp_width=48, image_size=64, window_size=4, global_blocks=(1,), drop_path=0.0
        ),
        vocab_size=1024,
        max_positions=64,
        concept_heads=2,
        detection=DetectionConfig(input_size=64, num_bins=128),
        instance_segmentation=DetectionConfig(input_size=64, num_bins=128, num_rays=12),
        semantic_segmentation=SemanticConfig(input_size=64),
        caption=CaptionConfig(input_size=64),
        grounding=None,
    )


DETECTOR = ViTDetConfig(
    classes=("cell",),
    backbone=ViTConfig(width=16, depth=2, heads=2, mlp_width=24, image_size=64, window_size=2, global_blocks=(1,)),
    pyramid=PyramidConfig(channels=8),
    rpn=RPNConfig(channels=8, candidates=(40, 40), proposals=(20, 20)),
    roi=RoIConfig(num_classes=1, channels=8, conv_channels=8, hidden=8, batch=16),
    input_size=64,
)


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint to start from."""
    torch.manual_seed(0)
    model = GiT(small_config(), TextVocabulary(ASSETS / "git-nano" / "vocab.txt"))
    return save_model(model, tmp_path_factory.mktemp("start") / "small", classes={}, provenance={})


@pytest.fixture(scope="module")
def coco(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("coco")
    write_scenes(root, format="coco", count=10, split="train", size=64)
    write_scenes(root, format="coco", count=4, split="val", size=64)
    return root


def make_masks(root: Path, *, values: tuple[int, ...], count: int = 12, suffix: str = "_segmentation") -> Path:
    generator = np.random.default_rng(0)
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True)
    for index in range(count):
        Image.fromarray(generator.integers(0, 255, (40, 48, 3), np.uint8)).save(root / f"images/I{index:02}.jpg")
        mask = np.full((40, 48), values[0], np.uint8)
        for step, value in enumerate(values[1:]):
            mask[10 * step + 5 : 10 * step + 14, 8:30] = value
        Image.fromarray(mask).save(root / f"masks/I{index:02}{suffix}.png")
    return root


def test_coco_folder(start: Path, coco: Path) -> None:
    config = finetune(data_root=str(coco), task="detection", model=str(start))
    validate(config)
    (train,), (val,) = config.train, config.val
    assert (train.reader, train.split, val.split) == ("coco", "train", "val")
    assert train.classes == val.classes
    assert len(train.classes) >= 8
    assert config.model.detection == small_config().detection
    assert config.model.caption is None
    assert (config.monitor, config.keep, config.weights) == ("detection/AP", 1, str(start))
    assert (config.steps, config.eval_every) == (600, 60)
    assert val.augment is None
    assert config.optim.layer_rates is STEM_RATES


def test_instances_trace_contours_in_the_loader(start: Path, coco: Path) -> None:
    config = finetune(data_root=str(coco), task="instance", model=str(start))
    augment = config.train[0].augment
    assert (augment.contour_rays, augment.resize_as_float) == (12, True)
    assert config.monitor == "instance_segmentation/mask_AP"


def test_choice_of_classes(start: Path, coco: Path) -> None:
    names = finetune(data_root=str(coco), task="detection", model=str(start)).train[0].classes
    config = finetune(data_root=str(coco), task="detection", model=str(start), classes=(names[2], names[0]))
    assert config.train[0].classes == config.val[0].classes == (names[2], names[0])
    with pytest.raises(DataError, match="there is no class 'zebrq'"):
        finetune(data_root=str(coco), task="detection", model=str(start), classes=("zebrq",))


def test_odd_file_names_are_named_by_hand(start: Path, coco: Path, tmp_path: Path) -> None:
    content = json.loads((coco / "annotations/instances_train2017.json").read_text())
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "mine.json").write_text(json.dumps(content))
    (tmp_path / "pictures").symlink_to(next(path for path in coco.rglob("*") if path.suffix in (".png", ".jpg")).parent)
    with pytest.raises(DataError, match="as coco: no COCO annotation file"):
        finetune(data_root=str(tmp_path), task="detection", model=str(start))
    config = finetune(
        data_root=str(tmp_path), task="detection", model=str(start), annotations="labels/mine.json", images="pictures"
    )
    # One file for everything: the end of it is held out, and no image is in both.
    (train,), (val,) = config.train, config.val
    assert (train.limit, train.offset, val.offset, val.limit) == (8, 0, 8, 0)


def test_voc_folder_of_blood_cells(start: Path) -> None:
    root = SHARED / "data/bccd"
    if not root.is_dir():
        pytest.skip("../shared/data/bccd is absent")
    config = finetune(data_root=str(root), task="detection", model=str(start))
    assert config.train[0].reader == "voc"
    assert config.train[0].classes == config.val[0].classes == ("Platelets", "RBC", "WBC")
    assert config.val[0].split == "val"
    assert config.name.startswith("finetune/bccd-detection-")
    # 205 images, 60 passes, 16 per step.
    assert config.steps == 205 * 60 // 16


def test_lesion_masks(start: Path) -> None:
    root = SHARED / "data/isic2018_512"
    if not root.is_dir():
        pytest.skip("../shared/data/isic2018_512 is absent")
    config = finetune(data_root=str(root), task="semantic", model=str(start), classes=("lesion",))
    (train,), (val,) = config.train, config.val
    assert train.classes == val.classes == ("background", "lesion")
    assert config.monitor == "semantic_segmentation/mIoU"
    assert val.split == "val"


@pytest.mark.parametrize(
    ("values", "classes", "expected"),
    [
        ((0, 255), (), ("background", "foreground")),
        ((0, 255), ("skin", "lesion"), ("skin", "lesion")),
        ((0, 1, 2), ("a", "b", "c"), ("a", "b", "c")),
        ((0, 1, 2), (), ("class 0", "class 1", "class 2")),
    ],
)
def test_mask_folders(start: Path, tmp_path: Path, values, classes, expected) -> None:
    root = make_masks(tmp_path / "set", values=values)
    config = finetune(data_root=str(root), task="semantic", model=str(start), classes=classes)
    assert config.train[0].reader == "mask_folder"
    assert config.train[0].classes == config.val[0].classes == expected
    assert {config.train[0].split, config.val[0].split} == {"train", "val"}


def test_masks_can_teach_detection(start: Path, tmp_path: Path) -> None:
    root = make_masks(tmp_path / "set", values=(0, 1, 2))
    config = finetune(data_root=str(root), task="detection", model=str(start), classes=("background", "cell", "dirt"))
    assert config.train[0].reader == "mask_folder"
    # The reader needs the background to know the values by; the objects that it makes have only two classes.
    assert config.train[0].classes == ("background", "cell", "dirt")


def test_steps_carry_warm_up_and_intervals_along(start: Path, coco: Path) -> None:
    config = finetune(data_root=str(coco), task="detection", model=str(start), steps=2_000)
    assert (config.steps, config.optim.warmup_steps, config.eval_every) == (2_000, 100, 200)
    short = finetune(data_root=str(coco), task="detection", model=str(start), steps=4)
    assert (short.optim.warmup_steps, short.eval_every, short.save_every) == (0, 1, 1)


def test_without_validation_part_a_fifth_is_held_out_and_the_test_part_is_not_looked_at(
    start: Path, tmp_path: Path
) -> None:
    write_scenes(tmp_path, format="coco", count=10, split="train", size=64)
    write_scenes(tmp_path, format="coco", count=4, split="test", size=64)
    config = finetune(data_root=str(tmp_path), task="detection", model=str(start))
    assert (config.train[0].split, config.train[0].limit) == ("train", 8)
    assert (config.val[0].split, config.val[0].offset) == ("train", 8)


def test_a_detector_gets_the_classes_of_the_data(coco: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    detector = ViTDet(dataclasses.replace(DETECTOR, classes=("cell",)))
    folder = save_model(detector, tmp_path / "detector", classes={}, provenance={})
    settings = {"data_root": str(coco), "model": str(folder), "steps": 2}
    for task, loss in (("instance", "loss_mask"), ("detection", "loss_box")):
        config = dataclasses.replace(
            finetune(task=task, **settings), out=str(tmp_path / "runs"), workers=0, threads=1, device="cpu"
        )
        assert len(config.model.classes) == config.model.roi.num_classes == 8
        result = Trainer(config, console=Console(file=io.StringIO())).fit()
        assert (result.folder / "log.csv").read_text().split("\n")[0].count(loss) == 1
        loaded = load_folder(result.best)
        assert loaded.model.config.classes == config.model.classes
        assert loaded.model.tasks[-1] == Task(config.train[0].task)


def test_nothing_recognised_says_what_was_tried(start: Path, tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_bytes(b"")
    with pytest.raises(DataError) as caught:
        finetune(data_root=str(tmp_path), task="detection", model=str(start))
    for part in ("as coco", "as voc", "as mask_folder", "reader=..."):
        assert part in str(caught.value)


def test_depth_folders_are_recognised(start: Path, tmp_path: Path) -> None:
    """As far as the data goes; the models that offer the task cannot be fine-tuned yet."""
    write_scenes(tmp_path / "nyu", format="nyu", count=2, split="train", size=64)
    for number in range(6):
        for name, pixels in (("rgb", np.zeros((8, 8, 3), np.uint8)), ("depth", np.full((8, 8), 10_000, np.uint16))):
            path = tmp_path / "own" / name / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
    for root, reader in (("nyu", "nyu"), ("own", "depth_folder")):
        wanted = SourceSpec(task=Task.DEPTH, reader="", root=str(tmp_path / root), depth_scale=5000.0)
        found, source = _open_training(wanted)
        assert found.reader == reader and source[0].target.depth_m is not None
    assert source[0].target.depth_m.max() == 2
    with pytest.raises(UsageError, match="does not offer the task depth"):
        finetune(data_root=str(tmp_path / "own"), task="depth", model=str(start))


def test_wrong_use(start: Path, coco: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not train the task caption"):
        finetune(data_root=str(coco), task="caption", model=str(start))
    with pytest.raises(UsageError, match="did you mean 'detection'"):
        finetune(data_root=str(coco), task="detektion", model=str(start))
    with pytest.raises(UsageError, match="does not exist"):
        finetune(data_root=str(tmp_path / "absent"), task="detection", model=str(start))
    with pytest.raises(UsageError, match="no model is called"):
        finetune(data_root=str(coco), task="detection", model="git-bse")
    config = small_config()
    config.detection = None
    model = GiT(config, TextVocabulary(ASSETS / "git-nano" / "vocab.txt"))
    folder = save_model(model, tmp_path / "no_boxes", classes={}, provenance={})
    with pytest.raises(UsageError, match="does not offer the task detection"):
        finetune(data_root=str(coco), task="detection", model=str(folder))


def test_published_sizes_get_their_ramp_and_small_batches(
    coco: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from saccade.hub.checkpoint import CheckpointCard
    from saccade.models.git.presets import PRESETS

    config = PRESETS["large"]()
    card = CheckpointCard(folder=tmp_path, system="git", config=config, tasks=GIT_TASKS, classes={}, preprocessing={})
    monkeypatch.setattr("saccade.recipes.finetune.resolve", lambda name: tmp_path)
    monkeypatch.setattr("saccade.recipes.finetune.read_card", lambda folder: card)
    made = finetune(data_root=str(coco), task="detection", model="git-large")
    assert made.optim.layer_rates == LAYER_RATES["large"]
    assert (made.train[0].batch_size, made.accumulate) == (2, 4)
    assert made.activation_checkpointing
    assert config.caption is not None, "the card's own config must stay as it is"


@pytest.mark.parametrize("task", ["detection", "instance"])
def test_a_short_run_keeps_the_best(start: Path, coco: Path, tmp_path: Path, task: str, monkeypatch) -> None:
    monkeypatch.setattr("saccade.training.logs.draw_curves", lambda *_args: None)
    config = dataclasses.replace(
        finetune(data_root=str(coco), task=task, model=str(start)),
        steps=4,
        eval_every=2,
        save_every=2,
        workers=0,
        threads=1,
        device="cpu",
        out=str(tmp_path),
    )
    result = Trainer(config, console=Console(file=io.StringIO())).fit()
    assert result.best is not None
    assert config.monitor in result.metrics
    loaded = load_folder(result.best)
    assert loaded.model.tasks == (config.train[0].task,)
    assert loaded.classes[config.train[0].task].names == config.train[0].classes
    before, after = load_folder(start).model.state_dict(), loaded.model.state_dict()
    assert any(not torch.equal(before[key], value) for key, value in after.items())
