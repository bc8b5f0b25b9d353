"""The solids of the scenes world: where a ray meets them, and which way their surface faces.

Balls, boxes, cones and cylinders are met exactly. Arches, crosses, rings and stars are upright plates of some
thickness, met as a stack of parallel outlines whose spacing is about one pixel.
Only + - * / and square roots touch pixels, so that silhouettes are the same on every machine.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from saccade.data.scenes.camera import Camera, Floats

Mask = npt.NDArray[np.bool_]

PLATES = ("arch", "cross", "ring", "star")


@dataclass(kw_only=True, frozen=True)
class Solid:
    """One object of the world.

    Attributes:
        name: Class name.
        colour: Colour name.
        size: Size name.
        material: Material name.
        x: Metres to the right of the camera, of the point where it stands.
        z: Level metres in front of the camera.
        scale: Size in metres (about the height).
        sin: Sine of its turn about the vertical.
        cos: Cosine of its turn about the vertical.
        stretch: Factors of width, height and depth (boxes only).
        stands_on: Name of the ground under it.
    """

    name: str
    colour: str
    size: str
    material: str
    x: float
    z: float
    scale: float
    sin: float
    cos: float
    stretch: tuple[float, float, float]
    stands_on: str

    @property
    def half_extent(self) -> tuple[float, float, float]:
        """Half width, full height and half depth in metres, in the object's own turned frame."""
        width, height, depth = {
            "arch": (0.48, 0.95, 0.15),
            "ball": (0.45, 0.90, 0.45),
            "box": (0.38, 0.76, 0.38),
            "cone": (0.42, 1.00, 0.42),
            "cross": (0.50, 1.00, 0.13),
            "cylinder": (0.32, 0.95, 0.32),
            "ring": (0.50, 1.00, 0.11),
            "star": (0.55, 1.00, 0.11),
        }[self.name]
        stretch = self.stretch if self.name == "box" else (1.0, 1.0, 1.0)
        return width * self.scale * stretch[0], height * self.scale * stretch[1], depth * self.scale * stretch[2]

    @property
    def reach(self) -> float:
        """Radius in metres of a circle on the ground that holds the object."""
        width, _, depth = self.half_extent
        return width if self.name in ("ball", "cone", "cylinder") else math.hypot(width, depth)


class Hit(NamedTuple):
    """What the camera sees of one object when nothing hides it.

    Attributes:
        top: First row of the crop.
        left: First column of the crop.
        mask: ``[h, w]`` silhouette inside the crop.
        depth: ``[h, w]`` metres; only meaningful inside the silhouette.
    """

    top: int
    left: int
    mask: Mask
    depth: Floats

    @property
    def window(self) -> tuple[slice, slice]:
        """The crop as slices of the picture."""
        height, width = self.mask.shape
        return slice(self.top, self.top + height), slice(self.left, self.left + width)


def frame_box(solid: Solid, camera: Camera) -> tuple[float, float, float, float]:
    """A box in pixels (x0, y0, x1, y1), not clipped, that holds the picture of the object."""
    reach, height = solid.reach, solid.half_extent[1]
    corners = [
        camera.project(solid.x + dx, y - camera.height_m, solid.z + dz)
        for dx in (-reach, reach)
        for dz in (-reach, reach)
        for y in (0.0, height)
    ]
    columns, rows = zip(*corners, strict=True)
    return min(columns), min(rows), max(columns), max(rows)


def cast(solid: Solid, camera: Camera) -> Hit | None:
    """Meets the object with every ray of its crop; None when it lies outside the picture."""
    height, width = camera.size_hw
    x0, y0, x1, y1 = frame_box(solid, camera)
    left, top = max(math.floor(x0), 0), max(math.floor(y0), 0)
    right, bottom = min(math.ceil(x1) + 1, width), min(math.ceil(y1) + 1, height)
    if right <= left or bottom <= top:
        return None
    rays = (camera.x[None, left:right], -camera.down[top:bottom, None], camera.forward[top:bottom, None])
    meet = {"ball": _ball, "box": _box, "cone": _cone, "cylinder": _cylinder}.get(solid.name, _plate)
    with np.errstate(divide="ignore", invalid="ignore"):
        mask, depth = meet(solid, camera, *rays)
    return Hit(top, left, mask, depth)


