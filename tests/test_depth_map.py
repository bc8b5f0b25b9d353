"""Depth maps as results: what they say, draw and write."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from saccade.data.transforms import fit
from saccade.errors import UsageError
from saccade.results import DepthMap
from saccade.saving import check_formats, save
from saccade.tasks import Task

DEPTH = torch.linspace(0.5, 8.0, 30 * 40).view(30, 40)
PICTURE = np.full((30, 40, 3), 90, np.uint8)


def with_hole() -> DepthMap:
    depth = DEPTH.clone()
    depth[:10, :10] = 0
    return DepthMap(depth_m=depth)


def test_it_describes_itself() -> None:
    told = with_hole().to_dict()
    assert (told["type"], told["size_hw"]) == ("depth_map", [30, 40])
    assert told["known"] == pytest.approx(1100 / 1200)
    assert told["greatest_m"] == 8.0 and told["least_m"] == pytest.approx(float(DEPTH[0, 10]))
    assert DepthMap(depth_m=torch.zeros(2, 2)).to_dict()["least_m"] is None


def test_png_is_in_millimetres() -> None:
    back = np.asarray(DepthMap(depth_m=torch.tensor([[0.0, 1.2345, 70.0]])).to_png())
    assert back.dtype == np.uint16 and back.tolist() == [[0, 1234, 65535]]


def test_every_format_is_written_and_coco_is_refused(tmp_path: Path) -> None:
    files = save(with_hole(), PICTURE, "a", tmp_path, {"json", "png", "npy", "overlay"})
    assert [file.name for file in files] == ["a.json", "a_depth.png", "a_depth.npy", "a_overlay.png"]
    assert np.array_equal(np.load(files[2]), with_hole().depth_m.numpy())
    assert json.loads(files[0].read_text())["type"] == "depth_map"
    with pytest.raises(UsageError, match="COCO has no form for depth"):
        check_formats({"coco"}, Task.DEPTH)
    with pytest.raises(UsageError, match="no COCO form"):
        save(with_hole(), PICTURE, "a", tmp_path, {"coco"})


def test_near_is_brighter_than_far_and_the_unknown_stays_grey() -> None:
    drawn = np.asarray(with_hole().draw(PICTURE)).astype(int)
    assert drawn.shape[1] == 40 and drawn.shape[0] > 30
    assert (drawn[:10, :10] == 90).all()
    light = drawn[:30].sum(-1)
    assert light[0, 20] > light[15, 20] > light[29, 20]
    blank = np.asarray(DepthMap(depth_m=torch.zeros(30, 40)).draw(PICTURE))
    assert (blank[:30] == 90).all()
    with pytest.raises(UsageError, match="original image"):
        with_hole().draw(PICTURE[:20])


@pytest.mark.parametrize(
    ("size", "cover", "wanted"),
    [
        ((480, 640), True, (480, 640)),
        ((100, 50), True, (960, 480)),
        ((100, 50), False, (480, 240)),
        ((1, 999), True, (480, 479520)),
    ],
)
def test_a_frame_is_filled_or_covered(size: tuple[int, int], cover: bool, wanted: tuple[int, int]) -> None:
    assert fit(size, (480, 480), cover=cover) == wanted
