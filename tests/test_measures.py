"""The table of regions: areas, borders, places."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from saccade.errors import DataError, UsageError
from saccade.measures import COLUMNS, MeasureCollector, border_length, measure
from saccade.results import Caption, Instances, SemanticMap, encode_masks
from saccade.samples import ClassList, Origin
from saccade.saving import check_formats, save
from saccade.tasks import Task

CLASSES = ClassList.from_names(("background", "lesion", "naevus"))


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def origin(name: str, size_hw: tuple[int, int] = (20, 30)) -> Origin:
    return Origin(dataset="", image_id=name, path=f"/pictures/{name}.png", size_hw=size_hw)


def labels() -> SemanticMap:
    values = torch.zeros(20, 30, dtype=torch.int64)
    values[4:9, 5:15] = 1  # 5 rows, 10 columns
    values[6, 8] = 0  # a hole
    values[15:20, 0:4] = 1
    values[12, 20] = 2
    return SemanticMap(labels=values, classes=CLASSES)


def test_a_rectangle() -> None:
    mask = torch.zeros(20, 30, dtype=torch.bool)
    mask[4:9, 5:15] = True
    found = measure(mask)
    assert (found["area_px"], found["border_px"]) == (50, 2 * (9 + 4))
    assert [found[key] for key in ("x0", "y0", "x1", "y1", "touches_edge")] == [5, 4, 15, 9, 0]
    assert (found["center_x"], found["center_y"]) == (9.5, 6.0)
    points = np.array([pair.split() for pair in found["border_xy"].split(";")], int)
    assert len(points) == 26 and all(mask[y, x] for x, y in points)
    assert border_length(points) == 26


def test_a_disc_is_as_long_as_a_circle_of_pixels() -> None:
    y, x = np.mgrid[:101, :101]
    found = measure(torch.from_numpy((x - 50) ** 2 + (y - 50) ** 2 <= 40**2))
    assert abs(found["area_px"] - math.pi * 40**2) < 30
    assert 2 * math.pi * 39 < found["border_px"] < 2 * math.pi * 40 * 1.09  # steps along a grid are longer than an arc


def test_every_region_has_a_row_and_no_picture_is_missing(tmp_path: Path) -> None:
    table = MeasureCollector()
    table.add(labels(), origin=origin("a"))
    table.add(SemanticMap(labels=torch.zeros(20, 30, dtype=torch.int64), classes=CLASSES), origin=origin("empty"))
    (path,) = table.write(tmp_path)
    rows = rows_of(path)
    assert tuple(rows[0]) == COLUMNS and len(rows) == len(table) == 4
    assert [(row["region"], row["class_name"], row["area_px"]) for row in rows] == [
        ("1", "lesion", "49"),
        ("2", "lesion", "20"),
        ("3", "naevus", "1"),
        ("0", "", "0"),
    ]
    assert [row["touches_edge"] for row in rows[:3]] == ["0", "1", "0"]
    assert rows[0]["border_px"] == "26.0"  # the outer border, not that of the hole
    assert rows[2]["border_px"] == "0.0" and rows[2]["border_xy"] == "20 12"
    assert rows[3]["image"] == "/pictures/empty.png"


def test_instances_are_measured_too_and_sentences_are_not(tmp_path: Path) -> None:
    masks = torch.zeros(3, 20, 30, dtype=torch.bool)
    masks[0, 2:5, 3:6] = True
    masks[1, 2:12, 3:6] = masks[1, 16:18, 20:22] = True  # two parts: the longer border is told
    found = Instances(
        boxes_xyxy=torch.zeros(3, 4),
        scores=torch.tensor([0.9, 0.8, 0.7]),
        class_ids=torch.tensor([1, 2, 1]),
        classes=CLASSES,
        size_hw=(20, 30),
        masks=encode_masks(masks),
    )
    picture = Image.new("RGB", (30, 20))
    written = save(found, picture, "sub/one", tmp_path, ["csv"], origin=origin("one"))
    assert written == [tmp_path / "sub/one_measures.csv"]
    rows = rows_of(written[0])
    assert [(row["score"], row["area_px"], row["border_px"]) for row in rows] == [
        ("0.9", "9", "8.0"),
        ("0.8", "34", "22.0"),
    ]
    with pytest.raises(UsageError, match="no regions"):
        save(Caption(text="a", score=0.0), picture, "two", tmp_path, ["csv"])
    with pytest.raises(UsageError, match="no regions to measure"):
        check_formats(["csv"], Task.DETECTION)
    assert check_formats(["csv"], Task.SEMANTIC)


def test_a_picture_asked_again_replaces_its_rows_and_no_other(tmp_path: Path) -> None:
    first = MeasureCollector()
    first.add(labels(), origin=origin("a"))
    wide = torch.zeros(160, 500, dtype=torch.int64)
    wide[10:150:2, 5:-5] = 1
    wide[10:150, 5] = 1  # a comb: a border of far more characters than the reader of csv takes by itself
    first.add(SemanticMap(labels=wide, classes=CLASSES), origin=origin("b", (160, 500)))
    (path,) = first.write(tmp_path, add=True)
    before = path.read_bytes()
    again = MeasureCollector()
    again.add(SemanticMap(labels=torch.zeros(20, 30, dtype=torch.int64), classes=CLASSES), origin=origin("a"))
    again.write(tmp_path, add=True)
    lines = path.read_bytes().splitlines()
    assert [line.split(b",")[0] for line in lines[1:]] == [b"/pictures/b.png", b"/pictures/a.png"]
    assert max(map(len, lines)) > 131_072 and lines[1] in before.splitlines()
    again.write(tmp_path)
    assert len(rows_of(path)) == 1
    for text in ("image,area\n1,2\n", ",".join(COLUMNS) + "\na,1\n", "\x00"):
        path.write_text(text)
        with pytest.raises(DataError, match="no table of measures"):
            again.write(tmp_path, add=True)
        assert path.read_text() == text
