"""AiT in training: what it learns together, the codebooks that it is given, and how those are learned themselves."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers_ait import DEPTH, FORMS, INSTANCE, MAPS, MASKS, SIZE, Fixed, batch, config, model, one_of
from rich.console import Console
from safetensors.torch import load_file
from torch import Tensor, nn

from saccade.data.augment import ScaleJitterAugment
from saccade.data.depth_augment import DepthAugment
from saccade.data.mask_crops import MaskCropAugment
from saccade.data.scenes import THING_CLASSES
from saccade.data.sources.scenes import ScenesSource
from saccade.data.transforms import collate
from saccade.errors import ConfigError, DataError, UsageError
from saccade.hub.checkpoint import load_folder, read_card, save_model
from saccade.models.ait import model as ait_model
from saccade.models.ait.convert import vqvae_to_official
from saccade.models.ait.model import AiT
from saccade.models.ait.presets import VQVAES
from saccade.models.ait.vqvae import MapVQVAE, MapVQVAEConfig
from saccade.results import decode_masks
from saccade.samples import Batch, ClassList
from saccade.tasks import Task
from saccade.tokens.codebook import VQVAE, VQVAEConfig
from saccade.training.config import OptimConfig, SourceConfig, TrainConfig, validate
from saccade.training.distributed import World
from saccade.training.engine import Engine
from saccade.training.logs import read_lines
from saccade.training.start import build_model
from saccade.training.trainer import Trainer

INS, DEP = Task.INSTANCE, Task.DEPTH


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def saved_vqvae(folder: Path, task: Task, vqvae: VQVAEConfig, seed: int = 3) -> str:
    torch.manual_seed(seed)
    net = MapVQVAE(MapVQVAEConfig(task=task, vqvae=vqvae))
    # Fresh weights know one code: these are latents of random maps.
    with torch.no_grad():
        maps = (
            torch.rand(vqvae.codebook.codes, 1, vqvae.size, vqvae.size)
            * torch.arange(vqvae.codebook.codes)[:, None, None, None]
        )
        net.vqvae.codebook.entries.copy_(net.vqvae.latents(maps)[:, :, 0, 0])
    return str(save_model(net, folder, classes={}, provenance={}))


@pytest.fixture(scope="module")
def vqvaes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Trained codebooks of both tasks, so to speak."""
    folder = tmp_path_factory.mktemp("vqvaes")
    return {
        "mask_vqvae": saved_vqvae(folder / "masks", INS, MASKS),
        "depth_vqvae": saved_vqvae(folder / "depth", DEP, MAPS),
    }


JOINT = config(
    classes=THING_CLASSES,
    category_ids=(),
    num_classes=len(THING_CLASSES),
    instance=dataclasses.replace(INSTANCE, objects=12),
    depth=dataclasses.replace(DEPTH, windows=2),
    transformer=dataclasses.replace(FORMS["joint"].transformer, length=12 * 9, dropout=0.1),
)


def run(folder: Path, vqvaes: dict[str, str], **changes: Any) -> TrainConfig:
    """Both tasks together on drawn scenes: two batches of masks and one of depth in every step."""
    scenes = {"reader": "scenes", "size": 64}
    settings: dict[str, Any] = {
        "name": "joint",
        "out": str(folder / "runs"),
        "model": JOINT,
        "train": (
            SourceConfig(task=INS, **scenes, batch_size=2, per_step=2, augment=ScaleJitterAugment(rules="ait")),
            SourceConfig(task=DEP, **scenes, batch_size=1, augment=DepthAugment(holes=0.1)),
        ),
        "mixture": "together",
        "steps": 5,
        "optim": OptimConfig(lr=1e-3, clip_norm=1.0, warmup_steps=2, warmup_counted=True),
        "ema_decay": 0.9,
        "workers": 0,
        "threads": 1,
        "log_every": 1,
        "save_every": 3,
        "keep": 10,
        "device": "cpu",
        **vqvaes,
    }
    return TrainConfig(**{**settings, **changes})


