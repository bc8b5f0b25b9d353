"""Colour: lights, textures, shadows, haze, lens and noise over a laid-out world."""

from __future__ import annotations

import functools
import math
import statistics
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from saccade.data.scenes.camera import Camera, Floats
from saccade.data.scenes.dice import Dice
from saccade.data.scenes.shapes import Hit, Solid, normals
from saccade.data.scenes.words import COLOURS
from saccade.data.scenes.world import FAR_M, World, stuff_label

_TILE = 256
_SHADES = 64

_STUFF_COLOURS: dict[str, tuple[tuple[float, float, float], ...]] = {
    "grass": ((78.0, 120.0, 48.0), (98.0, 128.0, 56.0), (62.0, 104.0, 52.0)),
    "road": ((98.0, 98.0, 100.0), (82.0, 82.0, 88.0), (112.0, 108.0, 104.0)),
    "sand": ((206.0, 180.0, 132.0), (190.0, 160.0, 112.0), (214.0, 194.0, 156.0)),
    "sky": ((110.0, 160.0, 226.0), (160.0, 188.0, 222.0), (132.0, 172.0, 214.0)),
    "wall": ((158.0, 92.0, 72.0), (176.0, 160.0, 140.0), (140.0, 124.0, 116.0)),
    "water": ((44.0, 92.0, 124.0), (54.0, 112.0, 128.0), (38.0, 78.0, 108.0)),
}
_STUFF_CONTRAST = {"grass": 0.55, "road": 0.28, "sand": 0.24, "wall": 0.5, "water": 0.5}


@dataclass(kw_only=True, frozen=True)
class Light:
    """The sun, or a lamp far away.

    Attributes:
        direction: Unit vector towards the light (x, y, z).
        ambient: Share of the light that comes from everywhere.
        power: Brightness.
        tint: Colour (RGB factors).
    """

    direction: tuple[float, float, float]
    ambient: float
    power: float
    tint: tuple[float, float, float]


def roll_light(dice: Dice) -> Light:
    """Rolls the light: mostly from the side of the camera, warm to cool, dim to bright."""
    around, above = dice.uniform(-2.0, 2.0), dice.uniform(0.5, 1.2)
    warm = dice.uniform(-0.09, 0.11)
    return Light(
        direction=(
            round(math.sin(around) * math.cos(above), 9),
            round(math.sin(above), 9),
            round(-math.cos(around) * math.cos(above), 9),
        ),
        ambient=dice.uniform(0.35, 0.6),
        power=dice.uniform(0.72, 1.18),
        tint=(1 + warm, 1 + 0.2 * warm, 1 - warm),
    )


@functools.cache
def _clouds() -> npt.NDArray[np.uint8]:
    """``[256, 256]`` levels 0..63 of noise over several octaves; repeats at its edges."""
    dice = Dice((20, 1))
    total = np.zeros((_TILE, _TILE), dtype=np.float64)
    for cells, weight in ((4, 1.0), (8, 0.8), (16, 0.6), (32, 0.5), (64, 0.45), (128, 0.4), (256, 0.35)):
        grid = dice.bytes(cells * cells).reshape(cells, cells).astype(np.float64)
        total += weight * _stretch(_stretch(grid, 0), 1)
    return _levels(total)


@functools.cache
def _grain() -> npt.NDArray[np.uint8]:
    """``[256, 256]`` levels 0..63 of fine noise without any coarse shape."""
    dice = Dice((20, 2))
    total = np.zeros((_TILE, _TILE), dtype=np.float64)
    for cells, weight in ((64, 0.7), (128, 1.0), (256, 1.0)):
        grid = dice.bytes(cells * cells).reshape(cells, cells).astype(np.float64)
        total += weight * _stretch(_stretch(grid, 0), 1)
    return _levels(total)


