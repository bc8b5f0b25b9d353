"""What a model says: one result type per task, in the frame of the original image.

Every result describes itself (``to_dict``), draws itself on a picture (``draw``) and speaks COCO (``to_coco``); boxes
and maps also speak supervision (``to_supervision``). Files are written by :mod:`saccade.saving`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as mask_api
from torch import Tensor

from saccade import drawing
from saccade.drawing import ImageLike
from saccade.errors import DataError, UsageError, require
from saccade.labels import BACKGROUND, centers_of, object_mask
from saccade.samples import IGNORE_LABEL, ClassList, Sample, Segment
from saccade.tasks import Task

RLE: TypeAlias = dict[str, Any]
"""COCO run-length encoding: ``{"size": [height, width], "counts": bytes}``."""

_NOT_DRAWN = "nothing drawn"  # of a phrase that was not rejected either
_NO_CLASS = -1  # pixels of no segment, while a panoptic map is drawn


def encode_masks(masks: Tensor | NDArray[np.bool_]) -> list[RLE]:
    """Run-length encodes masks.

    Args:
        masks: ``[N, H, W]`` bool.

    Returns:
        N encodings with ``bytes`` counts.
    """
    dense = masks.detach().cpu().numpy() if isinstance(masks, Tensor) else masks
    # One at a time: the encoder wants column-major bytes, and a copy of all masks of a large picture would not fit.
    return [mask_api.encode(np.asfortranarray(mask, dtype=np.uint8)) for mask in dense]


def decode_masks(rles: Sequence[RLE], size_hw: tuple[int, int]) -> Tensor:
    """Decodes run-length masks, all of the same size.

    Args:
        rles: N encodings; counts may be ``bytes`` or ``str``.
        size_hw: Height and width of the picture.

    Returns:
        ``[N, H, W]`` bool.

    Raises:
        DataError: An encoding has another size.
    """
    dense = torch.zeros((len(rles), *size_hw), dtype=torch.bool)
    for row, rle in zip(dense, rles, strict=True):
        row.copy_(torch.from_numpy(_decode(rle, size_hw)))
    return dense


def _decode(rle: RLE, size_hw: tuple[int, int]) -> NDArray[np.bool_]:
    if tuple(rle["size"]) != tuple(size_hw):
        raise DataError(f"a mask of size {tuple(rle['size'])} does not fit an image of size {tuple(size_hw)}")
    return mask_api.decode(rle).astype(bool)


def _text_rle(rle: RLE) -> RLE:
    """The same mask with ``str`` counts, as JSON needs it."""
    counts = rle["counts"]
    return {
        "size": [int(side) for side in rle["size"]],
        "counts": counts.decode("ascii") if isinstance(counts, bytes) else counts,
    }


def _binary_rle(rle: Mapping[str, Any]) -> RLE:
    """The same mask with ``bytes`` counts, as the results hold it."""
    counts = rle["counts"]
    return {
        "size": [int(side) for side in rle["size"]],
        "counts": counts.encode("ascii") if isinstance(counts, str) else counts,
    }


def _xywh(box_xyxy: Sequence[float]) -> list[float]:
    x0, y0, x1, y1 = box_xyxy
    return [x0, y0, x1 - x0, y1 - y0]


def _check_picture(image: ImageLike, size_hw: tuple[int, int]) -> Image.Image:
    """The picture as Pillow image, if it is the one the result speaks of."""
    picture = drawing.to_pil(image)
    if (picture.height, picture.width) != tuple(size_hw):
        raise UsageError(
            f"the result belongs to an image of {size_hw[1]}x{size_hw[0]} pixels, "
            f"the picture has {picture.width}x{picture.height}",
            fix="draw on the original image, not on the resized network input",
        )
    return picture


@dataclass(kw_only=True)
class Instances:
    """Detected objects, best first.

    Attributes:
        boxes_xyxy: ``[N, 4]`` float32 pixels of the original image.
        scores: ``[N]`` float32 in 0..1.
        class_ids: ``[N]`` int64 in 0..K-1.
        classes: Names and category ids of the K classes.
        size_hw: Size of the original image.
        masks: N run-length masks, or None for boxes only.
    """

    boxes_xyxy: Tensor
    scores: Tensor
    class_ids: Tensor
    classes: ClassList
    size_hw: tuple[int, int]
    masks: list[RLE] | None = None

    def __len__(self) -> int:
        return int(self.boxes_xyxy.shape[0])

    @property
    def category_ids(self) -> list[int]:
        """The data set's own category id of each instance."""
        return [self.classes.category_ids[k] for k in self.class_ids.tolist()]

    @property
    def class_names(self) -> list[str]:
        """The class name of each instance."""
        return [self.classes.names[k] for k in self.class_ids.tolist()]

    def filter(self, *, min_score: float = 0.0, class_ids: Collection[int] | None = None) -> Instances:
        """The instances with at least this score and, where given, of these classes, in the same order.

        Args:
            min_score: Least score, 0..1.
            class_ids: Class ids (0..K-1) to keep; None keeps all.
        """
        keep = self.scores >= min_score
        if class_ids is not None:
            keep &= torch.isin(self.class_ids, torch.tensor(sorted(class_ids), device=self.class_ids.device))
        return self[keep.nonzero().flatten().tolist()]

    def __getitem__(self, indices: Sequence[int]) -> Instances:
        """The instances at these positions, in this order."""
        index = torch.tensor(list(indices), dtype=torch.int64, device=self.boxes_xyxy.device)
        return dataclasses.replace(
            self,
            boxes_xyxy=self.boxes_xyxy[index],
            scores=self.scores[index],
            class_ids=self.class_ids[index],
            masks=None if self.masks is None else [self.masks[i] for i in indices],
        )

    def dense_masks(self) -> Tensor:
        """The masks as ``[N, H, W]`` bool.

        Raises:
            UsageError: The instances are boxes only.
        """
        return decode_masks(self._masks_or_error(), self.size_hw)

    def _masks_or_error(self) -> list[RLE]:
        if self.masks is None:
            raise UsageError(
                "these instances have boxes but no masks", fix=f"predict with task '{Task.INSTANCE}' to get masks"
            )
        return self.masks

    def _iterate_masks(self) -> Iterator[NDArray[np.bool_]]:
        """The masks one by one: a hundred masks of a large picture need not be in memory together."""
        return (_decode(rle, self.size_hw) for rle in self._masks_or_error())

    def union_mask(self) -> Tensor:
        """The pixels of any instance, ``[H, W]`` bool (the answer for a binary lesion)."""
        union = np.zeros(self.size_hw, dtype=bool)
        for mask in self._iterate_masks():
            union |= mask
        return torch.from_numpy(union)

    def id_map(self) -> Tensor:
        """Instance ids of the pixels: ``[H, W]`` int64, 0 = none, k + 1 = instance k; the better score lies on top."""
        ids = np.zeros(self.size_hw, dtype=np.int64)
        order = torch.argsort(self.scores, descending=True, stable=True).tolist()
        masks = self._masks_or_error()
        for k in reversed(order):
            ids[_decode(masks[k], self.size_hw)] = k + 1
        return torch.from_numpy(ids)

    def areas(self) -> list[float]:
        """Pixels of each mask, or of each box where there are no masks."""
        if self.masks is not None:
            return [float(mask_api.area(rle)) for rle in self.masks]
        x0, y0, x1, y1 = self.boxes_xyxy.double().cpu().unbind(1)
        return ((x1 - x0) * (y1 - y0)).tolist()

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain JSON values; ``id`` is the instance's value in :meth:`id_map`."""
        boxes, scores = self.boxes_xyxy.tolist(), self.scores.tolist()
        instances = []
        for k, (class_id, area) in enumerate(zip(self.class_ids.tolist(), self.areas(), strict=True)):
            instance: dict[str, Any] = {
                "id": k + 1,
                "class_id": class_id,
                "class_name": self.classes.names[class_id],
                "category_id": self.classes.category_ids[class_id],
                "score": scores[k],
                "box_xyxy": boxes[k],
                "area": area,
            }
            if self.masks is not None:
                instance["segmentation"] = _text_rle(self.masks[k])
            instances.append(instance)
        return {"type": "instances", "size_hw": list(self.size_hw), "instances": instances}

    def to_coco(self, image_id: int | str) -> list[dict[str, Any]]:
        """Records of the COCO results format, with the data set's own category ids.

        Note that ``pycocotools.COCO.loadRes`` replaces ``area`` by the area of ``bbox`` where both are present.

        Args:
            image_id: The data set's id of the image.

        Returns:
            One dict per instance: image_id, category_id, bbox (x, y, width, height), score, area and, where there are
            masks, segmentation (run lengths with ``str`` counts).
        """
        records = []
        for instance in self.to_dict()["instances"]:
            record = {
                "image_id": image_id,
                "category_id": instance["category_id"],
                "bbox": _xywh(instance["box_xyxy"]),
                "score": instance["score"],
                "area": instance["area"],
            }
            if "segmentation" in instance:
                record["segmentation"] = instance["segmentation"]
            records.append(record)
        return records

    @classmethod
    def from_coco(cls, records: Iterable[Mapping[str, Any]], classes: ClassList, size_hw: tuple[int, int]) -> Instances:
        """Rebuilds the instances of one image from COCO records (a result's, or annotations with run lengths).

        Args:
            records: The records of one image; ``score`` is 1 where absent.
            classes: The class list that knows the category ids.
            size_hw: Size of the image.

        Raises:
            DataError: A category id is not in the list.
        """
        rows = sorted(records, key=lambda record: -record.get("score", 1.0))
        boxes = torch.tensor([row["bbox"] for row in rows], dtype=torch.float64).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        has_masks = bool(rows) and all("segmentation" in row for row in rows)
        return cls(
            boxes_xyxy=boxes.float(),
            scores=torch.tensor([row.get("score", 1.0) for row in rows], dtype=torch.float32),
            class_ids=torch.tensor([classes.class_id(row["category_id"]) for row in rows], dtype=torch.int64),
            classes=classes,
            size_hw=size_hw,
            masks=[_binary_rle(row["segmentation"]) for row in rows] if has_masks else None,
        )

    def draw(self, image: ImageLike, *, show_scores: bool = True) -> Image.Image:
        """Draws boxes, masks, class names and scores on the original picture.

        Args:
            image: The original picture.
            show_scores: Write the scores behind the class names (a truth has none).

        Returns:
            A new image of the same size.

        Raises:
            UsageError: The picture has another size than the one the result speaks of.
        """
        labels = self.class_names
        if show_scores:
            labels = [f"{name} {score:.2f}" for name, score in zip(labels, self.scores.tolist(), strict=True)]
        return drawing.draw_instances(
            _check_picture(image, self.size_hw),
            boxes_xyxy=self.boxes_xyxy.cpu().numpy(),
            class_ids=self.class_ids.tolist(),
            labels=labels,
            masks=None if self.masks is None else self._iterate_masks(),
        )

    def to_supervision(self) -> Any:
        """A ``supervision.Detections`` (masks included), for its trackers, zones and annotators.

        Raises:
            MissingExtraError: The package is not installed.
        """
        sv = require("supervision", extra="supervision", purpose="to_supervision()")
        return sv.Detections(
            xyxy=self.boxes_xyxy.cpu().numpy(),
            mask=None if self.masks is None else self.dense_masks().numpy(),
            confidence=self.scores.cpu().numpy(),
            class_id=self.class_ids.cpu().numpy(),
            data={"class_name": np.array(self.class_names, dtype=str)},
        )


