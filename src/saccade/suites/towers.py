"""The frozen image tower that is measured, from one of our checkpoints or from a released file."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from saccade.errors import CheckpointError, UsageError
from saccade.hub.adopt import adopt, listed
from saccade.hub.checkpoint import read_card
from saccade.hub.convert_visft import map_visft
from saccade.hub.lora import load_lora, published_form
from saccade.hub.resolve import fetch_file, load_model, resolve
from saccade.hub.unpickle import TensorFile, read_tensor_file
from saccade.hub.zoo import ZOO
from saccade.layers.lora import Multiplier, add_lora, lora_of, set_multiplier
from saccade.layers.vit import PlainViT, ViTConfig
from saccade.mapping import MappingReport
from saccade.models.systems import backbone_of
from saccade.models.visft.clip import CLIP_MEAN, CLIP_STD, CLIPPair, CLIPPairConfig
from saccade.models.visft.convert import describe, from_official, is_lora, prefix_of
from saccade.models.visft.presets import PRESETS, preset_of_width
from saccade.tokens.clip_pieces import CLIPPieces


@dataclass(kw_only=True)
class Tower:
    """A frozen image tower.

    Attributes:
        name: What it was asked for by.
        model: What is held in memory: the pair, or the model whose backbone is measured.
        vit: The tower itself.
        pair: The tower and its text tower, where there is one.
        mean: RGB mean of its input, 0..255.
        std: RGB standard deviation, likewise.
        updates: Its low-rank updates in words, multiplier included; every report carries it.
        identity: What tells its weights from others, for kept features.
        notes: What a reader of the numbers must know of the weights.
    """

    name: str
    model: nn.Module
    vit: PlainViT
    pair: CLIPPair | None
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    updates: str
    identity: str
    notes: list[str] = dataclasses.field(default_factory=list)

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return next(self.vit.parameters()).device

    @property
    def side(self) -> int:
        """Side of its nominal input in pixels."""
        return self.vit.config.image_size

    def require_pair(self) -> CLIPPair:
        """The pair.

        Raises:
            UsageError: There is no text tower.
        """
        if self.pair is None:
            raise UsageError(
                "zero-shot evaluation needs a text tower",
                where=self.name,
                why="this model has an image tower only",
                fix="name EVA-CLIP's own file, and the updates by --lora FILE",
            )
        return self.pair

    def tokens(self, images_B3HW: Tensor) -> Tensor:
        """All tokens after the last block and norm ``[B, N, C]``: the class token (where there is one) and the map."""
        if self.vit.config.class_token:
            return self.vit.tokens(images_B3HW)
        return self.vit(images_B3HW).flatten(1, 2)

    def without_last_block(self) -> None:
        """Drops the last block and the last norm for good: the tower as BLIP-2 reads it."""
        config = self.vit.config
        kept = tuple(index for index in config.global_blocks if index < config.depth - 1)
        self.vit.config = dataclasses.replace(config, depth=config.depth - 1, global_blocks=kept, final_norm=False)
        self.vit.blocks = self.vit.blocks[:-1]
        self.vit.norm = None
        self.identity += ", less the last block"


def open_tower(
    name: str,
    *,
    lora: Path | None = None,
    multiplier: Multiplier = 1,
    vocabulary: Path | None = None,
    device: str | torch.device = "cpu",
) -> Tower:
    """Opens a tower and puts low-rank updates on it.

    Args:
        name: A checkpoint of ours, or a released file: EVA-CLIP's (both towers) or a bare EVA backbone; by its path, or
            by its name in the zoo (``eva-clip-e``, ``eva-vit-g``), which fetches it at first use.
        lora: Low-rank updates: an official file, or a checkpoint of ours that was trained with some.
        multiplier: How often updates count: 1, or 2 as the official code runs in evaluation mode.
        vocabulary: CLIP's list of merges, for released files, which carry none.
        device: Where to.

    Raises:
        UsageError: A model without a plain ViT, or updates on top of others.
        CheckpointError: A file is missing or damaged, or does not fit.
    """
    path = _path_of(name)
    tower = _released(name, path, vocabulary) if path.is_file() else _own(name, path, vocabulary)
    if lora is not None:
        _update(tower, lora)
    if (config := lora_of(tower.model)) is not None:
        set_multiplier(tower.model, multiplier)
        source = "of the checkpoint" if lora is None else f"from {lora.name}"
        tower.updates = (
            f"low-rank updates {source}: rank {config.rank}, scale {config.scale:.6g}, counted {multiplier} x"
        )
        tower.identity += f", {tower.updates}"
    elif multiplier != 1:
        raise UsageError("there are no low-rank updates to multiply", where=name, fix="--lora FILE")
    tower.model.to(device).eval().requires_grad_(False)
    return tower


def _path_of(name: str) -> Path:
    """A checkpoint folder, or a released file."""
    entry = ZOO.get(name)
    if entry is not None and entry.kind == "backbone" and entry.system == "visft" and not Path(name).exists():
        return fetch_file(entry)
    return resolve(name)


def _own(name: str, path: Path, vocabulary: Path | None) -> Tower:
    """The tower of a checkpoint folder."""
    loaded = load_model(path)
    model, task = loaded.model, loaded.model.tasks[0]
    vit = backbone_of(model)
    if not isinstance(vit, PlainViT):
        raise UsageError(f"a {model.system} model has no plain ViT to measure", where=name)
    pair = model if isinstance(model, CLIPPair) else None
    if pair is not None and vocabulary is not None:
        pair.vocabulary = CLIPPieces(vocabulary)
    declared = model.preprocess(task)
    weights = loaded.card.weights
    return Tower(
        name=name,
        model=model,
        vit=vit,
        pair=pair,
        mean=declared.mean,
        std=declared.std,
        updates="no low-rank updates",
        identity=f"{path.resolve()} {weights.get('sha256') or weights}",
    )


def _released(name: str, path: Path, vocabulary: Path | None) -> Tower:
    """The tower of a released file."""
    file = read_tensor_file(path)
    stat = path.stat()
    pair = None
    if any(key.startswith("text.") for key in file.tensors):
        found = map_visft(file, None)
        found.report.check(allow=found.allowed)
        assert isinstance(found.config, CLIPPairConfig)
        pair = CLIPPair(found.config, None if vocabulary is None else CLIPPieces(vocabulary))
        pair.load_state_dict(found.state)
        tower, report = pair.backbone, found.report
    else:
        tower, report = load_vit(file, _family_of(file))
    return Tower(
        name=name,
        model=pair or nn.ModuleDict({"backbone": tower}),
        vit=tower,
        pair=pair,
        mean=CLIP_MEAN,
        std=CLIP_STD,
        updates="no low-rank updates",
        identity=f"{path.resolve()} {stat.st_size} {stat.st_mtime_ns}",
        notes=report.notes,
    )


def _family_of(file: TensorFile) -> ViTConfig:
    """The released backbone that a file holds, with a class token where the file has one.

    Raises:
        CheckpointError: None that is known.
    """
    prefix = prefix_of(file.tensors)
    preset = None if prefix is None else preset_of_width(len(file.tensors[f"{prefix}blocks.0.norm1.weight"]))
    if preset is None:
        raise CheckpointError(
            "not a released image tower that is known",
            where=file.path,
            why=describe(file.tensors),
            fix="EVA-CLIP g or E, eva_vit_g.pth, or a checkpoint folder of ours",
        )
    return dataclasses.replace(PRESETS[preset]().vit, class_token=f"{prefix}cls_token" in file.tensors)


def load_vit(file: TensorFile, vit: ViTConfig) -> tuple[PlainViT, MappingReport]:
    """A bare backbone of a flat file, and what became of its keys.

    Raises:
        CheckpointError: A tensor is missing or of another size.
    """
    holder = nn.ModuleDict({"backbone": PlainViT(vit)})
    expected = {key: tuple(value.shape) for key, value in holder.state_dict().items()}
    mapped, report = from_official(file.tensors, expected, heads=(), source=str(file.path))
    if "backbone.norm.weight" in report.missing:
        report.notes.append("the file has no last norm: the identity stands in its place")
    report.check(allow=["backbone.norm.*"])
    holder.load_state_dict(holder.state_dict() | mapped)
    tower = holder["backbone"]
    assert isinstance(tower, PlainViT)
    return tower, report


def _update(tower: Tower, path: Path) -> None:
    """Puts low-rank updates on a tower: those of an official file, or of a checkpoint of ours."""
    if lora_of(tower.model) is not None:
        raise UsageError("the checkpoint has low-rank updates already", where=tower.name, fix="leave out --lora")
    if path.is_dir():
        homeless = adopt(tower.model, path)
        tower.identity += f", updates of {path.resolve()} {read_card(path).weights}"
        if homeless:
            tower.notes.append(f"left out of {path}, for the tower has no place for it: {listed(homeless, most=4)}")
        return
    file = read_tensor_file(path)
    if not is_lora(file.tensors):
        raise CheckpointError("not a file of low-rank updates", where=path, why=describe(file.tensors))
    add_lora(tower.model, published_form(file.tensors, source=path))
    load_lora(tower.model, file.tensors, source=str(path))
    stat = path.stat()
    tower.identity += f", updates of {path.resolve()} {stat.st_size} {stat.st_mtime_ns}"
