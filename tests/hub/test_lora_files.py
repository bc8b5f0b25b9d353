"""Files of low-rank updates: out of checkpoints, into weights, into peft, and what does not fit."""

from __future__ import annotations

import dataclasses
import json
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, inject_adapter_in_model, set_peft_model_state_dict
from safetensors.torch import load_file
from torch import Tensor

from saccade.cli import main
from saccade.errors import CheckpointError, UsageError
from saccade.hub.checkpoint import load_folder, save_model, write_checkpoint
from saccade.hub.convert import convert_file, export_official
from saccade.hub.lora import LoRAForm, extract, load_lora, merge_files, unmerge_files
from saccade.hub.peft_adapter import PEFT_CONFIG, PEFT_WEIGHTS
from saccade.hub.starts import load_backbone, load_head
from saccade.layers.lora import LoRAConfig, add_lora, fold, lora_of, set_multiplier, updates_of
from saccade.models.gsva.presets import PRESETS as GSVA_PRESETS
from saccade.models.visft.clip import CLIPPair, CLIPPairConfig, TextTowerConfig
from saccade.models.visft.convert import to_official
from saccade.models.visft.model import ViSFT
from saccade.models.visft.presets import PRESETS
from saccade.suites.towers import open_tower
from saccade.tasks import Task

sys.path.insert(0, str(Path(__file__).parents[1] / "models/visft"))
from helpers_visft import SIZE, batch, tiny_config, tiny_words