@dataclass(kw_only=True)
class SemanticMap:
    """One class per pixel.

    Attributes:
        labels: ``[H, W]`` int64 class ids (:data:`saccade.samples.IGNORE_LABEL` only in a truth, where unlabelled).
        classes: Names and category ids of the classes.
    """

    labels: Tensor
    classes: ClassList

    @property
    def size_hw(self) -> tuple[int, int]:
        """Height and width of the map."""
        return int(self.labels.shape[0]), int(self.labels.shape[1])

    def _present(self) -> list[tuple[int, NDArray[np.bool_]]]:
        """The class ids that occur, with their pixels."""
        labels = self.labels.cpu().numpy()
        return [(int(k), labels == k) for k in np.unique(labels) if 0 <= k < len(self.classes)]

    def to_dict(self) -> dict[str, Any]:
        """Size, and area and share of each class that occurs, as plain JSON values; ``id`` is the value in the PNG."""
        regions = [
            {
                "id": k,
                "class_id": k,
                "class_name": self.classes.names[k],
                "category_id": self.classes.category_ids[k],
                "area": int(mask.sum()),
                "share": float(mask.mean()),
            }
            for k, mask in self._present()
        ]
        return {"type": "semantic_map", "size_hw": list(self.size_hw), "regions": regions}

    def to_coco(self, image_id: int | str) -> list[dict[str, Any]]:
        """Records of the COCO stuff results format: one run-length mask per class that occurs.

        Args:
            image_id: The data set's id of the image.
        """
        return [
            {
                "image_id": image_id,
                "category_id": self.classes.category_ids[k],
                "segmentation": _text_rle(encode_masks(mask[None])[0]),
            }
            for k, mask in self._present()
        ]

    def to_png(self) -> Image.Image:
        """The class ids as a PNG-ready image: 8-bit palette with the classes' colours, or 16-bit grey past 256 ids.

        Reading the file as an array gives the ids back (``numpy.asarray(PIL.Image.open(path))``).
        """
        labels = self.labels.cpu().numpy()
        if labels.max(initial=0) > 255:
            return Image.fromarray(labels.astype(np.uint16))
        image = Image.fromarray(labels.astype(np.uint8))
        image.putpalette(drawing.colour_table(256).tobytes())
        return image

    def draw(self, image: ImageLike) -> Image.Image:
        """Tints the original picture by class and adds a legend strip below it; a class ``background`` has no tint.

        Raises:
            UsageError: The picture has another size than the map.
        """
        names = [name.lower() for name in self.classes.names]
        return drawing.draw_semantic(
            _check_picture(image, self.size_hw),
            labels=self.labels.cpu().numpy(),
            names=self.classes.names,
            ignore=IGNORE_LABEL if len(self.classes) <= IGNORE_LABEL else None,
            background=names.index(BACKGROUND) if BACKGROUND in names else None,
        )

    def to_supervision(self) -> Any:
        """A ``supervision.Detections`` with one mask per class that occurs.

        Raises:
            MissingExtraError: The package is not installed.
        """
        sv = require("supervision", extra="supervision", purpose="to_supervision()")
        present = self._present()
        masks = np.stack([mask for _, mask in present]) if present else np.zeros((0, *self.size_hw), dtype=bool)
        return sv.Detections(
            xyxy=sv.mask_to_xyxy(masks).astype(np.float32).reshape(-1, 4),
            mask=masks,
            class_id=np.array([k for k, _ in present], dtype=int),
            data={"class_name": np.array([self.classes.names[k] for k, _ in present], dtype=str)},
        )