def fit(made: TrainConfig, **how: Any) -> Path:
    result = Trainer(made, console=Console(file=io.StringIO())).fit(**how)
    assert result.checkpoint is not None
    return result.checkpoint


# ---------------------------------------------------------------------- together


class Weighted(nn.Module):
    """A loss whose gradient is the mean of what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(3))

    def loss(self, given: Batch) -> dict[str, Tensor]:
        share = given.images.mean(dim=(0, 2, 3)) @ self.weight
        return {"a": share, "b": 2 * share}


def pictures(task: Task, seed: int) -> Batch:
    made = batch(task)
    made.images = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
    return made


@pytest.mark.parametrize("mixture", ["together", "drawn"])
def test_gradients_are_means_over_the_batches_of_a_task_and_sums_over_tasks(mixture: str) -> None:
    made = TrainConfig(
        name="x", model=JOINT, train=(), steps=4, mixture=mixture, optim=OptimConfig(clip_norm=0.0, weight_decay=0.0)
    )
    net = Weighted()
    batches = [pictures(INS, 0), pictures(INS, 1), pictures(DEP, 2), pictures(INS, 3)]
    Engine(net, made, World()).step(0, batches)
    alone = [3 * b.images.mean(dim=(0, 2, 3)) for b in batches]
    masks, depth = (alone[0] + alone[1] + alone[3]) / 3, alone[2]
    wanted = masks + depth if mixture == "together" else torch.stack(alone).mean(0)
    torch.testing.assert_close(net.weight.grad, wanted)


def test_a_step_of_the_whole_model_adds_its_tasks(vqvaes: dict[str, str], tmp_path: Path) -> None:
    """The gradient of a step together is that of the masks alone and of the depth alone, added."""

    def gradient(train: tuple[SourceConfig, ...]) -> dict[str, Tensor]:
        # Without dropout: the random numbers of a batch depend on its place in the step.
        still = dataclasses.replace(JOINT, transformer=dataclasses.replace(JOINT.transformer, dropout=0.0))
        made = run(tmp_path, vqvaes, model=still, train=train, optim=OptimConfig(clip_norm=0.0))
        torch.manual_seed(0)
        net = build_model(made)[0]
        Engine(net, made, World()).step(0, [named(source.task) for source in train])
        return {name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}

    masks, depth = run(tmp_path, vqvaes).train
    one, other, both = gradient((masks,)), gradient((depth,)), gradient((masks, depth))
    assert both.keys() == one.keys() | other.keys()
    for name, value in both.items():
        parts = [g[name] for g in (one, other) if name in g]
        torch.testing.assert_close(value, torch.stack(parts).sum(0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("form", "mixture"), [("detection", "drawn"), ("instance", "drawn"), ("joint", "together")])
def test_accumulated_batches_are_one_large_batch(form: str, mixture: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever each of them holds: a step is a mean over the targets of all its batches, as published."""
    monkeypatch.setattr(ait_model, "Draws", Fixed)
    made = TrainConfig(
        name="x", model=FORMS[form], train=(), steps=4, mixture=mixture, optim=OptimConfig(clip_norm=0.0)
    )

    def gradient(batches: list[Batch]) -> dict[str, Tensor]:
        net = model(form)
        Engine(net, made, World()).step(0, batches)
        return {name: p.grad for name, p in net.named_parameters() if p.grad is not None}

    whole = [batch(task, counts=(4, 0, 1)) for task in model(form).tasks]
    depth = [given for given in whole if given.task is DEP]  # its drawn loss is a mean over pixels of a batch
    parts = [one_of(given, index) for given in whole if given.task is not DEP for index in range(3)]
    found, wanted = gradient([*parts, *depth]), gradient(whole)
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5, msg=name)


def named(task: Task) -> Batch:
    """A batch of the scenes' classes."""
    given = batch(task)
    return dataclasses.replace(given, classes=None if task is DEP else ClassList.from_names(THING_CLASSES))