def _ball(solid: Solid, camera: Camera, dx: Floats, dy: Floats, dz: Floats) -> tuple[Mask, Floats]:
    radius = solid.half_extent[0]
    x, y, z = solid.x, radius - camera.height_m, solid.z
    along = dx * x + (dy * y + dz * z)
    square = dx * dx + (dy * dy + dz * dz)
    inside = along * along - square * (x * x + y * y + z * z - radius * radius)
    mask = inside > 0
    return mask, (along - np.sqrt(np.maximum(inside, 0))) / square


def _cone(solid: Solid, camera: Camera, dx: Floats, dy: Floats, dz: Floats) -> tuple[Mask, Floats]:
    radius, tall, _ = solid.half_extent
    slope = (radius / tall) ** 2
    apex = tall - camera.height_m
    square = dx * dx + (dz * dz - slope * (dy * dy))
    along = dx * solid.x + (dz * solid.z - slope * apex * dy)
    inside = along * along - square * (solid.x**2 + solid.z**2 - slope * apex**2)
    depth = (along - np.sqrt(np.maximum(inside, 0))) / square
    y = depth * dy
    return (inside > 0) & (y <= apex) & (y >= -camera.height_m), depth


def _cylinder(solid: Solid, camera: Camera, dx: Floats, dy: Floats, dz: Floats) -> tuple[Mask, Floats]:
    radius, tall, _ = solid.half_extent
    lid = tall - camera.height_m
    square = dx * dx + dz * dz
    along = dx * solid.x + dz * solid.z
    inside = along * along - square * (solid.x**2 + solid.z**2 - radius**2)
    depth = (along - np.sqrt(np.maximum(inside, 0))) / square
    y = depth * dy
    side = (inside > 0) & (y <= lid) & (y >= -camera.height_m)
    if lid >= 0:  # The camera is below the lid.
        return side, depth
    lid_depth = lid / dy
    x, z = lid_depth * dx - solid.x, lid_depth * dz - solid.z
    on_lid = (dy < 0) & (x * x + z * z <= radius * radius) & ~side
    return side | on_lid, np.where(on_lid, lid_depth, depth)


def _turned(solid: Solid, dx: Floats, dz: Floats) -> tuple[Floats, Floats, float, float]:
    """Ray components (x, z) and camera position (x, z) in the turned frame of the object."""
    sin, cos = solid.sin, solid.cos
    return (
        cos * dx + sin * dz,
        cos * dz - sin * dx,
        -cos * solid.x - sin * solid.z,
        sin * solid.x - cos * solid.z,
    )


def _box(solid: Solid, camera: Camera, dx: Floats, dy: Floats, dz: Floats) -> tuple[Mask, Floats]:
    half_width, tall, half_depth = solid.half_extent
    tx, tz, ox, oz = _turned(solid, dx, dz)
    one, two = (-half_width - ox) / tx, (half_width - ox) / tx
    enter, leave = np.minimum(one, two), np.maximum(one, two)
    one, two = (-half_depth - oz) / tz, (half_depth - oz) / tz
    np.maximum(enter, np.minimum(one, two), out=enter)
    np.minimum(leave, np.maximum(one, two), out=leave)
    # The slab between the ground and the lid depends on the row alone.
    one, two = -camera.height_m / dy, (tall - camera.height_m) / dy
    np.maximum(enter, np.minimum(one, two), out=enter)
    np.minimum(leave, np.maximum(one, two), out=leave)
    return (enter < leave) & (enter > 0), enter


