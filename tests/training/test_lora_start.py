"""What low-rank updates of a run are put on, and what learns beside them."""

from __future__ import annotations

import dataclasses
import sys
from fnmatch import fnmatchcase
from pathlib import Path

import pytest
import torch
from helpers_training import tiny_model, tiny_run
from torch import nn

sys.path.extend(str(Path(__file__).parents[1] / "models" / folder) for folder in ("ait", "polar", "visft", "vitdet"))
import helpers_ait
import helpers_polar
import helpers_vitdet
from helpers_visft import tiny_config, tiny_words

from saccade.errors import CheckpointError, ConfigError
from saccade.hub.checkpoint import load_folder, read_card, save_model
from saccade.layers.lora import LoRAConfig, add_lora, lora_of, updates_of
from saccade.models.polar.config import PolarConfig, SegmenterConfig
from saccade.models.systems import Model, build
from saccade.models.visft.model import ViSFT
from saccade.training.config import TrainConfig
from saccade.training.start import build_model

LORA = LoRAConfig(rank=2)


def saved(model: Model, folder: Path) -> str:
    return str(save_model(model, folder, classes={}, provenance={}))


def lora_run(folder: Path, **changes: object) -> TrainConfig:
    return tiny_run(folder, **{"vocabulary": "", "lora": LORA, **changes})


def learning(model: nn.Module) -> set[str]:
    """What is trained beside the updates."""
    return {name for name, p in model.named_parameters() if p.requires_grad and ".lora." not in name}


def test_outputs_for_other_classes_learn_beside_the_updates(tmp_path: Path) -> None:
    config = helpers_vitdet.FORMS["detectron2"]
    start = saved(build(config), tmp_path / "start")
    other = dataclasses.replace(
        config,
        classes=("rbc", "wbc"),
        category_ids=(1, 2),
        roi=dataclasses.replace(config.roi, num_classes=2),
    )
    model, _ = build_model(lora_run(tmp_path, model=other, weights=start))
    before = load_folder(start).model.state_dict()
    odd = {name for name, p in model.named_parameters() if name in before and before[name].shape != p.shape}
    assert odd and odd <= learning(model)
    assert all(name.startswith("roi.box_heads") or name.startswith("roi.mask_heads") for name in learning(model))
    # The checkpoint tells it, and a run that goes on from it trains the same.
    again = Path(saved(model, tmp_path / "again"))
    told = read_card(again).lora
    assert told is not None and (told.rank, told.targets) == (2, LORA.targets)
    assert {name for name in before if any(fnmatchcase(name, one) for one in told.trained)} == learning(model)
    resumed, _ = build_model(lora_run(tmp_path, model=other, weights="is gone"), resumed=again)
    assert learning(resumed) == learning(model) and updates_of(resumed).keys() == updates_of(model).keys()
    # With the classes of the start all else stands still.
    same, _ = build_model(lora_run(tmp_path, model=config, weights=start))
    assert not learning(same) and lora_of(same) == LORA


def test_new_words_of_a_solver_learn_beside_the_updates(tmp_path: Path) -> None:
    solver = helpers_ait.model("instance")
    start = saved(solver, tmp_path / "start")
    names = tuple(f"new {index}" for index in range(solver.config.num_classes))
    other = dataclasses.replace(solver.config, classes=names)
    model, _ = build_model(lora_run(tmp_path, model=other, weights=start))
    assert learning(model) == {"transformer.token_embed", "transformer.token_bias"}
    same, _ = build_model(lora_run(tmp_path, model=solver.config, weights=start))
    assert not learning(same)


def test_updates_of_fresh_weights_are_refused(tmp_path: Path) -> None:
    config = tiny_config()
    heads = saved(ViSFT(config, tiny_words()), tmp_path / "heads")
    for fresh in (
        tiny_run(tmp_path, model=tiny_model(), lora=LORA),
        # A trained head does not make the backbone a trained one.
        lora_run(tmp_path, model=config, caption_init=heads),
        lora_run(tmp_path, model=PolarConfig(segmenter=helpers_polar.TINY_VIT)),
    ):
        with pytest.raises(ConfigError, match="layers that start fresh") as caught:
            build_model(fresh)
        assert "init_from=" in str(caught.value) and "weights=" in str(caught.value)