def test_every_step_has_every_task(tmp_path: Path, vqvaes: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[list[Task]] = []
    step = Engine.step

    def watch(self: Engine, index: int, batches: list[Batch]) -> Any:
        steps.append([b.task for b in batches])
        return step(self, index, batches)

    monkeypatch.setattr(Engine, "step", watch)
    made = run(tmp_path, vqvaes, accumulate=2, steps=2)
    assert made.batches_per_step == 6
    fit(made)
    assert steps == [[INS, INS, DEP, INS, INS, DEP]] * 2
    logged = [line for line in read_lines(tmp_path / "runs/joint") if line["kind"] == "train"]
    for line in logged:
        assert {"instance_segmentation/loss_mask", "depth/loss_codes"} <= line.keys()


def test_stopped_together_goes_on_exactly(tmp_path: Path, vqvaes: dict[str, str]) -> None:
    whole = fit(run(tmp_path / "whole", vqvaes))
    fit(run(tmp_path / "parts", vqvaes), until=2)
    again = fit(run(tmp_path / "parts", vqvaes, workers=1))
    assert again.name == whole.name == "step-00000005"
    for file in ("trainer.safetensors", "model.safetensors"):
        a, b = load_file(whole / file), load_file(again / file)
        assert a.keys() == b.keys() and not [key for key in a if not torch.equal(a[key], b[key])], file


def test_what_belongs_to_the_other_mixture_is_refused(tmp_path: Path, vqvaes: dict[str, str]) -> None:
    made = run(tmp_path, vqvaes)
    validate(made)
    with pytest.raises(ConfigError, match=r"per_step is for(.|\n)*train\.0\.per_step"):
        validate(dataclasses.replace(made, mixture="drawn"))
    masks, depth = made.train
    with pytest.raises(ConfigError, match=r"weight is for a mixture that is drawn(.|\n)*train\.1\.weight"):
        validate(dataclasses.replace(made, train=(masks, dataclasses.replace(depth, weight=2.0))))
    with pytest.raises(ConfigError, match=r"per_step must be at least 1"):
        validate(dataclasses.replace(made, train=(masks, dataclasses.replace(depth, per_step=0))))


# ---------------------------------------------------------------------- the codebooks of a run


def solver_of(made: TrainConfig) -> Any:
    return build_model(made)[0]


def test_the_codes_of_a_solver_are_those_of_its_vqvaes(tmp_path: Path, vqvaes: dict[str, str]) -> None:
    net = solver_of(run(tmp_path, vqvaes))
    masks, maps = 4 * torch.rand(6, 16, 16), 5 * torch.rand(6, SIZE, SIZE)
    for own, name, maps_BHW in ((net.mask_vqvae, "mask_vqvae", masks), (net.depth_vqvae, "depth_vqvae", maps)):
        trained = load_folder(vqvaes[name]).model.vqvae
        codes = trained.encode(maps_BHW)
        assert len(codes.unique()) > 1 and torch.equal(own.encode(maps_BHW), codes)
        assert torch.equal(own.decode(codes), trained.decode(codes))
        assert not any(p.requires_grad for p in own.parameters())


def test_training_leaves_the_codebooks_as_they_are(tmp_path: Path, vqvaes: dict[str, str]) -> None:
    after = load_file(fit(run(tmp_path, vqvaes, steps=2)) / "model.safetensors")
    for name, folder in vqvaes.items():
        for key, tensor in load_folder(folder).model.vqvae.state_dict().items():
            assert torch.equal(after[f"{name}.{key}"], tensor), key


def test_a_released_file_gives_its_codes_as_it_is(tmp_path: Path) -> None:
    torch.manual_seed(0)
    theirs = VQVAE(VQVAES["vqvae-masks"]().vqvae)
    torch.save({"weights": vqvae_to_official(theirs.state_dict())}, tmp_path / "vqvae_insseg.pt")
    form = config(mask_codes=128, instance=dataclasses.replace(INSTANCE, objects=1, masks=theirs.config))
    made = run(tmp_path, {"mask_vqvae": str(tmp_path / "vqvae_insseg.pt")}, model=form)
    masks = torch.rand(2, 64, 64).round()
    assert torch.equal(solver_of(made).mask_vqvae.encode(masks), theirs.encode(masks))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"codebook": dataclasses.replace(MASKS.codebook, codes=6)}, r"codebook\.codes 6 -> 5"),
        ({"codebook": dataclasses.replace(MASKS.codebook, width=8)}, r"codebook\.width 8 -> 4"),
        ({"size": 32}, "size 32 -> 16"),
        ({"base_width": 4}, "base_width 4 -> 2"),
        ({"signed": False}, "signed False -> True"),
        ({"signed": False, "scale": 2.0}, r"signed False -> True, scale 2\.0 -> 1\.0"),
        ({"downsample": 4, "residual_blocks": 2}, "downsample 4 -> 8, residual_blocks 2 -> 1"),
    ],
)
def test_a_vqvae_of_another_form_is_refused(
    tmp_path: Path, vqvaes: dict[str, str], changes: dict[str, Any], message: str
) -> None:
    other = saved_vqvae(tmp_path / "other", INS, dataclasses.replace(MASKS, **changes))
    made = run(tmp_path, vqvaes | {"mask_vqvae": other})
    with pytest.raises(ConfigError, match=rf"another form(.|\n)*where: mask_vqvae={other}\n(.|\n)*{message}"):
        build_model(made)


