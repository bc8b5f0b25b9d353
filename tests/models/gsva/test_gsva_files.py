"""Files of GSVA: folders there and back, shards, and how much memory they take."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import torch
from helpers_gsva import REJ, SEG, batch, config, model
from safetensors.torch import save_file

from saccade.configs import to_dict
from saccade.errors import CheckpointError, ConfigError, UsageError
from saccade.hub.checkpoint import CONFIG, load_folder, read_card, save_model
from saccade.hub.convert import convert_file, export_official
from saccade.hub.shards import INDEX, WEIGHTS, weight_files
from saccade.hub.unpickle import read_tensor_file
from saccade.models.gsva.config import GSVAConfig
from saccade.models.gsva.convert import to_official
from saccade.models.gsva.model import GSVA
from saccade.models.systems import build
from saccade.tokens.pieces import FILE, PieceVocabulary


@pytest.fixture(scope="module")
def pieces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SentencePiece model of 36 pieces."""
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["the quick brown fox jumps over the lazy dog"] * 20),
        model_writer=written,
        vocab_size=36,
        model_type="bpe",
        minloglevel=3,
    )
    path = tmp_path_factory.mktemp("pieces") / FILE
    path.write_bytes(written.getvalue())
    return path


def large(rank: int = 3) -> GSVAConfig:
    """A model with Llama's vocabulary, in which shapes tell the tokens; decoder heads as in every SAM."""
    sam = config().sam
    decoder = dataclasses.replace(sam.decoder, heads=8)
    return config(
        language=dataclasses.replace(config().language, vocab_size=32004, width=16, heads=1),
        lora=dataclasses.replace(config().lora, rank=rank),
        sam=dataclasses.replace(sam, decoder=decoder),
        seg_id=32000,
        rej_id=32001,
    )


def same_answers(one: GSVA, other: GSVA) -> bool:
    data = batch({0: [(13, SEG, REJ, SEG)]})
    [a], [b] = one.answer(data), other.answer(data)
    return torch.equal(a.logits_MHW, b.logits_MHW) and torch.equal(a.ids_T, b.ids_T)


# ---------------------------------------------------------------------- folders


@pytest.mark.parametrize("rank", [0, 3])
def test_saved_and_loaded_it_is_the_same(rank: int, pieces: Path, tmp_path: Path) -> None:
    net = model(lora=dataclasses.replace(config().lora, rank=rank))
    net.vocabulary = PieceVocabulary(pieces, 40)
    folder = save_model(net, tmp_path / "last", classes={}, provenance={})
    loaded = load_folder(folder).model
    assert isinstance(loaded, GSVA) and loaded.vocabulary is not None and loaded.vocabulary.seg_id == SEG
    assert (folder / FILE).read_bytes() == pieces.read_bytes()
    assert loaded.config == net.config and same_answers(net, loaded)
    for (name, a), (_, b) in zip(net.named_parameters(), loaded.named_parameters(), strict=True):
        assert torch.equal(a, b) and a.requires_grad == b.requires_grad, name
    (folder / FILE).unlink()
    without = load_folder(folder).model
    assert isinstance(without, GSVA) and without.vocabulary is None


def test_a_tokenizer_of_other_weights(pieces: Path) -> None:
    with pytest.raises(ConfigError, match="not that of the weights"):
        GSVA(config(), PieceVocabulary(pieces, 41))
    with pytest.raises(CheckpointError, match="48 rows"):
        PieceVocabulary(pieces, 48)
    assert isinstance(build(config(), PieceVocabulary(pieces, 40)), GSVA)


def test_in_half_precision_only_what_is_stored_changes(tmp_path: Path) -> None:
    folder = save_model(model(), tmp_path / "half", classes={}, provenance={}, dtype=torch.bfloat16)
    loaded = load_folder(folder, dtype=torch.bfloat16).model
    assert isinstance(loaded, GSVA)
    assert {p.dtype for p in loaded.parameters()} == {torch.bfloat16}
    assert loaded.language.model.rotary_emb.inv_freq.dtype == torch.float32


# ---------------------------------------------------------------------- conversion


@pytest.fixture(scope="module")
def official(tmp_path_factory: pytest.TempPathFactory) -> tuple[GSVA, Path]:
    """A released file: what was trained in float32, the rest in bfloat16."""
    torch.manual_seed(0)
    net = GSVA(large()).eval()
    path = tmp_path_factory.mktemp("official") / "gsva-toy.bin"
    trained = {name for name, parameter in net.named_parameters() if parameter.requires_grad}
    mixed = {
        key: value if key in trained or key.endswith("gaussian") else value.to(torch.bfloat16)
        for key, value in net.state_dict().items()
    }
    torch.save(to_official(mixed), path)
    return net, path