IMAGES = torch.randn(1, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
LORA = LoRAConfig(rank=4, alpha=1.0)
QKV = tuple(f"backbone.blocks.{block}.attn.qkv" for block in range(3))
QUERIES = "visft_heads.query_embeds.detection.detection_coco.weight"


def make(*, lora: LoRAConfig | None = LORA, seed: int = 0, **changes: object) -> ViSFT:
    torch.manual_seed(seed)
    model = ViSFT(tiny_config(**changes), tiny_words())
    for parameter in model.backbone.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    if lora is not None:
        add_lora(model, lora)
        for _, update in updates_of(model).values():
            torch.nn.init.normal_(update.B, std=0.5)
    return model.eval()


def pair(*, seed: int = 0) -> CLIPPair:
    """Two towers, of which the first has the layers of the model above, a class token, and no heads."""
    torch.manual_seed(seed)
    text = TextTowerConfig(vocab_size=20, positions=8, width=16, layers=1, heads=2)
    vit = dataclasses.replace(tiny_config().vit, class_token=True)
    return CLIPPair(CLIPPairConfig(vit=vit, text=text, joint_width=12)).eval()


def saved(model: ViSFT | CLIPPair, folder: Path) -> Path:
    return save_model(model, folder, classes={}, provenance={})


def official_updates(model: ViSFT) -> dict[str, Tensor]:
    state = {key: value for key, value in model.state_dict().items() if ".lora." in key}
    return {k.replace("visft_heads.backbone.0.", "visual."): v for k, v in to_official(state, model.config).items()}


def test_updates_leave_a_checkpoint_and_come_back(tmp_path: Path) -> None:
    model = make()
    folder = saved(model, tmp_path / "model")
    assert extract(folder, tmp_path / "lora.pt").layers == QKV
    held = torch.load(tmp_path / "lora.pt")
    assert held.keys() == official_updates(model).keys()
    assert all(torch.equal(value, held[key]) for key, value in official_updates(model).items())
    other = make(lora=None)
    other.load_state_dict({key: value for key, value in model.state_dict().items() if ".lora." not in key})
    add_lora(other, LORA)
    load_lora(other, held)
    assert torch.equal(other.features(IMAGES), model.features(IMAGES))


@pytest.mark.parametrize("prefix", ["", "visual.", "visual_encoder.", "visft_heads.backbone.0."])
@pytest.mark.parametrize("multiplier", [1, 2])
def test_updates_are_added_to_official_weights_under_any_name(tmp_path: Path, prefix: str, multiplier: int) -> None:
    model = make()
    state = {key: value for key, value in model.state_dict().items() if ".lora." not in key}
    backbone = {k: v for k, v in to_official(state, model.config).items() if k.startswith("visft_heads.backbone.0.")}
    renamed = {k.replace("visft_heads.backbone.0.", prefix): v.half() for k, v in backbone.items()}
    rest = {"logit_scale": torch.tensor(3.0)} if prefix == "visual." else {}
    torch.save(renamed | rest, tmp_path / "base.pth")
    torch.save(official_updates(model), tmp_path / "lora.pt")
    merged = merge_files(tmp_path / "base.pth", tmp_path / "lora.pt", tmp_path / "out.pth", multiplier=multiplier)
    assert merged.scale == 0.25 * multiplier and merged.layers == QKV
    found = torch.load(tmp_path / "out.pth")
    set_multiplier(model, multiplier)
    fold(model)
    expected = to_official(model.state_dict(), model.config)
    assert found.keys() == (renamed | rest).keys()
    for key, value in renamed.items():
        wanted = expected[
            key.replace(prefix, "visft_heads.backbone.0.", 1) if prefix else f"visft_heads.backbone.0.{key}"
        ]
        assert found[key].dtype == torch.float16
        torch.testing.assert_close(found[key].float(), wanted, rtol=2e-3, atol=2e-3)
        if "qkv" not in key:
            assert torch.equal(found[key], value)


def test_a_checkpoint_takes_its_own_updates_or_those_of_a_file(tmp_path: Path) -> None:
    model = make()
    with_own = saved(model, tmp_path / "own")
    plain = make(lora=None)
    plain.load_state_dict({key: value for key, value in model.state_dict().items() if ".lora." not in key})
    without = saved(plain, tmp_path / "plain")
    torch.save(official_updates(model), tmp_path / "lora.pt")
    merge_files(with_own, None, tmp_path / "a")
    merge_files(without, tmp_path / "lora.pt", tmp_path / "b")
    expected = model.features(IMAGES)
    for name in "ab":
        merged = load_folder(tmp_path / name).model
        assert lora_of(merged) is None
        torch.testing.assert_close(merged.features(IMAGES), expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(UsageError, match="updates of its own"):
        merge_files(with_own, tmp_path / "lora.pt", tmp_path / "c")
    with pytest.raises(UsageError, match="no low-rank updates"):
        merge_files(without, None, tmp_path / "c")
    with pytest.raises(CheckpointError, match="no low-rank updates"):
        extract(without, tmp_path / "c.pt")


@pytest.mark.parametrize("alpha", [0.0, 1.5])
@pytest.mark.parametrize("times", [1, 2])
def test_a_checkpoint_that_tells_how_often_its_updates_count_is_one_model_everywhere(
    tmp_path: Path, times: int, alpha: float
) -> None:
    """Earlier configs had a multiplier: loading obeyed it, merging and writing did not."""
    model = make(lora=LoRAConfig(rank=4, alpha=alpha))
    folder = saved(model, tmp_path / "model")
    card = json.loads((folder / "config.json").read_text())
    card["lora"]["multiplier"] = times
    (folder / "config.json").write_text(json.dumps(card))
    set_multiplier(model, times)
    expected = model.features(IMAGES)
    loaded = load_folder(folder).model
    torch.testing.assert_close(loaded.features(IMAGES), expected, rtol=1e-4, atol=1e-5)
    assert merge_files(folder, None, tmp_path / "merged").scale == times * (alpha or 4) / 4
    merged = load_folder(tmp_path / "merged").model
    torch.testing.assert_close(merged.features(IMAGES), expected, rtol=1e-4, atol=1e-5)
    extract(folder, tmp_path / "adapter", form="peft")
    told = json.loads((tmp_path / "adapter" / PEFT_CONFIG).read_text())
    assert told["lora_alpha"] / told["r"] == times * (alpha or 4) / 4


@pytest.mark.parametrize("targets", [("backbone.*.qkv:qv",), ("backbone.*.qkv:k", "*.fc1"), ("*.qkv",)])
def test_peft_reads_what_is_written_for_it(tmp_path: Path, targets: tuple[str, ...]) -> None:
    model = make(lora=LoRAConfig(rank=3, alpha=2.0, targets=targets))
    extract(saved(model, tmp_path / "model"), tmp_path / "adapter", form="peft")
    plain = make(lora=None)
    plain.load_state_dict({key: value for key, value in model.state_dict().items() if ".lora." not in key})
    config = LoraConfig(**json.loads((tmp_path / "adapter" / PEFT_CONFIG).read_text()))
    inject_adapter_in_model(config, plain)
    loaded = set_peft_model_state_dict(plain, load_file(tmp_path / "adapter" / PEFT_WEIGHTS))
    assert not loaded.unexpected_keys and not [key for key in loaded.missing_keys if "lora" in key]
    torch.testing.assert_close(plain.features(IMAGES), model.features(IMAGES), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("whole", [False, True])
def test_a_released_file_is_written_for_peft(tmp_path: Path, whole: bool) -> None:
    model = make()
    source = tmp_path / "lora.pth"
    if whole:
        export_official(saved(model, tmp_path / "model"), source)
    else:
        torch.save(official_updates(model), source)
    assert main(["lora", "extract", str(source), "--form", "peft", "--out", str(tmp_path / "adapter")]) == 0
    plain = make(lora=None)
    plain.load_state_dict({key: value for key, value in model.state_dict().items() if ".lora." not in key})
    before = plain.features(IMAGES)
    config = LoraConfig(**json.loads((tmp_path / "adapter" / PEFT_CONFIG).read_text()))
    inject_adapter_in_model(config, plain)
    loaded = set_peft_model_state_dict(plain, load_file(tmp_path / "adapter" / PEFT_WEIGHTS))
    assert not loaded.unexpected_keys and not [key for key in loaded.missing_keys if "lora" in key]
    assert not torch.allclose(plain.features(IMAGES), before, atol=1e-3)
    torch.testing.assert_close(plain.features(IMAGES), model.features(IMAGES), rtol=1e-4, atol=1e-5)


def test_a_file_of_several_ranks_is_no_adapter(tmp_path: Path) -> None:
    held = official_updates(make())
    down, up = (f"visual.blocks.1.attn.qkv.lora_{side}" for side in "AB")
    torch.save(held | {down: held[down][:4], up: held[up][:, :2]}, tmp_path / "lora.pt")
    with pytest.raises(CheckpointError, match=r"(?s)rank 2, not 4.*block 1"):
        extract(tmp_path / "lora.pt", tmp_path / "adapter", form="peft")
    assert not (tmp_path / "adapter").exists()


def broken(kind: str) -> dict[str, Tensor]:
    held = official_updates(make())
    if kind == "another backbone":
        held = {k: torch.zeros(8, 20) if k.endswith("A") else torch.zeros(40, 4) for k in held}
    elif kind == "missing blocks":
        held = {k: v for k, v in held.items() if ".1." not in k}
    elif kind == "more blocks":
        held |= {k.replace(".2.", ".3."): v for k, v in held.items() if ".2." in k}
    elif kind == "sides of different rank":
        held = {k: v[:6] if k.endswith("A") else v for k, v in held.items()}
    elif kind == "half a block":
        del held["visual.blocks.1.attn.qkv.lora_B"]
    elif kind == "keys, too":
        held = {k: v if k.endswith("A") else torch.zeros(48, 4) for k, v in held.items()}
    elif kind == "no matrix":
        held["visual.blocks.1.attn.qkv.lora_B"] = torch.zeros(4)
    elif kind == "other layers":
        held["visual.blocks.1.attn.proj.lora_A"] = torch.zeros(4, 16)
    elif kind == "infinite":
        held["visual.blocks.1.attn.qkv.lora_B"][0, 0] = float("inf")
    elif kind == "nothing":
        held = {"x": torch.zeros(1)}
    return held


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("another backbone", r"(?s)another backbone.*width 20.*width 16"),
        ("missing blocks", r"(?s)lack 1 of 3 blocks.*blocks 1"),
        ("more blocks", r"(?s)has not: 3.*--leave-out 3"),
        ("sides of different rank", "rank 4, but A has 6 rows"),
        ("half a block", r"(?s)half a block.*only A.*blocks\.1\."),
        ("keys, too", r"(?s)queries and values.*48 rows.*width 16 it has 32"),
        ("no matrix", r"(?s)no matrix.*blocks\.1\..*\[4\]"),
        ("other layers", r"(?s)other layers than queries and values.*attn\.proj\.lora_A"),
        ("infinite", r"(?s)not finite.*blocks\.1\."),
        ("nothing", "no low-rank updates"),
    ],
)
@pytest.mark.parametrize("official", [False, True])
def test_what_does_not_fit_is_one_clear_error(tmp_path: Path, kind: str, message: str, official: bool) -> None:
    torch.save(broken(kind), tmp_path / "lora.pt")
    model = make(lora=None)
    if official:
        base = tmp_path / "base.pth"
        torch.save(to_official(model.state_dict(), model.config), base)
    else:
        base = saved(model, tmp_path / "model")
    with pytest.raises(CheckpointError, match=message):
        merge_files(base, tmp_path / "lora.pt", tmp_path / "out.pth")
    if kind in ("no matrix", "other layers", "infinite"):
        with pytest.raises(CheckpointError, match=message):
            extract(tmp_path / "lora.pt", tmp_path / "out.pth")
    assert not (tmp_path / "out.pth").exists()


def test_another_rank_than_the_models_is_refused() -> None:
    model = make(lora=dataclasses.replace(LORA, rank=8))
    with pytest.raises(CheckpointError, match="rank 4, not 8"):
        load_lora(model, official_updates(make()))


@pytest.mark.parametrize("official", [False, True])
def test_blocks_are_left_out_by_name(tmp_path: Path, official: bool) -> None:
    model = make(lora=None)
    base = tmp_path / "base.pth"
    if official:
        torch.save(to_official(model.state_dict(), model.config), base)
    else:
        base = saved(model, tmp_path / "model")
    torch.save(broken("more blocks"), tmp_path / "lora.pt")
    arguments = ["lora", "merge", str(base), str(tmp_path / "lora.pt"), "--leave-out", "3"]
    assert main([*arguments, "--out", str(tmp_path / "out.pth"), "--json", str(tmp_path / "told.json")]) == 0
    told = json.loads((tmp_path / "told.json").read_text())
    assert (told["layers"], told["left_out"], told["multiplier"]) == (list(QKV), [3], 1)
    with pytest.raises(UsageError, match="no block 7 that could be left out"):
        merge_files(base, tmp_path / "lora.pt", tmp_path / "other.pth", leave_out=(3, 7))
    assert not (tmp_path / "other.pth").exists()


@pytest.mark.parametrize("targets", [("backbone.*.qkv:k",), ("detection.class_logits",)])
def test_a_model_with_other_updates_takes_no_official_file(targets: tuple[str, ...]) -> None:
    model = make(lora=dataclasses.replace(LORA, targets=targets))
    with pytest.raises(CheckpointError, match="queries and values of a plain backbone alone"):
        load_lora(model, official_updates(make()))


def test_what_merging_cannot_do_is_said(tmp_path: Path) -> None:
    model = make()
    with pytest.raises(UsageError, match="as a whole"):
        merge_files(saved(model, tmp_path / "own"), None, tmp_path / "a", leave_out=(1,))
    plain = {key: value for key, value in model.state_dict().items() if ".lora." not in key}
    torch.save(to_official(plain, model.config), tmp_path / "base.pth")
    torch.save(official_updates(model), tmp_path / "lora.pt")
    (tmp_path / "folder").mkdir()
    with pytest.raises(UsageError, match="written to a file"):
        merge_files(tmp_path / "base.pth", tmp_path / "lora.pt", tmp_path / "folder")


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 99),
    stored=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
    multiplier=st.sampled_from([1, 2]),
    official=st.booleans(),
)
def test_updates_are_taken_out_again_to_rounding(
    seed: int, stored: torch.dtype, multiplier: int, official: bool
) -> None:
    model = make(seed=seed)
    plain = {key: value for key, value in model.state_dict().items() if ".lora." not in key}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        torch.save(official_updates(model), folder / "lora.pt")
        if official:
            base = folder / "base.pth"
            torch.save({k: v.to(stored) for k, v in to_official(plain, model.config).items()}, base)
        else:
            other = make(lora=None, seed=seed)
            other.load_state_dict(plain)
            base = saved(other, folder / "base")
        merge_files(base, folder / "lora.pt", folder / "merged.pth", multiplier=multiplier)
        back = unmerge_files(folder / "merged.pth", folder / "lora.pt", folder / "back.pth", multiplier=multiplier)
        states = [read(folder / file) for file in (base.name, "merged.pth", "back.pth")]
    before, merged, after = states
    assert before.keys() == after.keys()
    changed = {key for key in before if not torch.equal(before[key], merged[key])}
    assert len(changed) == 3
    wrong = {key for key in before if not torch.equal(before[key], after[key])}
    assert wrong <= changed
    greatest = max(float((before[key].float() - after[key].float()).abs().max()) for key in changed)
    assert greatest <= back.rounding < 0.05
    assert all(before[key].dtype == after[key].dtype for key in before)


