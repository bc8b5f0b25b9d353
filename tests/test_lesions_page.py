"""docs/lesions.md, followed command by command on miniatures of its folders, with fewer steps and smaller networks."""

from __future__ import annotations

import csv
import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from saccade.cli import main

PAGE = Path(__file__).parents[1] / "docs/lesions.md"


def draw(folder: Path, number: int, *, mask: Path | None = None) -> None:
    """A dark disc on skin."""
    rng = np.random.default_rng(number)
    y, x = np.mgrid[:44, :60]
    cx, cy = int(rng.integers(22, 38)), int(rng.integers(16, 28))
    disc = (x - cx) ** 2 + (y - cy) ** 2 <= int(rng.integers(7, 12)) ** 2
    picture = np.where(disc[..., None], (90, 60, 50), (220, 180, 160)) + rng.integers(-12, 12, (44, 60, 3))
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(folder / f"lesion_{number:03d}.png")
    if mask is not None:
        mask.mkdir(parents=True, exist_ok=True)
        Image.fromarray((disc * 255).astype(np.uint8)).save(mask / f"lesion_{number:03d}_segmentation.png")


def commands() -> list[list[str]]:
    lines = [line.strip() for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("    saccade ")]
    return [shlex.split(line)[1:] for line in lines]


def choices() -> list[str]:
    """What the text says that a training of unrolled pictures may be given besides."""
    text = PAGE.read_text(encoding="utf-8").split("## 2. Train")[1].split("## 3.")[0]
    return re.findall(r"`([a-z_.]+=[^`]+)`", text)


def smaller(words: list[str]) -> list[str]:
    """Seconds instead of an hour."""
    if words[0] != "train":
        return words
    steps = 2 if "recipe=polar.git" in words else 30
    words = [re.sub(r"^steps=.*", f"steps={steps}", word) for word in words]
    extra = ["train.0.batch_size=4", "threads=1", "workers=0", "device=cpu", f"eval_every={steps}"]
    if "recipe=polar.unet" in words:
        extra += [] if any(word.startswith("size=") for word in words) else ["size=48,48", "features=4"]
    elif "recipe=polar.centers" in words:
        extra += ["model.input_size=64", "model.network.width=8", "model.sigma=4", "model.network.stacks=1"]
    return [*words, *extra]


def test_the_page_is_true(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    torch.set_num_threads(1)
    for number in range(16):
        draw(Path("lesions/images"), number, mask=Path("lesions/masks"))
    for number in range(100, 103):
        draw(Path("new"), number)
    Image.fromarray(np.full((44, 60, 3), 200, np.uint8)).save("new/plain_skin.png")
    for number in range(12):
        part = "Training" if number < 10 else "Validation"
        draw(
            Path("isic") / f"ISIC2018_Task1-2_{part}_Input",
            number,
            mask=Path("isic") / f"ISIC2018_Task1_{part}_GroundTruth",
        )
    said = commands()
    assert [words[0] for words in said] == [
        "data",
        "train",
        "train",
        "train",
        "train",
        "train",
        "eval",
        "eval",
        "eval",
        "predict",
        "predict",
        "data",
    ]
    for words in said:
        assert main(smaller(words)) == 0, words
    trained = [word.removeprefix("name=") for words in said for word in words if word.startswith("name=")]
    assert trained == ["plain", "centers", "polar", "git", "git-polar"]
    for name in trained:  # every model that the page trains answers by itself
        assert main(["predict", "new", "--model", f"runs/{name}/checkpoints/best", "--device", "cpu"]) == 0, name
    assert [choice.split("=")[0] for choice in choices()] == ["finder", "objects", "model.least_region", "size"]
    unrolled = ["train", "recipe=polar.unet", "data=lesions", "reader=mask_folder", "polar=true"]
    for number, choice in enumerate(choices()):
        assert main([*smaller([*unrolled, *choice.split(), f"name=choice{number}"]), "steps=2"]) == 0, choice
    out = capsys.readouterr().out
    for part, count in (("train", 10), ("val", 1), ("test", 1)):
        made = json.loads(Path(f"isic_coco/annotations/instances_{part}.json").read_text())
        assert len(made["images"]) == len(made["annotations"]) == count
    assert "no defect" in out and "mean_Dice" in out and "polar_IoU" in out
    for centers in ("own", "truth"):  # with a finder, and (a choice alone) without one
        assert f"semantic_segmentation was scored with centres: {centers}" in out

    table = re.findall(r"^\| `(\S+)` \|", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert len(table) == 5
    for name in table:
        assert (tmp_path / "answers" / name.replace("NAME", "lesion_100")).is_file(), name
    labels = np.load("answers/lesion_100_semantic.npy")
    assert labels.shape == (44, 60) and set(np.unique(labels)) <= {0, 1}
    assert (np.asarray(Image.open("answers/lesion_100_semantic.png")) == labels).all()

    with Path("answers/measures.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    columns = re.search(r"has the columns `([^`]+)`", PAGE.read_text(encoding="utf-8"))
    assert columns is not None and columns[1].replace("\n", " ").split(", ") == list(rows[0])
    assert {Path(row["image"]).name for row in rows} == {path.name for path in Path("new").iterdir()}
    areas = sum(int(row["area_px"]) for row in rows if row["image"].endswith("lesion_100.png"))
    assert areas == labels.sum()
    told = json.loads(Path("answers/lesion_100.json").read_text())
    assert areas == sum(region["area"] for region in told["regions"] if region["class_name"] == "lesion")
    assert Path("by_hand/lesion_100_semantic.png").is_file() and Path("by_hand/measures.csv").is_file()