def test_a_released_file_becomes_a_folder_and_a_file_again(official: tuple[GSVA, Path], tmp_path: Path) -> None:
    net, path = official
    report = convert_file(path, out=tmp_path / "toy", shard_bytes=400_000)
    assert report.complete and any("32004 rows, [SEG] is 32000" in note for note in report.notes)
    files = weight_files(tmp_path / "toy")
    assert len(files) > 3 and not (tmp_path / "toy" / WEIGHTS).exists()
    index = json.loads((tmp_path / "toy" / INDEX).read_text())
    assert set(index["weight_map"]) == set(net.state_dict())
    card = read_card(tmp_path / "toy")
    assert isinstance(card.config, GSVAConfig)
    assert (card.config.sam, card.config.lora.rank, card.config.rej_id) == (net.config.sam, 3, 32001)
    assert card.weights["dtype"] == "bfloat16/float32"
    loaded = load_folder(tmp_path / "toy").model
    for key, value in net.state_dict().items():
        assert torch.allclose(loaded.state_dict()[key], value, rtol=1e-2, atol=1e-6), key
    export_official(tmp_path / "toy", tmp_path / "back.bin")
    there, back = (read_tensor_file(file).tensors for file in (path, tmp_path / "back.bin"))
    assert set(there) == set(back)
    assert all(there[key].dtype == back[key].dtype and torch.equal(there[key], back[key]) for key in there)
    with pytest.raises(UsageError, match=r"must end in \.bin"):
        export_official(tmp_path / "toy", tmp_path / "back.pth")


def test_a_shard_that_is_not_whole(official: tuple[GSVA, Path], tmp_path: Path) -> None:
    folder = tmp_path / "toy"
    convert_file(official[1], out=folder, shard_bytes=400_000)
    shard = weight_files(folder)[1]
    content = shard.read_bytes()
    shard.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(CheckpointError, match="SHA-256"):
        load_folder(folder)
    shard.write_bytes(content[:-7])
    with pytest.raises(CheckpointError, match="truncated"):
        load_folder(folder)
    shard.unlink()
    with pytest.raises(CheckpointError, match="lacks a weight file"):
        load_folder(folder)
    (folder / INDEX).write_text("{")
    with pytest.raises(CheckpointError, match="index of the weights"):
        load_folder(folder)
    (folder / INDEX).unlink()
    with pytest.raises(CheckpointError, match="has no weights"):
        load_folder(folder)


def test_a_folder_that_lacks_a_tensor(official: tuple[GSVA, Path], tmp_path: Path) -> None:
    state = read_tensor_file(official[1]).tensors
    del state["base_model.model.model.visual_model.mask_decoder.iou_token.weight"]
    torch.save(state, tmp_path / "less.bin")
    with pytest.raises(CheckpointError, match=r"iou_token\.weight"):
        convert_file(tmp_path / "less.bin", out=tmp_path / "less")
    assert not (tmp_path / "less" / CONFIG).exists()


def test_presets_by_hand(official: tuple[GSVA, Path], tmp_path: Path) -> None:
    for preset, prompt in (("gsva-llama2-13b", "llava_llama_2"), ("gsva-llama2-13b-v1", "llava_v1")):
        report = convert_file(official[1], out=tmp_path / preset, preset=preset)
        found = read_card(tmp_path / preset).config
        assert isinstance(found, GSVAConfig)
        assert found.conversation == prompt and found.language.norm_eps == 1e-5
        assert any("--preset gsva-llama2-13b-v1" in note for note in report.notes) is (preset == "gsva-llama2-13b")
    with pytest.raises(UsageError, match="did you mean 'gsva-7b'"):
        convert_file(official[1], out=tmp_path / "other", preset="gsva-7")


# ---------------------------------------------------------------------- memory