def _plate(solid: Solid, camera: Camera, dx: Floats, dy: Floats, dz: Floats) -> tuple[Mask, Floats]:
    half_depth = solid.half_extent[2]
    tx, tz, ox, oz = _turned(solid, dx, dz)
    inverse = 1 / tz
    ratio, rise = tx * inverse, dy * inverse
    distance = math.hypot(solid.x, solid.z)
    pixels = 2 * half_depth * camera.focal_px / distance * max(abs(solid.sin), 0.35)
    # The points of a star are thin: spaced wider, its layers would look like a comb.
    layers = max(2, min(math.ceil(pixels * (1.8 if solid.name == "star" else 1.0)) + 1, 40))
    mask = np.zeros(ratio.shape, dtype=np.bool_)
    depth = np.zeros(ratio.shape, dtype=np.float32)
    for layer in range(layers):
        plane = -half_depth + 2 * half_depth * layer / (layers - 1) - oz
        inside = outline(solid, ox + plane * ratio, plane * rise + camera.height_m)
        if layer:
            inside &= ~mask
        np.copyto(depth, plane * inverse, where=inside)
        mask |= inside
    return mask, depth


_STAR = [(round(math.sin(k * math.tau / 5), 9), round(math.cos(k * math.tau / 5), 9)) for k in range(5)]


def outline(solid: Solid, x: Floats, y: Floats) -> Mask:
    """Whether points of a plate's plane (metres across, metres above the ground) lie inside its outline."""
    half, tall, _ = solid.half_extent
    if solid.name == "ring":
        square = x * x + (y - half) ** 2
        return (square <= half**2) & (square >= (0.52 * half) ** 2)
    if solid.name == "cross":
        across, up = np.abs(x), np.abs(y - half)
        arm = 0.34 * half
        return ((across <= arm) & (up <= half)) | ((across <= half) & (up <= arm))
    if solid.name == "star":
        radius = tall / 1.809
        y = y - 0.809 * radius
        # A point lies in the five-pointed star when it is inside at least four of the five lines through its points.
        limit = round(radius * math.cos(math.radians(72)), 9)
        count = np.zeros(x.shape, dtype=np.int8)
        for sin, cos in _STAR:
            count += sin * x + cos * y <= limit
        return count >= 4
    # An arch: a bar bent over an opening that is half as wide.
    spring = tall - half
    above = np.maximum(y - spring, 0)
    square = x * x + above * above
    return (y >= 0) & (square <= half**2) & (square >= (0.52 * half) ** 2)


def normals(solid: Solid, camera: Camera, x: Floats, y: Floats, z: Floats) -> tuple[Floats, Floats, Floats, Floats]:
    """Outward unit normals (three arrays) and a coordinate 0..1 across the surface, of visible surface points.

    Args:
        solid: The object.
        camera: The camera.
        x: ``[N]`` metres, world frame.
        y: ``[N]`` metres, world frame.
        z: ``[N]`` metres, world frame.
    """
    half_width, tall, half_depth = solid.half_extent
    x, z = x - solid.x, z - solid.z
    up = y + camera.height_m
    across = 0.5 + (x + up - tall / 2) / (2 * tall)
    if solid.name == "ball":
        return x / half_width, (up - half_width) / half_width, z / half_width, across
    if solid.name == "cylinder":
        lid = up > tall * 0.999
        side = np.where(lid, np.float32(0), np.float32(1 / half_width))
        return x * side, lid.astype(np.float32), z * side, across
    if solid.name == "cone":
        slant = math.hypot(half_width, tall)
        around = np.sqrt(x * x + z * z) + 1e-6
        factor = (tall / slant) / around
        return x * factor, np.full_like(x, half_width / slant), z * factor, across
    sin, cos = solid.sin, solid.cos
    tx, tz = cos * x + sin * z, cos * z - sin * x
    if solid.name == "box":
        lid = up > tall * 0.998
        side = (np.abs(tx) * half_depth > np.abs(tz) * half_width) & ~lid
        front = ~(lid | side)
        nx, ny, nz = np.sign(tx) * side, lid.astype(np.float32), np.sign(tz) * front
        return cos * nx - sin * nz, ny, sin * nx + cos * nz, across
    front = tz < -half_depth * 0.999
    # The rim of a plate faces away from its middle.
    middle = tall / 2
    length = np.sqrt(tx * tx + (up - middle) ** 2) + 1e-6
    rim = np.where(front, np.float32(0), 1 / length)
    nx, ny, nz = tx * rim, (up - middle) * rim, -front.astype(np.float32)
    return cos * nx - sin * nz, ny, sin * nx + cos * nz, across
