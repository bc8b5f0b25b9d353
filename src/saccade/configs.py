"""Configuration trees as plain data: keyword-only dataclasses to JSON-able dicts and back, strictly.

``to_dict`` and ``from_dict`` are inverse to one another for trees of dataclasses, enums, tuples, lists, string-keyed
dicts, paths, strings, numbers, booleans and None. Where a field may hold one of several dataclasses, its dict names the
class under ``"type"``. Nothing is guessed: an unknown key, a missing key or a value of the wrong type is a
:class:`~saccade.errors.ConfigError` that names the dotted path.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

from saccade.errors import ConfigError, nearest

T = TypeVar("T")

_TYPE_KEY = "type"
_MISSING = object()


def to_dict(config: Any) -> dict[str, Any]:
    """Turns a dataclass instance into a dict that ``json.dumps`` accepts.

    Args:
        config: A dataclass instance; its fields may nest.

    Returns:
        One entry per field: enums as their values, tuples as lists, paths as strings, dataclasses as dicts.

    Raises:
        ConfigError: Not a dataclass, or a field holds something that has no plain form.
    """
    if not _is_config(type(config)):
        raise ConfigError(f"a configuration must be a dataclass, not {type(config).__name__}")
    return _plain_fields(config, "")


def from_dict(cls: type[T], data: Mapping[str, Any], *, where: str = "") -> T:
    """Builds a dataclass tree from plain data.

    Args:
        cls: The dataclass to build.
        data: What :func:`to_dict` gave, or the same after JSON; absent keys take the field's default.
        where: Dotted path of ``data`` inside a greater tree, for messages.

    Raises:
        ConfigError: Unknown or missing key, or a value of the wrong type; names the dotted path.
    """
    if not _is_config(cls):
        raise ConfigError(f"a configuration must be a dataclass, not {cls.__name__}")
    if not isinstance(data, Mapping):
        raise _mismatch(data, cls.__name__, where)
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cast(Any, cls)) if f.init}
    unknown = [key for key in data if key not in fields]
    if unknown:
        raise ConfigError(
            f"unknown configuration key '{unknown[0]}'",
            where=_join(where, str(unknown[0])),
            why=f"{cls.__name__} has no such field",
            fix=nearest(str(unknown[0]), fields),
        )
    for name, f in fields.items():
        required = f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
        if required and name not in data:
            raise ConfigError(
                f"configuration key '{name}' is missing",
                where=_join(where, name),
                why=f"{cls.__name__} has no default for it",
            )
    return cls(**{key: _parse(value, hints[key], _join(where, key)) for key, value in data.items()})


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Leaves that differ between two plain trees.

    Args:
        old: A tree of :func:`to_dict`.
        new: Another.

    Returns:
        Dotted path -> (old value, new value); an absent value is shown as None.
    """
    found: dict[str, tuple[Any, Any]] = {}
    _compare(dict(old), dict(new), "", found)
    return found


def _compare(old: Any, new: Any, where: str, found: dict[str, tuple[Any, Any]]) -> None:
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in [*old, *(key for key in new if key not in old)]:
            _compare(old.get(key, _MISSING), new.get(key, _MISSING), _join(where, str(key)), found)
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for index, (a, b) in enumerate(zip(old, new, strict=True)):
            _compare(a, b, _join(where, str(index)), found)
    elif old is _MISSING or new is _MISSING or old != new:
        found[where] = (None if old is _MISSING else old, None if new is _MISSING else new)


def _is_config(kind: Any) -> bool:
    return isinstance(kind, type) and dataclasses.is_dataclass(kind)


def _join(where: str, key: str) -> str:
    return f"{where}.{key}" if where else key


def _mismatch(value: Any, expected: str, where: str) -> ConfigError:
    return ConfigError(f"expected {expected}, got {value!r}", where=where or "the whole configuration")