_MEASURED = """
import json, sys
from pathlib import Path
import saccade.hub.convert, saccade.hub.checkpoint
import torch, transformers.models.clip.modeling_clip, transformers.models.llama.modeling_llama  # not measured
torch.set_num_threads(1)
def now(what):
    [line] = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(what))
    return int(line.split()[1]) * 1024
def measured(work):
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
    before = now("VmRSS")
    kept = work()
    return now("VmHWM") - before
"""
_CONVERT_AND_LOAD = """
source, folder, shard = sys.argv[1], sys.argv[2], int(sys.argv[3])
saccade.hub.checkpoint.build  # imported
convert = measured(lambda: saccade.hub.convert.convert_file(source, out=folder, shard_bytes=shard))
load = measured(lambda: saccade.hub.checkpoint.load_folder(folder))
print(json.dumps({"convert": convert, "load": load}))
"""
_CONVERT_A_DELTA = """
delta, base, out = sys.argv[1:]
print(measured(lambda: saccade.hub.convert.convert_file(delta, base=base, out=out, shard_bytes=50 * 2**20)))
"""
_START_FROM_A_DELTA = """
from saccade.configs import from_dict
from saccade.hub.convert_gsva import load_parts
from saccade.models.gsva.config import GSVAConfig
from saccade.models.gsva.model import GSVA
folder = Path(sys.argv[1])
model = GSVA(from_dict(GSVAConfig, json.loads((folder / "sizes.json").read_text()), where="sizes"))
print(measured(lambda: load_parts(model, llava=folder / "delta.bin", llama=folder / "llama.bin")))
"""


measurable = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux tells its peaks")


def told_by(program: str, *arguments: object) -> Any:
    """What a program of its own, which may measure its memory, prints last."""
    command = [sys.executable, "-c", _MEASURED + program, *map(str, arguments)]
    # Tensors of released models are above 32 MB, from where on glibc asks for each by itself; here from 1 MB on.
    alike = os.environ | {"MALLOC_MMAP_THRESHOLD_": str(2**20)}
    result = subprocess.run(command, capture_output=True, text=True, check=True, env=alike)
    return json.loads(result.stdout.splitlines()[-1])


@measurable
def test_conversion_and_loading_hold_one_shard_beside_what_they_make(tmp_path: Path) -> None:
    sizes = large()
    sizes = dataclasses.replace(
        sizes, language=dataclasses.replace(sizes.language, width=512, heads=4, mlp_width=2048, layers=10)
    )
    with torch.device("meta"):
        empty = to_official(GSVA(sizes).state_dict())
    state = {key: torch.full(value.shape, 0.5) for key, value in empty.items()}
    total = sum(value.nbytes for value in state.values())
    largest = max(value.nbytes for value in state.values())
    torch.save(state, tmp_path / "big.bin")
    del state
    limit = 72 * 2**20
    told = told_by(_CONVERT_AND_LOAD, tmp_path / "big.bin", tmp_path / "big", limit)
    shard = max(file.stat().st_size for file in weight_files(tmp_path / "big"))
    assert total > 280 * 2**20 and shard < total / 3
    assert told["convert"] < 1.2 * shard + largest, told
    # All weights once, and at most the pages of one shard and a tensor.
    assert total * 0.95 < told["load"] < total + 1.2 * shard + largest, told


@measurable
def test_a_delta_goes_into_a_model_tensor_by_tensor(tmp_path: Path) -> None:
    sizes = large()
    sizes = dataclasses.replace(
        sizes, language=dataclasses.replace(sizes.language, width=256, heads=4, mlp_width=2048, layers=16)
    )
    with torch.device("meta"):
        net = GSVA(sizes)
    parts = ("language.model.layers.", "language.model.norm.", "projector.")
    kept = {key: value.shape for key, value in net.state_dict().items() if key.startswith(parts) and "lora" not in key}
    kept |= {f"language.{table}": (32000, 256) for table in ("model.embed_tokens.weight", "lm_head.weight")}
    names = {key.replace(".base_layer.", "."): shape for key, shape in kept.items()}
    llava = {
        key.removeprefix("base_model.model."): value
        for key, value in to_official({key: torch.full(shape, 1e-3) for key, shape in names.items()}).items()
    }
    torch.save(llava, tmp_path / "delta.bin")
    llama = {key: value for key, value in llava.items() if "mm_projector" not in key}
    llama["model.norm.weight"] = torch.ones(256)
    torch.save(llama, tmp_path / "llama.bin")
    save_file(llava, tmp_path / "delta.safetensors")
    save_file(llama, tmp_path / "llama.safetensors")
    (tmp_path / "sizes.json").write_text(json.dumps(to_dict(sizes)))
    total = sum(value.nbytes for value in llava.values())
    largest = max(value.nbytes for value in llava.values())
    assert total > 170 * 2**20
    # A tensor, the same of the base, and the sum with its rows of new words.
    assert told_by(_START_FROM_A_DELTA, tmp_path) < 3.5 * largest < total * 0.75
    # Into files: one of them, and a tensor of the base.
    for form in ("bin", "safetensors"):
        out = tmp_path / f"from_{form}"
        told = told_by(_CONVERT_A_DELTA, tmp_path / f"delta.{form}", tmp_path / f"llama.{form}", out)
        shard = max(file.stat().st_size for file in weight_files(out))
        assert told < 1.2 * shard + largest < total * 0.75, (form, told)