@dataclass(kw_only=True)
class Panoptic:
    """Every pixel belongs to one segment at most: an object (thing), or a region of a class (stuff).

    Attributes:
        segment_ids: ``[H, W]`` int64, 0 = no segment.
        segments: What the ids are.
        classes: Names and category ids of the classes, and which are things.
    """

    segment_ids: Tensor
    segments: tuple[Segment, ...]
    classes: ClassList

    @property
    def size_hw(self) -> tuple[int, int]:
        """Height and width of the map."""
        return int(self.segment_ids.shape[0]), int(self.segment_ids.shape[1])

    @property
    def class_names(self) -> list[str]:
        """The class name of each segment."""
        return [self.classes.names[segment.class_id] for segment in self.segments]

    def _is_thing(self, segment: Segment) -> bool:
        return bool(self.classes.things) and self.classes.things[segment.class_id]

    def _areas(self) -> dict[int, int]:
        """Pixels by segment id."""
        ids, counts = torch.unique(self.segment_ids, return_counts=True)
        return dict(zip(ids.tolist(), counts.tolist(), strict=True))

    def to_dict(self) -> dict[str, Any]:
        """Size and segments as plain JSON values; ``id`` is the value in the map."""
        areas = self._areas()
        segments = [
            {
                "id": segment.id,
                "class_id": segment.class_id,
                "class_name": self.classes.names[segment.class_id],
                "category_id": self.classes.category_ids[segment.class_id],
                "is_thing": self._is_thing(segment),
                "score": segment.score,
                "area": areas.get(segment.id, 0),
            }
            for segment in self.segments
        ]
        return {"type": "panoptic", "size_hw": list(self.size_hw), "segments": segments}

    def to_coco(self, image_id: int | str, file_name: str = "") -> list[dict[str, Any]]:
        """The record of the COCO panoptic results format; the map itself is the PNG of :meth:`to_png`.

        Args:
            image_id: The data set's id of the image.
            file_name: Of the PNG; empty = the image id.
        """
        areas = self._areas()
        segments = [
            {
                "id": segment.id,
                "category_id": self.classes.category_ids[segment.class_id],
                "isthing": int(self._is_thing(segment)),
                "iscrowd": int(segment.is_crowd),
                "area": areas.get(segment.id, 0),
                "score": segment.score,
            }
            for segment in self.segments
        ]
        return [{"image_id": image_id, "file_name": file_name or f"{image_id}.png", "segments_info": segments}]

    def to_png(self) -> Image.Image:
        """The segment ids as COCO stores them: red + 256 green + 65536 blue, black = no segment.

        Raises:
            DataError: An id does not fit.
        """
        ids = self.segment_ids.cpu().numpy()
        if ids.min(initial=0) < 0 or ids.max(initial=0) >= 1 << 24:
            raise DataError("a segment id does not fit into the three channels of a PNG", why="it is not in 0..2**24-1")
        return Image.fromarray(np.stack([ids & 255, ids >> 8 & 255, ids >> 16], axis=-1).astype(np.uint8))

    def draw(self, image: ImageLike) -> Image.Image:
        """Tints the original picture by class, with a line around every segment and a legend strip below.

        Raises:
            UsageError: The picture has another size than the map.
        """
        ids = self.segment_ids.cpu().numpy()
        labels = np.full(ids.shape, _NO_CLASS, np.int64)
        for segment in self.segments:
            labels[ids == segment.id] = segment.class_id
        return drawing.draw_semantic(
            _check_picture(image, self.size_hw), labels=labels, names=self.classes.names, ignore=_NO_CLASS, regions=ids
        )

    def to_supervision(self) -> Any:
        """A ``supervision.Detections`` with one mask per segment.

        Raises:
            MissingExtraError: The package is not installed.
        """
        sv = require("supervision", extra="supervision", purpose="to_supervision()")
        masks = (self.segment_ids == torch.tensor([segment.id for segment in self.segments])[:, None, None]).numpy()
        return sv.Detections(
            xyxy=sv.mask_to_xyxy(masks).astype(np.float32).reshape(-1, 4),
            mask=masks,
            confidence=np.array([segment.score for segment in self.segments], dtype=np.float32),
            class_id=np.array([segment.class_id for segment in self.segments], dtype=int),
            data={"class_name": np.array(self.class_names, dtype=str)},
        )


