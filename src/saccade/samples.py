"""What a model is given: samples, targets, class lists, preprocessing declarations and batches.

Frames: a :class:`Sample` that comes from a source is in the frame of the original image; after the transforms it is in
the frame of the network input. Boxes are absolute pixels, ``x0 y0 x1 y1``, with the origin at the corner of the first
pixel.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor
from torchvision import tv_tensors

from saccade.errors import DataError, UsageError
from saccade.tasks import Task

Wording: TypeAlias = Literal["expression", "class", "part", "question", "sentence"]
"""What the phrases of a sample are: referring expressions; class names; parts (``object:part``, or an object's name);
words that take some thought (ReasonSeg), or whole sentences of that kind, which are asked as they are."""

IGNORE_LABEL = 255
"""Label of pixels that semantic segmentation neither learns nor scores."""


@dataclass(kw_only=True, frozen=True)
class ClassList:
    """The one class-id contract: ``class_id`` k (0..K-1) has a name and the data set's own category id.

    Attributes:
        names: Class names, indexed by class id.
        category_ids: The ids that the data set's files use, indexed by class id.
        frequencies: ``r``, ``c`` or ``f`` (rare, common, frequent) of each class, where the data set says so (LVIS).
        image_counts: Number of training images that hold each class, where the data set says so (LVIS).
        things: Whether each class is a thing (countable) rather than stuff, where the data set says so (panoptic).
    """

    names: tuple[str, ...]
    category_ids: tuple[int, ...]
    frequencies: tuple[str, ...] = ()
    image_counts: tuple[int, ...] = ()
    things: tuple[bool, ...] = ()

    def __post_init__(self) -> None:
        optional = {"frequencies": self.frequencies, "image counts": self.image_counts, "thing flags": self.things}
        for what, values in optional.items():
            if values and len(values) != len(self.names):
                raise DataError(f"{len(self.names)} class names but {len(values)} {what}", where=self.names[:5])
        if len(self.names) != len(self.category_ids):
            raise DataError(
                f"{len(self.names)} class names but {len(self.category_ids)} category ids", where=self.names[:5]
            )
        if len(set(self.category_ids)) != len(self.category_ids):
            raise DataError("a category id is used by two classes", where=self.category_ids)
        if len(set(self.names)) != len(self.names):
            twice = sorted({name for name in self.names if self.names.count(name) > 1})
            raise DataError("a class name is used twice", where=twice)

    @classmethod
    def from_names(cls, names: Iterable[str]) -> ClassList:
        """Numbers the names 0..K-1 and uses these numbers as category ids too.

        Raises:
            UsageError: An empty list, an empty name, or the same name twice.
        """
        listed = tuple(name.strip() for name in names)
        if not listed or any(not name for name in listed):
            raise UsageError("class names must be a non-empty list of non-empty names", where=listed)
        twice = [name for name in listed if listed.count(name) > 1]
        if twice:
            raise UsageError(f"the class '{twice[0]}' is named twice", where=", ".join(listed), fix="name it once")
        return cls(names=listed, category_ids=tuple(range(len(listed))))

    def __len__(self) -> int:
        return len(self.names)

    def class_id(self, category_id: int) -> int:
        """Class id (0..K-1) of a data set's category id.

        Raises:
            DataError: The category is not in the list.
        """
        try:
            return self.category_ids.index(category_id)
        except ValueError:
            raise DataError(
                f"category id {category_id} is not among the {len(self)} declared categories",
                why="the annotation names a category that the file does not declare",
                fix="run `saccade data check` on the data set",
            ) from None


@dataclass(kw_only=True, frozen=True)
class Origin:
    """Where an image came from.

    Attributes:
        dataset: Name of the source.
        image_id: The data set's own id (file stem where it has none).
        path: File path, or None for drawn or in-memory images.
        size_hw: Height and width of the original image, after EXIF orientation.
    """

    dataset: str
    image_id: int | str
    path: str | None
    size_hw: tuple[int, int]


@dataclass(kw_only=True, frozen=True)
class Segment:
    """One segment of a panoptic map.

    Attributes:
        id: Its value in the map, 1 .. 2**24 - 1.
        class_id: 0..K-1.
        is_crowd: A group that is not told apart: neither learned nor missed (only in a truth).
        score: 0..1 (1 in a truth).
    """

    id: int
    class_id: int
    is_crowd: bool = False
    score: float = 1.0


@dataclass(kw_only=True)
class Target:
    """Every kind of truth about one image; a source fills what it knows and leaves the rest None.

    Attributes:
        boxes: ``[N, 4]`` float32 pixels, XYXY.
        class_ids: ``[N]`` int64 in 0..K-1.
        masks: ``[N, H, W]`` bool; float32 in 0..1 where outlines are soft (training of ViSFT).
        is_crowd: ``[N]`` bool; crowd regions are never training targets and are ignored regions for AP.
        areas: ``[N]`` float64, the annotation's own area (AP size ranges use it).
        absent_class_ids: ``[A]`` int64, classes that are verified to be absent; None where every class that is not
            annotated is absent (LVIS: ``neg_category_ids``).
        partial_class_ids: ``[P]`` int64, classes of which not every object is annotated (LVIS:
            ``not_exhaustive_category_ids``).
        semantic: ``[H, W]`` int64, :data:`IGNORE_LABEL` where unlabelled.
        panoptic: ``[H, W]`` int64 segment ids, 0 where unlabelled.
        segments: What the ids of ``panoptic`` are.
        captions: Reference sentences.
        contours: ``[N, 2 + R]`` float32 from :mod:`saccade.tokens.contours`: integer mass centre (x, y) and R ray
            lengths in pixels. Filled by the loader's workers, because tracing contours is slow.
        depth_m: ``[H, W]`` float32 metres, 0 where unknown.
        phrase_ids: ``[N]`` int64, the phrase that each of ``boxes`` is a target of (referring segmentation, where
            ``masks`` has one mask per phrase: the union of its targets, all False where there is none).
        ignored: ``[H, W]`` bool, pixels that are neither target nor background.
        explanation: Why the target is what the phrase asks for, in words.
    """

    boxes: tv_tensors.BoundingBoxes | None = None
    class_ids: Tensor | None = None
    masks: tv_tensors.Mask | None = None
    is_crowd: Tensor | None = None
    areas: Tensor | None = None
    absent_class_ids: Tensor | None = None
    partial_class_ids: Tensor | None = None
    semantic: tv_tensors.Mask | None = None
    panoptic: tv_tensors.Mask | None = None
    segments: tuple[Segment, ...] = ()
    captions: tuple[str, ...] = ()
    contours: Tensor | None = None
    depth_m: Tensor | None = None
    phrase_ids: Tensor | None = None
    ignored: tv_tensors.Mask | None = None
    explanation: str = ""

    def to(self, device: torch.device | str) -> Target:
        """Copies every tensor to the device."""
        moved: dict[str, Any] = {
            f.name: value.to(device) if isinstance(value := getattr(self, f.name), Tensor) else value
            for f in dataclasses.fields(self)
        }
        return Target(**moved)


@dataclass(kw_only=True)
class Sample:
    """One image, its task, its truth, its prompt and its origin.

    Attributes:
        image: ``[3, H, W]`` uint8 RGB (float32 in 0..255 after a float resize).
        task: What is asked.
        target: The truth, in the frame of ``image``.
        classes: Prompt of detection, instance and semantic segmentation.
        phrase: Prompt of grounding.
        phrases: Prompt of referring segmentation.
        wording: What the phrases are.
        dialogue: Rounds of question and answer about the image (instruction tuning). They take the place of a question
            about ``phrases``, which then are those of the [SEG] in the answers, in their order.
        origin: Where it came from.
    """

    image: tv_tensors.Image
    task: Task
    origin: Origin
    target: Target = field(default_factory=Target)
    classes: ClassList | None = None
    phrase: str | None = None
    phrases: tuple[str, ...] = ()
    wording: Wording = "expression"
    dialogue: tuple[tuple[str, str], ...] = ()

    @property
    def size_hw(self) -> tuple[int, int]:
        """Height and width of ``image``."""
        return int(self.image.shape[-2]), int(self.image.shape[-1])


@dataclass(kw_only=True, frozen=True)
class Preprocess:
    """What a model declares about its input; :mod:`saccade.data.transforms` carries it out.

    Attributes:
        size_hw: Height and width of the network input.
        keep_ratio: Keep the aspect ratio: the picture becomes as large as fits into ``size_hw``.
        cover: With ``keep_ratio``: as small as still covers ``size_hw`` instead.
        short_side: With ``keep_ratio``: the shorter side becomes as long as this where the longer still fits into
            ``size_hw``, as public detection transformers do it (:func:`saccade.data.transforms.fit_short`); 0 = off.
        short_rounding: How the shorter side is rounded where it has to be less: to the ``nearest``, or ``down``.
        interpolation: ``"bilinear"`` as OpenCV computes it (no antialiasing), ``"pillow"`` and ``"bicubic"`` as Pillow
            computes them (bilinear and bicubic, with antialiasing).
        resize_as_float: Resize in float32 without rounding to 8 bit.
        pad_multiple: Pad bottom and right to a multiple of this.
        pad_value: Of that padding, 0..255; None = zeros after normalisation. What a larger picture of the batch adds
            is padded alike.
        mean: RGB mean, 0..255.
        std: RGB standard deviation, 0..255.
    """

    size_hw: tuple[int, int]
    keep_ratio: bool = False
    cover: bool = False
    short_side: int = 0
    short_rounding: Literal["nearest", "down"] = "nearest"
    interpolation: Literal["bilinear", "pillow", "bicubic"] = "bilinear"
    resize_as_float: bool = False
    pad_multiple: int = 1
    pad_value: float | None = None
    mean: tuple[float, float, float] = (123.675, 116.28, 103.53)
    std: tuple[float, float, float] = (58.395, 57.12, 57.375)


@dataclass(kw_only=True)
class Batch:
    """A stack of network inputs of one task.

    Attributes:
        images: ``[B, 3, H, W]`` float32, normalised and padded.
        task: The task of all B.
        targets: Truths in the frame of the network input.
        origins: Where each came from (original sizes map predictions back).
        input_sizes_hw: Size of each image inside the padded tensor.
        classes: Class list of all B, for tasks prompted by classes.
        phrases: One phrase per image, for tasks prompted by a phrase.
    """

    images: Tensor
    task: Task
    origins: list[Origin]
    input_sizes_hw: list[tuple[int, int]]
    targets: list[Target] = field(default_factory=list)
    classes: ClassList | None = None
    phrases: list[str] | None = None

    def __len__(self) -> int:
        return int(self.images.shape[0])

    def to(self, device: torch.device | str, **kwargs: Any) -> Batch:
        """Copies images and targets to the device."""
        return dataclasses.replace(
            self,
            images=self.images.to(device, **kwargs),
            targets=[target.to(device) for target in self.targets],
        )

    def pin_memory(self) -> Batch:
        """Pins the images, so that the copy to a GPU can overlap (called by the DataLoader)."""
        return dataclasses.replace(self, images=self.images.pin_memory())


def same_classes(samples: Sequence[Sample]) -> ClassList | None:
    """The class list shared by all samples of a batch.

    Raises:
        DataError: The samples have different class lists.
    """
    first = samples[0].classes
    if any(sample.classes != first for sample in samples[1:]):
        raise DataError(
            "samples with different class lists cannot share a batch",
            where=sorted({sample.origin.dataset for sample in samples}),
        )
    return first
