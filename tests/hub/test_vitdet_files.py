"""Released detectors as files: detectron2's pickles of arrays, the ViTAE repository's checkpoints, and back."""

from __future__ import annotations

import dataclasses
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from saccade.errors import CheckpointError, UsageError
from saccade.hub import convert as module
from saccade.hub.checkpoint import load_folder
from saccade.hub.convert import convert_file, export_official, map_file
from saccade.hub.resolve import resolve
from saccade.hub.starts import load_backbone
from saccade.hub.unpickle import read_tensor_file
from saccade.hub.zoo import ZOO, entry_of_file
from saccade.layers.pyramid import PyramidConfig
from saccade.layers.vit import ViTConfig
from saccade.models.vitdet.config import ViTDetConfig
from saccade.models.vitdet.convert import to_official
from saccade.models.vitdet.model import ViTDet
from saccade.models.vitdet.presets import PRESETS, detectron2_roi, detectron2_rpn, preset_of
from saccade.predictor import Predictor
from saccade.tasks import Task

SHARED = Path(__file__).resolve().parents[3] / "shared/manifests/vitdet"
SMALL = {"num_classes": 80, "channels": 8, "conv_channels": 8, "hidden": 16, "min_score": 0.0, "max_detections": 5}


def small() -> ViTDetConfig:
    return ViTDetConfig(
        backbone=ViTConfig(
            width=16,
            depth=2,
            heads=2,
            mlp_width=64,
            image_size=64,
            position_size=2,
            window_size=2,
            global_blocks=(1,),
            drop_path_attention=True,
        ),
        pyramid=PyramidConfig(channels=8),
        rpn=detectron2_rpn(channels=8),
        roi=detectron2_roi(**SMALL),
        resize="pillow",
        input_size=64,
    )


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> ViTDet:
    monkeypatch.setitem(module.DETECTORS, "small", small)
    torch.manual_seed(0)
    return ViTDet(small()).eval()


def arrays(model: ViTDet) -> dict[str, np.ndarray]:
    return {key: tensor.numpy() for key, tensor in to_official(model.state_dict(), model.config, "detectron2").items()}


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_a_pickle_of_arrays_becomes_a_model_that_predicts(model: ViTDet, tmp_path: Path, protocol: int) -> None:
    file = tmp_path / "model_final_000000.pkl"
    file.write_bytes(pickle.dumps({"model": arrays(model), "__author__": "them"}, protocol=protocol))
    report = convert_file(file, out=tmp_path / "ours", preset="small")
    assert report.complete
    loaded = load_folder(tmp_path / "ours")
    for key, tensor in model.state_dict().items():
        assert torch.equal(loaded.model.state_dict()[key], tensor), key
    assert len(loaded.classes[Task.INSTANCE]) == 80 and loaded.classes[Task.DETECTION].category_ids[11] == 13
    picture = np.random.default_rng(0).integers(0, 255, (48, 40, 3), np.uint8)
    answer = Predictor(loaded).predict(picture, score=0.0)
    assert answer.size_hw == (48, 40) and "person" in answer.classes.names
    assert len(Predictor(loaded).predict(picture, classes="dog,cat", score=0.0).classes) == 2
    with pytest.raises(UsageError, match="does not know the class 'catt'"):
        Predictor(loaded).predict(picture, classes="catt")


def test_the_official_file_comes_back(model: ViTDet, tmp_path: Path) -> None:
    file = tmp_path / "a.pkl"
    file.write_bytes(pickle.dumps({"model": arrays(model)}))
    convert_file(file, out=tmp_path / "ours", preset="small")
    export_official(tmp_path / "ours", tmp_path / "back.pth")
    back = read_tensor_file(tmp_path / "back.pth").tensors
    assert {key: tuple(t.shape) for key, t in back.items()} == {key: a.shape for key, a in arrays(model).items()}
    for key, array in arrays(model).items():
        np.testing.assert_allclose(back[key].numpy(), array, rtol=1e-6, atol=1e-7)