def read(path: Path) -> dict[str, Tensor]:
    """All weights of a checkpoint of ours, or of a file."""
    return load_folder(path).model.state_dict() if path.is_dir() else torch.load(path)


@pytest.mark.parametrize("official", [False, True])
def test_weights_with_digits_to_spare_are_back_bit_for_bit(tmp_path: Path, official: bool) -> None:
    model = make()
    for name, parameter in model.named_parameters():
        if name.startswith("backbone"):
            parameter.data = (parameter.data * 64).round() / 64
    plain = make(lora=None)
    plain.load_state_dict({key: value for key, value in model.state_dict().items() if ".lora." not in key})
    base = tmp_path / "base.pth"
    if official:
        torch.save(to_official(plain.state_dict(), plain.config), base)
    else:
        saved(plain, base)
    # A checkpoint holds the updates as well as a file of them does.
    updates = saved(model, tmp_path / "updates")
    merge_files(base, updates, tmp_path / "merged.pth")
    arguments = ["lora", "unmerge", str(tmp_path / "merged.pth"), str(updates), "--out", str(tmp_path / "back.pth")]
    assert main([*arguments, "--json", str(tmp_path / "told.json")]) == 0
    told = json.loads((tmp_path / "told.json").read_text())
    assert told["layers"] == list(QKV) and 0 < told["rounding"] < 1e-5
    before, after = read(base), read(tmp_path / "back.pth")
    assert all(torch.equal(value, after[key]) for key, value in before.items()) and before.keys() == after.keys()


