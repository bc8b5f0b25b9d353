"""Questions and captions through a frozen language model, after BLIP-2.

A Q-Former is trained on COCO's captions, between the frozen tower and a frozen OPT; then it is asked about other
pictures. As published: the form of the Q-Former, its input (the tower less its last block and norm, the class token
kept), the prompts, the search, the metrics. Ours: it is trained on COCO's captions alone, without BLIP-2's first stage
and its 129 million pictures, so that its numbers compare towers with one another and not with BLIP-2's tables.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from saccade.data.benchmarks.questions import Questions, open_questions
from saccade.data.sources import SourceSpec, open_source
from saccade.data.sources.base import Source, select_range
from saccade.data.sources.karpathy import KarpathySource
from saccade.data.sources.nocaps import DOMAINS, NocapsSource
from saccade.errors import UsageError
from saccade.layers.precision import autocast
from saccade.metrics.caption import caption_scores
from saccade.metrics.vqa import VQAMetric
from saccade.models.visft.qformer import QFormerConfig
from saccade.models.visft.speaker import Manner, QFormerSpeaker, load_language
from saccade.suites.base import SuiteOptions, SuiteResult, training_root
from saccade.suites.pictures import Files, Fit, Pictures, Squash
from saccade.suites.probes import Schedule, about_probe, endless, fit_probe, keep_probe, kept_probe, schedule
from saccade.suites.retrieve import SourcePictures
from saccade.suites.towers import Tower
from saccade.tasks import Task

QUESTION = "Question: {} Short answer:"
CAPTION = "a photo of"
SHORT = Manner(beams=5, most=10, least=1, length_penalty=0.0)
LONG = Manner(beams=5, most=30, least=8, length_penalty=1.0)
"""How BLIP-2 searches for answers, and for captions."""

_STEPS, _RATE, _DECAY = 60_000, 1e-4, 0.05
_SPICE = "SPICE is not computed: it needs models that no package carries"
_NO_CLASS_TOKEN = "not as published: the tower has no class token, so the Q-Former reads the cells of its map alone"
_LEMMAS = "answers are compared as they are; BLIP-2 brings those of OK-VQA to their base forms with a language package"


class _Probe(nn.Module):
    """What of a speaker is trained, under the same names."""

    def __init__(self, speaker: QFormerSpeaker) -> None:
        super().__init__()
        self.qformer, self.project = speaker.qformer, speaker.project


def new_speaker(tower: Tower, options: SuiteOptions, config: QFormerConfig | None = None) -> QFormerSpeaker:
    """A speaker with a fresh Q-Former; the tower loses its last block and norm.

    Args:
        tower: Changed in place.
        options: Name the language model, and the seed.
        config: Of the Q-Former; None = BLIP-2's.

    Raises:
        UsageError: No language model is named.
    """
    if options.language is None:
        raise UsageError("answers in words need a language model", fix="--language DIR (of facebook/opt-2.7b, say)")
    language, pieces = load_language(options.language)
    tower.without_last_block()
    torch.manual_seed(options.seed)
    return QFormerSpeaker(config or QFormerConfig(), tower.vit.config.width, language, pieces).to(tower.device)


def trained_speaker(tower: Tower, options: SuiteOptions) -> tuple[QFormerSpeaker, list[str]]:
    """A speaker that was kept, or is trained now, and how it came about."""
    speaker = new_speaker(tower, options)
    about = about_probe(
        "speaker",
        tower.identity,
        options,
        train_root=options.train_root,
        train_limit=options.train_limit,
        **_schedule(options),
        language_model=str(Path(str(options.language)).resolve()),
    )
    notes = [] if tower.vit.config.class_token else [_NO_CLASS_TOKEN]
    if note := kept_probe(options.probe, _Probe(speaker), about):
        speaker.eval()
        return speaker, [note, *notes]
    source = KarpathySource(
        task=Task.CAPTION, root=training_root(options, what="captioned pictures"), split="train", per_caption=True
    )
    note = train_speaker(speaker, tower, select_range(source, limit=options.train_limit), options)
    keep_probe(options.probe, _Probe(speaker).state_dict(), about, note)
    return speaker, [note, *notes]


def train_speaker(speaker: QFormerSpeaker, tower: Tower, source: Source, options: SuiteOptions) -> str:
    """Trains the Q-Former on captions; returns how, in words."""
    fit, chosen = _fit(tower), _schedule(options)

    def item(index: int) -> tuple[Tensor, str]:
        sample = source[index]
        return fit(sample.image.as_subclass(Tensor)), sample.target.captions[0]

    def losses() -> Iterator[Tensor]:
        for images, texts in endless(item, len(source), options):
            image_BNC = look(tower, images, options)
            with autocast(options.precision, tower.device):
                loss = speaker.loss(image_BNC, [CAPTION] * len(texts), texts)
            yield loss

    fit_probe(
        speaker,
        losses(),
        **chosen,
        weight_decay=_DECAY,
        progress=options.progress,
        what="Q-Former",
    )
    done = f"{chosen['steps']} steps of {options.batch_size}"
    return f"a Q-Former trained {done} on {len(source)} captions of {source.name}"


def _schedule(options: SuiteOptions) -> Schedule:
    return schedule(options, steps=_STEPS, learning_rate=_RATE)


def look(tower: Tower, images_B3HW: Tensor, options: SuiteOptions) -> Tensor:
    """Tokens of network inputs, without gradients."""
    with torch.no_grad(), autocast(options.precision, tower.device):
        return tower.tokens(images_B3HW.to(tower.device)).float()


def say(
    speaker: QFormerSpeaker,
    tower: Tower,
    pictures: Pictures,
    prompts: Sequence[str],
    manner: Manner,
    options: SuiteOptions,
    *,
    what: str,
) -> list[str]:
    """What is said about every picture behind its prompt, in order."""
    fit, said = _fit(tower), []
    for start in range(0, len(pictures), options.batch_size):
        chosen = range(start, min(start + options.batch_size, len(pictures)))
        images = torch.stack([fit(pictures[index]) for index in chosen])
        with autocast(options.precision, tower.device):
            said += speaker.speak(look(tower, images, options), [prompts[index] for index in chosen], manner)
        options.progress(what, chosen.stop, len(pictures))
    return said


def answer(tower: Tower, options: SuiteOptions, *, kind: Questions) -> SuiteResult:
    """Official VQA accuracy on the validation questions."""
    questions = open_questions(options.root, kind)[: options.limit or None]
    speaker, notes = trained_speaker(tower, options)
    files = Files(paths=[question.path for question in questions])
    prompts = [QUESTION.format(question.text) for question in questions]
    said = say(speaker, tower, files, prompts, SHORT, options, what="questions")
    metric = VQAMetric()
    for question, text in zip(questions, said, strict=True):
        metric.update(question.id, text, question.answers, answer_type=question.answer_type)
    if kind == "okvqa":
        notes.append(_LEMMAS)
    return SuiteResult(metrics=metric.compute(), items=len(questions), notes=notes)


def caption(tower: Tower, options: SuiteOptions) -> SuiteResult:
    """CIDEr of captions of nocaps' validation pictures: of each domain by itself, and of all."""
    spec = SourceSpec(task=Task.CAPTION, reader="nocaps", root=str(options.root), split="val", limit=options.limit)
    source = open_source(spec)
    domains = NocapsSource(spec).domains
    speaker, notes = trained_speaker(tower, options)
    said = say(speaker, tower, SourcePictures(source), [CAPTION] * len(source), LONG, options, what="pictures")
    references, candidates = {}, {}
    for index, text in enumerate(said):
        sample = source[index]
        references[sample.origin.image_id] = sample.target.captions
        candidates[sample.origin.image_id] = text
    metrics = {}
    for domain in (*DOMAINS, ""):
        keys = [key for key in references if not domain or domains.get(key) == domain]
        if keys:
            # Words weigh by how rare they are in the domain alone, as where each domain is a set by itself (BLIP).
            scores = caption_scores(
                {key: references[key] for key in keys}, {key: candidates[key] for key in keys}, meteor=False
            )
            metrics[f"CIDEr/{domain or 'overall'}"] = scores.corpus["CIDEr"]
    if not domains:
        notes.append("the caption file names no domains")
    return SuiteResult(metrics=metrics, items=len(source), notes=[*notes, _SPICE], left_out=dict(source.skipped))


def _fit(tower: Tower) -> Fit:
    return Squash(size_hw=(tower.side, tower.side), mean=tower.mean, std=tower.std)


LANGUAGE: dict[str, Callable[[Tower, SuiteOptions], SuiteResult]] = {
    "vqav2": partial(answer, kind="vqav2"),
    "okvqa": partial(answer, kind="okvqa"),
    "nocaps": caption,
}
"""Name of a suite to what runs it."""
