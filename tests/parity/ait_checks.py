"""AiT against the original: backbone, VQ-VAEs and solvers (functions: ``ait_pure``)."""

from __future__ import annotations

import copy
import dataclasses
import json
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import ait_pure
import torch
import torch.nn.functional as F
from ait_pure import FLOAT, GRADIENT, LOSS, MASK_SHARE, File, Replay
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision import tv_tensors

import saccade.models.ait.model as ait_model
from saccade.layers.decoding import Nucleus, nucleus_probs
from saccade.layers.losses import scale_invariant_log_error, valid_squared_error
from saccade.layers.swin import SwinV2, SwinV2Config
from saccade.models.ait.config import TASK_ROWS, AiTConfig, DepthConfig, ObjectsConfig
from saccade.models.ait.convert import (
    from_backbone,
    from_official,
    from_vqvae,
    official_key,
    to_official,
    vqvae_to_official,
)
from saccade.models.ait.model import AiT
from saccade.models.ait.sequences import IGNORED, sequence_targets
from saccade.models.ait.transformer import TransformerConfig
from saccade.results import DepthMap, Instances, decode_masks
from saccade.samples import Batch, Origin, Target
from saccade.tasks import Task
from saccade.tokens.codebook import VQVAE, CodebookConfig, Reconstruction, VQVAEConfig
from saccade.training.config import LayerDecay, OptimConfig
from saccade.training.optim import parameter_groups

if TYPE_CHECKING:
    from check import Report

HEADS = {"det": Task.DETECTION, "insseg": Task.INSTANCE, "depth": Task.DEPTH}
RECONSTRUCTION: dict[str, Reconstruction] = {
    "mse": "squared",
    "mse_ignore_zero": "valid_squared",
    "si_log": "scale_invariant_log",
}
NUMBER = r"([\d.]+(?:e-?\d+)?)"
MOVE, CLEAR = 1e-3, 1e-2


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


