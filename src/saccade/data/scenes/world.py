"""The layout of a scene: camera, ground, wall, and objects placed so that every one of them can be seen."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from saccade.data.scenes.camera import Camera, Floats
from saccade.data.scenes.dice import Dice
from saccade.data.scenes.shapes import PLATES, Hit, Solid, cast, frame_box
from saccade.data.scenes.words import COLOURS, MATERIALS, SIZES, STUFF_CLASSES, THING_CLASSES

FAR_M = 60.0
"""Where the ground ends: beyond it there is sky, whose depth is unknown (0)."""

MIN_VISIBLE_SHARE = 0.4
"""An object shows at least this share of what it would show if nothing stood before it."""

MIN_VISIBLE_AREA = 40.0
"""... and at least this many pixels in a picture of 224 x 224; the number grows with the area of the picture."""

_COUNTS = (2, 3, 3, 4, 4, 5, 5, 6, 7)
_TRIES = 14


@dataclass(kw_only=True, frozen=True)
class Band:
    """A straight strip of another ground: a road or a river.

    Attributes:
        name: ``road`` or ``water``.
        sin: x component of the strip's normal.
        cos: z component of the strip's normal.
        offset: Distance of the middle line from the camera, along the normal.
        half_width: Metres.
    """

    name: str
    sin: float
    cos: float
    offset: float
    half_width: float


@dataclass(kw_only=True, frozen=True)
class Wall:
    """An upright wall behind the objects: points with ``sin * x + cos * z = distance``, up to a height.

    Attributes:
        sin: x component of its normal.
        cos: z component of its normal.
        distance: Metres from the camera.
        height: Metres above the ground.
    """

    sin: float
    cos: float
    distance: float
    height: float


@dataclass(kw_only=True)
class World:
    """Everything that stands still in a scene.

    Attributes:
        camera: Who looks.
        base: Name of the ground.
        band: A strip of another ground, or None.
        wall: A wall, or None.
        solids: The objects, in the order of their areas in the picture, greatest first.
        hits: What the camera would see of each, alone.
        object_ids: ``[H, W]`` uint8: 0 where there is none, else 1 + index of the object.
        object_depth: ``[H, W]`` float32 metres, infinite where there is no object.
    """

    camera: Camera
    base: str
    band: Band | None
    wall: Wall | None
    solids: list[Solid]
    hits: list[Hit]
    object_ids: npt.NDArray[np.uint8]
    object_depth: Floats


def build_world(dice: Dice, size_hw: tuple[int, int]) -> World:
    """Lays out a scene with at least two objects."""
    while True:
        world = _layout(dice, size_hw)
        if len(world.solids) >= 2:
            return world


def _layout(dice: Dice, size_hw: tuple[int, int]) -> World:
    height, width = size_hw
    short = min(size_hw)
    zoom = dice.uniform(0.95, 1.3)
    focal = zoom * short
    near, far = 3.7 * zoom, 7.0 * zoom
    camera_height = dice.uniform(1.5, 3.2)
    # The pitch that puts the nearest standing place near the lower edge of the picture (of its middle square).
    edge = dice.uniform(0.30, 0.43) * short / focal
    pitch = math.atan(camera_height / near) - math.atan(edge)
    camera = Camera(size_hw=size_hw, focal_px=focal, height_m=camera_height, pitch=pitch)
    base = dice.pick(("grass", "grass", "sand"))
    band = _band(dice, near, far)
    wall = _wall(dice, far)
    world = World(
        camera=camera,
        base=base,
        band=band,
        wall=wall,
        solids=[],
        hits=[],
        object_ids=np.zeros(size_hw, dtype=np.uint8),
        object_depth=np.full(size_hw, np.inf, dtype=np.float32),
    )
    count = dice.pick(_COUNTS)
    least = max(6.0, MIN_VISIBLE_AREA * (height * width) / 224**2)
    visible: list[int] = []
    for _ in range(count):
        for _ in range(_TRIES):
            solid = _solid(dice, world, near, far)
            if solid is not None and _stand(world, solid, visible, least):
                break
    order = sorted(range(len(visible)), key=lambda k: -visible[k])
    table = np.zeros(len(order) + 1, dtype=np.uint8)
    for rank, k in enumerate(order):
        table[k + 1] = rank + 1
    world.object_ids = table[world.object_ids]
    world.solids = [world.solids[k] for k in order]
    world.hits = [world.hits[k] for k in order]
    return world


def _turn(angle: float) -> tuple[float, float]:
    # Rounded so that the last bit of the machine's libm never matters.
    return round(math.sin(angle), 9), round(math.cos(angle), 9)


def _band(dice: Dice, near: float, far: float) -> Band | None:
    kind = dice.unit()
    if kind > 0.7:
        return None
    if kind > 0.42:
        # A river or a lake whose near shore lies behind or among the objects.
        sin, cos = _turn(dice.uniform(-0.5, 0.5))
        half_width = dice.uniform(1.0, 6.0)
        shore = dice.uniform(near + 1.2, far + 1.0)
        return Band(name="water", sin=sin, cos=cos, offset=shore + half_width, half_width=half_width)
    sin, cos = _turn(dice.uniform(-1.7, 1.7))
    x, z = dice.uniform(-2.5, 2.5), dice.uniform(near, far)
    return Band(name="road", sin=sin, cos=cos, offset=sin * x + cos * z, half_width=dice.uniform(0.9, 1.8))


def _wall(dice: Dice, far: float) -> Wall | None:
    if dice.chance(0.55):
        return None
    sin, cos = _turn(dice.uniform(-0.4, 0.4))
    height = dice.uniform(1.2, 3.0) if dice.chance(0.5) else 12.0
    return Wall(sin=sin, cos=cos, distance=dice.uniform(far * 0.9, far + 4.0), height=height)


def _ground_at(world: World, x: float, z: float, clearance: float) -> str | None:
    """Name of the ground under a point, or None where an object cannot stand or its ground would be in doubt."""
    wall, band = world.wall, world.band
    if wall is not None and wall.sin * x + wall.cos * z > wall.distance - clearance - 0.15:
        return None
    if band is None:
        return world.base
    beyond = abs(band.sin * x + band.cos * z - band.offset) - band.half_width
    if band.name == "water":
        return world.base if beyond > clearance else None
    if abs(beyond) < 0.5 * clearance:
        return None
    return band.name if beyond < 0 else world.base


def _solid(dice: Dice, world: World, near: float, far: float) -> Solid | None:
    """Rolls one object; None when its place is taken or in doubt."""
    camera, others = world.camera, world.solids
    name, colour = dice.pick(THING_CLASSES), dice.pick(tuple(COLOURS))
    size, material = dice.pick(tuple(SIZES)), dice.pick(MATERIALS)
    # Objects that share a class or a colour make phrases with several targets and phrases that must discriminate.
    if others and dice.chance(0.4):
        twin = dice.pick(others)
        if dice.chance(0.6):
            name = twin.name
        else:
            colour = twin.colour
    z, column = dice.uniform(near, far), dice.uniform(0.05, 0.95)
    turn = dice.uniform(-0.65, 0.65) if name in PLATES else dice.uniform(0.0, math.pi / 2)
    scale = SIZES[size] * dice.uniform(0.93, 1.07)
    stretch = (dice.uniform(0.85, 1.2), dice.uniform(0.85, 1.15), dice.uniform(0.85, 1.2))
    # The first object's colour and class stay its own: every scene has a phrase with exactly one target.
    if others and (name, colour) == (others[0].name, others[0].colour):
        return None
    ray = (column - 0.5) * camera.size_hw[1] / camera.focal_px
    x = ray * camera.depth(-camera.height_m, z)
    sin, cos = _turn(turn)
    solid = Solid(
        name=name, colour=colour, size=size, material=material, x=x, z=z, scale=scale, sin=sin, cos=cos,
        stretch=stretch, stands_on="",
    )  # fmt: skip
    ground = _ground_at(world, x, z, solid.reach)
    if ground is None:
        return None
    if any(math.hypot(x - o.x, z - o.z) < 1.05 * (solid.reach + o.reach) for o in others):
        return None
    return dataclasses.replace(solid, stands_on=ground)


def _stand(world: World, solid: Solid, visible: list[int], least: float) -> bool:
    """Puts the object into the picture if it and all others stay visible enough."""
    height, width = world.camera.size_hw
    x0, y0, x1, y1 = frame_box(solid, world.camera)
    inside = max(0.0, min(x1, width) - max(x0, 0.0)) * max(0.0, min(y1, height) - max(y0, 0.0))
    if inside < 0.7 * (x1 - x0) * (y1 - y0):
        return False
    hit = cast(solid, world.camera)
    if hit is None:
        return False
    window = hit.window
    ids, depth = world.object_ids[window], world.object_depth[window]
    wins = hit.mask & (hit.depth < depth)
    whole, seen = int(np.count_nonzero(hit.mask)), int(np.count_nonzero(wins))
    if seen < least or seen < MIN_VISIBLE_SHARE * whole:
        return False
    if world.solids:
        lost = np.bincount(ids[wins], minlength=len(visible) + 1)[1:]
        for k, loss in enumerate(lost.tolist()):
            if loss and visible[k] - loss < max(least, MIN_VISIBLE_SHARE * np.count_nonzero(world.hits[k].mask)):
                return False
        for k, loss in enumerate(lost.tolist()):
            visible[k] -= loss
    world.solids.append(solid)
    world.hits.append(hit)
    visible.append(seen)
    np.copyto(depth, hit.depth, where=wins)
    np.copyto(ids, np.uint8(len(visible)), where=wins)
    return True


def stuff_label(name: str) -> int:
    """Label of a stuff class in semantic maps."""
    return len(THING_CLASSES) + STUFF_CLASSES.index(name)
