"""One drawn picture with every kind of truth about it."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from saccade.data.scenes.dice import Dice, seed_words
from saccade.data.scenes.language import Phrase, Thing, captions, choose_phrases, description
from saccade.data.scenes.render import lay_backdrop, paint
from saccade.data.scenes.styles import restyle
from saccade.data.scenes.words import SEMANTIC_CLASSES, THING_CLASSES
from saccade.data.scenes.world import World, build_world
from saccade.errors import UsageError

MIN_SIZE, MAX_SIZE, MAX_ASPECT = 64, 1120, 2

SPLITS: dict[str, tuple[int, int]] = {"train": (0, 10**9), "val": (1, 10_000), "test": (2, 10_000)}
"""Split name -> (its word in the seed of a scene, how many scenes it has). Scene i of a split has the seed
``(seed of the world, word of the split, i)``, so that the splits share no scene."""


@dataclass(kw_only=True, frozen=True)
class Segment:
    """One segment of the panoptic map.

    Attributes:
        id: Its number in the map, 1 and up.
        label: Index into ``SEMANTIC_CLASSES``.
        is_thing: False for background.
        area: Pixels.
    """

    id: int
    label: int
    is_thing: bool
    area: int


@dataclass(kw_only=True)
class Scene:
    """A picture, and the truth about it. What is costly and not always wanted is worked out when first read.

    The objects are numbered by visible area, the greatest first. Every object listed is visible: at least 40 % of what
    the frame shows of it, and at least 40 pixels of a 224 x 224 picture.

    Attributes:
        seed: What it was drawn from.
        image: ``[H, W, 3]`` uint8 RGB.
        instance_ids: ``[H, W]`` uint8: 0 = no object, else 1 + index of the object.
        boxes_xyxy: ``[N, 4]`` float32 pixels: tight boxes of the visible masks (right and lower edge exclusive).
        areas: ``[N]`` int64 visible pixels.
        class_ids: ``[N]`` int64, indices into ``THING_CLASSES``.
        colours: Colour names.
        sizes: Size names: real size, not size in the picture.
        materials: Material names.
        stands_on: Ground under each object.
        depth_m: ``[H, W]`` float32 metres along the optical axis, 0 = unknown (sky).
        semantic: ``[H, W]`` uint8, indices into ``SEMANTIC_CLASSES``.
        world: The layout that was drawn.
    """

    seed: tuple[int, ...]
    image: npt.NDArray[np.uint8]
    instance_ids: npt.NDArray[np.uint8]
    boxes_xyxy: npt.NDArray[np.float32]
    areas: npt.NDArray[np.int64]
    class_ids: npt.NDArray[np.int64]
    colours: tuple[str, ...]
    sizes: tuple[str, ...]
    materials: tuple[str, ...]
    stands_on: tuple[str, ...]
    depth_m: npt.NDArray[np.float32]
    semantic: npt.NDArray[np.uint8]
    world: World

    def __len__(self) -> int:
        return len(self.class_ids)

    @property
    def size_hw(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return int(self.image.shape[0]), int(self.image.shape[1])

    @functools.cached_property
    def masks(self) -> npt.NDArray[np.bool_]:
        """``[N, H, W]`` visible masks."""
        numbers = np.arange(1, len(self) + 1, dtype=np.uint8)
        return np.equal(self.instance_ids[None], numbers[:, None, None])

    @functools.cached_property
    def _panoptic(self) -> tuple[npt.NDArray[np.int32], tuple[Segment, ...]]:
        things, count = len(THING_CLASSES), len(self)
        segments = [
            Segment(id=k + 1, label=int(self.class_ids[k]), is_thing=True, area=int(self.areas[k]))
            for k in range(count)
        ]
        areas = np.bincount(self.semantic.ravel(), minlength=len(SEMANTIC_CLASSES))
        table = np.zeros(len(SEMANTIC_CLASSES), dtype=np.int32)
        for label in range(things, len(SEMANTIC_CLASSES)):
            if areas[label]:
                table[label] = len(segments) + 1
                segments.append(Segment(id=len(segments) + 1, label=label, is_thing=False, area=int(areas[label])))
        # Thing labels map to 0 in the table, so adding the instance numbers fills them in.
        return table[self.semantic] + self.instance_ids, tuple(segments)

    @property
    def panoptic(self) -> npt.NDArray[np.int32]:
        """``[H, W]`` segment numbers: objects first (1 + index), then one segment per background class."""
        return self._panoptic[0]

    @property
    def segments(self) -> tuple[Segment, ...]:
        """The segments of :attr:`panoptic`, by number."""
        return self._panoptic[1]

    @functools.cached_property
    def things(self) -> tuple[Thing, ...]:
        """What language knows about the objects."""
        sums = np.bincount(self.instance_ids.ravel(), weights=self.depth_m.ravel(), minlength=len(self) + 1)[1:]
        width = self.size_hw[1]
        return tuple(
            Thing(
                name=THING_CLASSES[self.class_ids[k]],
                colour=self.colours[k],
                size=self.sizes[k],
                material=self.materials[k],
                ground=self.stands_on[k],
                column=float(self.boxes_xyxy[k, 0] + self.boxes_xyxy[k, 2]) / (2 * width),
                distance_m=float(sums[k] / self.areas[k]),
                area=int(self.areas[k]),
            )
            for k in range(len(self))
        )

    @functools.cached_property
    def captions(self) -> tuple[str, str, str, str, str]:
        """Five sentences about the picture."""
        return captions(self.things)

    @functools.cached_property
    def description(self) -> tuple[Phrase, ...]:
        """Every object, from left to right."""
        return description(self.things)

    @functools.cached_property
    def phrases(self) -> tuple[Phrase, ...]:
        """Referring expressions: first three with one target, then up to two with several, then up to two with none."""
        return choose_phrases(self.things, Dice((*self.seed, 1)).units(7))


def draw_scene(seed: int | tuple[int, ...], size_hw: tuple[int, int] = (224, 224), *, style: str = "plain") -> Scene:
    """Draws a picture and everything that is true of it.

    Args:
        seed: A non-negative integer, or a tuple of them. The same seed and size give the same bytes.
        size_hw: Height and width in pixels, 64 to 1120 each, one at most twice the other.
        style: One of ``SCENE_STYLES``; every truth but the picture is the same in all styles.

    Raises:
        UsageError: A size out of range, an unknown style, or a seed that is not made of non-negative integers.
    """
    height, width = size_hw
    if not (MIN_SIZE <= height <= MAX_SIZE and MIN_SIZE <= width <= MAX_SIZE):
        raise UsageError(
            f"scenes are drawn from {MIN_SIZE} to {MAX_SIZE} pixels a side, not {height} x {width}",
            fix="draw at a size in range and resize the result",
        )
    if max(height, width) > MAX_ASPECT * min(height, width):
        raise UsageError(
            f"scenes are drawn up to {MAX_ASPECT} times as wide as high, or as high as wide, not {height} x {width}",
            fix="draw a larger picture and crop it",
        )
    words = seed_words(seed)
    dice = Dice((*words, 0))
    world = build_world(dice, (height, width))
    backdrop = lay_backdrop(world)
    image = paint(world, backdrop, dice)
    ids = world.object_ids
    visible = ids > 0
    class_ids = np.array([THING_CLASSES.index(solid.name) for solid in world.solids], dtype=np.int64)
    semantic = np.where(visible, np.concatenate([[0], class_ids]).astype(np.uint8)[ids], backdrop.labels)
    depth = np.where(visible, world.object_depth, backdrop.depth)
    boxes, areas = _boxes(world)
    return Scene(
        seed=words,
        image=restyle(image, depth, style),
        instance_ids=ids,
        boxes_xyxy=boxes,
        areas=areas,
        class_ids=class_ids,
        colours=tuple(solid.colour for solid in world.solids),
        sizes=tuple(solid.size for solid in world.solids),
        materials=tuple(solid.material for solid in world.solids),
        stands_on=tuple(solid.stands_on for solid in world.solids),
        depth_m=depth,
        semantic=semantic,
        world=world,
    )


def _boxes(world: World) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Tight boxes and areas of the visible masks."""
    boxes, areas = [], []
    for number, hit in enumerate(world.hits, start=1):
        mask = world.object_ids[hit.window] == number
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        boxes.append(
            (hit.left + columns[0], hit.top + rows[0], hit.left + columns[-1] + 1, hit.top + rows[-1] + 1),
        )
        areas.append(np.count_nonzero(mask))
    return np.array(boxes, dtype=np.float32), np.array(areas, dtype=np.int64)