@dataclass(kw_only=True)
class Caption:
    """A sentence.

    Attributes:
        text: The sentence.
        score: Length-normalised log-probability.
    """

    text: str
    score: float

    def to_dict(self) -> dict[str, Any]:
        """Sentence and score as plain JSON values."""
        return {"type": "caption", "text": self.text, "score": self.score}

    def to_coco(self, image_id: int | str) -> list[dict[str, Any]]:
        """The record of the COCO caption results format.

        Args:
            image_id: The data set's id of the image.
        """
        return [{"image_id": image_id, "caption": self.text}]

    def draw(self, image: ImageLike) -> Image.Image:
        """Writes the sentence in a strip below the picture."""
        return drawing.draw_caption(image, text=self.text)


@dataclass(kw_only=True)
class Grounding:
    """The box that a phrase refers to.

    Attributes:
        phrase: The phrase as asked.
        box_xyxy: ``[4]`` float32 pixels of the original image.
        score: Geometric mean of the probabilities of the four box tokens, 0..1.
    """

    phrase: str
    box_xyxy: Tensor
    score: float

    def to_dict(self) -> dict[str, Any]:
        """Phrase, box and score as plain JSON values."""
        return {
            "type": "grounding",
            "phrase": self.phrase,
            "score": self.score,
            "box_xyxy": self.box_xyxy.tolist(),
        }

    def to_coco(self, image_id: int | str) -> list[dict[str, Any]]:
        """One COCO results record of the single category 1, with the phrase as an extra key.

        Args:
            image_id: The data set's id of the image.
        """
        box = _xywh(self.box_xyxy.tolist())
        record = {"image_id": image_id, "category_id": 1, "bbox": box, "score": self.score, "phrase": self.phrase}
        return [{**record, "area": box[2] * box[3]}]

    def draw(self, image: ImageLike, *, show_scores: bool = True) -> Image.Image:
        """Draws the box with its score, and the phrase in a strip below the picture.

        Args:
            image: The original picture.
            show_scores: Write the score at the box (a truth has none).
        """
        label = f"{self.score:.2f}" if show_scores else ""
        return drawing.draw_grounding(image, box_xyxy=self.box_xyxy.cpu().numpy(), phrase=self.phrase, label=label)


