"""What can be said about a scene: captions, and phrases with one, several or no target.

Every statement is judged with a margin: a relation counts as true only when it clearly holds and as false only when it
clearly does not. A phrase about which any object is in doubt is not used.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

from saccade.data.scenes.words import COLOURS, MATERIALS, NUMBERS, PLURALS, SEMANTIC_CLASSES, SIZES, THING_CLASSES

_FUNCTION_WORDS = (
    *("a", "all", "and", "behind", "beside", "front", "in", "left"),
    *("object", "objects", "of", "on", "right", "the", "with"),
)
_SUPERLATIVES = ("leftmost", "rightmost", "nearest", "farthest", "biggest", "smallest")
_SINGLE_SHARES = (0.55, 0.2, 0.25)  # more than half of the phrases need looks alone; the rest need comparison
_MISSING_SHARES = (0.35, 0.1, 0.1, 0.05, 0.2, 0.2)  # about as often as a phrase with targets has such a form
RELATIONS: tuple[str, ...] = ("left of", "right of", "in front of", "behind")

VOCABULARY: tuple[str, ...] = tuple(
    sorted(
        {
            *_FUNCTION_WORDS,
            *_SUPERLATIVES,
            *NUMBERS[2:],
            *SEMANTIC_CLASSES,
            *PLURALS.values(),
            *COLOURS,
            *SIZES,
            *MATERIALS,
        }
    )
)
"""Every word that captions, phrases and class names can contain, sorted."""

SIDE_MARGIN = 0.07
"""Left and right: the box centres lie at least this share of the picture's width apart."""

DEPTH_MARGIN = 1.08
"""Behind and in front: the mean depths differ at least by this factor."""

EXTREME_MARGIN = 1.06
"""Nearest and farthest: the next object is at least by this factor farther or nearer."""

AREA_MARGIN = 1.3
"""Biggest and smallest: the next visible area differs at least by this factor."""


@dataclass(kw_only=True, frozen=True)
class Thing:
    """What language knows about one object.

    Attributes:
        name: Class name.
        colour: Colour name.
        size: Size name (real size).
        material: Material name.
        ground: Stuff it stands on.
        column: Centre of its visible box as a share of the picture's width.
        distance_m: Mean depth of its visible pixels.
        area: Visible pixels.
    """

    name: str
    colour: str
    size: str
    material: str
    ground: str
    column: float
    distance_m: float
    area: int


@dataclass(kw_only=True, frozen=True)
class Phrase:
    """A referring expression and the objects that it describes.

    Attributes:
        text: The expression.
        targets: Indices of the objects, ascending; empty when nothing in the scene is meant.
    """

    text: str
    targets: tuple[int, ...]


def relation(word: str, one: Thing, other: Thing) -> bool | None:
    """Whether ``one`` stands ``left of``, ``right of``, ``in front of`` or ``behind`` the other; None = in doubt."""
    if word in ("left of", "right of"):
        gap = other.column - one.column if word == "left of" else one.column - other.column
        return True if gap >= SIDE_MARGIN else False if gap <= 0 else None
    near, far = (one, other) if word == "in front of" else (other, one)
    ratio = far.distance_m / near.distance_m
    return True if ratio >= DEPTH_MARGIN else False if ratio <= 1 else None


def captions(things: Sequence[Thing]) -> tuple[str, str, str, str, str]:
    """Five sentences about the two or three objects that fill most of the picture.

    Args:
        things: All objects, the one with the greatest visible area first; at least two.
    """
    one, two = things[0], things[1]
    third = things[2] if len(things) > 2 else None
    where = _caption_relation(one, two)
    ground = one.ground
    first, second = f"{one.colour} {one.name}", f"{two.colour} {two.name}"
    last = (
        f"a {first} and a {second} and a {third.colour} {third.name} on the {ground}"
        if third
        else f"a {one.material} {first} and a {two.material} {second} on the {ground}"
    )
    return (
        f"a {one.size} {first} {where} a {two.size} {second} on the {ground}",
        f"a {first} {where} a {second} on the {ground}",
        f"a {one.size} {first} on the {ground} with a {two.size} {second}",
        f"{NUMBERS[len(things)]} objects on the {ground} with a {first} {where} a {second}",
        last,
    )


def description(things: Sequence[Thing]) -> tuple[Phrase, ...]:
    """Every object by all of its looks, from left to right.

    Args:
        things: All objects.
    """
    ordered = sorted(range(len(things)), key=lambda index: things[index].column)
    texts = [f"the {thing.size} {thing.material} {thing.colour} {thing.name}" for thing in things]
    return tuple(Phrase(text=texts[index], targets=(index,)) for index in ordered)


