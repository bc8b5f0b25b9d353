"""``key=value`` words over a configuration tree."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from saccade.cli.overrides import leaves, override, split_words
from saccade.errors import ConfigError, UsageError


class Kind(StrEnum):
    BOX = "box-like"
    MASK = "mask-like"


@dataclass(kw_only=True)
class Rates:
    """Rates.

    Attributes:
        floor: The least.
    """

    floor: float = 0.1


@dataclass(kw_only=True, frozen=True)
class Flip:
    """Flip.

    Attributes:
        probability: How often.
    """

    probability: float = 0.5


@dataclass(kw_only=True, frozen=True)
class Crop:
    """Crop.

    Attributes:
        sides: Side lengths.
    """

    sides: tuple[int, int] = (3, 4)


@dataclass(kw_only=True)
class Part:
    """A part.

    Attributes:
        kind: What it is.
        names: Words.
        augment: One of two, or none.
    """

    kind: Kind = Kind.BOX
    names: tuple[str, ...] = ()
    augment: Flip | Crop | None = None


@dataclass(kw_only=True)
class Tree:
    """A tree.

    Attributes:
        name: A name.
        parts: The parts.
        none_yet: No parts.
        rates: The rates, or none.
        betas: Two numbers.
        mode: A choice.
        fast: A switch.
        least: May be negative.
        seed: A number, or none.
    """

    name: str
    parts: tuple[Part, ...]
    none_yet: tuple[Part, ...] = ()
    rates: Rates | None = None
    betas: tuple[float, float] = (0.9, 0.999)
    mode: Literal["auto", "never"] = "auto"
    fast: bool = False
    least: float = 0.0
    seed: int | None = None
    more: Rates = field(default_factory=Rates)


def tree() -> Tree:
    return Tree(name="n", parts=(Part(augment=Flip()), Part(names=("traffic, light", "cat"), augment=Crop())))


def test_every_kind_of_leaf_can_be_set() -> None:
    changed = override(
        tree(),
        {
            "name": "a=b c",
            "parts.1.kind": "mask-like",
            "parts.0.names": "cat, red dog",
            "parts.0.augment.probability": "1",
            "parts.1.augment.sides": "5,6",
            "rates.floor": "0.3",
            "betas": "0.8,0.9",
            "mode": "never",
            "fast": "true",
            "least": "-2e-3",
            "seed": "7",
            "more.floor": "1e-4",
        },
    )
    assert changed == Tree(
        name="a=b c",
        parts=(
            Part(names=("cat", "red dog"), augment=Flip(probability=1.0)),
            Part(kind=Kind.MASK, names=("traffic, light", "cat"), augment=Crop(sides=(5, 6))),
        ),
        rates=Rates(floor=0.3),
        betas=(0.8, 0.9),
        mode="never",
        fast=True,
        least=-0.002,
        seed=7,
        more=Rates(floor=1e-4),
    )


def test_the_tree_itself_is_not_changed() -> None:
    config = tree()
    override(config, {"rates.floor": "0.3", "parts.0.names": "x", "more.floor": "9"})
    assert config == tree()


def test_none_removes_and_the_empty_text_empties() -> None:
    changed = override(tree(), {"parts.0.augment": "none", "seed": "none", "parts.1.names": "", "name": ""})
    assert changed.parts[0].augment is None
    assert changed.seed is None
    assert changed.parts[1].names == ()
    assert changed.name == ""


def test_what_is_printed_can_be_read_back() -> None:
    config = override(tree(), {"rates.floor": "0.25", "least": "-1.5", "fast": "true"})
    assert leaves(config)["parts.1.names"] == '["traffic, light", "cat"]'
    assert override(tree(), leaves(config)) == config


@settings(deadline=None)
@given(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\x00"), min_size=1)))
def test_any_list_of_words_survives(names: list[str]) -> None:
    kept = tuple(name for name in names if name == name.strip())
    config = Tree(name=names[0] if names else "", parts=(Part(names=kept),))
    assert override(Tree(name="n", parts=(Part(),)), leaves(config)) == config


@pytest.mark.parametrize(
    ("key", "text", "message"),
    [
        ("moode", "never", "did you mean 'mode'?"),
        ("more.flor", "1", "did you mean 'more.floor'?"),
        ("rates.flor", "1", "did you mean 'rates.floor'?"),
        ("parts.0.augment.sides", "1,2", "unknown configuration key 'parts.0.augment.sides'"),
        ("parts.2.kind", "box-like", "its items are parts.0 to parts.1"),
        ("none_yet.0.kind", "box-like", "none_yet is a list; it is empty"),
        ("name.x", "1", "unknown configuration key 'name.x'"),
        ("mode", "nevr", "auto or never"),
        ("parts.0.kind", "box", "box-like or mask-like"),
        ("least", "low", "it takes a number"),
        ("seed", "1.5", "a whole number or none"),
        ("betas", "0.9", "2 values written with commas, each a number"),
        ("fast", "perhaps", "true or false"),
        ("fast", "none", "true or false"),
        ("parts.0.names", "[x", "not a JSON list"),
        ("more", "1", "more is a group"),
        ("parts", "1", "parts is a list of groups"),
        ("none_yet", "1", "none_yet is a list of groups"),
    ],
)
def test_what_does_not_fit_is_explained(key: str, text: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        override(tree(), {key: text})
    assert message in str(caught.value)
    printed = capsys.readouterr()
    assert printed.out + printed.err == ""  # the error says it all


def test_the_wrong_one_of_several_is_named() -> None:
    with pytest.raises(ConfigError, match="'low' does not fit least"):
        override(tree(), {"fast": "true", "least": "low", "name": "x"})


def test_words_have_the_form_key_value() -> None:
    assert split_words(["a.b=1", "c=x=y", "d="]) == {"a.b": "1", "c": "x=y", "d": ""}
    with pytest.raises(UsageError, match="'steps' is not of the form key=value"):
        split_words(["steps"])
    with pytest.raises(UsageError, match="given twice"):
        split_words(["a=1", "a=2"])


@dataclass(kw_only=True)
class Even:
    """Two numbers that must be equal.

    Attributes:
        left: One.
        right: The other.
    """

    left: int = 1
    right: int = 1

    def __post_init__(self) -> None:
        if self.left != self.right:
            raise ConfigError("left and right differ")


def test_values_that_belong_together_are_set_together() -> None:
    assert override(Even(), {"left": "2", "right": "2"}) == Even(left=2, right=2)
    with pytest.raises(ConfigError, match="left and right differ"):
        override(Even(), {"left": "2"})