def test_a_file_of_the_wrong_preset_says_what_it_looks_like(
    model: ViTDet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "a.pkl"
    file.write_bytes(pickle.dumps({"model": arrays(model)}))
    assert map_file(file).preset == "small"
    monkeypatch.delitem(module.DETECTORS, "small")
    with pytest.raises(CheckpointError, match="Mask R-CNN on ViT-width 16 with 80 classes"):
        map_file(file)
    found = map_file(file, preset="vitdet-cascade-b")
    with pytest.raises(CheckpointError, match="Mask R-CNN on ViT-width 16"):
        found.report.check(allow=found.allowed)
    with pytest.raises(UsageError, match="unknown preset"):
        map_file(file, preset="vitdet-x")


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[: len(data) // 2],
        lambda data: data.replace(b"f4", b"O8", 1),
        lambda data: data.replace(b"_reconstruct", b"_destructXXX", 1),
    ],
)
def test_damaged_pickles_are_one_clear_error(model: ViTDet, tmp_path: Path, damage) -> None:
    file = tmp_path / "a.pkl"
    file.write_bytes(damage(pickle.dumps({"model": {"w": np.zeros((2, 3), "f4")}}, protocol=2)))
    with pytest.raises(CheckpointError):
        read_tensor_file(file)


def test_presets_are_found_from_the_keys_of_every_released_file() -> None:
    if not SHARED.is_dir():
        pytest.skip("../shared/manifests/vitdet is absent")
    detectors = [entry for entry in ZOO.values() if entry.system == "vitdet" and entry.kind == "checkpoint"]
    released = {entry.preset: entry for entry in detectors}
    seen = set()
    for path in sorted(SHARED.glob("*_rcnn*.json")):
        if path.name.startswith(("optim", "mapping", "composed")):
            continue
        record = json.loads(path.read_text())
        with torch.device("meta"):
            state = {e["key"]: torch.empty(e["shape"]) for e in record["entries"]}
        name = preset_of(state)
        assert name is not None, path.name
        seen.add(name)
        entry = released[name]
        assert (entry.parameters, entry.tensors) == (record["param_count"], record["n_keys"]), path.name
    assert seen == set(released) <= set(PRESETS)


def test_files_that_can_only_be_fetched_by_hand_say_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SACCADE_CACHE", str(tmp_path))
    with pytest.raises(CheckpointError, match="only be fetched by hand"):
        resolve("vitae-b")
    entry = entry_of_file("model_final_61ccd1.pkl")
    assert entry is not None and entry.name == "vitdet-b"


PUBLISHED = {
    "vitae-repo-vit-b": (51.1, 45.4), "vitae-b": (51.6, 45.8), "vitae-s": (45.6, 40.1),
    "vitdet-b": (51.6, 45.9), "vitdet-l": (55.5, 49.2), "vitdet-h": (56.7, 50.2),
    "vitdet-cascade-b": (54.0, 46.7), "vitdet-cascade-l": (57.6, 50.0), "vitdet-cascade-h": (58.7, 51.0),
    "vitdet-lvis-b": (40.2, 38.2), "vitdet-lvis-l": (46.1, 43.6), "vitdet-lvis-h": (49.1, 46.0),
    "vitdet-lvis-cascade-b": (43.0, 38.9), "vitdet-lvis-cascade-l": (49.2, 44.5),
    "vitdet-lvis-cascade-h": (51.5, 46.6),
}  # fmt: skip


def test_published_numbers_and_licences_of_the_detectors() -> None:
    entries = {e.name: e for e in ZOO.values() if e.system == "vitdet" and e.kind == "checkpoint"}
    assert {name: tuple(r.value for r in entry.results) for name, entry in entries.items()} == PUBLISHED
    assert {r.metric for e in entries.values() for r in e.results} == {"box AP", "mask AP"}
    assert {e.licence for e in entries.values() if e.url} == {"CC BY-SA 3.0 (detectron2's model zoo)"}
    assert {e.licence for e in entries.values() if e.page} == {"not stated"}


