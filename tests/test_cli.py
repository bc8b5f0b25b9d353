"""The command line from outside: words in, screen, files and exit code out."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers_checkpoint import tiny_checkpoint
from PIL import Image

from saccade.bench import run_bench
from saccade.cli import build, main
from saccade.cli.predict import describe
from saccade.data.scenes import THING_CLASSES
from saccade.hub.checkpoint import save_model
from saccade.models.ait.model import AiT
from saccade.models.ait.presets import nano as ait_nano
from saccade.models.vitdet.model import ViTDet
from saccade.models.vitdet.presets import PRESETS as DETECTORS
from saccade.predictor import Answer
from saccade.results import DepthMap
from saccade.samples import Origin
from saccade.tasks import TASKS

VERBS = ("predict", "train", "eval", "data", "models", "convert", "lora", "bench", "demo")
SECOND_WORDS = {"data": ("scenes", "check", "convert"), "models": ("list", "show")}
EVERY_VERB = [
    *([verb] for verb in VERBS),
    *([verb, word] for verb, words in SECOND_WORDS.items() for word in words),
]
SAMPLE = Path(__file__).parents[1].parent / "shared/parity/git/ckpt_format_sample.pth"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    torch.set_num_threads(1)
    return str(tiny_checkpoint(tmp_path_factory.mktemp("model") / "tiny"))


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(3):
        noise = np.random.default_rng(number).integers(0, 256, (48, 64, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / f"{number}.png")
    return folder


class Ran:
    """One run of the command line: exit code and what it printed."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]):
    def call(*words: str | Path) -> Ran:
        capsys.readouterr()
        code = main([str(word) for word in words])
        printed = capsys.readouterr()
        return Ran(code, printed.out, printed.err)

    return call


# --- the frame: help, errors, exit codes -----------------------------------------------------------------------------


def test_help_comes_without_loading_torch() -> None:
    code = "import sys; from saccade.cli import main; main(['--help']); assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert all(verb in done.stdout for verb in VERBS)


@pytest.mark.parametrize("words", EVERY_VERB, ids=" ".join)
def test_help_of_each_verb_shows_an_example(run, words: list[str]) -> None:
    shown = run(*words, "--help")
    assert shown.code == 0
    examples = shown.out.partition("examples:")[2].strip().splitlines()
    assert examples
    assert all(line.strip().startswith(f"saccade {words[0]}") for line in examples)


def test_examples_in_the_help_are_right() -> None:
    """Every example parses: no option in it is misspelt or gone."""
    import shlex

    def examples(parser) -> list[str]:
        found = [line.strip() for line in (parser.epilog or "").splitlines() if line.strip().startswith("saccade ")]
        for action in parser._actions:
            if isinstance(action.choices, dict):
                for inner in action.choices.values():
                    found += examples(inner)
        return found

    parser = build()
    lines = examples(parser)
    assert len(lines) >= len(EVERY_VERB)
    for line in lines:
        words = shlex.split(line.split("   ")[0])[1:]  # a remark stands after three blanks
        arguments, unknown = parser.parse_known_args(words)
        assert not unknown, line
        assert arguments.run is not None


def test_no_words_show_the_help_and_are_wrong_use(run) -> None:
    shown = run()
    assert shown.code == 2
    assert "predict" in shown.out


