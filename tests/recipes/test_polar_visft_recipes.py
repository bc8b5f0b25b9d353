"""Label maps by ViSFT and by a plain ViT: backbones to start from, training, prediction, evaluation."""

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

from saccade.cli import main
from saccade.errors import UsageError
from saccade.hub.checkpoint import load_folder, save_model
from saccade.layers.vit import ViTConfig
from saccade.models.polar.config import PolarConfig, SegmenterConfig, ViTPixelsConfig
from saccade.models.systems import build
from saccade.models.visft.config import ViSFTConfig
from saccade.models.visft.presets import eva, labelling
from saccade.recipes import get_recipe
from saccade.samples import ClassList
from saccade.tasks import Task
from saccade.training.config import TrainConfig, validate
from saccade.training.trainer import Trainer, TrainResult

NAMES = ("background", "lesion")
WINDOWED = ViTConfig(
    width=32, depth=2, heads=2, mlp_width=32, patch_size=8, image_size=64, window_size=4, global_blocks=(1,)
)


@pytest.fixture(scope="module")
def lesions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("lesions")
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:40, :60]
    for number in range(6):
        split = "train" if number < 4 else "val"
        mask = (x - rng.integers(20, 40)) ** 2 + (y - rng.integers(15, 25)) ** 2 <= 90
        picture = np.where(mask[..., None], 80, 200) + rng.integers(-20, 20, (40, 60, 3))
        for folder, pixels in (("images", picture), ("masks", mask * 255)):
            (root / folder / split).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.astype(np.uint8)).save(root / folder / split / f"{number}.png")
    return root


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of another system with a plain ViT."""
    torch.manual_seed(3)
    config = SegmenterConfig(network=ViTPixelsConfig(vit=WINDOWED), input_hw=(64, 64))
    return save_model(
        build(config),
        tmp_path_factory.mktemp("start") / "vit",
        classes={Task.SEMANTIC: ClassList.from_names(NAMES)},
        provenance={},
    )


def fit(config: TrainConfig, out: Path, *, lr: float) -> TrainResult:
    config = dataclasses.replace(
        config,
        train=tuple(dataclasses.replace(source, batch_size=2) for source in config.train),
        steps=2,
        eval_every=0,
        save_every=100,
        workers=0,
        threads=1,
        out=str(out),
        device="cpu",
        precision="float32",
        ema_decay=0.0,
        optim=dataclasses.replace(config.optim, lr=lr, min_lr=0.0, warmup_steps=0),
    )
    validate(config)
    return Trainer(config, console=Console(file=io.StringIO())).fit()


@pytest.mark.parametrize("recipe", ["polar.visft", "polar.vit"])
@pytest.mark.parametrize("polar", [False, True])
def test_it_starts_from_a_plain_vit_and_serves_both_verbs(
    lesions: Path, start: Path, tmp_path: Path, recipe: str, polar: bool
) -> None:
    size = {"side": 64} if recipe == "polar.visft" else {"size": (64, 64)}
    folder = {"data": str(lesions), "reader": "mask_folder"}
    # What finds the centre in the first, Cartesian pass is a segmenter, too.
    more = {"polar": True, "finder": str(start)} if polar else {}
    config = get_recipe(recipe)(**folder, **size, **more, backbone=str(start), steps=2)
    inner = config.model.segmenter if isinstance(config.model, PolarConfig) else config.model
    assert isinstance(inner, ViSFTConfig if recipe == "polar.visft" else SegmenterConfig)
    result = fit(config, tmp_path, lr=0.0)
    assert 0 <= result.evaluations["semantic_segmentation"].metrics["mean_Dice"] <= 1
    checkpoint = result.folder / "checkpoints/last"
    learned = load_folder(checkpoint).model.state_dict()
    before = "segmenter." * polar + "network." * (recipe == "polar.vit")
    for key, value in load_folder(start).model.state_dict().items():
        if key.startswith("network.backbone."):
            assert torch.equal(value, learned[before + key.removeprefix("network.")]), key
    out, told = tmp_path / "answers", tmp_path / "told.json"
    words = ["--model", str(checkpoint), "--save", "npy", "--out", str(out)]
    assert main(["predict", str(lesions / "images/val"), *words]) == 0
    assert np.load(out / "4_semantic.npy").shape == (40, 60)
    words = ["--data", "mask_folder", "--root", str(lesions), "--task", "semantic", "--classes", ",".join(NAMES)]
    assert main(["eval", str(checkpoint), *words, "--protocol", "polar", "--json", str(told), "--device", "cpu"]) == 0
    assert json.loads(told.read_text())[str(Task.SEMANTIC)]["images"] == 2
    if recipe == "polar.visft":
        own = {"model": str(checkpoint), "classes": NAMES}
        again = get_recipe("finetune")(data_root=str(lesions), task="semantic", steps=2, **own)
        assert again.weights == str(checkpoint)
        assert "semantic_segmentation" in fit(again, tmp_path / "again", lr=1e-3).evaluations


def test_the_backbone_is_that_of_the_checkpoint(start: Path) -> None:
    for source, patch in (("git-nano", 16), ("vitdet-nano", 16), (str(start), 8)):
        visft = get_recipe("polar.visft")(backbone=source).model
        assert visft.semantic_size == 32 * patch and visft.vit.final_norm
        assert visft.semantic.stride == visft.vit.patch_size == patch and visft.trained == ("backbone", "semantic")
        light = get_recipe("polar.vit")(backbone=source, polar=True)
        assert light.init_from == source and light.model.segmenter.network.vit.patch_size == patch
    large = get_recipe("polar.visft")(backbone="eva-vit-g", tower="g")
    assert (large.init_from, large.model.vit.width, large.model.semantic_size) == ("eva-vit-g", 1408, 448)
    assert large.model.semantic.pixels.width == 256
    validate(large)


def test_published_sizes_are_cut_to_whole_patches(tmp_path: Path) -> None:
    torch.manual_seed(0)
    vit = eva(width=16, depth=1, heads=2, mlp_width=16, image_size=56)
    tower = save_model(build(labelling(vit, NAMES, side=56)), tmp_path / "tower", classes={}, provenance={})
    assert get_recipe("polar.vit")(backbone=str(tower)).model.input_hw == (378, 504)


@pytest.mark.parametrize(
    ("recipe", "words", "what"),
    [
        ("polar.visft", {"backbone": "ait-nano"}, "no plain ViT"),
        ("polar.vit", {"backbone": "ait-nano"}, "no plain ViT"),
        ("polar.unet", {"backbone": "git-nano"}, "only a plain ViT"),
        ("polar.visft", {"finder": "git-nano"}, "need no centre"),
        ("polar.visft", {"polar": True, "finder": "vitdet-nano"}, "finds no centres"),
    ],
)
def test_wrong_words(recipe: str, words: dict[str, object], what: str) -> None:
    with pytest.raises(UsageError, match=what):
        get_recipe(recipe)(**words)