def shapes(module: nn.Module, prefix: str = "") -> dict[str, tuple[int, ...]]:
    return {prefix + name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


# ---------------------------------------------------------------------- the backbone


def read_backbone(told: dict[str, Any], shifted: list[bool]) -> SwinV2Config:
    """The official config of a backbone as ours."""
    return SwinV2Config(
        width=told["embed_dim"],
        depths=tuple(told["depths"]),
        heads=tuple(told["num_heads"]),
        windows=tuple(told["window_size"]),
        pretrained_windows=tuple(told["pretrain_window_size"]),
        shifted=tuple(shifted),
        drop_path=told["drop_path_rate"],
        out_stages=tuple(told["out_indices"]),
    )


def check_backbone(folder: Path, config: dict[str, Any], report: Report) -> None:
    weights = load_file(folder / "weights.safetensors")
    for path in sorted(folder.glob("io_*.safetensors")):
        file = File(path, report)
        images = [name for name in file.tensors if re.fullmatch(r"in\d+", name)]
        for variant, shifted in config["variants"].items():
            net = SwinV2(read_backbone(config["backbone"], shifted)).eval()
            state, mapped = from_backbone(weights, shapes(net, "backbone."), source=str(folder))
            mapped.check()
            net.load_state_dict({name.removeprefix("backbone."): tensor for name, tensor in state.items()})
            for image in images:
                with torch.no_grad():
                    compare_maps(file, image, variant, net)
                compare_maps(file, image, variant, net, " in training")  # another order of the same sums
        for name in file.tensors:
            place = re.fullmatch(r"layers\.(\d+)\.blocks\.(\d+)\.bias", name)
            if place:
                bias = block_of(net, *map(int, place.groups())).attn.position()
                file.close(name, bias.flatten(3).flatten(1, 2).flip(1))  # queries stand in reverse order


def block_of(net: SwinV2, stage: int, block: int) -> Any:
    return net.get_submodule(f"stages.{stage}.blocks.{block}")


def compare_maps(file: File, image: str, variant: str, net: SwinV2, note: str = "") -> None:
    """The maps of one picture, and every recorded block on the way."""
    x = file[image].float()
    file.close(f"{image}.patch_embed", net.embed(x).permute(0, 3, 1, 2), note=note)
    with ExitStack() as stack:
        for name in file.tensors:
            place = re.fullmatch(rf"{image}\.{variant}\.stage(\d+)\.block(\d+)", name)
            if place:
                block = block_of(net, *map(int, place.groups()))
                hook = block.register_forward_hook(
                    lambda _m, _i, out, name=name: file.close(name, out.flatten(1, 2), note=note)
                )
                stack.callback(hook.remove)
        stages = list(net.config.out_stages)
        for stage, out in zip(stages, net.maps(x, stages), strict=True):
            file.close(f"{image}.{variant}.out{stage}", out.permute(0, 3, 1, 2), note=note)


# ---------------------------------------------------------------------- the VQ-VAEs


def check_vqvae(folder: Path, config: dict[str, Any], report: Report) -> None:
    told, solver = config["train_class_kwargs"], config["solver_class_kwargs"]
    meta = json.loads((folder / "meta.json").read_text())
    parsed = VQVAEConfig(
        size=told["image_size"],
        downsample=told["downsample_ratio"],
        base_width=told["hidden_dim"],
        residual_blocks=told["num_resnet_blocks"],
        signed=told["use_norm"],
        reconstruction=RECONSTRUCTION[told["loss_type"]],
        codebook=CodebookConfig(codes=told["num_tokens"], width=told["codebook_dim"]),
    )
    report.equal(
        f"{folder.name}/both classes of the original say the same",
        dataclasses.replace(parsed, reconstruction="squared"),
        dataclasses.replace(read_vqvae(solver), reconstruction="squared"),
    )
    weights = load_file(folder / "weights.safetensors")

    def fresh() -> tuple[VQVAE, dict[str, str]]:
        net = VQVAE(parsed)
        state, mapped = from_vqvae(weights, shapes(net), source=str(folder))
        mapped.check()
        net.load_state_dict(state)
        return net, mapped.matched

    back = vqvae_to_official(fresh()[0].state_dict())
    report.equal(f"{folder.name}/names of the weights", sorted(back), sorted(weights))
    for name, tensor in weights.items():
        report.close(f"{folder.name}/round trip of the weights", back[name], tensor, 1e-6)
    trained = load_file(folder / "io_train.safetensors")
    read = trained.get("masked_input", trained["label"])
    for path in sorted(folder.glob("io_*.safetensors")):
        file = File(path, report)
        net, names = fresh()
        with torch.no_grad():
            match path.stem:
                case "io_eval":
                    _vqvae_eval(file, net.eval())
                case "io_solver":
                    _vqvae_solver(file, net.eval(), load_file(folder / "io_eval.safetensors")["img"])
                case "io_fresh":
                    net.train()
                    net.codebook.uses.zero_()
                    net.codebook.sums.copy_(file["_ema_w_before"])
                    passed = net.reconstruct(read, trained["label"])
                    file.close("total_loss", total(passed.losses), LOSS)
                    _codebook(file, "after.", net)
        if path.stem == "io_train":
            _vqvae_steps(file, net.train(), names, next(note for note in meta["notes"] if "optimiser" in note))


def read_vqvae(told: dict[str, Any]) -> VQVAEConfig:
    """The config of a VQ-VAE inside a solver."""
    grid = int(told["token_length"] ** 0.5)
    downsample = told["mask_size"] // grid
    return VQVAEConfig(
        size=told["mask_size"],
        downsample=downsample,
        base_width=told["hidden_dim"] * 2 // downsample,
        residual_blocks=told["num_resnet_blocks"],
        signed=told["use_norm"],
        reconstruction="squared" if told["use_norm"] else "valid_squared",
        codebook=CodebookConfig(codes=told["num_embeddings"], width=told["embedding_dim"]),
    )


def total(losses: dict[str, Tensor]) -> Tensor:
    return torch.stack(list(losses.values())).sum()


def gradient_norm(module: nn.Module) -> Tensor:
    return torch.stack([p.grad.norm() for p in module.parameters() if p.grad is not None]).norm()


def _vqvae_eval(file: File, net: VQVAE) -> None:
    images = file["img"]
    latents = net.latents(images)
    file.close("encoder_out", latents)
    file.close("distances", net.codebook.distances(latents.permute(0, 2, 3, 1).flatten(0, 2)))
    passed = net.reconstruct(images, images)
    file.same("codes", passed.codes_Bhw)
    file.close("decoded_hard", net.decode(file["codes"].flatten(1))[:, None])
    file.close("total_loss", total(passed.losses), LOSS)
    file.close("recon_loss", passed.losses["loss_reconstruction"], LOSS)
    file.close("recon_out", passed.maps_B1HW)


def _vqvae_solver(file: File, net: VQVAE, images: Tensor) -> None:
    file.same("encode_codes", net.encode(images[:, 0]))
    file.close("decode_hard", net.decode(file.tensors["encode_codes"]))
    logits = file["soft_logits"]
    # Shares of codes are what a codebook of unit vectors hands to the decoder.
    units, seen = copy.deepcopy(net), []
    units.codebook.entries = torch.eye(net.config.codebook.codes)
    units.decoder = nn.Sequential(nn.Identity())
    units.decoder.register_forward_pre_hook(lambda _m, inputs: seen.append(inputs[0]))
    for name in file.tensors:
        tau = re.fullmatch(rf"decode_soft_tau{NUMBER}", name)
        if tau:
            file.close(name, net.decode_soft(logits, sharpness=float(tau[1])))
            units.decode_soft(logits, sharpness=float(tau[1]))
            file.close(f"soft_weights_tau{tau[1]}", seen[-1])


def _codebook(file: File, prefix: str, net: VQVAE) -> None:
    for theirs, ours in (("_embedding", "entries"), ("_ema_cluster_size", "uses"), ("_ema_w", "sums")):
        file.close(f"{prefix}{theirs}", getattr(net.codebook, ours))


def _vqvae_steps(file: File, net: VQVAE, names: dict[str, str], note: str) -> None:
    """Optimiser steps on one batch; the codebook moves in the forward pass."""
    kind, rate = re.search(rf"optimiser: (\w+)\(lr {NUMBER}", note).groups()
    optimiser = {"AdamW": torch.optim.AdamW, "Adam": torch.optim.Adam}[kind](
        net.parameters(), lr=float(rate), weight_decay=0.0
    )
    read, wanted = file["masked_input"] if "masked_input" in file else file["label"], file["label"]
    parameters = dict(net.named_parameters())
    for step in sorted({int(name[4:].split(".")[0]) for name in file.tensors if name.startswith("step")}):
        at = f"step{step}."
        before = {name: p.detach().clone() for name, p in parameters.items()}
        passed = net.reconstruct(read, wanted)
        optimiser.zero_grad()
        total(passed.losses).backward()
        optimiser.step()
        file.close(f"{at}total_loss", total(passed.losses), LOSS)
        file.close(f"{at}recon_loss", passed.losses["loss_reconstruction"], LOSS)
        file.close(f"{at}vq_loss", passed.losses["loss_commitment"], LOSS)
        file.close(f"{at}perplexity", passed.perplexity)
        file.same(f"{at}codes", passed.codes_Bhw)
        file.close(f"{at}out", passed.maps_B1HW)
        file.close(f"{at}grad_norm", gradient_norm(net), GRADIENT)
        _codebook(file, f"{at}after.", net)
        for theirs, ours in names.items():
            if ours in parameters:
                file.close(f"{at}grad.{theirs}", parameters[ours].grad, GRADIENT)
                compare_step(file, f"{at}param_after.{theirs}", before[ours], parameters[ours])
    losses: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "mse": F.mse_loss,
        "mse_ignore_zero": valid_squared_error,
        "si_log": scale_invariant_log_error,
    }
    tried = [name for name in file.tensors if name.startswith("loss_fn.")]
    floor = re.search(rf"clamp\(min={NUMBER}\)", " ".join(file.description(name) for name in tried))
    for name in tried:
        said = file.tensors["step1.out"]
        said = said.clamp(min=float(floor[1])) if floor else said
        file.close(name, losses[name.removeprefix("loss_fn.")](said, wanted), LOSS)


