"""Centres on the command line and in Python: a click, several, a model that finds them; wrong words."""

from __future__ import annotations

import csv
import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers_polar import CLASSES, TINY_CENTERS, TINY_UNET
from PIL import Image

import saccade
from saccade.cli import main
from saccade.errors import UsageError
from saccade.hub.checkpoint import save_model
from saccade.models.polar.config import PolarConfig
from saccade.models.systems import build
from saccade.samples import ClassList
from saccade.tasks import Task


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("models")
    found = {}
    for name, config in (
        ("plain", TINY_UNET),
        ("centers", TINY_CENTERS),
        ("moles", dataclasses.replace(TINY_UNET, classes=("mole", "background"))),
        ("polar", PolarConfig(segmenter=TINY_UNET)),
    ):
        torch.manual_seed(0)
        net = build(config)
        classes = ClassList.from_names(config.classes) if name == "moles" else CLASSES
        found[name] = str(save_model(net, root / name, classes={net.tasks[0]: classes}, provenance={}))
    return found


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    noise = np.random.default_rng(0).integers(0, 256, (40, 52, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "one.png")
    return tmp_path / "one.png"


def test_a_click_and_two(models: dict[str, str], picture: Path, tmp_path: Path) -> None:
    words = ["predict", str(picture), "--model", models["polar"], "--save", "npy,csv", "--out"]
    assert main([*words, str(tmp_path / "a"), "--center", "10,12"]) == 0
    assert main([*words, str(tmp_path / "b"), "--center", "10,12", "--center", "40,30.5"]) == 0
    labels = np.load(tmp_path / "a/one_semantic.npy")
    assert labels.shape == (40, 52)
    with (tmp_path / "b/measures.csv").open(newline="") as stream:
        assert {row["width"] for row in csv.DictReader(stream)} == {"52"}
    same = saccade.load(models["polar"], device="cpu").predict(picture, centers=[(10, 12)])
    assert (same.labels.numpy() == labels).all()


@pytest.mark.parametrize("finder", ["plain", "moles", "centers"])
def test_another_model_finds_the_centre(models: dict[str, str], picture: Path, tmp_path: Path, finder: str) -> None:
    words = ["predict", str(picture), "--model", models["polar"], "--save", "png", "--out", str(tmp_path / "out")]
    assert main([*words, "--centers", models[finder]]) == 0
    assert (tmp_path / "out/one_semantic.png").is_file()


def test_centres_are_an_answer_too(models: dict[str, str], picture: Path, tmp_path: Path, capsys) -> None:
    words = ["predict", str(picture), "--model", models["centers"], "--out", str(tmp_path / "out")]
    assert main([*words, "--save", "json,overlay"]) == 0
    assert "at x" in capsys.readouterr().out
    told = json.loads((tmp_path / "out/one.json").read_text())
    assert told["type"] == "centers" and len(told["centers"]) == 1
    assert Image.open(tmp_path / "out/one_overlay.png").size == (52, 40)
    for wrong in ("coco", "png", "csv"):
        assert main([*words, "--save", wrong]) == 2


@pytest.mark.parametrize(
    ("model", "more", "what"),
    [
        ("polar", [], "not told where the object is"),
        ("polar", ["--center", "60,5"], "one.png"),
        ("polar", ["--center", "-3,5"], "the centre (-3, 5) lies outside the map"),
        ("polar", ["--center", "5"], "is not a point"),
        ("polar", ["--center", "a,b"], "is not a point"),
        ("polar", ["--center", "5,5", "--centers", "CENTERS"], "leave out --center, or --centers"),
        ("plain", ["--center", "5,5"], "does not ask where objects are"),
        ("plain", ["--centers", "CENTERS"], "unrolled around them"),
        ("polar", ["--centers", "vitdet-nano"], "finds no centres"),
        ("polar", ["--centers", "POLAR"], "a polar model finds no centres"),
    ],
)
def test_wrong_words(models: dict[str, str], picture: Path, model: str, more: list[str], what: str, capsys) -> None:
    more = [models[word.lower()] if word.isupper() else word for word in more]
    assert main(["predict", str(picture), "--model", models[model], *more]) in (1, 2)
    assert what in capsys.readouterr().err


def test_a_centre_belongs_to_one_picture(models: dict[str, str], picture: Path) -> None:
    predictor = saccade.load(models["polar"], device="cpu")
    with pytest.raises(UsageError, match="belong to one picture"):
        predictor.predict([picture, picture], centers=[(3, 3)])
    with pytest.raises(UsageError, match="no centre is given"):
        predictor.predict(picture, centers=[])


def test_evaluation_with_true_and_found_centres(models: dict[str, str], tmp_path: Path, capsys) -> None:
    for number in range(5):
        for folder, values in (("images", 200), ("masks", 255)):
            (tmp_path / folder).mkdir(exist_ok=True)
            disc = np.zeros((30, 40), np.uint8)
            disc[8 + number : 20, 10:25] = values
            Image.fromarray(disc).save(tmp_path / folder / f"{number}.png")
    words = ["--data", "mask_folder", "--root", str(tmp_path), "--split", "all", "--classes", "background,lesion"]
    seen = {}
    for centers in ("truth", models["plain"], models["moles"], models["centers"]):
        out = tmp_path / "told.json"
        more = [
            "--task",
            "semantic",
            "--protocol",
            "polar",
            "--centers",
            centers,
            "--json",
            str(out),
            "--device",
            "cpu",
        ]
        assert main(["eval", models["polar"], *words, *more]) == 0
        told = json.loads(out.read_text())[str(Task.SEMANTIC)]
        assert told["images"] == 5 and told["centers"] == centers
        assert told["protocol"].endswith(f"; centres: {centers}")
        assert f"; centres: {centers}" in capsys.readouterr().out.replace("\n", "")
        seen[centers] = told["metrics"]
    assert all(0 <= value <= 1 for metrics in seen.values() for value in metrics.values())
    assert main(["eval", models["polar"], *words, "--task", "semantic", "--device", "cpu"]) == 2
    assert main(["eval", models["plain"], *words[:-2], "--task", "semantic", "--device", "cpu"]) == 2
    told = capsys.readouterr().err
    assert "the model does not know the class 'foreground'" in told and "--classes background,lesion" in told
    unknown = [
        "predict",
        str(tmp_path / "images/0.png"),
        "--model",
        models["plain"],
        "--classes",
        "background,foreground",
    ]
    assert main([*unknown, "--device", "cpu"]) == 2 and "--classes background,lesion" in capsys.readouterr().err
    assert main(["eval", models["plain"], *words, "--task", "semantic", "--centers", "truth", "--device", "cpu"]) == 2
    assert main(["eval", models["centers"], *words, "--task", "center", "--device", "cpu"]) == 0
    assert main(["models", "show", models["polar"]]) == 0
