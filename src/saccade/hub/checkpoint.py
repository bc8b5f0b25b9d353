"""A checkpoint is a folder that describes itself; here it is written and read.

::

    model.safetensors   the weights (several files with an index, where they are large)
    config.json         system, model config, tasks, classes, preprocessing, provenance, and a digest of the weights
    vocab.txt           the vocabulary, of systems that read or write text (``tokenizer.model`` of GSVA,
                        ``wordmap.json`` of ViSFT's caption head, ``merges.txt`` of CLIP)
    README.md, LICENSE  optional

Writing is atomic: the folder appears whole or not at all. Reading checks every key and the digest of the weights.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from torch import Tensor

import saccade
from saccade.configs import from_dict, to_dict
from saccade.errors import CheckpointError, ConfigError, DataError, UsageError, nearest
from saccade.hub.shards import SHARD_BYTES, check_weights, fill, no_weights, write_weights
from saccade.layers.lora import LoRAConfig, add_lora, lora_of, without_multiplier
from saccade.models.gsva.config import GSVAConfig
from saccade.models.systems import (
    CONFIGS,
    Model,
    ModelConfig,
    Vocabulary,
    build,
    reader_of,
    reading_config,
    system_of,
)
from saccade.models.visft.clip import CLIPPairConfig
from saccade.models.visft.config import ViSFTConfig
from saccade.samples import ClassList, Preprocess
from saccade.tasks import Task
from saccade.tokens.clip_pieces import FILE as MERGES
from saccade.tokens.clip_pieces import CLIPPieces
from saccade.tokens.pieces import FILE as PIECES
from saccade.tokens.pieces import PieceVocabulary
from saccade.tokens.vocabulary import TextVocabulary
from saccade.tokens.words import FILE as WORDS
from saccade.tokens.words import WordMap

FORMAT = "saccade-checkpoint"
FORMAT_VERSION = 1
CONFIG, VOCABULARY = "config.json", "vocab.txt"


@dataclass(kw_only=True)
class CheckpointCard:
    """What ``config.json`` of a checkpoint says.

    Attributes:
        folder: The checkpoint.
        system: Name of the system (:data:`saccade.models.systems.CONFIGS`).
        config: The model's configuration.
        tasks: What the model offers.
        classes: Class names and category ids that each task was trained for.
        preprocessing: Network input of each task.
        provenance: Where the weights come from: versions, date, recipe, step, metrics, source file and its digest.
        weights: Size and SHA-256 of every weight file, number of tensors, and their types.
        lora: Low-rank updates that the weights are stored beside; None = there are none.
    """

    folder: Path
    system: str
    config: ModelConfig
    tasks: tuple[Task, ...]
    classes: dict[Task, ClassList]
    preprocessing: dict[Task, Preprocess]
    provenance: dict[str, Any] = field(default_factory=dict)
    weights: dict[str, Any] = field(default_factory=dict)
    lora: LoRAConfig | None = None


@dataclass(kw_only=True)
class LoadedModel:
    """A model with its weights, ready to predict.

    Attributes:
        model: In evaluation mode.
        classes: Class names and category ids per task.
        card: What the checkpoint says of itself.
    """

    model: Model
    classes: dict[Task, ClassList]
    card: CheckpointCard


def save_model(
    model: Model,
    folder: str | Path,
    *,
    classes: Mapping[Task, ClassList],
    provenance: Mapping[str, Any],
    state: Mapping[str, Tensor] | None = None,
    dtype: torch.dtype | None = None,
    texts: Mapping[str, str] | None = None,
) -> Path:
    """Writes a checkpoint folder; an earlier checkpoint of that name is replaced in one step.

    Args:
        model: The model; its configuration, vocabulary and preprocessing are stored with the weights.
        folder: Where to.
        classes: Class lists of the tasks that are prompted by classes.
        provenance: Plain data about the origin; saccade's and torch's versions and the date are added.
        state: Its weights, where they are not those that it holds (averaged, or gathered from several processes).
        dtype: Type that floating-point weights are stored in (None = as they are).
        texts: Further files, e.g. ``{"README.md": ..., "LICENSE": ...}``.

    Returns:
        The folder.

    Raises:
        CheckpointError: The folder cannot be written.
        UsageError: The folder exists and is no checkpoint, or classes are given for a task the model does not offer.
    """
    foreign = [task for task in classes if task not in model.tasks]
    if foreign:
        raise UsageError(f"classes for the task '{foreign[0]}', which the model does not offer", where=folder)
    return write_checkpoint(
        folder,
        state=model.state_dict() if state is None else state,
        config=model.config,
        tasks=model.tasks,
        classes=classes,
        preprocessing={task: model.preprocess(task) for task in model.tasks},
        provenance=provenance,
        # Of a pair of towers, any that builds one (`systems.build`).
        vocabulary=None if (reader := reader_of(model)) is None else cast("Vocabulary", reader.vocabulary),
        dtype=dtype,
        texts=texts,
        lora=lora_of(model),
    )


def write_checkpoint(
    folder: str | Path,
    *,
    state: Mapping[str, Tensor],
    config: ModelConfig,
    tasks: tuple[Task, ...],
    classes: Mapping[Task, ClassList],
    preprocessing: Mapping[Task, Preprocess],
    provenance: Mapping[str, Any],
    vocabulary: Vocabulary | None,
    dtype: torch.dtype | None = None,
    texts: Mapping[str, str] | None = None,
    shard_bytes: int = SHARD_BYTES,
    written: Callable[[], None] = lambda: None,
    lora: LoRAConfig | None = None,
) -> Path:
    """Like :func:`save_model`, from the parts (a converter has no model at hand).

    Args:
        folder: Where to.
        state: Name to tensor.
        config: The model's configuration.
        tasks: What the model offers.
        classes: Class lists per task.
        preprocessing: Network input per task.
        provenance: Plain data about the origin.
        vocabulary: The text vocabulary; None leaves it out, and the folder cannot predict until it is put there.
        dtype: Type that floating-point weights are stored in (None = as they are).
        texts: Further files.
        shard_bytes: Weights of more bytes than this are written as several files.
        written: Called behind every weight file.
        lora: Low-rank updates that are among the weights.

    Raises:
        CheckpointError: The folder cannot be written.
        UsageError: The folder exists and is no checkpoint.
    """
    target = Path(folder).absolute()
    if target.exists() and not (target / CONFIG).is_file() and (not target.is_dir() or any(target.iterdir())):
        raise UsageError(
            "will not replace what is no checkpoint",
            where=target,
            fix="choose a new or empty folder for the checkpoint",
        )
    with written_whole(target) as temporary:
        weights = write_weights(temporary, state, dtype=dtype, shard_bytes=shard_bytes, written=written)
        card = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "system": system_of(config),
            "tasks": [str(task) for task in tasks],
            "classes": {
                str(task): {"names": list(listed.names), "category_ids": list(listed.category_ids)}
                for task, listed in classes.items()
            },
            "preprocessing": {str(task): to_dict(declared) for task, declared in preprocessing.items()},
            "provenance": {
                "saccade": saccade.__version__,
                "torch": torch.__version__,
                "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
                **provenance,
            },
            "weights": weights,
            "model": to_dict(config),
        }
        if lora is not None:
            card["lora"] = to_dict(lora)
        (temporary / CONFIG).write_text(json.dumps(card, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        if vocabulary is not None:
            vocabulary.save(temporary)
        for name, text in (texts or {}).items():
            (temporary / name).write_text(text, encoding="utf-8")
    return target


@contextmanager
def written_whole(target: Path) -> Iterator[Path]:
    """A folder to write into, which takes the place of another in one step once everything is written.

    Args:
        target: The place (absolute); what stands there is replaced.

    Raises:
        CheckpointError: It cannot be written; what stood there stays.
    """
    temporary = target.with_name(f".{target.name}.writing-{os.getpid()}")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        yield temporary
        for file in temporary.iterdir():
            _sync(file)
        _sync(temporary)
        _replace(temporary, target)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            "the checkpoint cannot be written", where=target, why=str(error), fix="check the free space and the rights"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def read_card(folder: str | Path) -> CheckpointCard:
    """What a checkpoint folder says of itself, without its weights.

    Raises:
        CheckpointError: No checkpoint, a damaged ``config.json``, or one of a newer format.
    """
    path = _standing(Path(folder).absolute())
    file = path / CONFIG
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise _no_checkpoint(path) from error
    except (OSError, ValueError) as error:
        raise CheckpointError(
            "config.json of the checkpoint cannot be read", where=file, why=str(error), fix="copy the checkpoint again"
        ) from error
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise CheckpointError("not a checkpoint of Saccade", where=file, why=f"'format' is not '{FORMAT}'")
    if data.get("format_version") != FORMAT_VERSION:
        raise CheckpointError(
            f"the checkpoint has format version {data.get('format_version')}",
            where=file,
            why=f"this version of Saccade reads version {FORMAT_VERSION}",
            fix="upgrade saccade",
        )
    if data.get("system") not in CONFIGS:
        raise CheckpointError(
            f"the checkpoint is of the unknown system '{data.get('system')}'",
            where=file,
            fix=nearest(str(data.get("system")), CONFIGS),
        )
    try:
        return CheckpointCard(
            folder=path,
            system=str(data["system"]),
            config=from_dict(CONFIGS[data["system"]], data["model"], where="model"),
            tasks=tuple(Task(name) for name in data["tasks"]),
            classes={
                Task(name): ClassList(names=tuple(listed["names"]), category_ids=tuple(listed["category_ids"]))
                for name, listed in data["classes"].items()
            },
            preprocessing={
                Task(name): from_dict(Preprocess, declared, where=f"preprocessing.{name}")
                for name, declared in data["preprocessing"].items()
            },
            provenance=dict(data.get("provenance", {})),
            weights=dict(data.get("weights", {})),
            lora=from_dict(LoRAConfig, without_multiplier(data["lora"]), where="lora") if "lora" in data else None,
        )
    except KeyError as error:
        raise CheckpointError("config.json of the checkpoint lacks a key", where=file, why=f"no {error}") from error
    except (ConfigError, DataError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(
            "config.json of the checkpoint contradicts itself or this version of Saccade",
            where=file,
            why=str(error),
            fix="use the version of saccade that wrote it, or correct the file",
        ) from error


def is_checkpoint(folder: Path) -> bool:
    """Whether a folder is a checkpoint of ours; folders of released weights have a ``config.json`` of their own."""
    try:
        told = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(told, dict) and told.get("format") == FORMAT


def load_folder(
    folder: str | Path, *, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
) -> LoadedModel:
    """Builds the model of a checkpoint folder and loads every weight.

    Args:
        folder: The checkpoint.
        device: Where the model goes.
        dtype: Type that the weights are converted to, whatever they are stored in.

    Raises:
        CheckpointError: A file is missing or damaged, a key is missing or left over, or the folder contradicts itself.
    """
    card = read_card(folder)
    try:
        with no_weights():
            model = build(card.config, _vocabulary(card))
            if card.lora is not None:
                add_lora(model, card.lora)
    except UsageError as error:
        raise CheckpointError("the checkpoint contradicts itself", where=card.folder, why=str(error)) from error
    _check_declarations(card, model)
    check_weights(card.folder, card.weights)
    fill(model, card.folder, device=device, dtype=dtype)
    model = model.to(device=device, dtype=dtype).eval()  # what is computed and not stored
    return LoadedModel(model=model, classes=card.classes, card=card)


def _vocabulary(card: CheckpointCard) -> Vocabulary | None:
    reading = reading_config(card.config)
    if isinstance(reading, GSVAConfig):
        # Converted weights have none until it is put there; only who asks in words needs it.
        pieces = card.folder / PIECES
        return PieceVocabulary(pieces, reading.language.vocab_size) if pieces.is_file() else None
    if isinstance(reading, ViSFTConfig):
        words = card.folder / WORDS
        return WordMap.load(words) if words.is_file() else None
    if isinstance(reading, CLIPPairConfig):
        merges = card.folder / MERGES
        if merges.is_file():
            return CLIPPieces(merges)
        pieces = card.folder / VOCABULARY
        return TextVocabulary(pieces) if pieces.is_file() else None
    if reading is None:
        return None
    vocabulary = card.folder / VOCABULARY
    if not vocabulary.is_file():
        raise CheckpointError(
            "the checkpoint has no vocabulary",
            where=vocabulary,
            why="it was converted without one",
            fix="copy the vocab.txt of bert-base-uncased into the folder (its SHA-256 starts with 07eced375cec144d)",
        )
    return TextVocabulary(vocabulary)


def _check_declarations(card: CheckpointCard, model: Model) -> None:
    """The model that this version builds must be the one that was trained: same tasks, same network input."""
    if set(card.tasks) != set(model.tasks):
        raise CheckpointError(
            "config.json lists other tasks than its model config offers",
            where=card.folder / CONFIG,
            why=f"tasks: {', '.join(card.tasks)}; model: {', '.join(model.tasks)}",
        )
    strange = [task for task in (*card.classes, *card.preprocessing) if task not in card.tasks]
    if strange:
        raise CheckpointError(f"classes or preprocessing of '{strange[0]}', no task of the model", where=card.folder)
    for task, stored in card.preprocessing.items():
        declared = model.preprocess(task)
        if stored != declared:
            changed = [
                f"{f.name} {getattr(stored, f.name)} != {getattr(declared, f.name)}"
                for f in dataclasses.fields(Preprocess)
                if getattr(stored, f.name) != getattr(declared, f.name)
            ]
            raise CheckpointError(
                f"the checkpoint was trained with another preprocessing of '{task}'",
                where=card.folder / CONFIG,
                why=f"stored versus this version: {'; '.join(changed)}",
                fix="use the version of saccade that wrote it",
            )


def _no_checkpoint(path: Path) -> CheckpointError:
    if path.is_file():
        return CheckpointError(
            "a file, not a checkpoint folder", where=path, fix=f"convert it first: saccade convert {path} --out FOLDER"
        )
    if not path.exists():
        return CheckpointError("there is no such checkpoint", where=path, fix="check the path")
    inside = sorted(str(file.parent) for file in path.glob(f"*/**/{CONFIG}"))[:5]
    return CheckpointError(
        "the folder is no checkpoint",
        where=path,
        why=f"it has no {CONFIG}",
        fix=f"did you mean one of its folders: {', '.join(inside)}?" if inside else "choose a checkpoint folder",
    )


def _previous(target: Path) -> Path:
    return target.with_name(f".{target.name}.previous")


def _replace(temporary: Path, target: Path) -> None:
    """Puts the new folder in the place of the old one.

    A folder cannot be renamed over another, so that there are two renames; :func:`_standing` finds the old one if the
    process dies between them.
    """
    previous = _previous(target)
    if target.exists():
        shutil.rmtree(previous, ignore_errors=True)
        target.rename(previous)
    temporary.rename(target)
    _sync(target.parent)
    shutil.rmtree(previous, ignore_errors=True)


def _standing(target: Path) -> Path:
    previous = _previous(target)
    return previous if not target.exists() and (previous / CONFIG).is_file() else target


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
