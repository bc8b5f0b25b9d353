"""A parser whose errors offer the nearest name, and the pieces that several verbs share."""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from saccade.errors import UsageError, nearest

if TYPE_CHECKING:
    from saccade.models.systems import DetectorOptions

Run = Callable[[argparse.Namespace], int]

DEFAULT_MODEL = "git-nano"
"""The model that comes with the package."""


class Parser(argparse.ArgumentParser):
    """An ``ArgumentParser`` that raises :class:`~saccade.errors.UsageError` and knows its option names."""

    def __init__(self, **settings: Any) -> None:
        settings.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(allow_abbrev=False, **settings)
        # A point left of the picture is a value that is wrong, no option that is unknown.
        self._negative_number_matcher = re.compile(r"-[\d.]+(,-?[\d.]+)*$")

    def option_names(self) -> list[str]:
        """The long options, e.g. ``--model``."""
        return [name for action in self._actions for name in action.option_strings if name.startswith("--")]

    def error(self, message: str) -> NoReturn:
        """Raises instead of printing, so that every error leaves by the same door.

        Raises:
            UsageError: Always.
        """
        raise UsageError(message, where=self.prog, fix=f"see `{self.prog} --help`")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        # argparse lists the choices; we offer the nearest.
        if action.choices is not None and value not in action.choices:
            what = action.option_strings[0] if action.option_strings else str(action.metavar or action.dest).lower()
            names = [str(choice) for choice in action.choices]
            raise UsageError(f"unknown {what} '{value}'", where=self.prog, fix=nearest(str(value), names))


class Verbs:
    """The verbs of a parser, or the second words of a verb (``saccade data check``)."""

    def __init__(self, parser: Parser) -> None:
        self._subparsers = parser.add_subparsers(
            title="verbs", dest="verb", metavar="VERB", required=True, parser_class=Parser
        )

    def add(
        self, name: str, *, summary: str, examples: Iterable[str], run: Run | None = None, **settings: Any
    ) -> Parser:
        """Adds a verb.

        Args:
            name: The word.
            summary: One line; it stands in the list of verbs and above the options.
            examples: Command lines shown below the options.
            run: What the verb does; None for a verb with second words.
            settings: Passed to :class:`Parser`.
        """
        shown = "\n".join(f"  {line}" for line in examples)
        parser: Parser = self._subparsers.add_parser(
            name, help=summary, description=summary, epilog=f"examples:\n{shown}", **settings
        )
        parser.set_defaults(parser=parser, run=run)
        return parser


def add_json(parser: Parser) -> None:
    """Adds ``--json FILE``."""
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write what the screen shows, for machines")


def comma_list(text: str) -> tuple[str, ...]:
    """``"cat, dog"`` to ``("cat", "dog")``.

    Raises:
        argparse.ArgumentTypeError: A name is empty.
    """
    names = tuple(name.strip() for name in text.split(","))
    if not all(names):
        raise argparse.ArgumentTypeError(f"'{text}' has an empty name; write names separated by single commas")
    return names


def positive(text: str) -> int:
    """A whole number of at least 1.

    Raises:
        argparse.ArgumentTypeError: Anything else.
    """
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number of at least 1")
    return int(text)


def natural(text: str) -> int:
    """A whole number of at least 0.

    Raises:
        argparse.ArgumentTypeError: Anything else.
    """
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number of at least 0")
    return int(text)


def fraction(text: str) -> float:
    """A number in 0..1.

    Raises:
        argparse.ArgumentTypeError: Anything else.
    """
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a number between 0 and 1")
    return value


def amount(text: str) -> float:
    """A finite number above 0.

    Raises:
        argparse.ArgumentTypeError: Anything else.
    """
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"'{text}' is not a number above 0")
    return value


def add_model(parser: Parser) -> None:
    """Adds ``--model`` and ``--device``."""
    parser.add_argument(
        "--model",
        default=DEFAULT_MODEL,
        metavar="MODEL",
        help=f"a name from `saccade models list`, or a checkpoint folder (default: {DEFAULT_MODEL})",
    )
    add_device(parser)


def add_depth_scale(parser: Parser) -> None:
    """Adds ``--depth-scale``."""
    parser.add_argument(
        "--depth-scale",
        type=float,
        default=1000.0,
        metavar="X",
        help="units of a metre in 16-bit depth maps (default: 1000, millimetres; TUM: 5000)",
    )


def add_mask_suffix(parser: Parser) -> None:
    """Adds ``--mask-suffix``."""
    parser.add_argument(
        "--mask-suffix",
        default="",
        metavar="TEXT",
        help="mask folders: what mask files append to the name of their image, e.g. lesion (default: looked for)",
    )


def add_detector_options(parser: Parser) -> None:
    """Adds ``--soft-nms``, ``--test-sizes`` and ``--test-flip``."""
    parser.add_argument(
        "--soft-nms", choices=("linear", "gaussian"), default="none", help="detectors: soft instead of hard suppression"
    )
    parser.add_argument(
        "--test-sizes",
        type=comma_list,
        default=(),
        metavar="N,N",
        help="detectors: predict at several sides of the network input and merge",
    )
    parser.add_argument("--test-flip", action="store_true", help="detectors: predict the mirrored picture, too")


def detector_options(arguments: argparse.Namespace) -> DetectorOptions:
    """What :func:`add_detector_options` read.

    Raises:
        UsageError: A size that is no number.
    """
    from saccade.models.systems import DetectorOptions

    sizes = tuple(arguments.test_sizes)
    if not all(size.isdigit() for size in sizes):
        raise UsageError("sizes are whole numbers of pixels", where="--test-sizes", fix="--test-sizes 640,768")
    return DetectorOptions(soft_nms=arguments.soft_nms, sizes=tuple(map(int, sizes)), flip=arguments.test_flip)


def point(text: str) -> tuple[float, float]:
    """``"120,80"`` to ``(120.0, 80.0)``.

    Raises:
        argparse.ArgumentTypeError: Anything else.
    """
    try:
        x, y = (float(part) for part in text.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"'{text}' is not a point; write it as X,Y") from error
    return x, y


def add_finder(parser: Parser) -> None:
    """Adds ``--centers``."""
    parser.add_argument(
        "--centers",
        metavar="MODEL",
        help="polar models: what finds the centres of objects, a centre predictor or a model that segments",
    )


def add_device(parser: Parser) -> None:
    """Adds ``--device``."""
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: auto)")
