"""Released files of GSVA: which sizes they have, and the way of their parts into a model that is to be trained."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from saccade.errors import CheckpointError, UsageError, nearest
from saccade.hub.unpickle import TensorFile
from saccade.hub.weight_sets import read_weight_set
from saccade.hub.zoo import entry_of_file
from saccade.layers.sam import SAM
from saccade.mapping import MappingReport
from saccade.models.gsva import convert as gsva
from saccade.models.gsva.config import GSVAConfig
from saccade.models.gsva.language import build_language
from saccade.models.gsva.model import GSVA
from saccade.models.gsva.presets import PRESETS


def map_gsva(file: TensorFile, preset: str | None) -> tuple[str, GSVAConfig, dict[str, Tensor], MappingReport]:
    """Maps a released GSVA; nothing of its tensors is read but their shapes.

    Args:
        file: The file.
        preset: Where what shapes do not tell comes from; None = the file's name and its width.

    Returns:
        The preset (or ``custom``), the configuration, our names to tensors, and the report of every key.

    Raises:
        CheckpointError: The shapes contradict one another.
        UsageError: Unknown preset.
    """
    if preset is not None and preset not in PRESETS:
        raise UsageError(f"unknown preset '{preset}'", fix=nearest(preset, PRESETS))
    shapes = {key: tuple(value.shape) for key, value in file.tensors.items()}
    entry = entry_of_file(file.path.name)
    known = preset or (entry.preset if entry is not None and entry.preset in PRESETS else None)
    name = known or _preset_of(shapes)
    try:
        config = gsva.sizes_of(shapes, PRESETS[name or "gsva-7b"]())
    except CheckpointError as error:
        raise CheckpointError(error.what, where=file.path, why=error.why, fix=error.fix) from error
    with torch.device("meta"):
        expected = {key: tuple(value.shape) for key, value in GSVA(config).state_dict().items()}
    state, report = gsva.from_official(file.tensors, expected, source=str(file.path))
    report.dropped |= {key: reason for key, reason in file.skipped.items() if key not in report.dropped}
    report.notes.append(
        f"vocabulary of {config.language.vocab_size} rows, [SEG] is {config.seg_id}; low-rank updates of rank "
        f"{config.lora.rank}"
    )
    if known is None and name == "gsva-13b":
        report.notes.append(
            "taken for the model on Vicuna; that on Llama-2 has the same shapes: --preset gsva-llama2-13b"
        )
    if name == "gsva-llama2-13b":
        report.notes.append(
            "prompts in the form llava_llama_2; which one its authors used is not known, and the default of their "
            "program is the other: --preset gsva-llama2-13b-v1"
        )
    return name or "custom", config, state, report


def map_sam(file: TensorFile) -> tuple[GSVAConfig, dict[str, Tensor], MappingReport]:
    """Maps a whole SAM, in its own names or in those of ``transformers``, to what ``init_from`` of GSVA reads.

    Returns:
        A configuration with this SAM, our names to tensors, and the report of every key.

    Raises:
        CheckpointError: The shapes do not tell its sizes.
    """
    try:
        sizes = gsva.sam_sizes({key: tuple(value.shape) for key, value in file.tensors.items()})
    except (KeyError, ValueError, IndexError) as error:
        raise CheckpointError(
            "the shapes of the file do not tell its sizes",
            where=file.path,
            why=str(error),
            fix="it is damaged, or no whole SAM",
        ) from error
    with torch.device("meta"):
        expected = {f"sam.{key}": tuple(value.shape) for key, value in SAM(sizes).state_dict().items()}
    state, report = gsva.from_sam(file.tensors, expected, source=str(file.path))
    return dataclasses.replace(PRESETS["gsva-7b"](), sam=sizes), state, report


def map_language(part: Part) -> tuple[GSVAConfig, dict[str, str], MappingReport]:
    """Maps a LLaVA to what ``language_init`` reads, with its own words alone.

    Returns:
        The configuration of a model that starts from it, our names to its own, and the report of every key.

    Raises:
        CheckpointError: The shapes do not tell its sizes.
    """
    config = gsva.llava_sizes({key: tuple(value.shape) for key, value in part.forms.items()}, PRESETS["gsva-7b"]())
    rows = config.seg_id
    with torch.device("meta"):
        parts = {"language": build_language(config), "projector": nn.Linear(config.clip.width, config.language.width)}
    shapes = {
        f"{name}.{key}": tuple(value.shape) for name, made in parts.items() for key, value in made.state_dict().items()
    }
    expected = {key: (rows, *shape[1:]) if key.endswith(gsva.WORD_TABLES) else shape for key, shape in shapes.items()}
    _, report = gsva.from_llava(part.forms, expected, seg_id=rows, source=str(part.file.path))
    report.notes.append(f"a language model of {rows} words; of a model that starts from it [SEG] is the word {rows}")
    return config, {ours: name for name, ours in report.matched.items()}, report


def load_parts(
    model: GSVA,
    *,
    llava: str | Path | None = None,
    llama: str | Path | None = None,
    clip: str | Path | None = None,
    sam: str | Path | None = None,
) -> MappingReport:
    """Copies what GSVA starts from into a model: the one report of all parts that were given.

    Every file is checked by names and shapes first; then tensor after tensor goes into the model, and nothing else of
    it is in memory.

    Args:
        model: Its parts are overwritten.
        llava: A LLaVA with a linear projector: a file, or a folder of files that hold parts of it.
        llama: The LLaMA that ``llava`` is the difference from, where it was released so, likewise.
        clip: A CLIP as ``transformers`` names it, likewise.
        sam: A SAM, in its own names or in those of ``transformers``, likewise.

    Raises:
        CheckpointError: A file is damaged, or does not fill its part.
    """
    own = model.state_dict()
    expected = {key: tuple(value.shape) for key, value in own.items()}
    speaking = functools.partial(gsva.from_llava, seg_id=model.config.seg_id)
    whole: MappingReport | None = None
    for path, mapper in ((llava, speaking), (clip, gsva.from_clip), (sam, gsva.from_sam)):
        if path is None:
            continue
        file = read_weight_set(path)
        part = language_part(file, base=llama) if mapper is speaking else part_of(file)
        _, report = mapper(part.forms, expected, source=str(path))
        report.check(allow=["*.lora_?.*"])
        with torch.no_grad():
            for name in report.matched:
                _fill(own, mapper({name: part.read(name)}, expected)[0])
                file.release()
        whole = report if whole is None else whole.joined(report)
    return whole or MappingReport()


def _fill(own: Mapping[str, Tensor], mapped: Mapping[str, Tensor]) -> None:
    # A function, so that no tensor outlives its turn by the name of a variable.
    for key, value in mapped.items():
        own[key].copy_(value)


@dataclass
class Part:
    """A part of GSVA, whose tensors are read one by one.

    Attributes:
        file: What it is read from; it gives the memory of what was read back.
        forms: Name to a tensor without memory.
        read: Name to the tensor.
    """

    file: TensorFile
    forms: dict[str, Tensor]
    read: Callable[[str], Tensor]


def part_of(file: TensorFile) -> Part:
    """A part as it stands in its file."""
    forms = {key: torch.empty_like(value, device="meta") for key, value in file.tensors.items()}
    return Part(file, forms, file.tensors.__getitem__)


def language_part(file: TensorFile, *, base: str | Path | None = None) -> Part:
    """A LLaVA, with its base added where it was released as the difference from a LLaMA.

    Args:
        file: The LLaVA.
        base: The LLaMA: a file, or several (:func:`saccade.hub.weight_sets.read_weight_set`).

    Raises:
        CheckpointError: A file of the base is missing or damaged, a difference has no base or not its own, or a whole
            model has one.
    """
    part = part_of(file)
    difference = gsva.is_difference(file.tensors)
    if base is None:
        if difference:
            raise CheckpointError(
                "a language model that is the difference from another",
                where=file.path,
                why="the weights of its last norm are near 0",
                fix="give the LLaMA that it was made from, too (llama=, language_base=; saccade convert --base)",
            )
        return part
    if not difference and any(name.endswith(gsva.LAST_NORM) for name in file.tensors):
        raise CheckpointError(
            "a whole language model, to which another one is to be added",
            where=file.path,
            why="the weights of its last norm are not near 0, as those of a difference are",
            fix="leave the base away",
        )
    under = read_weight_set(base)
    if gsva.is_difference(under.tensors):
        raise CheckpointError(
            "the base is the difference from another model itself",
            where=under.path,
            why="the weights of its last norm are near 0",
            fix="give the LLaMA that the difference was made from",
        )
    gsva.check_base(part.forms, under.tensors, source=str(under.path))

    def read(name: str) -> Tensor:
        whole = file.tensors[name].clone()
        file.release()  # before the base is looked at
        if name in under.tensors:
            gsva.add_base(name, whole, under.tensors[name])
            under.release()
        return whole

    return Part(file, part.forms, read)


def _preset_of(shapes: dict[str, tuple[int, ...]]) -> str | None:
    """The first preset of the same width as the file's language model."""
    width = next((shape[1] for key, shape in shapes.items() if key.endswith("model.embed_tokens.weight")), 0)
    return next((name for name, make in PRESETS.items() if make().language.width == width), None)
