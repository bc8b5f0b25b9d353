"""GSVA's network against the original: SAM, CLIP, the language model, losses, gradients, steps, answers."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision import tv_tensors

from saccade.data.transforms import normalize, preprocess
from saccade.layers.sam import SAMConfig, resize_masks
from saccade.layers.sam_decoder import MaskDecoderConfig
from saccade.layers.vit import ViTConfig
from saccade.models.gsva.config import CLIPConfig, GSVAConfig, LanguageConfig, LoRAConfig
from saccade.models.gsva.convert import from_official, official_key, to_official
from saccade.models.gsva.inputs import ConversationBatch
from saccade.models.gsva.losses import mask_bce, mask_dice
from saccade.models.gsva.model import GSVA, Answer, EncodedImages, Reading
from saccade.samples import Origin, Sample
from saccade.tasks import Task
from saccade.training.config import OptimConfig
from saccade.training.optim import build_optimizer
from saccade.training.schedule import learning_rate

if TYPE_CHECKING:
    from check import Report

FLOAT, GRADIENT = 1e-4, 1e-3
MASK_SHARE = 1e-4


def check(folder: Path, report: Report) -> None:
    """Every file of the network that the folder has."""
    ModelCheck(folder, report).run()


def read_config(told: dict[str, Any]) -> GSVAConfig:
    """The official sizes as ours."""
    llm, clip, sam, lora = told["llm"], told["clip_vision"], told["sam"], told["lora"]
    assert clip["select_layer"] == -2
    assert llm["num_key_value_heads"] == llm["num_attention_heads"]
    weights = told["loss_weights"]
    return GSVAConfig(
        language=LanguageConfig(
            vocab_size=told["vocab_size"],
            width=llm["hidden_size"],
            mlp_width=llm["intermediate_size"],
            layers=llm["num_hidden_layers"],
            heads=llm["num_attention_heads"],
            norm_eps=llm["rms_norm_eps"],
            positions=llm["max_position_embeddings"],
            rope_base=llm["rope_theta"],
        ),
        lora=LoRAConfig(rank=lora["r"], alpha=lora["alpha"], dropout=lora["dropout_in_fixtures"]),
        clip=CLIPConfig(
            width=clip["hidden_size"],
            mlp_width=clip["intermediate_size"],
            layers=clip["num_hidden_layers"],
            heads=clip["num_attention_heads"],
            image_size=clip["image_size"],
            patch_size=clip["patch_size"],
        ),
        sam=SAMConfig(
            vit=ViTConfig(
                width=sam["embed"],
                depth=sam["depth"],
                heads=sam["heads"],
                mlp_width=int(sam["embed"] * sam["mlp_ratio"]),
                patch_size=sam["patch"],
                image_size=sam["img"],
                window_size=sam["window"],
                global_blocks=tuple(sam["glob"]),
                drop_path=0.0,
            ),
            width=sam["out"],
            mask_width=sam["mask_in"],
            decoder=MaskDecoderConfig(
                heads=sam["dec_heads"],
                mlp_width=sam["dec_mlp"],
                attention_downsample=sam["attention_downsample_rate"],
                mask_tokens=sam["num_multimask_outputs"] + 1,
                iou_depth=sam["iou_head_depth"],
                iou_width=sam["iou_hidden"],
            ),
        ),
        seg_id=told["token_ids"]["[SEG]"],
        rej_id=told["token_ids"]["[REJ]"],
        end_id=told["token_ids"]["eos"],
        conversation=told["conversation"],
        max_length=told["model_max_length"],
        ce_weight=weights["ce"],
        bce_weight=weights["bce"],
        dice_weight=weights["dice"],
    )


class ModelCheck:
    """One folder.

    Args:
        folder: The fixtures.
        report: Where the comparisons go.
    """

    def __init__(self, folder: Path, report: Report) -> None:
        self.folder, self.report = folder, report
        self.config = read_config(json.loads((folder / "config.json").read_text()))
        self.weights = load_file(folder / "weights.safetensors")
        self.net = self._load()
        self.train_file = self._read("io_train")
        self.train = self._training_batch(self.train_file)

    def run(self) -> None:
        """All files."""
        back = to_official(self.net.state_dict())
        for name, value in self.weights.items():
            self.report.equal(f"round trip {name}", torch.equal(back[name], value), True)
        self.report.equal("round trip: names", sorted(back), sorted(self.weights))
        cases: dict[str, Callable[[dict[str, Tensor]], None]] = {
            "io_sam_encoder": self.sam_encoder,
            "io_sam_decoder": self.sam_decoder,
            "io_clip": self.clip,
            "io_splice": self.splice,
            "io_lm": self.language,
            "io_train": self.training,
            "io_generate": self.generation,
            "io_losses": self.losses,
            "io_train_steps_params": self.steps,
        }
        cases |= {path.stem: self.inference for path in sorted(self.folder.glob("io_infer_*.safetensors"))}
        for stem, run in cases.items():
            if not (self.folder / f"{stem}.safetensors").is_file():
                continue
            tensors = self._read(stem)
            self.case = stem
            self.report.expect(stem, list(tensors))
            run(tensors)

    # ------------------------------------------------------------------ parts

    def sam_encoder(self, tensors: dict[str, Tensor]) -> None:
        declared = self.net.preprocess(Task.REFERRING)
        images = []
        for index in range(sum(name.startswith("raw_image_") for name in tensors)):
            raw = self._use(tensors, f"raw_image_{index}")
            picture = tv_tensors.Image(raw.permute(2, 0, 1))
            origin = Origin(dataset="parity", image_id=index, path=None, size_hw=(raw.shape[0], raw.shape[1]))
            resized = preprocess(Sample(image=picture, task=Task.REFERRING, origin=origin), declared).image
            self._same(f"resized_image_{index}", resized.permute(1, 2, 0), tensors)
            images.append(self._padded(resized))
        batch = torch.stack(images)
        self._close("images", batch[: len(tensors["images"])], tensors)
        seen: dict[str, Tensor] = {}
        vit = self.net.sam.image_encoder.vit
        hooks = [vit.patch_embed.register_forward_hook(_keep(seen, "patch_embed", (0, 2, 3, 1)))]
        hooks += [block.register_forward_hook(_keep(seen, f"block{index}")) for index, block in enumerate(vit)]
        with torch.no_grad():
            seen["features"] = self.net.sam.encode(batch)
        for hook in hooks:
            hook.remove()
        for name, value in seen.items():
            self._close(name, value, tensors)

    def sam_decoder(self, tensors: dict[str, Tensor]) -> None:
        encoder = self._read("io_sam_encoder")
        features = self._use(tensors, "image_features")
        size_hw = (features.shape[2], features.shape[3])
        prompts = self.net.sam.prompt_encoder
        self._close("dense_pe", prompts.grid(size_hw), tensors)
        input_hw, original_hw = encoder["resized_image_0"].shape[:2], encoder["raw_image_0"].shape[:2]
        for case in sorted({name.split(".")[0] for name in tensors if "." in name}):
            text = self._use(tensors, f"{case}.text_embeds")
            self._close(f"{case}.sparse", text, tensors)
            self._close(f"{case}.dense", prompts.no_mask(size_hw).expand(len(text), -1, -1, -1), tensors)
            with torch.no_grad():
                masks, iou = self.net.sam.decode(features[:1], text)
            self._close(f"{case}.all4_masks", masks, tensors)
            self._close(f"{case}.all4_iou", iou, tensors)
            self._close(f"{case}.low_res_masks", masks[:, :1], tensors)
            self._close(f"{case}.iou_pred", iou[:, :1], tensors)
            post = resize_masks(
                masks[:, :1], image_size=prompts.image_size, input_hw=tuple(input_hw), original_hw=tuple(original_hw)
            )
            self._close(f"{case}.post", post, tensors)

    def clip(self, tensors: dict[str, Tensor]) -> None:
        pixels = self._use(tensors, "pixel_values")
        with torch.no_grad():
            states = self.net.clip.tower(pixel_values=pixels, output_hidden_states=True).hidden_states
            tower = self.net.clip(pixels)
            projected = self.net.projector(tower)
        for index, state in enumerate(states):
            self._close(f"hidden_{index}", state, tensors)
        self._close("tower_out", tower, tensors)
        self._close("projected", projected, tensors)

    def splice(self, tensors: dict[str, Tensor]) -> None:
        for name in ("input_ids", "attention_masks", "labels"):
            self._use(tensors, name)
            self.report.equal(
                f"{self.case}: {name} are those of io_train", True, torch.equal(tensors[name], self.train_file[name])
            )
        encoded = self._encoded()
        self._close("projected", encoded.tokens_BPC[self.train.conversation_to_image], tensors)
        sequence = self._reading(self.train).sequence
        self._close("inputs_embeds", sequence.embeds_NTC, tensors)
        self._same("new_attention_mask", sequence.attention_mask_NT, tensors)
        assert sequence.labels_NT is not None
        self._same("new_labels", sequence.labels_NT, tensors)

    def language(self, tensors: dict[str, Tensor]) -> None:
        chosen = self._use(tensors, "conv_index")
        reading = self._reading(self.train)
        sequence, net = reading.sequence, self.net
        assert sequence.labels_NT is not None
        with torch.no_grad():
            states = net.language.model(
                inputs_embeds=sequence.embeds_NTC,
                attention_mask=sequence.attention_mask_NT,
                output_hidden_states=True,
            ).hidden_states
            logits = net.language.lm_head(reading.states_NTC)
            fc_out = net.prompts(reading.states_NTC)
            ce = net.answer_error(reading)
        for index, state in enumerate(states):
            self._close(f"hidden_{index}", state[chosen], tensors)
        self._close("logits_conv0", logits[0], tensors)
        supervised = (sequence.labels_NT[:, 1:] != -100).nonzero()
        self._same("supervised_pos", supervised, tensors)
        self._close("supervised_logits", logits[supervised[:, 0], supervised[:, 1]], tensors)
        self._same("argmax", logits.argmax(-1), tensors)
        self._close("fc_out", fc_out, tensors)
        self._close("ce", ce[None], tensors)

    # ------------------------------------------------------------------ training

    def training(self, tensors: dict[str, Tensor]) -> None:
        for name in tensors:
            if name in INPUTS or name.startswith(("resized_uint8.", "gt_masks.")):
                self.report.skip(f"{self.case}/{name}")
        net = self._load().train()
        net.set_activation_checkpointing(True)
        with torch.no_grad():
            encoded = net.encode(self.train.images, self.train.images_clip)
            reading = net.read(self.train, encoded)
            self._close("image_embeddings", encoded.maps_BChw, tensors)
            self._conversations(net, encoded, reading, tensors)
            for index, packed in enumerate(net.pack(self.train, encoded, reading)):
                self._close(f"img{index}.packed_pred", packed, tensors)
        losses = net.loss(self.train)
        self._compare_losses(losses, {name: tensors[f"out.{name}"] for name in LOSSES})
        sum(losses.values(), torch.zeros(())).backward()
        self._gradients(net, tensors)

    def _conversations(self, net: GSVA, encoded: EncodedImages, reading: Reading, tensors: dict[str, Tensor]) -> None:
        slots = reading.slots
        prompts = net.prompts(slots.of(reading.states_NTC))
        for index in range(len(self.train.input_ids)):
            own = (slots.conversation_K == index) & slots.is_seg_K
            image = int(self.train.conversation_to_image[index])
            self._close(f"conv{index}.seg_embeds", prompts[own][:, None], tensors)
            masks, iou = net.sam.decode(encoded.maps_BChw[image : image + 1], prompts[own][:, None])
            self._close(f"conv{index}.low_res", masks[:, :1], tensors)
            self._close(f"conv{index}.iou", iou[:, :1], tensors)

    def _gradients(self, net: GSVA, tensors: dict[str, Tensor]) -> None:
        lora = self.config.lora.rank > 0
        grads = {
            official_key(name, lora=lora): torch.zeros_like(p) if p.grad is None else p.grad
            for name, p in net.named_parameters()
        }
        rows = tensors["grad_rows_index"]
        self.report.skip(f"{self.case}/grad_rows_index")
        for name in tensors:
            kind, _, key = name.partition(".")
            if kind == "grad" and key.endswith(".k_proj.bias"):
                # Zero but for rounding, on both sides: no softmax sees what all keys share. Its scale is the weight's.
                weight = key.replace("bias", "weight")
                self.report.close(
                    f"{self.case}/{name}",
                    torch.cat([grads[weight], grads[key][:, None]], dim=1),
                    torch.cat([tensors[f"grad.{weight}"], tensors[name][:, None]], dim=1),
                    GRADIENT,
                )
            elif kind == "grad":
                self._close(name, grads[key], tensors, GRADIENT)
            elif kind == "grad_rows":
                self._close(name, grads[key][rows], tensors, GRADIENT)
            elif kind == "grad_rownorm":
                self._close(name, grads[key].norm(dim=1), tensors, GRADIENT)
        total = torch.stack([grad.norm() for grad in grads.values()]).norm()
        self._close("grad_global_norm", total[None], tensors, GRADIENT)

    def steps(self, tensors: dict[str, Tensor]) -> None:
        """The recorded optimiser steps, with the learning rates that the original's scheduler really gives."""
        told = json.loads((self.folder / "train_steps.json").read_text())
        optimiser, scheduler = told["optimizer"], told["scheduler"]
        net = self._load().train()
        settings = OptimConfig(
            lr=optimiser["lr"],
            betas=tuple(optimiser["betas"]),
            eps=optimiser["eps"],
            weight_decay=optimiser["weight_decay"],
            clip_norm=optimiser["gradient_clipping"],
            schedule="deepspeed",
            warmup_steps=scheduler["warmup_num_steps"],
        )
        adam = build_optimizer(net, settings)
        trained = [parameter for parameter in net.parameters() if parameter.requires_grad]
        for step, expected in enumerate(told["steps"]):
            rate = learning_rate(step, steps=scheduler["total_num_steps"], optim=settings)
            self._number(f"step {step}: learning rate", rate, expected["lr_used"])
            losses = net.loss(self.train)
            self._compare_losses(losses, {name: torch.tensor([expected[name]]) for name in LOSSES}, f"step {step}: ")
            sum(losses.values(), torch.zeros(())).backward()
            norm = nn.utils.clip_grad_norm_(trained, settings.clip_norm)
            self._number(f"step {step}: gradient norm", float(norm), expected["grad_norm_before_clip"], GRADIENT)
            for group in adam.param_groups:
                group["lr"] = rate
            adam.step()
            adam.zero_grad()
        after = to_official(net.state_dict())
        for name in tensors:
            self._close(name, after[name], tensors)
            # What a step changes is small beside the value: compare that by itself.
            before = self.weights[name]
            moved = tensors[name] - before
            self.report.close(f"{self.case}/change of {name}", after[name] - before, moved, STEP_CHANGE)

    def losses(self, tensors: dict[str, Tensor]) -> None:
        pred, truth = self._use(tensors, "pred"), self._use(tensors, "gt").float()
        for name, error in (("bce", mask_bce), ("dice", mask_dice)):
            each = error(pred, truth)
            self._close(f"{name}.each", each, tensors)
            for case in [key for key in tensors if key.startswith(f"{name}.n")]:
                self._close(case, (each.sum() / int(case.removeprefix(f"{name}.n")))[None], tensors)
            self._close(f"empty.{name}", error(pred[:0], truth[:0]).sum()[None], tensors)
        self.report.skip(f"{self.case}/iou_loss.unused")

    # ------------------------------------------------------------------ answers

    def inference(self, tensors: dict[str, Tensor]) -> None:
        for name in ("image_index", "offset", "resize_list", "original_sizes", "gt_masks", "attention_masks"):
            self._use(tensors, name)
        reevaluate = "pass1.argmax" in tensors
        batch = dataclasses.replace(
            self._batch(tensors, self.train_file, images=tensors["image_index"].tolist()), reevaluate=reevaluate
        )
        self._use(tensors, "input_ids")
        encoded = self._encoded()
        own = EncodedImages(*(t[tensors["image_index"]] for t in (encoded.maps_BChw, encoded.tokens_BPC)))
        net = self.net
        replaced = torch.where(batch.input_ids == self.config.rej_id, self.config.seg_id, batch.input_ids)
        passes = [batch.input_ids, replaced] if reevaluate else [batch.input_ids]
        self._same("input_ids_after", passes[-1], tensors)
        with torch.no_grad():
            readings = [net.read(dataclasses.replace(batch, input_ids=ids), own) for ids in passes]
            for index, reading in enumerate(readings):
                logits = net.language.lm_head(reading.states_NTC)
                self._same(f"pass{index}.argmax", logits.argmax(-1), tensors)
                self._close(f"pass{index}.slot_logits", reading.slots.of(logits), tensors)
        slots = readings[0].slots
        self._same("slot_pos", torch.stack([slots.conversation_K, slots.position_K + 1], dim=1), tensors)
        self._close("fc_in", readings[-1].states_NTC, tensors)
        with torch.no_grad():
            prompts = net.prompts(readings[-1].slots.of(readings[-1].states_NTC))
            for index, answer in enumerate(net.answer(batch, own)):
                self._answer(index, answer, batch, own, prompts[slots.conversation_K == index], tensors)

    def _answer(
        self,
        index: int,
        answer: Answer,
        batch: ConversationBatch,
        encoded: EncodedImages,
        prompts: Tensor,
        tensors: dict[str, Tensor],
    ) -> None:
        self._same(f"conv{index}.output_ids", answer.ids_T, tensors)
        chosen = prompts[answer.has_mask_K]
        image = batch.conversation_to_image[index].expand(len(chosen))
        low = self.net.masks(encoded, image, chosen)
        self._close(f"conv{index}.seg_embeds", chosen[:, None], tensors)
        self._close(f"conv{index}.low_res", low[:, None], tensors)
        if f"conv{index}.pred_masks" in tensors:
            self._masks(f"conv{index}.pred_masks", answer.logits_MHW, tensors)

    def generation(self, tensors: dict[str, Tensor]) -> None:
        ids, sequences = self._use(tensors, "prompt_ids"), tensors["sequences"]
        picture = self._pictures()[0]
        new = sequences.shape[1] - ids.shape[1]
        net = self._load(dataclasses.replace(self.config, max_new_tokens=new)).eval()
        batch = self._batch({"input_ids": ids, "offset": torch.tensor([0, 1])}, self.train_file, images=[0])
        encoded = self._encoded()
        own = EncodedImages(encoded.maps_BChw[:1], encoded.tokens_BPC[:1])
        [answer] = net.answer(dataclasses.replace(batch, labels=None), own)
        self._same("sequences", torch.cat([ids, answer.ids_T[None]], dim=1), tensors)
        self.report.equal(f"{self.case}: size of image 0", tuple(tensors["masks"].shape[1:]), picture)
        # The states of the prompt are those of reading it, and so are those of the answer, without a cache.
        whole = dataclasses.replace(
            batch, input_ids=sequences, attention_mask=torch.ones_like(sequences).bool(), labels=None
        )
        with torch.no_grad():
            reading = net.read(whole, own)
        self._close("last_hidden", reading.states_NTC[:, :-1], tensors)
        places = torch.zeros_like(tensors["seg_position_mask"])
        segs = reading.slots.is_seg_K
        places[reading.slots.conversation_K[segs], reading.slots.position_K[segs]] = 1
        self._same("seg_position_mask", places, tensors)
        with torch.no_grad():
            prompts = net.prompts(reading.slots.of(reading.states_NTC)[segs])
            low = net.masks(own, torch.zeros(len(prompts), dtype=torch.long), prompts)
        self._close("seg_embeds", prompts, tensors)
        self._close("low_res", low[:, None], tensors)
        self._masks("masks", answer.logits_MHW, tensors)

    # ------------------------------------------------------------------ helpers

    def _load(self, config: GSVAConfig | None = None) -> GSVA:
        net = GSVA(config or self.config)
        expected = {key: tuple(value.shape) for key, value in net.state_dict().items()}
        state, mapped = from_official(self.weights, expected, source=str(self.folder))
        mapped.check()
        net.load_state_dict(state)
        return net.eval()

    def _read(self, stem: str) -> dict[str, Tensor]:
        return load_file(self.folder / f"{stem}.safetensors")

    def _padded(self, picture_3HW: Tensor) -> Tensor:
        size = self.config.sam.vit.image_size
        h, w = picture_3HW.shape[1:]
        return F.pad(normalize(picture_3HW, self.net.preprocess(Task.REFERRING)), (0, size - w, 0, size - h))

    def _pictures(self) -> list[tuple[int, int]]:
        return [(int(h), int(w)) for h, w in self.train_file["original_sizes"]]

    def _training_batch(self, file: dict[str, Tensor]) -> ConversationBatch:
        images = list(range(len(file["resize_list"])))
        masks = [file[f"gt_masks.{index}"] for index in images]
        return dataclasses.replace(self._batch(file, file, images=images), labels=file["labels"], masks=masks)

    def _batch(self, file: dict[str, Tensor], pictures: dict[str, Tensor], *, images: list[int]) -> ConversationBatch:
        ids, offset = file["input_ids"], file["offset"]
        return ConversationBatch(
            images=torch.stack([self._padded(pictures[f"resized_uint8.{i}"].permute(2, 0, 1)) for i in images]),
            images_clip=pictures["images_clip"][images],
            task=Task.REFERRING,
            origins=[Origin(dataset="parity", image_id=i, path=None, size_hw=self._pictures()[i]) for i in images],
            input_sizes_hw=[(int(h), int(w)) for h, w in pictures["resize_list"][images]],
            input_ids=ids,
            attention_mask=ids != 0,
            conversation_to_image=torch.arange(len(images)).repeat_interleave(offset.diff()),
            labels=torch.full_like(ids, -100),
        )

    def _encoded(self) -> EncodedImages:
        with torch.no_grad():
            return self.net.encode(self.train.images, self.train.images_clip)

    def _reading(self, batch: ConversationBatch) -> Reading:
        with torch.no_grad():
            return self.net.read(batch, self._encoded())

    def _use(self, tensors: dict[str, Tensor], name: str) -> Tensor:
        """An input: it was used, there is nothing to compare."""
        self.report.skip(f"{self.case}/{name}")
        return tensors[name]

    def _close(self, name: str, ours: Tensor, tensors: dict[str, Tensor], tolerance: float = FLOAT) -> None:
        if name in tensors:  # a compact folder lacks some
            self.report.close(f"{self.case}/{name}", ours, tensors[name], tolerance)

    def _same(self, name: str, ours: Tensor, tensors: dict[str, Tensor], *, allowed: float = 0.0) -> None:
        if name in tensors:
            self.report.same(f"{self.case}/{name}", ours, tensors[name], allowed=allowed)

    def _masks(self, name: str, logits: Tensor, tensors: dict[str, Tensor]) -> None:
        """Logits, and the masks after the threshold."""
        self._close(name, logits, tensors)
        for sign, ours, theirs in ((">=", logits >= 0, tensors[name] >= 0), (">", logits > 0, tensors[name] > 0)):
            self.report.same(f"{self.case}/{name} {sign} 0", ours, theirs, allowed=MASK_SHARE)

    def _number(self, name: str, ours: float, theirs: float, tolerance: float = FLOAT) -> None:
        self.report.close(f"{self.case}/{name}", torch.tensor([ours]), torch.tensor([theirs]), tolerance)

    def _compare_losses(self, losses: dict[str, Tensor], expected: dict[str, Tensor], prefix: str = "") -> None:
        ce, bce, dice = (losses[f"{Task.REFERRING}_loss_{name}"] for name in ("ce", "mask_bce", "mask_dice"))
        ours = {
            "loss": ce + bce + dice,
            "ce_loss": ce,
            "mask_bce_loss": bce,
            "mask_dice_loss": dice,
            "mask_loss": bce + dice,
        }
        for name, value in expected.items():
            place = f"{self.case}/{prefix}{name}" if prefix else f"{self.case}/out.{name}"
            self.report.close(place, ours[name][None], value, FLOAT)


LOSSES = ("loss", "ce_loss", "mask_bce_loss", "mask_dice_loss", "mask_loss")
INPUTS = {"input_ids", "attention_masks", "labels", "offset", "images_clip", "resize_list", "original_sizes"}
STEP_CHANGE = GRADIENT


def _keep(seen: dict[str, Tensor], name: str, order: tuple[int, ...] | None = None) -> Callable[..., None]:
    def hook(_module: nn.Module, _inputs: tuple[Any, ...], out: Tensor) -> None:
        seen[name] = out if order is None else out.permute(order)

    return hook
