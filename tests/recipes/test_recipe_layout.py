"""The five-task recipe finds its data in the official layouts (written here by the scenes)."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest

from saccade.data.scenes import write_scenes
from saccade.data.sources import open_source
from saccade.recipes import get_recipe
from saccade.tasks import Task


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    for split in ("train", "val"):
        write_scenes(root / "coco", format="coco", count=3, split=split, size=64)
        write_scenes(root / "ade/ADEChallengeData2016", format="ade", count=3, split=split, size=64)
    for split in ("train", "test"):
        write_scenes(root / "coco", format="karpathy", count=3, split=split, size=64)
    written = root / "refer"
    for split in ("train", "val"):
        write_scenes(written, format="refcoco", count=6, split=split, size=64)
    for name, by in (("refcoco", "unc"), ("refcoco+", "unc"), ("refcocog", "umd")):
        shutil.copytree(written / "refcoco", root / "coco" / name)
        if by != "unc":
            (root / "coco" / name / "refs(unc).p").rename(root / "coco" / name / f"refs({by}).p")
    shutil.copytree(written / "images/mscoco/images/train2014", root / "coco/train2014", dirs_exist_ok=True)
    return root


@pytest.mark.parametrize("name", ["git.multi_fivetask_base", "git.multi_fivetask_huge"])
def test_every_source_opens_and_gives_its_truth(data: Path, name: str) -> None:
    config = get_recipe(name)(data=str(data))
    for part in (config.train, config.val):
        for spec in part:
            if spec.reader == "coco":  # the scenes have other classes than COCO
                spec = dataclasses.replace(spec, classes=())
            source = open_source(spec)
            sample = source[0]
            assert sample.task is spec.task
            target = sample.target
            if spec.task in (Task.DETECTION, Task.INSTANCE):
                assert target.boxes is not None
                assert (target.masks is not None) == (spec.task is Task.INSTANCE)
            elif spec.task is Task.SEMANTIC:
                assert len(source.classes) == 150
                assert target.semantic is not None
            elif spec.task is Task.CAPTION:
                assert len(target.captions) == (1 if spec.per_caption else 5)
            else:
                assert sample.phrase
                assert target.boxes is not None
                assert len(target.boxes) == 1
