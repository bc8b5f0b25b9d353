"""``key=value`` words over a configuration tree: any leaf by its dotted name, its text read by tyro."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import types
import typing
from collections.abc import Mapping, Sequence
from enum import Enum
from types import NoneType
from typing import Any, TypeVar, cast

import tyro

from saccade.errors import ConfigError, UsageError, nearest

C = TypeVar("C")

_TYRO = (tyro.conf.FlagConversionOff, tyro.conf.EnumChoicesFromValues)


def split_words(words: Sequence[str]) -> dict[str, str]:
    """``["steps=10", "optim.lr=1e-4"]`` to a dict.

    Raises:
        UsageError: A word without ``=``, or a key given twice.
    """
    changes: dict[str, str] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or not key:
            raise UsageError(f"'{word}' is not of the form key=value", fix="write for example steps=100")
        if key in changes:
            raise UsageError(f"'{key}' is given twice", where=f"{changes[key]!r} and {value!r}")
        changes[key] = value
    return changes


def leaves(config: Any) -> dict[str, str]:
    """Every leaf of a configuration tree by its dotted name, in the words that :func:`override` reads."""
    found: dict[str, str] = {}
    _collect(config, "", found)
    return found


def override(config: C, changes: Mapping[str, str]) -> C:
    """Sets leaves of a configuration tree, all at once.

    Lists are written with commas (``classes=cat,dog``; as JSON where an item holds a comma), ``none`` removes an
    optional part, and naming a leaf of a part that is none brings the part in with its defaults.

    Args:
        config: The tree; it is not changed.
        changes: Dotted name -> text.

    Returns:
        A tree of the same type.

    Raises:
        ConfigError: An unknown name (the message offers the nearest), or a value that does not fit.
    """
    for key in changes:
        config = _bring_in(config, key)
    values: dict[tuple[str, ...], Any] = {}
    for key, text in changes.items():
        hint = _hint(config, key)
        if any(dataclasses.is_dataclass(member) for member in _members(hint)) and text.lower() != "none":
            inside = [name for name in leaves(config) if name.startswith(f"{key}.")]
            more = " ..." if len(inside) > 8 else ""
            raise ConfigError(f"{key} is a group, not a value", where=key, fix=f"set {', '.join(inside[:8])}{more}")
        values[tuple(key.split("."))] = read_value(hint, text, key)
    return cast(C, _replace(config, values))


def read_value(hint: Any, text: str, key: str) -> Any:
    """Reads the text of one value.

    Args:
        hint: The declared type.
        text: What the user wrote.
        key: Its name, for messages.

    Raises:
        ConfigError: The text does not fit the type, or the type is a group of values.
    """
    if text.lower() == "none" and NoneType in _members(hint):
        return None
    if _is_sequence(hint) and any(dataclasses.is_dataclass(item) for item in typing.get_args(hint)):
        raise ConfigError(f"{key} is a list of groups, not a value", where=key, fix=f"set values such as {key}.0.NAME")
    if hint is str:  # as it stands, even where tyro would take it for an option
        return text
    words = _words(hint, text, key)
    if _is_sequence(hint) and set(typing.get_args(hint)) == {str, Ellipsis}:
        return tuple(words)
    holder = dataclasses.make_dataclass("Value", [("value", hint)])
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # our own message follows
            read: Any = tyro.cli(holder, args=["--value", *words], config=_TYRO, console_outputs=False)
    except SystemExit:
        raise ConfigError(f"'{text}' does not fit {key}", where=key, why=f"it takes {_describe(hint)}") from None
    return read.value


def _collect(value: Any, name: str, found: dict[str, str]) -> None:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        hints = typing.get_type_hints(type(value))
        for field in dataclasses.fields(value):
            inner, hint = getattr(value, field.name), hints[field.name]
            groups = _is_sequence(hint) and any(dataclasses.is_dataclass(item) for item in typing.get_args(hint))
            if inner or not groups:  # an empty list of groups has no leaf
                _collect(inner, f"{name}.{field.name}" if name else field.name, found)
    elif isinstance(value, tuple | list) and any(dataclasses.is_dataclass(item) for item in value):
        for index, item in enumerate(value):
            _collect(item, f"{name}.{index}", found)
    else:
        found[name] = _text(value)


def _text(value: Any) -> str:
    if isinstance(value, tuple | list):
        items = [_text(item) for item in value]
        awkward = any(not item or "," in item or item != item.strip() or item.startswith("[") for item in items)
        return json.dumps(items, ensure_ascii=False) if awkward else ",".join(items)
    if isinstance(value, Enum):
        return str(value.value)
    return str(value).lower() if isinstance(value, bool) or value is None else str(value)


def _words(hint: Any, text: str, key: str) -> list[str]:
    """The text as the words that tyro reads."""
    members = _members(hint)
    if bool in members and text.lower() in ("true", "false"):
        return [text.capitalize()]
    if not any(_is_sequence(member) for member in members):
        return [text]
    if text.startswith("["):
        try:
            return [str(item) for item in json.loads(text)]
        except ValueError as error:
            raise ConfigError(f"'{text}' is not a JSON list", where=key, why=str(error)) from None
    return [item.strip() for item in text.split(",")] if text else []


def _step(parent: Any, key: str, depth: int, root: Any) -> tuple[Any, Any]:
    """One name down the tree, the one at ``depth`` of the dotted key: the value there and its declared type."""
    name, above = key.split(".")[depth], ".".join(key.split(".")[:depth])
    if isinstance(parent, tuple | list) and above:
        if name.isdecimal() and int(name) < len(parent):
            return parent[int(name)], type(parent[int(name)])
        what = f"its items are {above}.0 to {above}.{len(parent) - 1}" if parent else "it is empty"
        raise ConfigError(f"unknown configuration key '{key}'", why=f"{above} is a list; {what}")
    if dataclasses.is_dataclass(parent) and name in {field.name for field in dataclasses.fields(parent)}:
        return getattr(parent, name), typing.get_type_hints(type(parent))[name]
    raise ConfigError(f"unknown configuration key '{key}'", fix=nearest(key, leaves(root)))


def _hint(config: Any, key: str) -> Any:
    """The declared type of a leaf."""
    parent, hint = config, None
    for depth in range(key.count(".") + 1):
        parent, hint = _step(parent, key, depth, config)
    return hint


def _bring_in(config: C, key: str) -> C:
    """Gives the defaults to an optional part that is none and that ``key`` names a leaf of."""
    names = key.split(".")
    parent: Any = config
    for depth in range(len(names) - 1):
        parent, hint = _step(parent, key, depth, config)
        if parent is None:
            kinds = [member for member in _members(hint) if dataclasses.is_dataclass(member)]
            if len(kinds) != 1:
                raise ConfigError(f"{'.'.join(names[: depth + 1])} is none, so {key} cannot be set", where=key)
            return _bring_in(cast(C, _replace(config, {tuple(names[: depth + 1]): cast(Any, kinds[0])()})), key)
    return config


def _replace(config: Any, values: Mapping[tuple[str, ...], Any]) -> Any:
    """A copy of the tree with several values changed at once, so that each part is checked as a whole."""
    below: dict[str, dict[tuple[str, ...], Any]] = {}
    for path, value in values.items():
        if not path:
            return value
        below.setdefault(path[0], {})[path[1:]] = value
    if isinstance(config, tuple | list):
        items = [
            _replace(item, below[str(index)]) if str(index) in below else item for index, item in enumerate(config)
        ]
        return type(config)(items)
    return dataclasses.replace(
        config, **{name: _replace(getattr(config, name), inner) for name, inner in below.items()}
    )


def _is_sequence(hint: Any) -> bool:
    return typing.get_origin(hint) in (tuple, list)


def _members(hint: Any) -> tuple[Any, ...]:
    """The alternatives of a union, or the type alone."""
    return typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)


def _describe(hint: Any) -> str:
    """A type in the words of a reader."""
    members = _members(hint)
    if len(members) > 1:
        return " or ".join(_describe(member) for member in members)
    arguments = typing.get_args(hint)
    if typing.get_origin(hint) is typing.Literal:
        return " or ".join(str(argument) for argument in arguments)
    if _is_sequence(hint):
        if typing.get_origin(hint) is list or Ellipsis in arguments:
            return f"a list, each {_describe(arguments[0])}, written with commas"
        return f"{len(arguments)} values written with commas, each {_describe(arguments[0])}"
    if isinstance(hint, type) and issubclass(hint, Enum):
        return " or ".join(str(member.value) for member in hint)
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "text", NoneType: "none"}
    return names.get(hint, getattr(hint, "__name__", str(hint)))
