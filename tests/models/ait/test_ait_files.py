"""Files of AiT: released VQ-VAEs and back, solvers that start from solvers, what the zoo says of them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from helpers_ait import BACKBONE, DEPTH, FORMS, INSTANCE, TRANSFORMER, config
from torch import Tensor

from saccade.errors import CheckpointError, ConfigError, UsageError
from saccade.hub import convert
from saccade.hub.checkpoint import load_folder, read_card, save_model
from saccade.hub.convert import convert_file, export_official, map_file
from saccade.hub.starts import load_backbone
from saccade.hub.unpickle import TensorFile, read_tensor_file
from saccade.hub.zoo import ZOO, get, list_entries
from saccade.models.ait.config import AiTConfig
from saccade.models.ait.convert import to_official, vqvae_to_official
from saccade.models.ait.model import AiT
from saccade.models.ait.presets import PRESETS, VQVAES
from saccade.models.ait.vqvae import MapVQVAE
from saccade.tasks import Task

# ---------------------------------------------------------------------- VQ-VAEs


def released(path: Path, preset: str, *, prefix: str = "", seed: int = 0) -> tuple[Path, MapVQVAE]:
    """A VQ-VAE in a file of the authors' form."""
    torch.manual_seed(seed)
    net = MapVQVAE(VQVAES[preset]())
    official = {f"{prefix}{key}": tensor for key, tensor in vqvae_to_official(net.vqvae.state_dict()).items()}
    torch.save({"weights": official}, path)
    return path, net


@pytest.mark.parametrize(("preset", "keys"), [("vqvae-masks", 49), ("vqvae-depth", 53)])
@pytest.mark.parametrize("prefix", ["", "module."], ids=["released", "as training wrote it"])
def test_a_released_vqvae_comes_and_goes(tmp_path: Path, preset: str, keys: int, prefix: str) -> None:
    file, net = released(tmp_path / "vqvae.pt", preset, prefix=prefix)
    report = convert_file(file, out=tmp_path / "ours")
    assert report.complete and len(report.matched) == keys
    card = read_card(tmp_path / "ours")
    assert (card.system, card.provenance["preset"]) == ("vqvae", preset) and card.config == net.config
    loaded = load_folder(tmp_path / "ours").model.state_dict()
    assert all(torch.equal(loaded[key], tensor) for key, tensor in net.state_dict().items())
    export_official(tmp_path / "ours", tmp_path / "back.pth")
    back, first = (read_tensor_file(path).tensors for path in (tmp_path / "back.pth", file))
    assert {f"{prefix}{key}" for key in back} == first.keys()
    assert all(torch.equal(tensor, first[prefix + key]) for key, tensor in back.items())
    again = map_file(tmp_path / "back.pth")
    assert again.report.complete and all(torch.equal(again.state[key], loaded[key]) for key in loaded)


@pytest.mark.parametrize("preset", ["vqvae-masks", "vqvae-depth"])
def test_a_codebook_of_another_size_is_not_converted(tmp_path: Path, preset: str) -> None:
    file, _ = released(tmp_path / "vqvae.pt", preset)
    state = read_tensor_file(file).tensors
    for name in ("_vq_vae._embedding", "_vq_vae._ema_w"):
        state[name] = torch.zeros(64, 512)
    state["_vq_vae._ema_cluster_size"] = torch.zeros(64)
    torch.save({"weights": dict(state)}, tmp_path / "other.pt")
    with pytest.raises(
        CheckpointError, match=r"3 wrong shape(.|\n)*codebook\.entries \(found \(64, 512\), expected \(128"
    ):
        convert_file(tmp_path / "other.pt", out=tmp_path / "ours")
    assert not (tmp_path / "ours").exists()


def test_a_vqvae_is_of_what_it_says(tmp_path: Path) -> None:
    file, _ = released(tmp_path / "vqvae.pt", "vqvae-masks")
    with pytest.raises(CheckpointError, match="missing"):
        convert_file(file, out=tmp_path / "ours", preset="vqvae-depth")
    with pytest.raises(UsageError, match=r"'depth-b' is no preset of a VQ-VAE"):
        map_file(file, preset="depth-b")


# ---------------------------------------------------------------------- solvers