@dataclass(kw_only=True)
class DepthMap:
    """Metric depth per pixel.

    Attributes:
        depth_m: ``[H, W]`` float32 metres along the optical axis (0 only in a truth, where unknown).
    """

    depth_m: Tensor

    @property
    def size_hw(self) -> tuple[int, int]:
        """Height and width of the map."""
        return int(self.depth_m.shape[0]), int(self.depth_m.shape[1])

    def to_dict(self) -> dict[str, Any]:
        """Size, share of known pixels, and the least, middle and greatest depth, as plain JSON values."""
        known = self.depth_m[self.depth_m > 0].float().cpu().numpy()
        spread = np.quantile(known, [0.0, 0.5, 1.0]).tolist() if len(known) else [None] * 3
        return {
            "type": "depth_map",
            "size_hw": list(self.size_hw),
            "known": len(known) / max(self.depth_m.numel(), 1),
            **dict(zip(("least_m", "median_m", "greatest_m"), spread, strict=True)),
        }

    def to_coco(self, image_id: int | str) -> list[dict[str, Any]]:
        """Refuses: COCO has no form for depth.

        Raises:
            UsageError: Always.
        """
        raise UsageError(f"the depth of image {image_id} has no COCO form", fix="save it as png, npy, json or overlay")

    def to_png(self) -> Image.Image:
        """16-bit millimetres, as NYUv2 and most depth sensors write them; beyond 65.535 m the greatest value."""
        millimetres = (self.depth_m.cpu().float() * 1000).round().clamp(0, 65_535)
        return Image.fromarray(millimetres.numpy().astype(np.uint16))

    def draw(self, image: ImageLike) -> Image.Image:
        """The map in colours (near is bright), with a scale in metres below it.

        Raises:
            UsageError: The picture has another size than the map.
        """
        return drawing.draw_depth(_check_picture(image, self.size_hw), depth_m=self.depth_m.cpu().float().numpy())


