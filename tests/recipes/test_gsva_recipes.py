"""GSVA's recipes: every published number, and what a training starts from."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from saccade.errors import ConfigError
from saccade.models.gsva.config import PUBLISHED_PARTS
from saccade.models.gsva.model import GSVA
from saccade.recipes import get_recipe
from saccade.recipes.gsva import nano_scenes
from saccade.tasks import Task
from saccade.training.config import keep_shares, validate
from saccade.training.optim import parameter_groups
from saccade.training.schedule import learning_rate
from saccade.training.start import build_model

PUBLISHED = {
    "steps": 5000,
    "precision": "bf16",
    "activation_checkpointing": True,
    "accumulate": 1,
    "ema_decay": 0.0,
    "eval_every": 500,
    "save_every": 500,
    "workers": 8,
    "mixture": "mixed",
}
OPTIM = {
    "betas": (0.9, 0.95),
    "eps": 1e-8,
    "weight_decay": 0.0,
    "clip_norm": 1.0,
    "schedule": "deepspeed",
    "warmup_steps": 100,
    "layer_rates": None,
}


@pytest.mark.parametrize("base", ["7b", "13b", "llama2_13b"])
@pytest.mark.parametrize(("kind", "lr"), [("pretrain", 3e-4), ("finetune_gres", 1e-4)])
def test_published_numbers(base: str, kind: str, lr: float) -> None:
    config = get_recipe(f"gsva.{kind}_{base}")()
    validate(config)
    for name, value in PUBLISHED.items():
        assert getattr(config, name) == value, name
    for name, value in (OPTIM | {"lr": lr}).items():
        assert getattr(config.optim, name) == value, name
    assert all(source.batch_size == 20 and source.augment.count == 5 for source in config.train)
    assert [source.reader for source in config.val] == ["grefcoco", "reasonseg"]
    model = config.model
    assert (model.lora.rank, model.lora.alpha, model.lora.dropout) == (8 if base == "7b" else 64, 16, 0.05)
    assert model.trainable == PUBLISHED_PARTS and model.max_length == 1024
    assert (model.ce_weight, model.bce_weight, model.dice_weight) == (1.0, 2.0, 0.5)
    assert model.conversation == ("llava_llama_2" if base == "llama2_13b" else "llava_v1")


def test_the_mixture_of_the_pre_training() -> None:
    config = get_recipe("gsva.pretrain_7b")(data="/data")
    shares: dict[str, float] = {}
    for source in config.train:
        key = source.annotations.split("/")[0] or source.reader
        shares[key] = source.weight
    classes = dict.fromkeys(("ade20k", "coco_stuff", "pascal_part", "paco", "mapillary"), 9 / 5)
    phrases = dict.fromkeys(("refclef", "refcoco", "refcoco+", "refcocog", "grefcoco"), 6 / 5)
    assert shares == pytest.approx({**classes, **phrases, "llava_instruct": 3, "reasonseg": 1})
    assert {source.root for source in config.train} == {"/data", "/data/ade20k", "/data/mapillary", "/data/refer_seg"}
    only = get_recipe("gsva.finetune_gres_7b")().train
    assert [source.reader for source in only] == ["grefcoco"]


def test_a_kind_of_data_keeps_its_rate_where_sets_are_missing() -> None:
    named = get_recipe("gsva.pretrain_7b")(data="/data").train
    there = ("coco_stuff", "paco", "grefcoco", "llava_instruct")
    kept = keep_shares(named, [(source, source.reader) for source in named if source.reader in there])
    assert [opened for _, opened in kept] == list(there)
    assert [source.weight for source, _ in kept] == pytest.approx([9 / 2, 9 / 2, 6, 3])
    assert [source.weight for source in named[:2]] == pytest.approx([9 / 5, 9 / 5])
    alone = [dataclasses.replace(source, group="") for source in named]
    assert [source.weight for source, _ in keep_shares(alone, [(alone[0], "")])] == [alone[0].weight]


def test_the_rate_of_deepspeed() -> None:
    optim = get_recipe("gsva.pretrain_7b")().optim
    rates = [learning_rate(step, steps=5000, optim=optim) for step in range(5000)]
    assert rates[:3] == [3e-4, 0.0, pytest.approx(3e-6)]
    assert rates[101] == pytest.approx(3e-4) and max(rates[2:]) == rates[101]
    assert rates[2551] == pytest.approx(3e-4 * 2450 / 4900)
    assert rates[-1] == pytest.approx(3e-4 * 2 / 4900)


def test_what_trains() -> None:
    """The parts that the authors train, in a small model: 254 tensors at 7B less the six that never get a gradient."""
    config = nano_scenes()
    model = dataclasses.replace(
        config.model,
        trainable=PUBLISHED_PARTS,
        lora=get_recipe("gsva.pretrain_7b")().model.lora,
        language=dataclasses.replace(config.model.language, layers=3),
    )
    net = GSVA(model)
    trained = {name for group in parameter_groups(net.named_parameters(), config.optim) for name in group["names"]}
    lora = {name for name in trained if ".lora_" in name}
    tables = {"language.model.embed_tokens.weight", "language.lm_head.weight"}
    rest = trained - lora - tables
    assert tables <= trained and len(lora) == 3 * 4
    assert all(name.startswith(("bridge.", "sam.mask_decoder.")) and "iou_head" not in name for name in rest)
    published = GSVA(dataclasses.replace(model, sam=dataclasses.replace(model.sam, decoder=_published_decoder())))
    decoder = [name for name, p in published.named_parameters() if p.requires_grad and name.startswith("sam.")]
    assert len(decoder) + 4 + 2 + 32 * 4 == 254 - 6


def _published_decoder() -> Any:
    return get_recipe("gsva.pretrain_7b")().model.sam.decoder


def test_nano_starts_where_it_looks() -> None:
    config = nano_scenes(steps=10)
    torch.manual_seed(0)
    model, reports = build_model(config)
    assert isinstance(model, GSVA) and not reports and model.tasks == (Task.REFERRING,)
    assert model.vocabulary is not None and model.vocabulary.seg_id == config.model.seg_id
    for layer in model.language.model.layers[2:]:  # the first two have heads with a purpose
        assert torch.equal(layer.self_attn.q_proj.weight, layer.self_attn.k_proj.weight)
    assert sum(p.numel() for p in model.parameters()) * 2 < 6e6  # bytes in float16
    groups = parameter_groups(model.named_parameters(), config.optim)
    slow = {name.split(".")[0] for group in groups if group["multiplier"] < 1 for name in group["names"]}
    assert slow == {"clip", "projector"}


def test_a_language_model_too_small_to_repeat_is_refused() -> None:
    config = nano_scenes(steps=10)
    language = dataclasses.replace(config.model.language, heads=2)
    with pytest.raises(ConfigError, match=r"needs 4 heads and 2 layers, not 2 and 4"):
        build_model(dataclasses.replace(config, model=dataclasses.replace(config.model, language=language)))


def test_contradictions_are_one_error() -> None:
    config = nano_scenes()
    with pytest.raises(ConfigError, match="weights and clip_init both say"):
        validate(dataclasses.replace(config, weights="a", clip_init="b"))
    with pytest.raises(ConfigError, match="a base without the difference"):
        validate(dataclasses.replace(config, language_base="llama"))
    mixed = (*config.train, dataclasses.replace(config.train[0], batch_size=3))
    with pytest.raises(ConfigError, match="one task and one batch size"):
        validate(dataclasses.replace(config, mixture="mixed", train=mixed))
    git = get_recipe("git.nano_scenes")()
    with pytest.raises(ConfigError, match="only GSVA has such a part"):
        validate(dataclasses.replace(git, clip_init="clip"))