def test_a_head_that_no_file_brings_learns_beside_the_updates(tmp_path: Path) -> None:
    config = tiny_config()
    start = saved(ViSFT(config, tiny_words()), tmp_path / "start")
    heads = {"detection_init": start, "instance_init": start}
    model, _ = build_model(lora_run(tmp_path, model=config, init_from=start, **heads, caption_init=start))
    assert not learning(model)
    words = tmp_path / "start/wordmap.json"
    model, _ = build_model(lora_run(tmp_path, model=config, init_from=start, **heads, vocabulary=str(words)))
    assert learning(model) == {name for name, _ in model.named_parameters() if name.startswith("caption.")}
    assert lora_of(model) == dataclasses.replace(LORA, trained=("caption.*",))


def test_a_last_norm_that_a_file_lacks_stands_still(tmp_path: Path) -> None:
    config = tiny_config().only(("detection",))
    whole = ViSFT(dataclasses.replace(config, trained=("backbone", "detection")))
    file = tmp_path / "backbone.pth"
    own = {key: value for key, value in whole.state_dict().items() if key.startswith("backbone.")}
    torch.save({key: value for key, value in own.items() if not key.startswith("backbone.norm.")}, file)
    model, reports = build_model(lora_run(tmp_path, model=whole.config, init_from=str(file)))
    assert "backbone.norm.weight" in reports[0].missing
    assert learning(model) == {name for name, _ in model.named_parameters() if name.startswith("detection.")}


@pytest.mark.parametrize("wrapped", [False, True])
def test_the_default_finds_the_backbone_inside_a_segmenter(wrapped: bool, tmp_path: Path) -> None:
    inner = helpers_polar.TINY_VIT
    config = PolarConfig(segmenter=inner, finder=inner) if wrapped else inner
    start, finder = (saved(build(inner), tmp_path / name) for name in ("start", "finder"))
    run = lora_run(tmp_path, model=config, weights=start, finder=finder if wrapped else "")
    model, _ = build_model(run)
    before = "segmenter.network.backbone.blocks." if wrapped else "network.backbone.blocks."
    assert set(updates_of(model)) == {f"{before}{block}.attn.qkv" for block in range(inner.network.vit.depth)}
    assert not learning(model)
    again = load_folder(saved(model, tmp_path / "again")).model
    assert updates_of(again).keys() == updates_of(model).keys()
    # What starts from the backbone alone has a fresh head, and the finder stands still.
    model, _ = build_model(dataclasses.replace(run, weights="", init_from=start))
    head = before.replace("backbone.blocks.", "head.")
    assert learning(model) == {f"{head}weight", f"{head}bias"}


@pytest.mark.parametrize("config", [helpers_polar.TINY_UNET, SegmenterConfig(input_hw=(64, 64))])
def test_convolutions_have_nothing_to_update(config: SegmenterConfig, tmp_path: Path) -> None:
    start = saved(build(config), tmp_path / "start")
    with pytest.raises(ConfigError, match="no linear layer"):
        build_model(lora_run(tmp_path, model=config, weights=start))


def test_a_backbone_with_updates_is_to_be_merged_first(tmp_path: Path) -> None:
    tuned = ViSFT(tiny_config(), tiny_words())
    head = next(name for name, part in tuned.detection.named_modules() if type(part) is nn.Linear)
    add_lora(tuned, dataclasses.replace(LORA, targets=(*LORA.targets, f"detection.{head}")))
    start = saved(tuned, tmp_path / "start")
    for given in ({"init_from": start}, {"detection_init": start}):
        with pytest.raises(CheckpointError) as caught:
            build_model(tiny_run(tmp_path, **{"model": tiny_config().only(("detection",)), "vocabulary": "", **given}))
        assert f"fix:   add its low-rank updates to the weights first: saccade lora merge {start} " in str(caught.value)
