"""Every suite on a miniature of its official layout."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from helpers_suites import save_pair, scene_picture, tiny_language, tiny_pair, tiny_tower, tiny_vit, unchanged
from PIL import Image
from safetensors.torch import save as save_tensors

from saccade.cli import main
from saccade.data.benchmarks.imagenet import CLASSIFIED, imagenet_classes
from saccade.data.scenes import SCENE_STYLES, THING_CLASSES, VOCABULARY, draw_scene, write_scenes
from saccade.errors import CheckpointError, MissingDataError, SaccadeError, UsageError
from saccade.hub.checkpoint import save_model
from saccade.hub.unpickle import read_tensor_file
from saccade.hub.zoo_entry import ZooEntry
from saccade.layers.lora import LoRAConfig, add_lora, updates_of
from saccade.layers.vit import PlainViT
from saccade.models.visft.clip_convert import to_eva_clip
from saccade.models.visft.convert import PUBLISHED_LORA
from saccade.models.visft.qformer import QFormerConfig
from saccade.suites import language as spoken
from saccade.suites import scene_questions
from saccade.suites import scenes as drawn
from saccade.suites.base import SuiteOptions
from saccade.suites.classify import class_points
from saccade.suites.identify import box_features
from saccade.suites.read_words import WordReader, WordReaderConfig
from saccade.suites.registry import SUITES, run_suite
from saccade.suites.towers import Tower, load_vit, open_tower

SMALL = QFormerConfig(queries=2, width=16, layers=2, heads=2, mlp_width=16)


@pytest.fixture
def tower(tmp_path: Path) -> Tower:
    return tiny_tower(tmp_path)


def save(path: Path, index: int, side: int = 64) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(scene_picture(index, side).permute(1, 2, 0).numpy()).save(path)


def options(root: Path, **changes: object) -> SuiteOptions:
    return dataclasses.replace(SuiteOptions(root=root, batch_size=4), **changes)


# ------------------------------------------------------------------ towers


def test_a_report_always_says_how_often_updates_count(tower: Tower, tmp_path: Path) -> None:
    assert tower.updates == "no low-rank updates"
    pair = tiny_pair(tmp_path / "words")
    add_lora(pair, dataclasses.replace(PUBLISHED_LORA, rank=4))
    official = {}
    for index, (_, update) in enumerate(updates_of(pair).values()):
        torch.nn.init.normal_(update.B)
        official |= {f"visual.blocks.{index}.attn.qkv.lora_{side}": getattr(update, side).detach() for side in "AB"}
    torch.save(official, tmp_path / "lora.pt")
    folder = str(tmp_path / "pair")
    once, twice = (open_tower(folder, lora=tmp_path / "lora.pt", multiplier=times) for times in (1, 2))
    assert once.updates == "low-rank updates from lora.pt: rank 4, scale 0.25, counted 1 x"
    assert twice.updates.endswith("counted 2 x") and len({tower.identity, once.identity, twice.identity}) == 3
    images = torch.randn(1, 3, 56, 56)
    found = [one.require_pair().encode_images(images) for one in (tower, once, twice)]
    assert not torch.allclose(found[0], found[1], atol=1e-4) and not torch.allclose(found[1], found[2], atol=1e-4)
    with pytest.raises(UsageError, match="no low-rank updates to multiply"):
        open_tower(folder, multiplier=2)
    short = {key: value for key, value in official.items() if "blocks.1." not in key}
    torch.save(short, tmp_path / "short.pt")
    with pytest.raises(CheckpointError, match="lack 1 of"):
        open_tower(folder, lora=tmp_path / "short.pt")
    torch.save({key: torch.zeros(8, 7) for key in official}, tmp_path / "wide.pt")
    with pytest.raises(CheckpointError, match="another backbone"):
        open_tower(folder, lora=tmp_path / "wide.pt")
    torch.save({"weight": torch.zeros(2)}, tmp_path / "other.pt")
    with pytest.raises(CheckpointError, match="not a file of low-rank updates"):
        open_tower(folder, lora=tmp_path / "other.pt")
    with pytest.raises(CheckpointError, match="no low-rank updates"):
        open_tower(folder, lora=tmp_path / "pair")


def test_updates_of_a_checkpoint_of_ours(tower: Tower, tmp_path: Path) -> None:
    pair = tiny_pair(tmp_path / "words")
    pair.load_state_dict(tower.model.state_dict())
    add_lora(pair, LoRAConfig(rank=2, alpha=6.0))
    for _, update in updates_of(pair).values():
        torch.nn.init.normal_(update.B)
    trained = save_model(pair, tmp_path / "trained", classes={}, provenance={})
    whole = open_tower(str(trained))
    added = open_tower(str(tmp_path / "pair"), lora=trained)
    assert whole.updates == "low-rank updates of the checkpoint: rank 2, scale 3, counted 1 x"
    assert added.updates == whole.updates.replace("of the checkpoint", "from trained")
    images = torch.randn(1, 3, 56, 56)
    assert torch.equal(whole.tokens(images), added.tokens(images))
    assert not torch.allclose(whole.tokens(images), tower.tokens(images), atol=1e-3)
    with pytest.raises(UsageError, match="updates already"):
        open_tower(str(trained), lora=trained)


def test_released_files(tmp_path: Path) -> None:
    pair = tiny_pair(tmp_path / "words")
    official = to_eva_clip(pair.state_dict(), pair.config)
    bare = {key.removeprefix("visual."): value for key, value in official.items() if key.startswith("visual.")}
    torch.save(bare, tmp_path / "eva.pth")
    with pytest.raises(CheckpointError, match="width 32"):
        open_tower(str(tmp_path / "eva.pth"))
    # Of a known width it is opened so, class token and all.
    vit, report = load_vit(read_tensor_file(tmp_path / "eva.pth"), tiny_vit())
    images = torch.randn(2, 3, 56, 56)
    torch.testing.assert_close(vit.tokens(images), pair.backbone.tokens(images))
    for key in ("norm.weight", "norm.bias"):
        del bare[key]
    torch.save(bare, tmp_path / "eva.pth")
    _, report = load_vit(read_tensor_file(tmp_path / "eva.pth"), tiny_vit())
    assert "the file has no last norm: the identity stands in its place" in report.notes


def test_names_of_released_towers_stand_for_their_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pair = tiny_pair(tmp_path / "words")
    official = to_eva_clip(pair.state_dict(), pair.config)
    bare = {key.removeprefix("visual."): value for key, value in official.items() if key.startswith("visual.")}
    fetched: list[str] = []

    def fetch(entry: ZooEntry) -> Path:
        fetched.append(entry.name)
        torch.save(bare, tmp_path / entry.file)
        return tmp_path / entry.file

    monkeypatch.setattr("saccade.suites.towers.fetch_file", fetch)
    monkeypatch.setattr("saccade.suites.towers._family_of", lambda file: tiny_vit())
    images = torch.randn(1, 3, 56, 56)
    for name in ("eva-clip-e", "eva-vit-g"):
        opened = open_tower(name)
        assert opened.name == name and name == fetched[-1]
        torch.testing.assert_close(opened.tokens(images), pair.backbone.tokens(images))
    with pytest.raises(UsageError, match="not a whole model"):
        open_tower("mae-vit-base")


def test_the_tower_of_blip2_lacks_the_last_block(tower: Tower) -> None:
    images = torch.randn(1, 3, 56, 56)
    vit = tower.vit
    row = vit._with_class(vit.embed(images))
    first = next(iter(vit))(row)[:, 0]
    tower.without_last_block()
    torch.testing.assert_close(tower.tokens(images), first)
    assert "less the last block" in tower.identity


# ------------------------------------------------------------------ zero-shot


def test_a_class_is_the_mean_of_its_prompts(tower: Tower) -> None:
    pair = tower.require_pair()
    points = class_points(pair, ["cat", "dog"], ["a {}.", "two {}s", "{}"], batch_size=2)
    own = F.normalize(pair.encode_texts(["a dog.", "two dogs", "dog"]).mean(0), dim=0)
    torch.testing.assert_close(points[1], own)


@pytest.mark.parametrize("name", sorted(CLASSIFIED))
def test_zero_shot_classification(name: str, tower: Tower, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("saccade.suites.classify.imagenet_templates", lambda: ("{}",))
    few = name in ("imagenet_a", "imagenet_r")
    kept = [one for one in imagenet_classes() if not few or getattr(one, f"in_{name[-1]}")]
    places = {
        "imagenet": f"val/{kept[0].wordnet_id}", "imagenet_v2": "7", "objectnet": "images/banana",
    }.get(name, kept[0].wordnet_id)  # fmt: skip
    for index in range(3):
        save(tmp_path / "data" / places / f"{index}.{'png' if name == 'objectnet' else 'JPEG'}", index)
    mappings = tmp_path / "data/mappings"
    mappings.mkdir()
    (mappings / "folder_to_objectnet_label.json").write_text('{"banana": "Banana", "x": "Key chain"}')
    (mappings / "objectnet_to_imagenet_1k.json").write_text('{"Banana": "banana", "Key chain": "keychain"}')
    with unchanged(tower.model):
        result = run_suite(f"visft.{name}", tower, options(tmp_path / "data", cache=tmp_path / "kept"))
    assert result.items == 3 and result.stamp["lora"] == "no low-rank updates"
    # The same by hand: the nearest class of each picture.
    data = CLASSIFIED[name](tmp_path / "data")
    pair = tower.require_pair()
    classes = class_points(pair, data.class_names, ("{}",))
    from saccade.suites.pictures import CentreCrop, Files

    fit = CentreCrop(side=56, mean=tower.mean, std=tower.std)
    files = Files(paths=data.paths, border=data.border)
    images = torch.stack([fit(files[index]) for index in range(3)])
    right = (pair.encode_images(images) @ classes.T).argmax(1) == torch.tensor(data.labels)
    assert result.metrics["top1"] == pytest.approx(float(right.double().mean()))
    assert len(data.class_names) == {"objectnet": 2, "imagenet_a": 200, "imagenet_r": 200}.get(name, 1000)
    assert f"{len(data.class_names)} classes, 1 prompts each" in result.notes


def test_a_tower_without_words_is_not_asked_in_words(tmp_path: Path, tower: Tower) -> None:
    tower.pair = None
    with pytest.raises(UsageError, match="text tower"):
        run_suite("visft.imagenet", tower, options(tmp_path))


def write_karpathy(root: Path, *, name: str, folder: str, split: str, count: int = 4) -> None:
    """A miniature of Karpathy's file, captions of drawn scenes."""
    entries = []
    for index in range(count):
        file = f"{index}.jpg"
        save(root / folder / file, index)
        captions = [*draw_scene((5, index), (64, 64)).captions, "a sixth"]
        entry = {"filename": file, "imgid": index, "split": split, "sentences": [{"raw": text} for text in captions]}
        entries.append(entry if folder != "val2014" else entry | {"filepath": folder, "cocoid": 100 + index})
    (root / name).write_text(json.dumps({"images": entries}))


