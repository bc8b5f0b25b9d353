"""An endless drawn world with every kind of truth: the embedded default of every recipe."""

from saccade.data.scenes.language import VOCABULARY, Phrase
from saccade.data.scenes.scene import Scene, Segment, draw_scene
from saccade.data.scenes.words import COLOURS, MATERIALS, SEMANTIC_CLASSES, SIZES, STUFF_CLASSES, THING_CLASSES

__all__ = [
    "COLOURS",
    "MATERIALS",
    "SEMANTIC_CLASSES",
    "SIZES",
    "STUFF_CLASSES",
    "THING_CLASSES",
    "VOCABULARY",
    "Phrase",
    "Scene",
    "Segment",
    "draw_scene",
]