def test_what_unmerging_cannot_do_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = saved(make(), tmp_path / "own")
    torch.save(official_updates(make()), tmp_path / "lora.pt")
    assert main(["lora", "unmerge", str(folder), str(tmp_path / "lora.pt"), "--out", str(tmp_path / "a")]) == 2
    assert "updates of its own" in capsys.readouterr().err
    assert main(["lora", "unmerge", str(folder), "--out", str(tmp_path / "a")]) == 2
    assert "required: UPDATES" in capsys.readouterr().err
    assert not (tmp_path / "a").exists()


def test_the_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = saved(make(), tmp_path / "model")
    assert main(["lora", "extract", str(folder), "--out", str(tmp_path / "lora.safetensors")]) == 0
    assert len(load_file(tmp_path / "lora.safetensors")) == 6
    assert main(["lora", "merge", str(folder), "--out", str(tmp_path / "merged")]) == 0
    assert main(["lora", "merge", str(folder), "--out", str(tmp_path / "merged")]) == 2
    assert "will not write over" in capsys.readouterr().err


@pytest.mark.parametrize("alpha", [0.0, 1.0, 6.0])
@pytest.mark.parametrize("whole", [False, True])
def test_any_scale_has_the_official_form(tmp_path: Path, alpha: float, whole: bool) -> None:
    """Its scale of 1 / rank is not told: what a scale differs by goes into B."""
    model = make(lora=LoRAConfig(rank=4, alpha=alpha))
    folder = saved(model, tmp_path / "model")
    plain = make(lora=None)
    plain.load_state_dict({key: value for key, value in model.state_dict().items() if ".lora." not in key})
    if whole:
        export_official(folder, tmp_path / "lora.pth")
    else:
        extract(folder, tmp_path / "lora.pth")
    assert merge_files(saved(plain, tmp_path / "plain"), tmp_path / "lora.pth", tmp_path / "merged").scale == 0.25
    merge_files(folder, None, tmp_path / "own")
    merged, own = read(tmp_path / "merged"), read(tmp_path / "own")
    exact = alpha != 6
    for key, value in own.items():
        torch.testing.assert_close(merged[key], value, rtol=0 if exact else 1e-6, atol=0 if exact else 1e-6)