@dataclass(kw_only=True)
class Referral:
    """What phrases refer to: one mask per phrase, or nothing of that kind in the picture.

    Attributes:
        phrases: The phrases as asked.
        masks: Per phrase a run-length mask of all that it refers to, or None where the model drew none. A phrase may be
            rejected and yet have a mask: what the model would have drawn (one official protocol scores it).
        rejected: ``[K]`` bool: nothing in the picture is what the phrase says.
        scores: ``[K]`` float32, the probability that the phrase was not to be rejected, 0..1.
        size_hw: Size of the original image.
        text: What the model said, where it was free to say what it likes; [SEG] and [REJ] in it are the phrases.
    """

    phrases: tuple[str, ...]
    masks: list[RLE | None]
    rejected: Tensor
    scores: Tensor
    size_hw: tuple[int, int]
    text: str = ""

    def __len__(self) -> int:
        return len(self.phrases)

    def found(self) -> list[int]:
        """The phrases that have an answer: not rejected, and drawn (a mask without a pixel draws nothing)."""
        answers = enumerate(zip(self.masks, self.rejected.tolist(), strict=True))
        return [k for k, (rle, rejected) in answers if not rejected and rle is not None and mask_api.area(rle) > 0]

    def _iterate_masks(self) -> Iterator[NDArray[np.bool_]]:
        """The masks one by one, all False for a phrase without an answer."""
        found = set(self.found())
        for k, rle in enumerate(self.masks):
            yield _decode(rle, self.size_hw) if k in found and rle is not None else np.zeros(self.size_hw, dtype=bool)

    def dense_masks(self) -> Tensor:
        """The masks as ``[K, H, W]`` bool, all False for a phrase without an answer."""
        dense = torch.zeros((len(self), *self.size_hw), dtype=torch.bool)
        for row, mask in zip(dense, self._iterate_masks(), strict=True):
            row.copy_(torch.from_numpy(mask))
        return dense

    def in_words(self, *, scores: bool = True) -> str:
        """A line that says how much of the picture each phrase refers to, or what was said freely.

        Args:
            scores: With the score of every phrase.
        """
        said = []
        for answer in self.to_dict()["answers"]:
            share = answer["area"] / max(self.size_hw[0] * self.size_hw[1], 1)
            unseen = "nothing" if answer["rejected"] else _NOT_DRAWN
            what = unseen if answer["segmentation"] is None else f"{share:.1%} of the picture"
            said.append(f"'{answer['phrase']}': {what}" + (f" ({answer['score']:.2f})" if scores else ""))
        return ": ".join(filter(None, (self.text, "; ".join(said))))

    def to_dict(self) -> dict[str, Any]:
        """Every phrase with its score and mask, or None for the mask, as plain JSON values."""
        found = set(self.found())
        answers = []
        for k, (phrase, score, rejected) in enumerate(
            zip(self.phrases, self.scores.tolist(), self.rejected.tolist(), strict=True)
        ):
            rle = self.masks[k] if k in found else None
            answers.append(
                {
                    "phrase": phrase,
                    "rejected": rejected,
                    "score": score,
                    "area": 0.0 if rle is None else float(mask_api.area(rle)),
                    "box_xyxy": None if rle is None else _box_of(rle),
                    "segmentation": None if rle is None else _text_rle(rle),
                }
            )
        told = {"type": "referral", "size_hw": list(self.size_hw), "answers": answers}
        return {**told, "text": self.text} if self.text else told

    def to_coco(self, image_id: int | str) -> list[dict[str, Any]]:
        """COCO results records of the single category 1, with the phrase as an extra key; phrases without an answer
        have none.

        Args:
            image_id: The data set's id of the image.
        """
        return [
            {
                "image_id": image_id,
                "category_id": 1,
                "bbox": _xywh(answer["box_xyxy"]),
                "score": answer["score"],
                "area": answer["area"],
                "segmentation": answer["segmentation"],
                "phrase": answer["phrase"],
            }
            for answer in self.to_dict()["answers"]
            if answer["segmentation"] is not None
        ]

    def draw(self, image: ImageLike, *, show_scores: bool = True) -> Image.Image:
        """Draws the mask of every phrase in a colour of its own, and the phrases with their scores below.

        Args:
            image: The original picture.
            show_scores: Write the scores behind the phrases (a truth has none).

        Raises:
            UsageError: The picture has another size than the result speaks of.
        """
        found = set(self.found())
        unseen = ["not in the picture" if rejected else _NOT_DRAWN for rejected in self.rejected.tolist()]
        notes = [
            " ".join([*([] if k in found else [unseen[k]]), *([f"{score:.2f}"] if show_scores else [])])
            for k, score in enumerate(self.scores.tolist())
        ]
        return drawing.draw_referral(
            _check_picture(image, self.size_hw),
            masks=self._iterate_masks(),
            phrases=self.phrases,
            notes=notes,
            found=[k in found for k in range(len(self))],
        )

    def to_supervision(self) -> Any:
        """A ``supervision.Detections`` with one mask per phrase that has an answer.

        Raises:
            MissingExtraError: The package is not installed.
        """
        sv = require("supervision", extra="supervision", purpose="to_supervision()")
        found = self.found()
        masks = self.dense_masks().numpy()[found].reshape(len(found), *self.size_hw)
        return sv.Detections(
            xyxy=sv.mask_to_xyxy(masks).astype(np.float32).reshape(-1, 4),
            mask=masks,
            confidence=self.scores.cpu().numpy()[found],
            class_id=np.array(found, dtype=int),
            data={"class_name": np.array([self.phrases[k] for k in found], dtype=str)},
        )