@pytest.mark.parametrize(
    ("suite", "name", "folder"),
    [
        ("flickr30k", "dataset_flickr30k.json", "flickr30k-images"),
        ("coco_retrieval", "dataset_coco.json", "val2014"),
    ],
)
def test_retrieval(suite: str, name: str, folder: str, tower: Tower, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    write_karpathy(tmp_path / "data", name=name, folder=folder, split="test")
    result = run_suite(f"visft.{suite}", tower, options(tmp_path / "data"))
    assert set(result.metrics) == {f"{way}/R@{k}" for way in ("i2t", "t2i") for k in (1, 5, 10)} | {"rsum"}
    assert result.metrics["t2i/R@5"] == 1.0 and result.items == 4  # four images: the best five are all
    assert 0.0 < result.metrics["t2i/R@1"] < 1.0
    assert run_suite(f"visft.{suite}", tower, options(tmp_path / "data", limit=2)).items == 2


# ------------------------------------------------------------------ probes


def test_words_are_read_from_frozen_features(tower: Tower, tmp_path: Path) -> None:
    words = ["cat", "dog", "Tree"]
    train = tmp_path / "train"
    for index, word in enumerate(words):
        save(train / f"{word}.png", index)
    (train / "train.tsv").write_text("".join(f"{word}.png\t{word}\n" for word in words))
    for index in range(2):
        save(tmp_path / "data/svtp" / f"{index}.jpg", index)
    (tmp_path / "data/svtp/imagelist.txt").write_text("0.jpg CAT A,B\n1.jpg Dog! A\n")
    asked = options(
        tmp_path / "data", train_root=train, steps=60, probe=tmp_path / "reader.safetensors", learning_rate=2e-3
    )
    with unchanged(tower.model):
        result = run_suite("visft.ocr", tower, asked)
    assert result.metrics == {"svtp": 1.0, "mean": 1.0}
    assert "60 steps" in result.notes[0] and "iiit5k" in result.notes[1]
    kept = run_suite("visft.ocr", tower, dataclasses.replace(asked, train_root=None))
    assert kept.metrics == result.metrics, "the probe was kept"
    assert kept.notes[0] == f"the probe is the one kept in {asked.probe}: {result.notes[0]}"
    with pytest.raises(
        CheckpointError, match=r"training folder: .*nowhere; steps: 60, now asked for: 50; seed: 0, now"
    ):
        run_suite("visft.ocr", tower, dataclasses.replace(asked, train_root=tmp_path / "nowhere", steps=50, seed=4))
    with pytest.raises(UsageError, match="--train-root"):
        run_suite("visft.ocr", tower, options(tmp_path / "data"))
    with pytest.raises(MissingDataError, match="svtp"):
        run_suite("visft.ocr", tower, options(train))


def test_the_reader_sees_no_sign_before_it_is_said() -> None:
    torch.manual_seed(0)
    reader = WordReader(WordReaderConfig(width=16, heads=2), in_width=8, cells=4)
    maps, signs = torch.randn(1, 4, 8), torch.tensor([[36, 3, 5, 7]])
    changed = signs.clone()
    changed[0, 2] = 9
    first, second = reader(maps, signs), reader(maps, changed)
    assert torch.equal(first[:, :2], second[:, :2]) and not torch.allclose(first[:, 2:], second[:, 2:])
    assert reader.read(maps)[0].isalnum() or reader.read(maps) == [""]


def test_objects_in_boxes_are_identified(tower: Tower, tmp_path: Path) -> None:
    write_scenes(tmp_path / "coco", format="coco", split="train", count=12, size=64)
    write_scenes(tmp_path / "coco", format="coco", split="val", count=4, size=64)
    asked = options(tmp_path / "coco", train_limit=20, limit=9, steps=20, probe=tmp_path / "boxes.safetensors")
    with unchanged(tower.model):
        result = run_suite("visft.goi", tower, asked)
    assert set(result.metrics) == {"top1", "top5", "mean_class"} and result.items == 9
    assert result.notes[0].startswith("9 boxes") and "20 boxes" in result.notes[2]
    again = run_suite("visft.goi", tower, asked)
    assert again.metrics == result.metrics, "drawn by the seed, the probe kept"
    assert again.notes[2] == f"the probe is the one kept in {asked.probe}: {result.notes[2]}"


def test_features_in_boxes_are_kept(tower: Tower, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for split in ("train", "val"):
        write_scenes(tmp_path / "coco", format="coco", split=split, count=5, size=64)
    monkeypatch.setattr("saccade.suites.identify._SHARD", 2)
    asked = options(tmp_path / "coco", train_limit=20, limit=7, steps=5, cache=tmp_path / "kept")
    result = run_suite("visft.goi", tower, asked)
    images = [*(tmp_path / "coco").rglob("*.jpg")]
    assert len(images) == 10
    for image in images:  # what is kept needs no picture
        image.write_bytes(b"")
    assert run_suite("visft.goi", tower, asked).metrics == result.metrics
    with pytest.raises(SaccadeError):
        run_suite("visft.goi", tower, dataclasses.replace(asked, seed=1))


def write_voc(root: Path, names: tuple[str, str, str]) -> Path:
    """Eight pictures with three boxes each, in the layout of PASCAL VOC."""
    for split, first in (("train", 0), ("val", 6)):
        for index in range(first, first + 4):
            save(root / f"JPEGImages/{index}.jpg", index)
            (root / "Annotations").mkdir(exist_ok=True)
            boxes = "".join(
                f"<object><name>{name}</name><bndbox><xmin>{x}</xmin><ymin>2</ymin><xmax>{x + 20}</xmax>"
                "<ymax>40</ymax></bndbox></object>"
                for name, x in zip(names, (1, 12, 30), strict=True)
            )
            (root / f"Annotations/{index}.xml").write_text(f"<annotation>{boxes}</annotation>")
        (root / "ImageSets/Main").mkdir(parents=True, exist_ok=True)
        (root / f"ImageSets/Main/{split}.txt").write_text("".join(f"{first + n}\n" for n in range(4)))
    return root


def test_a_kept_probe_of_other_classes_or_boxes_is_refused(tower: Tower, tmp_path: Path) -> None:
    cells = write_voc(tmp_path / "voc1", ("cat", "cat", "dog"))
    others = write_voc(tmp_path / "voc2", ("zebra", "zebra", "apple"))
    asked = options(cells, steps=3, probe=tmp_path / "b.st")
    run_suite("visft.goi", tower, asked)
    with pytest.raises(CheckpointError, match="classes: cat, dog, now asked for: apple, zebra") as refused:
        run_suite("visft.goi", tower, dataclasses.replace(asked, root=others, train_root=cells))
    assert "delete the file or name another" in str(refused.value) and "b.st" in str(refused.value)
    same = write_voc(tmp_path / "same", ("cat", "cat", "dog"))
    with pytest.raises(CheckpointError, match=r"training folder: .*voc1, now asked for: .*same"):
        run_suite("visft.goi", tower, dataclasses.replace(asked, root=same))
    assert run_suite("visft.goi", tower, dataclasses.replace(asked, root=same, train_root=cells)).items == 12
    (tmp_path / "b.st").write_bytes(save_tensors({"linear.weight": torch.zeros(2)}, metadata={"about": "boxes, 2"}))
    with pytest.raises(CheckpointError, match="does not say how its probe was trained"):
        run_suite("visft.goi", tower, asked)


def test_kept_features_of_one_training_folder_are_not_those_of_another(tower: Tower, tmp_path: Path) -> None:
    root = write_voc(tmp_path / "data/voc", ("cat", "cat", "dog"))
    one = write_voc(tmp_path / "one/voc", ("cat", "cat", "dog"))
    swapped = write_voc(tmp_path / "two/voc", ("dog", "dog", "cat"))
    asked = options(root, steps=20)
    found = []
    for train_root in (one, swapped):
        fresh = run_suite("visft.goi", tower, dataclasses.replace(asked, train_root=train_root))
        for _ in range(2):
            kept = dataclasses.replace(asked, train_root=train_root, cache=tmp_path / "kept")
            assert run_suite("visft.goi", tower, kept).metrics == fresh.metrics
        found.append(fresh.metrics["top1"])
    assert found[0] > found[1], "what is learned from the other folder is wrong here"
    # Nor are labels kept that have been changed since.
    write_voc(one, ("dog", "dog", "cat"))
    changed = run_suite("visft.goi", tower, dataclasses.replace(asked, train_root=one, cache=tmp_path / "kept"))
    assert changed.metrics == fresh.metrics


def test_boxes_in_the_layout_of_voc(tower: Tower, tmp_path: Path) -> None:
    write_voc(tmp_path / "voc", ("RBC", "RBC", "WBC"))
    result = run_suite("visft.goi", tower, options(tmp_path / "voc", steps=5))
    assert set(result.metrics) == {"top1", "mean_class"} and result.items == 12
    assert "12 boxes of voc/val" in result.notes[0] and "12 boxes" in result.notes[2]
    assert result.notes[1] == "the commonest class alone: top1 0.6667, mean_class 0.5000"


def test_features_of_a_box_are_those_under_it(tower: Tower) -> None:
    from saccade.data.sources.scenes import ScenesSource
    from saccade.tasks import Task

    class Flat(torch.nn.Module):
        """A tower whose map is the column of each cell."""

        config = tower.vit.config

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return torch.arange(4.0).expand(len(images), 4, 4)[..., None].expand(-1, -1, -1, self.config.width)

    tower.vit = Flat()  # type: ignore[assignment]
    tower.vit.parameters = tower.model.parameters  # type: ignore[method-assign]
    source = ScenesSource(task=Task.DETECTION, split="val", size=112, limit=6)
    found = box_features(tower, source, options(Path()), data="", most=200, what="")
    assert len(box_features(tower, source, options(Path()), data="", most=7, what="").labels) == 7
    boxes = torch.cat(
        [
            source[i].target.boxes.as_subclass(torch.Tensor)
            for i in torch.randperm(6, generator=torch.Generator().manual_seed(0)).tolist()
        ]
    )
    assert len(found.labels) == len(boxes)
    middle = (boxes[:, 0] + boxes[:, 2]) / 2 / 112 * 4 - 0.5
    order = found.features[:, 0].sort().values
    assert float((order - middle.clamp(0, 3).sort().values).abs().max()) < 0.4


# ------------------------------------------------------------------ language


@pytest.fixture
def spoken_small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setattr(spoken, "QFormerConfig", lambda: SMALL)
    return tiny_language(tmp_path / "language")


@pytest.mark.parametrize("suite", ["vqav2", "okvqa", "nocaps"])
def test_answers_in_words(
    suite: str, spoken_small: Path, tower: Tower, tmp_path: Path, write_miniature: Callable[[str, Path], Path]
) -> None:
    (tmp_path / "captions").mkdir()
    write_karpathy(tmp_path / "captions", name="dataset_coco.json", folder="val2014", split="train")
    root = write_miniature(suite, tmp_path / "data")
    asked = options(
        root, train_root=tmp_path / "captions", steps=2, language=spoken_small, probe=tmp_path / "speaker.safetensors"
    )
    result = run_suite(f"visft.{suite}", tower, asked)
    wanted = {
        "nocaps": {"CIDEr/in-domain", "CIDEr/near-domain", "CIDEr/out-domain", "CIDEr/overall"},
    }.get(suite, {"accuracy", "accuracy/other", "accuracy/yes/no"})  # fmt: skip
    assert set(result.metrics) == wanted and "24 captions" in result.notes[0]
    assert any("SPICE" in note for note in result.notes) == (suite == "nocaps")
    again = tiny_tower(tmp_path)
    with unchanged(again.vit.blocks[0]):
        kept = run_suite(f"visft.{suite}", again, dataclasses.replace(asked, train_root=None))
    assert kept.metrics == result.metrics and "the one kept in" in kept.notes[0] and "2 steps" in kept.notes[0]
    with pytest.raises(CheckpointError, match="training limit: 0, now asked for: 7"):
        run_suite(f"visft.{suite}", tiny_tower(tmp_path), dataclasses.replace(asked, train_limit=7))
    with pytest.raises(UsageError, match="--language"):
        run_suite(f"visft.{suite}", tiny_tower(tmp_path), options(root))


def test_a_tower_without_a_class_token_is_not_said_to_show_one(
    spoken_small: Path, tower: Tower, tmp_path: Path, write_miniature: Callable[[str, Path], Path]
) -> None:
    (tmp_path / "captions").mkdir()
    write_karpathy(tmp_path / "captions", name="dataset_coco.json", folder="val2014", split="train")
    root = write_miniature("okvqa", tmp_path / "data")
    asked = options(
        root, train_root=tmp_path / "captions", steps=1, language=spoken_small, probe=tmp_path / "speaker.safetensors"
    )
    vit = PlainViT(tiny_vit(class_token=False)).eval()
    without = dataclasses.replace(tower, model=torch.nn.ModuleDict({"backbone": vit}), vit=vit, pair=None)
    kept = dataclasses.replace(without, vit=PlainViT(vit.config).eval())
    note = "not as published: the tower has no class token, so the Q-Former reads the cells of its map alone"
    for one, says in ((without, True), (kept, True), (tower, False)):
        asked = asked if says else dataclasses.replace(asked, probe=None)
        assert (note in run_suite("visft.okvqa", one, asked).notes) == says


# ------------------------------------------------------------------ scenes, and the command line


def test_scenes_of_unseen_styles(tmp_path: Path) -> None:
    tower = tiny_tower(tmp_path, image_size=112)
    asked = options(Path(), limit=6, train_limit=12, steps=5, batch_size=6, probe=tmp_path / "probes.safetensors")
    result = run_suite("visft.scenes", tower, dataclasses.replace(asked, cache=tmp_path / "kept"))
    assert set(drawn.UNSEEN) == {*SCENE_STYLES} - {"plain"}
    asked_in_words = {f"zero_shot/{name}" for name in ("colour", "shape", "ground")}
    names = {"counting", "counting/top1", "counting/within1", "box_class", "box_class/top1"}
    names |= {f"{name}{kind}" for name in asked_in_words for kind in ("", "/top1", "/any")}
    retrieved = {"retrieval/i2t/R@5", "retrieval/t2i/R@5"}
    styles = {f"{style}/{name}" for style in (*SCENE_STYLES, "mean") for name in names | retrieved}
    assert set(result.metrics) == styles | {f"commonest/{name}" for name in names}
    for name in names | retrieved:
        mean = sum(result.metrics[f"{style}/{name}"] for style in drawn.UNSEEN) / len(drawn.UNSEEN)
        assert result.metrics[f"mean/{name}"] == pytest.approx(mean), "plain scenes are for reference only"
    again = run_suite("visft.scenes", tower, dataclasses.replace(asked, cache=tmp_path / "kept", batch_size=4))
    assert again.metrics == result.metrics and len([*(tmp_path / "kept").iterdir()]) == 1 + len(SCENE_STYLES)
    assert any("12 plain scenes" in note and "the one kept in" in note for note in again.notes)
    for more in ({"train_limit": 13}, {"steps": 6}, {"learning_rate": 0.5}, {"seed": 1}):
        name = next(iter(more)).replace("train_", "training ").replace("_", " ")
        with pytest.raises(CheckpointError, match=f"why: +{name}: "):
            run_suite("visft.scenes", tower, dataclasses.replace(asked, **more))
    tower.pair = None
    without = run_suite("visft.scenes", tower, asked).metrics
    assert {name.partition("/")[2] for name in without} == {name for name in names if not name.startswith("zero")}
    assert all(result.metrics[name] == value for name, value in without.items())


def test_every_scene_is_drawn_and_shown_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tower = tiny_tower(tmp_path, image_size=112)
    seeds: list[tuple[int, ...]] = []
    monkeypatch.setattr(
        scene_questions, "draw_scene", lambda seed, size_hw: seeds.append(seed) or draw_scene(seed, size_hw)
    )
    shown: list[int] = []
    tower.vit.register_forward_pre_hook(lambda _, images: shown.append(len(images[0])))
    tokens = tower.vit.tokens
    monkeypatch.setattr(tower.vit, "tokens", lambda images: shown.append(len(images)) or tokens(images))
    run_suite("visft.scenes", tower, options(Path(), limit=3, train_limit=4, steps=2))
    assert len(seeds) == len(set(seeds)) == 3 + 4 and sum(shown) == 3 * len(SCENE_STYLES) + 4


def test_what_is_seen_of_a_scene_is_what_the_towers_make_of_it(tmp_path: Path) -> None:
    tower = tiny_tower(tmp_path, image_size=112)
    pair = tower.require_pair()
    scenes = scene_questions.draw_scenes(112, "test", 2, 3)
    seen = drawn.look(tower, scenes, "fog", options(Path()), split="test")
    pictures = [draw_scene((3, 2, index), (112, 112), style="fog") for index in range(2)]
    raw = torch.stack([torch.from_numpy(one.image).permute(2, 0, 1).float() for one in pictures])
    images = (raw - torch.tensor(tower.mean).view(3, 1, 1)) / torch.tensor(tower.std).view(3, 1, 1)
    with torch.no_grad():
        torch.testing.assert_close(seen.points, pair.encode_images(images))
        torch.testing.assert_close(seen.means, tower.vit(images).mean((1, 2)))
    assert len(seen.in_boxes) == sum(map(len, pictures)) == len(scene_questions.which_in_boxes(scenes).truth)


def test_answers_to_questions_about_scenes() -> None:
    truth = torch.tensor([0, 0, 0, 1])
    accepted = torch.tensor([[1, 0, 1], [1, 1, 0], [1, 0, 0], [0, 1, 0]], dtype=torch.bool)
    question = scene_questions.Question(name="q", truth=truth, answers=3, loose="any", accepted=accepted)
    scores = question.scores(F.one_hot(torch.tensor([0, 1, 2, 1]), 3).float())
    assert scores == pytest.approx({"q": (1 / 3 + 1) / 2, "q/top1": 0.5, "q/any": 0.75})
    assert question.commonest() == pytest.approx({"q": 0.5, "q/top1": 0.75, "q/any": 0.75})
    scenes = scene_questions.draw_scenes(112, "test", 12, 0)
    counted = scene_questions.how_many(scenes)
    assert counted.truth.tolist() == [len(scene.things) - 1 for scene in scenes]
    near = F.one_hot(counted.truth - 1, counted.answers).float()
    assert counted.scores(near) == {"counting": 0.0, "counting/top1": 0.0, "counting/within1": 1.0}
    shape = scene_questions.which_value("shape", scenes)
    for scene, label, allowed in zip(scenes, shape.truth, shape.accepted, strict=True):
        assert THING_CLASSES[label] == scene.things[0].name
        assert {THING_CLASSES[k] for k in allowed.nonzero()[:, 0]} == {thing.name for thing in scene.things}


def test_prompts_have_the_form_of_captions() -> None:
    red, blue = (scene_questions.prompts("colour", value) for value in ("red", "blue"))
    assert len(red) == len(blue) == 5 * 32 and all("red" in text for text in red)
    words = [[one.split(), other.split()] for one, other in zip(red, blue, strict=True)]
    assert all([a for a, b in zip(*pair, strict=True) if a != b] == ["red"] for pair in words), "all else is the same"
    assert all(set(text.split()) <= set(VOCABULARY) for text in red)
    assert all(
        f"on the {ground}" in text for ground in ("road", "sand") for text in scene_questions.prompts("ground", ground)
    )
    assert all("star" in text for text in scene_questions.prompts("name", "star"))


def test_options_that_a_suite_has_no_use_for_are_refused(tower: Tower, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"visft\.nocaps has no use for --cache"):
        run_suite("visft.nocaps", tower, options(tmp_path, cache=tmp_path))
    with pytest.raises(UsageError, match="no use for --probe, --learning-rate"):
        run_suite("visft.imagenet", tower, options(tmp_path, probe=tmp_path / "a", learning_rate=1.0))
    with pytest.raises(UsageError, match="no use for --train-root, --root"):
        run_suite("visft.scenes", tower, options(tmp_path, train_root=tmp_path))
    with pytest.raises(UsageError, match="no use for --language"):
        run_suite("visft.goi", tower, options(tmp_path, language=tmp_path))


@pytest.mark.parametrize("name", sorted(name for name, suite in SUITES.items() if suite.layout))
def test_missing_data_are_answered_with_the_layout_of_the_suite(name: str, tower: Tower, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(MissingDataError) as missing:
        run_suite(name, tower, options(tmp_path / "empty"))
    assert missing.value.fix is not None and SUITES[name].layout in missing.value.fix
    assert "=..." not in str(missing.value), "a suite has no such setting"
    if name == "visft.flickr30k":
        assert "looked for dataset_flickr30k.json" in str(missing.value)


def test_every_suite_says_what_is_published_and_what_is_ours() -> None:
    announced = {"imagenet", "imagenet_a", "imagenet_r", "imagenet_v2", "imagenet_sketch", "objectnet"}
    announced |= {"flickr30k", "coco_retrieval", "ocr", "goi", "vqav2", "okvqa", "nocaps", "scenes"}
    assert set(SUITES) == {f"visft.{name}" for name in announced}
    assert all(suite.summary and suite.published for suite in SUITES.values())


def test_the_command_shows_everything(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pair = save_pair(tmp_path / "pair")
    (tmp_path / "data").mkdir()
    write_karpathy(tmp_path / "data", name="dataset_coco.json", folder="val2014", split="test")
    words = ["eval", str(pair), "--suite", "visft.coco_retrieval", "--root", str(tmp_path / "data"), "--device", "cpu"]
    assert main([*words, "--json", str(tmp_path / "out.json")]) == 0
    shown = capsys.readouterr().out
    for text in ("i2t/R@1", "no low-rank updates", "as published:", "reconstructed: nothing"):
        assert text in shown
    content = json.loads((tmp_path / "out.json").read_text())
    assert content["suite"] == "visft.coco_retrieval" and content["lora"] == "no low-rank updates"
    assert content["metrics"]["t2i/R@5"] == 1.0
    assert main(["eval", str(pair), "--suite", "visft.coco"]) == 2
    assert main(["eval", str(pair), "--suite", "visft.imagenet"]) == 2
    assert "did you mean" in capsys.readouterr().err
    assert main(["eval", str(pair), "--suite", "nothing"]) == 2
    listed = capsys.readouterr().err
    assert main(["eval", "--help"]) == 0
    helped = capsys.readouterr().out
    for name in SUITES:
        assert re.search(rf"{re.escape(name)}\b", listed) and re.search(rf"{re.escape(name)}\b", helped)
