"""Miniatures of public detection sets in their official layouts; every image is 30 x 40 (height x width)."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
from helpers_layouts import save_image, save_mask, voc_xml, write_json
from PIL import Image

SQUARE = [[5, 5, 15, 5, 15, 15, 5, 15]]
BOXES_HEADER = (
    "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded,IsTruncated,IsGroupOf,IsDepiction,IsInside"
)
MASKS_HEADER = "MaskPath,ImageID,LabelName,BoxID,BoxXMin,BoxXMax,BoxYMin,BoxYMax,PredictedIoU,Clicks"


def annotation(key: int, image_id: int, category: int, **changes: Any) -> dict[str, Any]:
    return {
        "id": key, "image_id": image_id, "category_id": category, "bbox": [5, 5, 10, 10], "area": 100.0, "iscrowd": 0,
        "segmentation": SQUARE,
    } | changes  # fmt: skip


def lvis_content() -> dict[str, Any]:
    """Two images of two COCO folders, three categories; the second category is absent from the first image."""
    images = [
        {"id": 397133, "coco_url": "http://images.cocodataset.org/val2017/000000397133.jpg", "height": 30, "width": 40,
         "neg_category_ids": [2], "not_exhaustive_category_ids": [7]},
        {"id": 25, "coco_url": "http://images.cocodataset.org/train2017/000000000025.jpg", "height": 30, "width": 40,
         "neg_category_ids": [], "not_exhaustive_category_ids": []},
    ]  # fmt: skip
    categories = [
        {"id": 7, "name": "aerosol_can", "frequency": "c", "image_count": 64, "synset": "aerosol.n.02"},
        {"id": 1, "name": "aardvark", "frequency": "r", "image_count": 1},
        {"id": 2, "name": "air_conditioner", "frequency": "f", "image_count": 364},
    ]
    drop_crowd = {"iscrowd": None}
    annotations = [
        {k: v for k, v in annotation(1, 397133, 7).items() if k not in drop_crowd},
        {k: v for k, v in annotation(2, 397133, 1, bbox=[0, 0, 4, 6], area=24.0).items() if k not in drop_crowd},
        {k: v for k, v in annotation(3, 25, 2).items() if k not in drop_crowd},
    ]
    return {"images": images, "categories": categories, "annotations": annotations}


def write_lvis(root: Path, content: dict[str, Any] | None = None, split: str = "val") -> None:
    content = lvis_content() if content is None else content
    write_json(root / "annotations" / f"lvis_v1_{split}.json", content)
    for image in content["images"]:
        save_image(root / "/".join(image["coco_url"].split("/")[-2:]), seed=image["id"])


def objects365_content() -> dict[str, Any]:
    names = ["images/v1/patch8/objects365_v1_00420917.jpg", "images/v2/patch16/objects365_v2_00908726.jpg",
             "images/v2/patch20/objects365_v2_01000000.jpg"]  # fmt: skip
    return {
        "images": [{"id": k, "file_name": name, "height": 30, "width": 40} for k, name in enumerate(names)],
        "categories": [{"id": 1, "name": "Person"}, {"id": 2, "name": "Sneakers"}],
        "annotations": [
            {"id": 1, "image_id": 0, "category_id": 2, "bbox": [1.5, 2, 10, 8], "area": 80, "iscrowd": 0},
            {"id": 2, "image_id": 0, "category_id": 1, "bbox": [0, 0, 40, 30], "area": 1200, "iscrowd": 1},
            {"id": 3, "image_id": 1, "category_id": 1, "bbox": [0, 0, 9, 9], "area": 81, "iscrowd": 0},
            {"id": 4, "image_id": 2, "category_id": 1, "bbox": [0, 0, 9, 9], "area": 81, "iscrowd": 0},
        ],
    }


def write_objects365(root: Path, *, whole_names: bool = False) -> None:
    """The image that the data set does not ship is not written."""
    content = objects365_content()
    write_json(root / "annotations" / "zhiyuan_objv2_train.json", content)
    for number in (0, 2):
        name = content["images"][number]["file_name"]
        save_image(root / "train" / (name if whole_names else "/".join(name.split("/")[-2:])), seed=number)


def write_openimages(root: Path, split: str = "train") -> None:
    folder = root / "annotations"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "class-descriptions-boxable.csv").write_text("/m/011k07,Tortoise\n/m/0cmf2,Airplane\n/m/01g317,Person\n")
    name = "oidv6-train-annotations-bbox.csv" if split == "train" else f"{split}-annotations-bbox.csv"
    (folder / name).write_text(
        f"{BOXES_HEADER}\n"
        "00aa,xclick,/m/01g317,1,0.25,0.75,0.1,0.5,0,0,0,0,0\n"
        "00bb,xclick,/m/0cmf2,1,0,1,0,1,0,0,0,0,0\n"
        "00aa,xclick,/m/011k07,1,0,0.5,0.5,1,0,0,1,0,0\n"
        "00aa,activemil,/m/011k07,1,0.3,0.3,0.5,1,0,0,0,0,0\n"
    )
    (folder / f"{split}-annotations-object-segmentation.csv").write_text(
        f"{MASKS_HEADER}\n"
        f"00aa_m01g317_1.png,00aa,/m/01g317,1,0.25,0.75,0.1,0.5,0.8,\n"
        f"00bb_m0cmf2_2.png,00bb,/m/0cmf2,2,0,1,0,1,0.9,0.1 0.2 1;0.3 0.4 0\n"
    )
    for number, stem in enumerate(("00aa", "00bb")):
        save_image(root / split / f"{stem}.jpg", seed=number)
    mask = np.zeros((15, 20), np.uint8)  # half the size of the image, as masks of large images are
    mask[2:7, 5:15] = 255
    save_mask(root / "masks" / split / "00aa_m01g317_1.png", mask)
    Image.fromarray(np.ones((30, 40), bool)).save(root / "masks" / split / "00bb_m0cmf2_2.png")


def write_crowdhuman(root: Path, split: str = "train") -> None:
    people = [
        {"tag": "person", "fbox": [-5, 2, 20, 25], "vbox": [0, 2, 10, 20], "hbox": [3, 2, 4, 4], "extra": {"box_id": 0},
         "head_attr": {"ignore": 0}},
        {"tag": "person", "fbox": [10, 2, 8, 25], "vbox": [10, 2, 5, 5], "hbox": [11, 2, 4, 4],
         "extra": {"box_id": 1, "ignore": 1}, "head_attr": {"ignore": 1}},
        {"tag": "mask", "fbox": [30, 0, 10, 30], "vbox": [30, 0, 10, 30], "hbox": [0, 0, 1, 1], "extra": {"ignore": 1},
         "head_attr": {}},
        {"tag": "person", "fbox": [1, 1, 0, 5], "vbox": [1, 1, 3, 5], "hbox": [0, 0, 1, 1], "extra": {},
         "head_attr": {}},
    ]  # fmt: skip
    entries = [{"ID": "273271,c9db000d5146c15", "gtboxes": people}, {"ID": "273271,empty", "gtboxes": []}]
    root.mkdir(parents=True, exist_ok=True)
    (root / f"annotation_{split}.odgt").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    for number, entry in enumerate(entries):
        save_image(root / "Images" / f"{entry['ID']}.jpg", seed=number)


def write_wider_text(root: Path, split: str = "train") -> None:
    """Three images: two faces and an invalid one; none (with its line of zeros); one face of no width."""
    lines = [
        "0--Parade/0_Parade_marchingband_1_849.jpg", "3", "10 5 20 18 0 0 0 0 0 0 ", "1 1 5 6 2 0 0 0 2 0 ",
        "20 20 9 9 1 0 0 1 0 0 ", "0--Parade/0_Parade_Parade_0_452.jpg", "0", "0 0 0 0 0 0 0 0 0 0 ",
        "1--Handshaking/1_Handshaking_1_2.jpg", "1", "3 3 0 9 0 0 0 0 0 0 ",
    ]  # fmt: skip
    folder = root / "wider_face_split"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"wider_face_{split}_bbx_gt.txt").write_text("\n".join(lines) + "\n")
    for number, name in enumerate(line for line in lines if line.endswith(".jpg")):
        save_image(root / f"WIDER_{split}" / "images" / name, seed=number)


def write_wider_xml(root: Path, split: str = "train") -> None:
    """The same kind of faces as sovrasov's converter writes them: one folder of XML files, images in event folders."""
    files = {
        "0_Parade_marchingband_1_849": [("face", (10, 5, 30, 23), 0), ("face", (1, 1, 6, 7), 0)],
        "0_Parade_Parade_0_452": [],
    }
    (root / f"WIDER_{split}" / "Annotations").mkdir(parents=True)
    for number, (stem, faces) in enumerate(files.items()):
        text = voc_xml(f"{stem}.jpg", faces).replace("<annotation>", "<annotation><folder>0--Parade</folder>", 1)
        (root / f"WIDER_{split}" / "Annotations" / f"{stem}.xml").write_text(text)
        save_image(root / f"WIDER_{split}" / "0--Parade" / f"{stem}.jpg", seed=number)
    (root / f"{split}.txt").write_text("\n".join(files) + "\n")


