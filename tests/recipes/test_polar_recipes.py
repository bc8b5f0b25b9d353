"""The recipes of lesions: the published settings, and every form trained on a miniature folder."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from saccade.data.sources import open_source
from saccade.data.warp_augment import WarpAugment
from saccade.errors import ConfigError, UsageError
from saccade.hub.checkpoint import load_folder
from saccade.layers.hourglass import HourglassConfig
from saccade.layers.unet import UNetConfig
from saccade.models.git.config import GiTConfig
from saccade.models.polar.config import CentersConfig, PolarConfig, SegmenterConfig
from saccade.models.polar.presets import PRESETS, SEGMENTERS, grey
from saccade.recipes import get_recipe
from saccade.tasks import Task
from saccade.training.config import TrainConfig, validate
from saccade.training.trainer import Trainer, TrainResult


@pytest.fixture(scope="module")
def lesions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("lesions")
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for folder in ("images", "masks"):
            (root / folder / split).mkdir(parents=True)
        for number in range(6 if split == "train" else 2):
            y, x = np.mgrid[:40, :60]
            cx, cy = rng.integers(15, 45), rng.integers(12, 28)
            mask = (x - cx) ** 2 + (y - cy) ** 2 <= 81
            picture = np.where(mask[..., None], 80, 200) + rng.integers(-20, 20, (40, 60, 3))
            Image.fromarray(picture.astype(np.uint8)).save(root / "images" / split / f"{number}.png")
            Image.fromarray((mask * 255).astype(np.uint8)).save(root / "masks" / split / f"{number}.png")
    return root


def small(config: TrainConfig, out: Path) -> TrainConfig:
    """The same run in miniature."""

    def part(model):
        if isinstance(model, SegmenterConfig):
            return dataclasses.replace(model, network=UNetConfig(features=2, levels=2), input_hw=(32, 32))
        return model

    model = part(config.model)
    if isinstance(model, PolarConfig):
        model = dataclasses.replace(model, segmenter=part(model.segmenter))
    if isinstance(model, CentersConfig):
        model = dataclasses.replace(
            model, network=HourglassConfig(stacks=1, width=4, depth=1), input_size=32, sigma=2.0
        )
    train = tuple(dataclasses.replace(source, batch_size=2) for source in config.train)
    return dataclasses.replace(
        config,
        model=model,
        train=train,
        steps=2,
        eval_every=0,
        save_every=100,
        workers=0,
        threads=1,
        out=str(out),
        device="cpu",
    )


def fit(config: TrainConfig, screen: io.StringIO | None = None) -> TrainResult:
    validate(config)
    return Trainer(config, console=Console(file=screen or io.StringIO())).fit()


def test_the_published_trainings() -> None:
    for name, size in (("isic2018", (384, 512)), ("cvc_clinicdb", (288, 384))):
        config = get_recipe("polar.unet")(reader=name, polar=True, interpolation="nearest")
        assert config.model.segmenter.input_hw == size and config.model.segmenter.network == UNetConfig(features=32)
        assert (config.model.jitter, config.model.jitter_probability) == (0.05, 0.3)
        assert config.train[0].batch_size == 16 and config.train[0].augment is None
        assert (config.optim.lr, config.optim.weight_decay, config.optim.schedule) == (1e-3, 0.0, "constant")
        assert config.optim.clip_norm == 0 and config.monitor.endswith("mean_Dice")
        validate(config)
    assert get_recipe("polar.unet")().steps == 100 * (2156 // 16)
    centers = get_recipe("polar.centers")()
    assert centers.model == CentersConfig()
    flips = [get_recipe("polar.centers")(small=small).train[0].augment for small in (False, True)]
    assert flips == [WarpAugment(flip=0.5, flip_vertical=0.0), WarpAugment()]
    liver = get_recipe("polar.centers")(reader="lits", steps=2).model
    assert (liver.network.channels, liver.classes) == (1, ("background", "liver"))
    assert (liver.mean, liver.std) == ((25.5,) * 3, (255.0,) * 3)
    validate(centers)


@pytest.mark.parametrize("network", SEGMENTERS)
def test_the_recipes_train_the_named_sizes(network: str, lesions: Path) -> None:
    sized = SEGMENTERS[network]()
    recipe = get_recipe(f"polar.{network}")
    assert recipe().model == sized and recipe(polar=True).model.segmenter == sized
    cut = recipe(reader="lits", steps=2).model
    assert cut == dataclasses.replace(grey(sized), classes=("background", "liver")) and cut.input_hw == (128, 128)
    assert (cut.channels, cut.mean) == (3 if network == "vit" else 1, (25.5,) * 3)
    own = recipe(data=str(lesions), reader="mask_folder", size=(64, 96), steps=2)
    assert own.model.input_hw == (64, 96)
    for small, name in ((True, "centers-small"), (False, "centers")):
        assert get_recipe("polar.centers")(small=small).model == PRESETS[name]()
    narrow = get_recipe("polar.unet")(features=16).model.network
    assert narrow == UNetConfig(features=16)


@pytest.mark.parametrize("augment", [False, True])
def test_plain_and_unrolled_networks_train_and_are_found_their_centres(
    lesions: Path, tmp_path: Path, augment: bool
) -> None:
    folder = {"data": str(lesions), "reader": "mask_folder", "steps": 2}
    plain = fit(small(get_recipe("polar.unet")(**folder, augment=augment), tmp_path))
    predictor = fit(small(get_recipe("polar.centers")(**folder, small=True), tmp_path))
    assert set(predictor.evaluations["center"].metrics) == {"mse_px", "distance_px", "within"}
    for finder in ("", plain.folder / "checkpoints/last", predictor.folder / "checkpoints/last"):
        config = get_recipe("polar.unet")(**folder, polar=True, finder=str(finder) if finder else "")
        config = dataclasses.replace(small(config, tmp_path), name=f"polar/{Path(finder).parts[-3:-2]}-{augment}")
        screen = io.StringIO()
        result = fit(config, screen)
        assert f"centres: {'own' if finder else 'truth'}: mean_Dice" in screen.getvalue().replace("\n", "")
        evaluated = result.evaluations["semantic_segmentation"]
        assert evaluated.stamp["centers"] == ("own" if finder else "truth")
        assert evaluated.stamp["protocol"].endswith(f"centres: {evaluated.stamp['centers']}")
        assert 0 <= evaluated.metrics["mean_Dice"] <= 1
        loaded = load_folder(result.folder / "checkpoints/last").model
        if finder:
            own = load_folder(finder).model.state_dict()
            assert all((value == own[key]).all() for key, value in loaded.finder.state_dict().items())


def test_a_git_learns_from_unrolled_pictures(lesions: Path, tmp_path: Path) -> None:
    config = get_recipe("polar.git")(data=str(lesions), steps=2, polar=True)
    assert isinstance(config.model, PolarConfig) and isinstance(config.model.segmenter, GiTConfig)
    still = dataclasses.replace(config.optim, lr=0.0, min_lr=0.0, warmup_steps=0)
    config = dataclasses.replace(small(config, tmp_path), ema_decay=0.0, precision="float32", optim=still)
    result = fit(config)
    # It starts from the weights of the model that it wraps, and a rate of 0 leaves them alone.
    from saccade.hub.resolve import load_model

    learned, started = load_folder(result.folder / "checkpoints/last").model, load_model("git-nano").model
    assert all((value == learned.segmenter.state_dict()[key]).all() for key, value in started.state_dict().items())
    with pytest.raises(UsageError, match="is no GiT"):
        get_recipe("polar.git")(data=str(lesions), model=str(fit_unet(lesions, tmp_path)))


def test_a_git_reads_the_published_data_sets(lesions: Path, tmp_path: Path) -> None:
    cvc = tmp_path / "cvc"
    for folder, own in (("Original", "images"), ("Ground Truth", "masks")):
        (cvc / folder).mkdir(parents=True)
        for number in range(12):
            picture = (lesions / own / "train" / f"{number % 6}.png").read_bytes()
            (cvc / folder / f"{number}.png").write_bytes(picture)
    recipe = get_recipe("polar.git")
    config = recipe(data=str(cvc), reader="cvc_clinicdb", polar=True, interpolation="nearest", steps=2)
    assert (config.train[0].reader, config.val[0].reader) == ("cvc_clinicdb", "cvc_clinicdb")
    assert config.train[0].classes == ("background", "polyp") and config.model.interpolation == "nearest"
    assert [len(open_source(one)) for one in (config.train[0], config.val[0])] == [10, 1]
    plain = recipe(data=str(lesions), steps=2)
    assert (
        isinstance(plain.model, GiTConfig)
        and plain.train[0].reader == "mask_folder"
        and plain.train[0].classes == ("background", "lesion")
    )


def fit_unet(lesions: Path, tmp_path: Path) -> Path:
    config = get_recipe("polar.unet")(data=str(lesions), reader="mask_folder", steps=2)
    return fit(dataclasses.replace(small(config, tmp_path), name="other")).folder / "checkpoints/last"


def test_a_network_of_lesions_is_fine_tuned(lesions: Path, tmp_path: Path) -> None:
    plain = fit_unet(lesions, tmp_path)
    polar = small(get_recipe("polar.unet")(data=str(lesions), reader="mask_folder", steps=2, polar=True), tmp_path)
    for start in (plain, fit(polar).folder / "checkpoints/last"):
        config = get_recipe("finetune")(
            data_root=str(lesions), task="semantic", model=str(start), classes=("skin", "naevus"), steps=2
        )
        config = dataclasses.replace(
            config, out=str(tmp_path), name=f"again/{start.parts[-3]}", device="cpu", workers=0
        )
        result = fit(dataclasses.replace(config, precision="float32"))
        assert load_folder(result.folder / "checkpoints/last").classes[Task.SEMANTIC].names == ("skin", "naevus")
    with pytest.raises(UsageError, match="tells 2 apart"):
        get_recipe("finetune")(
            data_root=str(lesions), task="semantic", model=str(plain), classes=("a", "b", "c"), steps=2
        )


def test_words_without_effect_are_refused(lesions: Path) -> None:
    unet, vit, visft, git = (get_recipe(f"polar.{name}") for name in ("unet", "vit", "visft", "git"))
    folder = {"data": str(lesions), "reader": "mask_folder", "steps": 2}
    for recipe in (unet, visft, git):
        for word, value in (("objects", "each"), ("interpolation", "nearest")):
            with pytest.raises(UsageError, match=f"need no centre\n  where: {word}"):
                recipe(**folder, **{word: value})
            recipe(**folder, polar=True, **{word: value})
    with pytest.raises(UsageError, match="where: features"):
        vit(**folder, features=4)
    with pytest.raises(UsageError, match="where: tower"):
        visft(**folder, backbone="git-nano", tower="g")


def test_an_epoch_is_what_lies_in_the_folder(tmp_path: Path) -> None:
    for part, numbers in (("Training", range(45)), ("Validation", range(45, 50))):
        # Half of the data set is none: its splits are drawn from both parts.
        assert get_recipe("polar.unet")(data=str(tmp_path)).steps == 100 * (2156 // 16)
        for folder, ending in ((f"Task1-2_{part}_Input", ""), (f"Task1_{part}_GroundTruth", "_segmentation")):
            (tmp_path / f"ISIC2018_{folder}").mkdir()
            for number in numbers:
                picture = Image.fromarray(np.zeros((4, 6), np.uint8))
                picture.save(tmp_path / f"ISIC2018_{folder}" / f"ISIC_{number}{ending}.png")
    config = get_recipe("polar.unet")(data=str(tmp_path))
    assert len(open_source(config.train[0])) == 40 and config.steps == 100 * (40 // 16)


def test_wrong_finders_are_refused(lesions: Path, tmp_path: Path) -> None:
    folder = {"data": str(lesions), "reader": "mask_folder", "steps": 2}
    with pytest.raises(UsageError, match="need no centre"):
        get_recipe("polar.unet")(**folder, finder="git-nano")
    with pytest.raises(UsageError, match="need no centre"):
        get_recipe("polar.git")(data=folder["data"], finder="git-nano")
    unrolled = fit(small(get_recipe("polar.unet")(**folder, polar=True), tmp_path)).folder / "checkpoints/last"
    for finder in ("vitdet-nano", str(unrolled)):
        with pytest.raises(UsageError, match="finds no centres"):
            get_recipe("polar.unet")(**folder, polar=True, finder=finder)
    config = small(get_recipe("polar.unet")(**folder, polar=True), tmp_path)
    with pytest.raises(ConfigError, match="nothing that finds centres"):
        validate(dataclasses.replace(config, finder="somewhere"))
    config.model.finder = CentersConfig()
    with pytest.raises(ConfigError, match="which is not named"):
        validate(config)
    other = fit_unet(lesions, tmp_path)
    with pytest.raises(ConfigError, match="not the model that is configured"):
        fit(dataclasses.replace(config, finder=str(other), name="odd"))
