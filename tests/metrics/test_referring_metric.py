"""Scores of phrases: what each protocol counts, how ranks come together, and what is refused."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torchvision import tv_tensors

from saccade.errors import DataError, UsageError
from saccade.metrics import REFERRING_PROTOCOLS, ReferringMetric, build_metrics, referring_protocol
from saccade.metrics.referring import SCORE_NAMES, boxes_of_parts, grec_f1
from saccade.results import Caption, Referral, encode_masks, from_truth
from saccade.samples import Origin, Sample, Target
from saccade.tasks import Task
from saccade.training.config import METRICS

SIZE = (10, 20)


def strip(begin: int, end: int) -> torch.Tensor:
    """A mask of whole columns, ten pixels each."""
    mask = torch.zeros(SIZE, dtype=torch.bool)
    mask[:, begin:end] = True
    return mask


def case(
    truths: Sequence[tuple[int, int]],
    answers: Sequence[tuple[int, int] | None],
    rejected: Sequence[int] = (),
    image_id: int = 0,
    ignored: tuple[int, int] | None = None,
) -> tuple[Sample, Referral]:
    phrases = tuple(f"phrase {k}" for k in range(len(truths)))
    sample = Sample(
        image=tv_tensors.Image(torch.zeros(3, *SIZE, dtype=torch.uint8)),
        task=Task.REFERRING,
        origin=Origin(dataset="test", image_id=image_id, path=None, size_hw=SIZE),
        target=Target(
            masks=tv_tensors.Mask(torch.stack([strip(*truth) for truth in truths])),
            ignored=None if ignored is None else tv_tensors.Mask(strip(*ignored)),
        ),
        phrases=phrases,
    )
    flags = torch.tensor([k in rejected for k in range(len(truths))])
    masks = [None if answer is None else encode_masks(strip(*answer)[None])[0] for answer in answers]
    return sample, Referral(phrases=phrases, masks=masks, rejected=flags, scores=1 - flags.float(), size_hw=SIZE)


def scores(protocol: str, *cases: Any) -> dict[str, float]:
    metric = ReferringMetric(protocol)
    for one in cases:
        metric.update(*one)
    return metric.compute()


def test_what_a_rejection_and_a_false_alarm_cost() -> None:
    # Half found; found but rejected; a false alarm; a right rejection.
    four = case([(0, 4), (0, 4), (0, 0), (0, 0)], [(0, 2), (0, 4), (0, 5), (0, 5)], rejected=[1, 3])
    want = {"gsva": (0.5 + 1 + 0 + 1, 60, 130), "refzom": (2.5, 60, 80), "rela": (0.5 + 0 + 0 + 1, 20, 130)}
    for protocol, (overlap, shared, joined) in want.items():
        got = scores(protocol, four)
        assert got["gIoU"] == pytest.approx(overlap / 4, abs=1e-5)
        assert got["cIoU"] == pytest.approx(shared / joined, abs=1e-5)
        assert (got["N_acc"], got["T_acc"]) == (0.5, 0.5)
    assert scores("rela", four)["Pr@0.7"] == 0.0
    assert scores("rela", case([(0, 10)], [(0, 7)]))["Pr@0.7"] == 1.0


def test_res_and_reasoning() -> None:
    cases = [case([(0, 10)], [(0, 5)], image_id=1), case([(0, 10)], [(0, 9)], rejected=[0], image_id=2)]
    got = scores("res", *cases)
    assert got["cIoU"] == pytest.approx(140 / 200) and got["mIoU"] == pytest.approx(0.7)
    assert got["gIoU"] == pytest.approx(0.7, abs=1e-4)
    assert [got[f"Pr@{least}"] for least in (0.5, 0.6, 0.9)] == [1.0, 0.5, 0.5]
    nothing = case([(0, 0)], [None])
    assert scores("reasonseg", nothing)["gIoU"] == pytest.approx(1, abs=1e-4)  # an empty union counts as right
    partly = case([(0, 4)], [(0, 8)], ignored=(4, 8))
    assert scores("reasonseg", partly)["cIoU"] == pytest.approx(1)
    assert scores("lisa", partly)["cIoU"] == pytest.approx(1)
    less = case([(0, 4)], [(0, 4)], ignored=(4, 8))
    assert scores("reasonseg", less)["cIoU"] == pytest.approx(0.5) and scores("lisa", less)["cIoU"] == pytest.approx(1)


def test_boxes() -> None:
    boxes = torch.tensor([[0.0, 0, 4, 4], [10, 0, 14, 4]])
    good, poor = torch.tensor([0.9, 0.9]), torch.tensor([0.9, 0.6])
    assert grec_f1(boxes, good, boxes) == (1.0, False)
    assert grec_f1(boxes, poor, boxes) == (pytest.approx(2 / 3), False)
    assert grec_f1(boxes, good, boxes[:0]) == (0.0, False) and grec_f1(boxes[:0], good[:0], boxes[:0]) == (1.0, True)
    assert grec_f1(boxes[:0], good[:0], boxes) == (0.0, True)
    assert grec_f1(boxes + 2, good, boxes) == (0.0, False)
    twice = torch.cat([boxes[:1], boxes[:1]])
    assert grec_f1(twice, good, boxes) == (0.5, False)  # one truth is found once
    mask = np.zeros((20, 30), bool)
    mask[2:8, 3:9] = mask[10:15, 20:30] = mask[0, 29] = True
    assert boxes_of_parts(mask).tolist() == [[3, 2, 9, 8], [20, 10, 30, 15]]
    got = scores("grec", case([(0, 4), (0, 0), (0, 0)], [(0, 4), None, (0, 4)], rejected=[1]))
    assert got == {"F1": pytest.approx(2 / 3), "N_acc": 0.5, "T_acc": 1.0}
    listed = case([(0, 4)], [(0, 4)])
    listed[0].target.boxes = tv_tensors.BoundingBoxes([[0.0, 0, 4, 10], [8, 0, 9, 9]], format="XYXY", canvas_size=SIZE)
    listed[0].target.phrase_ids = torch.tensor([0, 0])
    assert scores("grec", listed)["F1"] == 0.0  # one of two targets


def test_ranks_come_together_and_repetitions_count_once() -> None:
    cases = [case([(0, k + 1), (0, 0)], [(0, 3), (0, k)], rejected=[1] if k % 2 else [], image_id=k) for k in range(5)]
    for protocol in REFERRING_PROTOCOLS:
        whole, first, second = (ReferringMetric(protocol) for _ in range(3))
        for number, one in enumerate(cases):
            whole.update(*one)
            (first, second)[number % 2].update(*one)
        second.update(*cases[0])
        first.merge([first.state(), second.state()])
        assert first.compute() == pytest.approx(whole.compute(), nan_ok=True)
        assert set(whole.compute()) <= set(SCORE_NAMES) == set(METRICS[Task.REFERRING])
        assert any("10 phrases, 5 of them without a target" in note for note in first.notes)
        assert any("came more than once" in note for note in first.notes)
    assert "for phrases that have one" in ReferringMetric("res").notes[0] or not ReferringMetric("res").phrases


def test_the_truth_is_perfect() -> None:
    sample, _ = case([(0, 4), (3, 9), (0, 0)], [None] * 3)
    for protocol in REFERRING_PROTOCOLS:
        got = scores(protocol, (sample, from_truth(sample)))
        assert all(value == pytest.approx(1, abs=1e-4) for name, value in got.items() if name[:2] not in ("mI", "Pr"))
    only = scores("gsva", case([(0, 4)], [(0, 4)]))
    assert math.isnan(only["N_acc"]) and only["T_acc"] == 1


def test_protocols() -> None:
    assert referring_protocol() == "gsva" and referring_protocol("rela", "refcoco/val") == "rela"
    known = {"refcoco+/val": "res", "refclef/test": "res", "refzom/test": "refzom", "ReasonSeg/val": "reasonseg",
             "grefcoco/val": "gsva", "scenes/val": "gsva"}  # fmt: skip
    assert {name: referring_protocol("", name) for name in known} == known
    assert build_metrics(Task.REFERRING, data="refcoco/val").protocol.startswith("RES:")
    with pytest.raises(UsageError, match=r"unknown protocol 'rella'[\s\S]*rela"):
        build_metrics(Task.REFERRING, protocol="rella")


def test_what_does_not_go_together_is_refused() -> None:
    sample, answer = case([(0, 4)], [(0, 4)])
    metric = ReferringMetric()
    with pytest.raises(UsageError, match="scored on Referral"):
        metric.update(sample, Caption(text="a", score=0.0))
    with pytest.raises(DataError, match="other ones"):
        metric.update(sample, dataclasses.replace(answer, phrases=("another",)))
    with pytest.raises(DataError, match="frame of the original"):
        metric.update(sample, dataclasses.replace(answer, size_hw=(5, 5)))
    with pytest.raises(DataError, match="true masks"):
        metric.update(dataclasses.replace(sample, target=Target()), answer)


def test_what_a_talkative_model_adds_is_counted_and_not_scored() -> None:
    sample, referral = case([(0, 4)], [(0, 4)])
    talk = dataclasses.replace(
        referral,
        phrases=(*referral.phrases, "answer 2", "answer 3"),
        masks=[*referral.masks, None, encode_masks(strip(5, 9)[None])[0]],
        rejected=torch.tensor([False, True, False]),
        scores=torch.tensor([1.0, 0, 1]),
    )
    metric, other = ReferringMetric(), ReferringMetric()
    metric.update(sample, talk)
    other.update(*case([(0, 2)], [(0, 2)], image_id=1))
    assert metric.compute() == scores("gsva", (sample, referral))
    metric.merge([metric.state(), other.state()])
    assert "2 masks or rejections more than were asked for, not scored" in metric.notes
    assert len(metric.phrases) == 2
    with pytest.raises(DataError, match="or to other ones"):
        metric.update(sample, dataclasses.replace(talk, phrases=("answer 2", *referral.phrases, "answer 3")))


@pytest.mark.parametrize("rules", sorted(REFERRING_PROTOCOLS))
def test_without_a_phrase_there_is_no_score(rules: str) -> None:
    found = ReferringMetric(rules).compute()
    assert found and all(math.isnan(score) for score in found.values())