def test_how_it_was_trained_does_not_matter(tmp_path: Path, vqvaes: dict[str, str]) -> None:
    codebook = dataclasses.replace(MASKS.codebook, revive_below=0.5, decay=0.9, sync=True)
    other = saved_vqvae(tmp_path / "other", INS, dataclasses.replace(MASKS, codebook=codebook))
    build_model(run(tmp_path, vqvaes | {"mask_vqvae": other}))


def test_a_vqvae_of_the_other_task_and_other_models_are_refused(tmp_path: Path, vqvaes: dict[str, str]) -> None:
    swapped = {"mask_vqvae": vqvaes["depth_vqvae"], "depth_vqvae": vqvaes["mask_vqvae"]}
    with pytest.raises(ConfigError, match=r"no VQ-VAE of instance_segmentation\n  where: mask_vqvae=(.|\n)*of depth"):
        build_model(run(tmp_path, swapped))
    solver = save_model(model("joint"), tmp_path / "solver", classes={}, provenance={})
    with pytest.raises(ConfigError, match=r"no VQ-VAE of depth\n  where: depth_vqvae=(.|\n)*it is a ait model"):
        build_model(run(tmp_path, vqvaes | {"depth_vqvae": str(solver)}))
    text = {
        f"{name}_embeddings.weight": torch.zeros(rows, 192) for name, rows in {"word": 1024, "position": 64}.items()
    }
    text |= {f"LayerNorm.{name}": torch.zeros(192) for name in ("weight", "bias")}
    torch.save(text, tmp_path / "text.pt")
    with pytest.raises(ConfigError, match=r"no VQ-VAE\n  where: depth_vqvae=(.|\n)*weights of a git model"):
        build_model(run(tmp_path, vqvaes | {"depth_vqvae": str(tmp_path / "text.pt")}))


def test_a_vqvae_that_cannot_be_loaded_names_its_field(tmp_path: Path, vqvaes: dict[str, str]) -> None:
    (tmp_path / "broken.pt").write_bytes(b"nothing")
    for source in (str(tmp_path / "absent"), str(tmp_path / "broken.pt"), "ait-vqvae-masks", "no-such-name"):
        with pytest.raises(ConfigError, match=rf"where: mask_vqvae={source}"):
            build_model(run(tmp_path, vqvaes | {"mask_vqvae": source}))


def test_a_run_without_a_vqvae_says_which(tmp_path: Path, vqvaes: dict[str, str]) -> None:
    for missing, recipe in (("mask_vqvae", "vqvae_masks"), ("depth_vqvae", "vqvae_depth")):
        made = run(tmp_path, {key: value for key, value in vqvaes.items() if key != missing})
        with pytest.raises(ConfigError, match=rf"no VQ-VAE(.|\n)*where: {missing}\n(.|\n)*recipe=ait\.{recipe}"):
            Trainer(made)


