"""What a training of GSVA starts from: parts from files, a whole model, or fresh weights that look and repeat."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers_gsva import config as tiny
from safetensors.torch import save_file
from torch import Tensor

from saccade.data.loader import SourceEntry, TrainLoader
from saccade.data.phrases import PhraseAugment
from saccade.data.scenes import COLOURS, THING_CLASSES
from saccade.data.sources.scenes import ScenesSource
from saccade.errors import CheckpointError, ConfigError, MissingDataError
from saccade.hub.checkpoint import save_model
from saccade.hub.convert import convert_file
from saccade.hub.resolve import ASSETS
from saccade.models.gsva.convert import to_official
from saccade.models.gsva.model import GSVA
from saccade.models.gsva.presets import NANO_PIECES, nano
from saccade.models.systems import extra_of
from saccade.recipes import get_recipe
from saccade.tasks import Task
from saccade.tokens.pieces import PieceVocabulary
from saccade.training.config import TrainConfig
from saccade.training.start import build_model, start_of
from saccade.training.trainer import Trainer

ROWS = NANO_PIECES + 4


def run(**changes: Any) -> TrainConfig:
    small = tiny()
    language = dataclasses.replace(small.language, vocab_size=ROWS)
    sizes = dataclasses.replace(small, language=language, seg_id=NANO_PIECES, rej_id=NANO_PIECES + 1)
    settings: dict[str, Any] = {"name": "x", "model": sizes, "train": (), "steps": 0, **changes}
    return TrainConfig(**settings)


def files_of(model: GSVA, folder: Path) -> dict[str, Tensor]:
    """LLaVA (without the rows of our tokens), CLIP and SAM as their authors store them; returns LLaVA's tensors."""
    names = {key.removeprefix("base_model.model."): value for key, value in to_official(model.state_dict()).items()}
    eyes = {"model.visual_model.": "sam", "model.vision_tower.vision_tower.": "clip"}
    for prefix, name in eyes.items():
        part = {key.removeprefix(prefix): value for key, value in names.items() if key.startswith(prefix)}
        save_file(part, folder / f"{name}.safetensors")
    llava = {
        key: value[: ROWS - 4] if key.endswith(("embed_tokens.weight", "lm_head.weight")) else value
        for key, value in names.items()
        if not key.startswith((*eyes, "model.text_hidden_fcs")) and ".lora_" not in key
    }
    llava = {key: value.clone() for key, value in llava.items()}
    save_file(llava, folder / "llava.safetensors")
    return llava


