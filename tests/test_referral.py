"""What phrases refer to, as a result: what it says, draws and writes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from saccade import drawing
from saccade.cli.predict import describe
from saccade.errors import UsageError
from saccade.predictor import Answer
from saccade.results import Referral, decode_masks, encode_masks
from saccade.samples import Origin
from saccade.saving import CocoCollector, check_formats, save
from saccade.tasks import TASKS, Task, parse_task

PICTURE = np.full((30, 40, 3), 90, np.uint8)


def some() -> Referral:
    """Found; rejected, though with a mask; rejected without one."""
    masks = torch.zeros(2, 30, 40, dtype=torch.bool)
    masks[0, 5:15, 10:30], masks[1, 20:] = True, True
    return Referral(
        phrases=("the red ball", "a ship", "two cats"),
        masks=[*encode_masks(masks), None],
        rejected=torch.tensor([False, True, True]),
        scores=torch.tensor([0.9, 0.2, 0.1]),
        size_hw=(30, 40),
    )


def test_it_describes_itself() -> None:
    result = some()
    assert len(result) == 3 and result.found() == [0]
    assert result.dense_masks().flatten(1).sum(1).tolist() == [200, 0, 0]
    told = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert (told["type"], told["size_hw"]) == ("referral", [30, 40])
    ball, ship, cats = told["answers"]
    assert (ball["phrase"], ball["rejected"], ball["area"]) == ("the red ball", False, 200)
    assert ball["box_xyxy"] == [10, 5, 30, 15] and decode_masks([ball["segmentation"]], (30, 40)).sum() == 200
    assert ship["rejected"] and ship["segmentation"] is None and ship["score"] == pytest.approx(0.2)
    assert cats["box_xyxy"] is None and cats["area"] == 0
    assert (
        result.in_words()
        == "'the red ball': 16.7% of the picture (0.90); 'a ship': nothing (0.20); 'two cats': nothing (0.10)"
    )
    answer = Answer(origin=Origin(dataset="", image_id=1, path=None, size_hw=(30, 40)), stem="a", prediction=result)
    assert describe(answer) == result.in_words()


def test_coco_records_are_those_of_what_was_found(tmp_path: Path) -> None:
    (record,) = some().to_coco(7)
    assert (record["image_id"], record["category_id"], record["phrase"]) == (7, 1, "the red ball")
    assert record["bbox"] == [10, 5, 20, 10] and record["area"] == 200
    collector = CocoCollector()
    collector.add(some(), origin=Origin(dataset="", image_id=7, path=None, size_hw=(30, 40)))
    results, dataset = (json.loads(path.read_text()) for path in collector.write(tmp_path))
    assert results == [record] and dataset["categories"] == [{"id": 1, "name": "referred object"}]


def test_a_phrase_that_is_accepted_and_not_drawn_has_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    masks = encode_masks(torch.zeros(1, 30, 40, dtype=torch.bool))
    result = Referral(
        phrases=("the cone",),
        masks=list(masks),
        rejected=torch.tensor([False]),
        scores=torch.tensor([1.0]),
        size_hw=(30, 40),
    )
    assert result.found() == [] and result.to_coco(7) == []
    (answer,) = result.to_dict()["answers"]
    assert not answer["rejected"] and answer["segmentation"] is None and answer["box_xyxy"] is None
    assert result.in_words() == "'the cone': nothing drawn (1.00)"
    listed: list[str] = []
    monkeypatch.setattr(drawing, "draw_referral", lambda image, **given: listed.extend(given["notes"]))
    result.draw(PICTURE)
    assert listed == ["nothing drawn 1.00"]


def test_files(tmp_path: Path) -> None:
    assert check_formats({"png", "npy", "coco"}, Task.REFERRING)
    files = save(some(), PICTURE, "a", tmp_path, {"json", "png", "npy", "overlay"})
    assert [file.name for file in files] == [
        "a.json", "a_phrase0.png", "a_phrase1.png", "a_phrase2.png", "a_masks.npy", "a_overlay.png",
    ]  # fmt: skip
    assert np.array_equal(np.load(files[4]), some().dense_masks().numpy())
    assert np.array_equal(np.asarray(Image.open(files[1])), some().dense_masks()[0].numpy())
    assert not np.asarray(Image.open(files[2])).any()


def test_every_phrase_has_a_colour_and_the_rejected_are_listed() -> None:
    drawn = np.asarray(some().draw(PICTURE)).astype(int)
    assert drawn.shape[1] == 40 and drawn.shape[0] > 30 + 20  # three lines below the picture
    changed = (drawn[:30] != 90).any(-1)
    assert np.array_equal(changed, some().dense_masks()[0].numpy())
    result = some()
    result.rejected[1] = False
    both = np.asarray(result.draw(PICTURE)).astype(int)
    assert (both[10, 20] != both[25, 20]).any() and (both[25, 20] != 90).any()
    with pytest.raises(UsageError, match="original image"):
        some().draw(np.zeros((5, 5, 3), np.uint8))


def test_the_task() -> None:
    assert parse_task("referring") is Task.REFERRING and TASKS[Task.REFERRING].prompt == "phrases"