@pytest.mark.parametrize("ending", ["pth", "safetensors"])
def test_updates_without_a_place_in_the_official_form_are_refused(tmp_path: Path, ending: str) -> None:
    out = tmp_path / f"out.{ending}"
    folder = saved(make(lora=LoRAConfig(rank=4, targets=("backbone.blocks.*",))), tmp_path / "all")
    with pytest.raises(CheckpointError, match=r"(?s)queries and values of a plain backbone alone.*attn\.qkv"):
        export_official(folder, out)
    tower = pair()
    add_lora(tower, LoRAConfig(rank=2))
    with pytest.raises(UsageError, match=r"saccade lora merge .*pair --out"):
        export_official(saved(tower, tmp_path / "pair"), out)
    assert not out.exists()


def test_second_names_of_a_head_are_written_to_safetensors(tmp_path: Path) -> None:
    model = make()
    folder = saved(model, tmp_path / "model")
    export_official(folder, tmp_path / "model.safetensors")
    official = to_official(model.state_dict(), model.config)
    torch.save(official, tmp_path / "model.pth")
    merge_files(tmp_path / "model.pth", None, tmp_path / "merged.safetensors")
    found, merged = load_file(tmp_path / "model.safetensors"), load_file(tmp_path / "merged.safetensors")
    assert found.keys() == official.keys() and any("segment_head." in key for key in found)
    assert all(torch.equal(found[key], value) for key, value in official.items())
    assert merged.keys() == {key for key in official if ".lora_" not in key}


