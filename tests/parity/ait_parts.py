"""AiT's backbone and VQ-VAEs against the original, and what the solvers' checks share with these."""

from __future__ import annotations

import copy
import dataclasses
import json
import re
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from ait_pure import GRADIENT, LOSS, File
from safetensors.torch import load_file
from torch import Tensor, nn

from saccade.layers.losses import scale_invariant_log_error, valid_squared_error
from saccade.layers.swin import SwinV2, SwinV2Config
from saccade.models.ait.convert import from_backbone, from_vqvae, vqvae_to_official
from saccade.tokens.codebook import VQVAE, CodebookConfig, Reconstruction, VQVAEConfig

if TYPE_CHECKING:
    from check import Report

RECONSTRUCTION: dict[str, Reconstruction] = {
    "mse": "squared",
    "mse_ignore_zero": "valid_squared",
    "si_log": "scale_invariant_log",
}
NUMBER = r"([\d.]+(?:e-?\d+)?)"
MOVE, CLEAR = 1e-3, 1e-2  # error of a step of Adam, and the share of the greatest gradient from which it is compared


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


def _codes(net: VQVAE, maps: Tensor) -> Tensor:
    """The codes of maps of any size, by the codebook as it stands."""
    with torch.no_grad():
        latents = net.latents(maps)
    return net.codebook.nearest(latents.permute(0, 2, 3, 1).flatten(0, 2)).view(len(maps), *latents.shape[2:])


def _vqvae_eval(file: File, net: VQVAE) -> None:
    images = file["img"]
    latents = net.latents(images)
    file.close("encoder_out", latents)
    file.close("distances", net.codebook.distances(latents.permute(0, 2, 3, 1).flatten(0, 2)))
    passed = net.reconstruct(images, images)
    file.same("codes", _codes(net, images))
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
        codes = _codes(net, read)
        shares = codes.flatten().bincount(minlength=net.config.codebook.codes) / codes.numel()
        passed = net.reconstruct(read, wanted)
        optimiser.zero_grad()
        total(passed.losses).backward()
        optimiser.step()
        file.close(f"{at}total_loss", total(passed.losses), LOSS)
        file.close(f"{at}recon_loss", passed.losses["loss_reconstruction"], LOSS)
        file.close(f"{at}vq_loss", passed.losses["loss_commitment"], LOSS)
        file.close(f"{at}perplexity", (-(shares * (shares + 1e-10).log()).sum()).exp())
        file.same(f"{at}codes", codes)
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