@dataclass(kw_only=True)
class Centers:
    """Where the objects of a picture have their centres, the surest first.

    Attributes:
        points_xy: ``[N, 2]`` float32 pixels of the original image; (0, 0) is the middle of the first pixel.
        scores: ``[N]`` float32 in 0..1.
        size_hw: Size of the original image.
    """

    points_xy: Tensor
    scores: Tensor
    size_hw: tuple[int, int]

    def __len__(self) -> int:
        return int(self.points_xy.shape[0])

    def to_dict(self) -> dict[str, Any]:
        """The centres with their scores as plain JSON values."""
        points = [
            {"point_xy": point, "score": score}
            for point, score in zip(self.points_xy.tolist(), self.scores.tolist(), strict=True)
        ]
        return {"type": "centers", "size_hw": list(self.size_hw), "centers": points}

    def to_coco(self, image_id: int | str) -> list[dict[str, Any]]:
        """Refuses: COCO has no form for a point without an object.

        Raises:
            UsageError: Always.
        """
        raise UsageError(f"the centres of image {image_id} have no COCO form", fix="save them as json or overlay")

    def draw(self, image: ImageLike) -> Image.Image:
        """Marks every centre with a cross.

        Raises:
            UsageError: The picture has another size than the one the result speaks of.
        """
        return drawing.draw_points(_check_picture(image, self.size_hw), points_xy=self.points_xy.cpu().numpy())


