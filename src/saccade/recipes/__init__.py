"""Recipes: Python functions that return a complete :class:`~saccade.training.config.TrainConfig`.

Keyword arguments of a function are the recipe's own; everything else is changed in the configuration that it returns.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import partial

from saccade.errors import UsageError, nearest
from saccade.models.git.config import GIT_TASKS
from saccade.models.visft.config import PUBLISHED_HEADS
from saccade.recipes import ait, ait_scenes, git, gsva, polar, visft, visft_scenes, vitdet
from saccade.recipes.finetune import finetune as _finetune
from saccade.recipes.git import multi_fivetask
from saccade.recipes.git_scenes import nano_scenes, nano_scenes_single
from saccade.recipes.git_transfer import FewShot, ZeroShot, few_shot, zero_shot
from saccade.recipes.git_universal import universal
from saccade.recipes.readers import LATER_READERS, missing_readers, require_readers, without_missing
from saccade.tasks import TASKS
from saccade.training.config import TrainConfig

__all__ = [
    "LATER_READERS",
    "RECIPES",
    "Recipe",
    "get_recipe",
    "missing_readers",
    "recipe_arguments",
    "require_readers",
    "without_missing",
]

Recipe = Callable[..., TrainConfig]

_SIZES: tuple[git.Size, ...] = ("base", "large", "huge")
_ZERO_SHOT: tuple[ZeroShot, ...] = ("cityscapes_det", "cityscapes_ins", "cityscapes_seg", "sunrgbd_seg", "nocaps")
_FEW_SHOT: tuple[FewShot, ...] = ("drive", "loveda", "potsdam", "widerface", "deepfashion")
_FORMS: tuple[vitdet.Form, ...] = ("vit-b", "vitae-b", "vitae-s")
_LETTERS: tuple[vitdet.Size, ...] = ("b", "l", "h")

_DEPTH: tuple[ait.DepthForm, ...] = ("depth-b", "depth-b-hard", "depth-b-parallel", "depth-l", "depth-l-parallel")
_EVAS: tuple[visft.Size, ...] = ("g", "e")
_BASES: tuple[gsva.Base, ...] = ("7b", "13b", "llama2-13b")
_NETWORKS: tuple[polar.Network, ...] = ("unet", "unetplusplus", "deeplabv3plus", "vit")
_INSTANCE: tuple[ait.InstanceForm, ...] = ("instance-b", "instance-b-hard")

RECIPES: dict[str, Recipe] = {
    "finetune": _finetune,
    **{f"ait.{form.replace('-', '_')}": partial(ait.depth, form) for form in _DEPTH},
    "ait.detection_b": ait.detection_b,
    **{f"ait.{form.replace('-', '_')}": partial(ait.instance, form) for form in _INSTANCE},
    "ait.joint_b": ait.joint_b,
    "ait.vqvae_masks": ait.vqvae_masks,
    "ait.vqvae_depth": ait.vqvae_depth,
    "ait.nano_vqvae_masks": ait_scenes.nano_vqvae_masks,
    "ait.nano_vqvae_depth": ait_scenes.nano_vqvae_depth,
    "ait.nano_depth": ait_scenes.nano_depth,
    "ait.nano_depth_plain": ait_scenes.nano_depth_plain,
    "ait.nano_instance": ait_scenes.nano_instance,
    "ait.nano_joint": ait_scenes.nano_joint,
    "git.nano_scenes": nano_scenes,
    **{f"git.nano_scenes_single_{TASKS[task].alias}": partial(nano_scenes_single, task) for task in GIT_TASKS},
    "git.single_detection_base": git.single_detection_base,
    "git.single_detection_base_672": git.single_detection_base_672,
    "git.single_instanceseg_base": git.single_instanceseg_base,
    "git.single_semanticseg_base": git.single_semanticseg_base,
    "git.single_caption_base": git.single_caption_base,
    "git.single_visualgrounding_base": git.single_visualgrounding_base,
    **{f"git.multi_fivetask_{size}": partial(multi_fivetask, size) for size in _SIZES},
    **{f"git.universal_{size}": partial(universal, size) for size in _SIZES},
    **{f"git.zero_shot_{name}_{size}": partial(zero_shot, name, size) for name in _ZERO_SHOT for size in _SIZES},
    **{f"vitdet.vitae_repo_{form}": partial(vitdet.vitae_repository, form) for form in _FORMS},
    **{
        f"vitdet.{'lvis_' if lvis else ''}{'cascade' if cascade else 'mask'}_rcnn_vit_{size}": partial(
            vitdet.detectron2, size, cascade=cascade, lvis=lvis
        )
        for lvis in (False, True)
        for cascade in (False, True)
        for size in _LETTERS
    },
    "vitdet.nano_scenes": vitdet.nano_scenes,
    **{f"gsva.pretrain_{base.replace('-', '_')}": partial(gsva.pretrain, base) for base in _BASES},
    **{f"gsva.finetune_gres_{base.replace('-', '_')}": partial(gsva.finetune_gres, base) for base in _BASES},
    "gsva.nano_describe": gsva.nano_describe,
    "gsva.nano_scenes": gsva.nano_scenes,
    **{f"visft.{head}_{size}": partial(visft.first_stage, head, size) for head in PUBLISHED_HEADS for size in _EVAS},
    **{f"visft.lora_{size}": partial(visft.second_stage, size) for size in _EVAS},
    "visft.nano_clip": visft_scenes.nano_clip,
    **{f"visft.nano_{head}": partial(visft_scenes.nano_first_stage, head) for head in PUBLISHED_HEADS},
    "visft.nano_lora": visft_scenes.nano_lora,
    **{f"polar.{network}": partial(polar.segmenter, network) for network in _NETWORKS},
    "polar.centers": polar.centers,
    "polar.git": polar.git,
    "polar.visft": polar.visft,
    **{f"git.few_shot_{name}_{size}": partial(few_shot, name, size) for name in _FEW_SHOT for size in _SIZES},
}
"""Every recipe by its name."""


def get_recipe(name: str) -> Recipe:
    """A recipe by its name.

    Raises:
        UsageError: No such recipe; the message offers the nearest name.
    """
    if name not in RECIPES:
        raise UsageError(f"there is no recipe '{name}'", fix=nearest(name, RECIPES))
    return RECIPES[name]


def recipe_arguments(name: str) -> Mapping[str, inspect.Parameter]:
    """The arguments that a recipe takes itself, by name (all of them keyword-only).

    Raises:
        UsageError: No such recipe.
    """
    parameters = inspect.signature(get_recipe(name)).parameters
    return {key: parameter for key, parameter in parameters.items() if parameter.kind is parameter.KEYWORD_ONLY}
