"""The original's numbers, and the contract of the command that compares them."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from saccade.errors import CheckpointError
from saccade.layers.swin import WindowAttention
from saccade.models.git.config import GIT_TASKS

ROOT = Path(__file__).resolve().parents[2]
COMMITTED = ROOT / "tests/fixtures/parity"
SHARED = ROOT.parent / "shared/parity/git"


def load_check() -> ModuleType:
    """``check.py`` under a name of its own (another folder of tests has a ``check.py`` too)."""
    spec = importlib.util.spec_from_file_location("parity_check", Path(__file__).parent / "check.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["parity_check"] = module
    spec.loader.exec_module(module)
    return module


check = load_check()


@pytest.fixture(scope="module")
def committed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The committed fixtures with every file whole."""
    return check.unpack(COMMITTED, tmp_path_factory.mktemp("parity"))


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def explain(report: object) -> str:
    rows = [f"{row.name}: {row.norm_error:.2e} {row.peak_error:.2e}" for row in report.failures]
    return "\n".join(rows + [f"not compared: {name}" for name in sorted(report.pending)])


def test_committed_fixtures_are_reproduced() -> None:
    report = check.run("git", COMMITTED / "git")
    assert report.passed, explain(report)
    assert len(report.rows) > 700
    files = {row.name.split("/")[0] for row in report.rows}
    for task in GIT_TASKS:
        for case in ("predict", "train"):
            assert any(name.startswith(f"io_{task}") and name.endswith(case) for name in files), (task, case)


def test_shared_fixtures_are_reproduced() -> None:
    if not SHARED.is_dir():
        pytest.skip("../shared/parity/git is absent")
    report = check.run("git", SHARED)
    assert report.passed, explain(report)
    assert len(report.rows) > 940
    assert any(row.name.startswith("io_pure/metric") for row in report.rows)


def test_committed_fixtures_of_vitdet_are_reproduced() -> None:
    report = check.run("vitdet", COMMITTED / "vitdet")
    assert report.passed, explain(report)
    assert len(report.rows) > 700


def test_shared_fixtures_of_vitdet_are_reproduced() -> None:
    if not SHARED.is_dir():
        pytest.skip("../shared/parity/vitdet is absent")
    report = check.run("vitdet", SHARED.parent / "vitdet")
    assert report.passed, explain(report)
    assert {row.name.split("/")[0] for row in report.rows} == {p.name for p in (SHARED.parent / "vitdet").iterdir()}


def test_committed_fixtures_of_ait_are_reproduced() -> None:
    report = check.run("ait", COMMITTED / "ait")
    assert report.passed, explain(report)
    assert len(report.rows) > 850
    assert not report.not_yet