def other_model() -> GSVA:
    torch.manual_seed(5)
    model = GSVA(run().model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    return model


@pytest.mark.parametrize("delta", [False, True])
def test_a_training_starts_from_released_parts(tmp_path: Path, delta: bool) -> None:
    source = other_model()
    llava = files_of(source, tmp_path)
    starts = {"language_init": str(tmp_path / "llava.safetensors")}
    if delta:
        llama = {key: torch.randn_like(value) for key, value in llava.items() if "mm_projector" not in key}
        llama["model.norm.weight"] = llava["model.norm.weight"] - 0.01
        save_file(llama, tmp_path / "llama.safetensors")
        save_file({k: v - llama[k] if k in llama else v for k, v in llava.items()}, tmp_path / "delta.safetensors")
        starts = {
            "language_init": str(tmp_path / "delta.safetensors"),
            "language_base": str(tmp_path / "llama.safetensors"),
        }
    starts |= {"clip_init": str(tmp_path / "clip.safetensors"), "init_from": str(tmp_path / "sam.safetensors")}
    torch.manual_seed(1)
    model, (report,) = build_model(run(**starts))
    torch.manual_seed(1)
    fresh, _ = build_model(run())
    given, found, untouched = source.state_dict(), model.state_dict(), fresh.state_dict()
    for key, value in found.items():
        if key.startswith("bridge.") or ".lora_" in key:
            assert torch.equal(value, untouched[key]), key
        elif key.endswith(("embed_tokens.weight", "lm_head.weight")):
            torch.testing.assert_close(value[: ROWS - 4], given[key][: ROWS - 4], rtol=0, atol=1e-5)
            assert 0.005 < float(value[ROWS - 4 :].std()) < 0.05  # N(0, 0.02)
        else:
            torch.testing.assert_close(value, given[key], rtol=0, atol=1e-5, msg=key)
    assert "llava" in report.source or "delta" in report.source


def test_a_training_starts_from_converted_parts(tmp_path: Path) -> None:
    llava = files_of(other_model(), tmp_path)
    llama = {key: torch.randn_like(value) for key, value in llava.items() if "mm_projector" not in key}
    llama["model.norm.weight"] = llava["model.norm.weight"] - 0.01
    save_file(llama, tmp_path / "llama.safetensors")
    save_file({k: v - llama[k] if k in llama else v for k, v in llava.items()}, tmp_path / "delta.safetensors")
    released = {
        "language_init": str(tmp_path / "delta.safetensors"),
        "language_base": str(tmp_path / "llama.safetensors"),
        "init_from": str(tmp_path / "sam.safetensors"),
    }
    convert_file(released["language_init"], base=released["language_base"], out=tmp_path / "llava", shard_bytes=50_000)
    convert_file(released["init_from"], part="sam", out=tmp_path / "sam", shard_bytes=50_000)
    torch.manual_seed(1)
    wanted, _ = build_model(run(**released))
    torch.manual_seed(1)
    found, (report,) = build_model(run(language_init=str(tmp_path / "llava"), init_from=str(tmp_path / "sam")))
    assert not report.unexpected and all(".lora_" in key for key in report.missing)
    assert all(torch.equal(value, wanted.state_dict()[key]) for key, value in found.state_dict().items())


def test_one_part_alone_and_a_file_of_another_kind(tmp_path: Path) -> None:
    source = other_model()
    files_of(source, tmp_path)
    model, _ = build_model(run(init_from=str(tmp_path / "sam.safetensors")))
    assert torch.equal(model.sam.mask_decoder.mask_tokens.weight, source.sam.mask_decoder.mask_tokens.weight)
    assert not torch.equal(model.projector.weight, source.projector.weight)
    with pytest.raises(CheckpointError):
        build_model(run(clip_init=str(tmp_path / "sam.safetensors")))


def test_checkpoints_tell_every_part_that_a_run_started_from() -> None:
    assert start_of(run()) == "fresh weights"
    assert start_of(run(language_init="delta", language_base="llama", clip_init="clip")) == "delta, llama, clip"
    assert start_of(run(weights="gsva-7b-pt")) == "gsva-7b-pt"


def test_fine_tuning_starts_from_a_whole_model(tmp_path: Path) -> None:
    source = other_model()
    source.vocabulary = PieceVocabulary(ASSETS / "gsva-nano")
    folder = save_model(source, tmp_path / "whole", classes={}, provenance={})
    model, _ = build_model(run(weights=str(folder)))
    assert isinstance(model, GSVA) and model.vocabulary is not None
    assert all(torch.equal(value, source.state_dict()[key]) for key, value in model.state_dict().items())
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {name for name, parameter in source.named_parameters() if parameter.requires_grad}
    small = run(weights=str(folder))
    small.model.language.layers = 1
    with pytest.raises(ConfigError, match="not the one that weights names"):
        build_model(small)


# ---------------------------------------------------------------------- gsva-nano


def test_every_word_of_a_phrase_is_one_piece() -> None:
    vocabulary = PieceVocabulary(ASSETS / "gsva-nano")
    assert len(vocabulary) == ROWS and vocabulary.seg_id == NANO_PIECES
    for phrase in (*COLOURS, *THING_CLASSES, "the leftmost red object in front of the cyan star", "all small boxes"):
        assert len(vocabulary.encode(phrase)) == 1 + len(phrase.split()), phrase
        assert vocabulary.decode(vocabulary.encode(phrase)) == phrase
    strange = "Ünder 你好\t🙂"
    assert vocabulary.decode(vocabulary.encode(strange)) == strange


@pytest.mark.parametrize(("initialise", "least", "most"), [("local", 0.4, 1.0), ("plain", 0.0, 0.1)])
def test_fresh_weights_repeat_the_question(initialise: Any, least: float, most: float) -> None:
    """Behind a word that stands in the question, the likeliest is the word that follows it there."""
    torch.manual_seed(0)
    model, _ = build_model(TrainConfig(name="x", model=nano(64), train=(), steps=0, initialise=initialise))
    assert isinstance(model, GSVA)
    source = ScenesSource(task=Task.REFERRING, size=64)
    entry = SourceEntry(
        source=source,
        preprocess=model.preprocess(Task.REFERRING),
        augment=PhraseAugment(count=2),
        batch_size=8,
        extra=extra_of(model),
    )
    batch = next(iter(TrainLoader([entry], seed=0)))
    with torch.no_grad():
        reading = model.eval().read(batch, model.encode(batch.images, batch.images_clip))
        said = model.language.lm_head(reading.states_NTC).argmax(-1)
    ids, labels = reading.sequence.ids_NT, reading.sequence.labels_NT
    hits = []
    for row, wanted in enumerate(labels.tolist()):
        pieces = ids[row].tolist()
        answer = [place for place, label in enumerate(wanted) if label >= 0]
        question = list(itertools.pairwise(pieces[: answer[0]]))
        for place in answer:
            before, word = pieces[place - 1], pieces[place]
            # Where only one word ever followed, there is no doubt.
            if model.vocabulary.decode([word]).isalpha() and {b for a, b in question if a == before} == {word}:
                hits.append(int(said[row, place - 1]) == int(ids[row, place]))
    assert len(hits) > 20
    assert least <= sum(hits) / len(hits) <= most


def test_nano_learns_in_a_few_steps(tmp_path: Path) -> None:
    """Loss falls by a third in 30 steps of two small pictures: the wiring is whole, from scenes to every part."""
    recipe = get_recipe("gsva.nano_scenes")(steps=30, size=64, images=2)
    run_ = dataclasses.replace(
        recipe, val=(), monitor="", out=str(tmp_path), workers=0, threads=1, log_every=5, device="cpu"
    )
    result = Trainer(run_).fit()
    lines = [line.split(",") for line in (result.folder / "log.csv").read_text().splitlines()]
    column = lines[0].index("loss")
    losses = [float(line[column]) for line in lines[1:]]
    assert losses[-1] < losses[0] * 2 / 3


def test_a_missing_set_is_named_and_left_out(tmp_path: Path) -> None:
    recipe = get_recipe("gsva.nano_scenes")(steps=1, size=64, images=1)
    absent = dataclasses.replace(recipe.train[0], reader="grefcoco", root=str(tmp_path), weight=5.0)
    run_ = dataclasses.replace(
        recipe,
        train=(absent, *recipe.train),
        val=(),
        mixture="mixed",
        monitor="",
        out=str(tmp_path / "runs"),
        workers=0,
        threads=1,
        device="cpu",
    )
    with pytest.raises(Exception, match="references"):
        Trainer(run_).fit()
    unseen = dataclasses.replace(absent, split="val")
    scenes = dataclasses.replace(recipe.val[0], limit=1)
    rest = dataclasses.replace(run_, missing="leave_out", name="rest", val=(unseen, scenes))
    result = Trainer(rest).fit()
    told = (result.folder / "metrics.jsonl").read_text()
    assert result.step == 1
    assert "grefcoco is left out of train" in told and "grefcoco is left out of val" in told
    assert {name.split("/")[0] for name in result.metrics} == {"referring_segmentation[scenes:val]"}
    blind = Trainer(dataclasses.replace(rest, name="blind", val=(unseen,))).fit()
    assert blind.step == 1 and not blind.metrics
    assert "no data set of val is there: nothing is evaluated" in (blind.folder / "metrics.jsonl").read_text()
    watched = dataclasses.replace(rest, name="watched", monitor="referring_segmentation[grefcoco:val]/gIoU")
    with pytest.raises(MissingDataError, match="decides the best checkpoint is missing"):
        Trainer(watched).fit()
    with pytest.raises(MissingDataError, match="nothing else is to be done"):
        Trainer(dataclasses.replace(rest, name="judge", train=(), steps=0, val=(unseen,))).fit()
    with pytest.raises(MissingDataError, match="no data set of train is there"):
        Trainer(dataclasses.replace(rest, name="none", train=(absent,))).fit()
