"""The reader of COCO panoptic annotations, on drawn scenes in the official layout, and its checks."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from saccade.data.check import check_dataset
from saccade.data.resize import nearest_indices
from saccade.data.scenes import SEMANTIC_CLASSES, THING_CLASSES, draw_scene, write_scenes
from saccade.data.sources import Source, SourceSpec, open_source
from saccade.data.sources.panoptic import read_segment_ids
from saccade.data.transforms import collate, preprocess
from saccade.errors import DataError, UsageError
from saccade.metrics import PanopticMetric
from saccade.results import Panoptic
from saccade.samples import IGNORE_LABEL, Preprocess
from saccade.tasks import Task

SIDE = 64


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_scenes(tmp_path / "scenes", format="coco", split="val", count=3, size=SIDE)
    return tmp_path / "scenes"


def spec(root: Path, **options: Any) -> SourceSpec:
    return SourceSpec(**{"task": Task.SEMANTIC, "reader": "panoptic", "root": str(root), "split": "val"} | options)


def open_(root: Path, **options: Any) -> Source:
    return open_source(spec(root, **options))


def edit(root: Path, change: Any) -> None:
    path = root / "annotations" / "panoptic_val2017.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_scenes_come_back_and_score_one(root: Path) -> None:
    source = pickle.loads(pickle.dumps(open_(root)))
    assert len(source) == 3 and source.name == "scenes/val" and source.skipped == {}
    assert source.classes.names == SEMANTIC_CLASSES
    assert source.classes.things == tuple(name in THING_CLASSES for name in SEMANTIC_CLASSES)
    metric = PanopticMetric(source.classes)
    for index in range(3):
        sample, scene = source[index], draw_scene((0, 1, index), (SIDE, SIDE))
        target = sample.target
        assert target.semantic.dtype == target.panoptic.dtype == torch.int64
        assert np.array_equal(target.semantic.numpy(), scene.semantic)
        assert len(target.segments) == len(scene.segments)
        for segment, drawn in zip(target.segments, scene.segments, strict=True):
            assert segment.class_id == drawn.label and not segment.is_crowd
            assert np.array_equal(target.panoptic.numpy() == segment.id, scene.panoptic == drawn.id)
        assert source.class_ids_of(index) == {drawn.label for drawn in scene.segments}
        said = Panoptic(segment_ids=target.panoptic, segments=target.segments, classes=source.classes)
        metric.update(sample, said)
    assert metric.compute()["PQ"] == 1


def test_other_classes_become_unlabelled_and_crowds_are_kept(root: Path) -> None:
    whole = open_(root)
    present = [name for name in whole.classes.names if whole.classes.names.index(name) in whole.class_ids_of(0)]

    def mark(content: dict[str, Any]) -> None:
        content["annotations"][0]["segments_info"][0]["iscrowd"] = 1

    edit(root, mark)
    first = whole[0].target.segments[0].class_id
    chosen = [whole.classes.names[first], next(name for name in present if name != whole.classes.names[first])]
    source = open_(root, classes=tuple(chosen))
    assert source.classes.category_ids[0] == whole.classes.category_ids[first]
    target = source[0].target
    assert target.segments[0].is_crowd and {segment.class_id for segment in target.segments} == {0, 1}
    left_out = target.semantic == IGNORE_LABEL
    assert left_out.any() and torch.equal(left_out, target.panoptic == 0)
    assert source.skipped["segment of another class"] > 0


def test_maps_follow_the_image_into_the_network_input(root: Path) -> None:
    sample = open_(root)[0]
    declared = Preprocess(size_hw=(40, 50), pad_multiple=16)
    moved = preprocess(sample, declared)
    rows, columns = nearest_indices(SIDE, 40), nearest_indices(SIDE, 50)
    assert np.array_equal(moved.target.panoptic.numpy(), sample.target.panoptic.numpy()[rows[:, None], columns])
    padded = collate([moved], declared).targets[0].panoptic
    assert padded.shape == (48, 64) and not padded[40:].any() and not padded[:, 50:].any()


def test_damage_is_refused_with_its_file(root: Path) -> None:
    with pytest.raises(UsageError, match="serve semantic segmentation"):
        open_(root, task=Task.INSTANCE)
    maps = root / "annotations" / "panoptic_val2017"
    pngs = sorted(maps.iterdir())
    ids = read_segment_ids(pngs[0])
    Image.fromarray(np.zeros((SIDE, SIDE, 3), np.uint8)).save(pngs[0])
    with pytest.raises(DataError, match=r"different segments(.|\n)*" + pngs[0].name):
        open_(root)[0]
    Image.fromarray(np.zeros((SIDE, SIDE + 1, 3), np.uint8)).save(pngs[1])
    with pytest.raises(DataError, match=r"another size than its image(.|\n)*" + pngs[1].name):
        open_(root)[1]
    assert ids.max() > 65536  # the scenes use all three channels
    pngs[2].unlink()
    edit(root, lambda content: content["annotations"][1]["segments_info"][0].update(category_id=999))
    report = check_dataset(spec(root), other_splits=())
    kinds = {finding.kind for finding in report.findings}
    assert {"invalid_entry", "mask_size_mismatch", "missing_mask", "unknown_category"} <= kinds
    edit(root, lambda content: content["annotations"][0].pop("file_name"))
    with pytest.raises(DataError, match="lacks a field"):
        open_(root)
    maps.rename(root / "elsewhere")
    with pytest.raises(UsageError, match="folder of the panoptic PNGs"):
        open_(root)


def test_a_sound_data_set_has_only_unused_classes(root: Path) -> None:
    report = check_dataset(spec(root))
    assert {finding.kind for finding in report.findings} <= {"unused_class"}
    assert report.counts["images"] == 3 and report.counts["classes"] == len(SEMANTIC_CLASSES)
