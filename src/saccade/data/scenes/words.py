"""The names of things in the scenes world: classes, colours, sizes, materials, styles."""

from __future__ import annotations

THING_CLASSES: tuple[str, ...] = ("arch", "ball", "box", "cone", "cross", "cylinder", "ring", "star")
"""Object classes; the index is the class id of detection and instance segmentation."""

STUFF_CLASSES: tuple[str, ...] = ("grass", "road", "sand", "sky", "wall", "water")
"""Background classes; in semantic maps their ids follow those of the things."""

SEMANTIC_CLASSES: tuple[str, ...] = THING_CLASSES + STUFF_CLASSES
"""Classes of the semantic map: the index is the label."""

PLURALS: dict[str, str] = {
    "arch": "arches",
    "ball": "balls",
    "box": "boxes",
    "cone": "cones",
    "cross": "crosses",
    "cylinder": "cylinders",
    "ring": "rings",
    "star": "stars",
}

COLOURS: dict[str, tuple[float, float, float]] = {
    "black": (30.0, 30.0, 34.0),
    "blue": (35.0, 75.0, 215.0),
    "cyan": (40.0, 205.0, 215.0),
    "green": (25.0, 165.0, 50.0),
    "purple": (140.0, 45.0, 185.0),
    "red": (215.0, 30.0, 30.0),
    "white": (238.0, 238.0, 234.0),
    "yellow": (240.0, 205.0, 25.0),
}
"""Surface colour (RGB, 0..255) under plain white light."""

SIZES: dict[str, float] = {"small": 0.85, "medium": 1.25, "big": 1.85}
"""Real size (about the height in metres), not the size in the picture."""

MATERIALS: tuple[str, ...] = ("matte", "shiny")

NUMBERS: tuple[str, ...] = ("zero", "one", "two", "three", "four", "five", "six", "seven")