@pytest.mark.parametrize("preset", ["depth-b", "depth-b-hard", "depth-l-parallel", "instance-b", "instance-b-hard"])
def test_the_name_of_a_released_file_chooses_its_tokens(preset: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Models with and without soft tokens have the same tensors; --preset knows better than the name."""
    with torch.device("meta"):
        empty = to_official(AiT(PRESETS[preset]()).state_dict(), PRESETS[preset]())
    # One number that is seen as a whole tensor, which takes no room and stands in no file.
    tensors = {key: torch.zeros((), dtype=value.dtype).expand(value.shape) for key, value in empty.items()}
    monkeypatch.setattr(convert, "read_weight_set", lambda path: TensorFile(path=Path(path), tensors=dict(tensors)))
    soft = preset.removesuffix("-hard")
    for file, name, noted in (
        (ZOO[f"ait-{preset}"].file, preset, False),
        ("mine.pth", soft, f"{soft}-hard" in PRESETS),
    ):
        found = map_file(file)
        assert found.preset == name
        parts = [part for part in (found.config.depth, found.config.instance) if part is not None]
        assert [part.soft_tokens for part in parts] == [not name.endswith(("hard", "parallel"))]
        assert any(f"--preset {name}-hard" in note for note in found.report.notes) is noted
        if f"{soft}-hard" in PRESETS:
            assert map_file(file, preset=f"{soft}-hard").preset == f"{soft}-hard"


# ---------------------------------------------------------------------- a solver starts another one


def saved(path: Path, form: AiTConfig, kind: str, seed: int = 1) -> tuple[Path, dict[str, Tensor]]:
    """A solver as a file of the authors or as a folder of ours; and its own tensors."""
    torch.manual_seed(seed)
    net = AiT(form)
    if kind == "ours":
        save_model(net, path, classes={}, provenance={})
    else:
        path = path.with_suffix(".pth")
        torch.save({"meta": {}, "state_dict": to_official(net.state_dict(), form)}, path)
    return path, net.state_dict()


KINDS = pytest.mark.parametrize("kind", ["official", "ours"])


@KINDS
def test_boxes_start_masks(tmp_path: Path, kind: str) -> None:
    """The published way: all of it but the vocabulary, which has 128 spare rows more."""
    file, theirs = saved(tmp_path / "boxes", FORMS["detection"], kind)
    net = AiT(FORMS["instance"])
    fresh = {key: tensor.clone() for key, tensor in net.state_dict().items()}
    report = load_backbone(net, file)
    rows = {"transformer.token_embed", "transformer.token_bias"}
    for key, tensor in net.state_dict().items():
        kept = key in rows or key.startswith("mask_vqvae.")
        assert torch.equal(tensor, fresh[key] if kept else theirs[key]), key
    (note,) = report.notes
    assert note.startswith("start fresh, because they have another shape in the file: ")
    assert "transformer.token_embed (30, 16) -> (33, 16)" in note and "token_bias (30,) -> (33,)" in note
    assert not report.unexpected and not report.wrong_shape and set(report.missing) == rows


@KINDS
def test_a_vocabulary_of_the_same_size_is_taken_and_vqvaes_are_not(tmp_path: Path, kind: str) -> None:
    file, theirs = saved(tmp_path / "joint", FORMS["joint"], kind)
    net = AiT(FORMS["instance"])
    fresh = {key: tensor.clone() for key, tensor in net.state_dict().items()}
    report = load_backbone(net, file)
    assert report.notes == [] and report.missing == []
    for key, tensor in net.state_dict().items():
        assert torch.equal(tensor, fresh[key] if "vqvae" in key else theirs[key]), key
    assert {reason for key, reason in report.dropped.items() if "vqvae." in key} == {"a VQ-VAE: the run names its own"}


def test_a_file_without_decoder_names_what_stays_fresh(tmp_path: Path) -> None:
    """Such is the file that the published instance models start from, by its name."""
    file, theirs = saved(tmp_path / "boxes", FORMS["detection"], "official")
    state = {
        key: tensor
        for key, tensor in read_tensor_file(file).tensors.items()
        if not key.startswith(("transformer.decoder.", "transformer.voc_embed", "transformer.outp_bias", "det_head."))
    }
    torch.save(state, tmp_path / "wodec.pth")
    net = AiT(FORMS["instance"])
    fresh = {key: tensor.clone() for key, tensor in net.state_dict().items()}
    report = load_backbone(net, tmp_path / "wodec.pth")
    after = net.state_dict()
    assert torch.equal(
        after["transformer.encoder.0.attn.query.weight"], theirs["transformer.encoder.0.attn.query.weight"]
    )
    assert all(
        torch.equal(after[k], fresh[k]) for k in after if k.startswith(("transformer.decoder.", "transformer.token"))
    )
    assert report.notes == [
        "start fresh, because the file lacks them: transformer.token_embed, transformer.token_bias, "
        "transformer.decoder.0, transformer.decoder.1"
    ]


@KINDS
def test_parallel_and_token_by_token_start_each_other(tmp_path: Path, kind: str) -> None:
    plain, parallel = FORMS["depth"], FORMS["depth, parallel"]
    file, _ = saved(tmp_path / "plain", plain, kind)
    assert load_backbone(AiT(parallel), file).notes == [
        "start fresh, because the file lacks them: transformer.parallel_embed"
    ]
    file, _ = saved(tmp_path / "parallel", parallel, kind)
    report = load_backbone(AiT(plain), file)
    assert report.notes == [] and "the model has no such part" in report.dropped.values()


@KINDS
def test_a_solver_with_another_backbone_starts_nothing(tmp_path: Path, kind: str) -> None:
    wide = dataclasses.replace(BACKBONE, width=16)
    file, _ = saved(tmp_path / "wide", config(depth=DEPTH, backbone=wide), kind)
    net = AiT(FORMS["depth"])
    before = {key: tensor.clone() for key, tensor in net.state_dict().items()}
    with pytest.raises(CheckpointError, match=r"wrong shape: (.*)backbone\.patch_embed\.weight(.|\n)*fix: +choose a"):
        load_backbone(net, file)
    assert all(torch.equal(tensor, before[key]) for key, tensor in net.state_dict().items())


def test_a_wider_transformer_leaves_the_backbone(tmp_path: Path) -> None:
    other = dataclasses.replace(TRANSFORMER, width=32)
    file, theirs = saved(tmp_path / "wide", config(depth=DEPTH, transformer=other), "ours")
    net = AiT(FORMS["depth"])
    report = load_backbone(net, file)
    assert torch.equal(net.state_dict()["backbone.patch_embed.weight"], theirs["backbone.patch_embed.weight"])
    assert "transformer.norm.weight (32,) -> (16,)" in report.notes[0]


def test_a_vqvae_has_no_start() -> None:
    with pytest.raises(ConfigError, match=r"no backbone of its own\n  where: init_from"):
        load_backbone(MapVQVAE(VQVAES["vqvae-masks"]()), "anything")


# ---------------------------------------------------------------------- the zoo

# specs/ait.md 11 and 12: file, tensors, parameters, numbers in the order of the README.
NYU = {
    "ait-depth-b": ("ait_depth_swinv2b_ar.pth", 1_074, 109_251_084, (0.934, 0.991, 0.998, 0.087, 0.305, 0.037)),
    "ait-depth-b-parallel": (
        "ait_depth_swinv2b_parallel.pth", 1_076, 109_251_340, (0.940, 0.992, 0.998, 0.085, 0.301, 0.036)
    ),
    "ait-depth-b-hard": (
        "ait_depth_swinv2b_ar_wosoft.pth", 1_074, 109_251_084, (0.932, 0.991, 0.998, 0.089, 0.318, 0.038)
    ),
    "ait-depth-l": ("ait_depth_swinv2l_ar.pth", 1_074, 217_691_272, (0.949, 0.993, 0.999, 0.079, 0.284, 0.034)),
    "ait-depth-l-parallel": (
        "ait_depth_swinv2l_parallel.pth", 1_076, 217_691_528, (0.954, 0.994, 0.999, 0.076, 0.275, 0.033)
    ),
    "ait-instance-b": ("ait_insseg_swinv2b.pth", 1_346, 103_580_172, (43.3, 34.2)),
    "ait-instance-b-hard": ("ait_insseg_swinv2b_wosoft.pth", 1_346, 103_580_172, (43.6, 31.1)),
    "ait-joint-b": ("ait_joint_swinv2b.pth", 1_399, 111_269_373, (42.2, 34.1, 0.310)),
    "ait-vqvae-masks": ("vqvae_insseg.pt", 49, 1_985_393, ()),
    "ait-vqvae-depth": ("vqvae_depth.pt", 53, 7_689_201, ()),
}  # fmt: skip


@pytest.mark.parametrize("name", list(NYU))
def test_the_zoo_says_what_the_authors_say(name: str) -> None:
    entry = get(name)
    file, tensors, parameters, numbers = NYU[name]
    assert (entry.file, entry.tensors, entry.parameters) == (file, tensors, parameters)
    assert tuple(result.value for result in entry.results) == numbers
    assert {result.setting for result in entry.results} <= {"multi-task" if "joint" in name else "single-task"}
    assert entry.kind == "checkpoint" and entry.page.startswith("https://")


def test_every_file_of_ait_is_in_the_zoo() -> None:
    entries = [*list_entries("ait"), *list_entries("vqvae")]
    assert {entry.name for entry in entries if entry.kind == "checkpoint"} == set(NYU)
    starts = {entry.file for entry in entries if entry.kind == "backbone"}
    assert starts == {"swin_v2_base_densesimmim.pth", "swin_v2_large_densesimmim.pth", "ait_det_swinv2b_wodec.pth"}
    assert {ZOO["ait-vqvae-masks"].tasks, ZOO["ait-vqvae-depth"].tasks} == {(Task.INSTANCE,), (Task.DEPTH,)}


@pytest.mark.parametrize("name", ["ait-vqvae-masks", "ait-vqvae-depth"])
def test_parameters_and_tensors_of_the_vqvaes(name: str) -> None:
    entry = get(name)
    with torch.device("meta"):
        net = MapVQVAE(VQVAES[entry.preset]())
    assert sum(p.numel() for p in net.parameters()) == entry.parameters
    assert len(net.state_dict()) == entry.tensors
    assert (
        INSTANCE.masks is not None and net.preprocess(net.config.task).size_hw[0] == entry.input_sizes[entry.tasks[0]]
    )
