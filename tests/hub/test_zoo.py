"""The zoo: facts against the manifests, names, downloads without a network."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from rich.console import Console

from saccade.errors import CheckpointError, UsageError
from saccade.hub import resolve as module
from saccade.hub.report import zoo_card
from saccade.hub.resolve import bundled_checkpoints, fetch_file, load_model, resolve
from saccade.hub.zoo import ZOO, entry_of_file, get, list_entries
from saccade.hub.zoo_entry import ZooEntry
from saccade.recipes import RECIPES
from saccade.tasks import Task

PAGE = Path(__file__).parents[2] / "docs/zoo.md"
SHARED = Path(__file__).resolve().parents[2].parent / "shared"

# Typed from specs/git.md, section 8.
MULTI = {
    "git-base": (46.7, 31.9, 47.8, 35.3, 85.8),
    "git-large": (51.3, 35.1, 50.6, 35.7, 88.4),
    "git-huge": (52.9, 35.8, 52.4, 36.2, 89.2),
}
SINGLE = {
    "git-base-detection": 45.1,
    "git-base-instance": 31.4,
    "git-base-semantic": 47.7,
    "git-base-caption": 33.7,
    "git-base-grounding": 83.3,
}
ZERO_SHOT = {
    "git-base": (21.8, 14.3, 34.4, 30.9, 9.2),
    "git-universal-base": (29.1, 17.9, 56.2, 37.5, 10.6),
    "git-universal-large": (32.3, 20.3, 58.0, 39.9, 11.6),
    "git-universal-huge": (34.1, 18.7, 61.8, 42.5, 12.6),
}
FEW_SHOT = {
    "git-base": (34.3, 24.9, 19.1, 17.4, 23.0),
    "git-universal-base": (51.1, 30.8, 30.6, 31.2, 38.3),
    "git-universal-large": (55.4, 34.1, 37.2, 33.4, 49.3),
    "git-universal-huge": (57.9, 35.1, 43.4, 34.0, 52.2),
}
FILES = """det_base.pth insseg_base.pth semseg_base.pth caption_base.pth grounding_base.pth multi_base.pth
multi_large.pth multi_huge.pth universal_base.pth universal_large.pth universal_huge.pth bert_embed.pt
bert_embed_large.pt bert_embed_huge.pt"""


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(*_args: object, **_kwargs: object) -> None:
        raise ConnectionError("no network in tests")

    monkeypatch.setattr(module, "hf_hub_download", refuse)
    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    monkeypatch.setenv("SACCADE_CACHE", str(tmp_path / "cache"))


def numbers(name: str, setting: str) -> tuple[float, ...]:
    return tuple(result.value for result in get(name).results if result.setting == setting)


def test_published_numbers() -> None:
    assert {name: numbers(name, "multi-task") for name in MULTI} == MULTI
    assert {name: numbers(name, "single-task") for name in SINGLE} == {k: (v,) for k, v in SINGLE.items()}
    assert {name: numbers(name, "zero-shot") for name in ZERO_SHOT} == ZERO_SHOT
    assert {name: numbers(name, "few-shot") for name in FEW_SHOT} == FEW_SHOT


def shown(name: str) -> str:
    console = Console(width=300)
    with console.capture() as said:
        console.print(zoo_card(get(name)))
    return said.get()


def test_published_numbers_are_shown_with_every_digit() -> None:
    for entry in ZOO.values():
        lines = [line.split("│") for line in shown(entry.name).splitlines() if line.count("│") == 6]
        assert [float(cells[5]) for cells in lines] == [result.value for result in entry.results]


def test_the_page_says_what_the_entries_say() -> None:
    """Rows that begin with a name: its facts by the heads of their columns, and else published numbers."""
    header: list[str] = []
    told: dict[str, list[float]] = {}
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")] if line.startswith("|") else []
        header = (header or cells) if cells else []
        entry = ZOO.get(cells[0]) if cells else None
        for column, cell in zip(header[1:], cells[1:], strict=True) if entry is not None else ():
            assert entry is not None
            facts = {
                "file": (entry.file, "(by hand)"),
                "parameters": (f"{entry.parameters or 0:,}",),
                "tensors": (f"{entry.tensors or 0:,}",),
                "recipe": (entry.recipe,),
            }
            if column in facts:
                assert cell in facts[column] or (not cell and not getattr(entry, column)), f"{entry.name}: {column}"
            elif column not in ("tasks", "what", "used as"):
                told.setdefault(entry.name, []).extend(map(float, re.findall(r"\d+(?:\.\d+)?", cell)))
        told.update({cells[0]: told.get(cells[0], [])} if entry is not None else {})
    wholes = {entry.name: entry.results for entry in ZOO.values() if entry.kind == "checkpoint"}
    singles = {f"git-base-{task}" for task in ("detection", "instance", "semantic", "caption", "grounding")}
    assert wholes.keys() <= told.keys()
    for name, results in wholes.items():
        # Those of single tasks stand in one row; those of other papers are shown by the command alone.
        own = [] if name in singles else [one.value for one in results if "other papers" not in one.note]
        assert sorted(told[name]) == sorted(own), name


def test_every_released_file_has_one_entry() -> None:
    assert sorted(entry.file for entry in ZOO.values() if entry.repo == "kanashi6/GiT") == sorted(FILES.split())
    assert len({entry.file for entry in ZOO.values()}) == len(ZOO)
    assert all(sum(map(bool, (entry.repo, entry.url, entry.page))) == 1 for entry in ZOO.values())
    assert all(entry.url.startswith("https://") for entry in ZOO.values() if entry.url)
    found = entry_of_file("semseg_base.pth")
    assert found is not None
    assert found.tasks == (Task.SEMANTIC,)
    assert entry_of_file("other.pth") is None


def test_recipes_of_the_entries_exist() -> None:
    assert {entry.recipe for entry in ZOO.values()} - {""} <= set(RECIPES)
    # For RefCOCO alone the authors give no recipe: what their fine-tuning on it differs in is not known.
    assert {entry.name: entry.recipe for entry in list_entries("gsva")} == {
        "gsva-7b-pt": "gsva.pretrain_7b",
        "gsva-7b-ft-gres": "gsva.finetune_gres_7b",
        "gsva-7b-ft-res": "",
        "gsva-llama2-13b-ft-gres": "gsva.finetune_gres_llama2_13b",
        "gsva-llama2-13b-ft-res": "",
    }


@pytest.mark.parametrize("size", ["base", "large", "huge"])
def test_sizes_are_those_of_the_manifests(size: str) -> None:
    path = SHARED / f"manifests/git/git_{size}.json"
    if not path.is_file():
        pytest.skip("../shared/manifests/git is absent")
    facts = json.loads(path.read_text())
    for name in (f"git-{size}", f"git-universal-{size}"):
        entry = get(name)
        assert (entry.parameters, entry.tensors) == (facts["total_parameters"], facts["num_keys"])
        assert (entry.preset, len(entry.tasks)) == (size, 5)
    backbone = get(f"sam-vit-{size}")
    assert backbone.url == facts["sam_checkpoint"]
    assert backbone.file.endswith(f"{backbone.sha256_prefix}.pth")
    with_sam = [entry for entry in facts["keys"] if entry.get("sam_key")]
    assert backbone.tensors == len(with_sam) + len(facts["sam_unused_keys"])
    text = [entry for entry in facts["keys"] if entry["key"].startswith("embed.") and entry["kind"] == "parameter"]
    assert get(f"git-text-{size}").parameters == sum(torch.Size(entry["shape"]).numel() for entry in text)


SYSTEMS = ("git", "vitdet", "ait", "vqvae", "gsva", "visft")


def test_names_and_their_nearest() -> None:
    assert {system: len(list_entries(system)) for system in SYSTEMS} == {
        "git": 20,
        "vitdet": 19,
        "ait": 11,
        "vqvae": 2,
        "gsva": 5,
        "visft": 18,
    }
    assert len(ZOO) == 75
    with pytest.raises(UsageError, match="did you mean 'git'"):
        list_entries("gitt")
    with pytest.raises(UsageError, match="did you mean 'git-base-detection'"):
        get("git-base-detektion")
    with pytest.raises(UsageError, match=r"did you mean 'git-universal-base'.*saccade models list"):
        resolve("git-universal-bse")


def test_offline_says_what_to_fetch_and_how_to_convert() -> None:
    with pytest.raises(CheckpointError) as caught:
        load_model("git-base-caption")
    text = str(caught.value)
    for part in (
        "caption_base.pth",
        "kanashi6/GiT",
        "saccade convert caption_base.pth --vocabulary vocab.txt",
        "vocab.txt",
    ):
        assert part in text
    with pytest.raises(CheckpointError, match=r"init_from=PATH/sam_vit_b_01ec64\.pth"):
        fetch_file(get("sam-base"))
    with pytest.raises(UsageError, match="init_from=sam-base"):
        resolve("sam-base")
    with pytest.raises(UsageError, match="detection_init=visft-g-detection-head"):
        resolve("visft-g-detection-head")
    with pytest.raises(UsageError, match=r"saccade lora merge BACKBONE eva_e_lora_5000\.pt"):
        resolve("visft-e-lora-5000")
    with pytest.raises(CheckpointError, match=r"caption_init=PATH/eva_e_caption_heads\.ckpt"):
        fetch_file(get("visft-e-caption-head"))


@pytest.mark.parametrize("entry", [entry for entry in ZOO.values() if entry.page], ids=lambda entry: entry.name)
def test_what_is_fetched_by_hand_is_named(entry: ZooEntry) -> None:
    assert f"{entry.file} ({entry.page})" in shown(entry.name)
    with pytest.raises(CheckpointError) as caught:
        fetch_file(entry)
    assert f"fetch {entry.file} ({entry.page})" in str(caught.value)
    if entry.kind == "checkpoint":
        assert f"`saccade convert {entry.file} --preset" in str(caught.value)


def test_damaged_download_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def download(_url: str, path: str, **_kwargs: object) -> None:
        Path(path).write_bytes(b"half a file")

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    with pytest.raises(CheckpointError, match="SHA-256 starts with"):
        fetch_file(get("sam-vit-base"))


def test_released_file_is_converted_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    converted = []

    def convert(path: Path, *, out: Path, preset: str, vocabulary: Path) -> None:
        converted.append((path, preset))
        out.mkdir(parents=True)
        (out / "config.json").write_text("{}")

    monkeypatch.setattr(module, "hf_hub_download", lambda repo, file: str(tmp_path / file))
    monkeypatch.setattr(module, "fetch_vocabulary", lambda entry: tmp_path / "vocab.txt")
    monkeypatch.setattr(module, "convert_file", convert)
    for _ in range(2):
        assert resolve("git-large") == tmp_path / "cache" / "git-large"
    assert converted == [(tmp_path / "multi_large.pth", "large")]


def test_wrong_vocabulary_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text("[PAD]\n")
    monkeypatch.setattr(module, "hf_hub_download", lambda repo, file: str(tmp_path / "vocab.txt"))
    with pytest.raises(CheckpointError, match="not the vocabulary"):
        module.fetch_vocabulary(get("git-base"))


def test_bundled_names_resolve() -> None:
    for name, folder in bundled_checkpoints().items():
        assert resolve(name) == folder


def test_paths_pass_through(tmp_path: Path) -> None:
    assert resolve(tmp_path) == tmp_path
    assert resolve("runs/mine") == Path("runs/mine")
