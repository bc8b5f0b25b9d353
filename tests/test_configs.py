"""Configuration trees to plain data and back."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal

import pytest

from saccade.configs import differences, from_dict, to_dict
from saccade.errors import ConfigError


class Colour(StrEnum):
    RED = "red"
    BLUE = "blue"


@dataclass(kw_only=True)
class Flip:
    probability: float = 0.5


@dataclass(kw_only=True)
class Crop:
    size: tuple[int, int] = (4, 4)


@dataclass(kw_only=True)
class Leaf:
    colour: Colour = Colour.RED
    mode: Literal["a", "b"] = "a"
    augment: Flip | Crop | None = None


@dataclass(kw_only=True)
class Tree:
    name: str
    leaves: tuple[Leaf, ...] = ()
    rate: float = 0.1
    count: int = 1
    on: bool = False
    only: Leaf | None = field(default_factory=Leaf)
    folder: Path = Path("x")
    table: dict[str, Flip | Crop] = field(default_factory=dict)
    either: int | str = 3


FULL = Tree(
    name="n",
    leaves=(Leaf(augment=Crop(size=(1, 2))), Leaf(colour=Colour.BLUE, mode="b", augment=Flip(probability=1.0))),
    only=None,
    table={"k": Flip(probability=0.25)},
    either="three",
)


def test_round_trip_through_json() -> None:
    plain = json.loads(json.dumps(to_dict(FULL)))
    assert from_dict(Tree, plain) == FULL
    assert plain["leaves"][0]["augment"] == {"type": "Crop", "size": [1, 2]}


def test_absent_keys_take_the_default_and_int_becomes_float() -> None:
    tree = from_dict(Tree, {"name": "n", "rate": 2})
    assert tree == Tree(name="n", rate=2.0)
    assert isinstance(tree.rate, float)


@pytest.mark.parametrize(
    ("change", "where", "text"),
    [
        ({"nmae": "x"}, "nmae", "did you mean 'name'"),
        ({"count": 1.5}, "count", "expected int"),
        ({"count": True}, "count", "expected int"),
        ({"rate": "0.1"}, "rate", "expected float"),
        ({"on": 1}, "on", "expected bool"),
        ({"leaves": [{"colour": "rde"}]}, "leaves.0.colour", "did you mean 'red'"),
        ({"leaves": [{"mode": "c"}]}, "leaves.0.mode", "choose one of: a, b"),
        ({"leaves": [{"augment": {"type": "Crop", "size": [1, 2, 3]}}]}, "leaves.0.augment.size", "list of 2"),
        ({"leaves": [{"augment": {"type": "Corp"}}]}, "leaves.0.augment.type", "did you mean 'Crop'"),
        ({"leaves": [{"augment": {"type": "Crop", "sise": [1, 2]}}]}, "leaves.0.augment.sise", "did you mean 'size'"),
        ({"leaves": {}}, "leaves", "expected a list"),
        ({"only": 3}, "only", "Leaf or null"),
        ({"either": 1.5}, "either", "int or str"),
    ],
)
def test_wrong_data_names_the_dotted_path(change: dict[str, Any], where: str, text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        from_dict(Tree, {"name": "n", **change})
    assert caught.value.where == where
    assert text in str(caught.value)


def test_missing_required_key() -> None:
    with pytest.raises(ConfigError, match="'name' is missing"):
        from_dict(Tree, {})


def test_values_without_plain_form_are_refused() -> None:
    tree = Tree(name="n")
    tree.either = object()  # type: ignore[assignment]
    with pytest.raises(ConfigError, match="no plain form"):
        to_dict(tree)


def test_differences_lists_leaves() -> None:
    other = Tree(name="n", leaves=(Leaf(augment=Crop(size=(1, 3))), FULL.leaves[1]), only=None, table=FULL.table)
    assert differences(to_dict(FULL), to_dict(other)) == {
        "leaves.0.augment.size.1": (2, 3),
        "either": ("three", 3),
    }
    assert differences(to_dict(FULL), to_dict(FULL)) == {}
    assert differences({"a": None}, {"a": {"b": 1}}) == {"a": (None, {"b": 1})}
