"""GiT against the original, on the full model: every ``io_*`` file but ``io_pure`` (see ``git_pure``)."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import git_pure
import numpy as np
import torch
from pycocotools import mask as coco_mask
from safetensors.torch import load_file
from torch import Tensor
from torchvision import tv_tensors

from saccade.layers.decoding import BeamState, beam_finish
from saccade.layers.vit import ViTConfig, resize_position
from saccade.models.git import caption, detection, grounding, semantic
from saccade.models.git.config import CaptionConfig, DetectionConfig, GiTConfig, GroundingConfig, SemanticConfig
from saccade.models.git.convert import from_official, official_key
from saccade.models.git.grid import PointGrid
from saccade.models.git.model import GiT
from saccade.models.label_maps import resize_scores
from saccade.results import Instances
from saccade.samples import Batch, ClassList, Origin, Target
from saccade.tasks import Task
from saccade.tokens.boxes import decode_boxes, encode_boxes
from saccade.tokens.contours import trace_contours
from saccade.tokens.vocabulary import TextVocabulary, clean_caption

if TYPE_CHECKING:
    from check import Report

FLOAT, LOSS, GRADIENT = 2e-4, 1e-4, 1e-3
MASK_SHARE = 1e-4


def read_config(config: dict[str, Any], vocab_size: int, max_positions: int) -> GiTConfig:
    """The official config of a fixture model as ours."""
    model, tasks = config["model"], config["tasks"]
    depth = model["num_layers"] + len(model["new_more_layers"])
    extra = tuple(model["num_layers"] + i for i, kind in enumerate(model["new_more_layers"]) if kind != "win")

    def boxes(name: str) -> DetectionConfig | None:
        if name not in tasks:
            return None
        head, git = tasks[name]["head_cfg"], tasks[name]["git_cfg"]
        return DetectionConfig(
            input_size=tasks[name]["img"][0],
            grid_per_window=tuple(git["grid_resolution_perwin"]),
            train_points_per_window=git["samples_grids_eachwin"],
            num_bins=head["num_bins"],
            max_detections=tasks[name]["max_per_img"],
            num_rays=head.get("ray_num", 0),
        )

    def semantics() -> SemanticConfig | None:
        if "semantic_segmentation" not in tasks:
            return None
        task = tasks["semantic_segmentation"]
        return SemanticConfig(
            input_size=task["img"][0],
            train_points_per_window=task["git_cfg"]["samples_grids_eachwin"],
            block=task["head_cfg"]["dec_pixel_resolution"][0],
        )

    def captions() -> CaptionConfig | None:
        if "caption" not in tasks:
            return None
        task = tasks["caption"]
        return CaptionConfig(
            input_size=task["img"][0], max_length=task["head_cfg"]["dec_length"], beams=task["head_cfg"]["beam_num"]
        )

    def groundings() -> GroundingConfig | None:
        if "grounding" not in tasks:
            return None
        task = tasks["grounding"]
        return GroundingConfig(input_size=task["img"][0], num_bins=task["head_cfg"]["num_bins"])

    return GiTConfig(
        vit=ViTConfig(
            width=model["embed_dims"],
            depth=depth,
            heads=model["num_heads"],
            mlp_width=model["feedforward_channels"],
            patch_size=model["patch_size"],
            image_size=model["img_size"],
            window_size=model["window_size"],
            global_blocks=(*model["global_attn_indexes"], *extra),
            drop_path=0.0,
        ),
        vocab_size=vocab_size,
        max_positions=max_positions,
        text_dropout=0.0,
        detection=boxes("detection"),
        instance_segmentation=boxes("instance_segmentation"),
        semantic_segmentation=semantics(),
        caption=captions(),
        grounding=groundings(),
    )


class Recorder:
    """Keeps what every layer says, by wrapping the two layer methods of one model."""

    def __init__(self, model: GiT) -> None:
        self.images: list[Tensor] = []
        self.texts: list[Tensor | None] = []
        self.tokens: list[Tensor] = []
        observe, respond = model._observe_layer, model._respond_layer

        def observe_layer(*args: Any, **kwargs: Any) -> Any:
            out = observe(*args, **kwargs)
            # After the last block the model leaves the map out, which nothing reads; the original computes it.
            whole = observe(*args, **(kwargs | {"keys_only": False})) if kwargs.get("keys_only") else out
            self.images.append(whole[0])
            self.texts.append(whole[1])
            return out

        def respond_layer(*args: Any, **kwargs: Any) -> Any:
            out = respond(*args, **kwargs)
            self.tokens.append(out)
            return out

        model._observe_layer, model._respond_layer = observe_layer, respond_layer  # type: ignore[method-assign]


def build(folder: Path) -> tuple[GiT, dict[str, Any], dict[str, Any]]:
    config = json.loads((folder / "config.json").read_text())
    meta = json.loads((folder / "meta.json").read_text())
    weights = load_file(folder / "weights.safetensors")
    vocabulary = TextVocabulary(folder / "tokenizer" / "vocab.txt")
    ours = read_config(config, len(vocabulary), weights["embed.position_embeddings.weight"].shape[0])
    model = GiT(ours, vocabulary)
    expected = {key: value.shape for key, value in model.state_dict().items()}
    mapped, mapping = from_official(weights, expected, source=str(folder))
    mapping.check()
    assert all(official_key(target) == source for source, target in mapping.matched.items())
    model.load_state_dict(mapped)
    return model.eval(), config, meta


def check(folder: Path, report: Report) -> None:
    """Everything in the folder."""
    torch.manual_seed(0)
    _, config, meta = build(folder)
    for path in sorted(folder.glob("io_*.safetensors")):
        tensors = load_file(path)
        report.expect(path.stem, list(tensors))
        run = Run(folder, path.stem, tensors, report, config, meta)
        if path.stem == "io_pure":
            git_pure.check(run)
        elif path.stem == "io_common":
            check_common(run)
        else:
            kind = path.stem.removeprefix("io_")
            task_name, case = kind.rsplit("_", 1)
            task = Task(next(name for name in map(str, Task) if task_name.startswith(name)))
            (check_predict if case == "predict" else check_train)(run, kind, task)


@dataclasses.dataclass
class Run:
    """One fixture file: its tensors, and where comparisons are reported."""

    folder: Path
    file: str
    tensors: dict[str, Tensor]
    report: Report
    config: dict[str, Any]
    meta: dict[str, Any]

    def __contains__(self, name: str) -> bool:
        return name in self.tensors

    def take(self, name: str) -> Tensor:
        """An input."""
        self.report.skip(f"{self.file}/{name}")
        return self.tensors[name]

    def image(self) -> Tensor:
        return self.take("inputs").float() / 32

    def close(self, name: str, ours: Tensor, tolerance: float = FLOAT) -> None:
        if name in self.tensors:
            self.report.close(f"{self.file}/{name}", ours, self.tensors[name], tolerance)

    def same(self, name: str, ours: Tensor, *, allowed: float = 0.0) -> None:
        if name in self.tensors:
            self.report.same(f"{self.file}/{name}", ours, self.tensors[name], allowed=allowed)

    def equal(self, name: str, ours: object, reference: object) -> None:
        self.report.equal(f"{self.file}/{name}", ours, reference)

    def classes(self, task: Task) -> ClassList | None:
        names = self.config["tasks"][task.value].get("classes")
        return ClassList.from_names(names) if names else None


def check_common(run: Run) -> None:
    model, config, _ = build(run.folder)
    with torch.no_grad():
        run.close("task_embeddings", model.concepts(config["support_tasks"]))
        ids, _ = model.vocabulary.encode(config["support_tasks"], max_length=20)
        run.same("task_name_token_ids", ids)
        for name in run.tensors:
            if name.startswith("concepts_"):
                classes = config["tasks"][name.removeprefix("concepts_").removesuffix("_classes")]["classes"]
                run.close(name, model.concepts(classes))
            elif name.startswith("concept_ids_"):
                classes = config["tasks"][name.removeprefix("concept_ids_").removesuffix("_classes")]["classes"]
                run.same(name, model.vocabulary.encode(classes, max_length=20)[0])
        probe = tuple(config["model"]["resize_probe"])
        run.close("patch_pos_embed_resized_det", resize_position(model.backbone.pos_embed, probe).flatten(1, 2))


def make_batch(run: Run, kind: str, task: Task) -> Batch:
    case = run.meta["cases"][kind]
    images = run.image()
    hw = tuple(case["img_shape"])
    originals = case.get("ori_shapes") or [case["img_shape"]] * len(images)
    return Batch(
        images=images,
        task=task,
        classes=run.classes(task),
        phrases=case.get("texts"),
        origins=[
            Origin(dataset="fixture", image_id=i, path=None, size_hw=tuple(size)) for i, size in enumerate(originals)
        ],
        input_sizes_hw=[hw] * len(images),
    )


def patches_of(model: GiT, batch: Batch) -> tuple[int, int]:
    patch = model.config.vit.patch_size
    return batch.images.shape[2] // patch, batch.images.shape[3] // patch


# ---------------------------------------------------------------------- prediction


def check_predict(run: Run, kind: str, task: Task) -> None:
    model, _, _ = build(run.folder)
    batch = make_batch(run, kind, task)
    recorder = Recorder(model)
    with torch.no_grad():
        patches = model.backbone.embed(batch.images)
        run.close("patch_embed_pos", patches)
        grid = model.grid(task, (patches.shape[1], patches.shape[2]))
        start = model._start(task, patches)
        b = len(batch)
        order = grid.row_major
        run.close("grid_reference", grid.points_xy.expand(b, -1, -1))
        run.close("grid_start_embed", start.start.unflatten(0, (b, -1))[:, order])
        run.close("task_embedding", start.task_row)
        classes = batch.classes.names if batch.classes else ()
        table = model.vocabulary_matrix(task, classes)
        run.close("vocabulary_embed", table)
        if task in (Task.DETECTION, Task.INSTANCE):
            predict_boxes(run, model, batch, recorder, order, table)
        elif task is Task.SEMANTIC:
            predict_semantic(run, model, batch, recorder, order)
        elif task is Task.CAPTION:
            predict_caption(run, kind, model, batch, recorder)
        else:
            predict_grounding(run, model, batch, recorder, table)
    for layer, image in enumerate(recorder.images[: model.config.vit.depth]):
        run.close(f"img_layer_{layer}", image)
    for layer, text in enumerate(recorder.texts[: model.config.vit.depth]):
        if text is not None:
            run.close(f"text_layer_{layer}", text)


def active_layers(model: GiT, task: Task) -> list[int]:
    return [i for i, block in enumerate(model.backbone.blocks) if model._is_active(task, block)]


def step_states(recorder: Recorder, layers: list[int]) -> dict[tuple[int, int], Tensor]:
    """(decode step, layer) to ``[P, C]``; the grid and the task token are steps 0 and 1 of the first pass."""
    states: dict[tuple[int, int], Tensor] = {}
    for call, out in enumerate(recorder.tokens):
        step, layer = divmod(call, len(layers))
        if step == 0:
            states[0, layers[layer]], states[1, layers[layer]] = out[:, 0], out[:, 1]
        else:
            states[step + 1, layers[layer]] = out[:, 0]
    return states


def check_steps(run: Run, states: dict[tuple[int, int], Tensor], shape: Callable[[Tensor], Tensor]) -> None:
    for (step, layer), state in states.items():
        run.close(f"tok_step{step}_layer{layer}", shape(state))


def predict_boxes(run: Run, model: GiT, batch: Batch, recorder: Recorder, order: Tensor, table: Tensor) -> None:
    task, b = batch.task, len(batch)
    config = model.task_config(task)
    plain = detection.predict(model, batch, prune=False)
    layers = active_layers(model, task)
    states = step_states(recorder, layers)

    def shape(state: Tensor) -> Tensor:
        return state.unflatten(0, (b, -1))[:, order]

    check_steps(run, states, shape)
    hidden = torch.stack([shape(states[step, layers[-1]]) for step in range(1, config.length + 1)], dim=2)
    run.close("last_hidden", hidden)
    bins = config.num_bins + 1
    class_logits = hidden[:, :, 0] @ table[bins:].T
    run.close("class_logits", class_logits)
    tokens = torch.cat(
        [class_logits.argmax(-1, keepdim=True) + bins, (hidden[:, :, 1:] @ table[:bins].T).argmax(-1)], dim=-1
    )
    run.same("tokens", tokens)
    points = model.grid(task, patches_of(model, batch)).points_xy
    run.close("outputs_classes", class_logits.softmax(-1)[..., :-1])
    run.close("outputs_coords", decode_boxes(tokens[..., 1:5], points, config.num_bins))
    if config.num_rays:
        centre = tokens[..., 5:7] / config.num_bins - 0.5 + points
        run.close("outputs_polygons", torch.cat([centre, tokens[..., 7:] / config.num_bins], dim=-1))
    pruned = detection.predict(model, batch)
    for way, answers in (("plain", plain), ("pruned", pruned)):
        for index, answer in enumerate(answers):
            assert isinstance(answer, Instances)
            compare_instances(run, f"result{index}", answer)
            if way == "pruned":
                other = plain[index]
                run.equal(f"pruned equals plain {index}", torch.equal(answer.boxes_xyxy, other.boxes_xyxy), True)


def compare_instances(run: Run, name: str, answer: Instances) -> None:
    run.close(f"{name}_bboxes", answer.boxes_xyxy)
    run.close(f"{name}_scores", answer.scores)
    run.same(f"{name}_labels", answer.class_ids)
    if answer.masks is not None and f"{name}_masks_packed" in run:
        masks = np.stack([coco_mask.decode(rle) for rle in answer.masks]).reshape(len(answer.masks), -1)
        theirs = np.unpackbits(run.tensors[f"{name}_masks_packed"].numpy(), axis=1)[:, : masks.shape[1]]
        run.report.skip(f"{run.file}/{name}_masks_packed")
        run.report.same(
            f"{run.file}/{name}_masks", torch.from_numpy(masks), torch.from_numpy(theirs), allowed=MASK_SHARE
        )
        run.close(f"{name}_mask_areas", torch.from_numpy(masks.sum(1, dtype=np.int64)), FLOAT)


def predict_semantic(run: Run, model: GiT, batch: Batch, recorder: Recorder, order: Tensor) -> None:
    b = len(batch)
    dense, tokens = semantic.label_scores(model, batch)
    layers = active_layers(model, batch.task)
    states = step_states(recorder, layers)

    def shape(state: Tensor) -> Tensor:
        return state.unflatten(0, (b, -1))[:, order]

    check_steps(run, states, shape)
    length = tokens.shape[-1]
    hidden = torch.stack([shape(states[step, layers[-1]]) for step in range(1, length + 1)], dim=2)
    run.close("last_hidden", hidden)
    run.same("tokens", tokens)
    table = model.vocabulary_matrix(batch.task, batch.classes.names if batch.classes else ())
    run.close("outputs_classes", (hidden @ table[:-2].T).softmax(-1)[..., :-1])
    run.close("seg_logits_decode_res", dense)
    size = batch.origins[0].size_hw
    run.close("seg_logits", resize_scores(dense[0], size))
    answer = semantic.predict(model, batch)[0]
    run.same("pred_sem_seg", answer.labels[None], allowed=MASK_SHARE)


def predict_caption(run: Run, kind: str, model: GiT, batch: Batch, recorder: Recorder) -> None:
    b, beams = len(batch), model.config.caption.beams if model.config.caption else 1
    steps: list[BeamState] = []
    final = caption.search(model, batch, on_step=steps)
    layers = active_layers(model, batch.task)
    states = step_states(recorder, layers)

    def shape(state: Tensor) -> Tensor:
        return state.unflatten(0, (b, -1))

    check_steps(run, states, shape)
    run.close("last_hidden_step1", shape(states[1, layers[-1]]))
    said = len(steps)

    def prefix(name: str, dim: int) -> Tensor:
        """Ours stops when every beam has ended; the original goes on, and can only say the end token."""
        return run.tensors[name].narrow(dim, 0, said)

    spoken = run.tensors["step_tokens"]
    if said < spoken.shape[-1]:
        run.equal("only ends after the stop", bool((spoken[..., said:] == model.vocabulary.sep_id).all()), True)
        for name in run.tensors:
            if name.startswith("tok_step") and int(name.removeprefix("tok_step").split("_")[0]) > said:
                run.take(name)
    later = "last_hidden_steps2plus"
    if said > 1:
        found = torch.stack([shape(states[step, layers[-1]]) for step in range(2, said + 1)], dim=2)
        run.report.close(f"{run.file}/{later}", found, run.tensors[later].narrow(2, 0, said - 1), FLOAT)
    else:
        run.take(later)
    # The original records what was fed after each step, slot by slot, without following the beams back.
    tokens = torch.stack([state.tokens[..., -1] for state in steps], dim=-1)
    run.report.same(f"{run.file}/step_tokens", tokens, prefix("step_tokens", -1))
    # Values of 1e10 mark ended beams; compare the others apart, so that 1e10 does not hide them.
    values, theirs = torch.stack([state.candidates for state in steps], dim=1), prefix("topk_values", 1)
    ended = theirs >= 1e9
    run.report.same(f"{run.file}/topk_ended", values >= 1e9, ended)
    run.report.close(f"{run.file}/topk_values", values.masked_fill(ended, 0), theirs.masked_fill(ended, 0), FLOAT)
    picks = torch.stack([state.picks for state in steps], dim=1)
    run.report.same(f"{run.file}/topk_indices", picks, prefix("topk_indices", 1))
    best, scores, lengths = beam_finish(final, end_id=model.vocabulary.sep_id, length_exponent=0.75)
    run.close("final_scores", scores)
    run.same("final_out_len", lengths)
    run.same("best_beam", best[:, None])
    run.same("beam_end_mask", final.finished)
    assert final.tokens.shape[1] == beams
    texts = [answer.text for answer in caption.predict(model, batch)]  # type: ignore[union-attr]
    run.equal("pred_caption", texts, run.meta["cases"][kind]["pred_caption"])


def predict_grounding(run: Run, model: GiT, batch: Batch, recorder: Recorder, table: Tensor) -> None:
    config = model.config.grounding
    assert config is not None
    tokens, _ = grounding.decode(model, batch)
    layers = active_layers(model, batch.task)
    states = step_states(recorder, layers)
    check_steps(run, states, lambda state: state[:, None])
    phrases = [clean_caption(phrase) for phrase in batch.phrases or []]
    ids, present = model.vocabulary.encode(phrases, max_length=config.max_text_length)
    run.same("text_token_ids", ids)
    run.same("text_mask", ~present)
    hidden = torch.stack([states[step, layers[-1]] for step in range(1, 5)], dim=1)[:, None]
    run.close("last_hidden", hidden)
    run.close("logits", hidden @ table.T)
    run.same("tokens", tokens[:, None])
    centre = torch.full((len(batch), 2), 0.5)
    run.close("outputs_coords", decode_boxes(tokens, centre, config.num_bins)[:, None])
    answers = grounding.predict(model, batch)
    run.close("pred_bboxes", torch.stack([answer.box_xyxy for answer in answers])[:, None])  # type: ignore[union-attr]
    h, w = batch.images.shape[-2:]
    scale = torch.tensor([[w / o.size_hw[1], h / o.size_hw[0]] * 2 for o in batch.origins])[:, None]
    run.close("gt_bboxes_original", run.take("gt_bboxes") / scale)


# ---------------------------------------------------------------------- training


def read_targets(run: Run, task: Task, batch: Batch, kind: str) -> list[Target]:
    hw = (int(batch.images.shape[-2]), int(batch.images.shape[-1]))
    targets = []
    for index in range(len(batch)):
        target = Target()
        if f"gt{index}_bboxes" in run:
            boxes = run.take(f"gt{index}_bboxes")
            target.boxes = tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=hw)
            target.class_ids = run.take(f"gt{index}_labels")
        if f"gt{index}_masks" in run:
            target.masks = tv_tensors.Mask(run.take(f"gt{index}_masks").bool())
            contours = [torch.cat(trace_contours(mask)) for mask in target.masks.as_subclass(Tensor)]
            run.same(f"gt{index}_contour_points", torch.cat(contours))
            run.same(f"gt{index}_contour_lengths", torch.tensor([len(points) for points in contours]))
        if f"gt{index}_sem_seg" in run:
            target.semantic = tv_tensors.Mask(run.take(f"gt{index}_sem_seg")[0].long())
        if task is Task.CAPTION:
            target.captions = (run.meta["cases"][kind]["captions"][index],)
        targets.append(target)
    if task is Task.GROUNDING:
        for target, boxes in zip(targets, run.take("gt_bboxes"), strict=True):
            target.boxes = tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=hw)
    return targets


def check_train(run: Run, kind: str, task: Task) -> None:
    model, _, _ = build(run.folder)
    model.train()
    batch = make_batch(run, kind, task)
    batch.targets = read_targets(run, task, batch, kind)
    grid = model.grid(task, patches_of(model, batch))
    select = run.take("select_index")
    run.close("grid_reference", grid.points_xy.expand(len(batch), -1, -1))
    run.close("task_embedding", model.concepts([task.value])[0])
    compare_targets(run, model, batch, grid, select)
    recorder = Recorder(model)
    losses = model.loss(batch, select=select)
    total = torch.stack(list(losses.values())).sum()
    run.equal("loss names", sorted(losses), sorted(run.meta["losses"][kind]))
    for name, value in losses.items():
        run.close(f"loss/{name}", value, LOSS)
        run.report.close(f"{run.file}/meta {name}", value, torch.tensor(run.meta["losses"][kind][name]), LOSS)
    run.close("loss_total", total, LOSS)
    for layer, image in enumerate(recorder.images):
        run.close(f"img_layer_{layer}", image)
    for layer, text in enumerate(recorder.texts):
        if text is not None:
            run.close(f"text_layer_{layer}", text)
    layers = active_layers(model, task)
    for layer, out in zip(layers, recorder.tokens, strict=True):
        run.close(f"tok_layer_{layer}", out.unflatten(0, select.shape))
    states = recorder.tokens[-1].unflatten(0, select.shape)[:, :, 1:]
    table = model.vocabulary_matrix(task, batch.classes.names if batch.classes else ())
    if "pred_seq_logits" in run:
        run.close("pred_seq_logits", states @ table.T)
    total.backward()
    parameters = {official_key(name): parameter for name, parameter in model.named_parameters()}
    for name in run.tensors:
        if name.startswith("grad/"):
            reference = run.tensors[name]
            gradient = parameters[name.removeprefix("grad/")].grad
            assert gradient is not None, name
            run.close(name, gradient[: len(reference)], GRADIENT)
    for name, norm in run.meta["grad_norms"][kind].items():
        gradient = parameters[name].grad
        if norm is None:
            run.equal(f"no gradient {name}", gradient is None or float(gradient.abs().max()) == 0.0, True)
        else:
            ours = torch.tensor(0.0) if gradient is None else gradient.double().norm()
            run.report.close(f"{run.file}/norm {name}", ours, torch.tensor(norm), GRADIENT)


def compare_targets(run: Run, model: GiT, batch: Batch, grid: PointGrid, select: Tensor) -> None:
    """Target assignment; "weights" are ours to derive: they say which tokens count."""
    task, hw = batch.task, (int(batch.images.shape[-2]), int(batch.images.shape[-1]))
    length_all = run.tensors["target_tokens_all"].shape[-1]
    if task in (Task.DETECTION, Task.INSTANCE):
        assert batch.classes is not None
        config = model.task_config(task)
        coded = [detection.encode_target(t, grid, hw, len(batch.classes), config) for t in batch.targets]
        tokens, matched = (torch.stack(parts) for parts in zip(*coded, strict=True))
        weights = matched[..., None].float().repeat(1, 1, length_all)
        weights[..., 0] = 1
        inputs, ignored = tokens[..., :-1], config.num_bins + len(batch.classes) + 2
        totals = [int(matched.sum()), int((~matched).sum())]
    elif task is Task.SEMANTIC:
        assert batch.classes is not None
        config = model.task_config(task)
        patches = grid.shape
        maps = [t.semantic.as_subclass(Tensor) for t in batch.targets if t.semantic is not None]
        n = len(batch.classes)
        tokens = torch.stack([semantic.encode_labels(m, patches, config.block, n) for m in maps])
        weights, inputs, ignored = torch.ones(tokens.shape), tokens[..., :-1], n + 1
        totals = [int((tokens != n + 1).sum()), int((tokens == n + 1).sum())]
    elif task is Task.CAPTION:
        config = model.task_config(task)
        texts = [t.captions[0] for t in batch.targets]
        inputs, wanted = caption.encode_captions(texts, model.vocabulary, config.max_length)
        tokens = torch.cat([torch.full((len(inputs), 1), -100), wanted], dim=1)[:, None]
        weights = torch.ones(tokens.shape)
        # The original's mask is that of the ids, [DEC] included; its last place is cut off by the shift.
        present = (inputs != 0).float()[:, None]
        weights = torch.cat([present[..., 1:], torch.zeros_like(present[..., :1])], dim=-1)
        inputs, ignored = inputs[:, None], -100
        count = int((wanted != -100).sum())
        totals = [count, len(batch)]
    else:
        config = model.task_config(task)
        boxes = torch.cat([t.boxes.as_subclass(Tensor) for t in batch.targets if t.boxes is not None])
        tokens = encode_boxes(boxes, torch.full((len(batch), 2), 0.5), hw, config.num_bins)[:, None]
        weights, inputs, ignored = torch.ones(tokens.shape), tokens[..., :-1], config.num_bins + 1
        totals = [len(batch), 0]
    run.same("input_tokens", inputs)
    run.same("target_tokens_all", tokens)
    run.close("token_weights_all", weights)
    run.same("num_total_pos", torch.tensor(totals))

    def pick(x: Tensor) -> Tensor:
        return x.gather(1, select[..., None].expand(-1, -1, x.shape[-1]))

    run.same("select_input_tokens", pick(inputs))
    run.close("select_token_weights", pick(weights))
    kept = pick(tokens)
    if task in (Task.DETECTION, Task.INSTANCE):
        kept = kept.masked_fill(pick(weights) == 0, ignored)
    run.same("select_target_tokens_after_loss", kept)
