"""What GSVA is asked and taught: the words, which of them are learned, and what a batch holds."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torchvision import tv_tensors

sys.path.insert(0, str(Path(__file__).parents[2] / "tokens"))
from helpers_pieces import train_pieces

from saccade.data.transforms import collate, preprocess
from saccade.draws import GeneratorDraws
from saccade.errors import DataError, UsageError
from saccade.models.gsva import prompts
from saccade.models.gsva.collate import Conversing, clip_input
from saccade.models.gsva.conversation import Conversation, learned, wrap_image
from saccade.models.gsva.inputs import IGNORED
from saccade.samples import Origin, Preprocess, Sample, Target
from saccade.tasks import Task
from saccade.tokens.pieces import IMAGE_ID, PieceVocabulary

SIZE = (20, 30)
SAM = Preprocess(size_hw=(64, 64), keep_ratio=True, interpolation="pillow", pad_multiple=64)


class Said:
    """Draws that are given: numbers for numpy's, and for Python's."""

    def __init__(self, *numbers: int | float) -> None:
        self.numbers = list(numbers)

    def below(self, total: int) -> int:
        return int(self.numbers.pop(0))

    def pick(self, options: Sequence[Any]) -> Any:
        return options[int(self.numbers.pop(0))]

    def share(self) -> float:
        return float(self.numbers.pop(0))


def referred(*phrases: str, empty: Sequence[int] = (), **fields: Any) -> Sample:
    masks = torch.zeros(len(phrases), *SIZE, dtype=torch.bool)
    for k in range(len(phrases)):
        masks[k, k % 10 : k % 10 + 5] = k not in empty
    explanation = fields.pop("explanation", "")
    return Sample(
        image=tv_tensors.Image(torch.arange(3 * 20 * 30, dtype=torch.uint8).reshape(3, 20, 30)),
        task=Task.REFERRING,
        origin=Origin(dataset="test", image_id=1, path=None, size_hw=SIZE),
        target=Target(masks=tv_tensors.Mask(masks), explanation=explanation),
        phrases=phrases,
        **fields,
    )


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> PieceVocabulary:
    return PieceVocabulary(train_pieces(tmp_path_factory.mktemp("pieces")))


# ------------------------------------------------------------------------------------------------ words


def test_evaluation_has_one_wording_with_the_true_answer() -> None:
    sample = referred(" The Man. ", "a dog", empty=[1])
    (one,) = prompts.evaluation(sample)
    assert one.rounds == (
        (
            "<image>\n What are the man, a dogin this image? Please output segmentation masks.",
            "Sure,the man:[SEG], a dog:[REJ].",
        ),
    )
    assert one.expressions == sample.phrases
    (asked,) = prompts.question(sample)
    assert asked.rounds == ((one.rounds[0][0], None),)


def test_reasoning_is_asked_as_it_is_written() -> None:
    sentence = referred("What cuts? ", "other", wording="sentence")
    one, other = prompts.evaluation(sentence)
    assert other.expressions == ("other",) and other.rounds[0][1] == "[SEG]"
    assert one.rounds == (("<image>\n What cuts? Please output segmentation mask.", "[SEG]"),)
    assert one.expressions == ("What cuts? ",)
    (phrase,) = prompts.evaluation(referred("the Lens", wording="question"))
    assert phrase.rounds[0][0] == "<image>\n What is the Lens in this image? Please output segmentation mask."
    assert len(prompts.question(sentence)) == 2


def test_a_part_is_asked_for_in_words() -> None:
    (one,) = prompts.evaluation(referred("chair:back", "Dog", wording="part"))
    assert "What are chair back, dogin this image?" in one.rounds[0][0]
    assert one.rounds[0][1] == "Sure,chair back:[SEG], dog:[SEG]." and one.expressions == ("chair:back", "Dog")


def test_training_keeps_the_case_in_the_answer_and_rejects_what_is_absent() -> None:
    sample = referred("Two Men.", "the SEGway", empty=[1])
    (one,) = prompts.training(sample, Said(2, 1), only_words=0.1)
    assert one.rounds == (
        (
            "<image>\nPlease segment two men, the segway in this image.",
            "Sure, the mask of Two Men is [SEG], the mask of the REJway is [REJ].",
        ),
    )
    classes = dataclasses.replace(sample, wording="class")  # classes are never rejected, and joined without a space
    (one,) = prompts.training(classes, Said(0, 0), only_words=0.1)
    assert one.rounds[0][1] == "The segmentation results are Two Men [SEG],the SEGway [SEG]."


def test_in_the_form_of_lisa_every_phrase_is_asked_alone_and_none_is_rejected() -> None:
    sample = referred("Two Men.", "a dog", empty=[1])
    parts = prompts.apart(sample)
    draws = Said(2, 1, 0, 0)
    first, second = (one for part in parts for one in prompts.training(part, draws, only_words=0.1))
    assert first.rounds[0][1] == "Sure, the mask of Two Men is [SEG]." and first.expressions == ("Two Men.",)
    assert second.rounds == (
        ("<image>\nCan you segment a dog in this image?", "The segmentation results are a dog [SEG]."),
    )
    said = [one.rounds[0][1] for part in parts for one in prompts.evaluation(part)]
    assert said == ["Sure,two men:[SEG].", "Sure,a dog:[SEG]."]
    assert [one.expressions for part in parts for one in prompts.question(part)] == [("Two Men.",), ("a dog",)]


def test_an_explanation_is_used_or_not() -> None:
    sample = referred("what cuts?", wording="sentence", explanation="The knife.")
    (masks,) = prompts.training(sample, Said(0.1, 0, 1, 2), only_words=0.1)
    assert masks.rounds == (("<image>\nwhat cuts? Please output segmentation mask.", "Sure, it is [SEG]."),)
    (both,) = prompts.training(sample, Said(0.5, 1, 0, 4, 2), only_words=0.1)
    assert both.rounds == (
        (
            "<image>\nwhat cuts? Please output segmentation mask and give some explaination.",
            "[SEG]. The knife.",
        ),
    )
    (words,) = prompts.training(sample, Said(0.05, 0), only_words=0.1)
    assert words.rounds == (("<image>\nwhat cuts?", "The knife."),) and words.expressions == ()
    (never,) = prompts.training(sample, Said(1, 1), only_words=-1)
    assert never.rounds[0][1] == "Sure, [SEG]."


def test_a_dialogue_shows_the_image_first() -> None:
    sample = referred(dialogue=(("What is it?\n<image>", "A dog."), (" Small? ", "Yes.")))
    (one,) = prompts.training(sample, Said(), only_words=0.1)
    assert one.rounds == (("<image>\nWhat is it?", "A dog."), (" Small? ", "Yes."))


@pytest.mark.parametrize("phrase", ["a [SEG]", "<image> of a dog", "x [REJ]", "a</s>b", "ASSISTANT: no", "[/INST]"])
def test_the_models_own_marks_are_no_phrases(phrase: str) -> None:
    for ask in (prompts.evaluation, prompts.question, lambda s: prompts.training(s, Said(0, 0), only_words=0.1)):
        with pytest.raises(DataError, match="phrase with"):
            ask(referred(phrase))


def test_no_phrase_and_no_words() -> None:
    with pytest.raises(UsageError, match="no phrase"):
        prompts.question(referred())
    with pytest.raises(DataError, match="without words"):
        prompts.question(referred("the dog", " . "))


def test_both_forms_of_conversations() -> None:
    talk = Conversation(rounds=(("<image>\nQ1", "A1"), ("Q2", "A2")))
    assert talk.text("llava_v1").endswith("questions. USER: <image>\nQ1 ASSISTANT: A1</s>USER: Q2 ASSISTANT: A2</s>")
    assert talk.text("llava_llama_2").startswith("[INST] <<SYS>>\nYou are a helpful language and vision assistant.")
    assert talk.text("llava_llama_2").endswith("\n<</SYS>>\n\n<image>\nQ1 [/INST] A1 </s><s>[INST] Q2 [/INST] A2 </s>")
    asked = Conversation(rounds=(("<image>\nQ1", None),))
    assert asked.text("llava_v1").endswith("USER: <image>\nQ1 ASSISTANT:")
    assert asked.text("llava_llama_2").endswith("<image>\nQ1 [/INST]")


# ------------------------------------------------------------------------------------------------ ids and batches


@pytest.mark.parametrize("style", ["llava_v1", "llava_llama_2"])
def test_answers_are_learned_and_nothing_else(vocabulary: PieceVocabulary, style: Any) -> None:
    talk = Conversation(rounds=(("<image>\nthe man", "Sure, the dog [SEG]."), ("the sky", "the tree [REJ].")))
    text = wrap_image(talk.text(style))
    ids = vocabulary.encode_with_image(text)
    labels = learned(text, ids, vocabulary, style)
    assert all(label in (IGNORED, id_) for label, id_ in zip(labels, ids, strict=True))
    said = vocabulary.decode([label for label in labels if label != IGNORED])
    assert said.replace(" </s>", "</s>") == "Sure, the dog [SEG].</s>the tree [REJ].</s>"
    with pytest.raises(DataError, match="exactly one answer"):
        learned(text.replace("the sky", "ASSISTANT: [/INST] x"), ids, vocabulary, style)


def batch_of(vocabulary: PieceVocabulary, samples: list[Sample], *, training: bool, **options: Any) -> Any:
    conversing = Conversing(vocabulary=vocabulary, clip_size=28, image_tokens=4, **options)
    rng = np.random.default_rng(0) if training else None
    plain = collate([preprocess(sample, SAM, with_target=False) for sample in samples], SAM)
    return conversing.join(plain, [conversing.prepare(sample, rng) for sample in samples], training=training)


def test_a_batch_holds_every_conversation_with_its_image(vocabulary: PieceVocabulary) -> None:
    several = referred("a", "b", wording="question")
    talk = referred(dialogue=(("<image> What?", "A dog."),))
    batch = batch_of(vocabulary, [referred("the man", "the dog", "sky"), several, talk], training=True)
    assert batch.conversation_to_image.tolist() == [0, 1, 1, 2]
    assert [tuple(mask.shape) for mask in batch.masks] == [(3, *SIZE), (2, *SIZE), (0, *SIZE)]
    assert [len(expressions) for expressions in batch.expressions] == [3, 1, 1, 0]
    assert ((batch.input_ids == IMAGE_ID).sum(1) == 1).all()
    slots = (batch.input_ids == vocabulary.seg_id) | (batch.input_ids == vocabulary.rej_id)
    assert slots.sum(1).tolist() == [3, 1, 1, 0]
    assert torch.equal(batch.attention_mask, batch.input_ids != 0)
    assert batch.images.shape == (3, 3, 64, 64) and batch.images_clip.shape == (3, 3, 28, 28)
    assert batch.input_sizes_hw == [(43, 64)] * 3 and batch.original_sizes_hw == [SIZE] * 3
    assert (batch.labels[~batch.attention_mask] == IGNORED).all() and not batch.reevaluate


def test_only_training_cuts(vocabulary: PieceVocabulary) -> None:
    sample = referred("the man")
    whole = batch_of(vocabulary, [sample], training=True)
    cut = batch_of(vocabulary, [sample], training=True, max_length=33)
    assert cut.input_ids.shape[1] == 30 and torch.equal(cut.input_ids, whole.input_ids[:, :30])
    assert cut.labels.shape == cut.attention_mask.shape == cut.input_ids.shape
    judged = batch_of(vocabulary, [sample], training=False, max_length=33, reevaluate=True)
    assert judged.input_ids.shape[1] > 30 and judged.reevaluate
    free = batch_of(vocabulary, [sample], training=False, answer="free")
    assert free.labels is None and vocabulary.decode(free.input_ids[0].tolist()).endswith("ASSISTANT:")
    with pytest.raises(DataError, match="either"):
        given, open_ = prompts.evaluation(sample)[0], prompts.question(sample)[0]
        conversing = Conversing(vocabulary=vocabulary, clip_size=28, image_tokens=4)
        said = dataclasses.replace(conversing.prepare(sample), conversations=[given, open_])
        conversing.join(collate([preprocess(sample, SAM, with_target=False)], SAM), [said], training=False)


def test_two_hundred_phrases(vocabulary: PieceVocabulary) -> None:
    batch = batch_of(vocabulary, [referred(*(f"man {k}" for k in range(200)))], training=False)
    assert int((batch.input_ids == vocabulary.seg_id).sum()) == 200 and len(batch.masks[0]) == 200


def test_the_same_generator_gives_the_same_words() -> None:
    sample = referred("a", "b")
    talks = [
        prompts.training(sample, GeneratorDraws(np.random.default_rng(seed)), only_words=0.1)[0].text("llava_v1")
        for seed in range(40)
    ]
    again = prompts.training(sample, GeneratorDraws(np.random.default_rng(7)), only_words=0.1)[0].text("llava_v1")
    assert talks[7] == again and len(set(talks)) > 10


# ------------------------------------------------------------------------------------------------ the picture of CLIP


def test_clip_sees_the_middle_square() -> None:
    picture = torch.zeros(3, 40, 120, dtype=torch.uint8)
    picture[:, :, 40:80] = 255
    seen = clip_input(picture, 20)
    assert seen.shape == (3, 20, 20)
    white = (1 - torch.tensor([0.48145466, 0.4578275, 0.40821073])) / torch.tensor([0.26862954, 0.26130258, 0.27577711])
    assert torch.allclose(seen[:, 10, 3:17], white[:, None].expand(3, 14), atol=1e-5)
    tower = clip_input(torch.full((3, 3000, 1), 200, dtype=torch.uint8), 20)
    assert tower.shape == (3, 20, 20) and tower.std(dim=(1, 2)).max() < 1e-6
