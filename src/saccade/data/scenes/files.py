"""What the writers of scenes share: names, pictures, records."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from saccade.data.scenes.scene import Scene
from saccade.data.scenes.words import THING_CLASSES
from saccade.errors import UsageError


@dataclass(kw_only=True, frozen=True)
class Drawn:
    """A scene with the names that it gets in files.

    Attributes:
        scene: The scene.
        index: Its place in the split, 0 and up.
        image_id: A number that no other split uses; it has at most ten digits.
    """

    scene: Scene
    index: int
    image_id: int


@dataclass(kw_only=True)
class Job:
    """What to write.

    Attributes:
        out: Root folder of the data set.
        split: Split name of the scenes.
        drawn: The scenes, drawn one by one as they are asked for.
        files: Annotation files written so far.
    """

    out: Path
    split: str
    drawn: Iterator[Drawn]
    files: list[Path] = field(default_factory=list)

    def save_json(self, path: Path, content: object) -> None:
        """Writes a JSON file under the root and remembers it."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content, separators=(",", ":")), encoding="utf-8")
        self.files.append(path)


def save_image(drawn: Drawn, path: Path) -> None:
    """Writes the picture as JPEG, quality 95, without colour subsampling.

    Raises:
        UsageError: The file exists.
    """
    if path.exists():
        raise UsageError(
            "a picture is already there, and scenes overwrite nothing",
            where=path,
            fix="choose another folder, or remove this one first",
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(drawn.scene.image).save(path, quality=95, subsampling=0)


def image_record(drawn: Drawn, file_name: str) -> dict[str, Any]:
    """An entry of ``images`` in a COCO file."""
    height, width = drawn.scene.size_hw
    return {"id": drawn.image_id, "file_name": file_name, "height": height, "width": width}


def box_xywh(drawn: Drawn, k: int) -> list[float]:
    """Box of object k as COCO writes it: x, y, width, height."""
    x0, y0, x1, y1 = drawn.scene.boxes_xyxy[k].tolist()
    return [x0, y0, x1 - x0, y1 - y0]


def thing_categories() -> list[dict[str, Any]]:
    """``categories`` of the objects; ids start at 1."""
    return [{"id": k + 1, "name": name, "supercategory": "object"} for k, name in enumerate(THING_CLASSES)]