def bdd_frames() -> list[dict[str, Any]]:
    def label(category: str, *corners: float, **attributes: bool) -> dict[str, Any]:
        box = dict(zip(("x1", "y1", "x2", "y2"), corners, strict=True))
        return {"id": "0", "category": category, "attributes": attributes, "box2d": box}

    return [
        {"name": "b1.jpg", "labels": [
            label("car", 1, 2, 11, 22), label("person", 3, 3, 9, 20), label("other vehicle", 0, 0, 39, 29),
            label("rider", 5, 5, 6, 9, crowd=True), label("bike", 5, 5, 4, 9), label("motor", 8, 8, 12, 12),
            {"category": "drivable area", "poly2d": []}]},
        {"name": "b2.jpg", "labels": None},
        {"name": "b3.jpg"},
    ]  # fmt: skip


def write_bdd_frames(root: Path, frames: Any = None) -> None:
    write_json(root / "labels" / "det_20" / "det_train.json", bdd_frames() if frames is None else frames)
    for number in (1, 2, 3):
        save_image(root / "images" / "100k" / "train" / f"b{number}.jpg", seed=number)


def write_bdd_10k(root: Path) -> None:
    """A bit mask and a label map: a car (3) of 6 x 8 pixels, a crowd of pedestrians (1), an ignored truck (4)."""
    bits = np.zeros((30, 40, 4), np.uint8)
    bits[2:8, 4:12] = (3, 0b1100, 1, 2)
    bits[2:8, 12:16] = (3, 0b1100, 0, 2)  # another car that touches it
    bits[10:20, 0:10] = (1, 0b0010, 0, 1)
    bits[25:30, 30:40] = (4, 0b0001, 0, 2)
    path = root / "labels" / "ins_seg" / "bitmasks" / "train" / "c1.png"
    path.parent.mkdir(parents=True)
    Image.fromarray(bits).save(path)
    labels = np.full((30, 40), 255, np.uint8)
    labels[:, :20], labels[:, 20:30] = 13, 18
    save_mask(root / "labels" / "sem_seg" / "masks" / "train" / "c1.png", labels)
    save_image(root / "images" / "10k" / "train" / "c1.jpg")