def _caption_relation(one: Thing, two: Thing) -> str:
    gap = two.column - one.column
    if abs(gap) >= 0.12:
        return "left of" if gap > 0 else "right of"
    for word in ("in front of", "behind"):
        if relation(word, one, two):
            return word
    return "beside"


def single_phrases(things: Sequence[Thing]) -> tuple[list[Phrase], list[Phrase], list[Phrase]]:
    """Every expression that describes exactly one object: by its looks, by a superlative, by a relation."""
    looks = _members(things, _looks)
    plain = [Phrase(text=f"the {text}", targets=(found[0],)) for text, found in looks.items() if len(found) == 1]
    extreme: list[Phrase] = []
    for noun, members in _groups(things):
        if len(members) < 2:
            continue
        for word in _SUPERLATIVES:
            best = _extreme(word, things, members)
            if best is not None:
                extreme.append(Phrase(text=f"the {word} {noun}", targets=(best,)))
    related = [
        Phrase(text=f"the {noun} {where}", targets=found)
        for noun, where, found in _related(things, _anchors(things, looks))
        if len(found) == 1
    ]
    return plain, extreme, related


def several_phrases(things: Sequence[Thing]) -> list[Phrase]:
    """Every expression that describes two or more objects."""
    looks, groups = _members(things, _looks), _members(things, _kinds)
    found = [Phrase(text=f"all {_plural(text)}", targets=tuple(all_)) for text, all_ in groups.items() if len(all_) > 1]
    anchors = _anchors(things, looks)
    found += [
        Phrase(text=f"the {one} and the {two}", targets=(min(i, j), max(i, j)))
        for i, one in anchors
        for j, two in anchors
        if i != j
    ]
    found += [
        Phrase(text=f"all {_plural(noun)} {where}", targets=targets)
        for noun, where, targets in _related(things, anchors)
        if len(targets) > 1
    ]
    return found


