"""What the package promises about itself: its dependencies, its version, its commands."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import saccade

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))

IMPORT_NAMES = {"pillow": "PIL", "openexr": "OpenEXR"}
"""Distributions whose import name is not their own with underscores."""


def _names(requirements: list[str]) -> set[str]:
    found = set()
    for requirement in requirements:
        name = re.split(r"[<>=!~\[; ]", requirement, maxsplit=1)[0].lower()
        found.add(IMPORT_NAMES.get(name, name.replace("-", "_")))
    return found


def _imports(file: Path) -> set[str]:
    """Top-level packages that a file imports, also inside functions and through ``require("name", ...)``."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found.add(node.module.partition(".")[0])
        elif (
            isinstance(node, ast.Call)
            and ast.unparse(node.func) == "require"
            and isinstance(node.args[0], ast.Constant)
        ):
            found.add(str(node.args[0].value).partition(".")[0])
    return found


def test_everything_imported_is_declared() -> None:
    core = _names(PROJECT["project"]["dependencies"])
    extras = PROJECT["project"]["optional-dependencies"]
    declared = core.union(*(_names(extras[name]) for name in extras if name != "dev"))
    for file in sorted((ROOT / "src").rglob("*.py")):
        foreign = _imports(file) - set(sys.stdlib_module_names) - {"saccade"}
        assert foreign <= declared, f"{file.relative_to(ROOT)} imports {sorted(foreign - declared)}"


def test_every_core_dependency_is_used() -> None:
    imported = set().union(*(_imports(file) for file in (ROOT / "src").rglob("*.py")))
    assert _names(PROJECT["project"]["dependencies"]) <= imported


def test_no_import_of_what_the_package_does_without() -> None:
    without = {"cv2", "mmcv", "mmdet", "mmengine", "detectron2", "apex", "xformers", "lightning"}
    for file in (ROOT / "src").rglob("*.py"):
        assert not without & _imports(file), file


def test_importing_the_package_is_light() -> None:
    code = "import sys, saccade, saccade.cli; assert not {'torch', 'numpy', 'rich', 'PIL'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_no_module_has_a_side_effect_on_import() -> None:
    """Importing every module leaves the global state of torch and numpy, and the working directory, as they were."""
    code = """
import os, pkgutil, torch, numpy

def state():
    own = {key: value for key, value in os.environ.items() if not key.startswith("TORCH")}  # torch sets its own
    return (torch.initial_seed(), torch.get_num_threads(), torch.get_default_dtype(), torch.is_grad_enabled(),
            torch.are_deterministic_algorithms_enabled(), torch.backends.cuda.matmul.allow_tf32,
            numpy.random.get_state()[1].tolist(), own, os.getcwd(), sorted(os.listdir()))

before = state()
import saccade
for module in pkgutil.walk_packages(saccade.__path__, "saccade."):
    if not module.name.endswith("__main__"):
        __import__(module.name)
assert state() == before
"""
    # Not the environment of this process: what a library has set here already could not be seen to change.
    bare = {key: os.environ[key] for key in ("PATH", "HOME") if key in os.environ}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=bare)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""


def test_the_version_comes_from_one_place() -> None:
    assert "version" in PROJECT["project"]["dynamic"]
    assert re.fullmatch(r"\d+\.\d+\.\d+", saccade.__version__)


def test_every_module_stands_on_a_floor() -> None:
    """The import contract names every module of the package: a new one cannot escape it."""
    contract = PROJECT["tool"]["importlinter"]["contracts"][0]
    on_a_floor = {name.removeprefix("saccade.") for layer in contract["layers"] for name in re.split(r"[ |:]+", layer)}
    modules = {path.stem for path in (ROOT / "src/saccade").glob("*.py")} - {"__init__"}
    modules |= {path.parent.name for path in (ROOT / "src/saccade").glob("*/__init__.py")}
    assert modules <= on_a_floor, f"add to the layers in pyproject.toml: {sorted(modules - on_a_floor)}"
    assert on_a_floor <= modules, f"no such module: {sorted(on_a_floor - modules)}"
