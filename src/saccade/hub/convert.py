"""Official weight files to checkpoint folders, and back, with a report of every key.

The names and table sizes of a system are in its own ``convert.py``; here are the files around them: what kind of file
it is and the folder that it becomes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias, cast

import torch
from safetensors.torch import save_file
from torch import Tensor

from saccade.data.class_names import CLASS_NAMES, COCO_CATEGORY_IDS
from saccade.errors import CheckpointError, UsageError, nearest
from saccade.hub.checkpoint import VOCABULARY, read_card, write_checkpoint, written_whole
from saccade.hub.convert_gsva import language_part, map_gsva, map_language, map_sam
from saccade.hub.convert_polar import map_polar, polar_official
from saccade.hub.convert_visft import is_visft, map_visft, with_official_scale
from saccade.hub.shards import SHARD_BYTES, WEIGHTS, file_sha256, read_weights, write_weights
from saccade.hub.sizes import Kind, choose_config, count_blocks, expected_shapes, skeleton
from saccade.hub.starts import BACKBONE, HEADS_FILE, TEXT
from saccade.hub.unpickle import TensorFile
from saccade.hub.weight_sets import read_weight_set
from saccade.hub.zoo import entry_of_file
from saccade.layers.lora import LoRAConfig
from saccade.mapping import MappingReport
from saccade.models.ait import convert as ait
from saccade.models.ait.config import AiTConfig
from saccade.models.ait.model import AiT
from saccade.models.ait.presets import PRESETS as SOLVERS
from saccade.models.ait.presets import VQVAES
from saccade.models.ait.presets import preset_of as solver_preset_of
from saccade.models.ait.vqvae import MapVQVAE, MapVQVAEConfig
from saccade.models.git import convert as git
from saccade.models.git.config import GIT_TASKS, GiTConfig
from saccade.models.gsva import convert as gsva
from saccade.models.gsva.config import GSVAConfig
from saccade.models.polar import convert as polar
from saccade.models.polar.config import CentersConfig, PolarConfig, SegmenterConfig
from saccade.models.systems import ModelConfig, Vocabulary, build, fixed_classes
from saccade.models.visft import convert as visft
from saccade.models.visft.clip import CLIPPairConfig
from saccade.models.visft.clip_convert import to_eva_clip
from saccade.models.visft.config import ViSFTConfig
from saccade.models.vitdet import convert as vitdet
from saccade.models.vitdet.config import ViTDetConfig
from saccade.models.vitdet.model import ViTDet
from saccade.models.vitdet.presets import PRESETS as DETECTORS
from saccade.models.vitdet.presets import preset_of
from saccade.samples import ClassList
from saccade.tasks import TASKS, Task
from saccade.tokens.clip_pieces import CLIPPieces
from saccade.tokens.pieces import FILE as PIECES
from saccade.tokens.pieces import PieceVocabulary
from saccade.tokens.vocabulary import TextVocabulary
from saccade.tokens.words import FILE as WORDS
from saccade.tokens.words import WordMap

FilePart: TypeAlias = Literal["sam", "detection", "instance", "caption"]
"""What is taken of a file that holds several things: all of a SAM, or one of ViSFT's heads."""


@dataclass(kw_only=True)
class Conversion:
    """A foreign file read and mapped, not yet written.

    Attributes:
        file: The file.
        kind: A whole model, or the part of one that training starts from.
        preset: The size, or ``custom``.
        config: The model that the file fits.
        state: Our names to tensors, or to their forms where ``made`` makes them.
        report: What became of every key.
        allowed: Patterns of keys that this kind of file cannot have.
        made: Our name to the tensor, where it is computed (a base added).
        lora: Low-rank updates that are among the tensors.
    """

    file: TensorFile
    kind: Kind
    preset: str
    config: ModelConfig
    state: dict[str, Tensor]
    report: MappingReport
    allowed: tuple[str, ...] = field(default=())
    made: Callable[[str], Tensor] | None = None
    lora: LoRAConfig | None = None