def missing_phrases(things: Sequence[Thing]) -> tuple[list[Phrase], ...]:
    """Expressions that describe nothing in the scene, though most of their words fit something in it.

    They have every form of those that describe something, with a word exchanged or a relation that does not hold: who
    wants to know whether there is such an object has to look at the picture, for the form does not tell.

    Returns:
        By looks; by a superlative; by a relation that does not hold; by a relation of what is not there; all of a kind;
        two objects.
    """
    looks, groups, nouns = _members(things, _looks), _members(things, _kinds), dict(_groups(things))
    anchors = _anchors(things, looks)
    related = list(_related(things, anchors))
    absent = _exchanged(nouns, nouns)
    pairs = _exchanged([text for _, text in anchors], looks)
    texts = (
        [f"the {text}" for text in _exchanged([text for text, all_ in looks.items() if len(all_) == 1], looks)],
        [f"the {word} {noun}" for word in _SUPERLATIVES for noun in absent],
        [f"the {noun} {where}" for noun, where, found in related if not found],
        [f"the {noun} {where}" for where in dict.fromkeys(where for _, where, _ in related) for noun in absent],
        [
            f"all {_plural(text)}"
            for text in _exchanged([text for text, all_ in groups.items() if len(all_) > 1], groups)
        ],
        [f"the {one} and the {two}" for one, two in zip(pairs, pairs[len(pairs) // 2 :], strict=False)],
    )
    return tuple([Phrase(text=text, targets=()) for text in kind] for kind in texts)


def _members(things: Sequence[Thing], describe: Callable[[Thing], tuple[str, ...]]) -> dict[str, list[int]]:
    """Every description of every object, and the objects that it fits."""
    found: dict[str, list[int]] = {}
    for index, thing in enumerate(things):
        for text in describe(thing):
            found.setdefault(text, []).append(index)
    return found


def _exchanged(texts: Iterable[str], present: Container[str]) -> list[str]:
    """The descriptions with one word exchanged for another of its kind, where nothing present fits them then."""
    changed = {
        " ".join((*words[:place], other, *words[place + 1 :])): None
        for words in (text.split() for text in texts)
        for place, word in enumerate(words)
        for kind in (THING_CLASSES, tuple(COLOURS), tuple(SIZES), MATERIALS)
        if word in kind
        for other in kind
    }
    return [text for text in changed if text not in present]


def _looks(thing: Thing) -> tuple[str, ...]:
    """Descriptions of one object, without the article."""
    return (
        thing.name,
        f"{thing.colour} {thing.name}",
        f"{thing.size} {thing.name}",
        f"{thing.size} {thing.colour} {thing.name}",
        f"{thing.material} {thing.name}",
        f"{thing.material} {thing.colour} {thing.name}",
        f"{thing.colour} object",
    )


def _kinds(thing: Thing) -> tuple[str, ...]:
    """Descriptions of the kinds that one object belongs to, in the singular."""
    return (
        thing.name,
        f"{thing.colour} {thing.name}",
        f"{thing.material} {thing.name}",
        f"{thing.size} {thing.name}",
        f"{thing.colour} object",
        f"{thing.material} object",
    )


def _groups(things: Sequence[Thing]) -> Iterator[tuple[str, list[int]]]:
    """Nouns and the objects that they cover: everything, each class, each colour."""
    yield "object", list(range(len(things)))
    for name in dict.fromkeys(thing.name for thing in things):
        yield name, [k for k, thing in enumerate(things) if thing.name == name]
    for colour in dict.fromkeys(thing.colour for thing in things):
        yield f"{colour} object", [k for k, thing in enumerate(things) if thing.colour == colour]


def _plural(noun: str) -> str:
    *colour, head = noun.split()
    return " ".join([*colour, PLURALS.get(head, "objects")])


def _extreme(word: str, things: Sequence[Thing], members: list[int]) -> int | None:
    """The member that a superlative singles out by a clear margin."""
    if word in ("leftmost", "rightmost"):
        sign = 1 if word == "leftmost" else -1
        ranked = sorted(members, key=lambda k: sign * things[k].column)
        return ranked[0] if sign * (things[ranked[1]].column - things[ranked[0]].column) >= SIDE_MARGIN else None
    if word in ("nearest", "farthest"):
        ranked = sorted(members, key=lambda k: things[k].distance_m, reverse=word == "farthest")
        one, two = things[ranked[0]].distance_m, things[ranked[1]].distance_m
        return ranked[0] if max(one, two) >= EXTREME_MARGIN * min(one, two) else None
    ranked = sorted(members, key=lambda k: things[k].area, reverse=word == "biggest")
    first, second = things[ranked[0]].area, things[ranked[1]].area
    if max(first, second) < AREA_MARGIN * min(first, second):
        return None
    # The real sizes must not contradict the picture.
    order = tuple(SIZES)
    real = [order.index(things[k].size) for k in ranked]
    agrees = real[0] >= max(real) if word == "biggest" else real[0] <= min(real)
    return ranked[0] if agrees else None


def _anchors(things: Sequence[Thing], looks: dict[str, list[int]]) -> list[tuple[int, str]]:
    """Objects that colour and class single out, with that description."""
    found = []
    for index, thing in enumerate(things):
        text = f"{thing.colour} {thing.name}"
        if len(looks[text]) == 1:
            found.append((index, text))
    return found


def _related(things: Sequence[Thing], anchors: list[tuple[int, str]]) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    """Noun, relation to an anchor, and the objects it is true of, where no member of the noun is in doubt."""
    groups = list(_groups(things))
    for anchor, text in anchors:
        for word in RELATIONS:
            truth = [k != anchor and relation(word, thing, things[anchor]) for k, thing in enumerate(things)]
            for noun, members in groups:
                if members == [anchor] or any(truth[k] is None for k in members):
                    continue
                yield noun, f"{word} the {text}", tuple(k for k in members if truth[k])


def choose_phrases(things: Sequence[Thing], units: Sequence[float]) -> tuple[Phrase, ...]:
    """Up to seven phrases: three with one target, two with several, two with none; the first is for grounding.

    Args:
        things: All objects.
        units: At least seven numbers in [0, 1) that decide.
    """
    chosen: list[Phrase] = []
    kinds = single_phrases(things)
    for unit in units[:3]:
        kind, share = _divide(unit, _SINGLE_SHARES)
        _add(chosen, kinds[kind] or kinds[0], share)
    several, missing = several_phrases(things), missing_phrases(things)
    for unit in units[3:5]:
        _add(chosen, several, unit)
    for unit in units[5:7]:
        kind, share = _divide(unit, _MISSING_SHARES)
        _add(chosen, missing[kind] or missing[0], share)
    return tuple(chosen)


def _divide(unit: float, shares: tuple[float, ...]) -> tuple[int, float]:
    """The part of [0, 1) that a number falls in, and where it lies in that part."""
    begin = 0.0
    for index, end in enumerate(accumulate(shares)):
        if unit < end or index == len(shares) - 1:
            return index, (unit - begin) / (end - begin)
        begin = end
    raise AssertionError("a division has parts")


def _add(chosen: list[Phrase], options: list[Phrase], unit: float) -> None:
    taken = {phrase.text for phrase in chosen}
    fresh = [phrase for phrase in options if phrase.text not in taken]
    if fresh:
        chosen.append(fresh[min(int(unit * len(fresh)), len(fresh) - 1)])