def mae_file(side: int = 16, patch: int = 16) -> dict[str, torch.Tensor]:
    """The encoder of a public MAE file, in miniature; every name of the manifest's list."""
    mapping = json.loads((SHARED / "mapping_mae_vit_b_to_vitae_repo_vit_b.json").read_text())
    sizes = {768: 16, 2304: 48, 3072: 64}
    made = {}
    for row in mapping["rows"]:
        block = row["src"].split(".")[1] if row["src"].startswith("blocks.") else "0"
        if int(block) < small().vit.depth:
            made[row["src"]] = torch.randn([sizes.get(size, size) for size in row["src_shape"]])
    made["pos_embed"] = torch.randn(1, 1 + (side // 4) ** 2, 16)
    made["patch_embed.proj.weight"] = torch.randn(16, 3, patch, patch)
    return made


@pytest.mark.parametrize("patch", [16, 14])
@pytest.mark.parametrize("final_norm", [False, True], ids=["detectron2", "vitae_repo"])
def test_public_mae_files_start_both_families(final_norm: bool, patch: int, tmp_path: Path) -> None:
    if not SHARED.is_dir():
        pytest.skip("../shared/manifests/vitdet is absent")
    mae = mae_file(patch=patch)
    assert "norm.weight" in mae and "cls_token" in mae
    torch.save({"model": mae}, tmp_path / "mae.pth")
    whole = small()
    net = ViTDet(dataclasses.replace(whole, backbone=dataclasses.replace(whole.vit, final_norm=final_norm)))
    report = load_backbone(net, tmp_path / "mae.pth")
    assert not report.unexpected and ("backbone.norm.weight" in report.dropped) is not final_norm
    weight = net.backbone.patch_embed.weight
    if patch == 16:
        assert torch.equal(weight, mae["patch_embed.proj.weight"])
    else:
        assert "backbone.patch_embed.weight" in report.resized and weight.shape[-1] == 16
        expected = F.interpolate(mae["patch_embed.proj.weight"], size=(16, 16), mode="bicubic")
        torch.testing.assert_close(weight.detach(), expected)


def test_a_wrong_start_says_what_the_file_looks_like(model: ViTDet, tmp_path: Path) -> None:
    official = to_official(model.state_dict(), model.config, "detectron2")
    for state, words in (
        (official, "it looks like a Mask R-CNN on ViT-width 16"),
        ({"image_encoder.blocks.0.norm1.weight": torch.zeros(1)}, "it looks like a SAM or GiT file"),
        ({"conv1.weight": torch.zeros(1)}, "it looks like no vision transformer"),
    ):
        torch.save(dict(state), tmp_path / "wrong.pth")
        with pytest.raises(CheckpointError) as caught:
            load_backbone(model, tmp_path / "wrong.pth")
        assert words in str(caught.value)
    torch.save(
        {"blocks.0.norm1.weight": torch.zeros(4), "patch_embed.proj.weight": torch.zeros(4, 3, 16, 16)},
        tmp_path / "m.pth",
    )
    with pytest.raises(CheckpointError, match=r"pre-trained ViT of width 4 with 1 blocks[\s\S]*init_from"):
        map_file(tmp_path / "m.pth")


def test_training_starts_from_an_mae_file(model: ViTDet, tmp_path: Path) -> None:
    official = to_official(model.state_dict(), model.config, "detectron2")
    mae = {
        key.removeprefix("backbone.net."): torch.randn_like(tensor)
        for key, tensor in official.items()
        if key.startswith("backbone.net.") and ".rel_pos_" not in key
    }
    mae["decoder_embed.weight"] = torch.zeros(2, 2)
    torch.save({"model": mae}, tmp_path / "mae.pth")
    target = ViTDet(dataclasses.replace(small()))
    report = load_backbone(target, tmp_path / "mae.pth")
    assert torch.equal(target.state_dict()["backbone.blocks.1.mlp.fc2.weight"], mae["blocks.1.mlp.fc2.weight"])
    assert torch.equal(target.state_dict()["backbone.pos_embed"].flatten(1, 2), mae["pos_embed"][:, 1:])
    assert all(key.startswith("backbone.") for key in report.missing)
    del mae["blocks.0.mlp.fc1.weight"]
    torch.save({"model": mae}, tmp_path / "gap.pth")
    with pytest.raises(CheckpointError, match=r"blocks\.0\.mlp\.fc1\.weight"):
        load_backbone(target, tmp_path / "gap.pth")
