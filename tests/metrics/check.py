"""Runs a folder of official evaluator results: ``python tests/metrics/check.py NAME DIR``.

Prints the greatest error per quantity and exits with 1 past the tolerance. Set names, counts and classes are all read
from the folder. Layout: ``expected.json`` beside ``input*`` files, as in ../shared/metrics.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import math
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from faster_coco_eval.core import mask as faster_masks
from pycocotools import mask as mask_utils
from pycocotools.coco import COCO
from torchvision import tv_tensors

from saccade.data.sources.panoptic import read_segment_ids
from saccade.metrics import (
    DepthMetric,
    DepthProtocol,
    PanopticMetric,
    ReferringMetric,
    caption,
    depth,
    detection,
    grounding,
    lvis,
    panoptic,
    semantic,
)
from saccade.results import Referral, decode_masks
from saccade.samples import ClassList, Origin, Sample, Segment, Target
from saccade.tasks import Task

ADE_UNLABELLED, IGNORED = 0, 255


@dataclass
class Report:
    """Greatest absolute error per quantity.

    Attributes:
        tolerance: Greatest error allowed.
        errors: By quantity; NaN where exactly one of the two sides is undefined.
        notes: What was left out, and why.
    """

    tolerance: float
    errors: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def add(self, quantity: str, got: Any, want: Any) -> None:
        """Compares two numbers, or two nested lists or dictionaries of numbers; None stands for NaN."""
        for error in _errors(got, want):
            known = self.errors.get(quantity, 0.0)
            self.errors[quantity] = error if math.isnan(error) or error > known else known

    def add_exact(self, quantity: str, got: list[str], want: list[str]) -> None:
        """Counts the strings that differ; one is already past any tolerance."""
        wrong = [(a, b) for a, b in zip(got, want, strict=True) if a != b]
        self.errors[quantity] = self.errors.get(quantity, 0.0) + len(wrong)
        self.notes += [f"{quantity}: have {a!r}, want {b!r}" for a, b in wrong[:3]]

    @property
    def failed(self) -> list[str]:
        """Quantities past the tolerance (NaN included), or the fact that nothing was compared."""
        past = [name for name, error in self.errors.items() if not error <= self.tolerance]
        return past if self.errors else ["nothing was compared"]


def _errors(got: Any, want: Any) -> Iterator[float]:
    if isinstance(want, dict):
        missing = want.keys() - got.keys()
        if missing:
            raise KeyError(f"not computed: {sorted(missing)}")
        for key in want:
            yield from _errors(got[key], want[key])
    elif isinstance(want, list):
        if len(got) != len(want):
            raise ValueError(f"{len(got)} values, expected {len(want)}")
        for one, other in zip(got, want, strict=True):
            yield from _errors(one, other)
    else:
        undefined = [value is None or math.isnan(value) for value in (got, want)]
        if any(undefined):
            yield 0.0 if all(undefined) else math.nan
        else:
            yield abs(float(got) - float(want))


def read_json(path: Path) -> Any:
    """A JSON file, or its compressed form beside it, which is what is committed of the large ones."""
    if path.is_file():
        return json.loads(path.read_text(encoding="utf-8"))
    return json.loads(gzip.decompress(path.with_name(f"{path.name}.gz").read_bytes()))


def check_coco_det(folder: Path) -> Report:
    """COCO box and mask AP, with both engines."""
    report = Report(tolerance=1e-9)
    expected = read_json(folder / "expected.json")
    for engine in ("pycocotools", "faster"):
        for name, want in expected.items():
            if isinstance(want, str):  # the name of the official tool
                continue
            if isinstance(want, dict) and "stats" in want:
                iou_type = name.split("_")[0]
                truth = read_json(folder / "input_gt.json")
                found = read_json(folder / f"input_dt_{iou_type}.json")
                _check_ap(report, f"{engine} {name}", engine, name, truth, found, want)
                continue
            problems = read_json(folder / f"input_{name}.json")
            pairs = [(problems[key], want[key]) for key in want] if isinstance(want, dict) else zip(
                problems, want, strict=True
            )  # fmt: skip
            for problem, answers in pairs:
                for choice, stats in answers.items():
                    _check_ap(
                        report, f"{engine} {name}", engine, choice, problem["gt"], problem["dt"], {"stats": stats}
                    )
    return report


def _check_ap(
    report: Report,
    quantity: str,
    engine: detection.Engine,
    choice: str,
    truth: dict[str, Any],
    found: list[dict[str, Any]],
    want: dict[str, Any],
) -> None:
    """``choice`` is the overlap and what deviates from the default: ``bbox``, ``segm_useCats0`` ..."""
    image_ids = sorted(image["id"] for image in truth["images"])
    got = detection.coco_ap(
        truth,
        found,
        "segm" if choice.startswith("segm") else "bbox",
        engine=engine,
        use_cats="useCats0" not in choice,
        img_ids=image_ids[::2] if "every_second_image" in choice else None,
    )
    report.add(f"{quantity} stats", got.stats, want["stats"])
    if "per_category_AP" in want:
        per_category = {str(id_): value for id_, value in got.per_category.items()}
        report.add(f"{quantity} per category", per_category, want["per_category_AP"])
        report.add(f"{quantity} shape", list(got.precision.shape), want["precision_shape"])
        report.add(f"{quantity} AP per IoU", list(got.ap_per_iou), want["AP_per_iou_thr"])
        report.add(f"{quantity} AR per IoU", list(got.ar_per_iou), want["AR_per_iou_thr_maxdet100"])


def check_lvis_det(folder: Path) -> Report:
    """LVIS box and mask AP."""
    report = Report(tolerance=1e-9)
    truth = read_json(folder / "input_gt.json")
    for iou_type, want in read_json(folder / "expected.json").items():
        if not isinstance(want, str):  # the name of the official tool
            got = lvis.lvis_ap(truth, read_json(folder / f"input_dt_{iou_type}.json"), iou_type)
            for name, value in want.items():
                report.add(f"{iou_type} {name}", got.stats[name], value)
    return report


def check_boundary_ap(folder: Path) -> Report:
    """Boundary AP, and the number of boundary pixels."""
    report = Report(tolerance=1e-9)
    truth, found = read_json(folder / "input_gt.json"), read_json(folder / "input_dt_segm.json")
    coco = COCO()
    coco.dataset = truth
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    for name, want in read_json(folder / "expected.json").items():
        if name.startswith("dilation_"):
            ratio = float(name.removeprefix("dilation_"))
            got = detection.coco_ap(truth, found, "boundary", dilation_ratio=ratio)
            report.add(f"{name} stats", got.stats, want)
        for row in want if name.startswith("boundary_pixel_counts") else ():
            mask = coco.annToRLE(coco.anns[row["ann_id"]])
            for key, value in row.items():
                if key == "mask_area":
                    report.add("mask pixels", float(mask_utils.area(mask)), value)
                elif key != "ann_id":
                    ratio = float(key.removeprefix("boundary_area_").replace("_", "."))
                    pixels = float(mask_utils.area(faster_masks.rleToBoundary(mask, ratio)))
                    report.add(f"boundary pixels at {ratio}", pixels, value)
    return report


def check_panoptic(folder: Path) -> Report:
    """PQ, SQ and RQ."""
    report = Report(tolerance=1e-9)
    truth, found, expected = (read_json(folder / f"{name}.json") for name in ("input_gt", "input_pred", "expected"))
    categories = sorted(truth["categories"], key=lambda category: category["id"])
    metric = PanopticMetric(
        ClassList(
            names=tuple(category["name"] for category in categories),
            category_ids=tuple(category["id"] for category in categories),
            things=tuple(bool(category["isthing"]) for category in categories),
        )
    )

    def read(part: str, entry: dict[str, Any]) -> tuple[Any, list[Segment]]:
        segments = [
            Segment(
                id=info["id"],
                class_id=metric.classes.class_id(info["category_id"]),
                is_crowd=bool(info.get("iscrowd", 0)),
            )
            for info in entry["segments_info"]
        ]
        return read_segment_ids(folder / part / entry["file_name"]), segments

    predictions = {entry["image_id"]: entry for entry in found["annotations"]}
    for entry in truth["annotations"]:
        maps = (*read("gt", entry), *read("pred", predictions[entry["image_id"]]))
        metric.images["", entry["image_id"]] = panoptic.match_segments(*maps)
    scores = metric.compute()
    rows = {str(row["category_id"]): row for row in metric.per_class()}
    for group, ending in (("All", ""), ("Things", "_things"), ("Stuff", "_stuff")):
        for name in ("pq", "sq", "rq"):
            report.add(f"{group} {name}", scores[f"{name.upper()}{ending}"], expected[group][name])
        kept = [row for row in rows.values() if group == "All" or row["is_thing"] == (group == "Things")]
        occurring = sum(not math.isnan(row["PQ"]) for row in kept)
        report.add(f"{group} classes", occurring, expected[group]["n"])
    for category_id, want in expected["per_class"].items():
        got = {name: np.nan_to_num(rows[category_id][name.upper()]) for name in want}  # officially 0, ours is undefined
        report.add("per class", got, want)
    return report


_MAP_NAME = re.compile(r"(?P<set>.+?)_(?P<raw>raw_)?(?P<side>gt|pred)(?:_(?P<index>\d+))?")


def check_semseg(folder: Path) -> Report:
    """mIoU and its relatives."""
    report = Report(tolerance=1e-6)
    with np.load(folder / "input.npz") as arrays:
        maps: dict[str, dict[str, list[Any]]] = {}
        for name in sorted(arrays.files, key=lambda name: [int(part) for part in re.findall(r"\d+$", name)]):
            parts = _MAP_NAME.fullmatch(name)
            if parts is None:
                raise ValueError(f"cannot read the array name '{name}'")
            array = arrays[name].astype(np.int64)
            if parts["raw"]:  # the ADE rule: 0 is unlabelled, the classes begin at 1
                array = np.where(array == ADE_UNLABELLED, IGNORED, array - 1)
            maps.setdefault(parts["set"], {}).setdefault(parts["side"], []).append(array)
    expected = read_json(folder / "expected.json")
    for case, want in expected.items():
        if isinstance(want, str):
            continue
        base, _, filled = case.partition("_nan_to_num_")
        settings = expected[base]
        sources = [name for name in maps if base.startswith(name)]
        if not sources:
            raise ValueError(f"input.npz has no maps for the case '{case}'; it has {sorted(maps)}")
        source = max(sources, key=len)
        binary = "> 0" in settings.get("note", "") or "binary" in base
        areas = semantic.Areas.zero(settings["num_classes"])
        for label, pred in zip(maps[source]["gt"], maps[source]["pred"], strict=True):
            if binary:
                label = np.where(label == settings["ignore_index"], label, label > 0)
                pred = pred > 0
            areas += semantic.Areas.of(
                label, pred.astype(np.int64), settings["num_classes"], ignore_index=settings["ignore_index"]
            )
        if filled:
            report.add(f"{case} summary", semantic.summary(areas, nan_to_num=float(filled)), want)
            continue
        report.add(f"{case} images", len(maps[source]["gt"]), settings.get("n_images", len(maps[source]["gt"])))
        report.add(f"{case} summary", semantic.summary(areas), want["summary"])
        report.add(f"{case} per cent", semantic.percent(areas), want["summary_percent_rounded"])
        scores = {name: values.tolist() for name, values in semantic.class_scores(areas).items()}
        report.add(f"{case} per class", scores, want["per_class"])
        counts = {name: getattr(areas, name).tolist() for name in want["areas"]}
        report.add(f"{case} areas", counts, want["areas"])
    return report


def check_caption(folder: Path) -> Report:
    """BLEU, ROUGE-L, CIDEr, the tokens, and METEOR where its Java program is installed."""
    report = Report(tolerance=1e-6)
    inputs, expected = read_json(folder / "input.json"), read_json(folder / "expected.json")
    for name, sets in inputs.items():
        want = expected[name]
        references, candidates = caption.tokenize_sets(sets["refs"], sets["cands"])
        report.add_exact(
            f"{name} candidate tokens", candidates, [want["tokenized"]["cands"][id_] for id_ in sets["refs"]]
        )
        report.add_exact(
            f"{name} reference tokens",
            [sentence for sentences in references for sentence in sentences],
            [sentence for id_ in sets["refs"] for sentence in want["tokenized"]["refs"][id_]],
        )
        scores = caption.caption_scores(sets["refs"], sets["cands"])
        report.notes += [note for note in scores.notes if note not in report.notes]
        for score, value in want["corpus"].items():
            if score == "METEOR" and score not in scores.corpus:
                continue
            report.add(f"{name} {score}", scores.corpus[score], value)
            per_image = [want["per_image"][id_][score] for id_ in sets["refs"]]
            report.add(f"{name} {score} per image", scores.per_image[score].tolist(), per_image)
    return report


def check_grounding(folder: Path) -> Report:
    """Acc@0.5 and mean IoU."""
    report = Report(tolerance=1e-5)
    inputs, want = read_json(folder / "input.json"), read_json(folder / "expected.json")
    boxes, truth = torch.tensor(inputs["pred"]), torch.tensor(inputs["gt"])
    ious = grounding.aligned_iou(boxes, truth)
    scores = grounding.grounding_accuracy(boxes, truth)
    report.add("pairs", len(ious), want["n"])
    report.add("IoU", ious.tolist(), want["iou"])
    report.add("mIoU", scores["miou"], want["miou"])
    report.add("accuracy", scores["acc"], want["acc"])
    for threshold, value in want.get("acc_at", {}).items():
        report.add("accuracy at other thresholds", grounding.accuracy(ious, float(threshold)), value)
    return report


def check_depth(folder: Path) -> Report:
    """Depth errors under the NYU protocol: per image, their mean, and over all pixels."""
    report = Report(tolerance=1e-5)
    expected = read_json(folder / "expected.json")
    with np.load(folder / "input.npz") as arrays:
        maps = {name: arrays[name] for name in arrays.files}
    count = len(expected["per_image"])
    truths = [maps[f"gt_mm_{k}"].astype(np.float32) / 1000 for k in range(count)]
    found = [maps[f"pred_mm_{k}"].astype(np.float32) / 1000 for k in range(count)]
    official, whole = DepthProtocol(), DepthProtocol(crop="none")

    def errors(pairs: list[tuple[Any, Any]], rules: DepthProtocol = official) -> dict[str, float]:
        valid = [depth.valid_pixels(truth, rules) for _, truth in pairs]
        predicted = [depth.finite(pred[mask], rules) for (pred, _), mask in zip(pairs, valid, strict=True)]
        true = [truth[mask] for (_, truth), mask in zip(pairs, valid, strict=True)]
        pixels = np.concatenate(true)
        return {"n_valid": len(pixels), **depth.depth_errors(np.concatenate(predicted), pixels)}

    pairs = list(zip(found, truths, strict=True))
    metric = DepthMetric()
    for number, (pair, want) in enumerate(zip(pairs, expected["per_image"], strict=True)):
        for name, value in errors([pair]).items():
            report.add(f"per image {name}", value, want[name])
        metric.images["", number] = depth.ImageErrors.of(*pair, official)
    report.add("mean over images", metric.compute(), expected["mean_over_images"])
    others = {
        "all_pixels_pooled": errors(pairs),
        "special_inf_nan": errors([(maps["special_pred_m"], truths[0])]),
        "identical": errors([(truths[0], truths[0])]),
        "image0_without_crop": errors([pairs[0]], whole),
    }
    for case, got in others.items():
        report.add(case, got, {name: value for name, value in expected[case].items() if name != "note"})
    return report


def check_gres(folder: Path) -> Report:
    """Phrases with several targets or none, in the conventions of GSVA and of ReLA."""
    report = Report(tolerance=1e-4)  # GSVA sums in float32; what is exact is asked for below
    expected, problems = read_json(folder / "expected.json"), read_json(folder / "input.json")
    samples = [_referred(number, problem) for number, problem in enumerate(problems)]
    for group, name, protocol in (
        *(("gsva", data, protocol) for data, protocol in (("grefcoco", "gsva"), ("refzom", "refzom"))),
        ("gsva", "validate_all_samples", "reasonseg"),
        *(("rela", name, "rela") for name in expected["rela"]),
    ):
        # Two ranks: what is merged must count as what was never apart.
        ranks = [ReferringMetric(protocol), ReferringMetric(protocol)]
        for number, (sample, answer) in enumerate(samples):
            ranks[number % 2].update(sample, answer)
        ranks[0].merge([metric.state() for metric in ranks])
        scores = ranks[0].compute()
        if group == "rela":  # percent, in float64: 1e-9 is exact
            scores = {key: value if key.endswith("_acc") else 100 * value for key, value in scores.items()}
            for key, want in expected["rela"][name].items():
                report.add(f"rela {name} {key}, in 1e-5", 1e5 * scores[key], 1e5 * want)
        else:
            report.add(f"gsva {name}", scores, expected["gsva"][name])
    metric = ReferringMetric("rela")
    for sample, answer in samples:
        metric.update(sample, answer)
    counts = [{"I": phrase.intersection, "U": phrase.union} for phrase in metric.phrases]
    report.add("pixels of every phrase", counts, expected["per_sample_pixel_counts"])
    return report


def _referred(number: int, problem: dict[str, Any]) -> tuple[Sample, Referral]:
    size_hw = tuple(problem["gt"]["size"])
    true = decode_masks([problem["gt"]], size_hw)
    assert true.any() != problem["gt_no_target"]
    phrases = (problem["sent"],)
    sample = Sample(
        image=tv_tensors.Image(torch.zeros(3, *size_hw, dtype=torch.uint8)),
        task=Task.REFERRING,
        origin=Origin(dataset="gres", image_id=number, path=None, size_hw=size_hw),
        target=Target(masks=tv_tensors.Mask(true)),
        phrases=phrases,
    )
    rejected = torch.tensor([problem["pred_no_target"]])
    answer = Referral(
        phrases=phrases, masks=[problem["pred"]], rejected=rejected, scores=1 - rejected.float(), size_hw=size_hw
    )
    return sample, answer


CHECKS: dict[str, Callable[[Path], Report]] = {
    "coco_det": check_coco_det,
    "lvis_det": check_lvis_det,
    "boundary_ap": check_boundary_ap,
    "panoptic": check_panoptic,
    "semseg": check_semseg,
    "caption": check_caption,
    "grounding": check_grounding,
    "depth": check_depth,
    "gres": check_gres,
}


def main(arguments: list[str]) -> int:
    """Checks one folder; 0 within the tolerance, 1 past it, 2 for wrong use."""
    if len(arguments) != 2 or arguments[0] not in CHECKS:
        print(f"use: python tests/metrics/check.py {{{','.join(CHECKS)}}} DIR", file=sys.stderr)
        return 2
    report = CHECKS[arguments[0]](Path(arguments[1]))
    for quantity, error in report.errors.items():
        print(f"{quantity:48} {error:10.3g}  {'ok' if error <= report.tolerance else 'PAST THE TOLERANCE'}")
    for note in report.notes:
        print(f"note: {note}")
    print(f"{len(report.errors)} quantities, tolerance {report.tolerance:g}: {'FAILED' if report.failed else 'ok'}")
    return 1 if report.failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
