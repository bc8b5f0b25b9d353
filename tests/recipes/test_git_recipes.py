"""The published recipes: every number against a table typed from specs/git.md."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from saccade.configs import from_dict, to_dict
from saccade.data.augment import CaptionAugment, DetectionAugment, GroundingAugment, SemanticAugment
from saccade.data.sources import READERS
from saccade.errors import ConfigError, UsageError
from saccade.hub.resolve import bundled_checkpoints
from saccade.hub.zoo import ZOO
from saccade.models.git.convert import our_key
from saccade.models.systems import offers
from saccade.recipes import (
    LATER_READERS,
    RECIPES,
    get_recipe,
    missing_readers,
    recipe_arguments,
    require_readers,
    without_missing,
)
from saccade.recipes.git import LAYER_RATES
from saccade.recipes.git_transfer import LOVEDA_SUPPORT
from saccade.tasks import Task
from saccade.training.config import TrainConfig, validate
from saccade.training.optim import layer_multiplier
from saccade.training.schedule import learning_rate

SHARED = Path(__file__).resolve().parents[2].parent / "shared"
SIZES = ("base", "large", "huge")
DET, INS, SEM, CAP, REF = Task.DETECTION, Task.INSTANCE, Task.SEMANTIC, Task.CAPTION, Task.GROUNDING

# name: batch per GPU, iterations, validation every, probability per task in order of the sources.
PUBLISHED: dict[str, tuple[int, int, int, list[tuple[Task, float]]]] = {
    "git.single_detection_base": (3, 120_000, 5_000, [(DET, 1.0)]),
    "git.single_detection_base_672": (3, 120_000, 5_000, [(DET, 1.0)]),
    "git.single_instanceseg_base": (3, 120_000, 5_000, [(INS, 1.0)]),
    "git.single_semanticseg_base": (3, 120_000, 5_000, [(SEM, 1.0)]),
    "git.single_caption_base": (3, 120_000, 5_000, [(CAP, 1.0)]),
    "git.single_visualgrounding_base": (3, 120_000, 5_000, [(REF, 1 / 3)] * 3),
}
_FIVE = [(DET, 0.2), (INS, 0.2), (SEM, 0.2), (CAP, 0.2), *[(REF, 1 / 15)] * 3]
PUBLISHED |= {
    "git.multi_fivetask_base": (3, 640_000, 20_000, _FIVE),
    "git.multi_fivetask_large": (1, 640_000, 20_000, _FIVE),
    "git.multi_fivetask_huge": (1, 640_000, 20_000, _FIVE),
}
# Section 7.1: data set, task, classes (0 = none), probability, repeat threshold.
UNIVERSAL: list[tuple[str, Task, int, float, float]] = [
    ("objects365", DET, 0, 0.032197, 0),
    ("openimages", DET, 0, 0.032197, 1 / 601),
    ("lvis", DET, 0, 0.002273, 1e-3),
    ("VOC", DET, 20, 0.005926, 0),
    ("nuimages", DET, 10, 0.033333, 0),
    ("coco", DET, 80, 0.060741, 0),
    ("bdd100k", DET, 10, 0.033333, 0),
    ("lvis", INS, 0, 0.007547, 1e-3),
    ("openimages", INS, 0, 0.059119, 1 / 601),
    ("nuimages", INS, 10, 0.044444, 0),
    ("coco", INS, 80, 0.066667, 0),
    ("bdd100k", INS, 8, 0.022222, 0),
    ("coco_stuff", SEM, 171, 0.062835, 0),
    ("nuimages", SEM, 31, 0.048438, 0),
    ("VOC", SEM, 59, 0.003831, 0),
    ("bdd100k", SEM, 19, 0.005208, 0),
    ("mapillary", SEM, 124, 0.013021, 0),
    ("ade", SEM, 150, 0.066667, 0),
    ("ccs", CAP, 0, 0.092851, 0),
    ("visual_genome", CAP, 0, 0.007149, 0),
    ("coco", CAP, 0, 0.1, 0),
    ("refcoco/", REF, 0, 0.04, 0),
    ("refcoco+", REF, 0, 0.04, 0),
    ("refcocog", REF, 0, 0.04, 0),
    ("refclef", REF, 0, 0.04, 0),
    ("flickr30k", REF, 0, 0.04, 0),
]
UNIVERSAL_RUN = {"base": (3, 320_000), "large": (2, 320_000), "huge": (1, 480_000)}
FEW_SHOT = {  # classes, task, support images (0 = a list of names), iterations
    "drive": (2, SEM, 10, 100),
    "loveda": (7, SEM, 0, 100),
    "potsdam": (6, SEM, 0, 100),
    "widerface": (1, DET, 5, 50),
    "deepfashion": (15, DET, 75, 100),
}
ZERO_SHOT = {
    "cityscapes_det": (8, DET),
    "cityscapes_ins": (8, INS),
    "cityscapes_seg": (19, SEM),
    "sunrgbd_seg": (37, SEM),
    "nocaps": (0, CAP),
}
OUR_OWN = {
    "finetune",
    "git.nano_scenes",
    *(f"ait.nano_{name}" for name in ("vqvae_masks", "vqvae_depth", "depth", "depth_plain", "instance", "joint")),
    "vitdet.nano_scenes",
    "gsva.nano_describe",
    "gsva.nano_scenes",
    *(f"visft.nano_{name}" for name in ("clip", "detection", "instance", "caption", "lora")),
    "polar.git",
    "polar.vit",
    "polar.visft",
    *(f"git.nano_scenes_single_{task}" for task in ("detection", "instance", "semantic", "caption", "grounding")),
}
GIT = sorted(set(RECIPES) - {"finetune", "polar.git"})  # these two begin with the user's own data


def test_names() -> None:
    published = (
        set(PUBLISHED)
        | {f"git.universal_{size}" for size in SIZES}
        | {f"git.zero_shot_{name}_{size}" for name in ZERO_SHOT for size in SIZES}
        | {f"git.few_shot_{name}_{size}" for name in FEW_SHOT for size in SIZES}
        | {f"vitdet.vitae_repo_{form}" for form in ("vit-b", "vitae-b", "vitae-s")}
        | {f"vitdet.{s}{head}_rcnn_vit_{z}" for s in ("", "lvis_") for head in ("mask", "cascade") for z in "blh"}
        | {f"ait.depth_{form}" for form in ("b", "b_hard", "b_parallel", "l", "l_parallel")}
        | {f"ait.{form}" for form in ("detection_b", "instance_b", "instance_b_hard", "joint_b")}
        | {"ait.vqvae_masks", "ait.vqvae_depth"}
        | {f"gsva.{form}_{base}" for form in ("pretrain", "finetune_gres") for base in ("7b", "13b", "llama2_13b")}
        | {f"visft.{part}_{size}" for part in ("detection", "instance", "caption", "lora") for size in "ge"}
        | {f"polar.{name}" for name in ("unet", "unetplusplus", "deeplabv3plus", "centers")}
    )
    assert set(RECIPES) == published | OUR_OWN
    with pytest.raises(UsageError, match=r"did you mean 'git\.multi_fivetask_base'"):
        get_recipe("git.multi_fivetask_bse")
    assert {entry.recipe for entry in ZOO.values() if entry.recipe} <= set(RECIPES)


@pytest.mark.parametrize("name", GIT)
def test_builds_is_whole_and_survives_json(name: str) -> None:
    # AiT's solvers of drawn scenes say codes that must have been trained before: there is no name for them.
    vqvaes = {key: "somewhere" for key in recipe_arguments(name) if key.endswith("_vqvae")}
    config = get_recipe(name)(**vqvaes)
    assert config.name == name.replace(".", "/")
    assert from_dict(TrainConfig, json.loads(json.dumps(to_dict(config)))) == config
    if config.steps:
        validate(config)
    for source in (*config.train, *config.val):
        assert offers(config.model, source.task)
        assert source.reader in READERS or source.reader in LATER_READERS, source.reader
    for file in (config.init_from, config.text_init, config.weights):
        assert not file or file in ZOO or file in bundled_checkpoints()
    # Two calls give two trees: changing one must not change the other.
    again = get_recipe(name)(**vqvaes).model
    parts = [value for value in vars(config.model).values() if dataclasses.is_dataclass(value)]
    assert parts and not any(one is other for one in parts for other in vars(again).values())


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_published_trainings(name: str) -> None:
    batch, steps, every, sources = PUBLISHED[name]
    config = get_recipe(name)()
    assert (config.steps, config.eval_every) == (steps, every)
    assert [(source.task, pytest.approx(source.weight)) for source in config.train] == sources
    assert {source.batch_size for source in config.train} == {batch}
    check_common(config, name.rsplit("_", 1)[1] if "672" not in name else "base")


def check_common(config: TrainConfig, size: str) -> None:
    optim = config.optim
    assert (optim.lr, optim.min_lr, optim.weight_decay, optim.clip_norm) == (2e-4, 2e-6, 0.05, 0.1)
    assert (optim.betas, optim.eps, optim.schedule, optim.warmup_steps) == ((0.9, 0.999), 1e-8, "cosine", 0)
    assert not optim.decay_matrices_only
    assert optim.layer_rates == LAYER_RATES[size]
    assert (config.precision, config.ema_decay, config.accumulate) == ("float32", 0.0, 1)
    assert config.activation_checkpointing
    assert config.model.vit.drop_path == (0.1 if size == "base" else 0.4)
    assert config.init_from == f"sam-vit-{size}"
    assert config.text_init == f"git-text-{size}"
    boxes, text = {"base": (3, 32), "large": (2, 16), "huge": (1, 16)}[size]
    for source in config.val:
        expected = {DET: boxes, INS: boxes, SEM: 1, CAP: text, REF: text}[source.task]
        assert source.batch_size == expected
        assert source.augment is None


@pytest.mark.parametrize("size", SIZES)
def test_universal(size: str) -> None:
    config = get_recipe(f"git.universal_{size}")()
    batch, steps = UNIVERSAL_RUN[size]
    assert (config.steps, config.eval_every) == (steps, 10_000)
    assert {source.batch_size for source in config.train} == {batch}
    check_common(config, size)
    left = list(config.train)
    for data, task, classes, probability, threshold in UNIVERSAL:
        found = [s for s in left if s.task is task and data in f"{s.root}/{s.annotations}"]
        if data == "coco":  # not the others that lie in COCO's folder or have its format
            found = [s for s in found if s.root == "data/coco" and s.reader in ("coco", "karpathy")]
        assert found, (data, task)
        assert sum(source.weight for source in found) == pytest.approx(probability)
        assert {len(source.classes) for source in found} == {classes}, data
        assert {source.repeat_threshold for source in found} == {threshold}
        left = [source for source in left if source not in found]
    assert not left
    assert sum(source.weight for source in config.train) == pytest.approx(1.0, abs=1e-5)
    assert [source.task for source in config.val] == [DET, INS, SEM, CAP, REF]
    cropped = {s.reader + s.root for s in config.train if s.task is DET and s.augment.crop_probability}
    assert cropped == {"lvisdata/coco", "cocodata/coco", "bdd100kdata/bdd100k"}
    assert all(s.augment.crop_probability == 0.5 and s.augment.resize_as_float for s in config.train if s.task is INS)


def test_learning_rate_follows_the_batch() -> None:
    assert get_recipe("git.universal_base")(total_batch=96).optim.lr == pytest.approx(8e-4)
    assert get_recipe("git.multi_fivetask_huge")(total_batch=8).optim.lr == pytest.approx(2e-4 / 3)


@pytest.mark.parametrize("size", SIZES)
def test_layer_rates_are_those_of_the_manifest(size: str) -> None:
    path = SHARED / f"manifests/git/git_{size}.json"
    if not path.is_file():
        pytest.skip("../shared/manifests/git is absent")
    checked = 0
    for entry in json.loads(path.read_text())["keys"]:
        ours = our_key(entry["key"])
        if entry["kind"] == "parameter" and ours is not None:
            # The original rounds base's ramp to four digits.
            assert layer_multiplier(ours, LAYER_RATES[size]) == pytest.approx(entry["lr_mult"], abs=1e-4)
            assert entry["weight_decay"] == 0.05
            checked += 1
    assert checked == {"base": 264, "large": 432, "huge": 544}[size]


def test_schedule_of_the_single_task_recipes() -> None:
    config = get_recipe("git.single_detection_base")()
    rates = [
        learning_rate(30_000, steps=config.steps, optim=config.optim, multiplier=multiplier) for multiplier in (1, 0.1)
    ]
    assert rates == [pytest.approx(1.71004e-4, rel=1e-5), pytest.approx(1.73640e-5, rel=1e-5)]


def test_augmentation_and_filters() -> None:
    config = get_recipe("git.multi_fivetask_base")()
    by_task = {source.task: source for source in config.train}
    assert by_task[DET].augment == DetectionAugment(
        flip=0.5, crop_probability=0.5, short_sides=(400, 500, 600), max_long_side=4200, crop_range=(384, 600)
    )
    assert by_task[INS].augment == dataclasses.replace(by_task[DET].augment, resize_as_float=True, contour_rays=24)
    assert by_task[SEM].augment == SemanticAugment(
        flip=0.5, crop_probability=0.5, scales=(10, 20), max_class_share=0.75
    )
    assert by_task[CAP].augment == CaptionAugment(flip=0.5, min_area=0.08)
    assert by_task[REF].augment == GroundingAugment(jitter_probability=0.5, min_side=0.8)
    assert by_task[SEM].reduce_zero_label
    assert (by_task[DET].drop_empty, by_task[DET].min_side) == (True, 32)
    huge = get_recipe("git.multi_fivetask_huge")().train[0]
    assert (huge.drop_empty, huge.min_side, huge.augment.filter_boxes) == (False, 0, False)
    light = get_recipe("git.single_detection_base_672")().model
    assert (light.detection.input_size, light.detection.num_bins, light.vit.image_size) == (672, 1344, 672)
    assert light.instance_segmentation is None


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("which", sorted(FEW_SHOT))
def test_few_shot(which: str, size: str) -> None:
    classes, task, images, steps = FEW_SHOT[which]
    config = get_recipe(f"git.few_shot_{which}_{size}")()
    (train,), (val,) = config.train, config.val
    assert (config.steps, config.eval_every, config.optim.schedule, config.optim.lr) == (steps, 50, "constant", 2e-4)
    assert config.optim.layer_rates == LAYER_RATES[size]
    assert config.optim.clip_norm == 0.1
    assert (train.task, len(train.classes), train.limit, train.batch_size) == (task, classes, images, 1)
    assert val.classes == train.classes
    assert (val.limit, val.augment) == (0, None)
    assert config.weights == f"git-universal-{size}"
    assert train.reduce_zero_label == (which in ("loveda", "potsdam"))
    if task is DET:
        assert train.augment.crop_probability == 0.0
    assert len(set(LOVEDA_SUPPORT)) == 35


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("which", sorted(ZERO_SHOT))
def test_zero_shot(which: str, size: str) -> None:
    classes, task = ZERO_SHOT[which]
    config = get_recipe(f"git.zero_shot_{which}_{size}")()
    (source,) = config.val
    assert (config.steps, config.train, config.weights) == (0, (), f"git-universal-{size}")
    assert (source.task, len(source.classes)) == (task, classes)
    assert get_recipe(f"git.zero_shot_{which}_{size}")(weights="git-base").weights == "git-base"
    if which == "nocaps":
        assert config.model.caption.beams == 3
    if task is SEM:
        assert config.model.semantic_segmentation.input_size == 672
        assert source.reduce_zero_label == (which == "sunrgbd_seg")


def test_missing_readers_are_one_error_unless_dropped() -> None:
    config = get_recipe("git.universal_base")()
    missing = missing_readers(config)
    assert set(missing) <= set(LATER_READERS)
    assert not set(LATER_READERS) & set(READERS), "a reader of the list exists now: take it off"
    with pytest.raises(ConfigError) as caught:
        require_readers(config)
    for name in missing:
        assert name in str(caught.value)
    reduced = without_missing(config)
    require_readers(reduced)
    assert len(config.train) - len(reduced.train) == sum(missing.values())
    require_readers(get_recipe("git.nano_scenes")())
    lone = get_recipe("git.zero_shot_nocaps_base")()
    lone = dataclasses.replace(lone, val=(dataclasses.replace(lone.val[0], reader="ccs"),))
    with pytest.raises(ConfigError, match="no source"):
        without_missing(lone)


@pytest.mark.parametrize("name", GIT)
def test_no_published_split_is_drawn_by_hash(name: str) -> None:
    """A mask folder without a split file or subfolder is divided by the reader: published data must not be."""
    for source in (*get_recipe(name)().train, *get_recipe(name)().val):
        if source.reader == "mask_folder":
            named = any(source.split in part for part in Path(source.images).parts)
            assert named or "/" in source.split or source.split == "few_shot", (source.root, source.images)


def test_recipe_arguments() -> None:
    assert set(recipe_arguments("git.universal_base")) == {"data", "total_batch"}
    assert {"data_root", "model", "task"} <= set(recipe_arguments("finetune"))
