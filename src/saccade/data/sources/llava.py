"""LLaVA-Instruct: dialogues about COCO images, without masks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torchvision import tv_tensors

from saccade.data.sources.layout import Records, data_root, find_file, find_images, load_image, read_json
from saccade.data.sources.spec import SourceSpec
from saccade.errors import DataError, UsageError
from saccade.samples import Sample, Target
from saccade.tasks import Task
from saccade.tokens.pieces import IMAGE, unsayable

FILES = ("llava_dataset/llava_instruct_150k.json", "llava_instruct_150k.json")
IMAGES = ("coco/train2017", "train2017", "images/train2017", "images", ".")


class LlavaInstructSource:
    """One sample per dialogue, in ``Sample.dialogue``; the masks are none.

    It serves the task of GSVA's trainings, in which it keeps the language model able to speak.

    Args:
        spec: Task, root, split (``train`` or ``all``: it has no other), and ``images`` or ``annotations`` where they
            have other names.

    Attributes:
        skipped: Entries left out, by reason.

    Raises:
        UsageError: Another task or split, or files are not found.
        DataError: The file is damaged.
    """

    classes = None

    def __init__(self, spec: SourceSpec) -> None:
        if spec.task is not Task.REFERRING:
            raise UsageError(
                f"dialogues serve the trainings of referring segmentation, not {spec.task}", where=spec.root
            )
        if spec.split not in ("train", "all"):
            raise UsageError(f"the dialogues have no split '{spec.split}'", where=spec.root, fix="use train")
        root = data_root(spec.root)
        path = find_dialogues(root, spec.annotations)
        skipped: Counter[str] = Counter()
        listed = []
        for entry in read_dialogues(path, skipped):
            odd = next((reason for said in entry[2] for text in said if (reason := odd_text(text))), None)
            if odd is None:
                listed.append(entry)
            else:
                skipped[f"dialogue with a text {odd}"] += 1
        if not listed:
            raise DataError(
                "no dialogue is left", where=path, why=str(dict(skipped)) if skipped else "the list is empty"
            )
        self.name, self.task = f"{spec.reader}/{spec.split}", spec.task
        self._images = find_images(root, [file for file, _, _ in listed], spec.images, IMAGES)
        self._records = Records(listed)
        self.skipped: dict[str, int] = dict(skipped)

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Sample:
        """Reads one image with its dialogue."""
        file, image_id, rounds = self._records[index]
        image, origin = load_image(self._images / file, self.name, image_id, None)
        none = tv_tensors.Mask(torch.zeros(0, *origin.size_hw, dtype=torch.bool))
        return Sample(image=image, task=self.task, origin=origin, target=Target(masks=none), dialogue=rounds)


def odd_text(text: str) -> str | None:
    """As :func:`saccade.tokens.pieces.unsayable`, of a question or an answer, which may name the place of the image."""
    return unsayable(text.replace(IMAGE, ""))


def find_dialogues(root: Path, annotations: str = "") -> Path:
    """The file of dialogues.

    Raises:
        UsageError: It is not found.
    """
    return find_file(root, annotations, FILES, "the file of dialogues")


def read_dialogues(path: Path, skipped: Counter[str]) -> list[tuple[str, int | str, tuple[tuple[str, str], ...]]]:
    """Image file, id, and rounds of question and answer of every dialogue.

    Raises:
        DataError: Damaged, or of another form.
    """
    content = read_json(path)
    if not isinstance(content, list):
        raise DataError("the file of dialogues is not a list", where=path)
    listed = []
    for number, entry in enumerate(content):
        try:
            if "image" not in entry:
                skipped["dialogue without an image"] += 1
                continue
            rounds = rounds_of(entry["conversations"], skipped)
            if rounds:
                listed.append((str(entry["image"]), entry.get("id", number), rounds))
        except (KeyError, TypeError) as error:
            raise DataError("a dialogue lacks a field", where=f"{path}, entry {number}", why=repr(error)) from error
    return listed


def rounds_of(turns: Sequence[dict[str, Any]], skipped: Counter[str]) -> tuple[tuple[str, str], ...]:
    """Rounds of question and answer; an answer that comes first, and a question without an answer, are left out.

    Args:
        turns: ``{from: human or gpt, value}``.
        skipped: Counts what is left out; a dialogue in which one speaks twice in a row is left out as a whole.
    """
    said = [(str(turn["from"]), str(turn["value"])) for turn in turns]
    if said and said[0][0] != "human":
        skipped["answer before the first question"] += 1
        said = said[1:]
    if len(said) % 2:
        skipped["question without an answer"] += 1
        said = said[:-1]
    pairs = list(zip(said[::2], said[1::2], strict=True))
    if not pairs or any((asks, answers) != ("human", "gpt") for (asks, _), (answers, _) in pairs):
        skipped["dialogue without turns of question and answer"] += 1
        return ()
    return tuple((question, answer) for (_, question), (_, answer) in pairs)