def convert_file(
    path: str | Path,
    *,
    out: str | Path,
    preset: str | None = None,
    base: str | Path | None = None,
    part: FilePart | None = None,
    vocabulary: str | Path | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> MappingReport:
    """Converts an official file into a folder of ours.

    A whole model becomes a checkpoint folder. A SAM backbone or a ``bert_embed`` file becomes a folder with one
    safetensors file, which ``init_from`` and ``text_init`` read (they read the original too). A whole SAM and a LLaVA
    become folders that ``init_from`` and ``language_init`` of GSVA read, likewise.

    Args:
        path: A ``.pth``, ``.pt``, ``.bin``, ``.pkl`` or ``.safetensors`` file, or several of them
            (:func:`saccade.hub.weight_sets.read_weight_set`); see :mod:`saccade.hub.unpickle` for why reading it is
            safe.
        out: The folder to write.
        preset: A name of :data:`saccade.models.git.presets.PRESETS`; None finds it from the shapes.
        base: The LLaMA that a LLaVA is the difference from, where it was released so; the backbone of ViSFT's heads.
        part: ``sam`` takes all of a SAM file, for GSVA; None its image encoder alone, for GiT, where the file is one in
            Segment Anything's names. The name of a head takes that one of a file with several.
        vocabulary: The ``vocab.txt`` (of GSVA the ``tokenizer.model``, of ViSFT the ``WORDMAP_*.json``) that belongs to
            the word table; without it the checkpoint cannot predict yet.
        shard_bytes: Weights of more bytes than this are written as several files; no more than one of them is in memory
            at a time.

    Returns:
        The report of every key.

    Raises:
        CheckpointError: The file is damaged, of an unknown kind, or does not fit the model whole.
        UsageError: Unknown preset, a vocabulary of another length, or an argument that this kind of file does not take.
    """
    found = map_file(path, preset=preset, base=base, part=part)
    found.report.check(allow=found.allowed)
    write_conversion(found, out, vocabulary=vocabulary, shard_bytes=shard_bytes)
    return found.report


def map_file(
    path: str | Path, *, preset: str | None = None, base: str | Path | None = None, part: FilePart | None = None
) -> Conversion:
    """Reads and maps an official file without writing anything; the report may have gaps.

    The arguments are those of :func:`convert_file`.

    Raises:
        CheckpointError: The file is damaged or of an unknown kind.
        UsageError: Unknown preset, a base of what is no LLaVA, no SAM where one is to be taken, or a preset of one of
            these two.
    """
    file = read_weight_set(path)
    if all(key.startswith("module.") for key in file.tensors):
        file.tensors = {key.removeprefix("module."): value for key, value in file.tensors.items()}
    if is_visft(file.tensors):
        head = None if part == "sam" else part
        visual = map_visft(file, preset, base=base, part=head)
        known = visual.report.dropped
        visual.report.dropped |= {key: reason for key, reason in file.skipped.items() if key not in known}
        return Conversion(file=file, **vars(visual))
    whole_sam = gsva.is_sam(file.tensors)
    if part is not None and part != "sam":
        raise UsageError(f"the file has no {part} head of ViSFT", where=file.path, fix="leave out --part")
    if part == "sam" and not whole_sam:
        raise UsageError("no whole SAM", where=file.path, why="it has no mask decoder", fix="leave out --part sam")
    llava = gsva.is_llava(file.tensors) and not gsva.is_gsva(file.tensors)
    if base is not None and not llava:
        raise UsageError(
            "only a LLaVA is released as the difference from another model, and only ViSFT's heads without a backbone",
            where=file.path,
            why="this is no LLaVA v1.1: it has no linear projector, or is a whole GSVA",
            fix="name the difference first and its LLaMA as --base, or leave out --base",
        )
    if llava or (whole_sam and (part == "sam" or not count_blocks(file.tensors))):
        if preset is not None:
            raise UsageError(
                "a part of GSVA has no preset: its shapes tell its sizes", where=file.path, fix="leave out --preset"
            )
        return _map_llava(file, base) if llava else _map_sam(file)
    if gsva.is_gsva(file.tensors):
        size, whole, mapped, report = map_gsva(file, preset)
        return Conversion(file=file, kind="checkpoint", preset=size, config=whole, state=mapped, report=report)
    if vitdet.family_of(file.tensors) is not None:
        return _map_detector(file, preset)
    if polar.network_of(file.tensors) is not None:
        return _map_polar(file, preset)
    if ait.is_solver(file.tensors):
        return _map_solver(file, preset)
    if ait.is_vqvae(file.tensors):
        return _map_vqvae(file, preset)
    kind = _kind(file)
    name, git_config, notes = choose_config(file, kind, preset)
    expected = expected_shapes(git_config)
    allowed: tuple[str, ...] = ()
    if kind == "checkpoint":
        state, report = git.from_official(file.tensors, expected, source=str(file.path))
    elif kind == "text":
        state, report = git.from_text_embedding(file.tensors, expected, source=str(file.path))
    else:
        backbone = {key: shape for key, shape in expected.items() if key.startswith("backbone.")}
        state, report = git.from_sam(file.tensors, backbone, source=str(file.path))
        depth = count_blocks(file.tensors)
        allowed = tuple(f"backbone.blocks.{index}.*" for index in range(depth, git_config.vit.depth))
        notes.append(f"a backbone of {depth} blocks: blocks {depth} to {git_config.vit.depth - 1} start fresh")
        if whole_sam:
            notes.append("its image encoder was taken, for GiT; all of it, for GSVA: --part sam")
    report.dropped |= {key: reason for key, reason in file.skipped.items() if key not in report.dropped}
    report.notes += notes
    return Conversion(file=file, kind=kind, preset=name, config=git_config, state=state, report=report, allowed=allowed)


def _map_sam(file: TensorFile) -> Conversion:
    """A whole SAM, for GSVA."""
    config, state, report = map_sam(file)
    report.dropped |= {key: reason for key, reason in file.skipped.items() if key not in report.dropped}
    return Conversion(file=file, kind="sam", preset="custom", config=config, state=state, report=report)


def _map_llava(file: TensorFile, base: str | Path | None) -> Conversion:
    """A LLaVA, with its base added where it is the difference from one."""
    part = language_part(file, base=base)
    config, names, report = map_language(part)
    report.dropped |= {key: reason for key, reason in file.skipped.items() if key not in report.dropped}
    if base is not None:
        report.notes.append(f"added to {base}")
    return Conversion(
        file=file,
        kind="language",
        preset="custom",
        config=config,
        state={ours: part.forms[name] for ours, name in names.items()},
        report=report,
        made=lambda ours: part.read(names[ours]),
    )


def _map_detector(file: TensorFile, preset: str | None) -> Conversion:
    """A released detector, or one fine-tuned by the authors' code on other classes."""
    name = preset or preset_of(file.tensors)
    if name is None:
        raise CheckpointError(
            "a detector of no released form",
            where=file.path,
            why=vitdet.describe(file.tensors),
            fix=f"name the nearest with --preset: {', '.join(DETECTORS)}",
        )
    if name not in DETECTORS:
        raise UsageError(f"unknown preset '{name}'", fix=nearest(name, DETECTORS))
    config = DETECTORS[name]()
    classes = vitdet.count_classes(file.tensors)
    heads = dataclasses.replace(config.roi, num_classes=classes)
    config = dataclasses.replace(config, roi=heads)
    if classes == len(CLASS_NAMES["coco"]):
        config = dataclasses.replace(config, classes=CLASS_NAMES["coco"], category_ids=COCO_CATEGORY_IDS)
    with torch.device("meta"):
        expected = {key: tuple(value.shape) for key, value in ViTDet(config).state_dict().items()}
    head_dim = config.vit.width // config.vit.heads
    state, report = vitdet.from_official(file.tensors, expected, head_dim=head_dim, source=str(file.path))
    report.dropped |= {key: reason for key, reason in file.skipped.items() if key not in report.dropped}
    if not config.classes:
        report.notes.append(f"{classes} classes without names: give them when predicting (--classes, in their order)")
    return Conversion(file=file, kind="checkpoint", preset=name, config=config, state=state, report=report)


def _map_solver(file: TensorFile, preset: str | None) -> Conversion:
    """A released solver of AiT."""
    entry = entry_of_file(file.path.name)
    named = entry.preset if entry is not None and entry.name.startswith("ait-") else None
    name = preset or named or solver_preset_of(file.tensors)
    if name is None:
        raise CheckpointError(
            "an AiT solver of no released form",
            where=file.path,
            fix=f"name the nearest with --preset: {', '.join(SOLVERS)}",
        )
    if name not in SOLVERS:
        raise UsageError(f"unknown preset '{name}'", fix=nearest(name, SOLVERS))
    config = SOLVERS[name]()
    if config.detection is not None or config.instance is not None:
        config = dataclasses.replace(config, classes=CLASS_NAMES["coco"], category_ids=COCO_CATEGORY_IDS)
    with torch.device("meta"):
        expected = {key: tuple(value.shape) for key, value in AiT(config).state_dict().items()}
    state, report = ait.from_official(file.tensors, expected, source=str(file.path))
    report.dropped |= {key: reason for key, reason in file.skipped.items() if key not in report.dropped}
    if preset is None and named is None and f"{name}-hard" in SOLVERS:
        report.notes.append(
            f"taken for a model with soft tokens; one without them has the same tensors: --preset {name}-hard"
        )
    return Conversion(file=file, kind="checkpoint", preset=name, config=config, state=state, report=report)


def _map_vqvae(file: TensorFile, preset: str | None) -> Conversion:
    """A released VQ-VAE, of masks or of depth: the latter halves its maps once more."""
    name = preset or ("vqvae-depth" if "encoder.12.weight" in file.tensors else "vqvae-masks")
    if name not in VQVAES:
        raise UsageError(f"'{name}' is no preset of a VQ-VAE", fix=nearest(name, VQVAES))
    config = VQVAES[name]()
    with torch.device("meta"):
        expected = {key: tuple(value.shape) for key, value in MapVQVAE(config).vqvae.state_dict().items()}
    state, report = ait.from_vqvae(file.tensors, expected, source=str(file.path))
    report.dropped |= {key: reason for key, reason in file.skipped.items() if key not in report.dropped}
    state = {f"vqvae.{key}": value for key, value in state.items()}
    return Conversion(file=file, kind="checkpoint", preset=name, config=config, state=state, report=report)


def _map_polar(file: TensorFile, preset: str | None) -> Conversion:
    """A U-Net or a centre predictor of the polar paper."""
    name, config, state, report = map_polar(file, preset)
    report.dropped |= {key: reason for key, reason in file.skipped.items() if key not in report.dropped}
    return Conversion(file=file, kind="checkpoint", preset=name, config=config, state=state, report=report)


def write_conversion(
    found: Conversion, out: str | Path, *, vocabulary: str | Path | None = None, shard_bytes: int = SHARD_BYTES
) -> Path:
    """Writes what :func:`map_file` found; call ``found.report.check(allow=found.allowed)`` first.

    Raises:
        CheckpointError: The folder cannot be written.
        UsageError: The folder holds something already, or the vocabulary has another length than the word table, or
            no place.
    """
    folder = Path(out)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError("will not write over what is there", where=folder, fix="choose a new or empty folder")
    if found.kind != "checkpoint":
        if vocabulary is not None:
            raise UsageError(
                "only a whole model has a vocabulary",
                where="--vocabulary",
                fix="leave it out; a training that starts from this file takes vocabulary=FILE",
            )
        _write_start(found, folder, shard_bytes)
        return folder
    if isinstance(found.config, GSVAConfig):
        sentence = None if vocabulary is None else PieceVocabulary(vocabulary, found.config.language.vocab_size)
        if sentence is None:
            found.report.notes.append(
                f"no tokenizer was given: to predict, copy that of the language model to {folder / PIECES}"
            )
        return _write_plain(found, folder, found.config, sentence, shard_bytes)
    if isinstance(found.config, CLIPPairConfig):
        merges = None if vocabulary is None else CLIPPieces(vocabulary)
        return _write_plain(found, folder, found.config, merges, shard_bytes)
    if isinstance(found.config, ViSFTConfig) and found.config.caption is not None:
        words = None if vocabulary is None else WordMap.load(vocabulary)
        if words is None:
            found.report.notes.append(
                f"no map of words was given: to caption, copy the WORDMAP_*.json of the training to {folder / WORDS}"
            )
        return _write_plain(found, folder, found.config, words, shard_bytes)
    if not isinstance(found.config, GiTConfig):
        if vocabulary is not None:
            raise UsageError("this model reads no text", where="--vocabulary", fix="leave it out")
        return _write_plain(found, folder, found.config, None, shard_bytes)
    pieces = None if vocabulary is None else TextVocabulary(vocabulary)
    if pieces is not None and len(pieces) != found.config.vocab_size:
        raise UsageError(
            f"the vocabulary has {len(pieces)} pieces, the word table {found.config.vocab_size} rows",
            where=vocabulary,
            fix="use the vocabulary that the weights were trained with",
        )
    if pieces is None:
        found.report.notes.append(
            f"no vocabulary was given: to predict, copy the vocab.txt of {found.config.vocab_size} rows (for released "
            f"weights: that of bert-base-uncased) to {folder / VOCABULARY}"
        )
    config = _offer_trained_tasks(found, found.config)
    model = skeleton(config)
    provenance = _provenance(found)
    return write_checkpoint(
        folder,
        state=found.state,
        config=config,
        tasks=model.tasks,
        classes={task: listed for task, listed in _released_classes().items() if task in model.tasks},
        preprocessing={task: model.preprocess(task) for task in model.tasks},
        provenance=provenance,
        vocabulary=pieces,
    )


def _write_start(found: Conversion, folder: Path, shard_bytes: int) -> None:
    """What a training starts from: weights alone."""
    setting, file = {
        "backbone": ("init_from", BACKBONE),
        "text": ("text_init", TEXT),
        "sam": ("init_from", ""),
        "language": ("language_init", ""),
        "heads": (" and ".join(f"{head}_init" for head in getattr(found.config, "heads", ())), HEADS_FILE),
    }[found.kind]
    with written_whole(folder.absolute()) as temporary:
        if file:
            tensors = {key: value.contiguous() for key, value in found.state.items()}
            save_file(tensors, temporary / file, metadata={"format": "pt"})
        else:
            write_weights(temporary, found.state, shard_bytes=shard_bytes, written=found.file.release, made=found.made)
    found.report.notes.append(f"use it as {setting}={folder / file}")


def _write_plain(
    found: Conversion, folder: Path, config: ModelConfig, vocabulary: Vocabulary | None, shard_bytes: int
) -> Path:
    with torch.device("meta"):
        model = build(config, vocabulary)
    return write_checkpoint(
        folder,
        state=found.state,
        config=config,
        tasks=model.tasks,
        classes={
            task: listed for task in model.tasks if TASKS[task].prompt == "classes" and (listed := fixed_classes(model))
        },
        preprocessing={task: model.preprocess(task) for task in model.tasks},
        provenance=_provenance(found),
        vocabulary=vocabulary,
        shard_bytes=shard_bytes,
        written=found.file.release,
        lora=found.lora,
    )


def _provenance(found: Conversion) -> dict[str, Any]:
    entry = entry_of_file(found.file.path.name)
    digests = {part.path.name: file_sha256(part.path) for part in found.file.parts}
    provenance: dict[str, Any] = {
        "source": {
            "file": found.file.path.name,
            "sha256": digests if found.file.parts else file_sha256(found.file.path),
        },
        "preset": found.preset,
    }
    if entry is not None:
        provenance |= {"zoo": entry.name, "licence": entry.licence, "recipe": entry.recipe}
    training = found.file.meta.get("meta")
    if isinstance(training, dict):
        provenance["training"] = {
            key: training[key] for key in ("iter", "epoch", "experiment_name", "seed", "time") if key in training
        }
    return provenance


def export_official(folder: str | Path, out: str | Path) -> MappingReport:
    """Writes a checkpoint folder (or a converted backbone) as an official file, for the authors' code.

    Args:
        folder: A checkpoint folder.
        out: A ``.pth`` (``{"meta": ..., "state_dict": ...}``) or ``.safetensors`` file to write; of GSVA a ``.bin``
            (names and tensors, nothing around them) or ``.safetensors``.

    Returns:
        Our keys to official ones.

    Raises:
        CheckpointError: No checkpoint, a name that the official model does not have, or low-rank updates that the
            authors' form does not know.
        UsageError: Another ending, a file that exists, or low-rank updates of another model than ViSFT.
    """
    target = Path(out)
    card = read_card(folder)
    endings = (".bin" if isinstance(card.config, GSVAConfig) else ".pth", ".safetensors")
    if target.suffix not in endings:
        raise UsageError(f"the name of the official file must end in {' or '.join(endings)}", where=target)
    if target.exists():
        raise UsageError("will not write over an existing file", where=target, fix="choose another name")
    if card.lora is not None and not isinstance(card.config, ViSFTConfig):
        raise UsageError(
            "the official form of this model has no place for low-rank updates",
            where=card.folder,
            fix=f"add them to the weights first: saccade lora merge {folder} --out MERGED",
        )
    state = read_weights(card.folder)
    if isinstance(card.config, GSVAConfig):
        # As they are: the released files mix types, and exactness depends on it.
        official = gsva.to_official(state)
        write_official(official, target, wrapper=None)
        return MappingReport(source=str(card.folder), matched=dict(zip(state, official, strict=True)))
    if isinstance(card.config, CLIPPairConfig):
        official = to_eva_clip(state, card.config)
        write_official(official, target, wrapper=None)
        return MappingReport(source=str(card.folder), matched={key: key for key in official})
    if isinstance(card.config, ViSFTConfig):
        if card.lora is not None:
            state = with_official_scale(state, card.config, card.lora, source=card.folder)
        official = visft.to_official(state, card.config)
        write_official(official, target, wrapper=None)
        report = MappingReport(source=str(card.folder), matched={key: key for key in official})
        report.notes.append("the position of the class token, which ViSFT never uses, is written as zeros")
        return report
    if isinstance(card.config, ViTDetConfig):
        return _export_detector(state, card.config, card.folder, target)
    if isinstance(card.config, AiTConfig):
        whole = {key: value.float() for key, value in state.items()}
        official = ait.to_official(whole, card.config)
        write_official(official, target, wrapper="state_dict")
        return MappingReport(source=str(card.folder), matched={key: str(ait.official_key(key)) for key in state})
    if isinstance(card.config, MapVQVAEConfig):
        official = ait.vqvae_to_official({key.removeprefix("vqvae."): value.float() for key, value in state.items()})
        write_official(official, target, wrapper="weights")
        return MappingReport(source=str(card.folder), matched=dict(zip(state, official, strict=True)))
    if isinstance(card.config, SegmenterConfig | CentersConfig | PolarConfig):
        official, report = polar_official(state, card.config, card.folder)
        write_official(official, target, wrapper=None)
        return report
    unknown = [key for key in state if git.official_key(key) is None]
    if unknown:
        raise CheckpointError("the official model has no such tensor", where=card.folder / WEIGHTS, why=unknown[0])
    official = git.to_official({key: value.float() for key, value in state.items()})
    report = MappingReport(source=str(card.folder), matched={key: cast(str, git.official_key(key)) for key in state})
    report.notes += [f"written by us: {key}" for key in official if key not in report.matched.values()]
    write_official(official, target, wrapper="state_dict")
    return report


def _export_detector(state: dict[str, Tensor], config: ViTDetConfig, source: Path, target: Path) -> MappingReport:
    """Under the names of the family whose rules the detector has."""
    family: vitdet.Family = "vitae_repo" if config.rpn.norm_eps else "detectron2"
    whole = {key: value.float() if value.is_floating_point() else value for key, value in state.items()}
    official = vitdet.to_official(whole, config, family)
    report = MappingReport(source=str(source), matched={key: key for key in official})
    report.notes.append(f"written in the names of {family}")
    write_official(official, target, wrapper="model" if family == "detectron2" else "state_dict")
    return report


def write_official(official: dict[str, Tensor], target: Path, *, wrapper: str | None = None) -> None:
    """Writes tensors in the form that the name of the file asks for: safetensors, or as ``torch.save`` does.

    Args:
        official: The tensors.
        target: The file; its folder is made.
        wrapper: Key under which they stand in a ``torch.save`` file, beside an empty history; None = the file is they.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.suffix == ".safetensors":
        save_file(_unshared(official), target, metadata={"format": "pt"})
    elif wrapper is None:
        torch.save(official, target)
    else:
        torch.save({"meta": {"experiment_name": "saccade", "iter": 0, "epoch": 0}, wrapper: official}, target)


def _unshared(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same values, none twice in memory: safetensors has no second names for a tensor, as ViSFT's heads have."""
    seen: set[int] = set()
    own = {}
    for key, value in tensors.items():
        place = value.untyped_storage().data_ptr()
        own[key] = value.clone(memory_format=torch.contiguous_format) if place in seen else value.contiguous()
        seen.add(place)
    return own


def _kind(file: TensorFile) -> Kind:
    keys = file.tensors.keys()
    if any(key.startswith("backbone.layers.") for key in keys):
        return "checkpoint" if any(key.startswith("embed.") for key in keys) else "backbone"
    if any(key.startswith("image_encoder.blocks.") for key in keys):
        return "backbone"
    if {"word_embeddings.weight", "position_embeddings.weight"} <= set(keys):
        return "text"
    first = ", ".join(list(keys)[:4])
    raise CheckpointError(
        "no released checkpoint of GiT, ViTDet, ViTAE, AiT, GSVA or ViSFT, no EVA, no SAM, no LLaVA v1.1 and no text "
        "embedding",
        where=file.path,
        why=f"its keys are {first} ...; {vitdet.describe(file.tensors)}",
        fix="see `saccade models list` for the files that can be converted; a training loads a pre-trained backbone "
        "as it is (init_from=FILE)",
    )


def _offer_trained_tasks(found: Conversion, whole: GiTConfig) -> GiTConfig:
    """A released single-task file offers that task alone: its other vocabularies were never trained."""
    entry = entry_of_file(found.file.path.name)
    if entry is None or not entry.tasks:
        return whole
    config = dataclasses.replace(whole)
    for task in GIT_TASKS:
        if task not in entry.tasks:
            setattr(config, task.value, None)
    return config


def _released_classes() -> dict[Task, ClassList]:
    coco = ClassList(names=CLASS_NAMES["coco"], category_ids=COCO_CATEGORY_IDS)
    return {
        Task.DETECTION: coco,
        Task.INSTANCE: coco,
        Task.SEMANTIC: ClassList.from_names(CLASS_NAMES["ade20k"]),
    }