def test_version(run) -> None:
    from saccade import __version__

    assert run("--version").out == f"saccade {__version__}\n"


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["predct", "a.jpg"], "did you mean 'predict'?"),
        (["data", "chek", "x"], "did you mean 'check'?"),
        (["predict", "a.jpg", "--modl", "x"], "did you mean '--model'?"),
        (["predict", "a.jpg", "--modl=x"], "did you mean '--model'?"),
        (["models", "show", "git-bse"], "did you mean 'git-base'?"),
        (["predict", "a.jpg", "--save", "overlai"], "did you mean 'overlay'?"),
        (["data", "scenes", "--out", "x", "--format", "cocoo"], "did you mean 'coco'?"),
        (["data", "scenes", "--out", "x", "--split", "vall"], "did you mean 'val'?"),
        (["eval", "git-nano", "--data", "scene"], "did you mean 'scenes'?"),
        (["eval", "git-nano", "--precision", "bf61"], "did you mean 'bf16'?"),
        (["predict"], "saccade predict --help"),
        (["predict", "a.jpg", "--score", "2"], "between 0 and 1"),
        (["predict", "a.jpg", "--classes", "cat,,dog"], "empty name"),
        (["data", "scenes", "--out", "x", "--count", "0"], "at least 1"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_use_names_the_nearest_and_exits_with_2(run, words: list[str], hint: str) -> None:
    shown = run(*words)
    assert shown.code == 2
    assert shown.err.startswith("error: ")
    assert hint in shown.err
    assert "Traceback" not in shown.err


_OPEN_TO_BOTH = {"help", "root", "limit", "batch_size", "workers", "precision", "device", "json", "suite"}
_VALUES = {"lora_multiplier": "2", "soft_nms": "linear", "engine": "faster", "answers": "own", "test_sizes": "320"}


@pytest.mark.parametrize("of_suites", [False, True])
def test_options_of_the_other_kind_of_evaluation_are_refused(run, of_suites: bool) -> None:
    """A run that ignores what was asked for says that it measured something that it did not."""
    parser = build().parse_args(["eval", "git-nano"]).parser
    listed = parser._actions
    group = next(group for group in parser._action_groups if group.title == "suites")
    suites = {action.dest for action in group._group_actions}
    words = [] if of_suites else ["--suite", "visft.goi", "--root", "."]
    refused = 0
    for action in listed:
        if action.dest in _OPEN_TO_BOTH or not action.option_strings or (action.dest in suites) is not of_suites:
            continue
        value = [] if action.nargs == 0 else [_VALUES.get(action.dest, "7")]
        shown = run("eval", "git-nano", *words, action.option_strings[0], *value)
        assert shown.code == 2, action.dest
        assert f"{action.option_strings[0]} would have no effect here" in shown.err
        refused += 1
    assert refused == (11 if of_suites else 16)


def test_debugging_shows_the_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    from saccade.errors import UsageError

    monkeypatch.setenv("SACCADE_DEBUG", "1")
    with pytest.raises(UsageError):
        main(["models", "show", "git-bse"])


def test_a_file_that_cannot_be_written_is_named_without_traceback(run, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    shown = run("data", "scenes", "--out", tmp_path / "scenes", "--count", "1", "--json", tmp_path / "file/x.json")
    assert shown.code == 1
    assert str(tmp_path / "file") in shown.err
    assert "Traceback" not in shown.err


def test_too_little_memory_gets_advice(run, monkeypatch: pytest.MonkeyPatch) -> None:
    import saccade.hub.zoo

    def exhaust(_system: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(saccade.hub.zoo, "list_entries", exhaust)
    shown = run("models", "list")
    assert shown.code == 1
    assert "smaller batch" in shown.err


def test_interruption_has_its_own_exit_code(run, monkeypatch: pytest.MonkeyPatch) -> None:
    import saccade.hub.zoo

    def interrupt(_system: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(saccade.hub.zoo, "list_entries", interrupt)
    assert run("models", "list").code == 130


def test_a_closed_pipe_is_no_error() -> None:
    command = f"{sys.executable} -m saccade models list | head -1"
    done = subprocess.run(["bash", "-c", f"set -o pipefail; {command}"], capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr
    assert "BrokenPipe" not in done.stderr
    assert len(done.stdout.splitlines()) == 1


# --- predict ---------------------------------------------------------------------------------------------------------


def test_predict_says_what_it_sees_and_saves_it(run, model: str, pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "answers"
    words = ["--task", "instance", "--classes", "ball,box", "--score", "0", "--save", "coco,png,npy,overlay,json"]
    shown = run("predict", pictures, "--model", model, *words, "--out", out, "--device", "cpu")
    assert shown.code == 0, shown.err
    lines = shown.out.splitlines()
    assert [line.split(":")[0] for line in lines] == [str(pictures / f"{n}.png") for n in range(3)]
    assert all("ball" in line or "box" in line for line in lines)
    names = {path.name for path in out.iterdir()}
    assert {"coco_results.json", "coco_dataset.json", "0_overlay.png", "0_masks.npy", "0_instances.png"} <= names
    assert np.load(out / "0_masks.npy").shape[1:] == (48, 64)
    categories = json.loads((out / "coco_dataset.json").read_text())["categories"]
    assert [category["name"] for category in categories] == ["ball", "box"]
    assert "3 pictures" in shown.err


def test_predict_saves_nothing_unless_asked(run, model: str, pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(pictures.parent)
    before = set(pictures.parent.rglob("*"))
    assert run("predict", pictures / "0.png", "--model", model, "--task", "caption").code == 0
    assert set(pictures.parent.rglob("*")) == before


def test_predict_grounds_every_phrase(run, model: str, pictures: Path) -> None:
    words = ["--phrase", "the red ball", "--phrase", "the box on the left"]
    shown = run("predict", pictures / "0.png", "--model", model, *words)
    assert shown.code == 0, shown.err
    assert len(shown.out.splitlines()) == 2
    assert "'the red ball' at x " in shown.out


def test_predict_tells_depth_in_metres(run, pictures: Path, tmp_path: Path) -> None:
    """Without --task, for a model that has no other."""
    torch.manual_seed(0)
    net = AiT(dataclasses.replace(ait_nano(64), instance=None))
    folder = save_model(net, tmp_path / "depth", classes={}, provenance={})
    shown = run("predict", pictures / "0.png", "--model", folder, "--save", "npy", "--out", tmp_path / "out")
    assert shown.code == 0, shown.err
    depth = np.load(tmp_path / "out/0_depth.npy")
    least, median, greatest = (f"{value:.1f} m" for value in (depth.min(), np.median(depth), depth.max()))
    assert shown.out == f"{pictures / '0.png'}: {least} to {greatest}, median {median}\n"


def test_a_depth_map_without_a_known_pixel_is_told_as_such() -> None:
    origin = Origin(dataset="d", image_id=0, path=None, size_hw=(2, 2))
    unknown = DepthMap(depth_m=torch.full((2, 2), torch.nan))
    assert describe(Answer(origin=origin, stem="0", prediction=unknown)) == "no depth known"


def test_the_help_of_predict_names_every_task(run) -> None:
    (named,) = re.findall(r"--task TASK\s(.*?)--classes", run("predict", "--help").out, re.DOTALL)
    assert all(spec.alias in named for spec in TASKS.values())


def test_predict_goes_on_after_a_damaged_picture_and_reports_it(run, model: str, pictures: Path) -> None:
    (pictures / "1.png").write_bytes((pictures / "1.png").read_bytes()[:200])
    shown = run("predict", pictures, "--model", model, "--task", "semantic")
    assert shown.code == 1
    assert len(shown.out.splitlines()) == 2
    assert "1.png" in shown.err
    assert "2 pictures" in shown.err
    assert "1 could not be read" in shown.err


def test_predict_refuses_formats_that_the_task_does_not_have(run, model: str, pictures: Path) -> None:
    shown = run("predict", pictures, "--model", model, "--task", "detection", "--save", "npy")
    assert shown.code == 2
    assert "no masks" in shown.err


def test_predict_names_a_missing_file(run, model: str, tmp_path: Path) -> None:
    shown = run("predict", tmp_path / "nowhere.jpg", "--model", model, "--task", "caption")
    assert shown.code in (1, 2)
    assert "nowhere.jpg" in shown.err
    assert "Traceback" not in shown.err


# --- eval, data, models, convert, demo -------------------------------------------------------------------------------


def test_eval_measures_and_writes_json(run, model: str, tmp_path: Path) -> None:
    file = tmp_path / "eval.json"
    words = ["--data", "scenes", "--task", "grounding,semantic", "--limit", "2", "--json", file, "--device", "cpu"]
    shown = run("eval", model, *words)
    assert shown.code == 0, shown.err
    written = json.loads(file.read_text())
    assert set(written) == {"grounding", "semantic_segmentation"}
    assert written["grounding"]["images"] == 2
    for result in written.values():
        assert result["metrics"]
        assert all(name in shown.out for name in result["metrics"])


def test_eval_of_files_needs_a_folder_and_a_task(run, model: str, tmp_path: Path) -> None:
    shown = run("eval", model, "--data", "coco", "--task", "detection")
    assert (shown.code, "--root DIR" in shown.err) == (2, True)
    shown = run("eval", model, "--data", "coco", "--root", tmp_path)
    assert (shown.code, "--task detection" in shown.err) == (2, True)


@pytest.mark.parametrize("layout", ["coco", "ade", "karpathy", "refcoco", "grefcoco", "nyu"])
def test_scenes_are_written(run, tmp_path: Path, layout: str) -> None:
    file = tmp_path / "written.json"
    words = ["--format", layout, "--count", "2", "--split", "val", "--size", "96", "--json", file]
    shown = run("data", "scenes", "--out", tmp_path / "set", *words)
    assert shown.code == 0, shown.err
    written = json.loads(file.read_text())
    assert written["images"] == 2
    assert written["format"] == layout
    assert layout in shown.out
    assert all(Path(path).is_file() for path in written["files"])


@pytest.fixture(scope="module")
def mask_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six pictures with a square lesion each, in two splits."""
    root = tmp_path_factory.mktemp("lesions") / "lesions"
    for part in ("images", "masks", "splits"):
        (root / part).mkdir(parents=True)
    random = np.random.default_rng(0)
    for number in range(6):
        mask = np.zeros((40, 50), np.uint8)
        mask[10:20, 10 : 20 + number] = 255
        Image.fromarray(random.integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(root / f"images/{number}.png")
        Image.fromarray(mask).save(root / f"masks/{number}.png")
    (root / "splits/train.txt").write_text("0\n1\n2\n3\n")
    (root / "splits/val.txt").write_text("4\n5\n")
    return root


def test_check_of_a_sound_data_set(run, mask_folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "report.json"
    shown = run("data", "check", mask_folder, "--json", file)
    assert shown.code == 0, shown.out + shown.err
    assert "no defect" in shown.out
    report = json.loads(file.read_text())
    assert report["ok"] is True
    assert [(one["reader"], one["counts"]["images"]) for one in report["splits"]] == [
        ("mask_folder", 4),
        ("mask_folder", 2),
    ]


def test_check_finds_counts_and_shows_defects(run, mask_folder: Path, tmp_path: Path) -> None:
    import shutil

    broken = tmp_path / "broken"
    shutil.copytree(mask_folder, broken)
    (broken / "images/1.png").write_bytes((broken / "images/1.png").read_bytes()[:100])
    shutil.copyfile(broken / "images/2.png", broken / "images/4.png")
    file = tmp_path / "report.json"
    shown = run("data", "check", broken, "--json", file, "--examples", "1")
    assert shown.code == 1
    assert "images/1.png" in shown.out
    train, _ = json.loads(file.read_text())["splits"]
    assert {one["kind"]: one["count"] for one in train["defects"]} == {"unreadable_image": 1, "image_in_both_splits": 1}
    assert all(one["kind"] in shown.out and one["fix"] in shown.out for one in train["defects"])
    only = run("data", "check", broken, "--split", "val", "--format", "mask_folder", "--headers-only")
    assert "broken/train" not in only.out


def test_check_of_a_folder_without_data_says_what_was_looked_for(run, tmp_path: Path) -> None:
    shown = run("data", "check", tmp_path)
    assert shown.code == 2
    assert "no data set is recognised" in shown.err
    assert "coco: " in shown.err
    assert run("data", "check", tmp_path / "nowhere").code == 2
    assert "did you mean 'coco'?" in run("data", "check", tmp_path, "--format", "cocoo").err


def test_check_and_convert_take_the_suffix_of_masks(run, mask_folder: Path, tmp_path: Path) -> None:
    import shutil

    own, out = tmp_path / "own", tmp_path / "coco"
    shutil.copytree(mask_folder, own)
    for path in (own / "masks").iterdir():
        path.rename(path.with_name(f"{path.stem}-nevus.png"))
    assert "--mask-suffix" in run("data", "check", own, "--format", "mask_folder").err
    assert run("data", "check", own, "--format", "mask_folder", "--mask-suffix", "nevus").code == 0
    words = ("data", "convert", own, "--from", "mask_folder", "--mask-suffix", "nevus", "--out", out)
    shown = run(*words, "--least-region", "0.06", "--json", tmp_path / "told.json")
    assert shown.code == 0, shown.err
    told = json.loads((tmp_path / "told.json").read_text())["splits"]
    assert [(one["annotations"], one["left_out"]) for one in told] == [(2, 2), (2, 0)]
    other = run(*words[:-1], tmp_path / "crops", "--to", "mask_crops", "--least-region", "0.1")
    assert (other.code, "--least-region has no meaning" in other.err) == (2, True)


def test_check_of_one_coco_file_without_splits_looks_at_it_once(run, tmp_path: Path) -> None:
    run("data", "scenes", "--out", tmp_path, "--count", "12", "--size", "64")
    file = next(tmp_path.glob("annotations/instances_*.json"))
    content = json.loads(file.read_text())
    content["annotations"].append({**content["annotations"][0], "image_id": 99})
    for other in tmp_path.glob("annotations/*.json"):
        other.unlink()
    (tmp_path / "annotations/instances_default.json").write_text(json.dumps(content))
    (tmp_path / "val2017").rename(tmp_path / "images")
    shown = run("data", "check", tmp_path, "--json", tmp_path / "report.json")
    assert shown.code == 1
    splits = json.loads((tmp_path / "report.json").read_text())["splits"]
    assert len(splits) == 1
    assert splits[0]["counts"]["images"] == 12
    assert {one["kind"]: one["count"] for one in splits[0]["defects"]}["dangling_annotation"] == 1


def test_convert_a_data_set(run, mask_folder: Path, tmp_path: Path) -> None:
    file, out = tmp_path / "written.json", tmp_path / "coco"
    shown = run("data", "convert", mask_folder, "--from", "mask_folder", "--to", "coco", "--out", out, "--json", file)
    assert shown.code == 0, shown.err
    splits = json.loads(file.read_text())["splits"]
    assert [(one["split"], one["images"], one["annotations"]) for one in splits] == [("train", 4, 4), ("val", 2, 2)]
    annotation = json.loads((out / "annotations/instances_val.json").read_text())["annotations"][1]
    assert annotation["bbox"] == [10, 10, 15, 10]
    assert run("data", "check", out).code == 0
    again = run("data", "convert", mask_folder, "--from", "mask_folder", "--out", out)
    assert (again.code, "exists already" in again.err) == (2, True)


def test_convert_captions_of_all_splits_at_once(run, tmp_path: Path) -> None:
    pytest.importorskip("h5py", reason="the extra hdf5 is not installed")
    for split in ("train", "test"):
        drawn = run("data", "scenes", "--out", tmp_path, "--format", "karpathy", "--count", 3, "--split", split)
        assert drawn.code == 0, drawn.err
    out, words = tmp_path / "out", tmp_path / "WORDMAP_own.json"
    words.write_text(json.dumps({"<pad>": 0, "a": 1, "circle": 2, "<unk>": 3, "<start>": 4, "<end>": 5}))
    convert = ("data", "convert", tmp_path, "--from", "karpathy", "--to")
    shown = run(*convert, "caption_hdf5", "--words", words, "--out", out, "--json", tmp_path / "written.json")
    assert shown.code == 0, shown.err
    (row,) = json.loads((tmp_path / "written.json").read_text())["splits"]
    assert (row["split"], row["images"], row["captions"], row["words"]) == ("train, test", 6, 30, 6)
    assert json.loads(next(out.glob("WORDMAP_*")).read_text()) == json.loads(words.read_text())
    assert run("data", "check", out, "--format", "caption_hdf5").code == 0
    other = run(*convert, "coco", "--words", words, "--out", out)
    assert (other.code, "--words has no meaning" in other.err) == (2, True)


def test_convert_captions_of_one_file_with_all_splits(run, tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py", reason="the extra hdf5 is not installed")
    images = []
    for at, split in enumerate(("train", "restval", "val", "test")):
        Image.new("RGB", (8, 8), (40 * at, 0, 0)).save(tmp_path / f"{at}.jpg")
        sentences = [{"raw": f"a {split}", "tokens": ["a", split]}] * 6
        images.append({"filename": f"{at}.jpg", "cocoid": at, "split": split, "sentences": sentences})
    whole = tmp_path / "dataset_coco.json"
    whole.write_text(json.dumps({"images": images}))
    (tmp_path / "annotations").mkdir()
    for split in ("train", "val"):  # COCO's own split, which lies beside it
        (tmp_path / f"annotations/captions_{split}2017.json").write_text('{"images": [], "annotations": []}')
    words = ("--annotations", whole.name, "--words", whole, "--out", tmp_path / "out")
    shown = run("data", "convert", tmp_path, "--from", "karpathy", "--to", "caption_hdf5", *words)
    assert shown.code == 0, shown.err
    for split, count in (("TRAIN", 2), ("VAL", 1), ("TEST", 1)):
        with h5py.File(next((tmp_path / "out").glob(f"{split}_IMAGES_*"))) as file:
            assert len(file["images"]) == count
    ids = json.loads(next((tmp_path / "out").glob("WORDMAP_*")).read_text())
    assert list(ids)[1:6] == ["a", "train", "restval", "val", "test"]


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["--from", "mask_foldr"], "did you mean 'mask_folder'?"),
        (["--from", "mask_folder", "--to", "cocoo"], "did you mean 'coco'?"),
        (["--from", "scenes"], "saccade data scenes"),
        (["--from", "voc"], "no VOC annotations"),
        (["--from", "mask_folder", "--split", "tets"], "there is no split 'tets'"),
    ],
)
def test_convert_refuses_what_is_not_there(run, mask_folder: Path, tmp_path: Path, words: list[str], hint: str) -> None:
    shown = run("data", "convert", mask_folder, "--out", tmp_path / "out", *words)
    assert shown.code == 2
    assert hint in shown.err


def test_models_are_listed_and_shown(run, model: str) -> None:
    listed = run("models", "list")
    assert listed.code == 0
    assert all(name in listed.out for name in ("git-base", "git-universal-huge", "multi_base.pth"))
    card = run("models", "show", "git-base")
    assert all(word in card.out for word in ("158,647,808", "46.7", "multi_base.pth"))
    own = run("models", "show", model)
    assert own.code == 0, own.err
    assert all(word in own.out for word in ("semantic_segmentation", "2 blocks, width 16", "recipe"))


@pytest.mark.skipif(not SAMPLE.is_file(), reason="the sample checkpoint (../shared/parity/git) is absent")
def test_convert_refuses_a_file_of_another_kind(run) -> None:
    shown = run("convert", SAMPLE)
    assert shown.code == 1
    assert SAMPLE.name in shown.err


def test_convert_reports_every_key_and_refuses_a_partial_file(run, model: str, tmp_path: Path) -> None:
    official, file = tmp_path / "official.pth", tmp_path / "report.json"
    assert run("convert", model, "--to-official", official).code == 0
    content = torch.load(official, weights_only=True)
    del content["state_dict"]["backbone.layers.0.ln1.weight"]
    torch.save(content, official)
    shown = run("convert", official, "--out", tmp_path / "out", "--json", file)
    assert shown.code == 1
    assert "missing" in shown.out
    assert "1 missing" in shown.err
    assert not (tmp_path / "out").exists()
    report = json.loads(file.read_text())
    assert report["complete"] is False
    assert report["written"] is None


def test_convert_there_and_back(run, model: str, tmp_path: Path) -> None:
    official = tmp_path / "official.pth"
    assert run("convert", model, "--to-official", official).code == 0
    only_report = run("convert", official)
    assert only_report.code == 0, only_report.err
    assert "nothing written" in only_report.err
    shown = run("convert", official, "--out", tmp_path / "back", "--vocabulary", Path(model) / "vocab.txt")
    assert shown.code == 0, shown.err
    assert run("models", "show", tmp_path / "back").code == 0
    assert run("convert", official, "--out", "a", "--to-official", "b.pth").code == 2


def test_demo_writes_a_page(run, model: str, tmp_path: Path) -> None:
    shown = run("demo", "--out", tmp_path / "demo", "--model", model, "--images", "1", "--device", "cpu")
    assert shown.code == 0, shown.err
    assert shown.out.strip() == f"open {tmp_path / 'demo/index.html'}"
    assert (tmp_path / "demo/index.html").stat().st_size > 10_000


@pytest.mark.skipif(importlib.util.find_spec("torchao") is None, reason="torchao is not installed")
def test_a_command_says_nothing_of_libraries_that_it_does_not_use() -> None:
    words = ["-m", "saccade", "models", "show", "gsva-7b-pt"]
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and not done.stderr


def test_the_command_is_installed() -> None:
    command = Path(sys.executable).with_name("saccade")
    if not command.exists():
        pytest.skip("the package is not installed beside this Python")
    done = subprocess.run([command, "--version"], capture_output=True, text=True, check=False, env=os.environ)
    assert done.returncode == 0
    assert done.stdout.startswith("saccade ")


def test_bench_measures_against_the_reference(run, tmp_path: Path) -> None:
    file = tmp_path / "bench.json"
    words = ["--task", "grounding", "--preset", "nano", "--repeats", "1", "--json", file, "--device", "cpu"]
    shown = run("bench", "git", *words)
    assert shown.code == 0, shown.err
    written = json.loads(file.read_text())["results"]
    assert [one["task"] for one in written] == ["grounding"]
    for one in written:
        assert one["ratio"] == pytest.approx(one["ms_per_image"] / one["reference_ms"])
    assert "vit_b_16" in shown.out
    assert run("bench", "gti").code == 2


def test_bench_times_a_backbone_and_a_whole_detector(run, tmp_path: Path) -> None:
    words = ["--task", "backbone,instance", "--preset", "vitdet-nano", "--repeats", "1", "--device", "cpu"]
    shown = run("bench", "vitdet", *words, "--json", tmp_path / "b.json")
    assert shown.code == 0, shown.err
    backbone, whole = json.loads((tmp_path / "b.json").read_text())["results"]
    assert (backbone["task"], whole["task"]) == ("backbone", "instance_segmentation")
    assert 0 < backbone["ratio"] < whole["ratio"]


def test_bench_times_every_task_of_ait(run, tmp_path: Path) -> None:
    words = ["--task", "backbone,instance,depth", "--preset", "nano", "--repeats", "1", "--device", "cpu"]
    shown = run("bench", "ait", *words, "--json", tmp_path / "b.json")
    assert shown.code == 0, shown.err
    backbone, *whole = json.loads((tmp_path / "b.json").read_text())["results"]
    assert [one["task"] for one in whole] == ["instance_segmentation", "depth"]
    assert all(0 < backbone["ratio"] < one["ratio"] and one["input_size"] == 192 for one in whole)
    refused = run("bench", "ait", "--task", "detection", "--preset", "depth-b")
    assert refused.code == 2
    assert "does not offer the task 'detection'" in refused.err and "depth, backbone" in refused.err


def test_bench_times_gsva_and_its_parts(run, tmp_path: Path) -> None:
    words = ["--task", "backbone,masks,referring", "--repeats", "1", "--device", "cpu", "--json", tmp_path / "b.json"]
    shown = run("bench", "gsva", *words)
    assert shown.code == 0, shown.err
    backbone, masks, whole = json.loads((tmp_path / "b.json").read_text())["results"]
    assert (masks["task"], whole["task"], whole["preset"]) == ("masks", "referring_segmentation", "gsva-nano")
    assert 0 < backbone["ratio"] < whole["ratio"] and masks["ratio"] > 0
    parts = "read,read-twice,gres,find,decode"
    shown = run("bench", "gsva", "--task", parts, "--repeats", "1", "--device", "cpu", "--json", tmp_path / "b.json")
    assert shown.code == 0 and "tokens per s" in shown.out, shown.err
    read, *_, said = json.loads((tmp_path / "b.json").read_text())["results"]
    assert read["tokens_per_s"] == read["peak_gb"] == 0
    assert said["tokens_per_s"] == pytest.approx(64e3 / said["ms_per_image"])
    unknown = run("bench", "gsva", "--task", "nix", "--device", "cpu")
    assert unknown.code == 2 and "referring_segmentation, backbone, masks, gres" in unknown.err
    refused = run("bench", "ait", "--task", "masks", "--preset", "nano")
    assert refused.code == 2 and "does not offer the task 'masks'" in refused.err


def test_bench_sees_depth_in_one_window_that_is_not_mirrored(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, ...]] = []
    look = AiT.depth_of_windows

    def record(model: AiT, images: torch.Tensor) -> torch.Tensor:
        seen.append(tuple(images.shape))
        return look(model, images)

    monkeypatch.setattr(AiT, "depth_of_windows", record)
    run_bench("ait", task="depth", preset="nano", repeats=1)
    assert seen == [(1, 3, 192, 192)] * len(seen) and len(seen) == 2


# --- what a review found ---------------------------------------------------------------------------------------------


def test_one_annotation_file_is_one_split(run, tmp_path: Path) -> None:
    assert run("data", "scenes", "--out", tmp_path / "s", "--format", "coco", "--count", 3, "--size", 64).code == 0
    file = next((tmp_path / "s" / "annotations").glob("instances_*.json"))
    shown = run("data", "check", tmp_path / "s", "--annotations", f"annotations/{file.name}", "--json", tmp_path / "r")
    assert len(json.loads((tmp_path / "r").read_text())["splits"]) == 1, shown.out
    words = ("data", "convert", tmp_path / "s", "--from", "coco", "--annotations", f"annotations/{file.name}")
    refused = run(*words, "--out", tmp_path / "c")
    assert refused.code == 2 and "--split train" in refused.err
    assert run(*words, "--out", tmp_path / "c", "--split", "train").code == 0
    assert [path.name for path in (tmp_path / "c" / "annotations").iterdir()] == ["instances_train.json"]


def test_our_own_ade_layout_is_recognised_with_its_classes(run, tmp_path: Path) -> None:
    assert run("data", "scenes", "--out", tmp_path, "--format", "ade", "--count", 12, "--size", 64).code == 0
    shown = run("data", "check", tmp_path)
    assert "(ade20k)" in shown.out
    assert "unused_class" not in shown.out or "value 0" not in shown.out


def test_the_mistyped_key_is_named_before_the_missing_one(run) -> None:
    shown = run("train", "recipe=finetune", "data.rot=x", "task=detection")
    assert shown.code == 2
    assert "'data.rot'" in shown.err and "data.root" in shown.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ("eval", "git-nano", "--data", "scenes", "--classes", "ball", "--task", "detection"),
            "'classes' has no meaning",
        ),
        (("convert", "x.pth", "--vocabulary", "v.txt"), "--out"),
        (("convert", "git-nano", "--to-official", "x.pth", "--preset", "base"), "exclude"),
        (("train", "recipe=git.nano_scenes", "steps=-1", "--print-config"), "steps must be at least"),
        (("train", "recipe=git.nano_scenes", "monitor=detection/APP", "--print-config"), "detection/AP"),
    ],
)
def test_options_without_effect_are_refused(run, words: tuple[str, ...], said: str) -> None:
    shown = run(*words)
    assert shown.code == 2, shown.out
    assert said in shown.err


def test_a_class_named_twice_is_wrong_use(run, tmp_path: Path) -> None:
    Image.new("RGB", (32, 32)).save(tmp_path / "p.png")
    shown = run("predict", tmp_path / "p.png", "--task", "detection", "--classes", "cat,cat")
    assert shown.code == 2 and "'cat' is named twice" in shown.err


def test_a_dangling_link_says_so(run, tmp_path: Path) -> None:
    (tmp_path / "p.png").symlink_to(tmp_path / "gone.png")
    shown = run("predict", tmp_path / "p.png", "--task", "caption")
    assert shown.code == 1 and "gone.png, which does not exist" in shown.err


def test_a_detector_predicts_and_is_evaluated_with_soft_nms_and_augmentation(run, tmp_path: Path) -> None:
    torch.manual_seed(0)
    preset = DETECTORS["vitdet-nano"]()
    heads = dataclasses.replace(preset.roi, num_classes=len(THING_CLASSES), min_score=0.01, max_detections=20)
    config = dataclasses.replace(preset, classes=THING_CLASSES, roi=heads)
    folder = save_model(ViTDet(config), tmp_path / "detector", classes={}, provenance={})
    picture = tmp_path / "p.png"
    Image.new("RGB", (100, 80), (90, 120, 30)).save(picture)
    words = ("--soft-nms", "linear", "--test-sizes", "160,224", "--test-flip")
    told = []
    for name, options in (("plain", ()), ("more", words)):
        asked = ("predict", picture, "--model", folder, "--task", "instance", "--score", "0", "--save", "json")
        done = run(*asked, "--out", tmp_path / name, *options)
        assert done.code == 0, done.err
        told.append((tmp_path / name / "p.json").read_text())
    assert told[0] != told[1]
    done = run("eval", folder, "--data", "scenes", "--task", "instance", "--limit", 2, *words, "--json", tmp_path / "r")
    assert done.code == 0, done.err
    stamp = json.loads((tmp_path / "r").read_text())["instance_segmentation"]
    assert (stamp["soft_nms"], stamp["test_sizes"], stamp["test_flip"]) == ("linear", [160, 224], True)
    assert run("predict", picture, "--soft-nms", "linear").code == 2
    assert run("predict", picture, "--model", folder, "--test-sizes", "100").code == 2
    assert run("predict", picture, "--model", folder, "--test-sizes", "big").code == 2