ALL = LoRAConfig(rank=4, targets=("backbone.blocks.*",))
BESIDE = dataclasses.replace(ALL, trained=("backbone.norm.*", "caption.*"))


@pytest.mark.parametrize("multiplier", [1, 2])
def test_updates_of_all_layers_go_from_one_checkpoint_into_another(tmp_path: Path, multiplier: int) -> None:
    """With names and shapes alone; the other has heads that this one lacks, and this one a class token."""
    model, tower = make(lora=ALL), pair()
    updates, base = saved(model, tmp_path / "updates"), saved(tower, tmp_path / "base")
    done = merge_files(base, updates, tmp_path / "merged", multiplier=multiplier)
    assert len(done.layers) == len(updates_of(model)) == 3 * 4 and not done.homeless
    merged, before = read(tmp_path / "merged"), read(base)
    changed = {key for key in before if not torch.equal(before[key], merged[key])}
    assert changed == {f"{name}.weight" for name in updates_of(model)}
    for name, (_, update) in updates_of(model).items():
        delta = merged[f"{name}.weight"] - before[f"{name}.weight"]
        torch.testing.assert_close(delta, multiplier * update.delta(), rtol=1e-4, atol=1e-5)
    back = unmerge_files(tmp_path / "merged", updates, tmp_path / "back", multiplier=multiplier)
    after = read(tmp_path / "back")
    assert max(float((after[key] - before[key]).abs().max()) for key in before) <= back.rounding


