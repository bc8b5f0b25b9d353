"""Caption scores: limits, merging, and METEOR being optional."""

from __future__ import annotations

import importlib.util
import math
import shutil

import pytest
from helpers_metrics import sample, through_ranks

from saccade.errors import DataError, UsageError
from saccade.metrics import CaptionMetric, build_metrics, caption
from saccade.metrics.caption import bleu, caption_scores, cider_d
from saccade.results import Caption, SemanticMap
from saccade.samples import Sample, Target
from saccade.tasks import Task

REFERENCES = {
    1: ("A dog runs on the beach.", "Two dogs play in the sand"),
    2: ("A red bus on a street", "a bus drives down the road"),
    3: ("Three people eat pizza at a table.",),
}


def _pair(image_id: int | str, text: str, references: tuple[str, ...] | None = None) -> tuple[Sample, Caption]:
    captions = REFERENCES[image_id] if references is None else references  # type: ignore[index]
    return sample(Task.CAPTION, image_id, Target(captions=captions)), Caption(text=text, score=0.0)


def test_a_repeated_reference_scores_full_marks() -> None:
    candidates = {key: sentences[0] for key, sentences in REFERENCES.items()}
    scores = caption_scores(REFERENCES, candidates, meteor=False)
    for order in range(1, 5):
        assert scores.corpus[f"Bleu_{order}"] == pytest.approx(1, abs=1e-6)
    assert scores.per_image["ROUGE_L"].tolist() == pytest.approx([1, 1, 1])
    assert scores.per_image["CIDEr"][2] == pytest.approx(10)  # its only reference
    assert scores.per_image["CIDEr"][0] == pytest.approx(5, abs=0.1)  # the other reference shares almost nothing


def test_cider_falls_with_clipping_and_length() -> None:
    references = [["a cat sits here"], ["one dog runs there"]]
    said, doubled = cider_d(references, ["a cat sits here", "x"])[0], cider_d(references, ["a cat " * 8, "x"])[0]
    assert said == pytest.approx(10)
    assert doubled < 0.2 * said
    assert cider_d(references[:1], ["a cat sits here"]).tolist() == [0]  # one document: every weight is 0


def test_bleu_takes_the_closest_reference_length() -> None:
    same, _ = bleu([["a b c d", "a b c d e f g h"]], ["a b c d"])
    assert same["Bleu_4"] == pytest.approx(1, abs=1e-6)
    short, _ = bleu([["a b c d e f g h"]], ["a b c d"])
    assert short["Bleu_4"] == pytest.approx(math.exp(1 - 8 / 4), abs=1e-6)
    clipped, _ = bleu([["the cat"]], ["the the the the"])
    assert clipped["Bleu_1"] == pytest.approx(1 / 4, abs=1e-6)


def test_ranks_together_equal_one_process_and_the_first_candidate_counts() -> None:
    said = {1: "a dog on a beach", 2: "the bus is red", 3: "people sit at a table"}
    whole, ranks = CaptionMetric(meteor=False), [CaptionMetric(meteor=False) for _ in range(2)]
    for at, (key, text) in enumerate(said.items()):
        whole.update(*_pair(key, text))
        ranks[at % 2].update(*_pair(key, text))
    ranks[1].update(*_pair(2, "nonsense"))
    merged = through_ranks(ranks, CaptionMetric(meteor=False))
    assert merged.compute() == pytest.approx(whole.compute(), abs=1e-12)
    assert "1 images came more than once" in merged.notes[0]
    parts = [rank.compute()["CIDEr"] for rank in ranks]
    assert whole.compute()["CIDEr"] != pytest.approx(sum(parts) / 2)  # why ranks merge before they compute


@pytest.mark.parametrize(
    ("missing", "reason"), [("package", "pip install 'saccade[meteor]'"), ("java", "no java program")]
)
def test_absent_meteor_is_said(missing: str, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec("json") if missing == "java" else None
    monkeypatch.setattr(caption.importlib.util, "find_spec", lambda name: found)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    metric = build_metrics(Task.CAPTION)
    metric.update(*_pair(1, "a dog"))
    assert "METEOR" not in metric.compute()
    assert reason in metric.notes[0]


def test_empty_candidates_and_empty_sets() -> None:
    scores = caption_scores(REFERENCES, dict.fromkeys(REFERENCES, ""), meteor=False)
    assert set(scores.corpus.values()) == {0.0}
    assert math.isnan(CaptionMetric(meteor=False).compute()["CIDEr"])


def test_wrong_pairs_are_refused() -> None:
    metric = CaptionMetric(meteor=False)
    target, prediction = _pair(1, "a dog")
    with pytest.raises(UsageError, match="Caption"):
        metric.update(target, SemanticMap(labels=None, classes=None))  # type: ignore[arg-type]
    with pytest.raises(DataError, match="no reference"):
        metric.update(*_pair(1, "a dog", references=()))
    with pytest.raises(DataError, match="differ on 1 images"):
        caption_scores({1: ["a"], 2: ["b"]}, {1: "a"})
    with pytest.raises(DataError, match="no reference"):
        caption_scores({1: []}, {1: "a"})
    metric.update(target, prediction)
    assert metric.per_class() == []
