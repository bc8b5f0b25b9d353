"""Readers of images with phrases and masks, on miniatures that the tests write and on that of the parity fixtures."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers_layouts import SHARED, coco_content, refs, save_image, save_mask, write_json, write_refcoco_layout
from torch import Tensor

from saccade.data.check import check_dataset
from saccade.data.phrases import PhraseAugment, draw_phrases
from saccade.data.pipeline import Redraw
from saccade.data.scenes import write_scenes
from saccade.data.sources import SourceSpec, open_source
from saccade.data.sources.base import Source
from saccade.data.sources.present import DOWNLOADS, open_present
from saccade.draws import GeneratorDraws
from saccade.errors import DataError, MissingDataError, UsageError
from saccade.results import from_truth
from saccade.samples import Sample
from saccade.tasks import Task

MINIATURE = SHARED.parent / "parity/gsva/data"
READERS = ("refcoco", "grefcoco", "refzom", "reasonseg", "ade20k", "coco_stuff", "mapillary", "paco", "pascal_part",
           "llava_instruct")  # fmt: skip


def open_(reader: str, root: Path | str, split: str = "train", **options: Any) -> Source:
    return open_source(SourceSpec(task=Task.REFERRING, reader=reader, root=str(root), split=split, **options))


def areas(sample: Sample) -> list[int]:
    assert sample.target.masks is not None
    return sample.target.masks.as_subclass(Tensor).flatten(1).sum(1).tolist()


# ------------------------------------------------------------------------------------------------ references


def test_all_sentences_of_an_image_are_one_sample(tmp_path: Path) -> None:
    write_refcoco_layout(tmp_path)
    source = open_("refcoco", tmp_path)
    assert len(source) == 1
    sample = source[0]
    assert sample.phrases == ("the dog", "left") and sample.wording == "expression"
    assert areas(sample) == [100, 100] and sample.target.masks[0, 5:15, 5:15].all()
    assert sample.target.boxes.tolist() == [[5, 5, 15, 15]] * 2 and sample.target.phrase_ids.tolist() == [0, 1]
    assert from_truth(sample).rejected.tolist() == [False, False]
    assert len(open_("refcoco", tmp_path, "testA")) == len(open_("refcoco", tmp_path, "test")) == 1
    with pytest.raises(UsageError, match=r"no phrase has the split 'testB'[\s\S]*it has testA, train"):
        open_("refcoco", tmp_path, "testB")


def write_grefs(root: Path, name: str = "grefs(unc).json") -> None:
    write_refcoco_layout(root)
    base = refs()[0]

    def ref(number: int, targets: list[int], *sentences: str, **more: Any) -> dict[str, Any]:
        said = [{"sent": sentence, "raw": sentence} for sentence in sentences]
        return base | {"ref_id": number, "ann_id": targets, "sentences": said} | more

    content = [
        ref(1, [1], "the dog"),
        ref(2, [1, 2], "all of it"),
        ref(3, [-1], "a ship", "", no_target=True),
        ref(4, [], "nothing"),
        ref(5, [777], "lost"),
        ref(6, [3], "the cat", image_id=9),
        ref(7, [3], "a test", image_id=9, split="testA"),
    ]
    path = root / "refcoco" / name
    if path.suffix == ".p":
        path.write_bytes(pickle.dumps(content, protocol=2))
    else:
        write_json(path, content)


def test_several_targets_or_none(tmp_path: Path) -> None:
    write_grefs(tmp_path)
    source = open_("grefcoco", tmp_path)
    assert [source[k].origin.image_id for k in range(len(source))] == [7, 9]
    sample = source[0]
    assert sample.phrases == ("the dog", "all of it", "a ship", "nothing")
    assert areas(sample) == [100, 1200, 0, 0]
    assert sample.target.phrase_ids.tolist() == [0, 1, 1] and len(sample.target.boxes) == 3
    # Of a cat drawn by a polygon and a triangle, both count.
    assert areas(source[1])[0] > 24
    assert source.skipped == {"phrase with a target that is not listed": 1, "phrase without words": 1}
    assert len(open_("grefcoco", tmp_path, "testA")) == 1
    with pytest.raises(UsageError, match="no phrase has the split 'test'"):  # gRefCOCO names its splits exactly
        open_("grefcoco", tmp_path, "test")


def test_what_no_model_can_be_asked_is_left_out_and_counted(tmp_path: Path) -> None:
    write_refcoco_layout(tmp_path)
    odd = refs()
    odd[0]["sentences"] = [{"sent": text, "raw": text} for text in ("the dog", ". .", "a <S>", "say [SEG]")]
    (tmp_path / "refcoco" / "refs(unc).p").write_bytes(pickle.dumps(odd, protocol=2))
    source = open_("refcoco", tmp_path)
    assert source[0].phrases == ("the dog",)
    assert source.skipped == {
        "phrase without words": 1, "phrase with '<s>' in it": 1, "phrase with '[SEG]' in it": 1
    }  # fmt: skip
    report = check_dataset(SourceSpec(task=Task.REFERRING, reader="refcoco", root=str(tmp_path), split="train"))
    found = {finding.kind: finding.count for finding in report.findings}
    assert found["unsayable_phrase"] == 2 and found["empty_phrase"] == 1
    talks = [("<image>\nwhat?", "a dog"), ("what?", "it says </s>"), ("ASSISTANT: so?", "yes"), ("what?", " . ")]
    entries = [
        {"id": k, "image": "a.png", "conversations": [{"from": "human", "value": ask}, {"from": "gpt", "value": said}]}
        for k, (ask, said) in enumerate(talks)
    ]
    write_json(tmp_path / "llava_instruct_150k.json", entries)
    talking = open_("llava_instruct", tmp_path, images="train2014")
    assert len(talking) == 1
    assert talking.skipped == {
        "dialogue with a text with '</s>' in it": 1,
        "dialogue with a text with 'ASSISTANT:' in it": 1,
        "dialogue with a text without words": 1,
    }


def test_ref_zom_is_a_pickle_of_the_same_form(tmp_path: Path) -> None:
    write_grefs(tmp_path, "Ref_ZOM.p")
    assert areas(open_("refzom", tmp_path)[0]) == [100, 1200, 0, 0]
    grounded = open_source(SourceSpec(task=Task.GROUNDING, reader="refzom", root=str(tmp_path)))
    assert [grounded[k].phrase for k in range(len(grounded))] == ["the dog", "the cat"]


def test_masks_may_be_lists_of_run_lengths(tmp_path: Path) -> None:
    write_grefs(tmp_path)
    content = coco_content()
    halves = [{"size": [30, 40], "counts": [0, 30, 1170]}, {"size": [30, 40], "counts": [1185, 15]}]
    content["annotations"][0]["segmentation"] = halves
    content["annotations"][2]["segmentation"] = [[1, 2, 3, 4], [5, 5, 9, 9, 7]]
    write_json(tmp_path / "refcoco" / "instances.json", content)
    source = open_("grefcoco", tmp_path)
    assert areas(source[0])[0] == 45
    assert areas(source[1]) == [0] and source.skipped["polygon with fewer than 3 points"] == 2
    content["annotations"][0]["segmentation"][0]["size"] = [40, 30]
    write_json(tmp_path / "refcoco" / "instances.json", content)
    with pytest.raises(DataError, match=r"another size[\s\S]*annotation 1"):
        open_("grefcoco", tmp_path)[0]


class _Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("/tmp/saccade_was_here_too"),))


def test_damage_is_one_clear_error(tmp_path: Path) -> None:
    write_grefs(tmp_path, "Ref_ZOM.p")
    path = tmp_path / "refcoco" / "Ref_ZOM.p"
    path.write_bytes(pickle.dumps([_Evil()]))
    with pytest.raises(DataError, match="more than plain data"):
        open_("refzom", tmp_path)
    assert not Path("/tmp/saccade_was_here_too").exists()
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(DataError, match="damaged"):
        open_("refzom", tmp_path)
    path.write_bytes(pickle.dumps([{"split": "train", "image_id": 7, "ann_id": [1]}]))
    with pytest.raises(DataError, match="lacks a field"):
        open_("refzom", tmp_path)
    path.unlink()
    with pytest.raises(MissingDataError, match=r"no file of references[\s\S]*Ref_ZOM"):
        open_("refzom", tmp_path)
    with pytest.raises(UsageError, match="serve"):
        open_source(SourceSpec(task=Task.SEMANTIC, reader="grefcoco", root=str(tmp_path)))


def test_scenes_have_phrases_with_one_several_and_no_target(tmp_path: Path) -> None:
    drawn = open_("scenes", "", "val", size=96, limit=6)
    kinds = {min(2, int((sample.target.phrase_ids == k).sum())) for sample in map(drawn.__getitem__, range(6))
             for k in range(len(sample.phrases))}  # fmt: skip
    assert kinds == {0, 1, 2}
    write_scenes(tmp_path, format="grefcoco", count=6, split="val", size=96)
    read = open_("grefcoco", tmp_path, "val")
    assert len(read) == 6
    for k in range(6):
        one, other = drawn[k], read[k]
        assert one.phrases == other.phrases
        assert torch.equal(one.target.masks, other.target.masks)
        assert torch.equal(one.target.boxes, other.target.boxes)
        assert torch.equal(one.target.phrase_ids, other.target.phrase_ids)
        for phrase, mask in enumerate(one.target.masks):
            assert bool(mask.any()) == bool((one.target.phrase_ids == phrase).any())


# ------------------------------------------------------------------------------------------------ ReasonSeg


def write_reasonseg(root: Path, split: str = "train") -> Path:
    folder = root / "ReasonSeg" / split
    save_image(folder / "b.jpg", (30, 40))
    save_image(folder / "a.jpg", (30, 40))
    save_image(folder / "alone.jpg", (30, 40))
    square = [[5.9, 5], [15, 5], [15, 15], [5, 15]]
    shapes = [
        {"label": "target", "points": square},
        {"label": "Ignore", "points": [[10, 10], [12, 10], [12, 12], [10, 12]]},
        {"label": "flag", "points": [[0, 0], [39, 0], [39, 29], [0, 29]]},
        {"label": "ignore_big", "points": [[4, 4], [20, 4], [20, 20], [4, 20]]},
    ]
    write_json(folder / "a.json", {"text": ["What cuts?", "the knife"], "is_sentence": True, "shapes": shapes})
    text = {"text": ["a caf\xe9"], "is_sentence": False, "shapes": shapes[:1]}
    (folder / "b.json").write_bytes(json.dumps(text, ensure_ascii=False).encode("cp1252"))
    write_json(folder.parent / "explanatory" / "train.json", [{"image": "a.jpg", "outputs": "It is sharp."}])
    return folder


def test_reasonseg(tmp_path: Path) -> None:
    folder = write_reasonseg(tmp_path)
    source = open_("reasonseg", tmp_path)
    assert len(source) == 2 and source.skipped == {"image without a file of texts": 1}
    first, second = source[0], source[1]
    assert (first.phrases, first.wording) == (("What cuts?", "the knife"), "sentence")
    assert (second.phrases, second.wording) == (("a café",), "question")
    # The larger polygon lies below: its outline counts, and the small one is cut out of the target.
    assert areas(first) == [11 * 11 - 9] * 2 and int(first.target.ignored.sum()) == 17 * 17 - 11 * 11 + 9
    assert areas(second) == [121] and first.target.explanation == "It is sharp." and not second.target.explanation
    write_reasonseg(tmp_path, "val")
    judged = open_("reasonseg", tmp_path, "val")[0]
    assert judged.phrases == ("What cuts?",) and areas(judged) == [112] and not judged.target.explanation
    write_json(folder / "a.json", {"text": ["x"], "shapes": []})
    with pytest.raises(DataError, match=r"ReasonSeg lacks a field[\s\S]*a.json"):
        source[0]
    with pytest.raises(MissingDataError, match="folder of the images"):
        open_("reasonseg", tmp_path, "nowhere")


# ------------------------------------------------------------------------------------------------ classes and parts


def write_label_maps(root: Path) -> None:
    labels = np.full((30, 40), 255)
    labels[:10], labels[10:15], labels[20:] = 0, 95, 119  # person, building-other, fog
    save_image(root / "coco/train2017/1.jpg", (30, 40))
    save_mask(root / "cocostuff/train2017/1.png", labels)
    save_image(root / "mapillary/training/images/1.jpg", (30, 40))
    save_mask(root / "mapillary/training/v2.0/labels/1.png", np.minimum(labels, 1))
    names = [{"name": "a--bird", "readable": "Bird"}, {"name": "b", "readable": "Ground Animal"}]
    write_json(root / "mapillary/config_v2.0.json", {"labels": names})
    save_image(root / "ade/images/training/1.jpg", (30, 40))
    save_mask(root / "ade/annotations/training/1.png", np.where(labels == 255, 0, np.minimum(labels, 3) + 1))


def test_class_names_as_phrases(tmp_path: Path) -> None:
    write_label_maps(tmp_path)
    stuff = open_("coco_stuff", tmp_path)[0]
    assert (stuff.phrases, stuff.wording, areas(stuff)) == (("person", "fog"), "class", [400, 400])
    assert stuff.classes is None and stuff.target.semantic is None
    streets = open_("mapillary", tmp_path)[0]
    assert (streets.phrases, areas(streets)) == (("bird", "ground animal"), [400, 800])
    rooms = open_("ade20k", tmp_path / "ade")[0]
    assert (rooms.phrases, areas(rooms)) == (("wall", "floor"), [400, 600])
    labelled = open_source(SourceSpec(task=Task.SEMANTIC, reader="coco_stuff", root=str(tmp_path)))
    assert len(labelled.classes) == 182 and labelled.classes.names[95] == "building-other"
    assert labelled[0].target.semantic[12, 0] == 95
    with pytest.raises(UsageError, match="serve semantic or referring"):
        open_source(SourceSpec(task=Task.DETECTION, reader="mapillary", root=str(tmp_path)))


def write_parts(root: Path) -> dict[str, Any]:
    content = coco_content()
    content["categories"] = [
        {"id": 90, "name": "chair_(furniture):back_(part)"},
        {"id": 1, "name": "dog:head"},
        {"id": 3, "name": "chair_(x)"},
    ]
    write_json(root / "paco/annotations/x.json", content)
    write_json(root / "vlpart/paco/annotations/paco_lvis_v1_train.json", content)
    for image in content["images"]:
        save_image(root / "coco" / image["file_name"])
    return content


def test_parts_are_phrases_one_by_one(tmp_path: Path) -> None:
    content = write_parts(tmp_path)
    source = open_("paco", tmp_path)
    assert [source[k].phrases for k in range(3)] == [("chair", "chair:back"), ("dog:head",), ()]
    assert areas(source[0]) == [100, 1200] and source[0].wording == "part"
    draw = draw_phrases(source[0], 5, GeneratorDraws(np.random.default_rng(0)))
    assert draw.phrases[0] == "chair" and draw.phrases[1] in ("chair back", "the back of the chair")
    with pytest.raises(Redraw, match="without phrases"):
        draw_phrases(source[2], 5, GeneratorDraws(np.random.default_rng(0)))
    content["annotations"][0]["category_id"] = 4
    write_json(tmp_path / "vlpart/paco/annotations/paco_lvis_v1_train.json", content)
    with pytest.raises(DataError, match="undeclared category"):
        open_("paco", tmp_path)
    with pytest.raises(MissingDataError, match="annotation file of the split 'val'"):
        open_("paco", tmp_path, "val")


# ------------------------------------------------------------------------------------------------ dialogues


def test_dialogues(tmp_path: Path) -> None:
    save_image(tmp_path / "train2017/1.jpg")
    turns = [("gpt", "hello"), ("human", "What?\n<image>"), ("gpt", "A dog."), ("human", "Small?"), ("gpt", "Yes."),
             ("human", "And?")]  # fmt: skip
    entries = [
        {"id": "1", "image": "1.jpg", "conversations": [{"from": who, "value": said} for who, said in turns]},
        {
            "id": "2",
            "image": "1.jpg",
            "conversations": [{"from": "human", "value": "a"}, {"from": "human", "value": "b"}],
        },
        {"id": "3", "conversations": []},
    ]
    write_json(tmp_path / "llava_instruct_150k.json", entries)
    source = open_("llava_instruct", tmp_path)
    assert len(source) == 1
    sample = source[0]
    assert sample.dialogue == (("What?\n<image>", "A dog."), ("Small?", "Yes."))
    assert sample.target.masks.shape == (0, 30, 40) and not sample.phrases
    assert source.skipped == {
        "answer before the first question": 1,
        "question without an answer": 1,
        "dialogue without turns of question and answer": 1,
        "dialogue without an image": 1,
    }
    assert draw_phrases(sample, 5, GeneratorDraws(np.random.default_rng(0))) is sample
    with pytest.raises(UsageError, match="no split 'val'"):
        open_("llava_instruct", tmp_path, "val")


# ------------------------------------------------------------------------------------------------ drawing phrases


def test_phrases_are_drawn_with_their_masks_and_boxes() -> None:
    sample = open_("scenes", "", "val", size=96, limit=1)[0]
    truth = {phrase: int(mask.sum()) for phrase, mask in zip(sample.phrases, sample.target.masks, strict=True)}
    seen = set()
    for seed in range(30):
        try:
            drawn = PhraseAugment(count=2).build(0)(sample, np.random.default_rng(seed))
        except Redraw:
            continue
        seen.update(drawn.phrases)
        assert len(drawn.phrases) == 2 == len(set(drawn.phrases))
        assert areas(drawn) == [truth[phrase] for phrase in drawn.phrases] and any(areas(drawn))
        for k, mask in enumerate(drawn.target.masks):
            boxes = drawn.target.boxes[drawn.target.phrase_ids == k]
            assert len(boxes) == (sample.target.phrase_ids == sample.phrases.index(drawn.phrases[k])).sum()
            if len(boxes):
                rows, columns = mask.nonzero().unbind(1)
                assert boxes[:, 1].min() == rows.min() and boxes[:, 2].max() == columns.max() + 1
    assert seen == set(sample.phrases)


def test_phrases_without_any_target_are_drawn_again(tmp_path: Path) -> None:
    write_grefs(tmp_path)
    sample = open_("grefcoco", tmp_path)[0]
    kinds = []
    for seed in range(40):
        try:
            drawn = draw_phrases(sample, 1, GeneratorDraws(np.random.default_rng(seed)))
            kinds.append(areas(drawn)[0])
        except Redraw as redraw:
            kinds.append(redraw.reason)
    assert set(kinds) == {100, 1200, "no drawn phrase has a target"}


# ------------------------------------------------------------------------------------------------ together


def test_what_is_missing_is_named_with_where_to_get_it(tmp_path: Path) -> None:
    write_grefs(tmp_path)
    (tmp_path / "refcoco" / "refs(unc).p").rename(tmp_path / "refs.p")
    files = {"refcoco": "refs.p", "grefcoco": "refcoco/grefs(unc).json"}
    specs = [
        SourceSpec(task=Task.REFERRING, reader=reader, root=str(tmp_path), annotations=files.get(reader, ""))
        for reader in READERS
    ]
    write_json(tmp_path / "instances.json", coco_content())
    found, warnings = open_present(specs)
    assert [spec.reader for spec, _ in found] == ["refcoco", "grefcoco"] and len(warnings) == len(READERS) - 2
    assert any("ReasonSeg: github.com/dvlab-research/LISA" in warning for warning in warnings)
    assert set(DOWNLOADS) == set(READERS)
    nothing = open_present([SourceSpec(task=Task.REFERRING, reader="paco", root=str(tmp_path / "no"))])
    assert nothing[0] == [] and "PACO" in nothing[1][0]
    (tmp_path / "refcoco" / "grefs(unc).json").write_text("[")
    with pytest.raises(DataError, match="not valid JSON"):  # damaged is not missing
        open_present(specs)


def test_checks(tmp_path: Path) -> None:
    def kinds(reader: str, **options: Any) -> dict[str, int]:
        spec = SourceSpec(task=Task.REFERRING, reader=reader, root=str(tmp_path), split="train", **options)
        report = check_dataset(spec)
        return {finding.kind: finding.count for finding in report.findings if finding.kind != "unused_class"}

    write_grefs(tmp_path)
    assert kinds("grefcoco") == {"dangling_reference": 1, "empty_phrase": 1, "image_in_both_splits": 1}
    content = coco_content()
    content["annotations"][0]["segmentation"] = [{"size": [30, 40], "counts": [5]}]
    write_json(tmp_path / "refcoco" / "instances.json", content)
    assert kinds("grefcoco")["bad_rle"] == 1
    folder = write_reasonseg(tmp_path)
    assert kinds("reasonseg") == {"missing_mask": 1}
    write_json(folder / "a.json", {"text": [" ", "x"], "is_sentence": 0, "shapes": [{"label": "ignore", "points": []}]})
    write_json(folder / "b.json", {"text": ["x"]})
    found = {"invalid_entry": 1, "missing_mask": 1, "empty_phrase": 1, "empty_polygon": 1, "short_polygon": 1}
    assert kinds("reasonseg") == found
    write_label_maps(tmp_path)
    assert kinds("coco_stuff") == kinds("mapillary") == {}
    content = write_parts(tmp_path)
    assert kinds("paco") == {}
    content["annotations"][0] |= {"category_id": 4, "segmentation": [[1, 2, 3]]}
    content["annotations"][1]["image_id"] = 77
    write_json(tmp_path / "vlpart/paco/annotations/paco_lvis_v1_train.json", content)
    assert kinds("paco") == {"dangling_annotation": 1, "unknown_category": 1, "short_polygon": 1}
    talk = [{"from": "human", "value": "<image> a"}, {"from": "gpt", "value": " "}]
    write_json(tmp_path / "llava_instruct_150k.json", [{"id": 1, "image": "a.png", "conversations": talk}])
    assert kinds("llava_instruct", images="train2014") == {"empty_phrase": 1}


@pytest.mark.skipif(not MINIATURE.is_dir(), reason="../shared/parity/gsva is absent")
@pytest.mark.parametrize("reader", READERS)
def test_the_miniature_of_the_original_is_read(reader: str) -> None:
    root = {"grefcoco": "refer_seg", "refzom": "refer_seg", "refcoco": "refer_seg/refcoco", "ade20k": "ade20k"}
    options = {"annotations": "refcoco/refs(unc).p"} if reader == "refcoco" else {}
    folder = MINIATURE / (root[reader] if reader != "refcoco" and reader in root else "refer_seg" if options else "")
    source = open_(reader, folder, **options)
    for k in range(len(source)):
        sample = source[k]
        assert sample.target.masks.shape == (len(sample.phrases), *sample.size_hw)
        assert bool(sample.phrases) != bool(sample.dialogue) or reader == "ade20k"


@pytest.mark.skipif(not SHARED.exists(), reason="the shared data is not here")
def test_derived_references_of_real_images() -> None:
    images, phrases, absent = 0, 0, 0
    for split in ("train", "val"):
        source = open_("grefcoco", SHARED / "coco_mini", split)
        assert not source.skipped
        images += len(source)
        for k in range(len(source)):
            sample = source[k]
            phrases += len(sample.phrases)
            absent += areas(sample).count(0)
    assert (images, phrases, absent) == (83, 677, 166)
