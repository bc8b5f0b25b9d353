"""AiT's recipes: every published number, and that the rates of the whole trainings are the original's."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from saccade.data.augment import ScaleJitterAugment
from saccade.data.depth_augment import DepthAugment
from saccade.data.mask_crops import MaskCropAugment
from saccade.errors import ConfigError, UsageError
from saccade.models.ait.config import AiTConfig
from saccade.models.ait.convert import our_key
from saccade.models.ait.model import AiT
from saccade.models.ait.vqvae import MapVQVAEConfig
from saccade.recipes import get_recipe
from saccade.tasks import Task
from saccade.training.config import LayerDecay, validate
from saccade.training.optim import parameter_groups
from saccade.training.schedule import learning_rate

SHARED = Path(__file__).resolve().parents[3] / "shared"
DET, INS, DEP = Task.DETECTION, Task.INSTANCE, Task.DEPTH


@dataclasses.dataclass
class Row:
    """A line of specs/ait.md section 9."""

    manifest: str
    width: int
    shifted: bool
    drop_path: float
    lr: float
    weight_decay: float
    decay: float
    images: dict[Task, int]
    steps: int
    falls: tuple[int, ...]
    warmup: int
    clip: float
    half: bool
    every: tuple[int, int]  # evaluation (0 = at the end), checkpoints


_NONE: tuple[int, ...] = ()
_DEPTH_B = Row(
    "swinv2b_480reso_depthonly", 128, False, 0.1, 2e-4, 0.05, 0.9,
    {DEP: 24}, 25_250, (18_180,), 500, 10.0, True, (0, 5_050),
)  # fmt: skip
_DEPTH_L = dataclasses.replace(_DEPTH_B, manifest="swinv2l_480reso_depthonly", width=192, lr=1e-4, weight_decay=0.075)
_DETECTION = Row(
    "swinv2b_640reso_detonly", 128, True, 0.3, 1e-3, 0.05, 0.85,
    {DET: 128}, 183_300, _NONE, 18_330, 1.0, False, (18_330, 9_165),
)  # fmt: skip
_INSTANCE = Row(
    "swinv2b_640reso_inssegonly", 128, True, 0.3, 1e-4, 0.05, 0.85,
    {INS: 16}, 366_500, _NONE, 14_660, 50.0, True, (73_300, 7_330),
)  # fmt: skip
_JOINT = Row(
    "swinv2b_640reso_joint", 128, True, 0.3, 8e-4, 0.05, 0.85,
    {INS: 60, DEP: 4}, 302_875, _NONE, 12_115, 10.0, True, (0, 12_115),
)  # fmt: skip
PUBLISHED = {
    "ait.depth_b": _DEPTH_B,
    "ait.depth_b_hard": dataclasses.replace(_DEPTH_B, manifest="swinv2b_480reso_depthonly_wosoft"),
    "ait.depth_b_parallel": dataclasses.replace(_DEPTH_B, manifest="swinv2b_480reso_parallel_depthonly"),
    "ait.depth_l": _DEPTH_L,
    "ait.depth_l_parallel": dataclasses.replace(_DEPTH_L, manifest="swinv2l_480reso_parallel_depthonly"),
    "ait.detection_b": _DETECTION,
    "ait.instance_b": _INSTANCE,
    "ait.instance_b_hard": dataclasses.replace(_INSTANCE, manifest="swinv2b_640reso_inssegonly_wosoft"),
    "ait.joint_b": _JOINT,
}
# top_p, tau, weight of the drawn truth, weight of the task, fed-back mixtures, drawn mixtures (sections 2.8, 6, 7, 9).
SAYS = {
    "ait.depth_b": {DEP: (0.0, 0.8, 1.0, 1.0, True, True)},
    "ait.depth_b_hard": {DEP: (0.0, 1.0, 0.0, 1.0, False, False)},
    "ait.depth_b_parallel": {DEP: (0.0, 0.8, 1.0, 1.0, False, True)},
    "ait.depth_l": {DEP: (0.0, 0.8, 1.0, 1.0, True, True)},
    "ait.depth_l_parallel": {DEP: (0.0, 0.8, 1.0, 1.0, False, True)},
    "ait.instance_b": {INS: (0.3, 1.0, 5.0, 1.0, True, True)},
    "ait.instance_b_hard": {INS: (0.3, 1.0, 0.0, 1.0, False, False)},
    "ait.joint_b": {INS: (0.3, 1.0, 5.0, 1.0, True, True), DEP: (0.3, 1.0, 1.0, 0.2, True, True)},
}


@pytest.mark.parametrize("name", list(PUBLISHED))
def test_the_table_of_the_paper(name: str) -> None:
    row, config = PUBLISHED[name], get_recipe(name)()
    validate(config)
    model, optim = config.model, config.optim
    assert isinstance(model, AiTConfig) and isinstance(optim.layer_rates, LayerDecay)
    assert (model.backbone.width, model.backbone.drop_path) == (row.width, row.drop_path)
    assert model.backbone.shifted == (True, True, row.shifted, row.shifted)
    assert (optim.lr, optim.weight_decay, optim.layer_rates.rate) == (row.lr, row.weight_decay, row.decay)
    assert (optim.clip_norm, optim.betas, optim.eps) == (row.clip, (0.9, 0.999), 1e-8)
    assert (config.steps, optim.milestones, optim.milestone_factor) == (row.steps, row.falls, 0.1)
    assert (optim.warmup_steps, optim.warmup_start) == (row.warmup, 0.1)
    assert optim.schedule == ("steps" if row.falls else "linear")
    assert (config.precision != "float32") is row.half
    assert (config.eval_every, config.save_every) == row.every
    assert config.ema_decay == 0.0
    images = {s.task: s.batch_size * s.per_step * config.accumulate for s in config.train}
    assert images == row.images
    assert config.mixture == ("together" if len(row.images) > 1 else "drawn")
    assert {source.task for source in config.val} == set(row.images)


@pytest.mark.parametrize("name", list(SAYS))
def test_how_the_published_models_say_and_learn_soft_tokens(name: str) -> None:
    model = get_recipe(name)().model
    found = {}
    if model.instance is not None:
        own = model.instance
        assert (own.mask_weight, own.objects, own.input_size, own.auxiliary_objects) == (0.2, 100, 640, 100)
        found[INS] = (own.top_p, own.sharpness, own.auxiliary, own.weight, own.soft_tokens, own.soft_masks)
    if model.depth is not None:
        own = model.depth
        assert (own.windows, own.flip, own.pad_to) == (2, True, 640 if model.instance else 0)
        found[DEP] = (own.top_p, own.sharpness, own.auxiliary, own.weight, own.soft_tokens, own.soft_maps)
    assert found == SAYS[name]
    assert model.transformer.parallel is name.endswith("parallel")


def test_boxes_alone() -> None:
    own = get_recipe("ait.detection_b")().model.detection
    assert (own.top_p, own.objects, own.input_size, own.masks) == (0.4, 100, 640, None)


@pytest.mark.parametrize("name", list(PUBLISHED))
def test_every_parameter_has_the_published_rate_and_decay(name: str) -> None:
    path = SHARED / f"manifests/ait/optimizer_groups_{PUBLISHED[name].manifest}.json"
    if not path.is_file():
        pytest.skip("../shared/manifests/ait is absent")
    config = get_recipe(name)()
    with torch.device("meta"):
        model = AiT(config.model)
    ours = {
        parameter: (group["multiplier"] * config.optim.lr, group["weight_decay"])
        for group in parameter_groups(model.named_parameters(), config.optim)
        for parameter in group["names"]
    }
    rows = {our_key(key): (rate, decay) for key, _, rate, decay in json.loads(path.read_text())["rows"]}
    assert ours.keys() == rows.keys()
    odd = {n: (ours[n], rows[n]) for n in rows if ours[n] != (pytest.approx(rows[n][0], rel=1e-9), rows[n][1])}
    assert not odd


@pytest.mark.parametrize("name", ["depth_b", "detection_b", "instance_b", "joint_b"])
def test_the_rate_of_every_recorded_step(name: str) -> None:
    path = SHARED / "parity/ait/functions/values.json"
    if not path.is_file():
        pytest.skip("../shared/parity/ait is absent")
    config = get_recipe(f"ait.{name}")()
    told = json.loads(path.read_text())[f"lr_{PUBLISHED[f'ait.{name}'].manifest}"]["multiplier_of_group_lr"]
    for step, share in told.items():
        rate = learning_rate(int(step), steps=config.steps, optim=config.optim)
        assert rate == pytest.approx(config.optim.lr * share, rel=1e-9), step


def test_what_the_solvers_look_at() -> None:
    coco, nyu = get_recipe("ait.joint_b")(data="/d").train
    assert (coco.reader, coco.root, coco.split) == ("coco", "/d/coco", "train")
    assert (coco.drop_empty, coco.min_side, coco.min_box) == (True, 32, 1.0)
    assert coco.augment == ScaleJitterAugment(flip=0.5, scales=(0.1, 3.0), rules="ait")
    assert (nyu.reader, nyu.root, nyu.split) == ("nyu", "/d/nyu_depth_v2", "train")
    assert nyu.augment == DepthAugment(flip=0.5, cut_depth=0.25, light=0.5, columns="all", holes=0.0)
    for name in PUBLISHED:
        config = get_recipe(name)()
        assert all(source.augment is None and not source.protocol for source in config.val), name
        assert {(s.task, s.split) for s in config.val} <= {(DET, "val"), (INS, "val"), (DEP, "test")}
    assert [get_recipe(f"ait.{n}")().val[0].batch_size for n in ("detection_b", "instance_b", "joint_b")] == [20, 8, 8]


def test_the_vqvae_of_masks() -> None:
    config = get_recipe("ait.vqvae_masks")()
    validate(config)
    model, optim = config.model, config.optim
    assert isinstance(model, MapVQVAEConfig) and model.task is INS and model.hide_ratio == 0.0
    own, book = model.vqvae, model.vqvae.codebook
    assert (own.size, own.downsample, own.base_width, own.residual_blocks, own.signed) == (64, 16, 16, 2, True)
    assert own.reconstruction == "squared"
    assert (book.codes, book.width, book.decay, book.revive_below, book.sync) == (128, 512, 0.99, 0.0, False)
    (train,) = config.train
    assert (train.reader, train.augment) == ("mask_crops", MaskCropAugment())
    assert train.batch_size * config.accumulate == 512
    assert (optim.lr, optim.weight_decay, optim.clip_norm, optim.betas) == (3e-4, 0.0, 0.0, (0.9, 0.999))
    assert config.steps == 33_202  # 20 epochs of the crops that the fixtures assume
    assert (config.precision, config.ema_decay) == ("float32", 0.0)
    # specs/ait.md 2.6: up from 3e-7 in 500 steps, then the cosine at the absolute step, down to 1e-6.
    published = {0: 3e-7, 1: 8.994e-7, 499: 2.994006e-4, 500: 2.998327209884365e-4, 16_601: 1.505e-4}
    published[33_201] = 1.0000006692408584e-6
    for step, rate in published.items():
        assert learning_rate(step, steps=config.steps, optim=optim) == pytest.approx(rate, rel=1e-9), step


def test_the_vqvae_of_depth() -> None:
    config = get_recipe("ait.vqvae_depth")()
    validate(config)
    model, optim = config.model, config.optim
    assert isinstance(model, MapVQVAEConfig) and model.task is DEP
    assert (model.hide_patch, model.hide_ratio) == (16, 0.5)
    own, book = model.vqvae, model.vqvae.codebook
    assert (own.size, own.downsample, own.base_width, own.residual_blocks, own.signed) == (480, 32, 16, 2, False)
    assert own.reconstruction == "valid_squared"
    assert (book.codes, book.width, book.decay, book.revive_below) == (128, 512, 0.99, 0.0)
    (train,) = config.train
    assert train.augment == DepthAugment(flip=0.5, cut_depth=0.0, light=0.0, resize=False, columns="nyu")
    assert train.batch_size * config.accumulate == 8
    assert (optim.lr, optim.weight_decay, optim.clip_norm, optim.warmup_steps) == (3e-4, 0.0, 0.0, 0)
    per_epoch = 3_028  # whole batches of 24,231 pairs
    assert config.steps == 20 * per_epoch
    # The original lowers the rate behind the steps 0, 500, ..., 3000 of every epoch: seven times.
    rate, steps = 3e-4, {}
    for step in range(2 * per_epoch + 2):
        steps[step] = rate
        if step % per_epoch % 500 == 0:
            rate *= 0.98
    for step in (0, 1, 500, 501, 3_000, 3_001, 3_027, 3_028, 3_029, 6_056, 6_057):
        assert learning_rate(step, steps=config.steps, optim=optim) == pytest.approx(steps[step], rel=1e-9), step
    last = learning_rate(config.steps - 1, steps=config.steps, optim=optim)
    assert last == pytest.approx(3e-4 * 0.98**140, rel=1e-9)


@pytest.mark.parametrize(
    ("name", "together"),
    [("ait.depth_b", 24), ("ait.detection_b", 128), ("ait.instance_b", 16), ("ait.vqvae_depth", 8)],
)
def test_a_step_has_as_many_images_however_many_processes_share_it(
    name: str, together: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for processes in (1, 2, 4, 8):
        images = {"images": 1} if name != "ait.instance_b" else {}
        config = get_recipe(name)(processes=processes, **images)
        assert config.train[0].batch_size * config.accumulate * processes == together
    monkeypatch.setenv("WORLD_SIZE", "8")
    assert get_recipe("ait.depth_b")().accumulate == 1
    with pytest.raises(UsageError, match="do not make a step of 24"):
        get_recipe("ait.depth_b")(processes=5)


def test_the_joint_step_is_60_and_4_images(monkeypatch: pytest.MonkeyPatch) -> None:
    for processes in (1, 2, 4):
        config = get_recipe("ait.joint_b")(processes=processes)
        assert [s.per_step * s.batch_size * processes for s in config.train] == [60, 4]
        assert config.batches_per_step == 64 // processes
    with pytest.raises(UsageError, match="8 processes do not share 60 \\+ 4 images"):
        get_recipe("ait.joint_b")(processes=8)
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(UsageError, match="3 processes"):
        get_recipe("ait.joint_b")()


@pytest.mark.parametrize("name", ["nano_vqvae_masks", "nano_vqvae_depth"])
def test_our_codebooks_learn_from_all_processes(name: str) -> None:
    assert get_recipe(f"ait.{name}")().model.vqvae.codebook.sync


@pytest.mark.parametrize("name", ["nano_depth", "nano_depth_plain", "nano_instance", "nano_joint"])
def test_a_solver_without_a_vqvae_says_which_one_is_missing(name: str) -> None:
    config = get_recipe(f"ait.{name}")()
    field = "depth_vqvae" if "depth" in name else "mask_vqvae"
    with pytest.raises(ConfigError, match=rf"there is no VQ-VAE(.|\n)*where: {field}(.|\n)*recipe=ait\.vqvae_"):
        validate(config)
    given = {key: "x" for key in ("depth_vqvae", "mask_vqvae") if name == "nano_joint" or key == field}
    validate(get_recipe(f"ait.{name}")(**given))


def test_a_codebook_that_nobody_reads_is_refused() -> None:
    config = dataclasses.replace(get_recipe("ait.depth_b")(), mask_vqvae="x")
    with pytest.raises(ConfigError, match=r"says no mask codes\n  where: mask_vqvae"):
        validate(config)
    detector = dataclasses.replace(get_recipe("vitdet.nano_scenes")(), depth_vqvae="x")
    with pytest.raises(ConfigError, match=r"says no depth codes\n  where: depth_vqvae"):
        validate(detector)


def test_what_is_an_error_cannot_choose_the_best_checkpoint() -> None:
    config = get_recipe("ait.depth_b")()
    for falling in ("abs_rel", "sq_rel", "rmse", "rmse_log", "log10", "silog"):
        with pytest.raises(ConfigError, match=r"is an error(.|\n)*e\.g\. d1"):
            validate(dataclasses.replace(config, monitor=f"depth/{falling}"))
    for rising in ("d1", "d2", "d3"):
        validate(dataclasses.replace(config, monitor=f"depth/{rising}"))
    with pytest.raises(ConfigError, match="names nothing that is evaluated"):
        validate(dataclasses.replace(config, monitor="depth/rms"))
