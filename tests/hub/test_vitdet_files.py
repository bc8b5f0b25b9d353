"""Released detectors as files: detectron2's pickles of arrays, the ViTAE repository's checkpoints, and back."""

from __future__ import annotations

import dataclasses
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

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
    released = {entry.preset: entry for entry in ZOO.values() if entry.system == "vitdet"}
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
