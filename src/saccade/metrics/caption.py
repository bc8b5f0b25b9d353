"""Caption scores: BLEU-1..4, ROUGE-L, CIDEr-D, and METEOR where its Java program is installed.

Sources: Papineni et al. 2002 (BLEU), Lin 2004 (ROUGE-L), Vedantam et al. 2015 (CIDEr, its "D" variant), as the COCO
caption evaluation computes them, its small constants included. METEOR is the ``meteor-1.5.jar`` of Denkowski and Lavie;
it is run through the package pycocoevalcap if that and ``java`` are there. SPICE needs models that no package carries.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from saccade.errors import DataError, UsageError
from saccade.metrics.base import ImageRecords, Key, image_key
from saccade.metrics.ptb import tokenize
from saccade.results import Caption, Prediction
from saccade.samples import Sample

MAX_ORDER = 4
_TINY, _SMALL = 1e-15, 1e-9  # keep the official BLEU away from 0/0
_ROUGE_BETA = 1.2
_CIDER_SIGMA = 6.0

Ngram = tuple[str, ...]


@dataclass(kw_only=True, frozen=True)
class CaptionScores:
    """Scores over a set and per image, by name (``Bleu_1`` .. ``Bleu_4``, ``METEOR``, ``ROUGE_L``, ``CIDEr``).

    Attributes:
        corpus: Over the set. BLEU pools counts; METEOR is pooled by its program; the others are means.
        per_image: ``[N]`` each, in the order of the input.
        notes: What was not computed, and why.
    """

    corpus: dict[str, float]
    per_image: dict[str, NDArray[np.float64]]
    notes: list[str] = field(default_factory=list)


def tokenize_sets(
    references: Mapping[Any, Sequence[str]], candidates: Mapping[Any, str]
) -> tuple[list[list[str]], list[str]]:
    """Tokenises references and candidates, each as one text in the order of the mapping, as the official code does.

    Raises:
        DataError: The two name different images, or an image has no reference.
    """
    if references.keys() != candidates.keys():
        odd = sorted(map(str, references.keys() ^ candidates.keys()))
        raise DataError(f"references and candidates differ on {len(odd)} images", where=odd[:5])
    empty = [str(key) for key, sentences in references.items() if not sentences]
    if empty:
        raise DataError(f"{len(empty)} images have no reference caption", where=empty[:5])
    flat = iter(tokenize([sentence for sentences in references.values() for sentence in sentences]))
    grouped = [[next(flat) for _ in sentences] for sentences in references.values()]
    return grouped, tokenize([candidates[key] for key in references])


def caption_scores(
    references: Mapping[Any, Sequence[str]], candidates: Mapping[Any, str], *, meteor: bool = True
) -> CaptionScores:
    """Scores one candidate per image against its references.

    Args:
        references: Raw sentences by image, in evaluation order.
        candidates: One raw sentence by image.
        meteor: Also METEOR, if it can be run.

    Raises:
        DataError: See :func:`tokenize_sets`.
    """
    refs, cands = tokenize_sets(references, candidates)
    notes: list[str] = []
    corpus, per_image = bleu(refs, cands)
    if meteor:
        why_not = meteor_missing()
        if why_not:
            notes.append(f"METEOR was not computed: {why_not}")
        else:
            corpus["METEOR"], per_image["METEOR"] = _meteor(refs, cands)
    per_image["ROUGE_L"] = np.array([_rouge_l(cand, ref) for cand, ref in zip(cands, refs, strict=True)])
    per_image["CIDEr"] = cider_d(refs, cands)
    for name in ("ROUGE_L", "CIDEr"):
        corpus[name] = float(per_image[name].mean()) if len(cands) else math.nan
    return CaptionScores(corpus=corpus, per_image=per_image, notes=notes)


def _ngrams(sentence: str) -> Counter[Ngram]:
    words = sentence.split()
    return Counter(
        tuple(words[at : at + order]) for order in range(1, MAX_ORDER + 1) for at in range(len(words) - order + 1)
    )


def bleu(
    references: Sequence[Sequence[str]], candidates: Sequence[str]
) -> tuple[dict[str, float], dict[str, NDArray[np.float64]]]:
    """BLEU-1..4 of tokenised sentences, with the closest reference length (the shorter of two equally close ones).

    Returns:
        Scores over the set (counts pooled) and per image.
    """
    counts = _bleu_counts(references, candidates)
    names = [f"Bleu_{order}" for order in range(1, MAX_ORDER + 1)]
    per_image = np.array([_bleu_of(row) for row in counts]).reshape(-1, MAX_ORDER)
    pooled = _bleu_of(counts.sum(axis=0))
    return dict(zip(names, pooled, strict=True)), dict(zip(names, per_image.T, strict=True))


def _bleu_counts(references: Sequence[Sequence[str]], candidates: Sequence[str]) -> NDArray[np.int64]:
    """Per image: length, closest reference length, right n-grams of 4 orders, tried n-grams of 4 orders."""
    rows = []
    for sentence, sentences in zip(candidates, references, strict=True):
        length = len(sentence.split())
        closest = min((abs(n - length), n) for n in (len(reference.split()) for reference in sentences))[1]
        most: Counter[Ngram] = Counter()
        for reference in sentences:
            most |= _ngrams(reference)
        right = [0] * MAX_ORDER
        for ngram, count in _ngrams(sentence).items():
            right[len(ngram) - 1] += min(count, most[ngram])
        tried = [max(0, length - order) for order in range(MAX_ORDER)]
        rows.append([length, closest, *right, *tried])
    return np.array(rows, np.int64).reshape(-1, 2 + 2 * MAX_ORDER)


def _bleu_of(counts: NDArray[np.int64]) -> list[float]:
    """BLEU from (length, reference length, right n-grams of 4 orders, tried n-grams of 4 orders)."""
    length, reference_length, *rest = counts.tolist()
    scores, product = [], 1.0
    for order in range(MAX_ORDER):
        product *= (rest[order] + _TINY) / (rest[MAX_ORDER + order] + _SMALL)
        scores.append(product ** (1 / (order + 1)))
    ratio = (length + _TINY) / (reference_length + _SMALL)
    penalty = math.exp(1 - 1 / ratio) if ratio < 1 else 1.0
    return [score * penalty for score in scores]


def _rouge_l(candidate: str, references: Sequence[str]) -> float:
    """F-measure of the longest common subsequence; its best precision and recall may come from two references."""
    words = candidate.split(" ")
    precision = recall = 0.0
    for reference in references:
        others = reference.split(" ")
        common = _common_subsequence(words, others)
        precision, recall = max(precision, common / len(words)), max(recall, common / len(others))
    if precision == 0 or recall == 0:
        return 0.0
    return (1 + _ROUGE_BETA**2) * precision * recall / (recall + _ROUGE_BETA**2 * precision)


def _common_subsequence(first: list[str], second: list[str]) -> int:
    row = [0] * (len(second) + 1)
    for word in first:
        before = 0
        for at, other in enumerate(second, start=1):
            before, row[at] = row[at], before + 1 if word == other else max(row[at], row[at - 1])
    return row[-1]


def cider_d(references: Sequence[Sequence[str]], candidates: Sequence[str]) -> NDArray[np.float64]:
    """CIDEr-D per image, times 10; document frequencies come from the references of this very set.

    Args:
        references: Tokenised sentences, N lists.
        candidates: N tokenised sentences.

    Returns:
        ``[N]``; all 0 for a single image, where every n-gram occurs in every document.
    """
    cooked = [[_ngrams(reference) for reference in sentences] for sentences in references]
    frequency: Counter[Ngram] = Counter()
    for sentences in cooked:
        frequency.update(set().union(*sentences))
    log_images = math.log(max(len(candidates), 1))

    def weigh(counts: Counter[Ngram]) -> _Weighted:
        vector: list[dict[Ngram, float]] = [{} for _ in range(MAX_ORDER)]
        for ngram, count in counts.items():
            vector[len(ngram) - 1][ngram] = count * (log_images - math.log(max(1, frequency[ngram])))
        return _Weighted(
            vector=vector,
            norm=[math.sqrt(sum(weight * weight for weight in weights.values())) for weights in vector],
            length=sum(count for ngram, count in counts.items() if len(ngram) == 2),
        )

    scores = []
    for candidate, sentences in zip(candidates, cooked, strict=True):
        said = weigh(_ngrams(candidate))
        total = sum(said.similarity(weigh(reference)) for reference in sentences)
        scores.append(10 * total / (MAX_ORDER * len(sentences)))
    return np.array(scores)


@dataclass(kw_only=True, frozen=True)
class _Weighted:
    """TF-IDF weights of a sentence, one dictionary per n-gram order."""

    vector: list[dict[Ngram, float]]
    norm: list[float]
    length: int  # the official code counts bigrams here

    def similarity(self, reference: _Weighted) -> float:
        """Sum over the orders of the clipped cosine, times a Gaussian of the difference in length."""
        total = 0.0
        for mine, others, norm, other_norm in zip(
            self.vector, reference.vector, self.norm, reference.norm, strict=True
        ):
            dot = sum(min(weight, others.get(ngram, 0.0)) * others.get(ngram, 0.0) for ngram, weight in mine.items())
            total += dot / (norm * other_norm) if norm and other_norm else dot
        difference = self.length - reference.length
        return total * math.exp(-(difference**2) / (2 * _CIDER_SIGMA**2))


def meteor_missing() -> str | None:
    """Why METEOR cannot be run here, or None if it can."""
    if importlib.util.find_spec("pycocoevalcap") is None:
        return "the package pycocoevalcap is not installed (pip install 'saccade[meteor]')"
    if shutil.which("java") is None:
        return "no java program was found"
    return None


def _meteor(
    references: Sequence[Sequence[str]], candidates: Sequence[str]
) -> tuple[float, NDArray[np.float64]]:  # pragma: no cover - needs Java
    scorer = importlib.import_module("pycocoevalcap.meteor.meteor").Meteor()
    pooled, each = scorer.compute_score(
        {at: list(sentences) for at, sentences in enumerate(references)},
        {at: [sentence] for at, sentence in enumerate(candidates)},
    )
    return float(pooled), np.array(each, np.float64)


class CaptionMetric(ImageRecords[Key, tuple[tuple[str, ...], str]]):
    """Caption scores over a set of images; CIDEr depends on the whole set, so ranks merge before they compute.

    Args:
        meteor: Also METEOR, if its program is installed; otherwise ``notes`` says so.
    """

    def __init__(self, *, meteor: bool = True) -> None:
        super().__init__()
        self.meteor = meteor
        self._scores: CaptionScores | None = None

    @property
    def notes(self) -> list[str]:
        """See :class:`saccade.metrics.base.Metric`; complete once the scores have been computed."""
        return super().notes + (self._scores.notes if self._scores else [])

    def update(self, target: Sample, prediction: Prediction) -> None:
        """Adds one image. Of several candidates for one image the first counts, as in the official evaluation.

        Raises:
            DataError: The target has no reference caption.
            UsageError: The prediction is of another task.
        """
        key = image_key(target)
        if not isinstance(prediction, Caption):
            raise UsageError(f"captioning is scored on Caption, not on {type(prediction).__name__}", where=key)
        if not target.target.captions:
            raise DataError("the target has no reference caption", where=key)
        self.keep(key, (tuple(target.target.captions), prediction.text))
        self._scores = None

    def evaluate(self) -> CaptionScores:
        """Scores over the set and per image."""
        if self._scores is None:
            self._scores = caption_scores(
                {key: references for key, (references, _) in self.images.items()},
                {key: text for key, (_, text) in self.images.items()},
                meteor=self.meteor,
            )
        return self._scores

    def compute(self) -> dict[str, float]:
        """``Bleu_1`` .. ``Bleu_4``, ``METEOR`` (where it can be run), ``ROUGE_L``, ``CIDEr``; CIDEr may exceed 1."""
        return dict(self.evaluate().corpus)

    def merge(self, states: Sequence[Any]) -> None:
        """See :class:`saccade.metrics.base.Metric`."""
        super().merge(states)
        self._scores = None
