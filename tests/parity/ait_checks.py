"""AiT's solvers against the original (backbone and VQ-VAEs: ``ait_parts``; functions: ``ait_pure``)."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import ait_pure
import torch
import torch.nn.functional as F
from ait_parts import (
    NUMBER,
    check_backbone,
    check_vqvae,
    compare_step,
    gradient_norm,
    read_backbone,
    read_vqvae,
    shapes,
    total,
)
from ait_pure import FLOAT, GRADIENT, LOSS, MASK_SHARE, File, Replay
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision import tv_tensors

import saccade.models.ait.model as ait_model
from saccade.layers.decoding import Nucleus, nucleus_probs
from saccade.models.ait.config import TASK_ROWS, AiTConfig, DepthConfig, ObjectsConfig
from saccade.models.ait.convert import from_official, official_key, to_official
from saccade.models.ait.model import AiT
from saccade.models.ait.sequences import IGNORED, sequence_targets
from saccade.models.ait.transformer import TransformerConfig
from saccade.results import DepthMap, Instances, decode_masks
from saccade.samples import Batch, Origin, Target
from saccade.tasks import Task
from saccade.training.config import LayerDecay, OptimConfig
from saccade.training.optim import parameter_groups

if TYPE_CHECKING:
    from check import Report

HEADS = {"det": Task.DETECTION, "insseg": Task.INSTANCE, "depth": Task.DEPTH}


def check(folder: Path, report: Report) -> None:
    """Every folder of the layout, or one of them."""
    parts = [folder] if (folder / "meta.json").is_file() else sorted(p.parent for p in folder.glob("*/meta.json"))
    for part in parts:
        config = json.loads((part / "config.json").read_text())
        if "model" in config:
            SolverCheck(part, report).run()
        elif "train_class_kwargs" in config:
            check_vqvae(part, config, report)
        elif "backbone" in config:
            check_backbone(part, config, report)
        else:
            ait_pure.check(part, report)


# ---------------------------------------------------------------------- the solvers


def read_solver(told: dict[str, Any]) -> AiTConfig:
    """The official config of a solver as ours."""
    net, heads = told["transformer"], told["task_heads"]
    vocabulary = AiTConfig(
        num_classes=net["num_classes"],
        bins=net["num_bins"],
        mask_codes=net["num_embeddings"],
        depth_codes=net["num_embeddings_depth"],
        backbone=read_backbone(told["backbone"], told["backbone"]["use_shift"]),
        transformer=TransformerConfig(
            width=net["d_model"],
            heads=net["nhead"],
            mlp_width=net["dim_feedforward"],
            encoder_blocks=net["num_encoder_layers"],
            decoder_blocks=net["num_decoder_layers"],
            grid=max(net["n_rows"], net["n_cols"]),
            length=net["dec_length"],
            dropout=net["drop_out"],
            drop_path=net["drop_path"],
            parallel=bool(net.get("parallel", False)),
        ),
    )

    def objects(head: dict[str, Any], **masks: Any) -> ObjectsConfig:
        return ObjectsConfig(
            input_size=head["norm_val"],
            objects=head["num_query"],
            top_p=net["top_p"],
            weight=head["loss_weight"],
            **masks,
        )

    instance = depth = None
    if "insseg" in heads:
        head = heads["insseg"]
        instance = objects(
            head,
            masks=read_vqvae(head["vae_cfg"]),
            soft_tokens=net["soft_transformer"],
            soft_masks=net["soft_vae"],
            sharpness=head["vae_cfg"]["tau"],
            mask_weight=head["mask_weight"],
            auxiliary=head["decoder_loss_weight"],
            auxiliary_objects=head["max_obj_decoderloss"],
        )
    if "depth" in heads:
        head = heads["depth"]
        depth = DepthConfig(
            depth=read_vqvae(head["vae_cfg"]),
            top_p=net["top_p"],
            soft_tokens=net["soft_transformer"],
            soft_maps=head["soft_vae"],
            sharpness=head["vae_cfg"]["tau"],
            auxiliary=head["decoder_loss_weight"],
            weight=head["loss_weight"],
            windows=head["shift_size"],
            flip=head["flip_test"],
            pad_to=told["padto"],
        )
    return dataclasses.replace(
        vocabulary,
        spare_rows=net["num_vocal"] - vocabulary.vocabulary,
        # The instance model of the original builds a detection head that it never uses.
        detection=objects(heads["det"]) if "det" in heads and instance is None else None,
        instance=instance,
        depth=depth,
    )


class Recorder:
    """What passes through a model while it works, taken at its public parts.

    Args:
        net: The model.
        picked: Tokens ``[B, T]`` that are chosen instead of those that the model would choose.
    """

    def __init__(self, net: AiT, picked: Tensor | None = None) -> None:
        self._net, self._picked = net, picked
        self.seen: dict[str, list[Tensor]] = {}
        self.probs: list[Tensor] = []

    def __getitem__(self, name: str) -> Tensor:
        """All that was seen under a name; sequences that are not equally long are padded with zeros."""
        parts = self.seen[name]
        longest = max(part.shape[1] for part in parts) if parts[0].ndim > 1 else 0
        return torch.cat(
            [F.pad(p, (0, longest - p.shape[1])) if p.ndim == 2 else p for p in parts],
            dim=1 if name.startswith("step_") else 0,
        )

    def _keep(self, name: str, tensor: Tensor) -> Tensor:
        self.seen.setdefault(name, []).append(tensor.detach())
        return tensor

    @contextmanager
    def running(self) -> Iterator[Recorder]:
        net = self._net.transformer
        encode, embed, decode, states, start = net.encode, net.embed, net.decode, net.states, net.start
        choose = ait_model.sample_nucleus

        def recorded_embed(tasks: Tensor, tokens: Tensor) -> Tensor:
            self._keep("task_ids", tasks)
            self._keep("input_seq", tokens)
            return self._keep("decoder_in", embed(tasks, tokens))

        def recorded_step(step: Callable[[Tensor], Tensor], inputs: Tensor) -> Tensor:
            self._keep("step_input", inputs)
            state = step(inputs)
            self._keep("step_logits", net.logits(state))
            return state

        def recorded_start(memory: Tensor, length: int) -> Any:
            decoding = start(memory, length)
            decoding.step = partial(recorded_step, decoding.step)  # type: ignore[method-assign]
            return decoding

        def recorded_choice(logits: Tensor, nucleus: Nucleus, generator: torch.Generator) -> Tensor:
            self.probs.append(nucleus_probs(logits, nucleus))
            if self._picked is not None:
                return self._picked[:, len(self.probs) - 1]
            return choose(logits, nucleus, generator)

        first = net.encoder[0] if len(net.encoder) else net.encoder_norm
        hooks = [
            self._net.backbone.register_forward_hook(
                lambda _m, _i, out: self._put("features", out.permute(0, 3, 1, 2))
            ),
            first.register_forward_pre_hook(lambda _m, inputs: self._put("encoder_in", inputs[0])),
            net.encoder_norm.register_forward_pre_hook(lambda _m, inputs: self._put("encoder_out", inputs[0])),
        ]
        with ExitStack() as stack:
            for hook in hooks:
                stack.callback(hook.remove)
            for owner, name, replacement in (
                (net, "encode", lambda maps: self._keep("memory", encode(maps))),
                (net, "embed", recorded_embed),
                (net, "decode", lambda memory, inputs: self._keep("logits", decode(memory, inputs))),
                # All steps of a parallel model at once.
                (net, "states", lambda memory, inputs: recorded_step(partial(states, memory), inputs)),
                (net, "start", recorded_start),
                (ait_model, "sample_nucleus", recorded_choice),
            ):
                stack.enter_context(mock.patch.object(owner, name, replacement))
            yield self

    def _put(self, name: str, tensor: Tensor) -> None:
        self._keep(name, tensor)


class SolverCheck:
    """One fixture folder of a solver."""

    def __init__(self, folder: Path, report: Report) -> None:
        self.folder, self.report = folder, report
        told = json.loads((folder / "config.json").read_text())
        self.notes: list[str] = json.loads((folder / "meta.json").read_text())["notes"]
        self.variants: list[str] = told.get("variants", [])
        self.config = read_solver(told["model"])
        self.weights = load_file(folder / "weights.safetensors")
        for head in told["model"]["task_heads"].values():
            if "depth_token_offset" in head:
                report.equal(
                    f"{folder.name}/first depth token", self.config.depth_tokens.start, head["depth_token_offset"]
                )
        self._round_trip()

    def _net(self, variant: str = "", **changes: float) -> AiT:
        """A model with the fixture's weights and the settings of a variant."""
        config = self.config
        soft = {"soft": (True, True), "hard": (False, False), "softvae_only": (False, True)}.get(variant)
        for name, second in (("detection", "soft_masks"), ("instance", "soft_masks"), ("depth", "soft_maps")):
            part = getattr(config, name)
            if part is not None:
                switches = {"soft_tokens": soft[0], second: soft[1]} if soft else {}
                config = dataclasses.replace(config, **{name: dataclasses.replace(part, **switches, **changes)})
        net = AiT(config)
        state, mapped = from_official(self.weights, shapes(net), source=str(self.folder))
        mapped.check()
        net.load_state_dict(state)
        return net.eval()

    def _round_trip(self) -> None:
        back = to_official(self._net().state_dict(), self.config)
        whole = any("_head.transformer." in name for name in self.weights)  # a reduced folder lacks the copies
        names = [name for name in back if whole or name in self.weights]
        self.report.equal(f"{self.folder.name}/names of the weights", sorted(names), sorted(self.weights))
        for name, tensor in self.weights.items():
            if name in back:
                # The table of positions is square in ours; what is used of it is the same.
                ours = back[name][:, : tensor.shape[1], : tensor.shape[2]] if "enc_embed" in name else back[name]
                self.report.close(f"{self.folder.name}/round trip of the weights", ours, tensor, 1e-6)

    def run(self) -> None:
        for path in sorted(self.folder.glob("io_*.safetensors")):
            file = File(path, self.report)
            if path.stem.startswith("io_train"):
                self._train(file)
                continue
            with torch.no_grad():
                match path.stem:
                    case "io_nucleus":
                        self._nucleus(file)
                    case "io_test" if any(name.split(".")[-1] == "depth" for name in file.tensors):
                        self._depth(file)
                    case "io_test":
                        self._objects(file)

    def _note(self, start: str, pattern: str) -> re.Match[str]:
        """The first note that begins so and holds the pattern."""
        for note in self.notes:
            found = re.search(pattern, note)
            if note.startswith(start) and found:
                return found
        raise ValueError(f"{self.folder.name}: no note '{start}' with {pattern}")

    @property
    def _object_task(self) -> Task:
        return Task.DETECTION if self.config.instance is None else Task.INSTANCE

    # ------------------------------------------------------------------ prediction

    def _steps(self, file: File, prefix: str, recorder: Recorder, picked: Tensor) -> None:
        for name in ("encoder_in", "encoder_out", "memory", "step_input", "step_logits"):
            file.close(f"{prefix}{name}", recorder[name])
        file.same(f"{prefix}picked", picked)

    def _objects(self, file: File) -> None:
        images, task = file["img"].float(), self._object_task
        metas = json.loads(self._note("io_test", r"metas: (\[.*\])")[1])
        sizes = [(meta["ori_shape"][0], meta["ori_shape"][1]) for meta in metas]
        batch = Batch(
            images=images,
            task=task,
            origins=[Origin(dataset="", image_id=i, path=None, size_hw=size) for i, size in enumerate(sizes)],
            input_sizes_hw=[(meta["img_shape"][0], meta["img_shape"][1]) for meta in metas],
        )
        for variant in self.variants or [""]:
            prefix = f"{variant}." if variant else ""
            if not any(name.startswith(prefix) for name in file.tensors):
                continue
            net = self._net(variant)
            recorder = Recorder(net)
            with recorder.running():
                said = net.say_objects(net.encode(images), task)
            file.close("features", recorder["features"])
            self._steps(file, prefix, recorder, said.tokens_BOt.flatten(1))
            for index, found in enumerate(net.predict(batch)):
                assert isinstance(found, Instances)
                image, result = f"{prefix}image{index}", f"{prefix}result{index}"
                file.same(f"{image}.tokens", said.tokens_BOt[index].flatten())
                file.close(f"{image}.scores", said.scores_BO[index])
                if said.mask_logits_BOmK is not None:
                    file.close(f"{image}.mask_logits", said.mask_logits_BOmK[index])
                # Ours come by score, the original's as they were said.
                said_first = said.scores_BO[index].argsort(descending=True, stable=True).argsort()
                boxes = torch.cat([found.boxes_xyxy, found.scores[:, None]], dim=1)
                file.close(f"{result}.bboxes", boxes[said_first])
                file.same(f"{result}.labels", found.class_ids[said_first])
                if found.masks is not None:
                    masks = torch.as_tensor(decode_masks(found.masks, found.size_hw))
                    file.same(f"{result}.masks", masks[said_first], allowed=MASK_SHARE)

    def _nucleus(self, file: File) -> None:
        images = load_file(self.folder / "io_test.safetensors")["img"].float()
        net = self._net(top_p=float(self._note("io_nucleus", rf"top_p {NUMBER}")[1]))
        recorder = Recorder(net, file["picked"])
        with recorder.running():
            said = net.say_objects(net.encode(images), self._object_task)
        self._steps(file, "", recorder, said.tokens_BOt.flatten(1))
        for name in file.tensors:
            if name.startswith("probs.step"):
                file.close(name, recorder.probs[int(name.removeprefix("probs.step"))])

    def _depth(self, file: File) -> None:
        images = file["img"].float()
        size_hw = (int(images.shape[2]), int(images.shape[3]))
        if "depth_gt" in file:
            file["depth_gt"]  # what the metrics would score against
        batch = Batch(
            images=images,
            task=Task.DEPTH,
            origins=[Origin(dataset="", image_id=i, path=None, size_hw=size_hw) for i in range(len(images))],
            input_sizes_hw=[size_hw] * len(images),
        )
        for variant in self.variants or [""]:
            prefix = f"{variant}." if variant else ""
            if f"{prefix}depth" not in file:
                continue
            net = self._net(variant)
            assert net.config.depth is not None
            left = images[..., : net.config.depth.depth.size]
            one, every = Recorder(net), Recorder(net)
            with one.running():
                codes, logits = net.say_depth(net.encode(left, pad_to=net.config.depth.pad_to))
            with every.running():
                depth = net.depth_of(images)
            file.close("features", one["features"])
            whole = f"{prefix}memory" in file and len(file.tensors[f"{prefix}memory"]) != len(left)
            if whole:
                file.close(f"{prefix}memory", every["memory"])
            else:
                self._steps(file, prefix, one, codes)
            file.close(f"{prefix}pred_logits", logits)
            file.same(f"{prefix}pred_tokens", codes)
            file.close(f"{prefix}crop_depth", net.depth_of_windows(left))
            file.close(f"{prefix}depth", depth)
            for index, answer in enumerate(net.predict(batch)):
                assert isinstance(answer, DepthMap)
                wanted = file.tensors[f"{prefix}depth"][index]
                self.report.close(f"{file.name}/{prefix}depth (as predicted)", answer.depth_m, wanted, FLOAT)
            if "one_pass_logits" in file:
                tasks = torch.full((len(left),), TASK_ROWS[Task.DEPTH])
                memory = net.encode(left, pad_to=net.config.depth.pad_to)
                inputs = net.transformer.embed(tasks, torch.zeros_like(codes[:, 1:]))
                file.close("one_pass_logits", net.transformer.decode(memory, inputs))

    # ------------------------------------------------------------------ training

    def _batches(self, file: File) -> list[tuple[str, Batch]]:
        """The batches of a training file: one per task, in the order of the original's mixed batch."""
        base = File(self.folder / "io_train.safetensors", None) if file.path.stem != "io_train" else file
        empty = file.path.stem.endswith("_empty")
        batches = []
        for head in self._trained(file):
            images = base["img" if "img" in base else f"img_{head}"].float()
            images = images[:1] if empty else images
            sizes = [(int(images.shape[2]), int(images.shape[3]))] * len(images)
            if head == "depth":
                targets = [Target(depth_m=depth[0]) for depth in base["depth"][: len(images)]]
            else:
                told = self._note("io_train:", r"img_shape.*").group()
                sizes = [(int(h), int(w)) for h, w in re.findall(r"\((\d+), (\d+)\)", told)][: len(images)]
                targets = [self._truth(base, index, images, keep=not empty) for index in range(len(images))]
            batch = Batch(
                images=images,
                task=HEADS[head],
                origins=[Origin(dataset="", image_id=i, path=None, size_hw=size) for i, size in enumerate(sizes)],
                input_sizes_hw=sizes,
                targets=targets,
            )
            batches.append((head, batch))
        return batches

    @staticmethod
    def _trained(file: File) -> list[str]:
        found = [name.split(".") for name in file.tensors if name.startswith("target.")]
        return [head for _, _, head in sorted(found, key=lambda parts: int(parts[1]))]

    def _truth(self, file: File, index: int, images: Tensor, *, keep: bool) -> Target:
        size_hw = (int(images.shape[2]), int(images.shape[3]))
        some = slice(None) if keep else slice(0)
        boxes, labels = file[f"gt{index}.bboxes"][some], file[f"gt{index}.labels"][some]
        masks = file[f"gt{index}.masks"][some].bool() if f"gt{index}.masks" in file else None
        return Target(
            boxes=tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=size_hw),
            class_ids=labels,
            masks=None if masks is None else tv_tensors.Mask(masks),
        )

    def _train(self, file: File) -> None:
        hard = file.path.stem.endswith("_hard")
        net = self._net().train()
        if hard:
            for name in ("instance", "depth"):
                part = getattr(net.config, name)
                if part is not None:
                    setattr(net.config, name, dataclasses.replace(part, auxiliary=0.0))
        batches = self._batches(file)
        targets = self._targets(file, net, batches)
        draws, recorder = Replay(file.draws()), Recorder(net)
        with recorder.running():
            losses = {head: net.loss(batch, draws=draws) for head, batch in batches}
        self.report.equal(f"{file.name}/draws that were not made", draws.left, [])
        self._network(file, net, recorder)
        self._losses(file, losses, targets)
        if "grad_norm_before_clip" in file:
            self._step(file, net, sum(total(part) for part in losses.values()))

    def _targets(self, file: File, net: AiT, batches: list[tuple[str, Batch]]) -> dict[str, Tensor]:
        """What is to be said, ``[B, T]``, or for objects ``[B, O, t]``."""
        targets, draws = {}, Replay(file.draws())
        for index, (head, batch) in enumerate(batches):
            if head == "depth":
                assert net.depth_vqvae is not None
                maps = torch.stack([target.depth_m for target in batch.targets if target.depth_m is not None])
                targets[head] = net.depth_vqvae.encode(maps) + net.config.depth_tokens.start
            else:
                tokens, real, _ = net.object_sequences(batch, draws)
                targets[head] = sequence_targets(tokens, real)
            file.same(f"target.{index}.{head}", targets[head].flatten(1))
        return targets

    def _network(self, file: File, net: AiT, recorder: Recorder) -> None:
        for name in ("features", "memory"):
            file.close(name, recorder[name])
        tokens, tasks = recorder["input_seq"], recorder["task_ids"]
        file.same("input_seq", tokens)
        file.same("task_ids", tasks)
        # Each task by itself, then all of them in one batch, padded to the longest as in the original.
        for name in ("decoder_in", "logits"):
            row = 0
            for part in recorder.seen[name]:
                rows, row = slice(row, row + len(part)), row + len(part)
                if name in file:
                    wanted = file.tensors[name][rows, : part.shape[1]]
                    self.report.close(f"{file.name}/{name} (one task)", part, wanted, FLOAT)
        with torch.no_grad():
            inputs = net.transformer.embed(tasks, tokens)
            file.close("decoder_in", inputs)
            file.close("logits", net.transformer.decode(recorder["memory"], inputs))

    def _losses(self, file: File, losses: dict[str, dict[str, Tensor]], targets: dict[str, Tensor]) -> None:
        """The entries that the original logs: sums over the number of targets of a kind, without the task's weight."""
        file.close("total_loss", sum(total(part) for part in losses.values()), LOSS)
        for head, task in HEADS.items():
            found = losses.get(head, {})
            part = {name.removeprefix(f"{task}_"): value.detach() for name, value in found.items()}
            config = {"det": self.config.detection, "insseg": self.config.instance, "depth": self.config.depth}[head]
            logged = {"loss": total(found) if found else torch.tensor(0.0)}
            if found:
                assert config is not None
                there = targets[head] != IGNORED
                count = int(there.sum())
                kinds = {"ce": ("loss_codes", count)}
                if head != "depth":
                    kinds = {
                        "bbox_ce": ("loss_box", int(there[..., :4].sum())),
                        "cls_ce": ("loss_cls", int(there[..., 4].sum())),
                        "mask_ce": ("loss_mask", int(there[..., 5:].sum())),
                    }
                logged |= {
                    name: part[ours] * count / config.weight / max(1, number)
                    for name, (ours, number) in kinds.items()
                    if ours in part
                }
                if "loss_drawn" in part:
                    objects = isinstance(config, ObjectsConfig)
                    share = int(there[..., 5:].sum()) * config.mask_weight / count if objects else 1.0
                    scale = config.weight * config.auxiliary * share
                    logged["decoder_aux_ce"] = part["loss_drawn"] / scale if scale else part["loss_drawn"]
            for name in file.tensors:
                if name.startswith(f"loss.{head}_"):
                    ours = logged.get(name.removeprefix(f"loss.{head}_"), torch.tensor(0.0))
                    file.close(name, ours, LOSS)

    def _step(self, file: File, net: AiT, loss: Tensor) -> None:
        """Gradients, clipping, and one step of AdamW with the groups of the original."""
        loss.backward()
        parameters = {name: p for name, p in net.named_parameters() if p.requires_grad}
        idle = [official_key(name) for name, p in parameters.items() if p.grad is None]
        told = self._note("io_train:", r"unused parameters \(grad None\): (.*)")[1]
        self.report.equal(f"{file.name}/parameters without a gradient", idle, [n for n in told.split(", ") if n])
        file.close("grad_norm_before_clip", gradient_norm(net), GRADIENT)
        described = next(file.description(name) for name in file.tensors if name.startswith("grad_clipped."))
        limit = re.search(rf"clip_grad_norm_\({NUMBER}\)", described)
        nn.utils.clip_grad_norm_(parameters.values(), float(limit[1]))
        described = next(file.description(name) for name in file.tensors if name.startswith("param_after."))
        rate, decay, layer = re.search(rf"lr {NUMBER}, wd {NUMBER}, layer decay {NUMBER}", described).groups()
        groups = optimizer_groups(net, rate=float(rate), weight_decay=float(decay), layer_decay=float(layer))
        self._groups(file, groups)
        before = {name: p.detach().clone() for name, p in parameters.items()}
        settings = OptimConfig()
        torch.optim.AdamW(groups, betas=settings.betas, eps=settings.eps).step()
        for name, parameter in parameters.items():
            theirs = official_key(name)
            file.close(f"grad_clipped.{theirs}", parameter.grad, GRADIENT)
            compare_step(file, f"param_after.{theirs}", before[name], parameter)

    def _groups(self, file: File, groups: list[dict[str, Any]]) -> None:
        path = self.folder / f"{file.path.stem}_param_groups.json"
        told = json.loads(path.read_text())
        ours = {official_key(name): group for group in groups for name in group["names"]}
        names = sorted(told)
        self.report.equal(f"{self.folder.name}/{path.stem}: names", sorted(map(str, ours)), names)
        for key, theirs in (("lr", "lr"), ("weight_decay", "wd")):
            values = torch.tensor([ours[name][key] for name in names], dtype=torch.float64)
            wanted = torch.tensor([told[name][theirs] for name in names], dtype=torch.float64)
            self.report.close(f"{self.folder.name}/{path.stem}: {key}", values, wanted, 1e-9)


# Without weight decay, beside vectors (specs/ait.md 9), by our names.
NO_DECAY = (
    "*.logit_scale",
    "*.attn.position.*",
    *(f"transformer.{table}_embed" for table in ("task", "token", "position", "parallel")),
)


def optimizer_groups(net: AiT, *, rate: float, weight_decay: float, layer_decay: float) -> list[dict[str, Any]]:
    """The groups of the package, each at its own rate."""
    stages = net.config.backbone.depths
    optim = OptimConfig(
        weight_decay=weight_decay,
        decay_matrices_only=True,
        no_decay=NO_DECAY,
        layer_rates=LayerDecay(rate=layer_decay, layers=sum(stages) + len(stages) - 1, stages=stages),
    )
    groups = parameter_groups(net.named_parameters(), optim)
    return [group | {"lr": rate * group["multiplier"]} for group in groups]
