"""A GSVA of random weights is evaluated on scenes from end to end: loader, model, metric, stamp."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import pytest
import torch
from helpers_gsva import config

sys.path.insert(0, str(Path(__file__).parents[2] / "tokens"))
from helpers_pieces import train_pieces
from torchvision import tv_tensors

from saccade.data.augment import PhraseAugment
from saccade.data.loader import SourceEntry, TrainLoader
from saccade.data.sources.scenes import ScenesSource
from saccade.models.gsva.conversation import wrap_image
from saccade.models.gsva.inputs import Answering
from saccade.models.gsva.model import GSVA, _joined
from saccade.models.systems import extra_of
from saccade.results import Referral, encode_masks
from saccade.samples import Sample, Target
from saccade.tasks import Task
from saccade.tokens.pieces import PieceVocabulary
from saccade.training.evaluation import evaluate


@pytest.fixture
def model(tmp_path: Path) -> GSVA:
    torch.manual_seed(0)
    vocabulary = PieceVocabulary(train_pieces(tmp_path))
    sizes = config()
    sizes.language.vocab_size, sizes.language.positions, sizes.max_length = len(vocabulary), 1024, 1024
    sizes.seg_id, sizes.rej_id, sizes.max_new_tokens = vocabulary.seg_id, vocabulary.rej_id, 4
    return GSVA(sizes, vocabulary)


@pytest.mark.parametrize(("answer", "protocol"), [("given", "gsva"), ("given", "rela"), ("free", ""), ("own", "")])
def test_evaluation_from_end_to_end(model: GSVA, answer: Answering, protocol: str) -> None:
    source = ScenesSource(task=Task.REFERRING, split="val", size=64, limit=3)
    result = evaluate(model, source, batch_size=2, answer=answer, protocol=protocol)
    assert result.images == 3 and 0 <= result.metrics["gIoU"] <= 1 and 0 <= result.metrics["N_acc"] <= 1
    assert result.stamp["protocol"].startswith("GRES as ReLA" if protocol == "rela" else "GRES as GSVA")
    assert result.stamp["answers"] == answer and result.stamp["task"] == "referring_segmentation"
    assert any("has no mask" in note for note in result.stamp["notes"]) == (answer != "given")
    if answer == "free":  # four tokens of a random model say nothing
        assert result.metrics["N_acc"] == 1 and result.metrics["T_acc"] == 0


@pytest.mark.parametrize("answer", ["given", "own"])
def test_in_the_form_of_lisa_an_empty_mask_is_a_rejection(model: GSVA, answer: Answering) -> None:
    model.config.one_seg = True
    source = ScenesSource(task=Task.REFERRING, split="val", size=64, limit=3)
    decoder = model.sam.mask_decoder
    for layer in (decoder.filters[0].layers[-1], decoder.upscale[-2]):
        torch.nn.init.zeros_(layer.weight)
        torch.nn.init.ones_(layer.bias)
    for sign, rates in ((1.0, (0.0, 1.0)), (-1.0, (1.0, 0.0))):  # of every pixel of every mask
        torch.nn.init.constant_(decoder.filters[0].layers[-1].bias, sign)
        metrics = evaluate(model, source, batch_size=2, answer=answer, protocol="rela").metrics
        assert (metrics["N_acc"], metrics["T_acc"]) == rates


def test_in_the_form_of_lisa_absent_things_are_learned_as_empty_masks(model: GSVA) -> None:
    model.config.one_seg = True
    source = ScenesSource(task=Task.REFERRING, split="train", size=64, limit=2)
    augment = PhraseAugment(count=4)
    preprocess, extra = model.preprocess(Task.REFERRING), extra_of(model)
    entry = SourceEntry(source=source, preprocess=preprocess, augment=augment, batch_size=2, extra=extra)
    batch = next(iter(TrainLoader([entry], seed=0)))
    assert batch.conversation_to_image.tolist() == [0] * 4 + [1] * 4
    assert (batch.input_ids == model.config.seg_id).sum(1).tolist() == [1] * 8
    assert not bool((batch.input_ids == model.config.rej_id).any())
    absent = [not bool(mask.any()) for masks in batch.masks for mask in masks]
    assert True in absent and False in absent
    losses = model.train().loss(batch)
    losses["referring_segmentation_loss_mask_bce"].backward()
    grad = model.sam.mask_decoder.mask_tokens.weight.grad
    assert grad is not None and bool(grad[0].any())


@pytest.mark.parametrize("answer", ["given", "own", "free"])
@pytest.mark.parametrize("batch_size", [1, 2])
def test_a_picture_of_which_nothing_is_named_is_no_error(model: GSVA, answer: Answering, batch_size: int) -> None:
    class Source(ScenesSource):
        """Two scenes; of the first one nothing is asked."""

        def __getitem__(self, index: int) -> Sample:
            sample = super().__getitem__(index)
            if index:
                return sample
            return dataclasses.replace(sample, phrases=(), target=Target(masks=sample.target.masks[:0]))

    source = Source(task=Task.REFERRING, split="val", size=64, limit=2)
    result = evaluate(model, source, batch_size=batch_size, answer=answer)
    assert result.images == 2 and 0 <= result.metrics["gIoU"] <= 1


@pytest.mark.parametrize("one_seg", [False, True])
def test_a_model_that_says_more_than_it_was_asked_is_scored(model: GSVA, one_seg: bool) -> None:
    model.config.one_seg = one_seg
    model.config.max_new_tokens = 30
    with torch.no_grad():  # of positive states, [SEG] is always the likeliest word
        model.language.lm_head.weight.zero_()
        model.language.lm_head.weight[model.config.seg_id] = 1.0
    model.language.model.norm.register_forward_hook(lambda module, given, states: states.abs())
    source = ScenesSource(task=Task.REFERRING, split="val", size=64, limit=2)
    result = evaluate(model, source, answer="free")
    assert one_seg or result.metrics["T_acc"] == 1
    assert any("more than were asked for" in note for note in result.stamp["notes"])


class Crowd(ScenesSource):
    """Two scenes; of the first one 200 things are asked, one of which is there."""

    def __getitem__(self, index: int) -> Sample:
        sample = super().__getitem__(index)
        if index:
            return sample
        masks = torch.zeros(200, *sample.size_hw, dtype=torch.bool)
        masks[150, :20, :20] = True
        phrases = tuple(f"thing {number}" for number in range(200))
        return dataclasses.replace(sample, phrases=phrases, target=Target(masks=tv_tensors.Mask(masks)))


@pytest.mark.parametrize("answer", ["given", "own", "free"])
def test_a_crowded_picture_is_asked_in_several_conversations(model: GSVA, answer: Answering) -> None:
    source = Crowd(task=Task.REFERRING, split="val", size=64, limit=2)
    result = evaluate(model, source, batch_size=2, answer=answer)
    assert result.images == 2
    notes = " ".join(result.stamp["notes"])
    assert "1 images have more phrases than go into one conversation" in notes
    assert f"{200 + len(source[1].phrases)} phrases" in notes


@pytest.mark.parametrize("answer", ["given", "free"])
def test_what_fits_is_asked_at_once(model: GSVA, answer: Answering) -> None:
    sample = Crowd(task=Task.REFERRING, split="val", size=64, limit=1)[0]
    extra = extra_of(model, answer=answer)
    assert extra is not None and extra.positions == 1024
    (whole,) = dataclasses.replace(extra, positions=10**6).prepare(sample).conversations
    length = len(extra.vocabulary.encode_with_image(wrap_image(whole.text(extra.style)))) - 1 + extra.image_tokens
    length += answer == "free"  # a word must be said
    fitting = dataclasses.replace(extra, positions=length, max_length=300).prepare(sample)
    assert fitting.conversations == [whole] and not fitting.divided
    divided = dataclasses.replace(extra, positions=length - 1, max_length=300).prepare(sample)
    assert divided.divided and len(divided.conversations) > 1
    assert tuple(phrase for one in divided.conversations for phrase in one.expressions) == sample.phrases
    said = [str(one.rounds[-1][1]) for one in divided.conversations]
    if answer == "given":
        assert ["thing 150:[SEG]" in text for text in said].count(True) == 1 and "".join(said).count("[SEG]") == 1


def test_what_nothing_was_asked_for_stands_behind_all_phrases_of_a_picture() -> None:
    masks = encode_masks(torch.stack([torch.arange(8).reshape(2, 4) == k for k in range(4)]))
    parts = [
        Referral(
            phrases=names,
            masks=[masks[k] for k in slots],
            rejected=torch.tensor([k == 1 for k in slots]),
            scores=torch.tensor(slots) / 4,
            size_hw=(2, 4),
            text=names[0],
        )
        for names, slots in ((("a dog", ""), (0, 1)), (("a cat", ""), (2, 3)))
    ]
    joined = _joined(parts, [False, True, False, True], (2, 4))
    assert joined.phrases == ("a dog", "a cat", "answer 3", "answer 4") and joined.text == "a dog\na cat"
    assert joined.masks == [masks[k] for k in (0, 2, 1, 3)]
    assert joined.rejected.tolist() == [False, False, True, False]
    assert joined.scores.tolist() == [0, 0.5, 0.25, 0.75]


def test_the_published_rules_reach_the_model(model: GSVA) -> None:
    """Every logit is 0, every target is rejected and every absent one is not: the score is known in advance."""
    last = model.sam.mask_decoder.filters[0].layers[-1]
    torch.nn.init.zeros_(last.weight)
    torch.nn.init.zeros_(last.bias)
    source = ScenesSource(task=Task.REFERRING, split="val", size=64, limit=3)
    areas = [int(mask.sum()) for index in range(3) for mask in source[index].target.masks]
    pictures = [source[index].size_hw[0] * source[index].size_hw[1] for index in range(3)]
    whole = [size for index, size in enumerate(pictures) for _ in source[index].phrases]
    assert 0 in areas and len(areas) == len(whole)

    found = evaluate(model, source, batch_size=2).metrics
    assert (found["N_acc"], found["T_acc"]) == (0.0, 0.0)
    # As published a rejected phrase with a target is asked again, and a logit of 0 is then of the object.
    shares = sum(area / size for area, size in zip(areas, whole, strict=True))
    assert found["gIoU"] == pytest.approx(shares / len(areas), abs=1e-5)
    assert found["cIoU"] == pytest.approx(sum(areas) / sum(whole), abs=1e-5)
    found = evaluate(model, source, batch_size=2, protocol="rela").metrics
    assert (found["gIoU"], found["cIoU"]) == (0.0, 0.0)


def test_the_data_set_decides_by_which_rules_it_is_scored(model: GSVA) -> None:
    class RefCOCO(Crowd):
        """One phrase of one target."""

        def __getitem__(self, index: int) -> Sample:
            sample = super().__getitem__(0)
            return dataclasses.replace(sample, phrases=("a",), target=Target(masks=sample.target.masks[150:151]))

    source = RefCOCO(task=Task.REFERRING, split="val", size=64, limit=1)
    source.name = "refcoco/val"
    result = evaluate(model, source)
    assert result.stamp["protocol"].startswith("RES") and "Pr@0.5" in result.metrics
