"""Drawing predictions on pictures with Pillow: boxes, masks, maps, legends and sentences that stay readable.

The functions here take plain arrays, names and numbers in the frame of the picture; :mod:`saccade.results` calls them.
Text and lines scale with the picture (64 to 4000 pixels); labels stay inside the frame and avoid one another.
The font is the one inside Pillow, which covers Latin script.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter, ImageFont
from scipy import ndimage
from torch import Tensor

from saccade.errors import SaccadeError, UsageError

RGB: TypeAlias = tuple[int, int, int]
Rectangle: TypeAlias = tuple[int, int, int, int]
"""``x0 y0 x1 y1`` in pixels, the right and bottom edges excluded."""

ImageLike: TypeAlias = "Image.Image | NDArray[np.uint8] | Tensor"
"""A Pillow image, a uint8 ``[H, W, 3]`` array or a uint8 ``[3, H, W]`` tensor, RGB."""

# Okabe and Ito's colours (without black, which vanishes on photographs), then Tol's "muted" scheme: both made for
# colour-blind readers. Past these 16 the same hues come back lighter, then darker.
_BASE: tuple[RGB, ...] = (
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (240, 228, 66),
    (0, 114, 178),
    (213, 94, 0),
    (204, 121, 167),
    (204, 102, 119),
    (51, 34, 136),
    (221, 204, 119),
    (17, 119, 51),
    (136, 204, 238),
    (136, 34, 85),
    (68, 170, 153),
    (153, 153, 51),
    (170, 68, 153),
)
_SHADES: tuple[tuple[int, float], ...] = ((0, 0.0), (255, 0.5), (0, 0.45))  # (mixed with grey value, share)
_FILL = 0.42  # share of the class colour inside a mask
_MAP_FILL = 0.6  # share of the class colour in a semantic map
_MAX_LABEL_COVER = 0.35  # labels never hide more of the picture than this
_STRIP_BACK: RGB = (24, 26, 30)
_STRIP_TEXT: RGB = (240, 240, 240)
_STRIP_GREY: RGB = (160, 164, 170)


def class_colour(class_id: int) -> RGB:
    """The colour of a class: the same in every picture, repeating after 48 classes.

    Args:
        class_id: 0..K-1.
    """
    towards, share = _SHADES[(class_id // len(_BASE)) % len(_SHADES)]
    red, green, blue = (round(c + (towards - c) * share) for c in _BASE[class_id % len(_BASE)])
    return red, green, blue


def colour_table(count: int) -> NDArray[np.uint8]:
    """Colours of the classes 0..count-1 as ``[count, 3]`` uint8."""
    return np.array([class_colour(k) for k in range(count)], dtype=np.uint8).reshape(count, 3)


def to_pil(image: ImageLike) -> Image.Image:
    """A fresh RGB Pillow copy of a picture.

    Args:
        image: A Pillow image, a uint8 ``[H, W, 3]`` array or a uint8 ``[3, H, W]`` tensor.

    Raises:
        UsageError: Another dtype or layout.
    """
    if isinstance(image, Image.Image):
        return image.convert("RGB") if image.mode != "RGB" else image.copy()
    shape = tuple(image.shape)
    if isinstance(image, Tensor):
        pixels = image.detach().cpu().numpy()
        fits = len(shape) == 3 and shape[0] == 3 and pixels.dtype == np.uint8
        pixels = pixels.transpose(1, 2, 0) if fits else pixels
    else:
        pixels = image
        fits = len(shape) == 3 and shape[2] == 3 and pixels.dtype == np.uint8
    if not fits:
        raise UsageError(
            f"cannot draw on {type(image).__name__} of shape {shape} and type {pixels.dtype}",
            fix="give a Pillow image, a uint8 [H, W, 3] array or a uint8 [3, H, W] tensor",
        )
    return Image.fromarray(np.ascontiguousarray(pixels))


def font_size(width: int, height: int) -> int:
    """Text size in pixels that reads well on a picture of this size."""
    return max(9, round(7 + 0.016 * math.sqrt(width * height)))


def line_width(width: int, height: int) -> int:
    """Line width in pixels for a picture of this size."""
    return max(1, round(math.sqrt(width * height) / 250))


@functools.lru_cache(maxsize=32)
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


@dataclass(kw_only=True)
class _Typesetter:
    """Measures and cuts text of one size."""

    size: int

    @property
    def font(self) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
        return _font(self.size)

    @property
    def line_height(self) -> int:
        return math.ceil(self.size * 1.25)

    @property
    def pad(self) -> int:
        """Space left and right of a label's text."""
        return max(1, self.size // 5)

    def width(self, text: str) -> int:
        return math.ceil(self.font.getlength(text))

    def fit(self, text: str, width: int) -> str:
        """The text in one line, or as much of it as fits with an ellipsis behind."""
        text = " ".join(text.split())
        if self.width(text) <= width:
            return text
        low, high = 0, len(text)
        while low < high:
            middle = (low + high + 1) // 2
            if self.width(text[:middle].rstrip() + "…") <= width:
                low = middle
            else:
                high = middle - 1
        return text[:low].rstrip() + "…" if low else text[:1]

    def wrap(self, text: str, width: int) -> list[str]:
        """Lines no wider than ``width``; a word that is wider by itself is broken."""
        lines: list[str] = []
        line = ""
        for word in text.split():
            joined = f"{line} {word}" if line else word
            if self.width(joined) <= width:
                line = joined
                continue
            if line:
                lines.append(line)
            while self.width(word) > width and len(word) > 1:
                cut = next(n for n in range(len(word) - 1, 0, -1) if n == 1 or self.width(word[:n]) <= width)
                lines.append(word[:cut])
                word = word[cut:]
            line = word
        return [*lines, line] if line else lines


def _ink(background: RGB) -> RGB:
    """Black or white, whichever reads better on the background (relative luminance of WCAG)."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (v / 255 for v in background)]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return (0, 0, 0) if luminance > 0.179 else (255, 255, 255)


def _overlaps(places: NDArray[np.int64], size: tuple[int, int], taken: NDArray[np.int64]) -> NDArray[np.int64]:
    """Area that a label of ``size`` shares with the ``taken`` rectangles at each of the ``[P, 2]`` places."""
    if not len(taken):
        return np.zeros(len(places), dtype=np.int64)
    low = np.maximum(places[:, None], taken[None, :, :2])
    high = np.minimum(places[:, None] + np.array(size), taken[None, :, 2:])
    sides = np.clip(high - low, 0, None)
    return (sides[..., 0] * sides[..., 1]).sum(axis=1)


def place_labels(
    anchors: Sequence[Rectangle],
    sizes: Sequence[tuple[int, int]],
    frame: tuple[int, int],
    *,
    taken: Sequence[Rectangle] = (),
) -> list[Rectangle]:
    """Finds a place for each label: near its box, inside the frame, free of the labels before it where possible.

    Args:
        anchors: The boxes the labels belong to, most important first.
        sizes: Width and height of each label; none wider or higher than the frame.
        frame: Width and height of the picture.
        taken: Places that are occupied already.

    Returns:
        One rectangle per label, in the same order.
    """
    width, height = frame
    placed: list[Rectangle] = []
    for (x0, y0, x1, y1), (w, h) in zip(anchors, sizes, strict=True):
        beside = [
            (x0, y0 - h), (x0, y1), (x1 - w, y0 - h), (x1 - w, y1), (x0, y0), (x0, y1 - h),
            (x1 - w, y0), (x1 - w, y1 - h), (x1, y0), (x0 - w, y0), (x1, y1 - h), (x0 - w, y1 - h),
        ]  # fmt: skip
        limit = np.array([max(width - w, 0), max(height - h, 0)], dtype=np.int64)
        places = np.clip(np.array(beside, dtype=np.int64), 0, limit)
        occupied = np.array([*taken, *placed], dtype=np.int64).reshape(-1, 4)
        shared = _overlaps(places, (w, h), occupied)
        best = int(shared.argmin())  # the first of equals: the order above is the order of preference
        if shared[best] > 0:
            # Every place beside the box is taken: look over the whole frame for the free place nearest to the box.
            xs = np.unique(np.append(np.arange(0, limit[0] + 1, max(w // 4, 1)), limit[0]))
            ys = np.unique(np.append(np.arange(0, limit[1] + 1, max(h // 2, 1)), limit[1]))
            everywhere = np.stack(np.meshgrid(xs, ys), axis=-1).reshape(-1, 2)
            free = everywhere[_overlaps(everywhere, (w, h), occupied) == 0]
            if len(free):
                middle = np.array([(x0 + x1 - w) / 2, (y0 + y1 - h) / 2])
                places, best = free, int(((free - middle) ** 2).sum(axis=1).argmin())
        x, y = int(places[best][0]), int(places[best][1])
        placed.append((x, y, x + w, y + h))
    return placed


def _paint_labels(
    canvas: Image.Image, anchors: Sequence[Rectangle], texts: Sequence[str], colours: Sequence[RGB]
) -> None:
    """Writes one label per box, best first, until the labels would hide too much of the picture."""
    width, height = canvas.size
    setter = _Typesetter(size=font_size(width, height))
    pad = setter.pad
    shown: list[str] = []
    sizes: list[tuple[int, int]] = []
    cover = 0
    for text in texts:
        text = setter.fit(text, max(width - 2 * pad, 1))
        size = (min(setter.width(text) + 2 * pad, width), min(setter.line_height, height))
        cover += size[0] * size[1]
        if shown and cover > _MAX_LABEL_COVER * width * height:
            break
        shown.append(text)
        sizes.append(size)
    corner: Rectangle | None = None
    if len(shown) < len(texts):
        note = setter.fit(f"+{len(texts) - len(shown)} more", max(width - 2 * pad, 1))
        corner = (max(width - setter.width(note) - 2 * pad, 0), max(height - setter.line_height, 0), width, height)
    rectangles = place_labels(anchors[: len(shown)], sizes, (width, height), taken=[corner] if corner else [])
    draw = ImageDraw.Draw(canvas)
    for anchor, rectangle, colour in zip(anchors, rectangles, colours, strict=False):
        _leader(draw, anchor, rectangle, colour, line_width(width, height))
    for text, rectangle, colour in zip(shown, rectangles, colours, strict=False):
        _paint_plate(draw, rectangle, text, setter, fill=colour)
    if corner:
        _paint_plate(draw, corner, note, setter, fill=_STRIP_BACK)


def _paint_plate(draw: ImageDraw.ImageDraw, place: Rectangle, text: str, setter: _Typesetter, *, fill: RGB) -> None:
    """Text on a filled rectangle."""
    x0, y0, x1, y1 = place
    draw.rectangle((x0, y0, x1 - 1, y1 - 1), fill=fill)
    draw.text((x0 + setter.pad, (y0 + y1) / 2), text, fill=_ink(fill), font=setter.font, anchor="lm")


def _leader(draw: ImageDraw.ImageDraw, anchor: Rectangle, label: Rectangle, colour: RGB, width: int) -> None:
    """A line from a label that had to go elsewhere to its box."""
    apart = anchor[0] > label[2] + 1 or label[0] > anchor[2] + 1 or anchor[1] > label[3] + 1 or label[1] > anchor[3] + 1
    if apart:
        start = ((label[0] + label[2]) / 2, (label[1] + label[3]) / 2)
        end = (min(max(start[0], anchor[0]), anchor[2]), min(max(start[1], anchor[1]), anchor[3]))
        draw.line((*start, *end), fill=colour, width=width)


def _as_rectangle(box: NDArray[np.float32], width: int, height: int) -> Rectangle:
    """Whole-pixel rectangle of a box, inside the frame and at least one pixel wide and high.

    Raises:
        SaccadeError: A coordinate is NaN or infinite.
    """
    if not np.isfinite(box).all():
        raise SaccadeError(
            "a box that holds NaN or infinity cannot be drawn",
            where=box.tolist(),
            fix="the weights are damaged or their training diverged",
        )
    x0 = int(np.clip(math.floor(box[0]), 0, width - 1))
    y0 = int(np.clip(math.floor(box[1]), 0, height - 1))
    x1 = int(np.clip(math.ceil(box[2]), x0 + 1, width))
    y1 = int(np.clip(math.ceil(box[3]), y0 + 1, height))
    return x0, y0, x1, y1


def _paint_box(draw: ImageDraw.ImageDraw, rectangle: Rectangle, colour: RGB, width: int) -> None:
    x0, y0, x1, y1 = rectangle
    outline = (x0, y0, max(x1 - 1, x0), max(y1 - 1, y0))
    if width >= 2:  # a dark edge keeps the line visible on a background of its own colour
        draw.rectangle(outline, outline=(0, 0, 0), width=width + max(1, width // 3))
    draw.rectangle(outline, outline=colour, width=width)


def _paint_mask(pixels: NDArray[np.uint8], mask: NDArray[np.bool_], colour: RGB, width: int) -> None:
    """Tints the pixels of a mask in place and draws its outline, looking only at the mask's own rectangle."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return
    part = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    inner = Image.fromarray(np.pad(part, 1).astype(np.uint8))  # the padding makes the frame count as outside
    for _ in range(width):
        inner = inner.filter(ImageFilter.MinFilter(3))
    edge = part & (np.asarray(inner)[1:-1, 1:-1] == 0)
    view = pixels[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    tint = np.array(colour, dtype=np.float32) * _FILL
    view[part] = np.rint(view[part] * np.float32(1 - _FILL) + tint).astype(np.uint8)
    view[edge] = colour


def draw_instances(
    image: ImageLike,
    *,
    boxes_xyxy: NDArray[np.float32],
    class_ids: Sequence[int],
    labels: Sequence[str],
    masks: Iterable[NDArray[np.bool_]] | None = None,
) -> Image.Image:
    """Draws boxes, translucent masks with their outline, and labels.

    Args:
        image: The picture.
        boxes_xyxy: ``[N, 4]`` pixels of the picture, best first.
        class_ids: N class ids; they choose the colours.
        labels: N texts.
        masks: N masks ``[H, W]`` bool; may be a generator, so that only one is in memory at a time.

    Returns:
        A new RGB image of the same size.
    """
    canvas = to_pil(image)
    colours = [class_colour(k) for k in class_ids]
    thick = line_width(*canvas.size)
    if masks is not None:
        pixels = np.array(canvas)
        for mask, colour in zip(masks, colours, strict=True):
            _paint_mask(pixels, mask, colour, thick)
        canvas = Image.fromarray(pixels)
    rectangles = [_as_rectangle(box, *canvas.size) for box in boxes_xyxy]
    draw = ImageDraw.Draw(canvas)
    for rectangle, colour in reversed(list(zip(rectangles, colours, strict=True))):  # the best ends on top
        _paint_box(draw, rectangle, colour, max(1, thick // 2) if masks is not None else thick)
    _paint_labels(canvas, rectangles, labels, colours)
    return canvas


def draw_grounding(
    image: ImageLike, *, box_xyxy: NDArray[np.float32], phrase: str, label: str, colour_id: int = 0
) -> Image.Image:
    """Draws the box of a phrase, with its label, and the phrase in a strip below the picture.

    Args:
        image: The picture.
        box_xyxy: ``[4]`` pixels of the picture.
        phrase: The phrase as asked.
        label: Short text at the box (the score).
        colour_id: Chooses the colour, where several phrases are drawn.

    Returns:
        A new RGB image: the picture, and the strip under it.
    """
    canvas = to_pil(image)
    rectangle = _as_rectangle(box_xyxy, *canvas.size)
    colour = class_colour(colour_id)
    _paint_box(ImageDraw.Draw(canvas), rectangle, colour, line_width(*canvas.size))
    if label:
        _paint_labels(canvas, [rectangle], [label], [colour])
    return draw_caption(canvas, text=f"“{phrase}”", marker=colour)


def draw_points(image: ImageLike, *, points_xy: NDArray[np.float32]) -> Image.Image:
    """Marks points with crosses, the first in the first colour.

    Args:
        image: The picture.
        points_xy: ``[N, 2]`` pixels of the picture; (0, 0) is the middle of the first pixel.

    Returns:
        A new RGB image of the same size.
    """
    canvas = to_pil(image)
    draw, width = ImageDraw.Draw(canvas), line_width(*canvas.size)
    arm = 6 * width
    for number, (x, y) in enumerate(points_xy.tolist()):
        strokes = ((x - arm, y, x + arm, y), (x, y - arm, x, y + arm))
        for colour, thickness in (((0, 0, 0), width + 2), (class_colour(number), width)):  # visible on any ground
            for stroke in strokes:
                draw.line(stroke, fill=colour, width=thickness)
    return canvas


def draw_caption(image: ImageLike, *, text: str, note: str = "", marker: RGB | None = None) -> Image.Image:
    """Writes a sentence in a strip below the picture.

    Args:
        image: The picture.
        text: The sentence; wrapped to the width of the picture.
        note: A smaller remark behind it, in grey.
        marker: Colour of a bar left of the text.

    Returns:
        A new RGB image: the picture at its own size, and the strip under it.
    """
    canvas = to_pil(image)
    width, height = canvas.size
    setter = _Typesetter(size=font_size(width, height))
    pad = max(2, setter.size // 2)
    inset = pad + (max(2, setter.size // 4) + pad // 2 if marker else 0)
    room = max(width - inset - pad, 1)
    lines = [(line, _STRIP_TEXT) for line in setter.wrap(text, room)]
    lines += [(line, _STRIP_GREY) for line in setter.wrap(note, room)]
    strip = len(lines) * setter.line_height + 2 * pad
    extended = Image.new("RGB", (width, height + strip), _STRIP_BACK)
    extended.paste(canvas, (0, 0))
    draw = ImageDraw.Draw(extended)
    if marker:
        draw.rectangle((pad, height + pad, pad + max(2, setter.size // 4), height + strip - pad), fill=marker)
    for row, (line, colour) in enumerate(lines):
        middle = height + pad + (row + 0.5) * setter.line_height
        draw.text((inset, middle), line, fill=colour, font=setter.font, anchor="lm")
    return extended


def draw_semantic(
    image: ImageLike,
    *,
    labels: NDArray[np.int64],
    names: Sequence[str],
    ignore: int | None = None,
    background: int | None = None,
    regions: NDArray[np.int64] | None = None,
) -> Image.Image:
    """Tints every pixel with the colour of its class, names the large regions and adds a legend below.

    Args:
        image: The picture.
        labels: ``[H, W]`` class ids of the picture's pixels.
        names: Class names.
        ignore: Label of pixels without a class; they keep their own colour and have no legend entry.
        background: Class whose pixels keep their own colour; the legend lists it in grey.
        regions: ``[H, W]`` ids of the regions that get a line around them; None = one per class.

    Returns:
        A new RGB image: the picture at its own size, and the legend under it. The legend lists the classes that occur,
        largest share first.
    """
    canvas = to_pil(image)
    pixels = np.asarray(canvas)
    ids, counts = np.unique(labels, return_counts=True)
    known = ids != ignore if ignore is not None else np.ones(len(ids), dtype=bool)
    ids, counts = ids[known], counts[known]
    order = np.lexsort((ids, -counts))
    ids, counts = ids[order], counts[order]
    table = np.zeros((max(int(labels.max()), len(names)) + 1, 3), dtype=np.float32)
    table[: len(names)] = colour_table(len(names))
    tinted = ~np.isin(labels, [label for label in (ignore, background) if label is not None])
    mixed = np.rint(pixels * np.float32(1 - _MAP_FILL) + table[labels] * np.float32(_MAP_FILL)).astype(np.uint8)
    mixed = np.where(tinted[..., None], mixed, pixels)
    border = np.zeros(labels.shape, dtype=bool)
    lined = labels if regions is None else regions
    border[:, 1:] |= lined[:, 1:] != lined[:, :-1]
    border[1:] |= lined[1:] != lined[:-1]
    thick = line_width(*canvas.size)
    if thick > 1:
        border = ndimage.binary_dilation(border, iterations=thick // 2)
    mixed[border] = (255, 255, 255)
    canvas = Image.fromarray(mixed)
    _name_regions(canvas, labels, ids[ids != background], names)
    shares = counts / max(labels.size, 1)
    colours = [_STRIP_GREY if k == background else class_colour(int(k)) for k in ids]
    return _legend(canvas, [(colour, names[k], f"{s:.1%}") for colour, k, s in zip(colours, ids, shares, strict=True)])


def draw_referral(
    image: ImageLike,
    *,
    masks: Iterable[NDArray[np.bool_]],
    phrases: Sequence[str],
    notes: Sequence[str],
    found: Sequence[bool],
) -> Image.Image:
    """Tints what every phrase refers to, and lists the phrases below.

    Args:
        image: The picture.
        masks: K masks ``[H, W]`` bool; may be a generator, so that only one is in memory at a time.
        phrases: K phrases.
        notes: K remarks behind the phrases.
        found: Whether each phrase has an answer; the others are listed last, in grey.

    Returns:
        A new RGB image: the picture, and the list under it.
    """
    canvas = to_pil(image)
    pixels = np.array(canvas)
    thick = line_width(*canvas.size)
    for k, mask in enumerate(masks):
        _paint_mask(pixels, mask, class_colour(k), thick)
    order = sorted(range(len(phrases)), key=lambda k: not found[k])
    entries = [(class_colour(k) if found[k] else _STRIP_GREY, f"“{phrases[k]}”", notes[k]) for k in order]
    return _legend(Image.fromarray(pixels), entries)


def draw_depth(image: ImageLike, *, depth_m: NDArray[np.float32]) -> Image.Image:
    """Colours a depth map: near is bright, far is dark, what is unknown (0) shows the picture in grey.

    Args:
        image: The picture.
        depth_m: ``[H, W]`` metres of the picture's pixels.

    Returns:
        A new RGB image: the coloured map at the size of the picture, and a scale in metres under it.
    """
    from matplotlib import colormaps

    canvas = to_pil(image)
    table = (colormaps["viridis"](np.linspace(1, 0, 256))[:, :3] * 255).round().astype(np.uint8)
    known = depth_m > 0
    near, far = (float(side) for side in np.quantile(depth_m[known], (0.01, 0.99))) if known.any() else (0.0, 1.0)
    # Steps of equal ratio: a metre matters more near the camera.
    ratio = math.log(max(far, near + 1e-6) / near) if near > 0 else 1.0
    share = np.log(np.maximum(depth_m, near) / near) / max(ratio, 1e-6) if near > 0 else np.zeros_like(depth_m)
    colours = table[np.clip(share * 255, 0, 255).astype(np.uint8)]
    grey = np.asarray(canvas.convert("L").convert("RGB"))
    drawn = Image.fromarray(np.where(known[..., None], colours, grey).astype(np.uint8))
    return _scale_strip(drawn, table, [near * math.exp(ratio * part) for part in (0, 0.25, 0.5, 0.75, 1)])


def _scale_strip(canvas: Image.Image, table: NDArray[np.uint8], marks_m: Sequence[float]) -> Image.Image:
    """The picture with a bar of colours below it, and the depths that they stand for."""
    width, height = canvas.size
    setter = _Typesetter(size=font_size(width, height))
    bar = setter.line_height // 2
    out = Image.new("RGB", (width, height + bar + setter.line_height + setter.pad), _STRIP_BACK)
    out.paste(canvas, (0, 0))
    colours = table[np.linspace(0, len(table) - 1, width).astype(np.int64)]
    out.paste(Image.fromarray(np.ascontiguousarray(np.broadcast_to(colours, (bar, width, 3)))), (0, height))
    draw = ImageDraw.Draw(out)
    end = 0
    for index, mark in enumerate(marks_m):
        text = f"{mark:.2g} m" if mark < 10 else f"{mark:.0f} m"
        place = round((width - setter.width(text)) * index / (len(marks_m) - 1))
        if place < end:
            continue  # a narrow picture has room for fewer marks
        draw.text((place, height + bar), text, fill=_STRIP_TEXT, font=setter.font)
        end = place + setter.width(text) + setter.pad
    return out


def _name_regions(canvas: Image.Image, labels: NDArray[np.int64], ids: NDArray[np.int64], names: Sequence[str]) -> None:
    """Writes a class's name in the widest part of its region, where it fits there."""
    width, height = canvas.size
    setter = _Typesetter(size=font_size(width, height))
    draw = ImageDraw.Draw(canvas)
    step = max(1, round(max(width, height) / 256))  # the search runs on a thinned map: exact places do not matter
    small = labels[::step, ::step]
    for k in ids:
        depth = ndimage.distance_transform_edt(np.pad(small == k, 1))[1:-1, 1:-1] * step
        row, column = np.unravel_index(int(depth.argmax()), depth.shape)
        name = setter.fit(names[k], width)
        w, h = setter.width(name) + 2 * setter.pad, setter.line_height
        if w <= width and math.hypot(w, h) <= 3 * depth[row, column]:
            x = int(np.clip(column * step - w // 2, 0, width - w))
            y = int(np.clip(row * step - h // 2, 0, height - h))
            _paint_plate(draw, (x, y, x + w, y + h), name, setter, fill=class_colour(int(k)))


def _legend(canvas: Image.Image, entries: Sequence[tuple[RGB, str, str]]) -> Image.Image:
    """Adds rows of swatch, name and remark under a picture."""
    width, height = canvas.size
    setter = _Typesetter(size=font_size(width, height))
    pad, swatch = max(2, setter.size // 2), setter.size
    room = max(width - 2 * pad - swatch - pad // 2, 1)
    texts = [setter.fit(f"{name} {remark}", room) for _, name, remark in entries]
    spots: list[tuple[int, int]] = []
    x, row = pad, 0
    for text in texts:
        span = swatch + pad // 2 + setter.width(text)
        if x > pad and x + span > width - pad:
            x, row = pad, row + 1
        spots.append((x, row))
        x += span + 2 * pad
    strip = (row + 1) * setter.line_height + 2 * pad
    extended = Image.new("RGB", (width, height + strip), _STRIP_BACK)
    extended.paste(canvas, (0, 0))
    draw = ImageDraw.Draw(extended)
    for (colour, _, _), text, (x, row) in zip(entries, texts, spots, strict=True):
        middle = height + pad + (row + 0.5) * setter.line_height
        draw.rectangle((x, middle - swatch / 2, x + swatch, middle + swatch / 2), fill=colour)
        draw.text((x + swatch + pad // 2, middle), text, fill=_STRIP_TEXT, font=setter.font, anchor="lm")
    return extended
