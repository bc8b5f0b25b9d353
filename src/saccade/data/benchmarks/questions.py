"""Questions about pictures with the answers of ten people: VQA v2 and OK-VQA, which share a form."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from saccade.data.sources.layout import data_root, find_file, first_existing, list_of, read_json
from saccade.errors import DataError, MissingDataError

Questions = Literal["vqav2", "okvqa"]

_FILES: dict[str, tuple[list[str], list[str]]] = {
    "vqav2": (
        ["v2_OpenEnded_mscoco_val2014_questions.json", "questions/v2_OpenEnded_mscoco_val2014_questions.json"],
        ["v2_mscoco_val2014_annotations.json", "annotations/v2_mscoco_val2014_annotations.json"],
    ),
    "okvqa": (
        ["OpenEnded_mscoco_val2014_questions.json", "questions/OpenEnded_mscoco_val2014_questions.json"],
        ["mscoco_val2014_annotations.json", "annotations/mscoco_val2014_annotations.json"],
    ),
}


@dataclass(kw_only=True, frozen=True)
class Question:
    """One question.

    Attributes:
        id: Of the data set.
        path: The picture.
        text: What is asked.
        answers: What the people said.
        answer_type: ``yes/no``, ``number``, ``other``.
    """

    id: int
    path: Path
    text: str
    answers: tuple[str, ...]
    answer_type: str


def open_questions(root: str | Path, kind: Questions) -> list[Question]:
    """The validation questions, in the order of their file.

    Args:
        root: Holds the two JSON files and COCO's ``val2014``.
        kind: The data set.

    Raises:
        MissingDataError: A file, or the pictures, are not found.
        DataError: The files contradict each other.
    """
    folder = data_root(root)
    asked, answered = _FILES[kind]
    questions = find_file(folder, "", asked, "the file of questions")
    annotations = find_file(folder, "", answered, "the file of answers")
    images = first_existing(folder, ["val2014", "images/val2014", "coco/val2014"])
    if images is None:
        raise MissingDataError("COCO's pictures are not found", where=folder, why="looked for val2014, images/val2014")
    known = {entry["question_id"]: entry for entry in list_of(read_json(annotations), "annotations", annotations)}
    found = []
    for entry in list_of(read_json(questions), "questions", questions):
        try:
            answer = known[entry["question_id"]]
            found.append(
                Question(
                    id=int(entry["question_id"]),
                    path=images / f"COCO_val2014_{int(entry['image_id']):012d}.jpg",
                    text=str(entry["question"]),
                    answers=tuple(str(one["answer"]) for one in answer["answers"]),
                    answer_type=str(answer.get("answer_type", "")),
                )
            )
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(
                "a question lacks something, or has no answers", where=questions, why=f"{entry}: {error!r}"[:200]
            ) from error
    if not found:
        raise DataError("no question", where=questions)
    return found