def _members(hint: Any) -> tuple[Any, ...]:
    """The alternatives of a union, or the hint alone."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return typing.get_args(hint)
    return (hint,)


def _plain_fields(config: Any, where: str) -> dict[str, Any]:
    hints = typing.get_type_hints(type(config))
    return {
        f.name: _plain(getattr(config, f.name), hints[f.name], _join(where, f.name))
        for f in dataclasses.fields(config)
        if f.init
    }


def _plain(value: Any, hint: Any, where: str) -> Any:
    if _is_config(type(value)):
        plain = _plain_fields(value, where)
        options = [member for member in _members(hint) if _is_config(member)]
        if len(options) > 1:
            if _TYPE_KEY in plain:
                raise ConfigError(
                    f"{type(value).__name__} has a field '{_TYPE_KEY}', which names the class in a choice of several",
                    where=where,
                )
            plain = {_TYPE_KEY: type(value).__name__, **plain}
        return plain
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, tuple | list):
        sequence = next((member for member in _members(hint) if typing.get_origin(member) in (tuple, list)), Any)
        return [_plain(v, _element_hint(sequence, i), _join(where, str(i))) for i, v in enumerate(value)]
    if isinstance(value, Mapping):
        arguments = typing.get_args(next((m for m in _members(hint) if typing.get_origin(m) is dict), Any))
        item_hint = arguments[1] if len(arguments) == 2 else Any
        return {str(key): _plain(item, item_hint, _join(where, str(key))) for key, item in value.items()}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise ConfigError(f"a {type(value).__name__} has no plain form", where=where)


def _element_hint(sequence: Any, index: int) -> Any:
    arguments = typing.get_args(sequence)
    if not arguments:
        return Any
    if typing.get_origin(sequence) is list or (len(arguments) == 2 and arguments[1] is Ellipsis):
        return arguments[0]
    return arguments[index] if index < len(arguments) else Any


def _parse(value: Any, hint: Any, where: str) -> Any:
    members = _members(hint)
    if len(members) > 1:
        return _parse_union(value, members, where)
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if hint is None or hint is types.NoneType:
        if value is not None:
            raise _mismatch(value, "null", where)
        return None
    if _is_config(hint):
        return from_dict(hint, value, where=where)
    if origin is Literal:
        if not any(type(a) is type(value) and a == value for a in arguments):
            hint_text = nearest(str(value), [str(a) for a in arguments])
            raise ConfigError(f"unknown choice {value!r}", where=where, fix=hint_text)
        return value
    if origin is tuple or origin is list:
        return _parse_sequence(value, hint, where)
    if origin is dict:
        if not isinstance(value, Mapping):
            raise _mismatch(value, "a table", where)
        return {str(key): _parse(item, arguments[1], _join(where, str(key))) for key, item in value.items()}
    return _parse_leaf(value, hint, where)


def _parse_sequence(value: Any, hint: Any, where: str) -> Any:
    arguments = typing.get_args(hint)
    if not isinstance(value, list | tuple):
        raise _mismatch(value, "a list", where)
    fixed = typing.get_origin(hint) is tuple and not (len(arguments) == 2 and arguments[1] is Ellipsis)
    if fixed and len(value) != len(arguments):
        raise _mismatch(value, f"a list of {len(arguments)}", where)
    items = [_parse(item, _element_hint(hint, index), _join(where, str(index))) for index, item in enumerate(value)]
    return tuple(items) if typing.get_origin(hint) is tuple else items


def _parse_union(value: Any, members: tuple[Any, ...], where: str) -> Any:
    if value is None and types.NoneType in members:
        return None
    configs = {member.__name__: member for member in members if _is_config(member)}
    if isinstance(value, Mapping) and configs:
        if len(configs) == 1:
            return from_dict(next(iter(configs.values())), value, where=where)
        name = value.get(_TYPE_KEY)
        if name not in configs:
            raise ConfigError(
                f"'{_TYPE_KEY}' must name the class of this table, got {name!r}",
                where=_join(where, _TYPE_KEY),
                fix=nearest(str(name), configs),
            )
        return from_dict(configs[name], {k: v for k, v in value.items() if k != _TYPE_KEY}, where=where)
    plain = [member for member in members if not _is_config(member) and member is not types.NoneType]
    for member in plain:
        try:
            return _parse(value, member, where)
        except ConfigError:
            if len(plain) == 1:
                raise
    raise _mismatch(value, " or ".join(_name(member) for member in members), where)


def _parse_leaf(value: Any, hint: Any, where: str) -> Any:
    if not isinstance(hint, type):
        raise ConfigError(f"a field of type {hint!r} cannot be read from plain data", where=where)
    if issubclass(hint, Enum):
        try:
            return hint(value)
        except ValueError:
            options = [str(option.value) for option in hint]
            raise ConfigError(
                f"unknown {hint.__name__} {value!r}", where=where, fix=nearest(str(value), options)
            ) from None
    if hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if hint is int and isinstance(value, int) and not isinstance(value, bool):
        return int(value)
    if hint is bool and isinstance(value, bool):
        return value
    if hint is str and isinstance(value, str):
        return str(value)
    if issubclass(hint, Path) and isinstance(value, str | Path):
        return hint(value)
    if hint is list and isinstance(value, list):
        return value
    if hint is dict and isinstance(value, Mapping):
        return dict(value)
    if hint is object:
        return value
    raise _mismatch(value, _name(hint), where)


def _name(hint: Any) -> str:
    return {types.NoneType: "null"}.get(hint, getattr(hint, "__name__", str(hint)))
