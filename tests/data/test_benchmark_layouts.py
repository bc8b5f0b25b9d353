"""Miniatures of the official layouts of test sets, and their readers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers_benchmarks import write_nocaps, write_questions, write_word_sets
from helpers_layouts import save_image, write_json

from saccade.data.benchmarks.imagenet import CLASSIFIED, imagenet_classes, imagenet_templates
from saccade.data.benchmarks.questions import open_questions
from saccade.data.benchmarks.words import WORD_SETS, open_mjsynth, open_training_words
from saccade.data.check import check_dataset
from saccade.data.sources import SourceSpec, open_source
from saccade.errors import DataError, MissingDataError, SaccadeError, UsageError
from saccade.tasks import Task

V2 = "imagenetv2-matched-frequency-format-val"
TENCH, GOLDFISH, BANANA = "n01440764", "n01443537", "n07753592"


def test_the_thousand_classes_and_eighty_prompts() -> None:
    classes = imagenet_classes()
    assert len(classes) == 1000 and [one.wordnet_id for one in classes] == sorted(one.wordnet_id for one in classes)
    assert (classes[0].name, classes[1].name, classes[999].name) == ("tench", "goldfish", "toilet paper")
    assert sum(one.in_a for one in classes) == sum(one.in_r for one in classes) == 200
    templates = imagenet_templates()
    assert len(set(templates)) == 80 and all(template.count("{}") == 1 for template in templates)


@pytest.mark.parametrize(
    ("name", "folders", "classes"),
    [
        ("imagenet", {f"val/{TENCH}": 0, f"val/{BANANA}": 954}, 1000),
        ("imagenet_sketch", {f"sketch/{GOLDFISH}": 1}, 1000),
        ("imagenet_v2", {f"{V2}/954": 954, f"{V2}/7": 7}, 1000),
    ],
)
def test_folders_of_all_classes(tmp_path: Path, name: str, folders: dict[str, int], classes: int) -> None:
    for folder in folders:
        save_image(tmp_path / folder / "a.JPEG")
    found = CLASSIFIED[name](tmp_path)
    assert len(found.class_names) == classes and len(found.paths) == len(folders)
    assert {
        path.parent.relative_to(tmp_path).as_posix(): label
        for path, label in zip(found.paths, found.labels, strict=True)
    } == folders


@pytest.mark.parametrize("name", ["imagenet_a", "imagenet_r"])
def test_sets_of_two_hundred_classes_are_asked_those_alone(tmp_path: Path, name: str) -> None:
    kept = [one for one in imagenet_classes() if (one.in_a if name == "imagenet_a" else one.in_r)]
    save_image(tmp_path / kept[3].wordnet_id / "a.jpg")
    save_image(tmp_path / kept[199].wordnet_id / "b.jpg")
    found = CLASSIFIED[name](tmp_path)
    assert len(found.class_names) == 200 and found.labels == [3, 199]
    assert found.class_names[199] == kept[199].name
    other = next(one for one in imagenet_classes() if one not in kept)
    save_image(tmp_path / other.wordnet_id / "c.jpg")
    with pytest.raises(DataError, match="no class of"):
        CLASSIFIED[name](tmp_path)


def test_the_challenge_has_a_layout_of_its_own(tmp_path: Path) -> None:
    for name in ("ILSVRC2012_val_00000001", "ILSVRC2012_val_00000002"):
        save_image(tmp_path / "ILSVRC/Data/CLS-LOC/val" / f"{name}.JPEG")
    rows = [
        "ImageId,PredictionString",
        f"ILSVRC2012_val_00000001,{BANANA} 1 2 3 4 {BANANA} 5 6 7 8 ",
        f"ILSVRC2012_val_00000002,{TENCH} 1 2 3 4 ",
    ]
    (tmp_path / "LOC_val_solution.csv").write_text("\n".join(rows))
    found = CLASSIFIED["imagenet"](tmp_path)
    assert found.labels == [954, 0] and all(path.is_file() for path in found.paths)
    (tmp_path / "LOC_val_solution.csv").write_text("ImageId,PredictionString\nx,n999 1\n")
    with pytest.raises(DataError, match="solution file"):
        CLASSIFIED["imagenet"](tmp_path)


def test_objectnet_by_its_own_mappings(tmp_path: Path) -> None:
    mappings = {
        "folder_to_objectnet_label.json": {
            "banana": "Banana",
            "air_freshener": "Air freshener",
            "alarm": "Alarm clock",
        },
        "objectnet_to_imagenet_1k.json": {"Banana": "banana", "Alarm clock": "analog clock; digital clock"},
    }
    for name, content in mappings.items():
        write_json(tmp_path / "objectnet-1.0/mappings" / name, content)
    for folder in ("banana", "air_freshener", "alarm"):
        save_image(tmp_path / "objectnet-1.0/images" / folder / "x.png")
    found = CLASSIFIED["objectnet"](tmp_path)
    assert found.class_names == ("alarm clock", "banana") and found.border == 2
    assert sorted(zip((path.parent.name for path in found.paths), found.labels, strict=True)) == [
        ("alarm", 0),
        ("banana", 1),
    ]
    assert found.skipped == {"folder of no class": 1}


@pytest.mark.parametrize("name", sorted(CLASSIFIED))
def test_a_folder_without_classes_is_one_clear_error(tmp_path: Path, name: str) -> None:
    (tmp_path / "cats").mkdir()
    with pytest.raises(SaccadeError) as caught:
        CLASSIFIED[name](tmp_path)
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("name", sorted(WORD_SETS))
def test_words_of_every_set(tmp_path: Path, name: str) -> None:
    write_word_sets(tmp_path)
    found = WORD_SETS[name](tmp_path / name)
    assert [one.word for one in found.pictures] == ["HELLO", "World"]
    assert all(one.path.is_file() for one in found.pictures)
    assert (found.pictures[0].box_xyxy == (10, 5, 70, 25)) == (name == "svt")
    assert sum(found.skipped.values()) == (name == "ic13")


@pytest.mark.parametrize("name", sorted(WORD_SETS))
def test_a_folder_without_words_is_one_clear_error(tmp_path: Path, name: str) -> None:
    with pytest.raises(MissingDataError):
        WORD_SETS[name](tmp_path)


def test_damaged_lists_of_words(tmp_path: Path) -> None:
    write_word_sets(tmp_path)
    (tmp_path / "ic15/Challenge4_Test_Task3_GT.txt").write_text("word_1.png HELLO")
    (tmp_path / "svt/test.xml").write_text("<tagset><image>")
    (tmp_path / "svtp/imagelist.txt").write_text("image/0.jpg\n")
    (tmp_path / "iiit5k/testdata.mat").write_text("no table")
    (tmp_path / "cute/label.txt").write_text("\n")
    for name in ("ic15", "svt", "svtp", "iiit5k", "cute"):
        with pytest.raises(DataError):
            WORD_SETS[name](tmp_path / name)


def test_words_to_train_on(tmp_path: Path) -> None:
    inner = tmp_path / "mjsynth/mnt/ramdisk/max/90kDICT32px"
    save_image(inner / "2425/1/115_Lube_45484.jpg")
    (inner / "annotation_train.txt").write_text("./2425/1/115_Lube_45484.jpg 45484\n")
    (one,) = open_mjsynth(tmp_path / "mjsynth").pictures
    assert one.word == "Lube" and one.path.is_file()
    save_image(tmp_path / "own/a b.png")
    (tmp_path / "own/train.tsv").write_text('a b.png\tsay "hi"\n')
    (one,) = open_training_words(tmp_path / "own").pictures
    assert one.word == 'say "hi"' and one.path.is_file()
    assert open_training_words(tmp_path / "mjsynth").name == "mjsynth"


@pytest.mark.parametrize("kind", ["vqav2", "okvqa"])
def test_questions_meet_their_answers(tmp_path: Path, kind: str) -> None:
    write_questions(tmp_path, ok=kind == "okvqa")
    first, second = open_questions(tmp_path, kind)
    assert (first.id, first.answers, second.answer_type) == (421, ("ball",) * 8 + ("sphere",) * 2, "yes/no")
    assert first.path.is_file()
    path = next(tmp_path.glob("*annotations.json"))
    content = json.loads(path.read_text())
    content["annotations"].pop()
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match="has no answers"):
        open_questions(tmp_path, kind)


def test_nocaps(tmp_path: Path) -> None:
    write_nocaps(tmp_path)
    spec = SourceSpec(task=Task.CAPTION, reader="nocaps", root=str(tmp_path), split="val")
    source = open_source(spec)
    assert [source[i].target.captions for i in range(len(source))][1] == (
        "A thing number 1, said 0.",
        "A thing number 1, said 1.",
    )
    assert source.domains == {0: "in-domain", 1: "out-domain", 2: "near-domain"}
    assert check_dataset(spec).ok
    with pytest.raises(UsageError, match="'val' only"):
        open_source(SourceSpec(task=Task.CAPTION, reader="nocaps", root=str(tmp_path), split="test"))
    write_nocaps(tmp_path, ("here", "in-domain", "in-domain"))
    with pytest.raises(DataError, match="no domain"):
        open_source(spec)
