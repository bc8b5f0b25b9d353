"""``saccade train``: a recipe, with its own arguments and any value of its configuration as ``key=value`` words."""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import os
import typing
from functools import partial
from typing import TYPE_CHECKING, Any

from saccade.cli.parser import Verbs, add_json
from saccade.errors import UsageError, nearest

if TYPE_CHECKING:
    from collections.abc import Mapping

    from saccade.training.config import TrainConfig
    from saccade.training.trainer import TrainResult

_WITHOUT_MISSING = "drop_missing"


def add(verbs: Verbs) -> None:
    """Adds the verb."""
    parser = verbs.add(
        "train",
        summary="Train by a recipe; every value of its configuration can be changed by its dotted name.",
        examples=[
            "saccade train recipe=finetune data.root=lesions/ model=git-nano task=semantic",
            "saccade train recipe=finetune data.root=cells/ model=git-base task=detection steps=500 optim.lr=1e-4",
            "saccade train recipe=git.nano_scenes train.0.batch_size=4 --print-config",
            "saccade train --list                                 (every recipe)",
        ],
        run=_run,
    )
    parser.add_argument(
        "words",
        nargs="*",
        metavar="KEY=VALUE",
        help="recipe=NAME, the recipe's own arguments (data.root=DIR) and values of its configuration (optim.lr=1e-4)",
    )
    parser.add_argument("--list", action="store_true", help="list the recipes with their arguments, and stop")
    parser.add_argument(
        "--print-config", action="store_true", help="print the resolved configuration as KEY=VALUE words, and stop"
    )
    add_json(parser)


def _run(arguments: argparse.Namespace) -> int:
    if arguments.list:
        return _list()

    from saccade.cli import screen
    from saccade.cli.overrides import leaves, split_words

    config = resolve(split_words(arguments.words))
    if arguments.print_config:
        for key, value in leaves(config).items():
            screen.say(f"{key}={value}")
        return 0

    from saccade.training.trainer import Trainer

    result = Trainer(config).fit()
    if os.environ.get("RANK", "0") != "0":  # under torchrun one process speaks for all
        return 0
    _show(result)
    screen.write_json(arguments.json, _for_machines(result))
    return 0


def resolve(changes: Mapping[str, str]) -> TrainConfig:
    """The configuration that a command line asks for.

    Args:
        changes: ``recipe``, the recipe's own arguments (a dot may stand for an underscore: ``data.root`` is
            ``data_root``), and leaves of the configuration that it returns.

    Raises:
        UsageError: No recipe, one that does not exist, or an argument that is missing.
        ConfigError: An unknown key, or a value that does not fit.
    """
    from saccade.cli.overrides import leaves, override, read_value
    from saccade.errors import ConfigError
    from saccade.recipes import RECIPES, get_recipe, recipe_arguments, require_readers, without_missing
    from saccade.training.config import TrainConfig, validate

    rest = dict(changes)
    name = rest.pop("recipe", None)
    if name is None:
        raise UsageError("say what to train", where="saccade train", fix=f"recipe=NAME; {nearest('', RECIPES)}")
    recipe, parameters = get_recipe(name), recipe_arguments(name)
    hints = typing.get_type_hints(recipe.func if isinstance(recipe, partial) else recipe)
    own = {key: key.replace(".", "_") for key in rest if key.replace(".", "_") in parameters}
    values = {parameter: read_value(hints[parameter], rest.pop(key), key) for key, parameter in own.items()}
    missing = [key for key, one in parameters.items() if one.default is one.empty and key not in values]
    if missing:
        # A mistyped word is more likely than a forgotten one.
        known = [*(key.replace("_", ".", 1) for key in parameters), *(f.name for f in dataclasses.fields(TrainConfig))]
        unknown = [key for key in rest if key.split(".")[0] not in known and key != _WITHOUT_MISSING]
        if unknown:
            raise ConfigError(
                f"unknown configuration key '{unknown[0]}'", where=f"recipe={name}", fix=nearest(unknown[0], known)
            )
        word = missing[0].replace("_", ".", 1)
        raise UsageError(f"recipe {name} needs {word}", where="saccade train", fix=f"{word}=...")
    without = _WITHOUT_MISSING not in parameters and read_value(
        bool, rest.pop(_WITHOUT_MISSING, "false"), _WITHOUT_MISSING
    )
    config = recipe(**values)
    try:
        config = override(config, rest)
    except ConfigError as error:
        if not error.what.startswith("unknown configuration key"):
            raise
        key = error.what.split("'")[1]
        known = [*leaves(config), *(parameter.replace("_", ".", 1) for parameter in parameters)]
        raise ConfigError(
            error.what, where=f"recipe={name}", why=error.why, fix=error.fix and nearest(key, known)
        ) from None
    if without:
        config = without_missing(config)
    else:
        require_readers(config)
    validate(config)
    return config


def _list() -> int:
    from saccade.cli import screen
    from saccade.recipes import RECIPES, get_recipe, recipe_arguments

    rows: list[dict[str, Any]] = []
    for name in RECIPES:
        recipe = get_recipe(name)
        text = inspect.getdoc(recipe.func if isinstance(recipe, partial) else recipe) or ""
        own = " ".join(_argument(key, one) for key, one in recipe_arguments(name).items())
        rows.append({"recipe": name, "arguments": own, "what": text.split("\n", maxsplit=1)[0]})
    screen.table(rows)
    return 0


def _argument(key: str, parameter: inspect.Parameter) -> str:
    return f"{key}={'...' if parameter.default is parameter.empty else parameter.default}"


def _show(result: TrainResult) -> None:
    from saccade.cli import screen

    shown = result.metrics if result.best_metrics is None else result.best_metrics
    screen.table([{"metric": name, "value": value} for name, value in shown.items()])
    if result.best_metrics is not None:
        screen.say(f"the metrics are those of the best checkpoint, step {result.best_step}")
    for label, evaluated in result.evaluations.items():
        if "centers" in evaluated.stamp:
            screen.say(f"{label} was scored with centres: {evaluated.stamp['centers']}")
    stopped = f"stopped by {result.stopped_by} " if result.stopped_by else ""
    screen.say(f"{stopped}after step {result.step}; run folder: {result.folder}")
    for name, folder in (("last", result.checkpoint), ("best", result.best)):
        if folder is not None:
            screen.say(f"{name}: {folder}")


def _for_machines(result: TrainResult) -> dict[str, Any]:
    return {
        "folder": result.folder,
        "step": result.step,
        "checkpoint": result.checkpoint,
        "best": result.best,
        "metrics": result.metrics,
        "best_step": result.best_step,
        "best_metrics": result.best_metrics,
        "evaluations": {name: one.to_dict() for name, one in result.evaluations.items()},
        "stopped_by": result.stopped_by,
    }