def compare_step(file: File, name: str, before: Tensor, parameter: Tensor) -> None:
    """A parameter after a step of Adam, and how far it went (most of a parameter is where it was).

    The first step has the length of the learning rate wherever the gradient is not 0: where it is hardly more than
    that, rounding decides the sign, and the way is not compared.
    """
    file.close(name, parameter)
    if name in file and parameter.grad is not None:
        clear = parameter.grad.abs() > CLEAR * parameter.grad.abs().max()
        ours, wanted = (parameter - before)[clear], (file.tensors[name] - before)[clear]
        rounding = 4 * torch.finfo(torch.float32).eps * before.abs().max() / wanted.abs().max()
        assert file.report is not None
        file.report.close(f"{file.name}/{name} (the step)", ours, wanted, max(MOVE, float(rounding)))


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
        encode, embed, decode, start = net.encode, net.embed, net.decode, net.start
        choose = ait_model.sample_nucleus

        def recorded_embed(tasks: Tensor, tokens: Tensor) -> Tensor:
            self._keep("task_ids", tasks)
            self._keep("input_seq", tokens)
            return self._keep("decoder_in", embed(tasks, tokens))

        def recorded_start(memory: Tensor, length: int) -> Any:
            decoding = start(memory, length)
            step = decoding.step

            def recorded_step(inputs: Tensor) -> Tensor:
                self._keep("step_input", inputs)
                state = step(inputs)
                self._keep("step_logits", net.logits(state))
                return state

            decoding.step = recorded_step  # type: ignore[method-assign]
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
        self.heads: list[str] = list(told["model"]["task_heads"])
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
            self._steps(file, prefix, one, codes) if not whole else None
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
        row = 0
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
                    assert not isinstance(config, ObjectsConfig) or config.masks is not None
                    share = int(there[..., 5:].sum()) * config.mask_weight / count if head == "insseg" else 1.0
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
