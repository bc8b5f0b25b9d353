"""Writes the WordPiece vocabulary that goes with git-nano: python scripts/nano_vocabulary.py OUT.

Special tokens, the coordinate bins as whole words, every word of the scenes world, the task names, single letters and
digits (so that any class name can be spelt), and common words for the classes that people fine-tune on.
"""

from __future__ import annotations

import string
import sys
from pathlib import Path

from saccade.data.scenes import VOCABULARY
from saccade.models.git.presets import NANO_VOCABULARY_SIZE, nano
from saccade.tasks import Task

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
COMMON = """
person people man woman boy girl child player face head hair hand arm leg foot eye mouth nose bicycle car motorcycle
airplane plane bus train truck boat ship bike van traffic light fire hydrant stop sign parking meter bench bird cat
dog horse sheep cow elephant bear zebra giraffe backpack umbrella handbag tie suitcase frisbee skis snowboard sports
kite baseball bat glove skateboard surfboard tennis racket bottle wine glass cup fork knife spoon bowl banana apple
sandwich orange broccoli carrot hot pizza donut cake chair couch potted plant bed dining table toilet tv laptop mouse
remote keyboard phone microwave oven toaster sink refrigerator book clock vase scissors teddy drier toothbrush
building tree road sidewalk fence pole vegetation terrain rider wall ceiling floor window door cabinet mountain
curtain painting sofa shelf mirror carpet field seat desk lamp rail cushion base pillow screen stairs river bridge
flower hill counter path field land ground rock snow cloud sea sky sand house street city room kitchen bathroom cell
cells blood white red platelet platelets nucleus nuclei lesion skin tumor vessel polyp organ tissue background animal
food fruit vehicle machine tool metal wood plastic paper water ice above below under over next near front top bottom
middle center side corner far close closest furthest left right first second third last other same different only
every some few many no not standing sitting walking riding holding wearing playing looking eating flying running lying
parked group pair row stack piece part line pile number picture image photo scene view large small tall short long
wide round square old young new dark bright clean dirty yellow purple pink brown gray grey orange black green blue
gold silver it its is are was has have that this these those there their he she his her they them who which while up
down out into through across along around behind beside between inside outside against s es ing ed er est ly ness
"""
SUFFIXES = ("##s", "##es", "##ing", "##ed", "##er", "##ly", "##man", "##ball", "##board", "##light", "##cell")


def build() -> list[str]:
    """The pieces in order; [DEC] and [ENC] are appended by the reader."""
    room = NANO_VOCABULARY_SIZE - 2
    config = nano()
    bins = max(
        config.detection.num_bins if config.detection else 0, config.grounding.num_bins if config.grounding else 0
    )
    task_words = [word for task in Task for word in task.value.split("_")]
    pieces = [
        *SPECIAL,
        *map(str, range(bins + 1)),
        *string.punctuation,
        *string.ascii_lowercase,
        *(f"##{char}" for char in string.ascii_lowercase + string.digits),
        # "eight" was a word of the world when the shipped weights were trained.
        *sorted({*VOCABULARY, "eight"}),
        *task_words,
        *SUFFIXES,
        *COMMON.split(),
    ]
    unique = list(dict.fromkeys(pieces))
    if len(unique) > room:
        dropped = unique[room:]
        if set(dropped) & (set(VOCABULARY) | set(task_words)):
            raise SystemExit(f"no room for words that are needed: {dropped}")
        unique = unique[:room]
    return unique + [f"[unused{index}]" for index in range(room - len(unique))]


def main() -> None:
    """Writes the file."""
    out = Path(sys.argv[1])
    pieces = build()
    out.write_text("\n".join(pieces) + "\n", encoding="utf-8", newline="")
    unused = sum(piece.startswith("[unused") for piece in pieces)
    sys.stdout.write(f"{len(pieces)} pieces ({unused} unused) to {out}\n")


if __name__ == "__main__":
    main()
