"""The suites by name: what each measures, on which data, and what of it is as published."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from saccade.errors import MissingDataError, UsageError, nearest
from saccade.suites.base import SuiteOptions, SuiteResult
from saccade.suites.classify import CLASSIFICATION
from saccade.suites.identify import identify
from saccade.suites.language import LANGUAGE
from saccade.suites.read_words import read_words
from saccade.suites.retrieve import RETRIEVAL
from saccade.suites.scenes import measure_scenes
from saccade.suites.towers import Tower

PREFIX = "visft."


@dataclass(kw_only=True, frozen=True)
class Suite:
    """One evaluation.

    Attributes:
        summary: What it measures.
        layout: What lies in its folder; empty = it needs none.
        published: What of the protocol is as published, and by whom.
        ours: What is our reconstruction; empty = nothing.
        run: Does it.
        reads: Which of the options that not every suite has a use for it reads; others are refused.
    """

    summary: str
    layout: str
    published: str
    ours: str
    run: Callable[[Tower, SuiteOptions], SuiteResult]
    reads: tuple[str, ...]


_KEPT = ("cache",)
_PROBED = ("train_limit", "probe", "steps", "learning_rate", "seed")
_TRAINED = ("train_root", *_PROBED)
_SPECIAL = (*_KEPT, *_TRAINED, "language")


_ZERO_SHOT = (
    "EVA-CLIP's protocol: shorter side to the input size (bicubic), centre crop, class token, CLIP's 1000 names and 80 "
    "prompts, mean of normalised prompts, top-1 and top-5"
)
_CLASSES = {
    "imagenet": ("ImageNet-1K", "val/WORDNET_ID/*.JPEG, or the challenge's download with LOC_val_solution.csv", ""),
    "imagenet_a": ("ImageNet-A", "WORDNET_ID/*.jpg of 200 classes", ""),
    "imagenet_r": ("ImageNet-R", "WORDNET_ID/*.jpg of 200 classes", ""),
    "imagenet_v2": ("ImageNet-V2, matched frequency", "0..999/*.jpeg", ""),
    "imagenet_sketch": ("ImageNet-Sketch", "WORDNET_ID/*.JPEG", ""),
    "objectnet": (
        "ObjectNet",
        "images/*/*.png and mappings/*.json",
        "the 113 classes under ObjectNet's own names, 2 px of the red border cut off: the paper tells neither",
    ),
}
_BLIP2 = (
    "BLIP-2's: 32 queries, 12 layers, the tower less its last block and norm, with its class token (where it has "
    "one), whole picture at the input size, 5 beams"
)
_COCO_ALONE = (
    "the Q-Former is trained on COCO's captions alone (no first stage, no 129 M web pictures): numbers compare towers "
    "with one another, not with the tables of BLIP-2 or ViSFT"
)
_RETRIEVED = {
    "flickr30k": ("Flickr30k, 1,000 test images", "dataset_flickr30k.json (Karpathy) and flickr30k-images/*.jpg"),
    "coco_retrieval": (
        "COCO, Karpathy's 5,000 test images",
        "dataset_coco.json (or coco_karpathy_test.json) and val2014/*.jpg",
    ),
}
_ASKED = {
    "vqav2": ("VQA v2", "v2_*_val2014_questions.json, v2_mscoco_val2014_annotations.json", ""),
    "okvqa": (
        "OK-VQA",
        "OpenEnded_mscoco_val2014_questions.json, mscoco_val2014_annotations.json",
        "; answers are not brought to their base forms",
    ),
}

SUITES: dict[str, Suite] = {
    **{
        f"{PREFIX}{name}": Suite(
            summary=f"zero-shot classification: {title}",
            layout=layout,
            published=_ZERO_SHOT,
            ours=ours,
            run=CLASSIFICATION[name],
            reads=_KEPT,
        )
        for name, (title, layout, ours) in _CLASSES.items()
    },
    **{
        f"{PREFIX}{name}": Suite(
            summary=f"zero-shot retrieval: {title}",
            layout=layout,
            published="recall at 1, 5, 10 both ways, five captions an image, points of length 1, CLIP's preprocessing",
            ours="",
            run=RETRIEVAL[name],
            reads=_KEPT,
        )
        for name, (title, layout) in _RETRIEVED.items()
    },
    f"{PREFIX}ocr": Suite(
        summary="scene-text recognition: word accuracy of a shallow decoder on frozen features",
        layout="iiit5k/ svt/ ic13/ ic15/ svtp/ cute/, each as its owners lay it out; --train-root: MJSynth",
        published="the test sets, words compared as lower-case letters and digits, a shallow transformer decoder",
        ours="the decoder (2 layers, 384 wide), the input (4 x 16 patches), the schedule, MJSynth alone as training",
        run=read_words,
        reads=(*_KEPT, *_TRAINED),
    ),
    f"{PREFIX}goi": Suite(
        summary="grounded object identification: the class of the object in a true box",
        layout="COCO: annotations/instances_{train,val}2017.json, train2017/, val2017/; or boxes of your own in the "
        "layout of PASCAL VOC: ImageSets/Main/{train,val}.txt, Annotations/*.xml, JPEGImages/",
        published="the question, COCO's boxes, the numbers of M3IT's task (30,000 to train on, 2,000 to test)",
        ours="which boxes (M3IT's choice is not reproduced), the probe (features averaged in the box, one linear "
        "layer), the input size",
        run=identify,
        reads=(*_KEPT, *_TRAINED),
    ),
    **{
        f"{PREFIX}{name}": Suite(
            summary=f"visual question answering: {title} validation",
            layout=f"{layout}, val2014/; --train-root: COCO captions",
            published=f"{_BLIP2}, at most 10 tokens, no length penalty, its prompt; the official VQA accuracy",
            ours=f"{_COCO_ALONE}{more}",
            run=LANGUAGE[name],
            reads=(*_TRAINED, "language"),
        )
        for name, (title, layout, more) in _ASKED.items()
    },
    f"{PREFIX}nocaps": Suite(
        summary="captions of objects that COCO never names: nocaps validation",
        layout="nocaps_val_4500_captions.json and val/*.jpg; --train-root: COCO captions",
        published=f"{_BLIP2}, 8 to 30 tokens (of its OPT tuned on COCO, there at 364 px), length penalty 1, prompt "
        "'a photo of'; CIDEr by domain",
        ours=_COCO_ALONE,
        run=LANGUAGE["nocaps"],
        reads=(*_TRAINED, "language"),
    ),
    f"{PREFIX}scenes": Suite(
        summary="a small pair on drawn scenes of styles that it never saw: zero-shot, retrieval, linear probes",
        layout="",
        published="nothing: it stands for the published evaluations where there is no such data",
        ours="all of it",
        run=measure_scenes,
        reads=(*_KEPT, *_PROBED),
    ),
}
"""Name to suite."""


def find_suite(name: str) -> Suite:
    """A suite by its name.

    Raises:
        UsageError: Nothing has this name; the message lists all and offers the nearest one.
    """
    if name not in SUITES:
        raise UsageError(f"unknown suite '{name}'", why=f"there are {', '.join(SUITES)}", fix=nearest(name, SUITES))
    return SUITES[name]


def run_suite(name: str, tower: Tower, options: SuiteOptions) -> SuiteResult:
    """Runs a suite and stamps its result.

    Raises:
        UsageError: No such suite, no such folder or data in it, or an option that the suite has no use for.
    """
    suite = find_suite(name)
    _refuse_unread(name, suite, options)
    if suite.layout and not options.root.is_dir():
        raise UsageError(
            "the folder of the data set does not exist", where=options.root, fix=f"it holds {suite.layout}"
        )
    started_s = time.perf_counter()
    try:
        result = suite.run(tower, options)
    except MissingDataError as error:
        # The readers offer settings of data sets; a suite has none, but a layout.
        layout = f"lay the data of {name} out so: {suite.layout}"
        raise MissingDataError(error.what, where=error.where, why=error.why, fix=layout) from error
    result.notes = [*tower.notes, *result.notes]
    result.stamp = {
        "suite": name,
        "data": str(options.root) if suite.layout else "drawn",
        "tower": tower.name,
        "lora": tower.updates,
        "precision": options.precision,
        "as_published": suite.published,
        "reconstructed": suite.ours or "nothing",
        "seconds": round(time.perf_counter() - started_s, 3),
    }
    return result


def _refuse_unread(name: str, suite: Suite, options: SuiteOptions) -> None:
    """Refuses options that would be passed over in silence."""
    usual = SuiteOptions(root=options.root)
    given = [option for option in _SPECIAL if getattr(options, option) != getattr(usual, option)]
    unread = [option for option in given if option not in suite.reads]
    if not suite.layout and options.root != Path():
        unread.append("root")
    if unread:
        raise UsageError(
            f"{name} has no use for {', '.join(_flag(option) for option in unread)}",
            why=f"it reads {', '.join(_flag(option) for option in suite.reads)}",
            fix="leave it out",
        )


def _flag(option: str) -> str:
    return f"--{option.replace('_', '-')}"
