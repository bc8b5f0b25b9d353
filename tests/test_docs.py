"""What the documentation tells a reader to type works."""

from __future__ import annotations

import dataclasses
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from saccade.cli import build
from saccade.errors import UsageError
from saccade.hub.resolve import bundled_checkpoints
from saccade.recipes import RECIPES, recipe_arguments
from saccade.training.config import TrainConfig

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def _commands(text: str) -> list[str]:
    """Command lines that start with ``saccade``, in code blocks (fenced or indented) and in backticks."""
    text = text.replace("\\\n", " ")
    fenced = re.findall(r"```\w*\n(.*?)```", text, flags=re.DOTALL)
    lines = [line.strip() for block in fenced for line in block.splitlines()]
    lines += [line.strip() for line in text.splitlines() if line.startswith("    ")]
    lines += re.findall(r"`(saccade [^`]+)`", text)
    return [line.partition("  #")[0] for line in lines if line.startswith("saccade ")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_parse(page: Path) -> None:
    parser = build()
    for command in _commands(page.read_text(encoding="utf-8")):
        words = shlex.split(command)[1:]
        if "VERB" in words or "..." in words:
            continue
        try:
            arguments, unknown = parser.parse_known_args([word for word in words if word != "--help"])
        except UsageError as error:  # a mention of the verb alone, as in "see `saccade data check`"
            assert error.what.startswith("the following arguments are required"), f"{page.name}: {command}: {error}"
            assert not any(word.startswith("-") for word in words), f"{page.name}: {command}: {error}"
            continue
        assert not unknown, f"{page.name}: {command}"
        assert arguments.run is not None


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_recipes_exist(page: Path) -> None:
    named = re.findall(r"\brecipe=([\w.-]*\w)", page.read_text(encoding="utf-8"))
    assert set(named) <= set(RECIPES), page.name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_trainings_have_their_arguments(page: Path) -> None:
    """Words of a command without a point are arguments of its recipe, or fields of every training."""
    fields = {field.name for field in dataclasses.fields(TrainConfig)}
    for command in _commands(page.read_text(encoding="utf-8")):
        words = dict(word.split("=", 1) for word in shlex.split(command) if re.match(r"\w+=", word))
        if command.startswith("saccade train") and "recipe" in words:
            unknown = words.keys() - {"recipe"} - fields - set(recipe_arguments(words["recipe"]))
            assert not unknown, f"{page.name}: {command}"


def test_the_readme_has_commands() -> None:
    assert len(_commands((ROOT / "README.md").read_text(encoding="utf-8"))) > 12


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_make_targets_of_the_documents_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE))
    for page in PAGES:
        fenced = re.findall(r"```\w*\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL)
        for line in "\n".join(fenced).splitlines():
            if line.startswith("make "):
                words = line.partition("#")[0].partition("  ")[0].split()[1:]
                assert {word for word in words if "=" not in word} <= targets, f"{page.name}: {line}"


@pytest.mark.skipif("git-nano" not in bundled_checkpoints(), reason="git-nano is not in the package")
def test_python_of_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    noise = np.random.default_rng(0).integers(0, 256, (120, 160, 3), dtype=np.uint8)
    Image.fromarray(noise).save("photo.jpg")
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.DOTALL)
    assert blocks
    for block in blocks:
        exec(block, {})
    assert Path("annotated.png").is_file()
