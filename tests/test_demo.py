"""The demonstration, with a tiny GiT: all files, a page that needs nothing else."""

from __future__ import annotations

import base64
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from helpers_checkpoint import tiny_checkpoint
from PIL import Image

from saccade.demo import MODELS, run_demo
from saccade.errors import UsageError
from saccade.hub.resolve import bundled_checkpoints
from saccade.models.git.config import GIT_TASKS
from saccade.tasks import Task


class Page(HTMLParser):
    """Collects what the tests look at, and the tags that are still open."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.images: list[dict[str, str | None]] = []
        self.text: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "img":
            self.images.append(dict(attrs))
        if tag not in ("img", "meta", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("demo")
    return run_demo(root / "out", models=[str(tiny_checkpoint(root / "model <b> &amp; x"))], images=2, device="cpu")


def test_every_task_is_written(demo: Path) -> None:
    results = json.loads((demo.parent / "results.json").read_text())
    assert [(r["task"], r["scene"]) for r in results["results"]] == [(str(t), n) for t in GIT_TASKS for n in range(2)]
    for result in results["results"]:
        pictures = {kind: Image.open(demo.parent / name) for kind, name in result["files"].items()}
        assert set(pictures) == {"picture", "prediction", "truth"}
        assert pictures["prediction"].width == pictures["picture"].width
        assert result["seconds"] > 0
        assert result["command"].startswith("saccade predict ") and result["files"]["picture"] in result["command"]
    assert results["about"]["command"].startswith("saccade demo --out ")
    written = {path.relative_to(demo.parent).as_posix() for path in demo.parent.rglob("*") if path.is_file()}
    named = {name for result in results["results"] for name in result["files"].values()}
    assert written == named | {"results.json", "index.html"}


def test_the_page_is_whole_and_needs_nothing_else(demo: Path) -> None:
    text = demo.read_text()
    page = Page(text)
    assert page.open == []
    assert len(page.images) == 2 * 2 * len(GIT_TASKS)
    for image in page.images:
        kind, _, data = (image["src"] or "").partition(",")
        assert kind == "data:image/jpeg;base64"
        Image.open(io.BytesIO(base64.b64decode(data))).verify()
        assert image["alt"]
    assert not re.search(r"""(src|href)=["'](?!data:|#)""", text), "nothing may be fetched"
    assert "prefers-color-scheme: dark" in text
    words = " ".join(page.text)
    for result in json.loads((demo.parent / "results.json").read_text())["results"]:
        assert result["command"] in words
        if result["task"] in ("caption", "grounding"):
            assert (result["prediction"].get("phrase") or result["truth"]["text"]) in words
    assert "$" not in words, "a placeholder was left"


def test_running_again_changes_nothing_but_times(demo: Path) -> None:
    def answers() -> list[object]:
        results = json.loads((demo.parent / "results.json").read_text())["results"]
        return [(r["prediction"], r["truth"]) for r in results]

    before, files = answers(), sorted(demo.parent.rglob("*"))
    models = list(json.loads((demo.parent / "results.json").read_text())["about"]["models"])
    run_demo(demo.parent, models=models, images=2, device="cpu")
    assert answers() == before and sorted(demo.parent.rglob("*")) == files


def test_what_is_shown_by_default_is_in_the_package() -> None:
    assert MODELS and set(MODELS) <= set(bundled_checkpoints())


def test_a_task_is_shown_by_the_first_model_that_offers_it(tmp_path: Path) -> None:
    boxes = str(tiny_checkpoint(tmp_path / "boxes", tasks=(Task.DETECTION,)))
    words = str(tiny_checkpoint(tmp_path / "words", tasks=(Task.DETECTION, Task.CAPTION)))
    page = run_demo(tmp_path / "out", models=[boxes, words], images=1, device="cpu")
    results = json.loads((page.parent / "results.json").read_text())
    assert [(r["task"], r["model"]) for r in results["results"]] == [("detection", boxes), ("caption", words)]
    assert all(f"--model {r['model']}" in r["command"] for r in results["results"])
    assert "2 tasks of 2 models" in page.read_text()


def test_wrong_use(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="at least one picture"):
        run_demo(tmp_path, images=0)
    with pytest.raises(UsageError, match="git-nanno"):
        run_demo(tmp_path, models=["git-nanno"])