def test_updates_of_heads_are_named_where_there_is_no_such_head(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    both = dataclasses.replace(ALL, targets=(*ALL.targets, "detection.class_logits"))
    updates = saved(make(lora=both), tmp_path / "updates")
    base = saved(pair(), tmp_path / "base")
    assert main(["lora", "merge", str(base), str(updates), "--out", str(tmp_path / "merged")]) == 0
    said = capsys.readouterr().err
    assert "12 layers changed" in said
    assert "no place there: detection.class_logits.lora.A, detection.class_logits.lora.B" in said


def test_what_was_trained_in_full_beside_updates_goes_with_them_or_is_named(tmp_path: Path) -> None:
    model = make(lora=BESIDE)
    updates = saved(model, tmp_path / "updates")
    captions = {key for key in model.state_dict() if key.startswith("caption.")}
    other, own = saved(pair(seed=3), tmp_path / "pair"), saved(make(lora=None, seed=3), tmp_path / "plain")
    assert set(merge_files(other, updates, tmp_path / "a").homeless) == captions
    assert not merge_files(own, updates, tmp_path / "b").homeless
    merged, full = read(tmp_path / "a"), read(tmp_path / "b")
    for key, value in model.state_dict().items():
        if key.startswith("backbone.norm."):
            assert torch.equal(merged[key], value) and torch.equal(full[key], value)
        if key in captions:
            assert torch.equal(full[key], value)
    with pytest.raises(UsageError, match=r"(?s)cannot be taken out.*backbone\.norm"):
        unmerge_files(tmp_path / "a", updates, tmp_path / "c")
    assert not (tmp_path / "c").exists()


def test_a_tower_takes_what_was_trained_beside_updates_and_is_told_from_others(tmp_path: Path) -> None:
    """Runs end in folders of one name: features that are kept must not be taken for those of another."""
    base = str(saved(pair(), tmp_path / "base"))
    models = [make(lora=BESIDE, seed=seed) for seed in (1, 2)]
    runs = [saved(model, tmp_path / f"run{index}" / "last") for index, model in enumerate(models)]
    towers = [open_tower(base, lora=run) for run in runs]
    for tower, model in zip(towers, models, strict=True):
        assert torch.equal(tower.vit.get_submodule("norm").weight, model.backbone.get_submodule("norm").weight)
        assert "no place for it: caption." in tower.notes[0] and len(tower.notes) == 1
        assert len(updates_of(tower.model)) == 12
    assert towers[0].updates == towers[1].updates and towers[0].identity != towers[1].identity
    files = [tmp_path / name / "lora.pt" for name in "ab"]
    for file, seed in zip(files, (1, 2), strict=True):
        file.parent.mkdir()
        torch.save(official_updates(make(seed=seed)), file)
    assert len({open_tower(base, lora=file).identity for file in files}) == 2


@pytest.mark.parametrize("form", ["official", "peft"])
def test_updates_that_mean_nothing_by_themselves_are_not_written_so(tmp_path: Path, form: LoRAForm) -> None:
    both = saved(make(lora=dataclasses.replace(BESIDE, targets=LORA.targets)), tmp_path / "both")
    heads = dataclasses.replace(LORA, trained=("caption.*",))
    head = saved(make(lora=heads), tmp_path / "head")
    with pytest.raises(UsageError, match=r"(?s)trained in full.*backbone\.norm.*saccade lora merge"):
        extract(both, tmp_path / "out.pt", form=form)
    plain = make(lora=None)
    torch.save(to_official(plain.state_dict(), plain.config), tmp_path / "base.pth")
    with pytest.raises(UsageError, match=r"(?s)trained in full.*backbone\.norm"):
        merge_files(tmp_path / "base.pth", both, tmp_path / "merged.pth")
    if form == "peft":
        with pytest.raises(UsageError, match=r"(?s)trained in full.*caption"):
            extract(head, tmp_path / "out.pt", form=form)
    else:
        left = extract(head, tmp_path / "lora.pt").homeless
        assert left and all(name.startswith("caption.") for name in left)
        assert merge_files(tmp_path / "base.pth", head, tmp_path / "merged.pth").homeless == left
    assert not (tmp_path / "out.pt").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"width": 32}, r"(?s)another model.*lora\.A is .* x 16, the layer here needs .* x 32"),
        ({"depth": 4}, r"(?s)lack 4 of 16 layers.*backbone\.blocks\.3\.attn\.proj"),
        ({"depth": 2}, r"(?s)have not: backbone\.blocks\.2\.attn\.proj.*--leave-out 2"),
    ],
)
def test_a_checkpoint_of_another_backbone_is_refused(tmp_path: Path, changes: dict[str, int], message: str) -> None:
    updates = saved(make(lora=ALL), tmp_path / "updates")
    vit = dataclasses.replace(tiny_config().vit, global_blocks=tuple(range(changes.get("depth", 3))), **changes)
    base = saved(make(lora=None, vit=vit), tmp_path / "base")
    with pytest.raises(CheckpointError, match=message):
        merge_files(base, updates, tmp_path / "merged")
    if changes == {"depth": 2}:
        assert len(merge_files(base, updates, tmp_path / "merged", leave_out=(2,)).layers) == 8
        with pytest.raises(UsageError, match="no block 7"):
            merge_files(base, updates, tmp_path / "other", leave_out=(2, 7))


def test_a_checkpoint_of_another_system_is_refused(tmp_path: Path) -> None:
    model = make(lora=LoRAConfig(rank=2, targets=("detection.class_logits",)))
    with pytest.raises(CheckpointError, match=r"(?s)another model.*'detection\.class_logits'"):
        merge_files(saved(pair(), tmp_path / "base"), saved(model, tmp_path / "updates"), tmp_path / "merged")
    with pytest.raises(CheckpointError, match="no low-rank updates"):
        merge_files(tmp_path / "base", tmp_path / "base", tmp_path / "merged")


def test_values_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    model = make(lora=ALL)
    with torch.no_grad():
        updates_of(model)["backbone.blocks.1.attn.proj"][1].B[0] = float("nan")
    with pytest.raises(CheckpointError, match=r"(?s)not finite.*blocks\.1\.attn\.proj"):
        merge_files(saved(pair(), tmp_path / "base"), saved(model, tmp_path / "updates"), tmp_path / "merged")