@functools.cache
def _bricks() -> npt.NDArray[np.uint8]:
    """``[256, 256]`` levels 0..63: rows of bricks with mortar between them."""
    rows, columns = np.meshgrid(np.arange(_TILE), np.arange(_TILE), indexing="ij")
    course = rows // 32
    shifted = (columns + 32 * (course % 2)) % _TILE
    tone = Dice((20, 3)).bytes(64).reshape(8, 8).astype(np.float64)[course, shifted // 64] / 255
    level = 22 + 26 * tone + (_grain().astype(np.float64) - 32) * 0.25
    mortar = (rows % 32 < 3) | (shifted % 64 < 3)
    return np.clip(np.where(mortar, 58, level), 0, _SHADES - 1).astype(np.uint8)


def _stretch(grid: npt.NDArray[np.float64], axis: int) -> npt.NDArray[np.float64]:
    """Linear interpolation to 256 cells along an axis, wrapping around."""
    cells = grid.shape[axis]
    at = np.arange(_TILE) * (cells / _TILE)
    low = at.astype(np.int64)
    share = (at - low).reshape([-1 if k == axis else 1 for k in range(2)])
    return np.take(grid, low, axis) * (1 - share) + np.take(grid, (low + 1) % cells, axis) * share


def _levels(total: npt.NDArray[np.float64]) -> npt.NDArray[np.uint8]:
    total = (total - total.mean()) / total.std()
    return np.clip(total * 13 + _SHADES / 2, 0, _SHADES - 1).astype(np.uint8)


@functools.cache
def _bell() -> Floats:
    """The normal deviate of each of 256 equally likely bytes."""
    normal = statistics.NormalDist()
    return np.array([normal.inv_cdf((k + 0.5) / 256) for k in range(256)], dtype=np.float32)


@dataclass(kw_only=True)
class Backdrop:
    """The scene without its objects.

    Attributes:
        labels: ``[H, W]`` uint8 labels of stuff.
        depth: ``[H, W]`` float32 metres, 0 for the sky.
        ground: ``[H]`` depth of the ground plane per row (0 at and above the horizon).
    """

    labels: npt.NDArray[np.uint8]
    depth: Floats
    ground: Floats


def lay_backdrop(world: World) -> Backdrop:
    """Labels and depth of sky, wall, ground and strip."""
    camera = world.camera
    height, width = camera.size_hw
    with np.errstate(divide="ignore"):
        ground = np.where(camera.down > 1e-6, np.float32(camera.height_m) / camera.down, np.float32(0))
    ground = np.where(ground * camera.forward <= FAR_M, ground, np.float32(0)).astype(np.float32)
    base = stuff_label(world.base)
    sky = stuff_label("sky")
    labels = np.empty((height, width), dtype=np.uint8)
    labels[:] = np.where(ground > 0, base, sky).astype(np.uint8)[:, None]
    depth = np.empty((height, width), dtype=np.float32)
    depth[:] = ground[:, None]
    first = int(np.argmax(ground > 0)) if ground.any() else height
    band = world.band
    if band is not None:
        across = (
            band.sin * camera.x[None] * ground[first:, None]
            + (band.cos * ground[first:] * camera.forward[first:] - band.offset).astype(np.float32)[:, None]
        )
        labels[first:][np.abs(across) <= band.half_width] = stuff_label(band.name)
    wall = world.wall
    if wall is not None:
        reach = np.float32(wall.distance) / (wall.sin * camera.x[None] + wall.cos * camera.forward[:, None])
        rise = -reach * camera.down[:, None] + np.float32(camera.height_m)
        # A negative reach is a wall that a ray at the edge of a wide or tall picture would meet behind the camera.
        hit = (reach > 0) & (rise >= 0) & (rise <= wall.height) & ((ground[:, None] == 0) | (reach < ground[:, None]))
        labels[hit] = stuff_label("wall")
        np.copyto(depth, reach, where=hit)
    return Backdrop(labels=labels, depth=depth, ground=ground)


def _ramp(colour: npt.NDArray[np.float64], contrast: float) -> Floats:
    """``[64, 3]`` colours of the texture levels of one stuff."""
    tone = 1 + contrast * (np.arange(_SHADES) / (_SHADES - 1) - 0.5)
    return (colour[None] * tone[:, None]).astype(np.float32)


def paint(world: World, backdrop: Backdrop, dice: Dice) -> npt.NDArray[np.uint8]:
    """Draws the picture.

    Returns:
        ``[H, W, 3]`` uint8 RGB.
    """
    light = roll_light(dice)
    tint = np.array(light.tint) * light.power
    haze = np.array([196.0, 206.0, 216.0]) * (0.5 + 0.5 * light.power)
    picture = _paint_backdrop(world, backdrop, light, tint, haze, dice)
    _cast_shadows(world, backdrop, light, picture)
    for number, (solid, hit) in enumerate(zip(world.solids, world.hits, strict=True), start=1):
        _paint_solid(world, number, solid, hit, light, tint, picture)
    return _develop(picture, dice)


def _paint_backdrop(
    world: World,
    backdrop: Backdrop,
    light: Light,
    tint: npt.NDArray[np.float64],
    haze: npt.NDArray[np.float64],
    dice: Dice,
) -> Floats:
    camera = world.camera
    height, width = camera.size_hw
    flat = light.ambient + (1 - light.ambient) * light.direction[1]
    colours = {
        name: np.array(dice.pick(options)) * np.array([dice.uniform(0.88, 1.12) for _ in range(3)]) * tint
        for name, options in _STUFF_COLOURS.items()
    }
    shift = [dice.index(_TILE) for _ in range(6)]
    fineness = dice.uniform(28, 60)
    mottle = dice.uniform(4, 14)
    cloudiness = dice.uniform(0.0, 0.5)
    brick_px = dice.uniform(120, 200)
    plain_wall = dice.chance(0.4)
    thickness = dice.uniform(0.0, 0.5)

    picture = np.empty((height, width, 3), dtype=np.float32)
    ground = backdrop.ground
    first = int(np.argmax(ground > 0)) if ground.any() else height
    sky_rows = first if (backdrop.labels[:first] == stuff_label("sky")).any() else 0

    # Sky: paler towards the horizon, with clouds.
    if sky_rows:
        rise = np.clip(-camera.down[:sky_rows] * 2.2, 0, 1)[:, None]
        gradient = colours["sky"][None] * (0.75 + 0.25 * rise) + (haze[None] - colours["sky"][None] * 0.75) * (1 - rise)
        rows = ((np.arange(sky_rows) * (360.0 / height)).astype(np.int64) + shift[0]) % _TILE
        columns = ((np.arange(width) * (150.0 / width)).astype(np.int64) + shift[1]) % _TILE
        cover = np.arange(_SHADES, dtype=np.float32) / (_SHADES - 1) - 0.45
        cover = np.clip(cover * 2, 0, 1) * np.float32(cloudiness)
        share = cover[_clouds()[rows[:, None], columns[None]]][..., None]
        picture[:sky_rows] = gradient.astype(np.float32)[:, None] + share * np.float32(40)

    # Ground and strip: one texture look-up, one colour ramp per stuff.
    if first < height:
        depth = ground[first:]
        z = depth * camera.forward[first:]
        x = camera.x[None] * depth[:, None]
        rows = (z * np.float32(fineness)).astype(np.int32)
        columns = (x * np.float32(fineness)).astype(np.int32)
        fine = _grain()[(rows[:, None] + shift[2]) & 255, (columns + shift[3]) & 255]
        rows = (z * np.float32(mottle)).astype(np.int32)
        columns = (x * np.float32(mottle)).astype(np.int32)
        coarse = _clouds()[(rows[:, None] + shift[4]) & 255, (columns + shift[5]) & 255]
        level = (fine + coarse) >> 1
        labels = backdrop.labels[first:]
        names = [world.base] + ([world.band.name] if world.band else [])
        ramps = np.concatenate([_ramp(colours[name] * flat, 2 * _STUFF_CONTRAST[name]) for name in names])
        index = level.astype(np.int32)
        if world.band is not None:
            index += _SHADES * (labels == stuff_label(world.band.name))
        patch = np.take(ramps, index, axis=0)
        # Air: far ground fades into the haze.
        fog = np.clip(depth * np.float32(thickness / 30), 0, 0.75)[:, None]
        patch *= (1 - fog)[..., None]
        patch += (fog * haze[None].astype(np.float32))[:, None]
        picture[first:] = patch

    wall = world.wall
    if wall is not None:
        hit = backdrop.labels == stuff_label("wall")
        rows, columns = np.nonzero(hit)
        reach = backdrop.depth[rows, columns]
        rise = np.float32(camera.height_m) - reach * camera.down[rows]
        along = reach * (wall.cos * camera.x[columns] - wall.sin * camera.forward[rows])
        facing = max(0.0, -(wall.sin * light.direction[0] + wall.cos * light.direction[2]))
        lit = light.ambient + (1 - light.ambient) * facing
        tile = _clouds() if plain_wall else _bricks()
        ramp = _ramp(colours["wall"] * (0.25 + 0.75 * lit), 0.3 if plain_wall else _STUFF_CONTRAST["wall"])
        v = (rise * np.float32(brick_px)).astype(np.int32) & 255
        u = (along * np.float32(brick_px)).astype(np.int32) & 255
        picture[rows, columns] = np.take(ramp, tile[v, u].astype(np.int32), axis=0)
    return picture


def _cast_shadows(world: World, backdrop: Backdrop, light: Light, picture: Floats) -> None:
    """Darkens the ground beside each object: a soft ellipse that stretches away from the light."""
    camera = world.camera
    height, width = camera.size_hw
    lx, ly, lz = light.direction
    level = math.hypot(lx, lz)
    away_x, away_z = -lx / level, -lz / level
    strength = np.float32(0.75 * (1 - light.ambient))
    wall = stuff_label("wall")
    for solid in world.solids:
        tall = solid.half_extent[1]
        length = min(0.5 * tall * level / ly, 1.6 * solid.scale)
        half_long, half_wide = solid.half_extent[0] * 0.9 + length, solid.half_extent[0] * 0.95
        cx, cz = solid.x + away_x * length, solid.z + away_z * length
        reach = 1.15 * half_long
        corners = [
            camera.project(cx + dx, -camera.height_m, max(cz + dz, 0.5))
            for dx in (-reach, reach)
            for dz in (-reach, reach)
        ]
        left = max(math.floor(min(c for c, _ in corners)), 0)
        right = min(math.ceil(max(c for c, _ in corners)) + 1, width)
        top = max(math.floor(min(r for _, r in corners)), 0)
        bottom = min(math.ceil(max(r for _, r in corners)) + 1, height)
        if right <= left or bottom <= top:
            continue
        depth = backdrop.ground[top:bottom]
        dx = camera.x[None, left:right] * depth[:, None] - np.float32(cx)
        dz = (depth * camera.forward[top:bottom] - np.float32(cz))[:, None]
        along = (away_x * dx + away_z * dz) * np.float32(1 / half_long)
        aside = (away_z * dx - away_x * dz) * np.float32(1 / half_wide)
        shade = np.clip(np.float32(1.25) - (along * along + aside * aside), 0, 0.8) * strength
        shade *= (depth > 0)[:, None]
        if world.wall is not None:
            shade *= backdrop.labels[top:bottom, left:right] != wall
        picture[top:bottom, left:right] *= (1 - shade)[..., None]


def _paint_solid(
    world: World, number: int, solid: Solid, hit: Hit, light: Light, tint: npt.NDArray[np.float64], picture: Floats
) -> None:
    camera: Camera = world.camera
    window = hit.window
    rows, columns = np.nonzero(world.object_ids[window] == number)
    depth = hit.depth[rows, columns]
    rows += hit.top
    columns += hit.left
    x, y, z = depth * camera.x[columns], -depth * camera.down[rows], depth * camera.forward[rows]
    nx, ny, nz, across = normals(solid, camera, x, y, z)
    lx, ly, lz = light.direction
    lambert = np.maximum(nx * np.float32(lx) + ny * np.float32(ly) + nz * np.float32(lz), 0)
    # A little light comes back from the ground and more from above.
    bright = light.ambient * (0.85 + 0.15 * ny) + (1.05 - light.ambient) * lambert
    base = np.array(COLOURS[solid.colour])
    colour = (base * tint).astype(np.float32)
    if solid.material == "shiny":
        # Mirror direction of the view against the light; the view is nearly along -ray.
        size = np.float32(1) / np.sqrt(x * x + y * y + z * z)
        hx, hy, hz = np.float32(lx) - x * size, np.float32(ly) - y * size, np.float32(lz) - z * size
        half = np.maximum((nx * hx + ny * hy + nz * hz) / np.sqrt(hx * hx + hy * hy + hz * hz), 0)
        for _ in range(5):
            half = half * half
        sheen = np.maximum(1 - np.abs(across - np.float32(0.45)) * 9, 0) * np.float32(0.4)
        gleam = np.minimum(half + sheen + np.float32(0.06), 1) * np.float32(215 * light.power)
        pixels = bright[:, None] * colour[None] * np.float32(0.85) + gleam[:, None]
    else:
        tile = _grain()[(rows * 3 + number * 37) & 255, (columns * 3) & 255]
        bright = bright * (np.float32(0.88) + tile * np.float32(0.24 / _SHADES))
        pixels = bright[:, None] * colour[None]
    picture[rows, columns] = pixels


def _develop(picture: Floats, dice: Dice) -> npt.NDArray[np.uint8]:
    """The camera's part: vignette, blur, exposure, contrast, noise, rounding."""
    height, width, _ = picture.shape
    exposure, contrast, lift = dice.uniform(0.85, 1.15), dice.uniform(0.85, 1.15), dice.uniform(-8, 8)
    vignette, soft, noise = dice.uniform(0.0, 0.28), dice.uniform(0.0, 0.24), dice.uniform(0.5, 7.0)
    down = np.linspace(-1, 1, height, dtype=np.float32) ** 2
    right = np.linspace(-1, 1, width, dtype=np.float32) ** 2
    gain = (1 - np.float32(vignette / 2) * (down[:, None] + right[None])) * np.float32(exposure * contrast)
    picture *= gain[..., None]
    picture += np.float32(lift + 110 * (1 - contrast))
    if soft > 0.04:
        for axis in (0, 1):
            _soften(picture, axis, np.float32(soft))
    speckle = np.take(_bell() * np.float32(noise), dice.bytes(picture.size)).reshape(picture.shape)
    picture += speckle
    np.clip(picture, 0, 255, out=picture)
    picture += np.float32(0.5)
    return picture.astype(np.uint8)


def _soften(picture: Floats, axis: int, share: np.float32) -> None:
    """Mixes each pixel with its two neighbours along an axis, in place."""
    one = [slice(None)] * 3
    low, middle, high = list(one), list(one), list(one)
    low[axis], middle[axis], high[axis] = slice(None, -2), slice(1, -1), slice(2, None)
    mixed = picture[tuple(low)] + picture[tuple(high)]
    mixed *= share
    picture[tuple(middle)] *= 1 - 2 * share
    picture[tuple(middle)] += mixed
