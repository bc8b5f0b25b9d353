"""Lesions in polar coordinates: the polar paper's trainings, and the same for a folder of one's own (docs/lesions.md).

The published settings: Adam at a constant 1e-3, 16 pictures a step (the last, smaller batch of an epoch left out), 100
epochs, no augmentation of the segmenters besides the shift of the centre, the best checkpoint by validation.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Literal, TypeAlias

from saccade.data.augment import Augment, LightAugment
from saccade.data.sources import WITHOUT_EMPTY, SourceSpec, open_source
from saccade.data.warp_augment import WarpAugment
from saccade.errors import MissingDataError, UsageError
from saccade.hub.checkpoint import read_card
from saccade.hub.resolve import resolve
from saccade.hub.zoo import ZOO
from saccade.labels import Objects
from saccade.layers.polar import Interpolation
from saccade.layers.unet import UNetConfig
from saccade.layers.vit import ViTConfig
from saccade.models.git.config import GiTConfig
from saccade.models.polar import presets
from saccade.models.polar.config import PixelConfig, PolarConfig, ViTPixelsConfig
from saccade.models.systems import ModelConfig, finder_config, plain_vit_of
from saccade.models.visft import presets as visft_presets
from saccade.recipes.finetune import finetune
from saccade.recipes.small import scratch_optim
from saccade.tasks import Task
from saccade.training.config import OptimConfig, SourceConfig, TrainConfig

Network: TypeAlias = Literal["unet", "unetplusplus", "deeplabv3plus", "vit"]
Tower: TypeAlias = Literal["nano", "g", "e"]
DataSet: TypeAlias = Literal["isic2018", "cvc_clinicdb", "lits", "mask_folder"]

_EPOCHS, _BATCH, _FEATURES = 100, 16, 32
_SIZES_HW = {"isic2018": (384, 512), "cvc_clinicdb": (288, 384), "mask_folder": (256, 256)}
_IMAGES = {"isic2018": 2156, "cvc_clinicdb": 490}  # of the published training parts
_OBJECTS = {"isic2018": "lesion", "cvc_clinicdb": "polyp", "lits": "liver", "mask_folder": "lesion"}
_TOWERS: dict[Tower, Callable[[], ViTConfig]] = {
    "nano": visft_presets.nano_vit,
    "g": visft_presets.eva_g,
    "e": visft_presets.eva_e,
}
_CELLS = 32  # along a side of the map that masks are read from
_ADAM = OptimConfig(lr=1e-3, weight_decay=0.0, clip_norm=0.0, schedule="constant")


def segmenter(
    network: Network,
    *,
    data: str = "data/isic2018",
    reader: DataSet = "isic2018",
    classes: tuple[str, ...] = (),
    size: tuple[int, int] = (0, 0),
    features: int = _FEATURES,
    backbone: str = "",
    polar: bool = False,
    finder: str = "",
    objects: Objects = "one",
    interpolation: Interpolation = "bilinear",
    augment: bool = False,
    steps: int = 0,
) -> TrainConfig:
    """Trains a network that scores every pixel, on plain pictures or on unrolled ones.

    Args:
        network: The paper's U-Net, U-Net++ or DeepLabV3+ (extra ``medical``), or a small plain ViT with a light head.
        data: Folder of the data set.
        reader: The data set; ``mask_folder`` is a folder of one's own.
        classes: Names of the background and the object, where they are other ones.
        size: Height and width of the network input; 0,0 = as published for the data set, in whole patches.
        features: Channels of the U-Net's first level.
        backbone: A checkpoint of any model whose plain ViT the plain ViT is to be and to start from (``git-nano``).
        polar: Unroll the pictures around the centre of the object.
        finder: What finds the centre later: a trained centre predictor or plain segmenter (a checkpoint folder). It
            goes into the checkpoint. Without one, centres have to be given.
        objects: Unroll around all objects together, as published, or around each.
        interpolation: How pictures are unrolled; published: ``nearest``.
        augment: Flips, quarter turns, crops and colours, which the paper does without (square inputs only).
        steps: Optimiser steps; 0 = 100 epochs.

    Raises:
        UsageError: A finder, or another word of unrolled pictures, for plain ones; a finder that does not exist;
            features or a backbone for another network, or a backbone that is no plain ViT.
    """
    names = classes or ("background", _OBJECTS[reader])
    sized = presets.SEGMENTERS[network]()
    sized = presets.grey(sized) if reader == "lits" else dataclasses.replace(sized, input_hw=_SIZES_HW[reader])
    layers, (height, width) = sized.network, sized.input_hw
    if isinstance(layers, UNetConfig):
        layers = dataclasses.replace(layers, features=features)
    elif features != _FEATURES:
        raise UsageError(
            f"features are channels of the U-Net, not of {network}",
            where="features",
            fix="leave it out, or take recipe=polar.unet",
        )
    if backbone:
        if network != "vit":
            raise UsageError("only a plain ViT starts from a backbone", where="backbone", fix="take recipe=polar.vit")
        vit = dataclasses.replace(_vit_of(backbone), class_token=False)
        layers, step = ViTPixelsConfig(vit=vit), vit.patch_size
        height, width = height // step * step, width // step * step
    input_hw = size if min(size) > 0 else (height, width)
    plain = dataclasses.replace(sized, network=layers, classes=names, input_hw=input_hw)
    return _labelling(
        network,
        _seen(plain, polar, finder, objects, interpolation),
        _sources(Task.SEMANTIC, data, reader, names, _light(augment)),
        finder=finder,
        init_from=backbone,
        steps=steps,
    )


def centers(
    *,
    data: str = "data/isic2018",
    reader: DataSet = "isic2018",
    classes: tuple[str, ...] = (),
    small: bool = False,
    objects: Objects = "one",
    steps: int = 0,
) -> TrainConfig:
    """Trains the centre predictor: eight stacked hourglasses at 256 pixels, flipped from left to right alone.

    Args:
        data: Folder of the data set.
        reader: The data set; ``mask_folder`` is a folder of one's own.
        classes: Names of the background and the object, where they are other ones.
        small: Two hourglasses of a quarter of the width, for a CPU; flipped upside down, too, as the paper does not.
        objects: One centre for all objects together, as published, or one for each.
        steps: Optimiser steps; 0 = 100 epochs.
    """
    names = classes or ("background", _OBJECTS[reader])
    sized = presets.centers_small() if small else presets.centers()
    sized = presets.grey_centers(sized) if reader == "lits" else sized
    model = dataclasses.replace(sized, classes=names, objects=objects)
    warps = WarpAugment() if small else WarpAugment(flip_vertical=0.0)
    train, val = _sources(Task.CENTER, data, reader, names, warps)
    # The paper keeps the least validation loss, we what that loss is for.
    return _training("polar/centers", model, train, val, monitor="center/within", steps=steps)


def git(
    *,
    data: str,
    reader: DataSet = "mask_folder",
    classes: tuple[str, ...] = (),
    model: str = "git-nano",
    polar: bool = False,
    finder: str = "",
    objects: Objects = "one",
    interpolation: Interpolation = "bilinear",
    steps: int = 0,
) -> TrainConfig:
    """Fine-tunes a GiT on label maps, on plain pictures or on unrolled ones.

    Args:
        data: Folder of the data set.
        reader: The data set; ``mask_folder`` is a folder of one's own.
        classes: Names of the background and the object, where they are other ones; of a folder of label maps those of
            all values, in order.
        model: A bundled name, a zoo name or a checkpoint folder.
        polar: Unroll the pictures around the centre of the object.
        finder: What finds the centre later, as for the other polar recipes.
        objects: Unroll around all objects together, or around each.
        interpolation: How pictures are unrolled.
        steps: Optimiser steps; 0 = by the number of images.

    Raises:
        UsageError: A finder, or another word of unrolled pictures, for plain ones; or the model is no GiT.
    """
    names = classes or ("background", _OBJECTS[reader])
    config = finetune(data_root=data, task="semantic", model=model, classes=names, reader=reader, steps=steps)
    if not isinstance(config.model, GiTConfig):
        raise UsageError(f"'{model}' is no GiT", where="model", fix="name git-nano, git-base, ...")
    (val,) = config.val
    form = "polar" if polar else "plain"
    return dataclasses.replace(
        config,
        name=f"polar/{Path(model).name}_{form}",
        model=_seen(config.model, polar, finder, objects, interpolation),
        val=(dataclasses.replace(val, protocol="polar"),),
        monitor="semantic_segmentation/mean_Dice",
        finder=finder,
    )


def visft(
    *,
    data: str = "data/isic2018",
    reader: DataSet = "isic2018",
    classes: tuple[str, ...] = (),
    backbone: str = "",
    tower: Tower = "nano",
    side: int = 0,
    polar: bool = False,
    finder: str = "",
    objects: Objects = "one",
    interpolation: Interpolation = "bilinear",
    augment: bool = False,
    steps: int = 0,
) -> TrainConfig:
    """Trains the segmentation head of ViSFT, and its backbone, on label maps; on plain pictures or on unrolled ones.

    Args:
        data: Folder of the data set.
        reader: The data set; ``mask_folder`` is a folder of one's own.
        classes: Names of the background and the object, where they are other ones.
        backbone: What the backbone starts from: a checkpoint of any model with a plain ViT, which is then the backbone,
            or weights of a tower (``eva-vit-g``, ``eva-clip-e``, or a file). Empty = fresh weights.
        tower: The backbone where no checkpoint of a model says it: a small one, EVA-ViT-g or EVA-ViT-E.
        side: Side of the network input; 0 = 32 patches.
        polar: Unroll the pictures around the centre of the object.
        finder: What finds the centre later, as for the other polar recipes.
        objects: Unroll around all objects together, or around each.
        interpolation: How pictures are unrolled.
        augment: Flips, quarter turns, crops and colours.
        steps: Optimiser steps; 0 = 100 epochs.

    Raises:
        UsageError: A finder, or another word of unrolled pictures, for plain ones; a tower beside a checkpoint that
            says it; or a backbone that is no plain ViT.
    """
    names = classes or ("background", _OBJECTS[reader])
    weights = not backbone or backbone in ZOO or Path(backbone).is_file()
    if not weights and tower != "nano":
        raise UsageError("the checkpoint of the backbone says what it is", where="tower", fix="leave it out")
    vit = _TOWERS[tower]() if weights else _vit_of(backbone)
    plain = visft_presets.labelling(vit, names, side=side or _CELLS * vit.patch_size)
    config = _labelling(
        "visft",
        _seen(plain, polar, finder, objects, interpolation),
        _sources(Task.SEMANTIC, data, reader, names, _light(augment)),
        finder=finder,
        init_from=backbone,
        steps=steps,
    )
    return dataclasses.replace(config, optim=dataclasses.replace(scratch_optim(config.steps), lr=5e-4))


def _labelling(
    name: str,
    model: PixelConfig | PolarConfig,
    sources: tuple[SourceConfig, SourceConfig],
    *,
    finder: str,
    init_from: str,
    steps: int,
) -> TrainConfig:
    """The training of a model that labels every pixel, on plain pictures or on unrolled ones."""
    train, val = sources
    return _training(
        f"polar/{name}{'_polar' if isinstance(model, PolarConfig) else ''}",
        model,
        train,
        dataclasses.replace(val, protocol="polar"),
        monitor="semantic_segmentation/mean_Dice",
        finder=finder,
        init_from=init_from,
        steps=steps,
    )


def _light(augment: bool) -> LightAugment | None:
    return LightAugment(flip_vertical=0.5, rotate=True) if augment else None


def _vit_of(checkpoint: str) -> ViTConfig:
    vit = plain_vit_of(read_card(resolve(checkpoint)).config)
    if vit is None:
        raise UsageError(
            "the model has no plain ViT", where=f"backbone={checkpoint}", fix="name git-nano, vitdet-nano, ..."
        )
    return vit


def _seen(
    model: PixelConfig, polar: bool, finder: str, objects: Objects, interpolation: Interpolation
) -> PixelConfig | PolarConfig:
    """The model for plain pictures or, wrapped, for unrolled ones."""
    if not polar:
        for word, given in (
            ("finder", finder),
            ("objects", objects != "one"),
            ("interpolation", interpolation != "bilinear"),
        ):
            if given:
                raise UsageError("plain pictures need no centre", where=word, fix="leave it out, or set polar=true")
        return model
    found = finder_config(read_card(resolve(finder)).config, where=f"finder={finder}") if finder else None
    return PolarConfig(segmenter=model, finder=found, objects=objects, interpolation=interpolation)


def _sources(
    task: Task, data: str, reader: DataSet, classes: tuple[str, ...], augment: Augment | None
) -> tuple[SourceConfig, SourceConfig]:
    train = SourceConfig(
        task=task,
        reader=reader,
        root=data,
        split="train",
        classes=classes,
        drop_empty=reader in WITHOUT_EMPTY,
        batch_size=_BATCH,
        augment=augment,
    )
    return train, dataclasses.replace(train, split="val", augment=None)


def _training(
    name: str,
    model: ModelConfig,
    train: SourceConfig,
    val: SourceConfig,
    *,
    monitor: str,
    steps: int,
    finder: str = "",
    init_from: str = "",
) -> TrainConfig:
    count = steps or _EPOCHS * max(1, _images(train) // _BATCH)
    every = max(1, count // _EPOCHS) if not steps else max(1, steps // 10)
    return TrainConfig(
        name=name,
        model=model,
        train=(train,),
        val=(val,),
        finder=finder,
        init_from=init_from,
        steps=count,
        optim=_ADAM,
        eval_every=every,
        save_every=every,
        keep=1,
        monitor=monitor,
    )


def _images(train: SourceConfig) -> int:
    """Pictures of the training part as they lie in the folder; of a data set that is not there, as published."""
    fields = {field.name: getattr(train, field.name) for field in dataclasses.fields(SourceSpec)}
    try:
        return len(open_source(SourceSpec(**fields)))
    except MissingDataError:
        if train.reader not in _IMAGES:
            raise
        return _IMAGES[train.reader]