def test_a_run_goes_on_without_what_it_started_from(tmp_path: Path) -> None:
    """The codebooks are in its own checkpoint; who gave them is written there."""
    given = {
        "mask_vqvae": saved_vqvae(tmp_path / "start/masks", INS, MASKS),
        "depth_vqvae": saved_vqvae(tmp_path / "start/depth", DEP, MAPS),
    }
    weights = str(save_model(AiT(JOINT), tmp_path / "start/solver", classes={}, provenance={}))
    for name, start in (("fresh", {}), ("backbone", {"init_from": weights}), ("whole", {"weights": weights})):
        made = run(tmp_path, given, name=name, steps=2, **start)
        first = fit(made, until=1)
        assert {key: read_card(first).provenance[key] for key in given} == given
        (tmp_path / "start").rename(tmp_path / "gone")
        after = fit(made)
        (tmp_path / "gone").rename(tmp_path / "start")
        before, now = (load_file(folder / "model.safetensors") for folder in (first, after))
        assert all(torch.equal(now[key], before[key]) for key in now if "vqvae." in key)
        whole = load_file(fit(dataclasses.replace(made, name=f"{name} at once")) / "model.safetensors")
        assert not [key for key in whole if not torch.equal(whole[key], now[key])]


def test_a_run_says_what_of_its_start_stays_fresh(tmp_path: Path, vqvaes: dict[str, str]) -> None:
    start = save_model(AiT(dataclasses.replace(JOINT, spare_rows=4)), tmp_path / "start", classes={}, provenance={})
    fit(run(tmp_path, vqvaes, init_from=str(start), steps=1))
    said = [line["text"] for line in read_lines(tmp_path / "runs/joint") if line["kind"] == "event"]
    assert any(text.startswith("start fresh") and "transformer.token_embed" in text for text in said), said


# ---------------------------------------------------------------------- VQ-VAEs themselves


def crops(count: int = 4) -> Batch:
    source = ScenesSource(task=INS, size=64)
    augment, declared = MaskCropAugment().build(16), MapVQVAE(MapVQVAEConfig(vqvae=MASKS)).preprocess(INS)
    return collate([augment(source[i], np.random.default_rng(i)) for i in range(count)], declared)


def test_masks_are_learned_from_their_crops() -> None:
    given = crops()
    assert given.images.shape == (4, 3, 16, 16)
    assert (float(given.images.min()), float(given.images.max())) == (0.0, 1.0)
    torch.manual_seed(0)
    net = MapVQVAE(MapVQVAEConfig(vqvae=MASKS)).eval()
    losses = net.loss(given)
    found = net.vqvae.reconstruct(given.images[:, :1], given.images[:, :1]).losses
    assert losses.keys() == {f"instance_segmentation_{key}" for key in found}
    for key, value in found.items():
        assert torch.equal(losses[f"instance_segmentation_{key}"], value)
    # Evaluation moves no code; training does.
    before = net.vqvae.codebook.entries.clone()
    net.loss(given)
    assert torch.equal(net.vqvae.codebook.entries, before)
    net.train().loss(given)
    assert not torch.equal(net.vqvae.codebook.entries, before)


def test_photographs_with_objects_are_no_masks() -> None:
    with pytest.raises(DataError, match=r"masks that are cut out(.|\n)*MaskCropAugment(.|\n)*mask_crops"):
        MapVQVAE(MapVQVAEConfig(vqvae=MASKS)).loss(batch(INS, size_hw=(16, 16)))