def _box_of(rle: RLE) -> list[float]:
    """The tight box of a mask, ``x0 y0 x1 y1``."""
    x, y, width, height = (float(value) for value in mask_api.toBbox(rle))
    return [x, y, x + width, y + height]


Prediction: TypeAlias = Instances | SemanticMap | Panoptic | Caption | Grounding | DepthMap | Referral | Centers


def from_truth(sample: Sample) -> Prediction:
    """The truth of a sample in the form of a perfect prediction: to draw it, or to test a metric.

    Args:
        sample: A sample whose target holds what its task needs, in the frame of its image.

    Raises:
        DataError: The target lacks what the task needs.
    """
    target, task = sample.target, sample.task
    if task in (Task.DETECTION, Task.INSTANCE) and target.boxes is not None and target.class_ids is not None:
        if sample.classes is not None and (task is Task.DETECTION or target.masks is not None):
            return Instances(
                boxes_xyxy=torch.as_tensor(target.boxes).float(),
                scores=torch.ones(len(target.class_ids)),
                class_ids=target.class_ids,
                classes=sample.classes,
                size_hw=sample.size_hw,
                masks=encode_masks(target.masks) if task is Task.INSTANCE and target.masks is not None else None,
            )
    elif task is Task.SEMANTIC and target.semantic is not None and sample.classes is not None:
        return SemanticMap(labels=torch.as_tensor(target.semantic), classes=sample.classes)
    elif task is Task.CAPTION and target.captions:
        return Caption(text=target.captions[0], score=0.0)
    elif task is Task.DEPTH and target.depth_m is not None:
        return DepthMap(depth_m=target.depth_m.as_subclass(Tensor).float())
    elif task is Task.REFERRING and target.masks is not None and sample.phrases:
        masks = target.masks.as_subclass(Tensor)
        present = masks.flatten(1).any(1)
        return Referral(
            phrases=sample.phrases,
            masks=list(encode_masks(masks)),
            rejected=~present,
            scores=present.float(),
            size_hw=sample.size_hw,
        )
    elif task is Task.CENTER and target.semantic is not None:
        points = centers_of(object_mask(target.semantic, sample.classes), "one")
        return Centers(points_xy=points, scores=torch.ones(len(points)), size_hw=sample.size_hw)
    elif task is Task.GROUNDING and target.boxes is not None and len(target.boxes) and sample.phrase:
        return Grounding(phrase=sample.phrase, box_xyxy=torch.as_tensor(target.boxes)[0].float(), score=1.0)
    raise DataError(
        f"the sample has no complete truth for the task '{task}'",
        where=f"{sample.origin.dataset} {sample.origin.image_id}",
    )