def test_ait_predicts_the_same_by_the_way_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without gradients a CPU has a way of its own through the windows; here it takes the one of training."""
    gradients: list[bool] = []
    forward = WindowAttention.forward_groups

    def watch(self: WindowAttention, *arguments: Any) -> Tensor:
        gradients.append(torch.is_grad_enabled())
        return forward(self, *arguments)

    monkeypatch.setattr(WindowAttention, "forward_groups", watch)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    report = check.run("ait", COMMITTED / "ait")
    assert report.passed, explain(report)
    assert set(gradients) == {True, False}


def test_shared_fixtures_of_ait_are_reproduced() -> None:
    if not SHARED.is_dir():
        pytest.skip("../shared/parity/ait is absent")
    report = check.run("ait", SHARED.parent / "ait")
    assert report.passed, explain(report)
    assert {row.name.split("/")[0] for row in report.rows} == {p.name for p in (SHARED.parent / "ait").iterdir()}
    assert len(report.rows) > 2900
    # The list of what is missing names nothing that is there.
    assert set(report.not_yet.values()) == set(sys.modules["ait_pure"].NOT_YET.values())


@pytest.mark.parametrize(
    "name",
    [
        "backbone.layers.0.blocks.1.attn.rpe_mlp.2.weight",
        "backbone.layers.1.downsample.reduction.weight",
        "backbone.layers.3.blocks.0.attn.v_bias",
        "transformer.encoder.blocks.0.mlp.fc1.weight",
        "transformer.decoder.blocks.1.norm2.bias",
        "transformer.proj_mlp_ln.weight",
        "transformer.outp_bias",
        "insseg_head.vqvae._vq_vae._embedding",
    ],
)
def test_a_changed_weight_of_ait_is_noticed(name: str, committed: Path, tmp_path: Path) -> None:
    for file in ("config.json", "meta.json", "weights.safetensors", "io_test.safetensors"):
        shutil.copyfile(committed / "ait/solver_insseg" / file, tmp_path / file)
    value = load_file(tmp_path / "weights.safetensors")[name]
    # Norms forgive a factor, and the same number added to all channels.
    noise = torch.sin(torch.arange(value.numel()) * 7.0).view_as(value)
    edit(tmp_path / "weights.safetensors", {name: value + 0.05 * noise})
    report = check.run("ait", tmp_path)
    assert report.failures and not any("round trip" in row.name for row in report.failures)


def test_what_is_wrong_is_not_taken_for_rounding(committed: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(committed / "ait/solver_depth_ar", tmp_path / "solver_depth_ar")
    name = "backbone.layers.2.blocks.0.attn.v_bias"
    value = load_file(folder / "weights.safetensors")[name]
    noise = torch.sin(torch.arange(value.numel()) * 7.0) * value.abs().mean()
    edit(folder / "weights.safetensors", {name: value + 0.01 * noise})
    report = check.run("ait", folder)
    measured = [row for row in report.rows if row.rounding]
    assert len(measured) > 10 and len([row for row in measured if not row.passed]) > 0.8 * len(measured)


@pytest.mark.parametrize("name", ["loss.insseg_decoder_aux_ce", "target.0.insseg", "rng.010.torch.rand", "gt0.masks"])
def test_a_changed_training_tensor_of_ait_is_noticed(name: str, committed: Path, tmp_path: Path) -> None:
    for path in (committed / "ait/solver_insseg").iterdir():
        if not path.name.startswith(("io_test", "io_nucleus", "io_train_hard", "io_train_empty")):
            shutil.copyfile(path, tmp_path / path.name)
    value = load_file(tmp_path / "io_train.safetensors")[name]
    edit(tmp_path / "io_train.safetensors", {name: (1 - value if value.dtype == torch.uint8 else value + 1)})
    assert check.run("ait", tmp_path).failures


def test_committed_fixtures_of_gsva_are_reproduced() -> None:
    report = check.run("gsva", COMMITTED / "gsva")
    assert report.passed, explain(report)
    assert len(report.rows) > 500
    assert not report.not_yet


def test_shared_fixtures_of_gsva_are_reproduced() -> None:
    if not SHARED.is_dir():
        pytest.skip("../shared/parity/gsva is absent")
    report = check.run("gsva", SHARED.parent / "gsva")
    assert report.passed, explain(report)
    files = {path.stem for path in (SHARED.parent / "gsva").glob("io_*.safetensors")}
    assert files - {"io_metrics"} <= {row.name.split("/")[0] for row in report.rows}


def test_committed_fixtures_of_visft_are_reproduced() -> None:
    report = check.run("visft", COMMITTED / "visft")
    assert report.passed, explain(report)
    assert len(report.rows) > 60
    files = {row.name.split("/")[0].removesuffix(".safetensors") for row in report.rows}
    assert {"io_backbone_eva_g", "io_caption", "io_stage2"} <= files
    assert any(row.name.startswith("io_stage2.safetensors/traj/step0/visft_heads") for row in report.rows)


def test_shared_fixtures_of_visft_are_reproduced() -> None:
    if not SHARED.is_dir():
        pytest.skip("../shared/parity/visft is absent")
    report = check.run("visft", SHARED.parent / "visft")
    assert report.passed, explain(report)
    files = {path.stem for path in (SHARED.parent / "visft").glob("io_*.safetensors")}
    assert files <= {row.name.split("/")[0].removesuffix(".safetensors") for row in report.rows}
    assert not report.not_yet


@pytest.mark.parametrize(
    "name",
    [
        "backbone.0.blocks.1.attn.v_bias",
        "backbone.0.blocks.2.attn.qkv.lora_A",
        "backbone.0.norm.weight",
        "transformer.enc2dec_proj.weight",
        "segment_predictor.mask_embed.layers.1.bias",
        "caption_decoder.attention.full_att.weight",
    ],
)
def test_a_changed_weight_of_visft_is_noticed(name: str, committed: Path, tmp_path: Path) -> None:
    # The weights of the other two heads are not committed.
    source = committed if name.startswith(("backbone.", "caption_decoder.")) else SHARED.parent
    if not (source / "visft").is_dir():
        pytest.skip("../shared/parity/visft is absent")
    for file in ("config.json", "meta.json", "weights.safetensors", "io_stage2.safetensors"):
        shutil.copyfile(source / "visft" / file, tmp_path / file)
        (tmp_path / file).chmod(0o644)
    key = f"visft_heads.{name}"
    value = load_file(tmp_path / "weights.safetensors")[key]
    noise = torch.sin(torch.arange(value.numel()) * 7.0).view_as(value)
    edit(tmp_path / "weights.safetensors", {key: value + 0.05 * noise})
    report = check.run("visft", tmp_path)
    assert report.failures and not any("keys" in row.name for row in report.failures)


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.1.self_attn.v_proj.lora_B.default.weight",
        "model.layers.0.mlp.gate_proj.weight",
        "model.vision_tower.vision_tower.vision_model.pre_layrnorm.bias",
        "model.mm_projector.weight",
        "model.text_hidden_fcs.0.2.bias",
        "model.visual_model.image_encoder.blocks.1.attn.rel_pos_w",
        "model.visual_model.image_encoder.neck.3.weight",
        "model.visual_model.prompt_encoder.pe_layer.positional_encoding_gaussian_matrix",
        "model.visual_model.mask_decoder.transformer.layers.1.norm4.bias",
        "model.visual_model.mask_decoder.iou_prediction_head.layers.1.weight",
    ],
)
def test_a_changed_weight_of_gsva_is_noticed(name: str, committed: Path, tmp_path: Path) -> None:
    files = ("weights", "io_sam_encoder", "io_sam_decoder", "io_train", "io_infer_reason")
    for file in ("config.json", *(f"{stem}.safetensors" for stem in files)):
        shutil.copyfile(committed / "gsva" / file, tmp_path / file)
    key = f"base_model.model.{name}"
    value = load_file(tmp_path / "weights.safetensors")[key]
    noise = torch.sin(torch.arange(value.numel()) * 7.0).view_as(value)
    edit(tmp_path / "weights.safetensors", {key: value + 0.05 * noise})
    report = check.run("gsva", tmp_path)
    assert report.failures and not any("round trip" in row.name for row in report.failures)


# ---------------------------------------------------------------------- the command


@pytest.fixture
def folder(committed: Path, tmp_path: Path) -> Path:
    """A fixture folder of one small case."""
    (tmp_path / "tokenizer").mkdir()
    for name in (
        "config.json",
        "meta.json",
        "weights.safetensors",
        "tokenizer/vocab.txt",
        "io_grounding_predict.safetensors",
    ):
        shutil.copyfile(committed / "git" / name, tmp_path / name)
    return tmp_path


def test_committed_fixtures_of_polar_are_reproduced() -> None:
    report = check.run("polar", COMMITTED / "polar")
    assert report.passed, explain(report)
    assert len(report.rows) > 20


def test_shared_fixtures_of_polar_are_reproduced() -> None:
    if not SHARED.is_dir():
        pytest.skip("../shared/parity/polar is absent")
    report = check.run("polar", SHARED.parent / "polar")
    assert report.passed, explain(report)
    assert len(report.rows) > 1300


@pytest.mark.parametrize(
    "name", ["polar0.label_polar", "polar1.label_back", "polar2.image_polar", "polar0.heatmap_sigma8", "metrics.target"]
)
def test_a_changed_tensor_of_polar_is_noticed(name: str, committed: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(committed / "polar", tmp_path / "polar"))
    value = load_file(folder / "io.safetensors")[name]
    edit(folder / "io.safetensors", {name: value.flip(0).contiguous()})
    assert not check.run("polar", folder).passed


def edit(path: Path, changes: dict[str, Tensor]) -> None:
    save_file(load_file(path) | changes, path)


def main(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["check.py", *map(str, arguments)])
    return check.main()


def test_exit_code_0_when_all_is_well(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(monkeypatch, "git", folder, "--all") == 0
    out = capsys.readouterr().out
    assert "FAIL" not in out
    total = int(re.search(r"(\d+) comparisons, 0 failed, 0 tensors not compared", out)[1])
    assert out.count("ok  ") == total > 10


def test_exit_code_1_past_the_tolerance(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = folder / "io_grounding_predict.safetensors"
    logits = load_file(file)["logits"]
    edit(file, {"logits": logits * (1 + 1e-5)})
    assert main(monkeypatch, "git", folder) == 0
    edit(file, {"logits": logits * (1 + 1e-3)})
    capsys.readouterr()
    assert main(monkeypatch, "git", folder) == 1
    assert re.search(r"FAIL .* io_grounding_predict/logits", capsys.readouterr().out)


@pytest.mark.parametrize("change", ["token", "nan", "shape", "text"])
def test_exit_code_1_for_any_other_difference(change: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = folder / "io_grounding_predict.safetensors"
    tensors = load_file(file)
    if change == "token":
        tokens = tensors["tokens"].clone()
        tokens.view(-1)[0] += 1
        edit(file, {"tokens": tokens})
    elif change == "nan":
        edit(file, {"logits": tensors["logits"].masked_fill(torch.eye(1, dtype=torch.bool)[0], torch.nan)})
    elif change == "shape":
        edit(file, {"logits": tensors["logits"][:, :, :3].contiguous()})
    else:
        meta = json.loads((folder / "meta.json").read_text())
        meta["cases"]["grounding_predict"]["texts"][0] = "man on the right"
        (folder / "meta.json").write_text(json.dumps(meta))
    assert main(monkeypatch, "git", folder) == 1


def test_exit_code_1_when_a_tensor_was_not_compared(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    edit(folder / "io_grounding_predict.safetensors", {"something_new": torch.zeros(1)})
    assert main(monkeypatch, "git", folder) == 1
    out = capsys.readouterr().out
    assert "FAIL not compared: io_grounding_predict/something_new" in out
    assert "1 failed, 1 tensors not compared" in out


def test_exit_code_1_for_a_folder_without_cases(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "io_grounding_predict.safetensors").unlink()
    assert main(monkeypatch, "git", folder) == 1


def test_exit_code_2_for_no_fixture_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit) as caught:
        main(monkeypatch, "git", tmp_path)
    assert caught.value.code == 2


@pytest.mark.parametrize(
    "name",
    [
        "backbone.pos_embed",
        "backbone.layers.0.attn.rel_pos_h",
        "backbone.layers.1.attn.qkv.bias",
        "backbone.layers.5.ffn.layers.1.weight",
        "embed.position_embeddings.weight",
        "synt_att.out_proj.weight",
    ],
)
def test_a_changed_weight_is_noticed(name: str, folder: Path) -> None:
    weights = folder / "weights.safetensors"
    value = load_file(weights)[name]
    edit(weights, {name: value * 1.05 + 0.01})
    report = check.run("git", folder)
    assert not report.passed
    assert report.failures


def test_a_missing_weight_is_an_error(folder: Path) -> None:
    weights = load_file(folder / "weights.safetensors")
    del weights["backbone.layers.2.ln1.bias"]
    save_file(weights, folder / "weights.safetensors")
    with pytest.raises(CheckpointError, match=r"blocks\.2\.norm1\.bias"):
        check.run("git", folder)


# ---------------------------------------------------------------------- how a row is judged


def judge(ours: list[float], reference: list[float], tolerance: float = 1e-4) -> bool:
    report = check.Report()
    report.close("x", torch.tensor(ours), torch.tensor(reference), tolerance)
    return report.passed


def test_floats_are_judged_by_norm_and_by_peak() -> None:
    assert judge([1.0, 2.0], [1.0, 2.0])
    assert judge([1.0, 2.0001], [1.0, 2.0])
    assert not judge([1.0, 2.001], [1.0, 2.0])
    # One wrong place among many: the norm is small, the peak is not.
    assert not judge([100.0] * 9999 + [100.1], [100.0] * 10000)
    # Many small errors: the peak is small, the norm is not.
    assert not judge([1.0] + [0.0002] * 10000, [1.0] + [0.0] * 10000, 1e-3)


def test_nothing_equals_nan_and_infinity_only_itself() -> None:
    inf, nan = float("inf"), float("nan")
    assert not judge([nan], [nan])
    assert not judge([nan], [1.0])
    assert judge([-inf, 1.0], [-inf, 1.0])
    assert not judge([-inf, 1.01], [-inf, 1.0])
    assert not judge([inf], [-inf])
    assert not judge([1.0], [inf])


def test_integers_are_exact_unless_a_share_is_allowed() -> None:
    ours, reference = torch.zeros(100, dtype=torch.long), torch.zeros(100, dtype=torch.long)
    ours[3] = 1
    for allowed, passed in ((0.0, False), (0.009, False), (0.01, True)):
        report = check.Report()
        report.same("x", ours, reference, allowed=allowed)
        assert report.passed is passed


def test_a_report_of_nothing_has_not_passed() -> None:
    report = check.Report()
    assert not report.passed
    report.expect("file", ["a", "b"])
    report.skip("file/a")
    report.equal("file/b", "x", "x")
    assert report.passed
