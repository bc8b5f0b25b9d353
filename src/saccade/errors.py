"""The exceptions of Saccade: one tree, and one form of message.

A message says what happened, where (file, key, index), why, and what to do next.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable
from types import ModuleType


class SaccadeError(Exception):
    """Root of all errors that Saccade raises on purpose.

    Args:
        what: What happened, as a short sentence without a full stop.
        where: The file, key or index it happened at.
        why: The cause, where it is known.
        fix: What the reader can do next.
    """

    exit_code = 1

    def __init__(self, what: str, *, where: object = None, why: str | None = None, fix: str | None = None) -> None:
        self.what, self.where, self.why, self.fix = what, where, why, fix
        parts = [what]
        if where is not None:
            parts.append(f"  where: {where}")
        if why:
            parts.append(f"  why:   {why}")
        if fix:
            parts.append(f"  fix:   {fix}")
        super().__init__("\n".join(parts))

    def __reduce__(self) -> tuple[object, ...]:
        # Errors cross process borders (loader workers): rebuild from the parts, not from the joined text.
        return (_rebuild, (type(self), self.what, self.where, self.why, self.fix))


def _rebuild(
    kind: type[SaccadeError], what: str, where: object, why: str | None, fix: str | None
) -> SaccadeError:  # pragma: no cover - called by pickle
    return kind(what, where=where, why=why, fix=fix)


class UsageError(SaccadeError):
    """The caller asked for something that does not exist or does not fit (exit code 2)."""

    exit_code = 2


class MissingDataError(UsageError):
    """A data set, or a part of it, is not where it was looked for."""


class ConfigError(UsageError):
    """A configuration value is unknown, or does not fit the others."""


class MissingExtraError(UsageError):
    """A feature needs an optional dependency that is not installed."""


class DataError(SaccadeError):
    """An annotation file or a data set is damaged or contradicts itself."""


class ImageError(DataError):
    """An image cannot be read safely."""


class CheckpointError(SaccadeError):
    """A checkpoint is missing, damaged, unsafe, or does not fit the model."""


class TrainingError(SaccadeError):
    """A training run cannot go on, e.g. because its loss is not finite."""


def nearest(name: str, options: Iterable[str]) -> str:
    """Returns a hint that names the closest option, or lists the options when none is close.

    Args:
        name: What the user wrote.
        options: What exists.
    """
    known = sorted(options)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    if close:
        return f"did you mean '{close[0]}'?"
    shown = ", ".join(known[:20])
    return f"choose one of: {shown}" + (f" ... ({len(known)} in all)" if len(known) > 20 else "")


def require(module: str, *, extra: str, purpose: str) -> ModuleType:
    """Imports an optional dependency or raises an error that names the extra to install.

    Args:
        module: Import name, e.g. ``"supervision"``.
        extra: The extra of this package that brings it.
        purpose: What it is needed for.

    Raises:
        MissingExtraError: The module is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtraError(
            f"{purpose} needs the package '{module.split('.', maxsplit=1)[0]}'",
            why=str(error),
            fix=f"pip install 'saccade[{extra}]'",
        ) from error
