"""An endless drawn world with every kind of truth: the embedded default of every recipe."""

from saccade.data.scenes.language import VOCABULARY, Phrase
from saccade.data.scenes.scene import SPLITS, Scene, Segment, draw_scene
from saccade.data.scenes.styles import SCENE_STYLES
from saccade.data.scenes.words import COLOURS, MATERIALS, SEMANTIC_CLASSES, SIZES, STUFF_CLASSES, THING_CLASSES
from saccade.data.scenes.writers import FORMATS, write_scenes

__all__ = [
    "COLOURS",
    "FORMATS",
    "MATERIALS",
    "SCENE_STYLES",
    "SEMANTIC_CLASSES",
    "SIZES",
    "SPLITS",
    "STUFF_CLASSES",
    "THING_CLASSES",
    "VOCABULARY",
    "Phrase",
    "Scene",
    "Segment",
    "draw_scene",
    "write_scenes",
]