def coco_objects(files: list[str], names: list[str], *, first_id: int = 1) -> dict[str, Any]:
    """One object of the last category in each image."""
    return {
        "images": [{"id": k, "file_name": file, "height": 30, "width": 40} for k, file in enumerate(files)],
        "categories": [{"id": first_id + k, "name": name} for k, name in enumerate(names)],
        "annotations": [annotation(k, k, first_id + len(names) - 1) for k in range(len(files))],
    }


NUIMAGES_NAMES = ["car", "truck", "trailer", "bus", "construction_vehicle", "bicycle", "motorcycle", "pedestrian",
                  "traffic_cone", "barrier"]  # fmt: skip


def write_nuimages(root: Path) -> None:
    files = ["samples/CAM_FRONT/n1.jpg", "samples/CAM_BACK/n2.jpg"]
    write_json(root / "annotations" / "nuimages_v1.0-train.json", coco_objects(files, NUIMAGES_NAMES, first_id=0))
    labels = np.zeros((30, 40), np.uint8)
    labels[:, 5:10], labels[:, 10:] = 1, 31
    for number, file in enumerate(files):
        save_image(root / file, seed=number)
        save_mask(root / "annotations" / "semantic_masks" / Path(file).with_suffix(".png"), labels)
    # A picture of another split lies in the same folders.
    save_image(root / "samples/CAM_FRONT/other.jpg")
    save_mask(root / "annotations/semantic_masks/samples/CAM_FRONT/other.png", labels)


def write_cityscapes(root: Path, *, train_ids: bool = True) -> None:
    """Two cities; a car, a group of people, a caravan (not evaluated) and road."""
    instances = np.full((30, 40), 7, np.int32)
    instances[2:8, 4:12] = 26_003
    instances[10:20, 0:10] = 24
    instances[20:30, 20:30] = 29_000
    label_ids = np.where(instances >= 1000, instances // 1000, instances)
    label_ids[0] = 3  # out of roi
    ids = {7: 0, 24: 11, 26: 13}
    for city, stem in (("aachen", "aachen_000000_000019"), ("bochum", "bochum_000000_000313")):
        folder = root / "gtFine" / "train" / city
        save_image(root / "leftImg8bit" / "train" / city / f"{stem}_leftImg8bit.png")
        folder.mkdir(parents=True)
        Image.fromarray(instances.astype(np.uint16)).save(folder / f"{stem}_gtFine_instanceIds.png")
        save_mask(folder / f"{stem}_gtFine_labelIds.png", label_ids)
        save_mask(folder / f"{stem}_gtFine_color.png", label_ids)
        if train_ids:
            mapped = np.vectorize(lambda value: ids.get(value, 255))(label_ids)
            save_mask(folder / f"{stem}_gtFine_labelTrainIds.png", mapped)


def rewrite_csv(path: Path, row: int, column: str, value: str) -> None:
    """Changes one field of a table."""
    with path.open(newline="") as file:
        rows = list(csv.reader(file))
    rows[row][rows[0].index(column)] = value
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)