def test_updates_of_a_gsva_are_a_part_of_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = next(iter(GSVA_PRESETS.values()))()
    config = dataclasses.replace(config, lora=dataclasses.replace(config.lora, rank=4))
    write_checkpoint(
        tmp_path / "gsva",
        state={"x": torch.zeros(1)},
        config=config,
        tasks=(),
        classes={},
        preprocessing={},
        provenance={},
        vocabulary=None,
    )
    base = saved(make(lora=None), tmp_path / "base")
    for words in (["extract", "gsva"], ["merge", "gsva"], ["merge", "base", "gsva"]):
        paths = [str(tmp_path / word) for word in words[1:]]
        assert main(["lora", words[0], *paths, "--out", str(tmp_path / "out")]) == 2
        assert "a part of its model" in (said := capsys.readouterr().err) and "--to-official" in said
    torch.save(to_official(make(lora=None).state_dict(), make().config), tmp_path / "base.pth")
    with pytest.raises(UsageError, match="a part of its model"):
        merge_files(tmp_path / "base.pth", tmp_path / "gsva", tmp_path / "out.pth")
    assert base.exists() and not (tmp_path / "out").exists()


def test_a_checkpoint_with_updates_is_written_in_official_names_and_read_again(tmp_path: Path) -> None:
    model = make()
    folder = saved(model, tmp_path / "model")
    export_official(folder, tmp_path / "model.pth")
    assert extract(tmp_path / "model.pth", tmp_path / "lora.pt").layers == QKV
    other = ViSFT(tiny_config(), tiny_words())
    with pytest.raises(CheckpointError, match="saccade lora merge"):
        load_backbone(other, tmp_path / "model.pth")
    with pytest.raises(UsageError, match="updates of its own"):
        merge_files(tmp_path / "model.pth", tmp_path / "lora.pt", tmp_path / "merged.pth")
    merge_files(tmp_path / "model.pth", None, tmp_path / "merged.pth")
    load_backbone(other, tmp_path / "merged.pth")
    torch.testing.assert_close(other.features(IMAGES), model.features(IMAGES))
    load_head(other, "detection", tmp_path / "model.pth")
    load_head(other, "caption", folder)
    for key, value in other.state_dict().items():
        if key.startswith(("detection.", "caption.")):
            assert torch.equal(value, model.state_dict()[key]), key


def test_a_file_of_heads_becomes_a_start_or_with_its_backbone_a_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The published sizes would take a gigabyte: a small one is given a name."""
    monkeypatch.setitem(PRESETS, "tiny", tiny_config)
    monkeypatch.setattr("saccade.models.visft.convert.PUBLISHED_LORA", LORA)
    model = make()
    official = to_official(model.state_dict(), model.config)
    heads = {key: value for key, value in official.items() if "backbone" not in key}
    torch.save({"model": heads, "num_updates": 5}, tmp_path / "model_5.ckpt")  # as the authors write it
    convert_file(tmp_path / "model_5.ckpt", out=tmp_path / "heads", preset="tiny", part="detection")
    other = ViSFT(tiny_config(), tiny_words())
    load_head(other, "detection", tmp_path / "heads")
    assert torch.equal(other.state_dict()["detection.query_embed.weight"], heads[QUERIES])
    with pytest.raises(CheckpointError, match="missing"):
        load_head(other, "caption", tmp_path / "heads")

    updates = {key: value for key, value in official.items() if ".lora_" in key}
    torch.save({"model": heads | updates}, tmp_path / "stage2.ckpt")
    plain = {k.removeprefix("visft_heads.backbone.0."): v for k, v in official.items() if "backbone.0." in k}
    torch.save({k: v for k, v in plain.items() if ".lora_" not in k}, tmp_path / "eva.pth")
    words = tiny_words().save(tmp_path)
    convert_file(
        tmp_path / "stage2.ckpt", out=tmp_path / "whole", preset="tiny", base=tmp_path / "eva.pth", vocabulary=words
    )
    whole = load_folder(tmp_path / "whole").model
    assert lora_of(whole) == LORA and isinstance(whole, ViSFT)
    torch.testing.assert_close(whole.features(IMAGES), model.features(IMAGES))
    answers = whole.predict(batch(Task.CAPTION))
    assert [one.text for one in answers] == [one.text for one in model.predict(batch(Task.CAPTION))]
