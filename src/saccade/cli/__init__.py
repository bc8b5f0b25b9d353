"""The command line: ``saccade VERB ...``.

Exit codes: 0 fine, 1 failed, 2 wrong use. An error that Saccade raises on purpose is printed as its message; set
``SACCADE_DEBUG=1`` for the traceback. Nothing heavy is imported before the verb is known.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence

import saccade
from saccade.cli import bench, convert, data, demo, evaluate, lora, models, predict, train
from saccade.cli.parser import Parser, Verbs
from saccade.errors import SaccadeError, UsageError, nearest
from saccade.memory import keep_freed_memory

_VERBS = (predict, train, evaluate, data, models, convert, lora, bench, demo)

_OUT_OF_MEMORY = SaccadeError(
    "the GPU has not enough memory",
    fix="use a smaller batch (--batch-size 1, train.0.batch_size=1 accumulate=4), precision=bf16, "
    "activation_checkpointing=true, or a smaller model",
)
INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it (128 + SIGINT)."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        argv: The words after ``saccade``; None takes them from the process, which is then the command's own.

    Returns:
        The exit code: 0 fine, 1 failed, 2 wrong use.
    """
    words = sys.argv[1:] if argv is None else list(argv)
    if argv is None:
        keep_freed_memory()
        # transformers imports torchao wherever it is installed, and torch warns of how that registers its enums:
        # nothing that who types a command has asked for, nor can change.
        logging.getLogger("torch.utils._pytree").setLevel(logging.ERROR)
    try:
        return _run(words)
    except SystemExit as end:  # argparse, after --help or --version
        return end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    except BrokenPipeError:  # `saccade models list | head`
        # Python flushes stdout once more at exit: give it somewhere to write.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        if _debugging():
            raise
        sys.stderr.write("interrupted\n")
        return INTERRUPTED
    except (SaccadeError, OSError) as error:
        if _debugging():
            raise
        sys.stderr.write(f"error: {_describe(error)}\n")
        return error.exit_code if isinstance(error, SaccadeError) else 1
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError" or _debugging():  # torch's; importing torch for its name is slow
            raise
        sys.stderr.write(f"error: {_OUT_OF_MEMORY}\n")
        return 1


def build() -> Parser:
    """The parser of the whole command line."""
    parser = Parser(
        prog="saccade",
        description="Generalist vision: detection, segmentation, captioning and grounding with one model.",
        epilog="`saccade VERB --help` shows the options of a verb and an example.",
    )
    parser.add_argument("--version", action="version", version=f"saccade {saccade.__version__}")
    verbs = Verbs(parser)
    for module in _VERBS:
        module.add(verbs)
    return parser


def _run(words: list[str]) -> int:
    parser = build()
    if not words:
        parser.print_help()
        return UsageError.exit_code
    arguments, unknown = parser.parse_known_args(words)
    verb: Parser = arguments.parser
    if unknown:
        word = unknown[0].partition("=")[0]
        kind = "option" if word.startswith("-") else "argument"
        options = verb.option_names() if kind == "option" else ()
        raise UsageError(
            f"unknown {kind} '{word}'",
            where=verb.prog,
            fix=nearest(word, options) if options else f"see `{verb.prog} --help`",
        )
    return int(arguments.run(arguments))


def _describe(error: SaccadeError | OSError) -> str:
    if isinstance(error, SaccadeError) or not error.filename:
        return str(error)
    return str(SaccadeError(error.strerror or type(error).__name__, where=error.filename))


def _debugging() -> bool:
    return os.environ.get("SACCADE_DEBUG", "") not in ("", "0")
