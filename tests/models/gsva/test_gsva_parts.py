"""Released weights in several files, and parts of GSVA, become folders that a model or a training reads."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from helpers_gsva import model
from safetensors.torch import save_file
from test_gsva_convert import as_delta, as_llava, as_sam
from test_gsva_files import large
from torch import Tensor
from transformers import SamConfig, SamMaskDecoderConfig, SamModel, SamPromptEncoderConfig, SamVisionConfig

from saccade.cli import main
from saccade.errors import CheckpointError, UsageError
from saccade.hub.checkpoint import load_folder, save_model
from saccade.hub.convert import convert_file, map_file
from saccade.hub.convert_gsva import load_parts
from saccade.hub.weight_sets import read_weight_set
from saccade.hub.zoo import entry_of_file
from saccade.models.gsva.convert import from_sam, to_official
from saccade.models.gsva.model import GSVA


def write_set(folder: Path, state: dict[str, Tensor], files: int = 3, ending: str = "bin") -> Path:
    """Files as the hub has them, with their index; returns the index."""
    folder.mkdir()
    stem, save = ("model", save_file) if ending == "safetensors" else ("pytorch_model", torch.save)
    where = {
        name: f"{stem}-{1 + number * files // len(state):05d}-of-{files:05d}.{ending}"
        for number, name in enumerate(state)
    }
    for file in sorted(set(where.values())):
        save({name: value.clone() for name, value in state.items() if where[name] == file}, folder / file)
    index = folder / f"{stem}.{ending}.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": where}))
    (folder / "config.json").write_text("{}")  # the hub's, not ours
    return index


def same_parts(one: GSVA, other: GSVA, part: str) -> bool:
    a, b = one.state_dict(), other.state_dict()
    return all(torch.equal(value, b[key]) for key, value in a.items() if key.startswith(part))


@pytest.mark.parametrize("ending", ["bin", "safetensors"])
def test_a_gsva_in_several_files(tmp_path: Path, ending: str) -> None:
    net = GSVA(large())
    index = write_set(tmp_path / "released", to_official(net.state_dict()), ending=ending)
    for number, source in enumerate((index.parent, index)):
        report = convert_file(source, out=tmp_path / str(number), shard_bytes=2**20)
        assert report.complete
        assert same_parts(load_folder(tmp_path / str(number)).model, net, "")
        told = json.loads((tmp_path / str(number) / "config.json").read_text())["provenance"]["source"]
        assert told["file"] == "released" and len(told["sha256"]) == 3


def test_several_files_that_are_not_whole(tmp_path: Path) -> None:
    index = write_set(tmp_path / "released", as_llava(model(), 36))
    second = index.parent / "pytorch_model-00002-of-00003.bin"
    with pytest.raises(CheckpointError, match=r"(?s)1 of the 3 files.*give the folder"):
        map_file(second)
    kept = second.read_bytes()
    second.unlink()
    for source in (index, index.parent):
        with pytest.raises(CheckpointError, match=r"(?s)1 of 3 weight files are missing.*-00002-of-.*lists them"):
            map_file(source)
    listed = index.read_text()
    index.unlink()
    with pytest.raises(CheckpointError, match="2 of the 3 files"):
        map_file(index.parent)
    second.write_bytes(kept)
    assert map_file(index.parent).report.complete
    index.write_text(json.dumps({"weight_map": {"model.none": second.name}}))
    with pytest.raises(CheckpointError, match="1 of the 3 files"):
        map_file(index)
    index.write_text(listed.replace("model.norm.weight", "model.none"))
    with pytest.raises(CheckpointError, match=r"(?s)lack 1 of the tensors that the index lists.*model\.none"):
        map_file(index)
    index.write_text("[]")
    with pytest.raises(CheckpointError, match="index of the weights cannot be read"):
        map_file(index)
    index.unlink()
    torch.save({"lm_head.weight": torch.zeros(1)}, index.parent / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="hold the same tensor"):
        map_file(index.parent)
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="has no weights"):
        map_file(tmp_path / "empty")


def test_the_name_of_a_folder_tells_what_shapes_do_not() -> None:
    entry = entry_of_file("gsva-llama2-13b-ft-gres")
    assert entry is not None and entry is entry_of_file("gsva-llama2-13b-ft-gres.bin")
    assert entry.preset == "gsva-llama2-13b"


@pytest.mark.parametrize("ending", ["bin", "safetensors"])
@pytest.mark.parametrize("files", [1, 2])
def test_a_delta_with_its_base(tmp_path: Path, files: int, ending: str) -> None:
    delta, base = as_delta(as_llava(model(seed=3), 36))
    write_set(tmp_path / "delta", delta, files, ending)
    write_set(tmp_path / "base", base, files, ending)
    ours, direct, out = model(seed=5), model(seed=6), tmp_path / "llava"
    with pytest.raises(CheckpointError, match="saccade convert --base"):
        map_file(tmp_path / "delta")
    report = convert_file(tmp_path / "delta", out=out, base=tmp_path / "base", shard_bytes=20_000)
    assert report.complete and f"use it as language_init={out}" in report.notes
    assert len(list(out.glob("*.safetensors"))) > 2
    load_parts(ours, llava=out)
    load_parts(direct, llava=tmp_path / "delta", llama=tmp_path / "base")
    assert same_parts(ours, direct, "language.model.norm") and same_parts(ours, direct, "projector.")
    for name in ("self_attn.q_proj.base_layer", "self_attn.o_proj", "mlp.down_proj"):
        assert same_parts(ours, direct, f"language.model.layers.1.{name}")
    assert same_parts(ours, direct, "language.model.embed_tokens") and same_parts(ours, direct, "language.lm_head")
    with pytest.raises(CheckpointError, match="leave the base away"):
        load_parts(ours, llava=out, llama=tmp_path / "base")


def test_a_base_that_cannot_be_its_own(tmp_path: Path) -> None:
    whole = as_llava(model(), 36)
    delta, base = as_delta(whole)
    half = {key: value[..., :16].clone() for key, value in base.items()}
    less = {key: value for key, value in base.items() if "layers.1." not in key}
    meta = {f"layers.0.attention.w{name}.weight": torch.zeros(1) for name in "qkvo"}
    states = {"delta": delta, "base": base, "half": half, "less": less, "meta": meta, "whole": whole}
    for name, state in states.items():
        torch.save(state, tmp_path / f"{name}.bin")
    for given, under, message in (
        ("delta", "delta", r"(?s)the base is the difference from another model itself.*delta\.bin"),
        ("delta", "half", r"(?s)does not fit this base.*half\.bin: .*use the LLaMA of the same size"),
        ("delta", "less", r"(?s)not made from this base.*less\.bin: model.*lacks 9 tensors"),
        ("delta", "meta", r"(?s)not made from this base.*meta\.bin"),
        ("delta", "nowhere", "no such weight file"),
        ("whole", "base", "leave the base away"),
    ):
        with pytest.raises(CheckpointError, match=message):
            convert_file(tmp_path / f"{given}.bin", base=tmp_path / f"{under}.bin", out=tmp_path / "out")
    with pytest.raises(UsageError, match=r"(?s)only a LLaVA.*name the difference first"):
        map_file(tmp_path / "base.bin", base=tmp_path / "delta.bin")
    assert not (tmp_path / "out").exists()


def test_a_sam_in_its_own_names(tmp_path: Path) -> None:
    source, target = model(seed=1), model(seed=2)
    torch.save(as_sam(source), tmp_path / "sam.pth")
    report = convert_file(tmp_path / "sam.pth", out=tmp_path / "out", part="sam")
    assert report.complete and report.notes == [f"use it as init_from={tmp_path / 'out'}"]
    load_parts(target, sam=tmp_path / "out")
    assert same_parts(source, target, "sam.")
    taken = torch.load(tmp_path / "sam.pth")
    del taken["mask_decoder.iou_token.weight"]
    torch.save(taken, tmp_path / "sam.pth")
    with pytest.raises(CheckpointError, match=r"missing: sam\.mask_decoder\.iou_token"):
        convert_file(tmp_path / "sam.pth", out=tmp_path / "less", part="sam")


def test_a_sam_of_the_hub(tmp_path: Path) -> None:
    """As ``transformers`` writes its folder; no option is needed."""
    torch.manual_seed(1)
    vision = SamVisionConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        mlp_dim=32,
        image_size=64,
        window_size=3,
        global_attn_indexes=[1],
        output_channels=32,
        num_pos_feats=16,
    )
    prompts = SamPromptEncoderConfig(hidden_size=32, image_size=64, mask_input_channels=4)
    decoder = SamMaskDecoderConfig(hidden_size=32, mlp_dim=24, num_attention_heads=2, iou_head_hidden_dim=16)
    theirs = SamModel(SamConfig(vision_config=vision, prompt_encoder_config=prompts, mask_decoder_config=decoder))
    theirs.save_pretrained(tmp_path / "sam-vit-tiny")
    report = convert_file(tmp_path / "sam-vit-tiny", out=tmp_path / "out")
    assert report.complete and report.notes == [f"use it as init_from={tmp_path / 'out'}"]
    found = read_weight_set(tmp_path / "out").tensors
    wanted, _ = from_sam(theirs.state_dict(), {key: value.shape for key, value in found.items()})
    assert found.keys() == wanted.keys() and all(torch.equal(value, wanted[key]) for key, value in found.items())


def test_what_a_part_does_not_take(tmp_path: Path) -> None:
    torch.save(as_sam(model()), tmp_path / "sam.pth")
    torch.save(as_llava(model(), 36), tmp_path / "llava.bin")
    with pytest.raises(UsageError, match="no whole SAM"):
        map_file(tmp_path / "llava.bin", part="sam")
    with pytest.raises(UsageError, match="only a LLaVA"):
        map_file(tmp_path / "sam.pth", base=tmp_path / "llava.bin", part="sam")
    with pytest.raises(UsageError, match="leave out --preset"):
        map_file(tmp_path / "sam.pth", part="sam", preset="gsva-7b")
    with pytest.raises(UsageError, match="only a whole model has a vocabulary"):
        convert_file(tmp_path / "llava.bin", out=tmp_path / "out", vocabulary=tmp_path / "tokenizer.model")
    assert not (tmp_path / "out").exists()


def test_a_conversion_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save(as_llava(model(), 36), tmp_path / "llava.bin")
    written = []

    def save(tensors: dict[str, Tensor], file: Path, **_: object) -> None:
        if written:
            raise OSError(28, "No space left on device")
        written.append(file)
        file.write_bytes(b"half")

    monkeypatch.setattr("saccade.hub.shards.save_file", save)
    with pytest.raises(CheckpointError, match="No space left"):
        convert_file(tmp_path / "llava.bin", out=tmp_path / "out", shard_bytes=20_000)
    assert [path.name for path in tmp_path.iterdir()] == ["llava.bin"]


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    delta, base = as_delta(as_llava(model(), 36))
    write_set(tmp_path / "delta", delta)
    write_set(tmp_path / "base", base)
    asked = ["convert", str(tmp_path / "delta"), "--base", str(tmp_path / "base"), "--out", str(tmp_path / "llava")]
    assert main(asked) == 0
    assert "use it as language_init" in capsys.readouterr().out
    assert main([*asked[:2], "--part", "sam"]) == 2 and "no whole SAM" in capsys.readouterr().err
    save_model(model(), tmp_path / "ours", classes={}, provenance={})
    assert main(["convert", str(tmp_path / "ours")]) == 2 and "--to-official" in capsys.readouterr().err
