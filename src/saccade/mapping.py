"""Key-by-key mapping of one state dict onto another, and the report of it.

A converter brings a renaming and, where tables have to change size, a resizing; the rest is the same for every system
and lives here. Nothing is loaded in part by accident: :meth:`MappingReport.check` is an error unless every
gap was allowed by name.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, TypeAlias

from torch import Tensor

from saccade.errors import CheckpointError

Shape: TypeAlias = tuple[int, ...]
Rule: TypeAlias = tuple[str, str]
"""The beginnings of a name, before and after; see :func:`rename`."""


@dataclass(kw_only=True)
class MappingReport:
    """What became of every key.

    Attributes:
        source: The file or folder that the tensors came from.
        matched: Source key to target key, for every tensor that found its place (resized ones included).
        missing: Target keys that no source tensor fills.
        unexpected: Source keys that have no place in the target.
        wrong_shape: Target key to (found, expected) shape.
        dropped: Source key to the reason why it was left out on purpose.
        resized: Target key to what was done to its table.
        notes: Remarks for the reader, e.g. which variant the file seems to be.
    """

    source: str = ""
    matched: dict[str, str] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    wrong_shape: dict[str, tuple[Shape, Shape]] = field(default_factory=dict)
    dropped: dict[str, str] = field(default_factory=dict)
    resized: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def complete(self) -> bool:
        """True when every target key is filled and every source key has a place or a reason."""
        return not (self.missing or self.unexpected or self.wrong_shape)

    def joined(self, other: MappingReport) -> MappingReport:
        """What became of the keys of both, for a model that starts from several files."""
        return MappingReport(
            source=f"{self.source}, {other.source}",
            matched=self.matched | other.matched,
            missing=self.missing + other.missing,
            unexpected=self.unexpected + other.unexpected,
            wrong_shape=self.wrong_shape | other.wrong_shape,
            dropped=self.dropped | other.dropped,
            resized=self.resized | other.resized,
            notes=self.notes + other.notes,
        )

    def gaps(self, allow: Iterable[str] = ()) -> dict[str, list[str]]:
        """The keys that stand in the way of a whole load.

        Args:
            allow: Names or shell patterns (``backbone.layers.1?.*``) of keys that may be missing or left over. A wrong
                shape is never allowed: such a tensor would stay at its random start without a word.

        Returns:
            Kind of gap (``missing``, ``unexpected``, ``wrong shape``) to keys; empty kinds are left out.
        """
        patterns = tuple(allow)

        def rest(keys: Iterable[str]) -> list[str]:
            return [key for key in keys if not any(fnmatchcase(key, pattern) for pattern in patterns)]

        shapes = [f"{key} (found {found}, expected {want})" for key, (found, want) in self.wrong_shape.items()]
        found = {"missing": rest(self.missing), "unexpected": rest(self.unexpected), "wrong shape": shapes}
        return {kind: keys for kind, keys in found.items() if keys}

    def check(self, *, allow: Iterable[str] = ()) -> None:
        """Refuses a partial load.

        Args:
            allow: Names or shell patterns of keys that may be missing or left over.

        Raises:
            CheckpointError: A key is missing, has no place, or has another shape, and is not allowed by name.
        """
        gaps = self.gaps(allow)
        if not gaps:
            return
        counts = ", ".join(f"{len(keys)} {kind}" for kind, keys in gaps.items())
        shown = "; ".join(f"{kind}: {_shorten(keys)}" for kind, keys in gaps.items())
        raise CheckpointError(
            f"the checkpoint does not fit the model: {counts} ({len(self.matched)} keys matched)",
            where=self.source or None,
            why=shown,
            fix=" ".join(self.notes) or "load a checkpoint of this model",
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "source": self.source,
            "complete": self.complete,
            "counts": self.counts(),
            "matched": dict(self.matched),
            "missing": list(self.missing),
            "unexpected": list(self.unexpected),
            "wrong_shape": {key: [list(found), list(want)] for key, (found, want) in self.wrong_shape.items()},
            "dropped": dict(self.dropped),
            "resized": dict(self.resized),
            "notes": list(self.notes),
        }

    def counts(self) -> dict[str, int]:
        """Number of keys of each kind."""
        return {
            "matched": len(self.matched),
            "resized": len(self.resized),
            "missing": len(self.missing),
            "unexpected": len(self.unexpected),
            "wrong_shape": len(self.wrong_shape),
            "dropped": len(self.dropped),
        }

    def __str__(self) -> str:
        counts = ", ".join(f"{number} {kind.replace('_', ' ')}" for kind, number in self.counts().items())
        return f"{self.source or 'state dict'}: {counts}"


def rename(key: str, rules: Sequence[Rule]) -> str | None:
    """Renames a key by the first rule whose left side begins it; None where none does.

    A side that ends with a dot is a beginning, and what follows is carried over; any other is a whole name. ``{i}`` and
    ``{j}`` stand for numbers, ``{j+1}`` for one that the other side counts from 1.
    """
    for left, right in rules:
        found = re.match(_pattern(left), key)
        if found:
            for name, text in found.groupdict().items():
                number = int(text) - (f"{{{name}+1}}" in left)
                right = right.replace(f"{{{name}}}", str(number)).replace(f"{{{name}+1}}", str(number + 1))
            return right + key[found.end() :]
    return None


def _pattern(template: str) -> str:
    escaped = re.sub(r"\\{(\w)(?:\\\+1)?\\}", r"(?P<\1>\\d+)", re.escape(template))
    return escaped if template.endswith(".") else escaped + "$"


def apply_mapping(
    state: Mapping[str, Tensor],
    *,
    expected: Mapping[str, Sequence[int]],
    rename: Callable[[str], str | None],
    drop: Callable[[str], str | None] | None = None,
    resize: Callable[[str, Tensor, Shape], tuple[Tensor, str] | None] | None = None,
    source: str = "",
) -> tuple[dict[str, Tensor], MappingReport]:
    """Renames (and, where asked, resizes) the tensors of a foreign state dict.

    Args:
        state: Source key to tensor.
        expected: Target key to shape, e.g. ``{k: v.shape for k, v in model.state_dict().items()}``.
        rename: Source key to target key, or None where the source key has no place.
        drop: Source key to the reason for leaving it out, or None to keep it. Asked before ``rename``.
        resize: Called as ``resize(target_key, tensor, expected_shape)`` when shapes differ; returns the new tensor and
            what was done, or None where this table must not be resized.
        source: Where the tensors came from, for messages.

    Returns:
        Target key to tensor (only what fits), and the report of every key.

    Raises:
        CheckpointError: Two source keys claim the same target key.
    """
    report = MappingReport(source=source)
    mapped: dict[str, Tensor] = {}
    claimed: dict[str, str] = {}
    for key, tensor in state.items():
        reason = drop(key) if drop is not None else None
        if reason is not None:
            report.dropped[key] = reason
            continue
        target = rename(key)
        if target is None or target not in expected:
            report.unexpected.append(key)
            continue
        if target in claimed:
            raise CheckpointError(
                f"two keys of the file claim '{target}'", where=source or None, why=f"'{claimed[target]}' and '{key}'"
            )
        claimed[target] = key
        want = tuple(expected[target])
        found = tuple(tensor.shape)
        if found != want:
            resized = resize(target, tensor, want) if resize is not None else None
            if resized is None or tuple(resized[0].shape) != want:
                report.wrong_shape[target] = (found, want)
                continue
            tensor, report.resized[target] = resized
        mapped[target] = tensor
        report.matched[key] = target
    report.missing = [key for key in expected if key not in claimed]
    return mapped, report


def _shorten(keys: Sequence[str], most: int = 6) -> str:
    return ", ".join(keys[:most]) + (f" ... ({len(keys)} in all)" if len(keys) > most else "")
