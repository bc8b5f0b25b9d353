"""What is said about a scene is true of it."""

from __future__ import annotations

import re

from helpers_scenes import RELATIONS, Reader
from hypothesis import given, settings
from hypothesis import strategies as st

from saccade.data.scenes import (
    COLOURS,
    MATERIALS,
    SEMANTIC_CLASSES,
    SIZES,
    THING_CLASSES,
    VOCABULARY,
    Scene,
    draw_scene,
)
from saccade.data.scenes.language import (
    DEPTH_MARGIN,
    SIDE_MARGIN,
    Thing,
    captions,
    missing_phrases,
    relation,
    several_phrases,
    single_phrases,
)
from saccade.data.scenes.words import PLURALS

KINDS = {
    "class": {*THING_CLASSES, *PLURALS.values()},
    "colour": {*COLOURS},
    "size": {*SIZES},
    "material": {*MATERIALS},
    "superlative": {"leftmost", "rightmost", "nearest", "farthest", "biggest", "smallest"},
    "side": {"left", "right"},
}
scenes = st.builds(draw_scene, st.integers(0, 2**40), st.sampled_from([(64, 64), (128, 128), (224, 160)]))
many = settings(max_examples=80, deadline=None, derandomize=True)


@many
@given(scenes)
def test_a_phrase_describes_exactly_its_targets(scene: Scene) -> None:
    reader = Reader(scene)
    for phrase in scene.phrases:
        assert reader.meaning(phrase.text) == set(phrase.targets), phrase.text
        assert list(phrase.targets) == sorted(phrase.targets)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(scenes)
def test_every_phrase_that_could_be_chosen_describes_exactly_its_targets(scene: Scene) -> None:
    reader = Reader(scene)
    for kind in single_phrases(scene.things):
        for phrase in kind:
            assert len(phrase.targets) == 1
            assert reader.meaning(phrase.text) == set(phrase.targets), phrase.text
    for phrase in several_phrases(scene.things):
        assert len(phrase.targets) > 1
        assert reader.meaning(phrase.text) == set(phrase.targets), phrase.text
    for kind in missing_phrases(scene.things):
        for phrase in kind:
            assert phrase.targets == ()
            assert not reader.meaning(phrase.text), phrase.text


@many
@given(scenes)
def test_phrases_of_every_number_of_targets(scene: Scene) -> None:
    numbers = [min(len(phrase.targets), 2) for phrase in scene.phrases]
    assert numbers[0] == 1
    assert set(numbers) == {0, 1, 2}
    texts = [phrase.text for phrase in scene.phrases]
    assert len(set(texts)) == len(texts)
    assert all(len(text.split()) <= 12 for text in texts)


@many
@given(scenes)
def test_relations_hold_with_a_margin(scene: Scene) -> None:
    reader = Reader(scene)
    width = scene.size_hw[1]
    for i, one in enumerate(scene.things):
        for j, other in enumerate(scene.things):
            if i == j:
                continue
            for word in RELATIONS:
                told = relation(word, one, other)
                if told is None:
                    continue
                assert told == reader.holds(word, i, j)
                if told and word in ("left of", "right of"):
                    assert abs(reader.columns[i] - reader.columns[j]) >= (SIDE_MARGIN - 1e-6) * width
                elif told:
                    near, far = sorted((reader.depths[i], reader.depths[j]))
                    assert far / near >= DEPTH_MARGIN - 1e-4


def thing(**changes: object) -> Thing:
    values = {
        "name": "ball", "colour": "red", "size": "big", "material": "matte", "ground": "grass",
        "column": 0.5, "distance_m": 5.0, "area": 900,
    }  # fmt: skip
    return Thing(**{**values, **changes})  # type: ignore[arg-type]


def test_close_calls_are_not_called() -> None:
    here, beside, far = thing(column=0.5), thing(column=0.52), thing(column=0.9, distance_m=9.0)
    assert relation("left of", here, beside) is None
    assert relation("left of", beside, here) is False
    assert relation("left of", here, far) is True
    assert relation("behind", here, thing(distance_m=4.8)) is None
    assert relation("behind", far, here) is True
    assert relation("in front of", far, here) is False


def test_a_superlative_needs_a_clear_margin() -> None:
    twins = [thing(column=0.2, area=1000), thing(column=0.24, area=990, colour="blue")]
    assert not [phrase for phrase in single_phrases(twins)[1] if phrase.text.split()[1] in ("leftmost", "biggest")]
    # Large in the picture but small in the world: neither the biggest nor the smallest.
    near = [thing(column=0.2, area=3000, size="small", distance_m=3.0), thing(column=0.8, area=900, colour="blue")]
    texts = {phrase.text for phrase in single_phrases(near)[1]}
    assert "the nearest ball" in texts
    assert "the biggest ball" not in texts
    assert "the smallest ball" not in texts


@many
@given(scenes)
def test_captions_are_true_and_regular(scene: Scene) -> None:
    reader = Reader(scene)
    assert len(scene.captions) == 5
    numbers = ("zero", "one", "two", "three", "four", "five", "six", "seven")
    for caption in scene.captions:
        assert len(caption.split()) <= 18
        ground = re.search(r"on the (\w+)", caption)
        assert ground is not None
        assert ground[1] == scene.stands_on[0]
        # The objects that are named, in order, are those that fill most of the picture.
        named = re.findall(r"\ba ((?:\w+ )*?\w+)(?= (?:left|right|in|behind|beside|on|and|with)\b|$)", caption)
        assert len(named) in (2, 3), caption
        for k, words in enumerate(named):
            assert k in reader.matches(words.split()), caption
        for word in RELATIONS:
            if f" {word} " in caption:
                assert reader.holds(word, 0, 1), caption
        if " objects " in caption:
            assert caption.startswith(numbers[len(scene)] + " objects")


def test_the_vocabulary_is_what_is_said() -> None:
    said = {word for name in SEMANTIC_CLASSES for word in name.split()}
    for k in range(500):
        scene = draw_scene((6, k), (64, 64))
        for text in (*scene.captions, *(phrase.text for phrase in scene.phrases)):
            said |= set(text.split())
    # Two objects side by side in neither direction are rare.
    said |= set(" ".join(captions([thing(), thing(column=0.55)])).split())
    assert said == set(VOCABULARY)
    assert list(VOCABULARY) == sorted(set(VOCABULARY))
    assert all(word.isalpha() and word.islower() for word in VOCABULARY)


def test_the_form_of_a_phrase_does_not_tell_whether_anything_is_meant() -> None:
    counts: dict[str, list[int]] = {}
    for seed in range(400):
        for phrase in draw_scene(seed, (64, 64)).phrases:
            words = [next((kind for kind, of in KINDS.items() if word in of), word) for word in phrase.text.split()]
            counts.setdefault(" ".join(words), [0, 0])[bool(phrase.targets)] += 1
    total = [sum(count[k] for count in counts.values()) for k in (0, 1)]
    guessed = sum(max(count) for count in counts.values()) / sum(total)
    assert max(total) / sum(total) < 0.73
    assert guessed < 0.77, "who only reads must not be much better than who says 'there is' of everything"
