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

from saccade.cli import main
from saccade.errors import CheckpointError, UsageError
from saccade.hub.checkpoint import load_folder, save_model
from saccade.hub.convert import convert_file, map_file
from saccade.hub.convert_gsva import load_parts
from saccade.hub.weight_sets import read_weight_set
from saccade.mapping import rename
from saccade.models.gsva.convert import _SAM_HUB, to_official
from saccade.models.gsva.model import GSVA


def write_set(folder: Path, state: dict[str, Tensor], files: int = 3) -> Path:
    """Files as the hub has them, with their index; returns the index."""
    folder.mkdir()
    names = list(state)
    where = {
        name: f"pytorch_model-{1 + n * files // len(names):05d}-of-{files:05d}.bin" for n, name in enumerate(names)
    }
    for file in sorted(set(where.values())):
        torch.save({name: state[name].clone() for name in names if where[name] == file}, folder / file)
    index = folder / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": where}))
    (folder / "config.json").write_text("{}")  # the hub's, not ours
    return index


def same_parts(one: GSVA, other: GSVA, part: str) -> bool:
    a, b = one.state_dict(), other.state_dict()
    return all(torch.equal(value, b[key]) for key, value in a.items() if key.startswith(part))


def test_a_gsva_in_several_files(tmp_path: Path) -> None:
    net = GSVA(large())
    index = write_set(tmp_path / "released", to_official(net.state_dict()))
    for number, source in enumerate((index.parent, index)):
        report = convert_file(source, out=tmp_path / str(number), shard_bytes=2**20)
        assert report.complete
        assert same_parts(load_folder(tmp_path / str(number)).model, net, "")
    told = json.loads((tmp_path / "0/config.json").read_text())["provenance"]["source"]
    assert told["file"] == "released" and len(told["sha256"]) == 3
    second = index.parent / "pytorch_model-00002-of-00003.bin"
    with pytest.raises(CheckpointError, match=r"(?s)1 of the 3 files.*give the folder"):
        map_file(second)
    kept = second.read_bytes()
    second.unlink()
    with pytest.raises(CheckpointError, match="no such weight file"):
        map_file(index)
    second.write_bytes(kept)
    index.write_text(json.dumps({"weight_map": {"model.none": second.name}}))
    with pytest.raises(CheckpointError, match="1 of the 3 files"):
        map_file(index)
    index.unlink()
    assert len(read_weight_set(index.parent).tensors) == len(net.state_dict())


@pytest.mark.parametrize("files", [1, 2])
def test_a_delta_with_its_base(tmp_path: Path, files: int) -> None:
    delta, base = as_delta(as_llava(model(seed=3), 36))
    write_set(tmp_path / "delta", delta, files)
    write_set(tmp_path / "base", base, files)
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
    with pytest.raises(UsageError, match="only a LLaVA"):
        torch.save(as_sam(ours), tmp_path / "sam.pth")
        map_file(tmp_path / "sam.pth", base=tmp_path / "base")


@pytest.mark.parametrize("hub", [False, True])
def test_a_sam_alone(tmp_path: Path, hub: bool) -> None:
    source, target = model(seed=1), model(seed=2)
    state = as_sam(source)
    if hub:
        back = tuple((official, theirs) for theirs, official in _SAM_HUB)
        state = {str(rename(name, back)): value.clone() for name, value in state.items()}
        state["prompt_encoder.shared_embedding.positional_embedding"] = state[
            "shared_image_embedding.positional_embedding"
        ].clone()
        save_file(state, tmp_path / "sam.safetensors")
        report = convert_file(tmp_path / "sam.safetensors", out=tmp_path / "out")
    else:
        torch.save(state, tmp_path / "sam.pth")
        report = convert_file(tmp_path / "sam.pth", out=tmp_path / "out", part="sam")
    assert report.complete and report.notes == [f"use it as init_from={tmp_path / 'out'}"]
    load_parts(target, sam=tmp_path / "out")
    assert same_parts(source, target, "sam.")


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