def test_depth_is_learned_whole_where_it_was_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of the patches are hidden from the encoder in training only; the loss looks at all that is known."""
    net = MapVQVAE(MapVQVAEConfig(task=DEP, vqvae=MAPS, hide_patch=8, hide_ratio=0.5))
    given = batch(DEP)
    truth = torch.stack([t.depth_m for t in given.targets if t.depth_m is not None])[:, None]
    seen: list[tuple[Tensor, Tensor]] = []
    reconstruct = net.vqvae.reconstruct

    def watch(read: Tensor, wanted: Tensor) -> Any:
        seen.append((read, wanted))
        return reconstruct(read, wanted)

    monkeypatch.setattr(net.vqvae, "reconstruct", watch)
    net.train().loss(given)
    net.eval().loss(given)
    (hidden, wanted), (whole, _) = seen
    assert torch.equal(wanted, truth) and torch.equal(whole, truth)
    patches = hidden.unflatten(3, (4, 8)).unflatten(2, (4, 8)).abs().sum(dim=(1, 3, 5))
    assert (patches == 0).sum(dim=(1, 2)).tolist() == [8, 8]


def test_a_vqvae_does_not_look_at_pictures() -> None:
    net = MapVQVAE(MapVQVAEConfig(task=DEP, vqvae=MAPS))
    with pytest.raises(UsageError, match="cannot look at a picture"):
        net.predict(batch(DEP))
    with pytest.raises(UsageError, match="is of depth, not of instance_segmentation"):
        net.loss(batch(INS))
    missing = batch(DEP)
    missing.targets[1].depth_m = None
    with pytest.raises(DataError, match=r"has no depth\n  where: 1"):
        net.loss(missing)
    with pytest.raises(ConfigError, match="masks or of depth, not of caption"):
        MapVQVAEConfig(task=Task.CAPTION)
    with pytest.raises(ConfigError, match=r"32 pixels are no whole number of patches of 12\n  where: hide_patch"):
        MapVQVAEConfig(task=DEP, vqvae=MAPS, hide_patch=12, hide_ratio=0.5)
    MapVQVAEConfig(task=DEP, vqvae=MAPS, hide_patch=12)  # nothing is hidden


def test_truths_survive_the_way_through_a_perfect_vqvae(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut out, restored, pasted back where they were; depth of any size comes back in its own."""
    sample = ScenesSource(task=INS, size=64)[2]
    net = MapVQVAE(MapVQVAEConfig(vqvae=MASKS))
    monkeypatch.setattr(net.vqvae, "reconstruct", lambda read, _: type("R", (), {"maps_B1HW": read})())
    (found,) = net.reconstruct([sample])
    assert sample.target.class_ids is not None
    assert len(found) == len(sample.target.class_ids) and set(found.scores.tolist()) == {1.0}
    masks, truth = decode_masks(found.masks, found.size_hw), sample.target.masks.as_subclass(Tensor)
    overlap = (masks & truth).sum((1, 2)) / (masks | truth).sum((1, 2))
    assert float(overlap.min()) > 0.6 and float(overlap.median()) > 0.85
    depth = ScenesSource(task=DEP, size=70)[1]
    net = MapVQVAE(MapVQVAEConfig(task=DEP, vqvae=MAPS))
    monkeypatch.setattr(net.vqvae, "reconstruct", lambda read, _: type("R", (), {"maps_B1HW": read})())
    (restored,) = net.reconstruct([depth])
    torch.testing.assert_close(restored.depth_m, depth.target.depth_m.clamp(min=1e-3))


@pytest.mark.parametrize("task", [INS, DEP])
def test_codes_and_maps_are_the_same_under_autocast(task: Task) -> None:
    torch.manual_seed(0)
    net = MapVQVAE(MapVQVAEConfig(task=task, vqvae=MASKS if task is INS else MAPS)).eval()
    size, book = net.config.vqvae.size, net.config.vqvae.codebook.codes
    maps, logits = 5 * torch.rand(200, size, size), torch.randn(4, book, net.config.vqvae.grid, net.config.vqvae.grid)
    with torch.no_grad():  # entries so near one another that rounding would choose between them
        net.vqvae.codebook.entries.copy_(net.vqvae.latents(maps[:book, None])[:, :, 0, 0])
    sample = ScenesSource(task=task, size=64)[2]
    found = []
    for enabled in (False, True):
        with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            codes = net.vqvae.encode(maps)
            (restored,) = net.reconstruct([sample])
            found.append([codes, net.vqvae.decode(codes), net.vqvae.decode_soft(logits), restored])
    for one, other in zip(*(some[:3] for some in found), strict=True):
        assert one.dtype == other.dtype and torch.equal(one, other)
    plain, half = found[0][3], found[1][3]
    if task is DEP:
        assert torch.equal(plain.depth_m, half.depth_m)
    else:
        assert plain.masks == half.masks
